//! DPDK: devices that a process drives itself, through the plugin `velo-fabric-dpdk`. It is opened at run time, so that one velod uses
//! DPDK where it is installed and runs where it is not.
//!
//! [`Dpdk::start`] once in a process, [`Dpdk::open`] for each device, and each [`DpdkPort`] (a queue) to its worker. A device is
//! closed with the last of its ports; DPDK itself stays for as long as the process.

mod device;
mod error;
mod log;
mod options;
mod plugin;
mod probe;
mod queue;
mod start;
pub mod table;

pub use device::{Device, Role};
pub use error::DpdkError;
pub use options::{
    DESCRIPTORS_MAX, DEVICES_MAX, DpdkOptions, FRAME_MAX_BYTES, FRAME_MIN_BYTES, HugePages, QUEUES_MAX,
};
pub use queue::DpdkPort;
pub use start::{Dpdk, Link, OpenedDevice, Steering};
