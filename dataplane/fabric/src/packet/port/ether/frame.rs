//! What carries raw Ethernet frames: a queue of a network device, without the kernel's network stack. All that such ports have in
//! common (headers, neighbours, checks) is [`Ether`](super::Ether)'s, so that they move frames and nothing else.

use std::io;
use std::os::fd::BorrowedFd;

use crate::packet::port::PortCounters;

/// A hardware address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it names a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a [`FramePort`] can do. Does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameCaps {
    /// The device's hardware address.
    pub mac: Mac,
    /// The largest frame that it carries, from the destination's address to the end of the payload, without the check sequence: 1514
    /// for an MTU of 1500.
    pub frame_max_bytes: usize,
    /// Whether nothing is lost between two such ports (a ring that pushes back).
    pub lossless: bool,
    /// The rate of its link in bytes per second, where it is known.
    pub line_rate_bytes_per_s: Option<u64>,
    /// Whether a descriptor becomes readable after [`FramePort::arm`]; otherwise it must be polled.
    pub wakes: bool,
    /// Whether the device fills in the checksums that [`FrameDeparture::checksum`] asks for.
    pub checksums: bool,
    /// The kernel's index of the interface that it shares, if it does: addresses, routes and neighbours are then the kernel's.
    pub interface: Option<u32>,
}

/// What the device knows of the checksums of a frame that has arrived.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It did not look.
    #[default]
    Unknown,
    /// They are right (or the frame never was on a wire).
    Good,
    /// One of them is wrong.
    Bad,
}

/// A frame that has arrived; lies in the port's memory until the call returns.
#[derive(Debug)]
pub struct FrameArrival<'a> {
    /// The frame, without its check sequence.
    pub frame: &'a mut [u8],
    /// What the device knows of its checksums.
    pub checksum: Verdict,
}

/// A frame that has been written into the port's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameDeparture {
    /// Its length.
    pub len: usize,
    /// What the device is to fill in. `Some` only where [`FrameCaps::checksums`] says that it can.
    pub checksum: Option<ChecksumRequest>,
}

/// The checksum of UDP (and of the header of IPv4, which is zero) that a device is to fill in. The field of UDP's holds the sum of the
/// pseudo-header, not complemented, as devices and the kernel want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChecksumRequest {
    /// Whether it is IPv4; IPv6 otherwise.
    pub ipv4: bool,
    /// Length of Ethernet's header and its tag: 14 or 18.
    pub link_bytes: u16,
    /// Length of IP's header: 20 or 40. UDP's follows.
    pub network_bytes: u16,
}

/// One queue of a device, owned by one worker. No call blocks or, after the first turns, allocates.
pub trait FramePort: Send {
    /// Its name in logs and metrics: `xdp`, `dpdk`.
    fn name(&self) -> &'static str;

    /// What it can do.
    fn caps(&self) -> FrameCaps;

    /// Hands what has arrived, at most one burst of the port's own bounded size, to `each`. Returns how many frames. A frame in several
    /// pieces of memory is joined first.
    ///
    /// # Errors
    /// Only where the port is of no further use (its device is gone).
    fn rx_burst(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize>;

    /// Lends `fill` one space after the other, each at least [`FrameCaps::frame_max_bytes`] long, until it returns `None`, the port has
    /// no room, or a burst of the port's own bounded size is full; then hands what was written to the device, in order. `fill` is only
    /// called where what it writes can be handed on (or, failing that, is counted as dropped). Returns how many frames.
    ///
    /// # Errors
    /// As [`rx_burst`](Self::rx_burst). A single frame that cannot be sent is counted and forgotten.
    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>) -> io::Result<usize>;

    /// Asks that [`descriptor`](Self::descriptor) become readable when something arrives or (where the last `tx_burst` found no room)
    /// there is room. Returns false where something is there already: then poll again instead of sleeping.
    ///
    /// # Errors
    /// As [`rx_burst`](Self::rx_burst).
    fn arm(&mut self) -> io::Result<bool>;

    /// What to sleep on after [`arm`](Self::arm).
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// What has happened so far; its datagrams are frames.
    fn counters(&self) -> PortCounters;
}
