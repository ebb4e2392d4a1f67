//! What the packet fabric costs per packet on this machine, without any protocol or port: frames made, frames opened, and a datagram
//! through the simulated network.
//!
//! `cargo run --release -p velo-fabric --example packets`

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use velo_fabric::packet::limits::DATA_OVERHEAD_BYTES;
use velo_fabric::packet::port::sim::{Link, Network};
use velo_fabric::packet::port::{Departure, Ecn};
use velo_fabric::packet::protocol::Timestamp;
use velo_fabric::packet::protocol::frame::{Credit, Data, Message};
use velo_fabric::packet::protocol::seal::{Cipher, Frame, PathKeys, PathName, PathSecret, Protection, Role};

/// Frames at a time: they stay in the second cache.
const BATCH: usize = 64;

fn main() {
    let protections = [
        ("trusted", Protection::Trusted),
        ("aes-128-gcm", Protection::Sealed(Cipher::Aes128Gcm)),
        ("chacha20-poly1305", Protection::Sealed(Cipher::ChaCha20Poly1305)),
    ];
    println!(
        "{:<18} {:>9} {:>14} {:>14} {:>10}",
        "protection", "datagram", "make ns", "open ns", "GB/s each"
    );
    for (name, protection) in protections {
        for datagram in [1_472, 8_972, 65_487] {
            data(name, protection, datagram);
        }
        control(name, protection);
    }
    network();
}

fn pair(protection: Protection) -> (PathKeys, PathKeys) {
    let name = PathName { fabric: "udp", dialler: 1, accepter: 2 };
    let keys = |role| PathKeys::derive(&PathSecret([1; 32]), &name, role, protection);
    (keys(Role::Dialler), keys(Role::Accepter))
}

fn data(name: &str, protection: Protection, datagram: usize) {
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
    let each = |ns: u128| ns as f64 / BATCH as f64;
    let rate = |ns: u128| payload.len() as f64 / each(ns);
    println!(
        "{name:<18} {datagram:>9} {:>14.0} {:>14.0} {:>5.1}/{:.1}",
        each(make),
        each(open),
        rate(make),
        rate(open)
    );
}

fn control(name: &str, protection: Protection) {
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
    let each = |ns: u128| ns as f64 / BATCH as f64;
    println!("{name:<18} {:>9} {:>14.0} {:>14.0}", "credit", each(make), each(open));
}

/// Thousands of datagrams under way, none written and none read.
fn network() {
    const COUNT: u64 = 1_000_000;
    let address = |host| SocketAddr::from(([10, 0, 0, host], 1));
    let mut network = Network::new(1, 1_472);
    let links: Vec<_> = (0..2)
        .map(|_| network.add_link(Link { loss: 0.01, ..Link::new(1_250_000_000, 10_000_000) }))
        .collect();
    let from = network.add_host(address(1), links[0], links[1]);
    network.add_host(address(2), links[0], links[1]);
    let start = Instant::now();
    let mut arrived = 0u64;
    for _ in 0..COUNT {
        let now = network.room_at(from).max(network.now());
        while network.poll(now).is_some() {
            arrived += 1;
        }
        network.send(now, from, |_| {
            Some(Departure { to: address(2), len: 1_472, ecn: Ecn::NotCapable, probe: false })
        });
    }
    let most = network.in_flight();
    while network.poll(Timestamp(u64::MAX)).is_some() {
        arrived += 1;
    }
    let each = start.elapsed().as_nanos() as f64 / COUNT as f64;
    println!("simulated network: {each:.0} ns a datagram; {arrived} of {COUNT} arrived, {most} under way");
}
