//! What may be missing for DPDK, each with what to do about it.

use std::io;
use std::path::PathBuf;

use crate::plugin::PluginError;

/// DPDK cannot be used, or not as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DpdkError {
    /// The plugin cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Not enough free huge pages.
    #[error(
        "DPDK wants {wanted_mb} MB of huge pages and {free_mb} MB are free: reserve them (sysctl vm.nr_hugepages={}), \
         or set huge_pages = false",
        .wanted_mb.div_ceil(2)
    )]
    NoHugePages {
        /// Memory that EAL is to have.
        wanted_mb: u64,
        /// What there is.
        free_mb: u64,
    },
    /// A device lacks what it needs: it is not there, not bound, or this user may not open it.
    #[error("{device}: {}: {why}; {advice}", .path.display())]
    Prerequisite {
        /// The device, as configured.
        device: String,
        /// What it needs.
        path: PathBuf,
        /// What came of looking at it.
        why: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// EAL runs already, or has run: it can be started once in a process.
    #[error(
        "DPDK was already started in this process, and can be only once: restart velod to change its devices"
    )]
    StartedBefore,
    /// EAL did not start.
    #[error("DPDK did not start: {why} (its arguments: {arguments}){}", logged(.log))]
    Eal {
        /// The error.
        why: io::Error,
        /// What it was started with.
        arguments: String,
        /// What it last said.
        log: Vec<String>,
    },
    /// There is no such device among those that EAL was started with.
    #[error("there is no DPDK device {index}: {devices} are configured")]
    DeviceMissing {
        /// Its place in the configuration.
        index: usize,
        /// How many there are.
        devices: usize,
    },
    /// A device could not be opened.
    #[error("the DPDK device {device} could not be opened: {stage}: {why}{}", logged(.log))]
    Device {
        /// The device, as configured.
        device: String,
        /// What was being done.
        stage: &'static str,
        /// The error.
        why: io::Error,
        /// What DPDK last said.
        log: Vec<String>,
    },
    /// An option has no sense.
    #[error("{option} of DPDK is {value}, and must be {range}")]
    Option {
        /// Which.
        option: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        range: String,
    },
}

fn logged(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; DPDK said: {}", log.join(" / ")) }
}
