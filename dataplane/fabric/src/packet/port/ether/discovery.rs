//! Finding neighbours, and being found: ARP (RFC 826) for IPv4, neighbour discovery (RFC 4861) for IPv6. Only the questions and answers
//! about single addresses; no routers, no prefixes, no redirects.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Mac;
use super::header::{
    Headers, IPV6_BYTES, PROTOCOL_ICMPV6, TYPE_ARP, TYPE_IPV6, VLAN_BYTES, pseudo, write_ipv6,
};
use crate::packet::port::Ecn;

/// The longest frame that is written here.
pub(super) const FRAME_MAX_BYTES: usize =
    super::header::ETHERNET_BYTES + VLAN_BYTES + IPV6_BYTES + size_of::<Neighbour>();

const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ARP_ETHERNET: u16 = 1;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const NEIGHBOUR_HOP_LIMIT: u8 = 255;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Arp {
    hardware: U16,
    protocol: U16,
    hardware_bytes: u8,
    protocol_bytes: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
}

/// A solicitation or an advertisement with the one option that both may have.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Neighbour {
    kind: u8,
    code: u8,
    checksum: U16,
    flags: U32,
    target: [u8; 16],
    option: LinkOption,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LinkOption {
    kind: u8,
    /// In units of eight bytes.
    len: u8,
    mac: [u8; 6],
}

const NEIGHBOUR_FIXED_BYTES: usize = size_of::<Neighbour>() - size_of::<LinkOption>();

/// A short frame of our own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Short {
    bytes: [u8; FRAME_MAX_BYTES],
    len: usize,
}

