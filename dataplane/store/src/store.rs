//! [`Store`]: opening, closing, and what its parts share.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use velo_object::{BlobId, Tree};

use crate::arrivals::Arrivals;
use crate::book::Book;
use crate::copy::Buffers;
use crate::dir::{Dir, Lock};
use crate::files::Files;
use crate::index::Index;
use crate::outboards::Outboards;
use crate::pins::PinSet;
use crate::space::{Reservation, Space};
use crate::stage::Staging;
use crate::{Counters, Durability, Recovery, StoreError, StoreOptions};

/// The L1 store: complete blobs and packs, transfers that are under way, pins, the book. Cheap to clone; every method
/// may be called from any thread, and may block on the disk.
#[derive(Debug, Clone)]
pub struct Store(pub(crate) Arc<Inner>);

/// Monotonic counters.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub ingested_bytes: AtomicU64,
    pub received_pieces: AtomicU64,
    pub duplicate_pieces: AtomicU64,
    pub committed: AtomicU64,
    pub evicted: AtomicU64,
    pub evicted_bytes: AtomicU64,
    pub quarantined: AtomicU64,
}

/// What transfers need of the store while they run.
#[derive(Debug)]
pub(crate) struct Shared {
    pub space: Arc<Space>,
    pub counts: Counts,
    pub arrivals: Arrivals,
}

/// A transfer: on disk only, in the hands of one thread (see [`crate::slots`]), or with a [`Staging`].
#[derive(Debug, Clone)]
pub(crate) enum Slot {
    Parked,
    Busy,
    Active(Arc<Staging>),
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub dir: Dir,
    lock: Lock,
    pub threads: usize,
    pub durability: Durability,
    pub index: Index,
    pub book: Book,
    pub files: Files,
    pub outboards: Outboards,
    /// Whether an outboard is being made anew.
    pub mending: AtomicBool,
    pub space: Arc<Space>,
    pub shared: Arc<Shared>,
    pub buffers: Buffers,
    pub stagings: Mutex<HashMap<BlobId, Slot>>,
    /// Told when a slot is no longer busy.
    pub settled: Condvar,
    pub pins: Mutex<PinSet>,
    /// Held from looking for room until it is promised.
    reserving: Mutex<()>,
    /// Held while complete files appear or disappear.
    pub changing: Mutex<()>,
    next_put: AtomicU64,
    closed: AtomicBool,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens the store in `options.dir`, or makes one. After an unclean end it recovers by itself: transfers stay,
    /// leftovers of puts go, the index is rebuilt.
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process has it, [`StoreError::Io`], [`StoreError::Database`].
    pub fn open(options: StoreOptions) -> Result<(Self, Recovery), StoreError> {
        let root: &Path = &options.dir;
        let (lock, last) = Lock::take(root, options.durability)?;
        let dir = Dir::make(root)?;
        let orphans = crate::recover::sweep(&dir)?;
        if !last.clean {
            crate::recover::drop_index(&dir)?;
        }
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let space = Arc::new(Space::new(root, options.capacity_bytes));
        let shared = Arc::new(Shared {
            space: space.clone(),
            counts: Counts::default(),
            arrivals: Arrivals::default(),
        });
        let index = Index::open(&dir.folder("index"))?;
        let book = Book::open(&dir.folder("book"))?;
        let inner = Arc::new(Inner {
            dir,
            lock,
            threads,
            durability: options.durability,
            index,
            book,
            files: Files::default(),
            outboards: Outboards::default(),
            mending: AtomicBool::new(false),
            space,
            shared,
            buffers: Buffers::default(),
            stagings: Mutex::default(),
            settled: Condvar::new(),
            pins: Mutex::default(),
            reserving: Mutex::new(()),
            changing: Mutex::new(()),
            next_put: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let store = Self(inner);
        let mut recovery = Recovery { clean: last.clean, orphans, ..Recovery::default() };
        if !last.clean {
            recovery.rebuilt = true;
            recovery.rehashed = last.suspect;
            recovery.damaged = store.0.rebuild_index(last.suspect)?;
            if last.suspect {
                store.0.lock.mark_open(options.durability)?;
            }
        }
        recovery.resumable = store.0.load_stagings()?;
        recovery.files = store.0.load_figures()?;
        store.0.load_pins()?;
        Ok((store, recovery))
    }

    /// Flushes the index and marks a clean end, so that the next start need not rebuild it. Later calls that write
    /// give [`StoreError::Closed`]; transfers go on at the next start.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Database`]: the next start then recovers.
    pub fn close(&self) -> Result<(), StoreError> {
        let inner = &self.0;
        let _changing = lock(&inner.changing);
        if inner.closed.swap(true, Relaxed) {
            return Ok(());
        }
        let used: Vec<(BlobId, u64)> = inner.files.used().into_iter().collect();
        inner.index.touch(&used)?;
        inner.index.flush()?;
        inner.files.clear();
        if inner.durability == Durability::Process {
            // What was committed has never been flushed, and the next start will believe that it is there.
            inner.flush_all()?;
        }
        inner.lock.mark_clean(inner.durability)
    }

    /// Refs, pins, policies, jobs: what files cannot give back.
    pub fn book(&self) -> &Book {
        &self.0.book
    }

    /// What has happened since the store was opened.
    pub fn counters(&self) -> Counters {
        let counts = &self.0.shared.counts;
        Counters {
            ingested_bytes: counts.ingested_bytes.load(Relaxed),
            received_pieces: counts.received_pieces.load(Relaxed),
            duplicate_pieces: counts.duplicate_pieces.load(Relaxed),
            committed: counts.committed.load(Relaxed),
            evicted: counts.evicted.load(Relaxed),
            evicted_bytes: counts.evicted_bytes.load(Relaxed),
            quarantined: counts.quarantined.load(Relaxed),
            full: self.0.space.refused.load(Relaxed),
        }
    }

    /// The checked table of a tree that is here.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Tree`] where the blob is no table, [`StoreError::Damaged`].
    pub fn tree(&self, id: &BlobId) -> Result<Tree<Vec<u8>>, StoreError> {
        self.0.tree(id)
    }
}

impl Inner {
    /// Refuses to change a closed store.
    pub fn writable(&self) -> Result<(), StoreError> {
        if self.closed.load(Relaxed) { Err(StoreError::Closed) } else { Ok(()) }
    }

    pub fn count_ingested(&self, bytes: u64) {
        self.shared.counts.ingested_bytes.fetch_add(bytes, Relaxed);
    }

    pub fn next_put(&self) -> u64 {
        self.next_put.fetch_add(1, Relaxed)
    }

    /// Promises room, evicting what may be evicted.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, StoreError> {
        self.writable()?;
        let _reserving = lock(&self.reserving);
        let short = if bytes == 0 { 0 } else { self.space.short_of(bytes)? };
        if short > 0 {
            // Nothing is given up for what would not fit anyway.
            if short > self.space.unpinned_bytes() {
                return Err(self.space.full(bytes));
            }
            self.evict(short)?;
            if self.space.short_of(bytes)? > 0 {
                return Err(self.space.full(bytes));
            }
        }
        Ok(self.space.reserve(bytes))
    }

    pub fn tree(&self, id: &BlobId) -> Result<Tree<Vec<u8>>, StoreError> {
        let bytes = self.read_whole(id)?;
        if BlobId::of(&bytes) != *id {
            return Err(StoreError::Damaged(*id));
        }
        Tree::parse(bytes).map_err(|error| StoreError::Tree { tree: *id, error })
    }
}
