//! Ports: ways of moving datagrams in bursts. Siblings behind one trait; nothing above Ethernet or UDP.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::counters::counters;

pub mod dpdk;
mod draw;
pub mod ether;
pub mod fault;
pub mod pcap;
pub mod sim;
pub mod udp;
pub mod xdp;

/// Explicit congestion notification (RFC 3168) of one datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ecn {
    /// The sender does not take part.
    #[default]
    NotCapable,
    /// It does, and no congestion was met.
    Capable,
    /// Congestion was met.
    Congested,
}

/// A datagram that has arrived; lies in the port's memory until the call returns.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// Where it came from.
    pub from: SocketAddr,
    /// Its bytes; the receiver may decrypt them where they lie.
    pub datagram: &'a mut [u8],
    /// Congestion on its way.
    pub ecn: Ecn,
}

/// A datagram that has been written into the port's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departure {
    /// Where it goes.
    pub to: SocketAddr,
    /// Its length.
    pub len: usize,
    /// Whether the network may mark it instead of dropping it.
    pub ecn: Ecn,
    /// Whether it is a probe of the path's MTU: never fragmented, and what carries it need not be lossless.
    pub probe: bool,
}

/// What a port can do. Does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortCaps {
    /// The largest datagram that it carries, without the headers of IP and UDP.
    pub datagram_max_bytes: usize,
    /// Whether nothing is lost between two such ports (a ring that pushes back).
    pub lossless: bool,
    /// The rate of its link in bytes per second, where it is known.
    pub line_rate_bytes_per_s: Option<u64>,
    /// Whether a descriptor becomes readable after [`Port::arm`]; otherwise it must be polled.
    pub wakes: bool,
}

counters! {
    /// Plain counters of one port; they only grow.
    PortCounters {
        /// Datagrams received.
        rx_datagrams,
        /// Their bytes.
        rx_bytes,
        /// Datagrams handed on.
        tx_datagrams,
        /// Their bytes.
        tx_bytes,
        /// Datagrams that this host threw away on arrival: malformed, not ours, or no room.
        rx_dropped,
        /// Datagrams that could not be handed on: no route, no neighbour, or refused by the device.
        tx_dropped,
        /// Times that there was no room to send.
        tx_full,
        /// Times that the kernel refused to cut a message into datagrams, which then went one by one.
        gso_refused,
        /// System calls.
        calls,
    }
}

/// One queue of a device or one socket, owned by one worker. No call blocks or, after the first turns, allocates.
pub trait Port: Send {
    /// Its name in logs and metrics: `udp`, `xdp`, `dpdk`, `sim`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn caps(&self) -> PortCaps;

    /// The address that peers send to.
    fn local(&self) -> SocketAddr;

    /// Hands what has arrived, at most one burst of the port's own bounded size, to `each`. Returns how many datagrams it took
    /// from the device, those that it dropped among them: 0 where there was nothing.
    ///
    /// # Errors
    /// Only where the port is of no further use (its device is gone).
    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize>;

    /// Lends `fill` one space after the other, each at least [`PortCaps::datagram_max_bytes`] long, until it returns `None`, the port
    /// has no room, or a burst of the port's own bounded size is full; then hands what was written to the device, in order. `fill` is
    /// only called where what it writes can be handed on (or, failing that, is counted as dropped). Returns how many datagrams.
    ///
    /// # Errors
    /// As [`rx_burst`](Self::rx_burst). A single datagram that cannot be sent is counted and forgotten.
    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize>;

    /// Asks that [`descriptor`](Self::descriptor) become readable when something arrives or (where the last `tx_burst` found no room)
    /// there is room. Returns false where something is there already: then poll again instead of sleeping.
    ///
    /// # Errors
    /// As [`rx_burst`](Self::rx_burst).
    fn arm(&mut self) -> io::Result<bool>;

    /// What to sleep on after [`arm`](Self::arm).
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// What has happened so far.
    fn counters(&self) -> PortCounters;
}
