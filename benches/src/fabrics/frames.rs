//! What frames cost on this machine, in the second cache and without any port: made and opened; and a datagram through the simulated
//! network.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use velo_fabric::packet::limits::DATA_OVERHEAD_BYTES;
use velo_fabric::packet::port::sim::{Link, Network};
use velo_fabric::packet::port::{Departure, Ecn};
use velo_fabric::packet::protocol::Timestamp;
use velo_fabric::packet::protocol::frame::{Credit, Data, Message};
use velo_fabric::packet::protocol::seal::{Cipher, Frame, PathKeys, PathName, PathSecret, Protection, Role};

use crate::report::Report;

/// Frames at a time: they stay in the second cache.
const BATCH: usize = 64;

/// Each kind of protection, data of each size, and a credit.
pub(super) fn rows(report: &mut Report) {
    let protections = [
        ("trusted", Protection::Trusted),
        ("AES-128-GCM", Protection::Sealed(Cipher::Aes128Gcm)),
        ("ChaCha20-Poly1305", Protection::Sealed(Cipher::ChaCha20Poly1305)),
    ];
    for (name, protection) in protections {
        for datagram in [1_472, 8_972, 65_487] {
            let row = |what| format!("a data frame of {datagram}, {name}, {what}");
            if report.wants(&row("made")) || report.wants(&row("opened")) {
                let (make, open) = data(protection, datagram);
                report.stated(&row("made"), make, "ns");
                report.stated(&row("opened"), open, "ns");
            }
        }
        let row = |what| format!("a frame with a credit, {name}, {what}");
        if report.wants(&row("made")) || report.wants(&row("opened")) {
            let (make, open) = control(protection);
            report.stated(&row("made"), make, "ns");
            report.stated(&row("opened"), open, "ns");
        }
    }
    const NETWORK: &str = "a datagram through the simulated network";
    if report.wants(NETWORK) {
        report.stated(NETWORK, network(), "ns");
    }
}

fn pair(protection: Protection) -> (PathKeys, PathKeys) {
    let name = PathName { fabric: "udp", dialler: 1, accepter: 2 };
    let keys = |role| PathKeys::derive(&PathSecret([1; 32]), &name, role, protection);
    (keys(Role::Dialler), keys(Role::Accepter))
}

/// Nanoseconds for making one and for opening one.
fn data(protection: Protection, datagram: usize) -> (f64, f64) {
    let (mut from, mut to) = pair(protection);
    let payload = vec![7u8; datagram - DATA_OVERHEAD_BYTES];
    let mut frames = vec![vec![0u8; datagram]; BATCH];
    let mut destination = vec![0u8; payload.len()];
    let fields = Data { slot: 1, segment: 2, read: 3, len: 1 << 20, credit: 5, echo: 6, held: 7 };
    let (mut make, mut open) = (u128::MAX, u128::MAX);
    // The best of many: what else runs on the machine is not what is asked about.
    for _ in 0..(1 << 23) / datagram {
        let start = Instant::now();
        for frame in &mut frames {
            assert!(from.sealer.data(black_box(frame), &fields, black_box(&payload)).is_some());
        }
        make = make.min(start.elapsed().as_nanos());
        let start = Instant::now();
        for frame in &mut frames {
            let opened = to.opener.open(black_box(frame)).expect("just made");
            let Frame::Data(_, bytes) = opened.frame else { unreachable!("data were made") };
            bytes.copy_to(black_box(&mut destination)).expect("just made");
        }
        open = open.min(start.elapsed().as_nanos());
    }
    (make as f64 / BATCH as f64, open as f64 / BATCH as f64)
}

/// The same.
fn control(protection: Protection) -> (f64, f64) {
    let (mut from, mut to) = pair(protection);
    let mut frames = vec![vec![0u8; 200]; BATCH];
    let credit = Message::Credit(Credit { slot: 1, read: 2, number: 3, stamp: 4, first: 5, mask: 6 });
    let (mut make, mut open) = (u128::MAX, u128::MAX);
    for _ in 0..2_000 {
        let start = Instant::now();
        let mut len = 0;
        for frame in &mut frames {
            len =
                from.sealer.control(frame, |body| assert!(body.push(black_box(&credit)))).unwrap_or_default();
        }
        make = make.min(start.elapsed().as_nanos());
        let start = Instant::now();
        for frame in &mut frames {
            let opened = to.opener.open(&mut frame[..len]).expect("just made");
            let Frame::Control(messages) = opened.frame else { unreachable!("messages were made") };
            black_box(messages.fold(0, |len, message| len + black_box(message).len_bytes()));
        }
        open = open.min(start.elapsed().as_nanos());
    }
    (make as f64 / BATCH as f64, open as f64 / BATCH as f64)
}

/// Nanoseconds for each of thousands of datagrams under way, none written and none read.
fn network() -> f64 {
    const COUNT: u64 = 1_000_000;
    let address = |host| SocketAddr::from(([10, 0, 0, host], 1));
    let mut network = Network::new(1, 1_472);
    let links: Vec<_> = (0..2)
        .map(|_| network.add_link(Link { loss: 0.01, ..Link::new(1_250_000_000, 10_000_000) }))
        .collect();
    let from = network.add_host(address(1), links[0], links[1]);
    network.add_host(address(2), links[0], links[1]);
    let start = Instant::now();
    for _ in 0..COUNT {
        let now = network.room_at(from).max(network.now());
        while network.poll(now).is_some() {}
        network.send(now, from, |_| {
            Some(Departure { to: address(2), len: 1_472, ecn: Ecn::NotCapable, probe: false })
        });
    }
    while network.poll(Timestamp(u64::MAX)).is_some() {}
    start.elapsed().as_nanos() as f64 / COUNT as f64
}
