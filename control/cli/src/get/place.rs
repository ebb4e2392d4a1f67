//! Places one entry: its content goes under a temporary name beside the final one, which it then takes at once.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use velo_object::{BlobId, EntryKind};

use super::copy::copy;
use super::destination::rename_over;
use crate::exit::Failure;
use crate::interrupt::Interrupt;

/// A content that can be read.
#[derive(Debug, Clone)]
pub struct Content {
    /// The file that it lies in.
    pub file: Arc<File>,
    /// Where in it.
    pub offset_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
}

/// One entry to place.
#[derive(Debug)]
pub struct Placement {
    /// The directory that it goes to.
    pub dir: Arc<OwnedFd>,
    /// Its name there.
    pub name: OsString,
    /// How it is shown to the user.
    pub shown: String,
    /// What it is.
    pub kind: EntryKind,
    /// The id of its content.
    pub blob: BlobId,
    /// The time to give it, or 0.
    pub mtime_ns: u64,
    /// Its content.
    pub content: Content,
    /// It may be a hard link to the stored file.
    pub link: bool,
}

/// How an entry was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// As a file or link of its own.
    Written,
    /// As a hard link to the stored file.
    Linked,
}

/// The name under which content stays until it is whole: the same in every run, so that what an interrupted one left
/// is found again.
pub fn temporary_name(blob: &BlobId, name: &OsStr) -> OsString {
    let of_name = BlobId::of(name.as_bytes()).to_hex();
    format!(".velo-{}-{}.part", &blob.to_hex()[..24], &of_name[..8]).into()
}

/// The permissions of a file of this kind; the user's umask takes away from them.
pub fn mode_of(kind: EntryKind) -> Mode {
    Mode::from_raw_mode(kind.mode())
}

/// Gives a file its time of modification, where the tree has one.
pub fn set_mtime(fd: BorrowedFd<'_>, mtime_ns: u64) -> Result<(), Errno> {
    if mtime_ns == 0 { Ok(()) } else { rustix::fs::futimens(fd, &times(mtime_ns)) }
}

fn times(mtime_ns: u64) -> Timestamps {
    let time =
        Timespec { tv_sec: (mtime_ns / 1_000_000_000) as i64, tv_nsec: (mtime_ns % 1_000_000_000) as _ };
    Timestamps { last_access: time, last_modification: time }
}

impl Placement {
    /// Places it. `step` sees bytes as they come.
    pub fn run(&self, interrupt: &Interrupt, step: impl FnMut(u64)) -> anyhow::Result<Placed> {
        let temporary = temporary_name(&self.blob, &self.name);
        let result = self.under(&temporary, interrupt, step);
        if result.is_err() {
            let _ = rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty());
        }
        result.with_context(|| format!("cannot write {}", self.shown))
    }

    fn under(
        &self,
        temporary: &OsStr,
        interrupt: &Interrupt,
        step: impl FnMut(u64),
    ) -> anyhow::Result<Placed> {
        if self.kind == EntryKind::Symlink {
            self.symlink(temporary)?;
        } else if self.link && self.whole_file()? {
            self.hard_link(temporary)?;
            self.rename(temporary)?;
            // Where both names were links to one file already, the rename did nothing.
            let _ = rustix::fs::unlinkat(&self.dir, temporary, AtFlags::empty());
            return Ok(Placed::Linked);
        } else {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = mode_of(self.kind);
            let file = self.anew(temporary, || rustix::fs::openat(&self.dir, temporary, flags, mode))?;
            let file = File::from(file);
            let Content { file: from, offset_bytes, size_bytes } = &self.content;
            copy(from, *offset_bytes, *size_bytes, &file, interrupt, step)?;
            set_mtime(file.as_fd(), self.mtime_ns)?;
        }
        self.rename(temporary)?;
        Ok(Placed::Written)
    }

    /// Makes something under the temporary name. What an interrupted run left there is of no use to a copy.
    fn anew<T>(&self, temporary: &OsStr, make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&self.dir, temporary, AtFlags::empty())?;
                make()
            }
            made => made,
        }
    }

    fn rename(&self, temporary: &OsStr) -> anyhow::Result<()> {
        rename_over(self.dir.as_fd(), temporary, &self.name).map_err(|error| match error {
            Errno::NOTEMPTY => anyhow!("a directory that is not empty stands there: remove it first"),
            other => other.into(),
        })
    }

    fn symlink(&self, temporary: &OsStr) -> anyhow::Result<()> {
        let mut target = vec![0; self.content.size_bytes as usize];
        self.content.file.read_exact_at(&mut target, self.content.offset_bytes)?;
        if target.contains(&0) {
            return Err(Failure::integrity(
                "the target of this link has a zero byte: the tree cannot be used",
            ));
        }
        let target = OsStr::from_bytes(&target);
        self.anew(temporary, || rustix::fs::symlinkat(target, &self.dir, temporary))?;
        if self.mtime_ns != 0 {
            rustix::fs::utimensat(&self.dir, temporary, &times(self.mtime_ns), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    /// Whether the content is the whole of its file, and the file is as the entry must be: a link shares its mode and
    /// time.
    fn whole_file(&self) -> anyhow::Result<bool> {
        let Content { file, offset_bytes, size_bytes } = &self.content;
        let plain = self.kind == EntryKind::File && self.mtime_ns == 0;
        Ok(plain && *offset_bytes == 0 && file.metadata()?.len() == *size_bytes)
    }

    fn hard_link(&self, temporary: &OsStr) -> anyhow::Result<()> {
        let open = format!("/proc/self/fd/{}", self.content.file.as_raw_fd());
        let follow = AtFlags::SYMLINK_FOLLOW;
        let linked = self.anew(temporary, || {
            rustix::fs::linkat(rustix::fs::CWD, open.as_str(), &self.dir, temporary, follow)
        });
        linked.map_err(|error| match error {
            Errno::XDEV => anyhow!("--link: the store is on another file system; leave --link away"),
            Errno::PERM | Errno::ACCESS => {
                anyhow!("--link: this user may not link to the store's files ({error}); leave --link away")
            }
            other => anyhow::Error::from(other).context("--link"),
        })
    }
}
