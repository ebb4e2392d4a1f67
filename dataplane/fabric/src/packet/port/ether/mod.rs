//! Datagrams in Ethernet frames: the headers, checks and neighbours that every [`FramePort`] needs, so that a device's own part is to
//! move frames.

pub(super) mod checksum;
mod discovery;
mod frame;
mod header;
mod kernel;
mod neighbours;
pub(crate) mod netlink;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

pub use frame::{ChecksumRequest, FrameArrival, FrameCaps, FrameDeparture, FramePort, Mac, Verdict};

use self::discovery::Short;
use self::header::{Headers, Meaning};
use self::kernel::Kernel;
use self::neighbours::Neighbours;
use super::{Arrival, Departure, Port, PortCaps, PortCounters};
use crate::packet::limits;

/// Frames of our own that wait to be sent, at most: more questions about us are not answered.
const SHORTS: usize = 16;
/// Datagrams in one burst that go nowhere, at most.
const LOST_PER_BURST: u32 = 64;

/// How neighbours are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbourhood {
    /// As the kernel says: its routes, its neighbours; it also answers for us. For a device that the kernel uses as well.
    Kernel {
        /// The index of the interface that has the local address.
        interface: u32,
    },
    /// By asking on the link and answering there: for a device of which the kernel knows nothing.
    Own {
        /// How many bits of the local address all on the link have in common.
        prefix_bits: u8,
        /// Who takes what goes farther.
        gateway: Option<IpAddr>,
    },
}

/// How to make an [`Ether`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EtherOptions {
    /// Our address and UDP port. Only peers of the same family are reached.
    pub local: SocketAddr,
    /// The number of the VLAN whose tag frames carry.
    pub vlan: Option<u16>,
    /// How neighbours are found.
    pub neighbourhood: Neighbourhood,
    /// Whether datagrams over IPv4 carry UDP's checksum. They need none: the protocol above has better ones. Over IPv6 they must.
    pub ipv4_checksum: bool,
}

/// Why there is no [`Ether`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtherError {
    /// The local address is none that others can send to.
    #[error("{local} cannot be the address of a frame port: give one address of the interface, and a port")]
    Local {
        /// What was given.
        local: SocketAddr,
    },
    /// There is no such VLAN.
    #[error("VLAN {vlan}: there are those from 1 to 4094")]
    Vlan {
        /// What was given.
        vlan: u16,
    },
    /// The prefix is longer than the address, or the gateway does not lie in it.
    #[error("{gateway:?} cannot be the gateway of {local} with a prefix of {prefix_bits} bits")]
    Gateway {
        /// The local address.
        local: IpAddr,
        /// The length of the prefix.
        prefix_bits: u8,
        /// The gateway.
        gateway: Option<IpAddr>,
    },
    /// Its frames are too short for what every path must carry.
    #[error("frames of {frame_max_bytes} bytes are too short: the MTU must be at least 1280")]
    Mtu {
        /// The longest frame.
        frame_max_bytes: usize,
    },
    /// The kernel does not tell its neighbours.
    #[error("the kernel's tables of routes and neighbours cannot be followed: {0}")]
    Kernel(io::Error),
}

enum Resolver {
    Kernel(Kernel),
    Own { prefix_bits: u8, gateway: Option<IpAddr> },
}

/// A [`Port`] over a [`FramePort`].
pub struct Ether<F> {
    frames: F,
    headers: Headers,
    datagram_max_bytes: usize,
    resolver: Resolver,
    neighbours: Neighbours,
    shorts: VecDeque<Short>,
    began: Instant,
    counters: PortCounters,
}

