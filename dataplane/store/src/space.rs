//! Room: what is used, what is promised to transfers, what is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::StoreError;
use crate::error::At;

/// Left to the databases and the file system's own tables.
const MARGIN_BYTES: u64 = 4 << 20;

/// The figures. Shared by the store and its transfers.
#[derive(Debug)]
pub(crate) struct Space {
    root: PathBuf,
    capacity_bytes: Option<u64>,
    /// Complete files.
    pub used_bytes: AtomicU64,
    /// Of these, pinned.
    pub pinned_bytes: AtomicU64,
    /// Promised to transfers, whether written yet or not.
    pub reserved_bytes: AtomicU64,
    /// Of these, not yet written: the disk does not know of them.
    unwritten_bytes: AtomicU64,
    /// Refusals.
    pub refused: AtomicU64,
}

impl Space {
    pub fn new(root: &Path, capacity_bytes: Option<u64>) -> Self {
        Self {
            root: root.to_owned(),
            capacity_bytes,
            used_bytes: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            reserved_bytes: AtomicU64::new(0),
            unwritten_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub fn capacity_bytes(&self) -> Option<u64> {
        self.capacity_bytes
    }

    /// Bytes free on the disk, and its size.
    pub fn disk_bytes(&self) -> Result<(u64, u64), StoreError> {
        let disk = rustix::fs::statvfs(&self.root).at(&self.root)?;
        Ok((disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize))
    }

    /// Bytes that must be freed before `more` can be promised; 0: there is room.
    pub fn short_of(&self, more: u64) -> Result<u64, StoreError> {
        let promised = self.used_bytes.load(Relaxed) + self.reserved_bytes.load(Relaxed) + more;
        let over = self.capacity_bytes.map_or(0, |capacity| promised.saturating_sub(capacity));
        let (free, _) = self.disk_bytes()?;
        let wanted = self.unwritten_bytes.load(Relaxed) + more + if more > 0 { MARGIN_BYTES } else { 0 };
        Ok(over.max(wanted.saturating_sub(free)))
    }

    /// The most that eviction can free.
    pub fn unpinned_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed).saturating_sub(self.pinned_bytes.load(Relaxed))
    }

    /// The promise itself. The caller has made sure that there is room.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Reservation {
        self.reserved_bytes.fetch_add(bytes, Relaxed);
        self.unwritten_bytes.fetch_add(bytes, Relaxed);
        Reservation { space: self.clone(), bytes: AtomicU64::new(bytes), unwritten: AtomicU64::new(bytes) }
    }

    /// The error that names the sizes.
    pub fn full(&self, needed_bytes: u64) -> StoreError {
        self.refused.fetch_add(1, Relaxed);
        let (disk_free_bytes, disk_bytes) = self.disk_bytes().unwrap_or_default();
        StoreError::Full {
            needed_bytes,
            used_bytes: self.used_bytes.load(Relaxed),
            pinned_bytes: self.pinned_bytes.load(Relaxed),
            staged_bytes: self.reserved_bytes.load(Relaxed),
            capacity_bytes: self.capacity_bytes.unwrap_or(disk_bytes),
            disk_free_bytes,
        }
    }

    /// An I/O error; where it says that the disk is full, with the sizes.
    pub fn io(&self, error: io::Error, path: &Path, needed_bytes: u64) -> StoreError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.full(needed_bytes),
            _ => StoreError::Io { path: path.to_owned(), error },
        }
    }
}

/// Room that is promised; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    space: Arc<Space>,
    bytes: AtomicU64,
    unwritten: AtomicU64,
}

impl Reservation {
    /// `bytes` of it are on the disk now.
    pub fn written(&self, bytes: u64) {
        let before = self.unwritten.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)));
        let taken = before.unwrap_or(0).min(bytes);
        self.space.unwritten_bytes.fetch_sub(taken, Relaxed);
    }

    /// `bytes` of it are not needed: they turned out to be a hole.
    pub fn not_needed(&self, bytes: u64) {
        self.written(bytes);
        let before = self.bytes.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)));
        self.space.reserved_bytes.fetch_sub(before.unwrap_or(0).min(bytes), Relaxed);
    }

    /// Adds another promise to this one.
    pub fn join(&self, other: Self) {
        let bytes = other.bytes.swap(0, Relaxed);
        let unwritten = other.unwritten.swap(0, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.unwritten.fetch_add(unwritten, Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.reserved_bytes.fetch_sub(*self.bytes.get_mut(), Relaxed);
        self.space.unwritten_bytes.fetch_sub(*self.unwritten.get_mut(), Relaxed);
    }
}