impl Short {
    fn new() -> Self {
        Self { bytes: [0; FRAME_MAX_BYTES], len: 0 }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a message about neighbours says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Heard {
    /// Where somebody is, and whether that is to replace another place that we know.
    pub(super) learned: Option<(IpAddr, Mac, bool)>,
    /// The answer to a question about us.
    pub(super) answer: Option<Short>,
}

/// The question where `hop` is.
pub(super) fn ask(headers: &Headers, hop: IpAddr) -> Option<Short> {
    match (headers.local.ip(), hop) {
        (IpAddr::V4(local), IpAddr::V4(hop)) => {
            arp(headers, Mac::BROADCAST, ARP_REQUEST, (local, headers.mac), (hop, Mac::default()))
        }
        (IpAddr::V6(local), IpAddr::V6(hop)) => {
            let group = solicited_node(hop);
            let to = (multicast_mac(group), group);
            neighbour(headers, to, (SOLICITATION, 0, OPTION_SOURCE), (local, hop))
        }
        _ => None,
    }
}

/// Reads a packet of ARP.
pub(super) fn hear_arp(headers: &Headers, packet: &[u8]) -> Option<Heard> {
    let IpAddr::V4(local) = headers.local.ip() else { return None };
    let (arp_packet, _) = Arp::ref_from_prefix(packet).ok()?;
    let (sender, mac) = (Ipv4Addr::from(arp_packet.sender), Mac(arp_packet.sender_mac));
    if arp_packet.hardware.get() != ARP_ETHERNET
        || arp_packet.protocol.get() != super::header::TYPE_IPV4
        || arp_packet.hardware_bytes != 6
        || arp_packet.protocol_bytes != 4
        || !is_station(mac)
        || sender == local
    {
        return None;
    }
    // Whoever only looks whether an address is free has none of its own yet.
    let learned = (!sender.is_unspecified()).then_some((IpAddr::V4(sender), mac, true));
    match arp_packet.operation.get() {
        ARP_REQUEST if arp_packet.target == local.octets() => {
            let answer = arp(headers, mac, ARP_REPLY, (local, headers.mac), (sender, mac));
            Some(Heard { learned, answer })
        }
        ARP_REQUEST | ARP_REPLY => Some(Heard { learned, answer: None }),
        _ => None,
    }
}

/// Reads a message of ICMPv6 from `source`, whose checksum and hop limit are right.
pub(super) fn hear_icmpv6(headers: &Headers, source: Ipv6Addr, message: &[u8]) -> Option<Heard> {
    let IpAddr::V6(local) = headers.local.ip() else { return None };
    // The option may be missing: what is not there reads as zeros.
    let mut whole = [0; size_of::<Neighbour>()];
    let fixed = message.get(..NEIGHBOUR_FIXED_BYTES)?;
    whole[..NEIGHBOUR_FIXED_BYTES].copy_from_slice(fixed);
    let message_is = Neighbour::read_from_bytes(&whole).ok()?;
    let target = Ipv6Addr::from(message_is.target);
    if message_is.code != 0 || target.is_multicast() {
        return None;
    }
    let options = &message[NEIGHBOUR_FIXED_BYTES..];
    match message_is.kind {
        SOLICITATION if target == local => {
            let asker = link_option(options, OPTION_SOURCE)?;
            if source.is_unspecified() {
                // Somebody looks whether the address is free: tell all.
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let to = (multicast_mac(all), all);
                let answer = neighbour(headers, to, (ADVERTISEMENT, OVERRIDE, OPTION_TARGET), (local, local));
                return asker.is_none().then_some(Heard { learned: None, answer });
            }
            let mac = asker?;
            let flags = SOLICITED | OVERRIDE;
            let answer =
                neighbour(headers, (mac, source), (ADVERTISEMENT, flags, OPTION_TARGET), (local, local));
            Some(Heard { learned: Some((source.into(), mac, true)), answer })
        }
        ADVERTISEMENT if target != local => {
            let mac = link_option(options, OPTION_TARGET)??;
            let replace = message_is.flags.get() & OVERRIDE != 0;
            Some(Heard { learned: Some((target.into(), mac, replace)), answer: None })
        }
        _ => None,
    }
}

/// The station that the option `kind` names, if there is one. `None` where the options are malformed.
fn link_option(mut options: &[u8], kind: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while !options.is_empty() {
        let len = usize::from(*options.get(1)?) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty())?;
        if option[0] == kind {
            let mac = Mac(LinkOption::ref_from_bytes(option).ok()?.mac);
            found = Some(mac).filter(|mac| is_station(*mac));
        }
        options = &options[len..];
    }
    Some(found)
}

fn is_station(mac: Mac) -> bool {
    !mac.is_multicast() && mac != Mac::default()
}

fn arp(
    headers: &Headers,
    to: Mac,
    operation: u16,
    sender: (Ipv4Addr, Mac),
    target: (Ipv4Addr, Mac),
) -> Option<Short> {
    let packet = Arp {
        hardware: ARP_ETHERNET.into(),
        protocol: super::header::TYPE_IPV4.into(),
        hardware_bytes: 6,
        protocol_bytes: 4,
        operation: operation.into(),
        sender_mac: sender.1.0,
        sender: sender.0.octets(),
        target_mac: target.1.0,
        target: target.0.octets(),
    };
    let mut short = Short::new();
    let at = headers.write_link(&mut short.bytes, to, TYPE_ARP)?;
    packet.write_to_prefix(&mut short.bytes[at..]).ok()?;
    short.len = at + size_of::<Arp>();
    Some(short)
}

/// A message (`kind`, `flags`, kind of its option) from `local` about `target` to a station and its address.
fn neighbour(
    headers: &Headers,
    to: (Mac, Ipv6Addr),
    (kind, flags, option): (u8, u32, u8),
    (local, target): (Ipv6Addr, Ipv6Addr),
) -> Option<Short> {
    const BYTES: u16 = size_of::<Neighbour>() as u16;
    let mut message = Neighbour {
        kind,
        code: 0,
        checksum: 0.into(),
        flags: flags.into(),
        target: target.octets(),
        option: LinkOption { kind: option, len: 1, mac: headers.mac.0 },
    };
    let sum = pseudo(&local.octets(), &to.1.octets(), PROTOCOL_ICMPV6, BYTES).add(message.as_bytes());
    message.checksum = sum.checksum().into();
    let mut short = Short::new();
    let at = headers.write_link(&mut short.bytes, to.0, TYPE_IPV6)?;
    let packet = &mut short.bytes[at..];
    write_ipv6(packet, (local, to.1), PROTOCOL_ICMPV6, (NEIGHBOUR_HOP_LIMIT, Ecn::NotCapable), BYTES)?;
    let body: Range<usize> = IPV6_BYTES..IPV6_BYTES + size_of::<Neighbour>();
    packet[body.clone()].copy_from_slice(message.as_bytes());
    short.len = at + body.end;
    Some(short)
}

/// The group in which whoever has `address` listens (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The stations that listen to a group (RFC 2464, 7).
fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Verdict;
    use super::super::header::Meaning;
    use super::*;

