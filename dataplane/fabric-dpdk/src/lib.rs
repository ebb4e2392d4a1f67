//! The plugin that joins velod with DPDK: one exported table of C functions (`velo_fabric::packet::port::dpdk::table`), so that one
//! velod runs with DPDK where it is installed and without it where it is not. Built without the feature `libdpdk` it exports nothing.
//!
//! DPDK's structures and inline functions stay in a C shim; the Rust side owns what the shim makes: EAL, mempools, ports and their queues.
#![cfg_attr(not(feature = "libdpdk"), forbid(unsafe_code), doc = "This build is the empty one.")]
#![cfg_attr(feature = "libdpdk", allow(unsafe_code))]

#[cfg(feature = "libdpdk")]
mod eal;
#[cfg(feature = "libdpdk")]
mod export;
#[cfg(feature = "libdpdk")]
mod mempool;
#[cfg(feature = "libdpdk")]
mod port;
#[cfg(feature = "libdpdk")]
mod shim;
