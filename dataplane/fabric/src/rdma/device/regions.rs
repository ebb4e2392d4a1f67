//! Registered memory: pools of buffers in slices, each of them a region.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::RdmaError;
use super::{Device, Shared};
use crate::pool::{Buffer, Pool};
use crate::rdma::limits::{PAIR_LOCKED_BYTES, REGION_MAX_BYTES};
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

    /// Says how much memory this process means to lock in all, for whatever device: where that turns out to be too much it is named.
    pub fn means_to_lock(&self, bytes: u64) {
        self.shared.to_lock.store(bytes, Ordering::Relaxed);
    }

    fn cannot_register(&self, len: usize, error: c_int) -> RdmaError {
        self.shared.cannot_lock(len, "registering memory", error)
    }

    /// All regions there are now.
    pub(super) fn regions(&self) -> Vec<Arc<Region>> {
        self.shared.regions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What must be locked for these pools with each of so many devices, and for as many queue pairs of each.
pub fn locked_bytes(devices: usize, pools_bytes: u64, pairs: usize) -> u64 {
    devices as u64 * (pools_bytes + pairs as u64 * PAIR_LOCKED_BYTES)
}

impl Shared {
    /// What an error of something that locks `len` more bytes means.
    pub(super) fn cannot_lock(&self, len: usize, stage: &'static str, error: c_int) -> RdmaError {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        let held = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let held: usize = held.iter().map(|region| region.len).sum();
        let wanted = self.to_lock.load(Ordering::Relaxed).max((held + len) as u64);
        too_much(&self.place.device, wanted, limit, error)
            .unwrap_or_else(|| RdmaError::device(&self.place, stage, error))
    }
}

/// Whether an error is because of the limit of what the process may lock.
fn too_much(device: &str, wanted: u64, limit: Option<u64>, error: c_int) -> Option<RdmaError> {
    let limit = limit.filter(|limit| *limit < wanted)?;
    matches!(-error, libc::ENOMEM | libc::EAGAIN | libc::EPERM).then(|| RdmaError::Locked {
        device: device.to_owned(),
        wanted_mib: wanted.div_ceil(1 << 20),
        limit_mib: limit >> 20,
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::PoolOptions;
    use crate::rdma::device::fake_table::Fake;
    use crate::rdma::limits::{MESSAGE_BYTES, RECEIVES_PER_PATH};

    const GIB: usize = 1 << 30;

    fn pool(bytes: usize) -> Pool {
        // Nothing of it is ever touched.
        Pool::with(PoolOptions { bytes: bytes as u64, huge_pages: false, populate: false }).unwrap()
    }

    #[test]
    fn a_pool_is_registered_in_slices_side_by_side_each_once() {
        let fake = Fake::new("slices");
        let (device, pool) = (fake.device(), pool(5 * GIB + (3 << 20)));
        let registered = device.register(&pool, Purpose::Filled).unwrap();
        let (start, len) = pool.memory();
        assert_eq!((registered.bytes, registered.regions), (len as u64, 6));
        let mut live = fake.live();
        live.sort();
        let mut next = start;
        for (from, bytes, purpose) in live {
            assert_eq!((from, purpose), (next, REGION_FILLED), "nothing left out, nothing twice");
            assert!(bytes < 4 * GIB && bytes > 0);
            next = from + bytes;
        }
        assert_eq!(next, start + len);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(fake.most_at_once(), cores.min(6), "as many at once as there are cores");
        // Peers may read what is lent, and nothing else has that right.
        device.register(&pool, Purpose::Lent).unwrap();
        assert_eq!(fake.live().iter().filter(|(.., purpose)| *purpose == REGION_LENT).count(), 6);
        drop(device);
        assert_eq!(fake.live(), [], "closed with the device");
    }

    #[test]
    fn an_error_undoes_what_was_registered() {
        for nth in [0, 1, 4, 5] {
            let fake = Fake::new(&format!("error-{nth}"));
            let (device, pool) = (fake.device(), pool(6 * GIB));
            fake.fail(nth, libc::EIO);
            let error = device.register(&pool, Purpose::Filled).unwrap_err();
            assert!(error.to_string().contains("registering memory"), "{error}");
            assert_eq!(fake.live(), [], "something is left of {nth}");
            assert!(device.regions().is_empty());
            // And it can be done again.
            assert_eq!(device.register(&pool, Purpose::Filled).unwrap().regions, 6);
        }
    }

    #[test]
    fn the_limit_that_is_needed_is_named() {
        let wanted = locked_bytes(2, 96 << 20, 100);
        assert_eq!(wanted, 2 * (96 << 20) + 200 * PAIR_LOCKED_BYTES);
        const { assert!(PAIR_LOCKED_BYTES as usize > RECEIVES_PER_PATH * MESSAGE_BYTES) };
        let said = too_much("rxe0", 2 << 30, Some(64 << 20), -libc::ENOMEM).unwrap().to_string();
        assert!(said.contains("may lock 64 MiB") && said.contains("RLIMIT_MEMLOCK to 2097152 KiB"), "{said}");
        assert!(too_much("rxe0", 2 << 30, Some(2 << 30), -libc::ENOMEM).is_none(), "that is enough");
        assert!(too_much("rxe0", 2 << 30, None, -libc::ENOMEM).is_none(), "there is no limit");
        assert!(too_much("rxe0", 2 << 30, Some(0), -libc::EIO).is_none(), "another error");
    }

    #[test]
    fn what_all_devices_need_is_named_although_one_fails() {
        let fake = Fake::new("limit");
        let (device, pool) = (fake.device(), pool(GIB));
        // More than any limit but none at all.
        let all = 1 << 60;
        device.means_to_lock(all);
        fake.fail(0, libc::ENOMEM);
        let error = device.register(&pool, Purpose::Filled).unwrap_err();
        match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
            Some(_) => assert!(error.to_string().contains(&format!("to {} KiB", all >> 10)), "{error}"),
            None => assert!(matches!(error, RdmaError::Device { .. }), "{error}"),
        }
    }
}