impl<F: FramePort> Ether<F> {
    /// Sends and receives datagrams in the frames of `frames`.
    ///
    /// # Errors
    /// [`EtherError`].
    pub fn new(frames: F, options: EtherOptions) -> Result<Self, EtherError> {
        let EtherOptions { local, vlan, neighbourhood, ipv4_checksum } = options;
        if local.ip().is_unspecified() || local.ip().is_multicast() || local.port() == 0 {
            return Err(EtherError::Local { local });
        }
        if let Some(vlan) = vlan
            && !(1..=4094).contains(&vlan)
        {
            return Err(EtherError::Vlan { vlan });
        }
        let caps = frames.caps();
        let headers = Headers { mac: caps.mac, vlan, local, ipv4_checksum, device_checksums: caps.checksums };
        let datagram_max_bytes =
            caps.frame_max_bytes.saturating_sub(headers.bytes()).min(limits::DATAGRAM_MAX_BYTES);
        if datagram_max_bytes < limits::DATAGRAM_MIN_BYTES {
            return Err(EtherError::Mtu { frame_max_bytes: caps.frame_max_bytes });
        }
        let resolver = match neighbourhood {
            Neighbourhood::Kernel { interface } => {
                Resolver::Kernel(Kernel::follow(interface, local.ip()).map_err(EtherError::Kernel)?)
            }
            Neighbourhood::Own { prefix_bits, gateway } => {
                let longest = if local.is_ipv4() { 32 } else { 128 };
                let reachable = gateway.is_none_or(|gateway| {
                    is_on_link(local.ip(), prefix_bits, gateway) && gateway != local.ip()
                });
                if prefix_bits > longest || !reachable {
                    return Err(EtherError::Gateway { local: local.ip(), prefix_bits, gateway });
                }
                Resolver::Own { prefix_bits, gateway }
            }
        };
        Ok(Self {
            frames,
            headers,
            datagram_max_bytes,
            resolver,
            neighbours: Neighbours::new(),
            shorts: VecDeque::with_capacity(SHORTS),
            began: Instant::now(),
            counters: PortCounters::default(),
        })
    }

    /// What carries the frames.
    pub fn frames(&self) -> &F {
        &self.frames
    }

    /// What carries the frames, to be told something of its own.
    pub fn frames_mut(&mut self) -> &mut F {
        &mut self.frames
    }

    /// Hands our own frames to the device, as far as there is room.
    fn send_shorts(&mut self) -> io::Result<()> {
        let shorts = &mut self.shorts;
        self.frames.tx_burst(&mut |space| shorts.pop_front().map(|short| place(space, &short)))?;
        Ok(())
    }

    fn take_answers(&mut self, now_ms: u64) {
        if let Resolver::Kernel(kernel) = &mut self.resolver {
            while let Some(answer) = kernel.answer() {
                match answer.mac {
                    Some(mac) => self.neighbours.learn(now_ms, answer.destination, mac, true),
                    None => self.neighbours.lose(answer.destination),
                }
            }
        }
    }
}

