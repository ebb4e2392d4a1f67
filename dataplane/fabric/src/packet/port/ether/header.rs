//! The headers of Ethernet, IPv4 and IPv6, and UDP: written in front of a datagram, and checked before anything is believed of a frame.
//! Nothing here keeps state; what is not addressed to this port is told apart from what is not even well formed by nobody but a counter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::{ChecksumRequest, FrameDeparture, Mac, Verdict};
use crate::packet::port::{Departure, Ecn};

pub(super) const ETHERNET_BYTES: usize = size_of::<Ethernet>();
pub(super) const VLAN_BYTES: usize = size_of::<Vlan>();
pub(super) const IPV4_BYTES: usize = size_of::<Ipv4>();
pub(super) const IPV6_BYTES: usize = size_of::<Ipv6>();
pub(super) const UDP_BYTES: usize = size_of::<Udp>();

pub(super) const TYPE_IPV4: u16 = 0x0800;
pub(super) const TYPE_ARP: u16 = 0x0806;
const TYPE_VLAN: u16 = 0x8100;
pub(super) const TYPE_IPV6: u16 = 0x86dd;

const PROTOCOL_UDP: u8 = 17;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;

const TTL: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// More fragments, or an offset: part of something larger.
const FRAGMENT_MASK: u16 = 0x3fff;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Ethernet {
    pub(super) destination: [u8; 6],
    pub(super) source: [u8; 6],
    pub(super) kind: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Vlan {
    control: U16,
    kind: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Ipv4 {
    version_and_words: u8,
    service: u8,
    total_bytes: U16,
    identification: U16,
    fragment: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Ipv6 {
    pub(super) version_class_flow: U32,
    pub(super) payload_bytes: U16,
    pub(super) next: u8,
    pub(super) hop_limit: u8,
    pub(super) source: [u8; 16],
    pub(super) destination: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Udp {
    source: U16,
    destination: U16,
    bytes: U16,
    checksum: U16,
}

/// A frame that means something to us. Ranges lie in the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A datagram for our port.
    Datagram { from: SocketAddr, payload: Range<usize>, ecn: Ecn },
    /// A packet of ARP.
    Arp { packet: Range<usize> },
    /// A message of ICMPv6 that came from a neighbour (hop limit 255) and whose checksum is right.
    Icmpv6 { source: Ipv6Addr, message: Range<usize> },
}

/// Who we are on the link: decides how headers are written and what is ours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Headers {
    pub(super) mac: Mac,
    pub(super) vlan: Option<u16>,
    pub(super) local: SocketAddr,
    /// Whether datagrams over IPv4 carry a checksum, which they need not.
    pub(super) ipv4_checksum: bool,
    /// Whether the device writes checksums.
    pub(super) device_checksums: bool,
}

impl Headers {
    fn link_bytes(&self) -> usize {
        ETHERNET_BYTES + if self.vlan.is_some() { VLAN_BYTES } else { 0 }
    }

    fn network_bytes(&self) -> usize {
        if self.local.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES }
    }

    /// Length of all that stands before a datagram.
    pub(super) fn bytes(&self) -> usize {
        self.link_bytes() + self.network_bytes() + UDP_BYTES
    }

    /// Writes Ethernet's header and the tag. Returns where the packet begins.
    pub(super) fn write_link(&self, frame: &mut [u8], destination: Mac, kind: u16) -> Option<usize> {
        let (ethernet, rest) = Ethernet::mut_from_prefix(frame).ok()?;
        ethernet.destination = destination.0;
        ethernet.source = self.mac.0;
        ethernet.kind = kind.into();
        if let Some(id) = self.vlan {
            ethernet.kind = TYPE_VLAN.into();
            let (tag, _) = Vlan::mut_from_prefix(rest).ok()?;
            *tag = Vlan { control: id.into(), kind: kind.into() };
        }
        Some(self.link_bytes())
    }

    /// Writes the headers of the datagram that lies behind them. `None` where it cannot be sent from here: of another family, too
    /// long, to nobody.
    pub(super) fn write(
        &self,
        frame: &mut [u8],
        next_hop: Mac,
        departure: &Departure,
    ) -> Option<FrameDeparture> {
        if departure.to.port() == 0 {
            return None;
        }
        let len = self.bytes().checked_add(departure.len)?;
        let frame = frame.get_mut(..len)?;
        let udp_bytes = u16::try_from(UDP_BYTES + departure.len).ok()?;
        let (kind, pseudo) = match (self.local.ip(), departure.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let packet = frame.get_mut(self.link_bytes()..)?;
                write_ipv4(packet, source, destination, udp_bytes, departure.ecn)?;
                (TYPE_IPV4, pseudo(&source.octets(), &destination.octets(), PROTOCOL_UDP, udp_bytes))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let packet = frame.get_mut(self.link_bytes()..)?;
                let ends = (source, destination);
                write_ipv6(packet, ends, PROTOCOL_UDP, (TTL, departure.ecn), udp_bytes)?;
                (TYPE_IPV6, pseudo(&source.octets(), &destination.octets(), PROTOCOL_UDP, udp_bytes))
            }
            _ => return None,
        };
        self.write_link(frame, next_hop, kind)?;
        let segment = frame.get_mut(self.link_bytes() + self.network_bytes()..)?;
        let (udp, _) = Udp::mut_from_prefix(segment).ok()?;
        *udp = Udp {
            source: self.local.port().into(),
            destination: departure.to.port().into(),
            bytes: udp_bytes.into(),
            checksum: 0.into(),
        };
        let ipv4 = kind == TYPE_IPV4;
        if ipv4 && !self.ipv4_checksum {
            return Some(FrameDeparture { len, checksum: None });
        }
        if self.device_checksums {
            udp.checksum = pseudo.folded().into();
            if ipv4 {
                let (header, _) = Ipv4::mut_from_prefix(frame.get_mut(self.link_bytes()..)?).ok()?;
                header.checksum = 0.into();
            }
            let checksum = ChecksumRequest {
                ipv4,
                link_bytes: self.link_bytes() as u16,
                network_bytes: self.network_bytes() as u16,
            };
            return Some(FrameDeparture { len, checksum: Some(checksum) });
        }
        let checksum = pseudo.add(segment).udp_checksum();
        let (udp, _) = Udp::mut_from_prefix(segment).ok()?;
        udp.checksum = checksum.into();
        Some(FrameDeparture { len, checksum: None })
    }

    /// What a frame means to us; `None` where that is nothing: malformed, a fragment, or for somebody else.
    pub(super) fn read(&self, frame: &[u8], verdict: Verdict) -> Option<Meaning> {
        if verdict == Verdict::Bad {
            return None;
        }
        let (ethernet, rest) = Ethernet::ref_from_prefix(frame).ok()?;
        let destination = Mac(ethernet.destination);
        if destination != self.mac && !destination.is_multicast() {
            return None;
        }
        let mut kind = ethernet.kind.get();
        let mut at = ETHERNET_BYTES;
        if kind == TYPE_VLAN {
            let (tag, _) = Vlan::ref_from_prefix(rest).ok()?;
            // No number at all is a priority and no network.
            if tag.control.get() & 0xfff != self.vlan.unwrap_or(0) {
                return None;
            }
            kind = tag.kind.get();
            at += VLAN_BYTES;
        } else if self.vlan.is_some() {
            return None;
        }
        let packet = frame.get(at..)?;
        match (kind, self.local.ip()) {
            (TYPE_ARP, IpAddr::V4(_)) => Some(Meaning::Arp { packet: at..frame.len() }),
            (TYPE_IPV4, IpAddr::V4(local)) if destination == self.mac => {
                self.read_ipv4(packet, at, local, verdict)
            }
            (TYPE_IPV6, IpAddr::V6(local)) => {
                self.read_ipv6(packet, at, local, destination == self.mac, verdict)
            }
            _ => None,
        }
    }

    fn read_ipv4(&self, packet: &[u8], at: usize, local: Ipv4Addr, verdict: Verdict) -> Option<Meaning> {
        let (header, _) = Ipv4::ref_from_prefix(packet).ok()?;
        let header_bytes = usize::from(header.version_and_words & 0xf) * 4;
        let packet = packet.get(..usize::from(header.total_bytes.get()))?;
        let segment = packet.get(header_bytes..)?;
        let source = Ipv4Addr::from(header.source);
        if header.version_and_words >> 4 != 4
            || header_bytes < IPV4_BYTES
            || header.fragment.get() & FRAGMENT_MASK != 0
            || header.protocol != PROTOCOL_UDP
            || header.destination != local.octets()
            || source.is_multicast()
            || source.is_broadcast()
            || source.is_unspecified()
        {
            return None;
        }
        if verdict == Verdict::Unknown && Sum::default().add(&packet[..header_bytes]).folded() != 0xffff {
            return None;
        }
        let sum = |bytes| pseudo(&header.source, &header.destination, PROTOCOL_UDP, bytes);
        let (port, payload) = self.read_udp(segment, sum, true, verdict)?;
        Some(Meaning::Datagram {
            from: SocketAddr::new(source.into(), port),
            payload: payload.start + at + header_bytes..payload.end + at + header_bytes,
            ecn: ecn_of(header.service),
        })
    }

    fn read_ipv6(
        &self,
        packet: &[u8],
        at: usize,
        local: Ipv6Addr,
        unicast: bool,
        verdict: Verdict,
    ) -> Option<Meaning> {
        let (header, rest) = Ipv6::ref_from_prefix(packet).ok()?;
        let payload = rest.get(..usize::from(header.payload_bytes.get()))?;
        let source = Ipv6Addr::from(header.source);
        if header.version_class_flow.get() >> 28 != 6 || source.is_multicast() {
            return None;
        }
        let at = at + IPV6_BYTES;
        // Headers of extensions, and so fragments, are somebody else's.
        match header.next {
            PROTOCOL_UDP => {
                if !unicast || header.destination != local.octets() || source.is_unspecified() {
                    return None;
                }
                let sum = |bytes| pseudo(&header.source, &header.destination, PROTOCOL_UDP, bytes);
                let (port, range) = self.read_udp(payload, sum, false, verdict)?;
                Some(Meaning::Datagram {
                    from: SocketAddr::new(source.into(), port),
                    payload: range.start + at..range.end + at,
                    ecn: ecn_of((header.version_class_flow.get() >> 20) as u8),
                })
            }
            PROTOCOL_ICMPV6 => {
                let bytes = header.payload_bytes.get();
                let sum = pseudo(&header.source, &header.destination, PROTOCOL_ICMPV6, bytes).add(payload);
                (header.hop_limit == 255 && sum.folded() == 0xffff)
                    .then_some(Meaning::Icmpv6 { source, message: at..at + payload.len() })
            }
            _ => None,
        }
    }

    /// The sender's port and where in `segment` its datagram lies.
    fn read_udp(
        &self,
        segment: &[u8],
        pseudo: impl Fn(u16) -> Sum,
        may_lack_checksum: bool,
        verdict: Verdict,
    ) -> Option<(u16, Range<usize>)> {
        let (udp, _) = Udp::ref_from_prefix(segment).ok()?;
        let bytes = udp.bytes.get();
        let segment = segment.get(..usize::from(bytes))?;
        if segment.len() < UDP_BYTES || udp.destination.get() != self.local.port() || udp.source.get() == 0 {
            return None;
        }
        let checksum = udp.checksum.get();
        if checksum == 0 && !may_lack_checksum {
            return None;
        }
        if checksum != 0 && verdict == Verdict::Unknown {
            let pseudo = pseudo(bytes);
            // The sum of the pseudo-header alone: the sender left the rest to its device, and the frame never met a device (veth).
            if checksum != pseudo.folded() && pseudo.add(segment).folded() != 0xffff {
                return None;
            }
        }
        Some((udp.source.get(), UDP_BYTES..segment.len()))
    }
}

