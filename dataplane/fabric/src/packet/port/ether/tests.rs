//! Headers against oracles of their own and hostile frames; two ports on one wire in memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::packet::port::Ecn;

const LOCAL_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn headers(local: &str, mac: Mac, vlan: Option<u16>) -> Headers {
    Headers { mac, vlan, local: local.parse().unwrap(), ipv4_checksum: true, device_checksums: false }
}

/// Both ends of the same family.
fn ends(six: bool, vlan: Option<u16>) -> (Headers, Headers) {
    let (a, b) = if six { ("[fd00::1]:4000", "[fd00::2]:4001") } else { ("10.0.0.1:4000", "10.0.0.2:4001") };
    (headers(a, LOCAL_MAC, vlan), headers(b, OTHER_MAC, vlan))
}

fn frame(from: &Headers, to: &Headers, payload: &[u8], ecn: Ecn) -> Vec<u8> {
    let mut frame = vec![0xee; from.bytes() + payload.len()];
    frame[from.bytes()..].copy_from_slice(payload);
    let departure = Departure { to: to.local, len: payload.len(), ecn, probe: false };
    let sent = from.write(&mut frame, to.mac, &departure).unwrap();
    assert_eq!(sent, FrameDeparture { len: frame.len(), checksum: None });
    frame
}

/// RFC 1071, over a frame's parts, byte for byte.
fn naive_sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ecns() -> impl Strategy<Value = Ecn> {
    prop::sample::select(vec![Ecn::NotCapable, Ecn::Capable, Ecn::Congested])
}

#[test]
fn the_bytes_of_a_datagram_over_ipv4() {
    let (mut a, b) = ends(false, None);
    a.ipv4_checksum = false;
    let frame = frame(&a, &b, b"velo", Ecn::Capable);
    let expected: [u8; 46] = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
        0x45, 0x02, 0, 32, 0, 0, 0x40, 0, 64, 17, 0x26, 0xc9, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
        0x0f, 0xa0, 0x0f, 0xa1, 0, 12, 0, 0, // UDP
        b'v', b'e', b'l', b'o',
    ];
    assert_eq!(frame, expected);
}

