//! Buffers that end (or begin) at a page that must not be touched, so that an over-read crashes the test.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

const PAGE: usize = 4096;

/// Room for `capacity` bytes between two pages that nobody may touch.
pub struct Guarded {
    start: NonNull<u8>,
    capacity: usize,
}

impl Guarded {
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(PAGE).max(PAGE);
        // SAFETY: a new private mapping touches nothing that is there; the guards lie within it.
        let start = unsafe {
            let all = mmap_anonymous(
                std::ptr::null_mut(),
                capacity + 2 * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
            .expect("memory");
            mprotect(all, PAGE, MprotectFlags::empty()).expect("a guard");
            mprotect(all.byte_add(PAGE + capacity), PAGE, MprotectFlags::empty()).expect("a guard");
            all.byte_add(PAGE).cast::<u8>()
        };
        Self { start: NonNull::new(start).expect("not null"), capacity }
    }

    /// The last `len` bytes before the guard.
    pub fn tail(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.capacity);
        // SAFETY: within the writable part of the mapping, which lives as long as `self`, borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(self.capacity - len), len) }
    }

    /// The first `len` bytes behind the guard.
    pub fn head(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= self.capacity);
        // SAFETY: as in `tail`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, which nobody has slices of any more.
        let _ = unsafe { munmap(self.start.as_ptr().sub(PAGE).cast(), self.capacity + 2 * PAGE) };
    }
}
