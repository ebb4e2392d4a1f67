//! A queue pair before it is a path: made, and connected, on a thread that may block.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use super::error::RdmaError;
use super::queue::Queue;
use super::{Device, Shared};
use crate::rdma::limits::{
    MESSAGE_BYTES, PAIR_LOCKED_BYTES, READS_PER_PATH, RECEIVES_PER_PATH, SENDS_PER_PATH,
};
use crate::rdma::table::{
    BATCH, End, Keys, PairHandle, PairRequest, REGION_FILLED, Receive, RegionHandle, WindowHandle,
};
use crate::rdma::verbs::{Lending, QueuePair};

/// The name of a receive is this and its place.
pub(super) const RECEIVED: u64 = 1 << 63;

/// A window, and the key that it gets when it is bound next.
pub(super) struct Window {
    pub(super) handle: NonNull<WindowHandle>,
    pub(super) rkey: u32,
}

/// A queue pair that may receive. It is destroyed when it is dropped, which may take a while.
pub struct Prepared {
    pub(super) queue: Arc<Queue>,
    pub(super) handle: NonNull<PairHandle>,
    end: End,
    /// Where messages come.
    memory: Box<[[u8; MESSAGE_BYTES]]>,
    region: NonNull<RegionHandle>,
    keys: Keys,
    pub(super) windows: Vec<Window>,
    /// Whether it is destroyed.
    undone: bool,
}

// SAFETY: the table's contract: any thread, one at a time; we own the pair alone.
unsafe impl Send for Prepared {}

impl Device {
    /// Makes a queue pair for a worker's completions. `sequence` numbers its first packet: let it be random.
    ///
    /// # Errors
    /// [`RdmaError`].
    pub fn prepare(&self, queue: &Arc<Queue>, sequence: u32) -> Result<Prepared, RdmaError> {
        let shared: &Shared = &self.shared;
        let fault = |stage| move |error: c_int| RdmaError::device(&shared.place, stage, error);
        let (table, device) = (shared.table, shared.handle.as_ptr());
        let mut memory = vec![[0; MESSAGE_BYTES]; RECEIVES_PER_PATH].into_boxed_slice();
        let (mut keys, mut error) = (Keys::default(), 0);
        let (start, bytes) = (memory.as_mut_ptr().cast(), size_of_val(&*memory));
        // SAFETY: the memory is ours until the region is deregistered.
        let region = unsafe { (table.register)(device, start, bytes, REGION_FILLED, &mut keys, &mut error) };
        let locked = |stage| move |error: c_int| shared.cannot_lock(PAIR_LOCKED_BYTES as usize, stage, error);
        let region = NonNull::new(region).ok_or(error).map_err(locked("registering messages"))?;
        let request = PairRequest {
            sends: SENDS_PER_PATH as u32,
            receives: RECEIVES_PER_PATH as u32,
            inline_bytes: MESSAGE_BYTES as u32,
        };
        let mut end = End { sequence, ..End::default() };
        // SAFETY: an open device, a queue of it, and structures of ours.
        let handle = unsafe { (table.pair)(device, queue.handle.as_ptr(), &request, &mut end, &mut error) };
        let Some(handle) = NonNull::new(handle) else {
            // SAFETY: registered above, and used by nothing.
            unsafe { (table.deregister)(region.as_ptr()) };
            return Err(locked("making a queue pair")(error));
        };
        queue.expected().insert(end.number);
        let mut prepared = Prepared {
            queue: queue.clone(),
            handle,
            end,
            memory,
            region,
            keys,
            windows: Vec::new(),
            undone: false,
        };
        if self.lending() == Lending::Windows {
            for _ in 0..READS_PER_PATH {
                let mut rkey = 0;
                // SAFETY: an open device, and room for the key.
                let window = NonNull::new(unsafe { (table.window)(device, &mut rkey) });
                let handle = window.ok_or(-libc::ENOMEM).map_err(fault("making a memory window"))?;
                prepared.windows.push(Window { handle, rkey });
            }
        }
        let places: Vec<usize> = (0..RECEIVES_PER_PATH).collect();
        if prepared.receive(&places) < places.len() {
            return Err(fault("making room for messages")(-libc::ENOMEM));
        }
        Ok(prepared)
    }
}

impl Prepared {
    /// The port that it belongs to.
    pub fn device(&self) -> &Device {
        self.queue.owner()
    }

    /// Its number.
    pub fn queue_pair(&self) -> QueuePair {
        QueuePair(self.end.number)
    }

    /// What the other end must know of it, besides its address.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// Connects it with the other end, from the port's address of that index.
    ///
    /// # Errors
    /// [`RdmaError`]: where the other end cannot be reached from here.
    pub fn connect(&self, gid_index: u32, theirs: &End) -> Result<(), RdmaError> {
        let shared = self.queue.device();
        // SAFETY: a pair of ours, and two structures.
        match unsafe { (shared.table.connect)(self.handle.as_ptr(), gid_index, &self.end, theirs) } {
            0 => Ok(()),
            error => Err(RdmaError::device(&shared.place, "connecting a queue pair", error)),
        }
    }

    /// A message that came.
    pub(super) fn message(&self, place: usize, len: usize) -> &[u8] {
        self.memory.get(place).map_or(&[], |message| &message[..len.min(MESSAGE_BYTES)])
    }

    /// Gives places for messages to the device. Returns how many.
    pub(super) fn receive(&mut self, places: &[usize]) -> usize {
        let table = self.queue.device().table;
        let mut given = 0;
        for places in places.chunks(BATCH) {
            let none = Receive { id: 0, address: std::ptr::null_mut(), len: 0, lkey: 0 };
            let mut receives = [none; BATCH];
            for (receive, place) in receives.iter_mut().zip(places) {
                let address = self.memory[*place].as_mut_ptr().cast();
                let (id, len) = (RECEIVED | *place as u64, MESSAGE_BYTES as u32);
                *receive = Receive { id, address, len, lkey: self.keys.lkey };
            }
            // SAFETY: the memory is ours until the pair is destroyed.
            let count =
                unsafe { (table.receive)(self.handle.as_ptr(), receives.as_ptr(), places.len() as u32) };
            given += count as usize;
            if (count as usize) < places.len() {
                break;
            }
        }
        given
    }
}

impl Prepared {
    /// Destroys it. False where the device would not, and may still use its memory: that is kept then, for ever.
    pub(super) fn destroy(mut self) -> bool {
        let destroyed = self.undo();
        if !destroyed {
            std::mem::forget(self);
        }
        destroyed
    }

    fn undo(&mut self) -> bool {
        if std::mem::replace(&mut self.undone, true) {
            return true;
        }
        let table = self.queue.device().table;
        self.queue.expected().remove(&self.end.number);
        // SAFETY: each was made once, and is undone once. A pair that has failed serves nobody; its windows go before it, since they hold
        // it.
        unsafe {
            (table.fail)(self.handle.as_ptr());
            for window in &self.windows {
                (table.drop_window)(window.handle.as_ptr());
            }
            let error = (table.drop_pair)(self.handle.as_ptr());
            // Of a device that is gone nothing is left that could use anything.
            if error != 0 && !matches!(-error, libc::EIO | libc::ENODEV) {
                let (device, error) = (self.device().place(), std::io::Error::from_raw_os_error(-error));
                tracing::error!(%device, %error, "a queue pair cannot be destroyed: its memory is not used again");
                return false;
            }
            (table.deregister)(self.region.as_ptr());
        }
        true
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.undo() {
            // The pair might still write to it.
            std::mem::forget(std::mem::take(&mut self.memory));
        }
    }
}
