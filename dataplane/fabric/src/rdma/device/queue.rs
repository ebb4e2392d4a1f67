//! A completion queue, as those see it who make queue pairs for it.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Device, Shared};
use crate::rdma::limits::{RECEIVES_PER_PATH, SENDS_PER_PATH};
use crate::rdma::table::QueueHandle;

/// What a queue pair may have in its completion queue.
pub(super) const COMPLETIONS_PER_PAIR: usize = SENDS_PER_PATH + RECEIVES_PER_PATH;

/// A completion queue. Queue pairs that report to it hold it.
pub struct Queue {
    device: Device,
    pub(super) handle: NonNull<QueueHandle>,
    /// Queue pairs that report here and that the worker does not have yet. They may be connected, and hear from their peers.
    expected: Mutex<HashSet<u32>>,
}

// SAFETY: the table's contract: any thread, and its worker alone calls what only one may call.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Queue {
    pub(super) fn new(device: Device, handle: NonNull<QueueHandle>) -> Self {
        Self { device, handle, expected: Mutex::default() }
    }

    pub(super) fn device(&self) -> &Shared {
        &self.device.shared
    }

    pub(super) fn expected(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owner(&self) -> &Device {
        &self.device
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made once; pairs that use it hold it.
        unsafe { (self.device().table.drop_queue)(self.handle.as_ptr()) };
    }
}
