//! What of a tree is in the destination already: compared by size, permission and hash, on all cores.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use velo_object::{BlobId, Entry, EntryKind, Tree};

use super::destination::regular;
use crate::beneath;
use crate::interrupt::Interrupt;

/// The indexes of the entries that have to be written.
pub fn differing<B: AsRef<[u8]> + Sync>(
    tree: &Tree<B>,
    root: BorrowedFd<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<usize>> {
    // In a new directory nothing is worth a look.
    let fresh = rustix::fs::Dir::read_from(root)?
        .filter_map(Result::ok)
        .all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."));
    if fresh {
        return Ok((0..tree.len()).collect());
    }
    let next = AtomicUsize::new(0);
    let differing = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                let mut mine = Vec::new();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= tree.len() || interrupt.is_set() {
                        break;
                    }
                    if !is_there(&tree.entry(index), root) {
                        mine.push(index);
                    }
                }
                differing.lock().unwrap_or_else(PoisonError::into_inner).extend(mine);
            });
        }
    });
    interrupt.check()?;
    let mut differing = differing.into_inner().unwrap_or_else(PoisonError::into_inner);
    differing.sort_unstable();
    Ok(differing)
}

/// Threads for what keeps disks and cores busy.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16))
}

fn is_there(entry: &Entry<'_>, root: BorrowedFd<'_>) -> bool {
    match entry.kind {
        EntryKind::Directory => {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            beneath::open(root, entry.path, flags, Mode::empty()).is_ok()
        }
        EntryKind::Symlink => {
            let target = beneath::read_link(root, entry.path);
            target.is_ok_and(|target| BlobId::of(&target) == entry.blob)
        }
        EntryKind::File | EntryKind::Executable => {
            let Some((fd, size, executable)) = regular(root, entry.path) else { return false };
            if size != entry.size_bytes || executable != (entry.kind == EntryKind::Executable) {
                return false;
            }
            if entry.mtime_ns != 0 {
                let stat = rustix::fs::fstat(&fd);
                if stat.map(|stat| crate::put::mtime_ns(&stat)) != Ok(entry.mtime_ns) {
                    return false;
                }
            }
            hash(File::from(fd)).is_ok_and(|id| id == entry.blob)
        }
    }
}

/// The id of a file's content.
pub fn hash(file: File) -> std::io::Result<BlobId> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(BlobId::from_bytes(*hasher.finalize().as_bytes()))
}
