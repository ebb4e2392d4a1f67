//! Writes the entries that differ: this thread makes directories and opens contents, others copy.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use velo_object::{EntryKind, Tree};

use super::content::Contents;
use super::destination::Destination;
use super::place::{Placed, Placement, set_mtime};
use super::plan::threads;
use crate::beneath;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Placements that wait for a thread; each may hold two open files.
const QUEUE: usize = 128;

/// What was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Written {
    /// Files and links of their own.
    pub entries: u64,
    /// Hard links to the store.
    pub linked: u64,
    /// Bytes of their contents.
    pub bytes: u64,
}

struct Shared<'a> {
    queue: Mutex<Receiver<Placement>>,
    failed: AtomicBool,
    error: Mutex<Option<anyhow::Error>>,
    done: AtomicU64,
    linked: AtomicU64,
    entries: AtomicU64,
    interrupt: &'a Interrupt,
}

/// Writes the entries with these indexes.
pub fn write(
    tree: &Tree<Vec<u8>>,
    indexes: &[usize],
    contents: &mut Contents<'_>,
    destination: &mut Destination,
    link: bool,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> anyhow::Result<Written> {
    let (send, receive) = sync_channel(QUEUE);
    let shared = Shared {
        queue: Mutex::new(receive),
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        done: AtomicU64::new(0),
        linked: AtomicU64::new(0),
        entries: AtomicU64::new(0),
        interrupt,
    };
    let fed = std::thread::scope(|scope| {
        let spawn = |_| scope.spawn(|| shared.work());
        let workers: Vec<_> = (0..threads().min(indexes.len())).map(spawn).collect();
        // The sender goes when this block ends: then the threads end too.
        let send = send;
        for &index in indexes {
            interrupt.check()?;
            if shared.failed.load(Ordering::Relaxed) {
                break;
            }
            progress.set(shared.done.load(Ordering::Relaxed), "");
            let entry = tree.entry(index);
            if entry.kind == EntryKind::Directory {
                let dir = destination.directory(entry.path)?;
                set_mtime(dir.as_fd(), entry.mtime_ns)?;
                shared.entries.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (parent, name) = beneath::split(entry.path);
            let placement = Placement {
                content: contents.find(&entry)?,
                dir: destination.directory(parent)?,
                name: OsStr::from_bytes(name).to_owned(),
                shown: destination.show(entry.path),
                kind: entry.kind,
                blob: entry.blob,
                mtime_ns: entry.mtime_ns,
                link,
            };
            if send.send(placement).is_err() {
                break; // no thread is left: the error below says why
            }
        }
        drop(send);
        let mut pause = Duration::from_micros(200);
        while !workers.iter().all(|worker| worker.is_finished()) {
            progress.set(shared.done.load(Ordering::Relaxed), "");
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        anyhow::Ok(())
    });
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    fed?;
    interrupt.check()?;
    let bytes = shared.done.into_inner();
    progress.set(bytes, "");
    Ok(Written { entries: shared.entries.into_inner(), linked: shared.linked.into_inner(), bytes })
}

impl Shared<'_> {
    fn work(&self) {
        loop {
            let next = self.queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(placement) = next else { return };
            if self.failed.load(Ordering::Relaxed) || self.interrupt.is_set() {
                continue; // empties the queue, so that the feeding thread is not held up
            }
            match placement.run(self.interrupt, |bytes| {
                self.done.fetch_add(bytes, Ordering::Relaxed);
            }) {
                Ok(Placed::Written) => {
                    self.entries.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Placed::Linked) => {
                    self.linked.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    self.failed.store(true, Ordering::Relaxed);
                    self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    }
}

/// One placement by itself, on this thread.
pub fn write_one(
    placement: &Placement,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> anyhow::Result<Written> {
    let placed = placement.run(interrupt, |bytes| progress.add(bytes))?;
    let linked = u64::from(placed == Placed::Linked);
    Ok(Written { entries: 1 - linked, linked, bytes: placement.content.size_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::get::place::{Content, temporary_name};
    use std::ffi::OsString;
    use std::sync::Arc;
    use velo_object::BlobId;

    fn placement(dir: &std::path::Path, name: &str, kind: EntryKind, bytes: &[u8]) -> Placement {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Placement {
            dir: Destination::open(dir).unwrap().directory(b"").unwrap(),
            name: OsString::from(name),
            shown: name.to_owned(),
            kind,
            blob: BlobId::of(bytes),
            mtime_ns: 0,
            content: Content { file: Arc::new(file), offset_bytes: 0, size_bytes: bytes.len() as u64 },
            link: false,
        }
    }

    #[test]
    fn an_entry_replaces_a_link_and_leaves_its_target_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("target"), b"old").unwrap();
        std::os::unix::fs::symlink("target", dir.path().join("name")).unwrap();
        let new = placement(dir.path(), "name", EntryKind::Executable, b"new");
        // An interrupted run left something under the temporary name.
        std::fs::write(dir.path().join(temporary_name(&new.blob, &new.name)), b"half").unwrap();
        new.run(&Interrupt::never(), |_| {}).unwrap();
        assert!(!dir.path().join("name").is_symlink());
        assert_eq!(std::fs::read(dir.path().join("name")).unwrap(), b"new");
        assert_eq!(std::fs::read(dir.path().join("target")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");

        let link = placement(dir.path(), "name", EntryKind::Symlink, b"/nowhere");
        link.run(&Interrupt::never(), |_| {}).unwrap();
        assert_eq!(std::fs::read_link(dir.path().join("name")).unwrap().as_os_str(), "/nowhere");
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("name"), b"old").unwrap();
        let mut new = placement(dir.path(), "name", EntryKind::File, b"new");
        new.content.size_bytes = 10; // more than there is
        assert!(new.run(&Interrupt::never(), |_| {}).is_err());
        assert_eq!(std::fs::read(dir.path().join("name")).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
