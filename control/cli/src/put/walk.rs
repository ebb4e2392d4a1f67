//! Walks a directory without following a link, in the order of a tree, and opens its files safely.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use velo_object::path_order;
use velo_object::tree::{check_path, path_text};

use crate::beneath;
use crate::interrupt::Interrupt;

/// What stands at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; whether it may be run.
    File {
        /// Whether its owner may run it.
        executable: bool,
    },
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
}

/// Something that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its path from the root of the walk.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Its size, for a file.
    pub size_bytes: u64,
    /// When it was last modified, in ns since 1970.
    pub mtime_ns: u64,
}

/// A directory that is walked.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

/// The state of a file by which a change while it is read is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    size: i64,
    mtime: (i64, u64),
    ctime: (i64, u64),
}

impl Stamp {
    /// Of an open file.
    pub fn of(stat: &Stat) -> Self {
        Self {
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// The time of the last modification, in ns since 1970; 0 before that.
pub fn mtime_ns(stat: &Stat) -> u64 {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec)
}

/// Whether a file may be run: its owner's bit decides.
fn is_executable(stat: &Stat) -> bool {
    stat.st_mode & 0o100 != 0
}

impl Root {
    /// Opens the directory `path`; the path itself may be a link.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// How `path` below this root is shown to the user.
    pub fn show(&self, path: &[u8]) -> String {
        format!("{}/{}", self.path.display(), path_text(path))
    }

    /// All that lies below, in the order of a tree.
    ///
    /// # Errors
    /// What cannot stand in a tree is refused by name: devices, sockets, FIFOs, names that are too long.
    pub fn walk(&self, interrupt: &Interrupt) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut open: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = open.pop() {
            interrupt.check()?;
            let dir = self.open_directory(&path)?;
            let entries =
                Dir::read_from(&dir).with_context(|| format!("cannot read {}", self.show(&path)))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot read {}", self.show(&path)))?;
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let mut child = path.clone();
                if !child.is_empty() {
                    child.push(b'/');
                }
                child.extend_from_slice(name.to_bytes());
                check_path(&child).with_context(|| self.show(&child))?;
                let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .with_context(|| format!("cannot look at {}", self.show(&child)))?;
                let kind = self.kind(&child, &stat)?;
                if kind == Kind::Directory {
                    open.push(child.clone());
                }
                let size_bytes = if kind == Kind::Directory { 0 } else { stat.st_size.max(0) as u64 };
                found.push(Found { path: child, kind, size_bytes, mtime_ns: mtime_ns(&stat) });
            }
        }
        found.sort_unstable_by(|a, b| path_order(&a.path, &b.path));
        Ok(found)
    }

    fn kind(&self, path: &[u8], stat: &Stat) -> anyhow::Result<Kind> {
        let what = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => return Ok(Kind::File { executable: is_executable(stat) }),
            FileType::Symlink => return Ok(Kind::Symlink),
            FileType::Directory => return Ok(Kind::Directory),
            FileType::Fifo => "a FIFO",
            FileType::Socket => "a socket",
            FileType::CharacterDevice | FileType::BlockDevice => "a device",
            _ => "neither file, link nor directory",
        };
        bail!("{} is {what}, which cannot be put: remove it or put another directory", self.show(path))
    }

    /// Opens a path below the root, never through a link.
    fn open_below(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        beneath::open(self.fd.as_fd(), path, flags, Mode::empty())
    }

    fn open_directory(&self, path: &[u8]) -> anyhow::Result<OwnedFd> {
        self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .with_context(|| format!("cannot open {}", self.show(path)))
    }

    /// Opens a file that the walk found.
    pub fn open_file(&self, found: &Found) -> anyhow::Result<(OwnedFd, Stamp)> {
        // NONBLOCK: should it have become a FIFO meanwhile, opening does not wait for a writer.
        let fd = self.open_below(&found.path, OFlags::RDONLY | OFlags::NONBLOCK);
        let fd = fd.with_context(|| format!("cannot open {}", self.show(&found.path)))?;
        let stat = rustix::fs::fstat(&fd).with_context(|| self.show(&found.path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || stat.st_size != found.size_bytes as i64
        {
            return Err(self.changed(found));
        }
        Ok((fd, Stamp::of(&stat)))
    }

    /// The target of a link that the walk found.
    pub fn read_link(&self, found: &Found) -> anyhow::Result<Vec<u8>> {
        let context = || format!("cannot read the link {}", self.show(&found.path));
        beneath::read_link(self.fd.as_fd(), &found.path).with_context(context)
    }

    /// The error for a file that is not what it was.
    pub fn changed(&self, found: &Found) -> anyhow::Error {
        let path = self.show(&found.path);
        anyhow::anyhow!("{path} changed while it was read: put it again when nobody writes to it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn finds_everything_in_the_order_of_a_tree_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
        std::fs::create_dir_all(at(b"a/b")).unwrap();
        std::fs::write(at(b"a/b/\xff\n"), b"x").unwrap();
        std::fs::write(at(b"a-b"), b"").unwrap();
        std::fs::write(at(b"a0"), b"").unwrap();
        std::fs::create_dir(at(b"empty")).unwrap();
        symlink("/etc", at(b"link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let found = root.walk(&Interrupt::never()).unwrap();
        let paths: Vec<&[u8]> = found.iter().map(|f| f.path.as_slice()).collect();
        assert_eq!(paths, [b"a".as_slice(), b"a/b", b"a/b/\xff\n", b"a-b", b"a0", b"empty", b"link"]);
        assert_eq!(found[6].kind, Kind::Symlink);
        assert_eq!(root.read_link(&found[6]).unwrap(), b"/etc");
        assert!(root.open_file(&found[2]).is_ok());

        // A directory that becomes a link between the walk and the reading is not followed.
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join(OsStr::from_bytes(b"\xff\n")), b"y").unwrap();
        std::fs::rename(at(b"a/b"), at(b"a/c")).unwrap();
        symlink(outside.path(), at(b"a/b")).unwrap();
        assert!(root.open_file(&found[2]).is_err());
    }

    #[test]
    fn fifos_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), FileType::Fifo, mode, 0).unwrap();
        let error = Root::open(dir.path()).unwrap().walk(&Interrupt::never()).unwrap_err().to_string();
        assert!(error.contains("/pipe is a FIFO"), "{error}");
    }

    #[test]
    fn a_file_of_another_size_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), b"1").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let found = root.walk(&Interrupt::never()).unwrap();
        std::fs::write(dir.path().join("f"), b"22").unwrap();
        assert!(root.open_file(&found[0]).unwrap_err().to_string().contains("changed while it was read"));
    }
}
