//! Open files of complete blobs and packs, kept open between reads, and leases on them.
//!
//! Every use of a stored file goes through [`Files`], so whether a file is in use is the count of its `Arc`s, and
//! when it was used last is known without a write to the index.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use velo_object::BlobId;

use crate::StoreError;

/// Files kept open though nobody uses them.
const MOST_IDLE: usize = 512;

/// A complete blob or pack, open for reading.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub file: Arc<File>,
    pub size_bytes: u64,
}

#[derive(Debug, Default)]
struct Table {
    open: HashMap<BlobId, (Arc<OpenFile>, u64)>,
    /// When files that are not open were used last.
    closed: HashMap<BlobId, u64>,
    /// Kept from eviction by puts and transfers that are under way.
    held: HashMap<BlobId, u32>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Files {
    table: Mutex<Table>,
    clock: AtomicU64,
}

impl Files {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's clock: one more at each use.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed) + 1
    }

    /// Sets the clock past what the index knows.
    pub fn wind(&self, used: u64) {
        self.clock.fetch_max(used, Relaxed);
    }

    /// The open file, if it is open.
    pub fn get(&self, id: &BlobId) -> Option<Arc<OpenFile>> {
        let now = self.tick();
        let mut table = self.table();
        let (file, used) = table.open.get_mut(id)?;
        *used = now;
        Some(file.clone())
    }

    /// The file, opened by `open` if need be.
    pub fn get_or_open(
        &self,
        id: &BlobId,
        open: impl FnOnce() -> Result<OpenFile, StoreError>,
    ) -> Result<Arc<OpenFile>, StoreError> {
        if let Some(file) = self.get(id) {
            return Ok(file);
        }
        let file = Arc::new(open()?);
        let now = self.tick();
        let mut table = self.table();
        table.closed.remove(id);
        let entry = table.open.entry(*id).or_insert((file, now)).0.clone();
        if table.open.len() > MOST_IDLE {
            table.close_oldest(id);
        }
        Ok(entry)
    }

    /// Keeps a file from eviction until as many [`Files::release`]s.
    pub fn hold(&self, id: BlobId) {
        *self.table().held.entry(id).or_default() += 1;
    }

    /// Ends a hold.
    pub fn release(&self, id: &BlobId) {
        let mut table = self.table();
        if let Some(count) = table.held.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                table.held.remove(id);
            }
        }
    }

    /// Closes a file that nobody uses, and has `forget` take it from the index before anybody else can begin to: who
    /// holds a file afterwards finds that it is gone. False (and nothing done) where somebody uses it.
    pub fn forget_if_idle(
        &self,
        id: &BlobId,
        forget: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let mut table = self.table();
        let leased = table.open.get(id).is_some_and(|(file, _)| Arc::strong_count(file) > 1);
        if leased || table.held.contains_key(id) {
            return Ok(false);
        }
        forget()?;
        table.forget(id);
        Ok(true)
    }

    /// As [`Files::forget_if_idle`], but who only reads it does not count.
    pub fn forget_unless_held(
        &self,
        id: &BlobId,
        forget: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let table = self.table();
        if table.held.contains_key(id) {
            return Ok(false);
        }
        forget().map(|()| true)
    }

    /// Closes a file that is removed, whoever uses it: who has it open may go on reading.
    pub fn close(&self, id: &BlobId) {
        self.table().forget(id);
    }

    /// When files were used last, as far as that was since the start.
    pub fn used(&self) -> HashMap<BlobId, u64> {
        let table = self.table();
        let mut used = table.closed.clone();
        used.extend(table.open.iter().map(|(id, (_, used))| (*id, *used)));
        used
    }

    /// Closes what nobody uses; for the end.
    pub fn clear(&self) {
        let mut table = self.table();
        table.open.clear();
        table.closed.clear();
    }
}

impl Table {
    fn forget(&mut self, id: &BlobId) {
        self.open.remove(id);
        self.closed.remove(id);
    }

    /// Closes about an eighth of the files that nobody uses, those used longest ago.
    fn close_oldest(&mut self, but: &BlobId) {
        let idle = self.open.iter().filter(|(id, (file, _))| *id != but && Arc::strong_count(file) == 1);
        let mut idle: Vec<(u64, BlobId)> = idle.map(|(id, (_, used))| (*used, *id)).collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        for (used, id) in idle.into_iter().take(MOST_IDLE / 8) {
            self.open.remove(&id);
            self.closed.insert(id, used);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_holds_a_file_that_is_being_forgotten_finds_it_gone() {
        let (files, id) = (Files::default(), BlobId::of(b"content"));
        let forgotten = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let forget = || {
                scope.spawn(|| {
                    files.hold(id);
                    assert!(forgotten.load(Relaxed), "held while it could still be found");
                });
                std::thread::sleep(Duration::from_millis(30));
                forgotten.store(true, Relaxed);
                Ok(())
            };
            assert!(files.forget_if_idle(&id, forget).expect("infallible"));
        });
        let held = |forget: &dyn Fn() -> Result<(), StoreError>| {
            let idle = files.forget_if_idle(&id, forget).expect("not asked");
            idle || files.forget_unless_held(&id, forget).expect("not asked")
        };
        assert!(!held(&|| Err(StoreError::Closed)));
        files.release(&id);
        assert!(held(&|| Ok(())));
    }
}
