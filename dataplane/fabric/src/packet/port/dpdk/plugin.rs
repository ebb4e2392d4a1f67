//! The plugin that joins us with DPDK.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::Path;

use super::table::{ABI, SYMBOL, Table};
use crate::plugin::{PluginError, PluginNames, open};

const NAMES: PluginNames = PluginNames {
    library: "DPDK",
    file: "libvelo_fabric_dpdk.so",
    variable: "VELO_DPDK_PLUGIN",
    symbol: SYMBOL,
    abi: ABI,
    install: "DPDK (Debian: dpdk, or libdpdk-dev for its plugin to be built)",
    build: "cargo build -p velo-fabric-dpdk --features libdpdk",
};

/// The opened plugin. It stays open until the process ends, as DPDK's threads run in it.
#[derive(Clone, Copy)]
pub(super) struct Plugin {
    pub(super) table: &'static Table,
}

impl Plugin {
    pub(super) fn open(path: Option<&Path>) -> Result<Self, PluginError> {
        // SAFETY: the symbol is a `Table`, and DPDK's initialisers register drivers and touch nothing of ours.
        Ok(Self { table: unsafe { open(&NAMES, path) }? })
    }

    /// DPDK's version.
    pub(super) fn version(self) -> String {
        // SAFETY: a function without conditions, which returns a constant string.
        unsafe { CStr::from_ptr((self.table.version)()) }.to_string_lossy().into_owned()
    }
}