impl<F: FramePort> Port for Ether<F> {
    fn name(&self) -> &'static str {
        self.frames.name()
    }

    fn caps(&self) -> PortCaps {
        let caps = self.frames.caps();
        PortCaps {
            datagram_max_bytes: self.datagram_max_bytes,
            lossless: caps.lossless,
            line_rate_bytes_per_s: caps.line_rate_bytes_per_s,
            wakes: caps.wakes,
        }
    }

    fn local(&self) -> SocketAddr {
        self.headers.local
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let Self { frames, headers, resolver, neighbours, shorts, began, counters, .. } = self;
        let own = matches!(resolver, Resolver::Own { .. });
        let taken = frames.rx_burst(&mut |arrival| {
            let FrameArrival { frame, checksum } = arrival;
            let heard = match headers.read(frame, checksum) {
                Some(Meaning::Datagram { from, payload, ecn }) => {
                    counters.rx_datagrams += 1;
                    counters.rx_bytes += payload.len() as u64;
                    each(Arrival { from, datagram: &mut frame[payload], ecn });
                    return;
                }
                Some(Meaning::Arp { packet }) if own => discovery::hear_arp(headers, &frame[packet]),
                Some(Meaning::Icmpv6 { source, message }) if own => {
                    discovery::hear_icmpv6(headers, source, &frame[message])
                }
                _ => None,
            };
            let Some(heard) = heard else {
                counters.rx_dropped += 1;
                return;
            };
            if let Some((address, mac, replace)) = heard.learned {
                neighbours.learn(began.elapsed().as_millis() as u64, address, mac, replace);
            }
            if let Some(answer) = heard.answer {
                if shorts.len() < SHORTS {
                    shorts.push_back(answer);
                } else {
                    counters.rx_dropped += 1;
                }
            }
        })?;
        if !self.shorts.is_empty() {
            self.send_shorts()?;
        }
        Ok(taken)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        let now_ms = self.began.elapsed().as_millis() as u64;
        self.take_answers(now_ms);
        let Self { frames, headers, resolver, neighbours, shorts, counters, datagram_max_bytes, .. } = self;
        let room = headers.bytes()..headers.bytes() + *datagram_max_bytes;
        let (mut datagrams, mut lost) = (0, 0);
        frames.tx_burst(&mut |space| {
            loop {
                if let Some(short) = shorts.pop_front() {
                    return Some(place(space, &short));
                }
                if lost >= LOST_PER_BURST {
                    return None;
                }
                let departure = fill(&mut space[room.clone()])?;
                let sent = station(resolver, neighbours, headers, shorts, now_ms, departure.to.ip())
                    .and_then(|mac| headers.write(space, mac, &departure));
                if let Some(sent) = sent {
                    datagrams += 1;
                    counters.tx_datagrams += 1;
                    counters.tx_bytes += departure.len as u64;
                    return Some(sent);
                }
                counters.tx_dropped += 1;
                lost += 1;
            }
        })?;
        Ok(datagrams)
    }

    fn arm(&mut self) -> io::Result<bool> {
        if !self.shorts.is_empty() {
            self.send_shorts()?;
        }
        self.frames.arm()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.frames.descriptor()
    }

    fn counters(&self) -> PortCounters {
        let frames = self.frames.counters();
        PortCounters {
            rx_dropped: self.counters.rx_dropped + frames.rx_dropped,
            tx_dropped: self.counters.tx_dropped + frames.tx_dropped,
            tx_full: frames.tx_full,
            calls: frames.calls,
            ..self.counters
        }
    }
}

/// The station to hand what goes to `destination` to; asks for it where that is due.
fn station(
    resolver: &mut Resolver,
    neighbours: &mut Neighbours,
    headers: &Headers,
    shorts: &mut VecDeque<Short>,
    now_ms: u64,
    destination: IpAddr,
) -> Option<Mac> {
    if destination.is_ipv4() != headers.local.is_ipv4()
        || destination.is_multicast()
        || destination.is_unspecified()
    {
        return None;
    }
    match resolver {
        Resolver::Kernel(kernel) => {
            let known = neighbours.find(now_ms, destination);
            if known.ask {
                kernel.ask(destination);
            }
            known.mac
        }
        Resolver::Own { prefix_bits, gateway } => {
            let hop = if is_on_link(headers.local.ip(), *prefix_bits, destination) {
                destination
            } else {
                (*gateway)?
            };
            let known = neighbours.find(now_ms, hop);
            if known.ask
                && shorts.len() < SHORTS
                && let Some(question) = discovery::ask(headers, hop)
            {
                shorts.push_back(question);
            }
            known.mac
        }
    }
}

fn place(space: &mut [u8], short: &Short) -> FrameDeparture {
    let bytes = short.as_bytes();
    space[..bytes.len()].copy_from_slice(bytes);
    FrameDeparture { len: bytes.len(), checksum: None }
}

/// Whether both have the first `prefix_bits` in common, or `other` is an address that is only meant on the link.
fn is_on_link(local: IpAddr, prefix_bits: u8, other: IpAddr) -> bool {
    match (local, other) {
        (IpAddr::V4(local), IpAddr::V4(other)) => {
            let differing = (local.to_bits() ^ other.to_bits()).leading_zeros();
            differing >= u32::from(prefix_bits)
        }
        (IpAddr::V6(local), IpAddr::V6(other)) => {
            let differing = (local.to_bits() ^ other.to_bits()).leading_zeros();
            differing >= u32::from(prefix_bits) || other.is_unicast_link_local()
        }
        _ => false,
    }
}