    fn headers(local: &str, mac: u8, vlan: Option<u16>) -> Headers {
        Headers {
            mac: Mac([2, 0, 0, 0, 0, mac]),
            vlan,
            local: local.parse().unwrap(),
            ipv4_checksum: false,
            device_checksums: false,
        }
    }

    fn hear(headers: &Headers, frame: &[u8]) -> Option<Heard> {
        match headers.read(frame, Verdict::Unknown)? {
            Meaning::Arp { packet } => hear_arp(headers, &frame[packet]),
            Meaning::Icmpv6 { source, message } => hear_icmpv6(headers, source, &frame[message]),
            Meaning::Datagram { .. } => None,
        }
    }

    #[test]
    fn two_stations_find_each_other() {
        for (a, b) in [("10.0.0.1:1", "10.0.0.2:2"), ("[fd00::1]:1", "[fd00::2:3]:2")] {
            for vlan in [None, Some(7)] {
                let (a, b) = (headers(a, 1, vlan), headers(b, 2, vlan));
                let question = ask(&a, b.local.ip()).unwrap();
                let heard = hear(&b, question.as_bytes()).unwrap();
                assert_eq!(heard.learned.unwrap(), (a.local.ip(), a.mac, true));
                let answer = heard.answer.unwrap();
                let heard = hear(&a, answer.as_bytes()).unwrap();
                assert_eq!(heard.learned.unwrap(), (b.local.ip(), b.mac, true));
                assert!(heard.answer.is_none());
                let third = headers(if a.local.is_ipv4() { "10.0.0.9:1" } else { "[fd00::9]:1" }, 9, vlan);
                assert!(hear(&third, question.as_bytes()).is_none_or(|heard| heard.answer.is_none()));
            }
        }
    }

    #[test]
    fn the_bytes_of_a_question() {
        let question = ask(&headers("10.0.0.1:1", 1, None), "10.0.0.2".parse().unwrap()).unwrap();
        let expected =
            hex("ffffffffffff0200000000010806 0001080006040001 020000000001 0a000001 000000000000 0a000002");
        assert_eq!(question.as_bytes(), expected);
        // The checksum by a program of its own over the pseudo-header and the message.
        let question = ask(&headers("[fd00::1]:1", 1, None), "fd00::2:3".parse().unwrap()).unwrap();
        assert_eq!(question.as_bytes()[..14], hex("3333ff020003 020000000001 86dd"));
        assert_eq!(question.as_bytes()[14..22], hex("60000000 0020 3aff"));
        assert_eq!(question.as_bytes()[38..54], hex("ff020000000000000000 0001ff020003"));
        assert_eq!(question.as_bytes()[54..56], [135, 0]);
        assert_eq!(
            question.as_bytes()[58..],
            hex("00000000 fd000000000000000000000000020003 0101 020000000001")
        );
    }

    #[test]
    fn a_probe_for_a_free_address_is_answered_to_all() {
        let ours = headers("[fd00::1]:1", 1, None);
        let mut message =
            ask(&headers("[fd00::2]:1", 2, None), ours.local.ip()).unwrap().as_bytes()[54..].to_vec();
        let unspecified = Ipv6Addr::UNSPECIFIED;
        assert!(hear_icmpv6(&ours, unspecified, &message).is_none(), "a probe may name no station");
        message.truncate(NEIGHBOUR_FIXED_BYTES);
        let heard = hear_icmpv6(&ours, unspecified, &message).unwrap();
        assert!(heard.learned.is_none());
        assert_eq!(heard.answer.unwrap().as_bytes()[..6], [0x33, 0x33, 0, 0, 0, 1]);
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.bytes().filter(|b| *b != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    proptest! {
        #[test]
        fn hostile_messages_neither_panic_nor_name_groups(
            message in prop::collection::vec(any::<u8>(), 0..80),
            kind in prop::sample::select(vec![SOLICITATION, ADVERTISEMENT, 0, 200]),
            ours in any::<bool>(),
        ) {
            let mut message = message;
            let six = headers("[fd00::1]:1", 1, None);
            if message.len() >= NEIGHBOUR_FIXED_BYTES {
                (message[0], message[1]) = (kind, 0);
                if ours { message[8..24].copy_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets()); }
            }
            for heard in [
                hear_icmpv6(&six, "fe80::7".parse().unwrap(), &message),
                hear_arp(&headers("10.0.0.1:1", 1, None), &message),
            ].into_iter().flatten() {
                if let Some((_, mac, _)) = heard.learned { prop_assert!(is_station(mac)); }
            }
        }
    }
}
