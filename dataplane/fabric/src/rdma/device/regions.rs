//! Registered memory: pools of buffers in slices, each of them a region.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::RdmaError;
use super::{Device, Shared};
use crate::pool::{Buffer, Pool};
use crate::rdma::limits::REGION_MAX_BYTES;
use crate::rdma::table::{
    Keys, REGION_FILLED, REGION_LENT, REGION_ON_DEMAND, REGION_WINDOWS, RegionHandle, Table,
};
use crate::rdma::verbs::Lending;

/// What a pool is registered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// READs of ours fill its buffers: the device may write to it, and no peer has any access.
    Filled,
    /// Its buffers are lent: peers may read them, and the device writes nothing to it.
    Lent,
}

/// What registering came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// How much memory.
    pub bytes: u64,
    /// In how many regions.
    pub regions: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether its pages are not locked, because the process may not lock so many: the device asks for them as it uses them.
    pub on_demand: bool,
}

/// A slice of a pool.
pub(super) struct Region {
    table: &'static Table,
    pub(super) handle: NonNull<RegionHandle>,
    pub(super) keys: Keys,
    pub(super) purpose: Purpose,
    start: usize,
    len: usize,
    /// The memory stays for as long as the region.
    _pool: Pool,
}

// SAFETY: the table's contract; the memory is the pool's.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn holds(&self, address: usize) -> bool {
        (self.start..self.start + self.len).contains(&address)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered once; queue pairs and windows that use it hold the device and are gone before.
        unsafe { (self.table.deregister)(self.handle.as_ptr()) };
    }
}

impl Device {
    /// Registers all of a pool, in slices side by side.
    ///
    /// # Errors
    /// [`RdmaError::Locked`] where the process may not lock so much memory, and the device must have it locked.
    pub fn register(&self, pool: &Pool, purpose: Purpose) -> Result<Registered, RdmaError> {
        let locked = self.register_as(pool, purpose, 0);
        let may_do_without = purpose == Purpose::Filled && self.shared.answer.on_demand != 0;
        match locked {
            Err(RdmaError::Locked { .. }) if may_do_without => {
                self.register_as(pool, purpose, REGION_ON_DEMAND)
            }
            other => other,
        }
    }

    fn register_as(&self, pool: &Pool, purpose: Purpose, more: u32) -> Result<Registered, RdmaError> {
        let begun = Instant::now();
        let (start, len) = pool.memory();
        let slices: Vec<(usize, usize)> = (0..len)
            .step_by(REGION_MAX_BYTES)
            .map(|from| (start + from, REGION_MAX_BYTES.min(len - from)))
            .collect();
        let shared = &*self.shared;
        let threads = thread::available_parallelism().map_or(1, usize::from).min(slices.len());
        let mut made = Vec::new();
        for group in slices.chunks(threads.max(1)) {
            let group = thread::scope(|scope| {
                let slices: Vec<_> = group
                    .iter()
                    .map(|(start, len)| {
                        scope.spawn(move || register(shared, pool, (*start, *len), purpose, more))
                    })
                    .collect();
                let join = |slice: thread::ScopedJoinHandle<'_, Result<Region, c_int>>| {
                    slice.join().unwrap_or(Err(-libc::EIO))
                };
                slices.into_iter().map(join).collect::<Result<Vec<_>, _>>()
            });
            made.extend(group.map_err(|error| self.cannot_register(len, error))?);
        }
        let (bytes, regions, took) = (len as u64, made.len(), begun.elapsed());
        let registered = Registered { bytes, regions, took, on_demand: more & REGION_ON_DEMAND != 0 };
        let mut regions = self.shared.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.extend(made.into_iter().map(Arc::new));
        Ok(registered)
    }

    fn cannot_register(&self, len: usize, error: c_int) -> RdmaError {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let held = self.shared.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = held.iter().map(|region| region.len).sum();
        let wanted = (held + len) as u64;
        match limit {
            Some(limit) if limit < wanted && matches!(-error, libc::ENOMEM | libc::EAGAIN | libc::EPERM) => {
                RdmaError::Locked {
                    device: self.place().device.clone(),
                    wanted_mib: wanted.div_ceil(1 << 20),
                    limit_mib: limit >> 20,
                }
            }
            _ => RdmaError::device(self.place(), "registering memory", error),
        }
    }

    /// All regions there are now.
    pub(super) fn regions(&self) -> Vec<Arc<Region>> {
        self.shared.regions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn register(
    shared: &Shared,
    pool: &Pool,
    (start, len): (usize, usize),
    purpose: Purpose,
    more: u32,
) -> Result<Region, c_int> {
    let lending = if shared.answer.windows != 0 { Lending::Windows } else { Lending::Slabs };
    let flags = match (purpose, lending) {
        (Purpose::Filled, _) => REGION_FILLED,
        (Purpose::Lent, Lending::Slabs) => REGION_LENT,
        (Purpose::Lent, Lending::Windows) => REGION_WINDOWS,
    };
    let (mut keys, mut error) = (Keys::default(), 0);
    let device = shared.handle.as_ptr();
    // SAFETY: the memory is the pool's, of which the region holds a clone.
    let handle =
        unsafe { (shared.table.register)(device, start as *mut _, len, flags | more, &mut keys, &mut error) };
    let handle = NonNull::new(handle).ok_or(error)?;
    Ok(Region { table: shared.table, handle, keys, purpose, start, len, _pool: pool.clone() })
}

/// The region that a buffer lies in, for this purpose.
pub(super) fn of<'a>(
    regions: &'a [Arc<Region>],
    buffer: &Buffer,
    purpose: Purpose,
) -> Option<&'a Arc<Region>> {
    let address = buffer.as_ref().as_ptr() as usize;
    regions.iter().find(|region| region.purpose == purpose && region.holds(address))
}
