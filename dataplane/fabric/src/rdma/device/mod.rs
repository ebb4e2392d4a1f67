//! Real devices, through the plugin `velo-fabric-rdma`. It is opened at run time, so that one velod uses RDMA where libibverbs is
//! installed and runs where it is not.
//!
//! A [`Device`] is one port of one device, opened once in a process; memory is registered with it, and queue pairs are made and
//! connected, on threads that may block. A worker has a [`Completions`] of it, which is its [`Verbs`](super::Verbs).
#![allow(unsafe_code)]

mod completions;
mod error;
#[cfg(test)]
mod fake_table;
mod pair;
mod queue;
mod regions;
mod requests;
mod route;

pub use completions::Completions;
pub use error::RdmaError;
pub use pair::Prepared;
pub use queue::Queue;
pub use regions::{Purpose, Registered, locked_bytes};
pub use route::{Address, AddressKind, addresses, addresses_of, is_active, reaching};

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::table::{ABI, DeviceAnswer, DeviceHandle, SYMBOL, Table};
use super::verbs::Lending;
use crate::plugin::{PluginError, PluginNames, open};
use queue::COMPLETIONS_PER_PAIR;
use regions::Region;

const NAMES: PluginNames = PluginNames {
    library: "RDMA",
    file: "libvelo_fabric_rdma.so",
    variable: "VELO_RDMA_PLUGIN",
    symbol: SYMBOL,
    abi: ABI,
    install: "libibverbs (Debian: ibverbs-providers)",
    build: "cargo build -p velo-fabric-rdma --features libibverbs",
};

/// The opened plugin.
#[derive(Clone, Copy)]
pub struct Plugin {
    table: &'static Table,
}

impl Plugin {
    /// Opens `path`, or else what VELO_RDMA_PLUGIN names, or else the one beside the executable or in `../lib/velo`.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn open(path: Option<&Path>) -> Result<Self, PluginError> {
        // SAFETY: the symbol is a `Table`, and libibverbs' initialisers touch nothing of ours.
        Ok(Self { table: unsafe { open(&NAMES, path) }? })
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").finish_non_exhaustive()
    }
}

/// Which port of which device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The device, as the kernel names it.
    pub device: String,
    /// The port, from 1.
    pub port: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} port {}", self.device, self.port)
    }
}

/// One port of a device. Clones share it; it is closed with the last of them and of what was made of it.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

struct Shared {
    table: &'static Table,
    handle: NonNull<DeviceHandle>,
    place: Place,
    answer: DeviceAnswer,
    /// The kernel's entry for user space, which goes first when the device is removed.
    entry: Option<PathBuf>,
    regions: Mutex<Vec<Arc<Region>>>,
    /// What the process means to lock in all.
    to_lock: AtomicU64,
}

// SAFETY: the table's contract: a device's functions may be called from any thread at any time.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// [`RdmaError`]: where it is not there, or this user may not open it.
    pub fn open(plugin: Plugin, place: &Place) -> Result<Self, RdmaError> {
        let fault = |error| RdmaError::device(place, "opening it", error);
        let name = CString::new(place.device.as_str()).map_err(|_| fault(-libc::EINVAL))?;
        let mut answer = DeviceAnswer::default();
        // SAFETY: a string and room for the answer.
        let handle = unsafe { (plugin.table.open)(name.as_ptr(), place.port, &mut answer) };
        let handle = NonNull::new(handle).ok_or_else(|| fault(answer.error))?;
        let (table, place) = (plugin.table, place.clone());
        let (entry, regions) = (route::entry_of(&place.device), Mutex::new(Vec::new()));
        let to_lock = AtomicU64::new(0);
        Ok(Self { shared: Arc::new(Shared { table, handle, place, answer, entry, regions, to_lock }) })
    }

    /// Whether it is being removed. Drivers that can, take it away and say so by an event; the others (soft-RoCE) wait until everybody
    /// has closed it, and say nothing.
    pub fn is_removed(&self) -> bool {
        self.shared.entry.as_ref().is_some_and(|entry| !entry.exists())
    }

    /// Which one it is.
    pub fn place(&self) -> &Place {
        &self.shared.place
    }

    /// How loans of it are taken back.
    pub fn lending(&self) -> Lending {
        if self.shared.answer.windows != 0 { Lending::Windows } else { Lending::Slabs }
    }

    /// Whether its port is up.
    pub fn is_active(&self) -> bool {
        self.shared.answer.active != 0
    }

    /// For how many queue pairs one completion queue has room.
    pub fn pairs_max(&self) -> usize {
        self.shared.answer.completions_max as usize / COMPLETIONS_PER_PAIR
    }

    /// Whether it is InfiniBand, not Ethernet.
    pub fn is_infiniband(&self) -> bool {
        self.shared.answer.ethernet == 0
    }

    /// The rate of its port, where it is known.
    pub fn rate_bytes_per_s(&self) -> Option<u64> {
        let megabits = u64::from(self.shared.answer.megabits_per_s);
        (megabits > 0).then_some(megabits * 1_000_000 / 8)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.regions.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        // SAFETY: opened in `Device::open`; all that was made of it held a clone, so nothing is left.
        unsafe { (self.table.close)(self.handle.as_ptr()) };
    }
}
