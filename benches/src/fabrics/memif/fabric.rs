//! The packet fabric between the two ends: from region to region, and how long a small read takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port as _;
use velo_fabric::packet::port::dpdk::DpdkPort;
use velo_fabric::packet::port::ether::{Ether, EtherOptions, Neighbourhood};
use velo_fabric::packet::protocol::EndpointOptions;
use velo_fabric::packet::protocol::seal::{Protection, Role};
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::supply::Inline;
use velo_fabric::{Completion, Fabric as _, Read, What};

use super::super::packets::{PATH, SEALED, path};
use super::super::region::{REGION, Region, Target, read_all};
use super::{Figure, WARM_UP, Work, address};

const SMALL_BYTES: u32 = 64;

fn packet(port: DpdkPort, work: Work, supplies: bool) -> Packet<Ether<DpdkPort>> {
    let (local, remote) = if supplies { (address(1), address(2)) } else { (address(2), address(1)) };
    let neighbourhood = Neighbourhood::Own { prefix_bits: 24, gateway: None };
    let ether = Ether::new(port, EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false });
    let ether = ether.expect("an address and a prefix");
    let datagram_max_bytes = ether.caps().datagram_max_bytes;
    let region = Arc::new(Region::new());
    let options = EndpointOptions { seed: u64::from(supplies), ..EndpointOptions::default() };
    let mut packet = Packet::new(ether, Box::new(Inline::new(region)), options).expect("no descriptor");
    let protection = if work == Work::Sealed { SEALED } else { Protection::Trusted };
    let role = if supplies { Role::Accepter } else { Role::Dialler };
    packet.add_path(path(role, remote, protection, datagram_max_bytes)).expect("its first path");
    packet
}

/// Serves without end.
pub(super) fn supply(port: DpdkPort, work: Work) -> Figure {
    let (mut packet, mut done) = (packet(port, work, true), Vec::new());
    loop {
        packet.poll(Instant::now(), &mut done);
        done.clear();
    }
}

/// Polls until the path is proven.
fn prove(packet: &mut Packet<Ether<DpdkPort>>, done: &mut Vec<Completion>) {
    while !done.iter().any(|done| matches!(done, Completion::PathProven { .. })) {
        packet.poll(Instant::now(), done);
    }
    done.clear();
}

/// Reads pieces for about so long.
pub(super) fn take(port: DpdkPort, work: Work, time: Duration) -> Figure {
    let (mut packet, mut done) = (packet(port, work, false), Vec::new());
    prove(&mut packet, &mut done);
    let mut target = Target::new().expect("memory");
    let mut read = |bytes: u64| read_all(&mut packet, &[PATH], bytes, &mut target).expect("all pieces");
    // Fills caches and rings, and says how much so long is.
    let warm = 256 << 20;
    let rate = warm as f64 / read(warm);
    let bytes = (rate * time.as_secs_f64()) as u64 >> 20 << 20;
    let bytes = bytes.max(64 << 20);
    let seconds = read(bytes);
    Figure { bytes, count: bytes / BUFFER_BYTES as u64, seconds, ..Figure::default() }
}

/// Reads 64 bytes again and again for so long.
pub(super) fn latency(port: DpdkPort, time: Duration) -> Figure {
    let (mut packet, mut done) = (packet(port, Work::Latency, false), Vec::new());
    prove(&mut packet, &mut done);
    let pool = Pool::new(4 << 20).expect("memory");
    let mut buffer = pool.take();
    let mut taken_ns: Vec<u32> = Vec::with_capacity(4 << 20);
    let (began, mut figure) = (Instant::now(), Figure::default());
    let mut tag = 0;
    loop {
        let asked = Instant::now();
        let buffer_now = buffer.take().expect("it came back");
        let what = What::Blob;
        let read = Read { tag, blob: REGION, what, offset_bytes: 0, len: SMALL_BYTES, buffer: buffer_now };
        packet.post_read(1, read).expect("the only one");
        let mut now = asked;
        while done.is_empty() {
            packet.poll(now, &mut done);
            now = Instant::now();
        }
        let Some(Completion::Read { buffer: mut back, result, .. }) = done.pop() else { panic!("{done:?}") };
        assert_eq!(result, Ok(SMALL_BYTES));
        back.set_len(BUFFER_BYTES);
        buffer = Some(back);
        tag += 1;
        if now - began > WARM_UP {
            taken_ns.push((now - asked).as_nanos() as u32);
            figure.bytes += u64::from(SMALL_BYTES);
        }
        if now - began > WARM_UP + time || taken_ns.len() == taken_ns.capacity() {
            figure.seconds = (now - began - WARM_UP).as_secs_f64();
            figure.count = taken_ns.len() as u64;
            taken_ns.sort_unstable();
            figure.median_ns = f64::from(taken_ns[taken_ns.len() / 2]);
            figure.p99_ns = f64::from(taken_ns[taken_ns.len() * 99 / 100]);
            return figure;
        }
    }
}
