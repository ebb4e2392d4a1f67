//! The directory that is written to: parents are made and entered without ever following a link.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use velo_object::tree::path_text;

use crate::beneath;
use crate::exit::Failure;

/// A directory to write to.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    root: Arc<OwnedFd>,
    /// The directory that was asked for last: a tree's order makes it likely to be the next one's parent.
    last: (Vec<u8>, Arc<OwnedFd>),
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Destination {
    /// Opens `path`, and makes it (and its parents) where it is not there.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot use {} as a destination", path.display());
        if std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(Failure::usage(format!(
                "{} is there and no directory: name another DEST",
                path.display()
            )));
        }
        std::fs::create_dir_all(path).with_context(context)?;
        let root = Arc::new(rustix::fs::open(path, DIRECTORY, Mode::empty()).with_context(context)?);
        Ok(Self { path: path.to_owned(), last: (Vec::new(), Arc::clone(&root)), root })
    }

    /// The directory itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// How `path` in it is shown to the user.
    pub fn show(&self, path: &[u8]) -> String {
        if path.is_empty() {
            return self.path.display().to_string();
        }
        self.path.join(path_text(path)).display().to_string()
    }

    /// Bytes that may still be written.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.root)
            .with_context(|| format!("cannot ask for the free space of {}", self.path.display()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether `other` lies on the same file system, and that is one where files can share their extents.
    pub fn shares_extents_with(&self, other: &Path) -> bool {
        const SHARING: [u32; 3] = [0x9123_683E, 0x5846_5342, 0xCA45_1A4E]; // btrfs, XFS, bcachefs
        let (Ok(here), Ok(there)) = (rustix::fs::fstat(&self.root), rustix::fs::stat(other)) else {
            return false;
        };
        let kind = rustix::fs::fstatfs(&self.root).map(|stat| stat.f_type as u32);
        here.st_dev == there.st_dev && kind.is_ok_and(|kind| SHARING.contains(&kind))
    }

    /// Opens the directory `path` below; makes what is missing. A file or link that stands where the tree has a
    /// directory is replaced: the link itself goes, what it points to is not touched.
    pub fn directory(&mut self, path: &[u8]) -> anyhow::Result<Arc<OwnedFd>> {
        if self.last.0 == path {
            return Ok(Arc::clone(&self.last.1));
        }
        let fd = match beneath::open(self.root.as_fd(), path, DIRECTORY, Mode::empty()) {
            Ok(fd) => fd,
            Err(_) => {
                self.make(path).with_context(|| format!("cannot make the directory {}", self.show(path)))?
            }
        };
        self.last = (path.to_owned(), Arc::new(fd));
        Ok(Arc::clone(&self.last.1))
    }

    fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut at = rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty())?;
        for component in path.split(|byte| *byte == b'/').map(OsStr::from_bytes) {
            at = match rustix::fs::openat(&at, component, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(fd) => fd,
                Err(error) => {
                    match error {
                        Errno::NOENT => {}
                        // A file or a link is in the way.
                        Errno::NOTDIR | Errno::LOOP => {
                            rustix::fs::unlinkat(&at, component, AtFlags::empty())?;
                        }
                        other => return Err(other),
                    }
                    match rustix::fs::mkdirat(&at, component, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(other) => return Err(other),
                    }
                    rustix::fs::openat(&at, component, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?
                }
            };
        }
        Ok(at)
    }
}

/// Moves `temporary` to its final `name` in the same directory, over whatever file or link stands there.
///
/// # Errors
/// An existing directory gives way only if it is empty.
pub fn rename_over(dir: BorrowedFd<'_>, temporary: &OsStr, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::renameat(dir, temporary, dir, name) {
        Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => {
            rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?;
            rustix::fs::renameat(dir, temporary, dir, name)
        }
        other => other,
    }
}

/// The regular file at `path`, if there is one, with its size and whether it may be run.
pub fn regular(root: BorrowedFd<'_>, path: &[u8]) -> Option<(OwnedFd, u64, bool)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = beneath::open(root, path, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstat(&fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some((
        fd,
        stat.st_size.max(0) as u64,
        stat.st_mode & 0o100 != 0,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_in_the_way_is_replaced_and_never_followed() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("precious"), b"kept").unwrap();
        symlink(outside.path(), dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("f"), b"").unwrap();
        let mut destination = Destination::open(dir.path()).unwrap();
        destination.directory(b"a/b").unwrap();
        destination.directory(b"f/g/h").unwrap();
        assert!(dir.path().join("a/b").is_dir() && !dir.path().join("a").is_symlink());
        assert!(dir.path().join("f/g/h").is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read(outside.path().join("precious")).unwrap(), b"kept");
    }

    #[test]
    fn paths_as_deep_as_a_tree_may_have_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut destination = Destination::open(dir.path()).unwrap();
        let deep = [b"d/".repeat(2047), b"d".to_vec()].concat();
        destination.directory(&deep).unwrap();
        destination.directory(b"x").unwrap();
        let again = destination.directory(&deep).unwrap();
        assert!(rustix::fs::fstat(&again).is_ok());
    }

    #[test]
    fn a_directory_gives_way_to_a_file_only_where_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::open(dir.path()).unwrap();
        let (temporary, name) = (OsStr::new("t"), OsStr::new("n"));
        std::fs::write(dir.path().join("t"), b"new").unwrap();
        std::fs::create_dir_all(dir.path().join("n/in")).unwrap();
        assert_eq!(rename_over(destination.fd(), temporary, name), Err(Errno::NOTEMPTY));
        std::fs::remove_dir(dir.path().join("n/in")).unwrap();
        rename_over(destination.fd(), temporary, name).unwrap();
        assert_eq!(std::fs::read(dir.path().join("n")).unwrap(), b"new");
    }
}
