//! What may go wrong with a device, each with what to do about it.

use std::ffi::c_int;
use std::io;

use super::Place;
use crate::plugin::PluginError;

/// RDMA cannot be used, or not as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// The plugin cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// A step failed.
    #[error("the RDMA device {device}, port {port}: {stage}: {why}")]
    Device {
        /// Which.
        device: String,
        /// Its port.
        port: u32,
        /// What was being done.
        stage: &'static str,
        /// The error.
        why: io::Error,
    },
    /// The process may not lock so much memory.
    #[error(
        "the RDMA device {device} cannot lock more memory: this process may lock {limit_mib} MiB, and all that is to be registered with its \
         RDMA devices is {wanted_mib} MiB; raise RLIMIT_MEMLOCK to {} KiB at least (ulimit -l, LimitMEMLOCK= of the unit), or lower \
         `dataplane.memory`",
        .wanted_mib * 1024
    )]
    Locked {
        /// Which.
        device: String,
        /// What the process means to lock in all, with every device.
        wanted_mib: u64,
        /// What it may.
        limit_mib: u64,
    },
}

impl RdmaError {
    /// A step failed with this negative error number.
    pub(super) fn device(place: &Place, stage: &'static str, error: c_int) -> Self {
        let why = io::Error::from_raw_os_error(error.saturating_neg());
        Self::Device { device: place.device.clone(), port: place.port, stage, why }
    }
}