fn write_ipv4(
    packet: &mut [u8],
    source: Ipv4Addr,
    destination: Ipv4Addr,
    payload_bytes: u16,
    ecn: Ecn,
) -> Option<()> {
    let (header, _) = Ipv4::mut_from_prefix(packet).ok()?;
    *header = Ipv4 {
        version_and_words: 0x45,
        service: bits_of(ecn),
        total_bytes: payload_bytes.checked_add(IPV4_BYTES as u16)?.into(),
        // What may not be fragmented needs no identification (RFC 6864).
        identification: 0.into(),
        fragment: DO_NOT_FRAGMENT.into(),
        ttl: TTL,
        protocol: PROTOCOL_UDP,
        checksum: 0.into(),
        source: source.octets(),
        destination: destination.octets(),
    };
    header.checksum = Sum::default().add(header.as_bytes()).checksum().into();
    Some(())
}

/// Writes the header of IPv6 from `ends.0` to `ends.1` with a hop limit and congestion bits.
pub(super) fn write_ipv6(
    packet: &mut [u8],
    ends: (Ipv6Addr, Ipv6Addr),
    next: u8,
    (hop_limit, ecn): (u8, Ecn),
    payload_bytes: u16,
) -> Option<()> {
    let (header, _) = Ipv6::mut_from_prefix(packet).ok()?;
    *header = Ipv6 {
        version_class_flow: (6 << 28 | u32::from(bits_of(ecn)) << 20).into(),
        payload_bytes: payload_bytes.into(),
        next,
        hop_limit,
        source: ends.0.octets(),
        destination: ends.1.octets(),
    };
    Some(())
}

/// The sum of the pseudo-header of either family. IPv6's has a wider length; the sum is the same.
pub(super) fn pseudo(source: &[u8], destination: &[u8], protocol: u8, payload_bytes: u16) -> Sum {
    Sum::default().add(source).add(destination).add_word(u16::from(protocol)).add_word(payload_bytes)
}

fn bits_of(ecn: Ecn) -> u8 {
    match ecn {
        Ecn::NotCapable => 0b00,
        Ecn::Capable => 0b10,
        Ecn::Congested => 0b11,
    }
}

fn ecn_of(service: u8) -> Ecn {
    match service & 0b11 {
        0b00 => Ecn::NotCapable,
        0b11 => Ecn::Congested,
        _ => Ecn::Capable,
    }
}
