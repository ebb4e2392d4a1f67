//! Mempools: mbufs of one size in EAL's memory.

use std::ffi::{CString, c_int};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::shim::{self, RteMempool};

/// A mempool of its own. All its mbufs must be back when it is dropped.
pub(crate) struct Mempool(NonNull<RteMempool>);

// SAFETY: a mempool may be used and freed by any thread.
unsafe impl Send for Mempool {}

impl Mempool {
    /// `mbufs` mbufs with `room` bytes each, and the headroom before them.
    pub(crate) fn new(mbufs: u32, room: u32, numa_node: i32) -> Result<Self, c_int> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = CString::new(format!("velo-{}", SERIAL.fetch_add(1, Ordering::Relaxed)))
            .expect("digits have no zero byte");
        let mut error = 0;
        // SAFETY: EAL runs by the table's contract; the name is copied.
        let pool = unsafe { shim::velo_mempool_create(name.as_ptr(), mbufs, room, numa_node, &mut error) };
        NonNull::new(pool).map(Self).ok_or(error)
    }

    pub(crate) fn as_ptr(&self) -> *mut RteMempool {
        self.0.as_ptr()
    }
}

impl Drop for Mempool {
    fn drop(&mut self) {
        // SAFETY: made by `new`; the port that used it is closed.
        unsafe { shim::rte_mempool_free(self.0.as_ptr()) };
    }
}
