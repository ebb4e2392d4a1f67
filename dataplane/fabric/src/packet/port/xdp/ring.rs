//! The four rings that an AF_XDP socket shares with the kernel: single producer, single consumer, one side ours.
//!
//! Layout and order of accesses as in the kernel's `net/xdp/xsk_queue.h`: whoever produces writes the entries and then releases the
//! producer's index; whoever consumes acquires that index, reads, and then releases the consumer's.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{self, MapFlags, ProtFlags};
use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};

/// An entry of the rings for receiving and sending: `struct xdp_desc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Descriptor {
    /// Where the frame lies in the UMEM.
    pub(super) address: u64,
    /// Its length.
    pub(super) len: u32,
    /// [`CONTINUED`] or nothing.
    pub(super) options: u32,
}

/// Option of a [`Descriptor`]: the frame goes on in the next one.
pub(super) const CONTINUED: u32 = 1;

/// What may lie in a ring: plain numbers, of which any bit pattern is one.
pub(super) trait Entry: Copy {}
impl Entry for u64 {}
impl Entry for Descriptor {}

/// The memory of one ring.
struct Ring<T> {
    base: *mut core::ffi::c_void,
    bytes: usize,
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
}

// SAFETY: the mapping belongs to this value alone, and nothing in it is bound to a thread.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps the ring of `entries` entries, a power of two, that `socket` has at `page`.
    fn map(socket: BorrowedFd<'_>, page: u64, at: &XdpRingOffset, entries: u32) -> io::Result<Self> {
        assert!(entries.is_power_of_two());
        let flags_at = at.flags.ok_or(io::ErrorKind::Unsupported)?;
        let bytes = usize::try_from(at.desc).map_err(|_| io::ErrorKind::InvalidData)?
            + entries as usize * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::SHARED | MapFlags::POPULATE;
            mm::mmap(ptr::null_mut(), bytes, access, flags, socket, page)?
        };
        let ring = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel gave these offsets for this ring; all lie in front of `desc`, which is where the entries begin that
        // `bytes` counts, and all are aligned for what is there.
        let (producer, consumer, flags, first) = unsafe {
            (
                ring.add(at.producer as usize).cast(),
                ring.add(at.consumer as usize).cast(),
                ring.add(flags_at as usize).cast(),
                ring.add(at.desc as usize).cast(),
            )
        };
        Ok(Self { base, bytes, producer, consumer, flags, entries: first, mask: entries - 1 })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: it lies in the mapping (see `map`), which lives as long as `self`; the kernel also changes it atomically.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }

    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: masked, the index is below the number of entries, all of which lie in the mapping.
        unsafe { self.entries.as_ptr().add((index & self.mask) as usize) }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, and no reference into it outlives `self`.
        let _ = unsafe { mm::munmap(self.base, self.bytes) };
    }
}

/// A ring that we put entries into: for filling, for sending.
pub(super) struct Producing<T> {
    ring: Ring<T>,
    /// Where the next entry goes; the kernel has been told of those before `told`.
    next: u32,
    told: u32,
    /// What the kernel is known to have taken.
    taken: u32,
}

impl<T: Entry> Producing<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        at: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        let ring = Ring::map(socket, page, at, entries)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let taken = ring.consumer().load(Ordering::Acquire);
        Ok(Self { ring, next, told: next, taken })
    }

    /// Whether `count` entries fit.
    pub(super) fn has_room(&mut self, count: u32) -> bool {
        let size = self.ring.mask + 1;
        if size - self.next.wrapping_sub(self.taken) >= count {
            return true;
        }
        self.taken = self.ring.consumer().load(Ordering::Acquire);
        size - self.next.wrapping_sub(self.taken) >= count
    }

    /// Puts an entry in. The kernel sees it after [`submit`](Self::submit).
    ///
    /// # Panics
    /// If there is no room.
    pub(super) fn push(&mut self, entry: T) {
        assert!(self.has_room(1), "a ring is asked for room first");
        // SAFETY: the entry lies in the ring, and the kernel does not look at it: it has taken what was there and has not been told
        // of anything from `next` on.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel what was pushed. Returns whether that was anything.
    pub(super) fn submit(&mut self) -> bool {
        let any = self.next != self.told;
        if any {
            self.told = self.next;
            self.ring.producer().store(self.next, Ordering::Release);
        }
        any
    }

    /// Entries that the kernel has been told of and has not taken.
    pub(super) fn waiting(&mut self) -> u32 {
        self.taken = self.ring.consumer().load(Ordering::Acquire);
        self.told.wrapping_sub(self.taken)
    }

    /// Whether the kernel takes nothing until it is called.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// A ring that the kernel puts entries into: of what has arrived, of what has been sent.
pub(super) struct Consuming<T> {
    ring: Ring<T>,
    next: u32,
    /// What the kernel is known to have put in.
    known: u32,
}

impl<T: Entry> Consuming<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        at: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        let ring = Ring::map(socket, page, at, entries)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let known = ring.producer().load(Ordering::Acquire);
        Ok(Self { ring, next, known })
    }

    /// How many entries there are to take.
    pub(super) fn available(&mut self) -> u32 {
        if self.known == self.next {
            self.known = self.ring.producer().load(Ordering::Acquire);
        }
        self.known.wrapping_sub(self.next)
    }

    /// How many entries there are to take, those that came since the last look among them.
    pub(super) fn look(&mut self) -> u32 {
        self.known = self.ring.producer().load(Ordering::Acquire);
        self.known.wrapping_sub(self.next)
    }

    /// The entry `ahead` of the next one.
    ///
    /// # Panics
    /// If there are not so many.
    pub(super) fn peek(&self, ahead: u32) -> T {
        assert!(ahead < self.known.wrapping_sub(self.next), "a ring is asked what it has first");
        // SAFETY: the entry lies in the ring, the kernel has released it to us, and it writes there only after we give it back.
        unsafe { self.ring.entry(self.next.wrapping_add(ahead)).read() }
    }

    /// Gives the first `count` entries back.
    pub(super) fn release(&mut self, count: u32) {
        assert!(count <= self.known.wrapping_sub(self.next), "only what was there is given back");
        self.next = self.next.wrapping_add(count);
        self.ring.consumer().store(self.next, Ordering::Release);
    }
}
