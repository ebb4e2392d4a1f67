//! A bounded pool of 1 MiB buffers in one slab of memory, in huge pages where the host has them.
//! Taking and giving back are lock-free; the buffer that was given back last is taken first, while it is warm.

#![allow(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// The size of every buffer: one piece.
pub const BUFFER_BYTES: usize = 1 << 20;

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// The end of the list of free buffers.
const NONE: u32 = u32::MAX;

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// Less than one buffer, or more than 2^32 of them.
    #[error(
        "a pool of {bytes} bytes: give it at least {BUFFER_BYTES} and at most 4 PiB (`dataplane.memory`)"
    )]
    Size {
        /// What was asked for.
        bytes: u64,
    },
    /// The system gives no such memory.
    #[error("cannot map {bytes} bytes of memory: {error}; lower `dataplane.memory`")]
    Map {
        /// What was asked for.
        bytes: u64,
        /// What the system said.
        error: io::Error,
    },
}

/// How to make a [`Pool`].
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// How much memory; rounded down to whole buffers.
    pub bytes: u64,
    /// Whether to use huge pages, where enough are free.
    pub huge_pages: bool,
    /// Whether to touch all of it now. Otherwise a buffer costs memory from its first use on.
    pub populate: bool,
}

/// What a pool has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolCounters {
    /// Buffers given out.
    pub takes: u64,
    /// Times that there was none to give.
    pub misses: u64,
    /// Buffers that are out now.
    pub in_use: u64,
    /// Buffers in all.
    pub capacity: u64,
}

/// A bounded pool of buffers. Clones share it.
#[derive(Clone)]
pub struct Pool {
    slab: Arc<Slab>,
}

