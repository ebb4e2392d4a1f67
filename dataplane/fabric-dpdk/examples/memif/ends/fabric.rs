//! The packet fabric between the two ends: from region to region, and how long a small read takes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::dpdk::DpdkPort;
use velo_fabric::packet::port::ether::{Ether, EtherOptions, Neighbourhood};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::packet::supply::Inline;
use velo_fabric::pool::{BUFFER_BYTES, Buffer, Pool};
use velo_fabric::{Completion, Fabric, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

use super::{Figure, REGION_BYTES, WARM_UP, Work, address};

const PIECES: u64 = (REGION_BYTES / BUFFER_BYTES) as u64;
const READS_AT_ONCE: u64 = 16;
const SMALL_BYTES: u32 = 64;
const BLOB: BlobId = BlobId::from_bytes([7; 32]);

struct Region(Vec<Arc<[u8]>>);

impl Serve for Region {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let piece = range.start / BUFFER_BYTES as u64 % PIECES;
        let bytes = self.0.get(piece as usize).ok_or(Refusal::NotHere)?;
        let len = (range.end - range.start) as u32;
        Ok(Served { content: ServedContent::Bytes(Arc::clone(bytes)), len, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

fn packet(port: DpdkPort, work: Work, supplies: bool) -> Packet<Ether<DpdkPort>> {
    let (local, remote) = if supplies { (address(1), address(2)) } else { (address(2), address(1)) };
    let neighbourhood = Neighbourhood::Own { prefix_bits: 24, gateway: None };
    let ether = Ether::new(port, EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false });
    let ether = ether.expect("an address and a prefix");
    let datagram_max_bytes = ether.caps().datagram_max_bytes;
    let piece = |index: u64| (0..BUFFER_BYTES).map(|at| (at as u64 * 31 + index) as u8).collect();
    let region = Region(if supplies { (0..PIECES).map(piece).collect() } else { Vec::new() });
    let options = EndpointOptions { seed: u64::from(supplies), ..EndpointOptions::default() };
    let mut packet =
        Packet::new(ether, Box::new(Inline::new(Arc::new(region))), options).expect("no descriptor");
    let protection = match work {
        Work::Sealed => Protection::Sealed(Cipher::Aes128Gcm),
        _ => Protection::Trusted,
    };
    let name = PathName { fabric: "dpdk", dialler: 1 << 8, accepter: 2 << 8 };
    let role = if supplies { Role::Accepter } else { Role::Dialler };
    let keys = PathKeys::derive(&PathSecret([5; 32]), &name, role, protection);
    let peer = NodeId::from_bytes([1; 32]);
    packet.add_path(NewPath { id: 1, peer, remote, keys, datagram_max_bytes }).expect("its first path");
    packet
}

/// Serves without end.
pub fn supply(port: DpdkPort, work: Work) -> Figure {
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

/// Reads pieces for so long.
pub fn take(port: DpdkPort, work: Work, time: Duration) -> Figure {
    let (mut packet, mut done) = (packet(port, work, false), Vec::new());
    prove(&mut packet, &mut done);
    let pool = Pool::new(REGION_BYTES as u64).expect("memory");
    // First in, first out: what is written to is cold.
    let mut buffers: VecDeque<Buffer> = std::iter::from_fn(|| pool.take()).collect();
    buffers.iter_mut().for_each(|buffer| buffer.as_mut().fill(1));
    let (mut next, mut outstanding) = (0, 0);
    let mut figure = Figure::default();
    let (mut began, mut warm) = (Instant::now(), false);
    loop {
        let now = Instant::now();
        while outstanding < READS_AT_ONCE {
            let buffer = buffers.pop_front().expect("more than there are reads");
            let (len, offset_bytes) = (BUFFER_BYTES as u32, next % PIECES * BUFFER_BYTES as u64);
            let read = Read { tag: next, blob: BLOB, what: What::Blob, offset_bytes, len, buffer };
            packet.post_read(1, read).expect("not more than a path takes");
            (next, outstanding) = (next + 1, outstanding + 1);
        }
        packet.poll(now, &mut done);
        for completion in done.drain(..) {
            let Completion::Read { mut buffer, result, .. } = completion else { panic!("{completion:?}") };
            figure.bytes += u64::from(result.expect("a piece"));
            figure.count += 1;
            outstanding -= 1;
            buffer.set_len(BUFFER_BYTES);
            buffers.push_back(buffer);
        }
        if !warm && now - began > WARM_UP {
            (began, warm, figure) = (now, true, Figure::default());
        } else if warm && now - began > time {
            figure.seconds = (now - began).as_secs_f64();
            if std::env::var_os("VELO_MEMIF_COUNTERS").is_some() {
                eprintln!(
                    "{:?} {:?}\n{:?}",
                    packet.endpoint_counters(),
                    packet.path_info(1),
                    packet.port_counters()
                );
            }
            return figure;
        }
    }
}

/// Reads 64 bytes again and again for so long.
pub fn latency(port: DpdkPort, time: Duration) -> Figure {
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
        let read = Read { tag, blob: BLOB, what, offset_bytes: 0, len: SMALL_BYTES, buffer: buffer_now };
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
