//! Ports for tests and for looking closely: the simulated network, the faults, the captures.

mod dissector;
mod fault;
mod network;

use std::net::SocketAddr;

use velo_fabric::packet::port::{Departure, Ecn};

/// The address of a host of the tests.
pub(crate) fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 7000))
}

/// Writes `bytes` as a datagram to `to`.
pub(crate) fn write(space: &mut [u8], to: SocketAddr, bytes: &[u8]) -> Option<Departure> {
    space[..bytes.len()].copy_from_slice(bytes);
    Some(Departure { to, len: bytes.len(), ecn: Ecn::Capable, probe: false })
}