#[test]
fn the_bytes_of_a_datagram_over_ipv6_with_a_tag() {
    let (a, b) = ends(true, Some(7));
    let frame = frame(&a, &b, b"velo", Ecn::Congested);
    assert_eq!(frame[12..18], [0x81, 0x00, 0, 7, 0x86, 0xdd]);
    assert_eq!(frame[18..26], [0x60, 0x30, 0, 0, 0, 12, 17, 64]);
    assert_eq!(frame[26..42], "fd00::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    assert_eq!(frame[58..64], [0x0f, 0xa0, 0x0f, 0xa1, 0, 12]);
    assert_eq!(naive_sum(&[&frame[26..58], &[0, 0, 0, 12, 0, 0, 0, 17], &frame[58..]]), 0xffff);
}

#[test]
fn a_device_is_asked_for_what_it_can_do() {
    for six in [false, true] {
        let (mut a, b) = ends(six, None);
        a.device_checksums = true;
        let mut frame = vec![7; a.bytes() + 5];
        let departure = Departure { to: b.local, len: 5, ecn: Ecn::NotCapable, probe: false };
        let sent = a.write(&mut frame, b.mac, &departure).unwrap();
        let network_bytes = if six { 40 } else { 20 };
        assert_eq!(sent.checksum, Some(ChecksumRequest { ipv4: !six, link_bytes: 14, network_bytes }));
        if !six {
            assert_eq!(frame[24..26], [0, 0], "the device fills this in");
            // What the device does.
            let sum = !naive_sum(&[&frame[14..34]]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        // A frame that never met its device is taken; so is one that did.
        assert!(b.read(&frame, Verdict::Unknown).is_some());
        let udp = 14 + usize::from(network_bytes);
        let sum = !naive_sum(&[&frame[udp..]]);
        frame[udp + 6..udp + 8].copy_from_slice(&sum.to_be_bytes());
        assert!(b.read(&frame, Verdict::Unknown).is_some());
        frame[udp + 9] ^= 1;
        assert!(b.read(&frame, Verdict::Unknown).is_none());
        assert!(b.read(&frame, Verdict::Good).is_some());
        assert!(b.read(&frame, Verdict::Bad).is_none());
    }
}

#[test]
fn fragments_options_and_extensions() {
    let (a, b) = ends(false, None);
    let whole = frame(&a, &b, b"velo", Ecn::NotCapable);
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = whole.clone();
        change(&mut frame);
        frame[24..26].fill(0);
        let header = 14 + usize::from(frame[14] & 0xf) * 4;
        let sum = !naive_sum(&[&frame[14..header.clamp(26, frame.len())]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        b.read(&frame, Verdict::Unknown)
    };
    let Some(Meaning::Datagram { payload, .. }) = with(&|_| {}) else { panic!("it is whole") };
    assert_eq!(&whole[payload], b"velo");
    assert_eq!(with(&|f| f[20] = 0x20), None, "the first of several fragments");
    assert_eq!(with(&|f| f[21] = 1), None, "a later fragment");
    assert_eq!(with(&|f| f[23] = 6), None, "TCP");
    assert_eq!(with(&|f| f[14] = 0x44), None, "a header that is too short");
    assert_eq!(with(&|f| f[14] = 0x4f), None, "a header that is longer than the packet");
    assert_eq!(with(&|f| f[14] = 0x65), None, "another version");
    assert_eq!(with(&|f| f[26] = 224), None, "from a group");
    let options = with(&|f| {
        f.splice(34..34, [1, 1, 1, 1]);
        (f[14], f[17]) = (0x46, f[17] + 4);
    });
    assert!(matches!(options, Some(Meaning::Datagram { payload, .. }) if payload == (46..50)), "options");

    let (a, b) = ends(true, None);
    let mut whole = frame(&a, &b, b"velo", Ecn::NotCapable);
    assert!(b.read(&whole, Verdict::Good).is_some());
    whole[20] = 44;
    assert_eq!(b.read(&whole, Verdict::Good), None, "a fragment over IPv6");
    whole[20] = 17;
    whole[60..62].fill(0);
    assert_eq!(b.read(&whole, Verdict::Good), None, "UDP over IPv6 has a checksum");
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        payload in prop::collection::vec(any::<u8>(), 0..2000),
        six: bool, tagged: bool, checksum: bool, padding in 0usize..60, ecn in ecns(),
    ) {
        let (mut a, b) = ends(six, tagged.then_some(5));
        a.ipv4_checksum = checksum;
        let mut frame = frame(&a, &b, &payload, ecn);
        frame.resize(frame.len() + padding, 0);
        let meaning = b.read(&frame, Verdict::Unknown);
        let start = a.bytes();
        prop_assert_eq!(meaning, Some(Meaning::Datagram { from: a.local, payload: start..start + payload.len(), ecn }));
        prop_assert_eq!(&frame[start..start + payload.len()], &payload[..]);
        // By the oracle: the header of IPv4, and UDP with its pseudo-header.
        let ip = start - 8 - if six { 40 } else { 20 };
        let udp_bytes = ((8 + payload.len()) as u32).to_be_bytes();
        let segment = &frame[start - 8..start + payload.len()];
        if !six { prop_assert_eq!(naive_sum(&[&frame[ip..start - 8]]), 0xffff); }
        if six || checksum {
            let addresses = if six { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
            prop_assert_eq!(naive_sum(&[&frame[addresses], &udp_bytes, &[0, 17], segment]), 0xffff);
        } else {
            prop_assert_eq!(&segment[6..8], &[0, 0]);
        }
        // Not by anyone else: another station, another network, another port.
        for stranger in [
            Headers { mac: LOCAL_MAC, ..b },
            Headers { vlan: Some(6), ..b },
            Headers { local: SocketAddr::new(b.local.ip(), 1), ..b },
            Headers { local: SocketAddr::new(a.local.ip(), b.local.port()), ..b },
        ] {
            prop_assert_eq!(stranger.read(&frame, Verdict::Unknown), None);
        }
        for cut in (0..start + payload.len()).rev().take(200).chain(0..start) {
            prop_assert_eq!(b.read(&frame[..cut], Verdict::Unknown), None);
        }
    }

    #[test]
    fn one_flipped_bit_is_noticed(payload in prop::collection::vec(any::<u8>(), 1..300), six: bool, bit: prop::sample::Index) {
        let (a, b) = ends(six, None);
        let good = frame(&a, &b, &payload, Ecn::Capable);
        let bit = bit.index(good.len() * 8);
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let read = b.read(&bad, Verdict::Unknown);
        // Who sent it on the last link is nobody's matter; nor are the class, the flow and the hop limit of IPv6, which no sum covers.
        let uncovered = (6..12).contains(&(bit / 8)) || (six && (14..18).contains(&(bit / 8)) && bit / 4 != 28 + 1) || (six && bit / 8 == 21);
        if uncovered {
            let from_a = matches!(read, Some(Meaning::Datagram { from, .. }) if from == a.local);
            prop_assert!(from_a);
        } else {
            prop_assert_eq!(read, None);
        }
    }

    #[test]
    fn hostile_frames(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        six: bool, tagged: bool, cut: prop::sample::Index,
    ) {
        let (a, b) = ends(six, tagged.then_some(5));
        let mut mutated = frame(&a, &b, &noise, Ecn::NotCapable);
        for (at, byte) in edits { let at = at.index(mutated.len()); mutated[at] = byte; }
        mutated.truncate(cut.index(mutated.len() + 1));
        for frame in [&noise, &mutated] {
            for verdict in [Verdict::Unknown, Verdict::Good] {
                match b.read(frame, verdict) {
                    Some(Meaning::Datagram { payload, .. }) => prop_assert!(payload.end <= frame.len() && payload.start <= payload.end),
                    Some(Meaning::Arp { packet }) => prop_assert!(packet.end <= frame.len()),
                    Some(Meaning::Icmpv6 { message, .. }) => prop_assert!(message.end <= frame.len()),
                    None => {}
                }
            }
        }
    }
}

/// Frames on their way in one direction.
type Lane = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// One end of a wire in memory.
struct Wire {
    mac: Mac,
    heard: Lane,
    said: Lane,
}

impl Wire {
    fn pair() -> (Self, Self) {
        let (a, b) = (Lane::default(), Lane::default());
        (
            Self { mac: LOCAL_MAC, heard: a.clone(), said: b.clone() },
            Self { mac: OTHER_MAC, heard: b, said: a },
        )
    }
}

impl FramePort for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }
    fn caps(&self) -> FrameCaps {
        FrameCaps {
            mac: self.mac,
            frame_max_bytes: 1514,
            lossless: true,
            line_rate_bytes_per_s: None,
            wakes: false,
            checksums: false,
            interface: None,
        }
    }
    fn rx_burst(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize> {
        let heard: Vec<_> = self.heard.lock().unwrap().drain(..).collect();
        let count = heard.len();
        for mut frame in heard {
            each(FrameArrival { frame: &mut frame, checksum: Verdict::Unknown });
        }
        Ok(count)
    }
    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>) -> io::Result<usize> {
        let mut count = 0;
        while count < 32 {
            let mut space = vec![0xdd; 1514];
            let Some(sent) = fill(&mut space) else { break };
            space.truncate(sent.len);
            self.said.lock().unwrap().push_back(space);
            count += 1;
        }
        Ok(count)
    }
    fn arm(&mut self) -> io::Result<bool> {
        Ok(self.heard.lock().unwrap().is_empty())
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn counters(&self) -> PortCounters {
        PortCounters::default()
    }
}

fn own(local: &str, gateway: Option<&str>) -> EtherOptions {
    EtherOptions {
        local: local.parse().unwrap(),
        vlan: None,
        neighbourhood: Neighbourhood::Own {
            prefix_bits: if local.starts_with('[') { 64 } else { 24 },
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        },
        ipv4_checksum: false,
    }
}

/// Sends one datagram. Returns whether it was handed on.
fn send(port: &mut impl Port, to: SocketAddr, bytes: &[u8]) -> bool {
    let mut left = Some(bytes);
    let sent = port.tx_burst(&mut |space| {
        let bytes = left.take()?;
        space[..bytes.len()].copy_from_slice(bytes);
        Some(Departure { to, len: bytes.len(), ecn: Ecn::Capable, probe: false })
    });
    sent.unwrap() == 1
}

fn receive(port: &mut impl Port) -> Vec<(SocketAddr, Vec<u8>)> {
    let got = RefCell::new(Vec::new());
    port.rx_burst(&mut |arrival| got.borrow_mut().push((arrival.from, arrival.datagram.to_vec()))).unwrap();
    got.into_inner()
}

#[test]
fn strangers_become_neighbours() {
    for (a, b) in [("10.0.0.1:4000", "10.0.0.2:4001"), ("[fd00::1]:4000", "[fd00::2]:4001")] {
        let (wire_a, wire_b) = Wire::pair();
        let mut a = Ether::new(wire_a, own(a, None)).unwrap();
        let mut b = Ether::new(wire_b, own(b, None)).unwrap();
        assert!(!send(&mut a, b.local(), b"lost"), "nobody knows yet where it goes");
        assert_eq!(a.counters().tx_dropped, 1);
        assert!(receive(&mut b).is_empty(), "a question");
        assert!(receive(&mut a).is_empty(), "its answer");
        assert!(send(&mut a, b.local(), b"found"));
        assert_eq!(receive(&mut b), [(a.local(), b"found".to_vec())]);
        assert!(!send(&mut b, a.local(), b"lost"), "a question alone makes no entry");
        receive(&mut a);
        receive(&mut b);
        assert!(send(&mut b, a.local(), b"back"));
        assert_eq!(receive(&mut a), [(b.local(), b"back".to_vec())]);
        assert_eq!(a.counters().rx_datagrams, 1);
        assert_eq!((a.counters().tx_bytes, b.counters().rx_bytes, b.counters().rx_dropped), (5, 5, 0));
    }
}

#[test]
fn what_goes_farther_goes_to_the_gateway() {
    let far: SocketAddr = "192.168.7.7:9".parse().unwrap();
    let (wire, other) = Wire::pair();
    let mut alone = Ether::new(wire, own("10.0.0.1:4000", None)).unwrap();
    assert!(!send(&mut alone, far, b"x"));
    assert!(other.heard.lock().unwrap().is_empty(), "there is nobody to ask for");

    let (wire, other) = Wire::pair();
    let mut port = Ether::new(wire, own("10.0.0.1:4000", Some("10.0.0.2"))).unwrap();
    let mut gateway = Ether::new(other, own("10.0.0.2:4000", None)).unwrap();
    assert!(!send(&mut port, far, b"x"));
    receive(&mut gateway);
    receive(&mut port);
    assert!(send(&mut port, far, b"x"));
    let frame = gateway.frames.heard.lock().unwrap().pop_front().unwrap();
    assert_eq!(frame[..6], OTHER_MAC.0);
    assert_eq!(frame[30..34], [192, 168, 7, 7]);
    assert!(!send(&mut port, "[fd00::2]:1".parse().unwrap(), b"x"), "another family");
}

#[test]
fn a_flood_of_questions_is_answered_within_bounds() {
    let (wire, other) = Wire::pair();
    let mut port = Ether::new(wire, own("10.0.0.1:4000", None)).unwrap();
    let asker = headers("10.0.0.2:1", OTHER_MAC, None);
    let question = discovery::ask(&asker, "10.0.0.1".parse().unwrap()).unwrap();
    for _ in 0..1000 {
        other.said.lock().unwrap().push_back(question.as_bytes().to_vec());
    }
    receive(&mut port);
    assert_eq!(port.shorts.len(), 0);
    assert_eq!(other.heard.lock().unwrap().len(), SHORTS);
    assert_eq!(port.counters().rx_dropped, 1000 - SHORTS as u64);
}

#[test]
fn what_cannot_be_is_said() {
    let make = |options| Ether::new(Wire::pair().0, options).map(|_| ()).unwrap_err().to_string();
    assert!(make(own("0.0.0.0:4000", None)).starts_with("0.0.0.0:4000 cannot be the address"));
    assert!(make(own("10.0.0.1:0", None)).contains("10.0.0.1:0"));
    assert!(make(EtherOptions { vlan: Some(4095), ..own("10.0.0.1:1", None) }).starts_with("VLAN 4095"));
    assert!(make(own("10.0.0.1:1", Some("10.0.1.1"))).contains("gateway"));
    let long = Neighbourhood::Own { prefix_bits: 33, gateway: None };
    assert!(make(EtherOptions { neighbourhood: long, ..own("10.0.0.1:1", None) }).contains("33 bits"));
}