impl Pool {
    /// A pool of `bytes`, in huge pages if enough are free, touched as it is used.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn new(bytes: u64) -> Result<Self, PoolError> {
        Self::with(PoolOptions { bytes, huge_pages: true, populate: false })
    }

    /// A pool as `options` says.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn with(options: PoolOptions) -> Result<Self, PoolError> {
        let size = PoolError::Size { bytes: options.bytes };
        let count = match u32::try_from(options.bytes / BUFFER_BYTES as u64) {
            Ok(count) if count > 0 && count < NONE => count,
            _ => return Err(size),
        };
        let (memory, huge) = Mapping::new(count as usize * BUFFER_BYTES, options)
            .map_err(|error| PoolError::Map { bytes: options.bytes, error })?;
        let next = (1..=count).map(|i| AtomicU32::new(if i == count { NONE } else { i })).collect();
        let slab = Slab {
            memory,
            huge,
            next,
            head: AtomicU64::new(0),
            takes: AtomicU64::new(0),
            returns: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        Ok(Self { slab: Arc::new(slab) })
    }

    /// A buffer of [`BUFFER_BYTES`], with whatever bytes its last user left; `None` when all are out.
    pub fn take(&self) -> Option<Buffer> {
        let slab = &self.slab;
        let Some(index) = slab.pop() else {
            slab.misses.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        slab.takes.fetch_add(1, Ordering::Relaxed);
        Some(Buffer { slab: self.slab.clone(), index, len: BUFFER_BYTES })
    }

    /// Whether it lies in huge pages.
    pub fn is_huge(&self) -> bool {
        self.slab.huge
    }

    /// How many buffers there are.
    pub fn capacity(&self) -> usize {
        self.slab.next.len()
    }

    /// Where its memory is, and how many bytes.
    pub(crate) fn memory(&self) -> (usize, usize) {
        (self.slab.memory.start.as_ptr() as usize, self.capacity() * BUFFER_BYTES)
    }

    /// What it has done so far.
    pub fn counters(&self) -> PoolCounters {
        let returns = self.slab.returns.load(Ordering::Relaxed);
        let takes = self.slab.takes.load(Ordering::Relaxed);
        PoolCounters {
            takes,
            misses: self.slab.misses.load(Ordering::Relaxed),
            in_use: takes.saturating_sub(returns),
            capacity: self.capacity() as u64,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("huge", &self.slab.huge).field("counters", &self.counters()).finish()
    }
}

/// One buffer of a [`Pool`]; goes back to it on drop.
pub struct Buffer {
    slab: Arc<Slab>,
    index: u32,
    len: usize,
}

impl Buffer {
    /// How many bytes it shows: [`BUFFER_BYTES`] unless [`set_len`](Self::set_len) said otherwise.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Shows the first `len` bytes, at most [`BUFFER_BYTES`].
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(BUFFER_BYTES);
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `index` came from the slab's list, so it is below the number of buffers, and the mapping is that
        // many buffers long.
        unsafe { self.slab.memory.start.as_ptr().add(self.index as usize * BUFFER_BYTES) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range lies in the mapping, which lives as long as the slab that we hold; its bytes are
        // initialised (the kernel maps zeros); nobody else has this index until we give it back in `drop`.
        unsafe { slice::from_raw_parts(self.start(), self.len) }
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and `&mut self` makes the borrow exclusive.
        unsafe { slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.slab.returns.fetch_add(1, Ordering::Relaxed);
        self.slab.push(self.index);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("index", &self.index).field("len", &self.len).finish()
    }
}

/// The memory and the list of what is free: a stack, whose head carries a count against reuse between a load and the
/// exchange (ABA).
struct Slab {
    memory: Mapping,
    huge: bool,
    /// For each free buffer the one below it.
    next: Box<[AtomicU32]>,
    /// Low half: the topmost free buffer. High half: how often the head has changed.
    head: AtomicU64,
    takes: AtomicU64,
    returns: AtomicU64,
    misses: AtomicU64,
}

impl Slab {
    fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let top = head as u32;
            if top == NONE {
                return None;
            }
            let below = self.next[top as usize].load(Ordering::Relaxed);
            let new = changed(head, below);
            match self.head.compare_exchange_weak(head, new, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => return Some(top),
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, index: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.next[index as usize].store(head as u32, Ordering::Relaxed);
            let new = changed(head, index);
            // Release: the next user sees all that we wrote to the buffer and to `next`.
            match self.head.compare_exchange_weak(head, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

fn changed(head: u64, top: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(top)
}

/// Anonymous memory, aligned to a huge page.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    base: *mut core::ffi::c_void,
    mapped_bytes: usize,
}

// SAFETY: the mapping is plain memory; which thread may touch which part is decided by who holds which `Buffer`.
unsafe impl Send for Mapping {}
// SAFETY: as above: a shared `Mapping` only gives its address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `bytes`, all zeros, and whether they lie in huge pages.
    pub(crate) fn new(bytes: usize, options: PoolOptions) -> io::Result<(Self, bool)> {
        let rounded = bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let populate = if options.populate { MapFlags::POPULATE } else { MapFlags::empty() };
        if cfg!(miri) {
            // Miri has neither huge pages nor advice.
            return Ok((Self::map(rounded + HUGE_PAGE_BYTES, MapFlags::PRIVATE)?, false));
        }
        if options.huge_pages && free_huge_pages() >= rounded / HUGE_PAGE_BYTES {
            let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB | populate;
            // Someone may have taken the pages meanwhile; then ordinary memory does.
            if let Ok(mapping) = Self::map(rounded, flags) {
                return Ok((mapping, true));
            }
        }
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let mapping = Self::map(rounded + HUGE_PAGE_BYTES, flags)?;
        if options.huge_pages {
            // SAFETY: the range lies in the new mapping; the advice changes no content. A kernel without transparent
            // huge pages refuses it, which costs only speed.
            let _ = unsafe { mm::madvise(mapping.start.as_ptr().cast(), rounded, Advice::LinuxHugepage) };
        }
        if options.populate {
            // SAFETY: as above; the pages are made present and writable. Where the kernel does not know this advice
            // they come on first use.
            let _ =
                unsafe { mm::madvise(mapping.start.as_ptr().cast(), rounded, Advice::LinuxPopulateWrite) };
        }
        Ok((mapping, false))
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    fn map(bytes: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let skipped = base.addr().next_multiple_of(HUGE_PAGE_BYTES) - base.addr();
        let start =
            NonNull::new(base.cast::<u8>().wrapping_add(skipped)).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, base, mapped_bytes: bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and every `Buffer` in it holds the slab, so none is left.
        let _ = unsafe { mm::munmap(self.base, self.mapped_bytes) };
    }
}

fn free_huge_pages() -> usize {
    fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn it_is_bounded_and_counts() {
        let pool = Pool::new(3 * BUFFER_BYTES as u64 + 5).unwrap();
        let taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        assert_eq!(pool.counters(), PoolCounters { takes: 3, misses: 1, in_use: 3, capacity: 3 });
        drop(taken);
        assert_eq!(pool.counters().in_use, 0);
        assert!(pool.take().is_some());
    }

    #[test]
    fn the_warm_buffer_comes_first_and_shows_all_of_itself() {
        let pool = Pool::new(8 << 20).unwrap();
        let (a, mut b) = (pool.take().unwrap(), pool.take().unwrap());
        b.as_mut()[BUFFER_BYTES - 1] = 77;
        b.set_len(10);
        assert_eq!((b.as_ref().len(), b.len()), (10, 10));
        b.set_len(usize::MAX);
        assert_eq!(b.len(), BUFFER_BYTES);
        b.set_len(1);
        let index = b.index;
        drop(b);
        let again = pool.take().unwrap();
        assert_eq!((again.index, again.len(), again.as_ref()[BUFFER_BYTES - 1]), (index, BUFFER_BYTES, 77));
        drop(a);
    }

    #[test]
    fn buffers_do_not_overlap_and_outlive_the_pool() {
        let pool = Pool::with(PoolOptions { bytes: 5 << 20, huge_pages: false, populate: true }).unwrap();
        let mut buffers: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        drop(pool);
        assert_eq!(buffers.len(), 5);
        for (i, buffer) in buffers.iter_mut().enumerate() {
            assert_eq!(buffer.as_ref().as_ptr() as usize % 4096, 0);
            buffer.as_mut().fill(i as u8);
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_ref() == vec![i as u8; BUFFER_BYTES]);
        }
    }

    #[test]
    fn sizes_out_of_range() {
        for bytes in [0, BUFFER_BYTES as u64 - 1, u64::MAX] {
            assert!(matches!(Pool::new(bytes), Err(PoolError::Size { .. })), "{bytes}");
        }
    }

    #[test]
    fn nobody_gets_a_buffer_that_another_has() {
        let pool = Pool::new(4 << 20).unwrap();
        let wrong = AtomicBool::new(false);
        thread::scope(|scope| {
            for id in 1..=4u64 {
                let (pool, wrong) = (pool.clone(), &wrong);
                scope.spawn(move || {
                    for round in 0..if cfg!(miri) { 40 } else { 20_000u64 } {
                        let Some(mut buffer) = pool.take() else { continue };
                        let mark = (id << 32 | round).to_le_bytes();
                        buffer.as_mut()[..8].copy_from_slice(&mark);
                        if round % 7 == 0 {
                            thread::yield_now();
                        }
                        if buffer.as_ref()[..8] != mark {
                            wrong.store(true, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert!(!wrong.into_inner());
        assert_eq!(pool.counters().in_use, 0);
        assert_eq!(std::iter::from_fn(|| pool.take()).collect::<Vec<_>>().len(), 4);
    }
}
