//! What the protocol itself costs: two endpoints back to back in memory, on one core, with no port between them, beside the copies and
//! checksums that it cannot do without.

use std::time::Instant;

use velo_fabric::packet::port::{Arrival, Ecn};
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{Endpoint, EndpointOptions, Event, NewPath, Timestamp};
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::supply::{Answer, Loaded, LoadedBytes};
use velo_fabric::{Bytes, Completion, Read, What};
use velo_object::{BlobId, NodeId};

use super::{median, median_ratio, packets};
use crate::report::{Bars, Report};

const BURST: usize = 32;
const READS: usize = 32;

struct Pair {
    endpoints: [Endpoint; 2],
    frames: Vec<Vec<u8>>,
    pool: Pool,
    sources: Vec<Bytes>,
    begun: Instant,
    bytes: u64,
    packets: u64,
    outstanding: usize,
    next: u64,
}

impl Pair {
    fn new(datagram: usize, lossless: bool, protection: Protection) -> Self {
        let options =
            EndpointOptions { datagram_max_bytes: datagram, lossless, ..EndpointOptions::default() };
        let mut endpoints = [0, 1].map(|seed| Endpoint::new(EndpointOptions { seed, ..options }));
        let name = PathName { fabric: "memory", dialler: 0x100, accepter: 0x200 };
        for (index, role) in [Role::Dialler, Role::Accepter].into_iter().enumerate() {
            let path = NewPath {
                id: 1,
                peer: NodeId::from_bytes([index as u8; 32]),
                remote: ([127, 0, 0, 1], 1 + index as u16).into(),
                keys: PathKeys::derive(&PathSecret([3; 32]), &name, role, protection),
                datagram_max_bytes: datagram,
            };
            endpoints[index].add_path(Timestamp(0), path).expect("the first path");
        }
        // As many as do not fit into the caches: what is sent is cold.
        let sources = (0..64u8).map(|fill| vec![fill; BUFFER_BYTES].into()).collect();
        let frames = vec![vec![0; datagram]; BURST];
        let pool = Pool::new(128 << 20).expect("memory");
        let begun = Instant::now();
        Self { endpoints, frames, pool, sources, begun, bytes: 0, packets: 0, outstanding: 0, next: 0 }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.begun.elapsed().as_nanos() as u64 + 1)
    }

    fn turn(&mut self) {
        for from in 0..2 {
            let now = self.now();
            let mut lens = [0; BURST];
            let mut count = 0;
            while count < BURST
                && let Some(departure) = self.endpoints[from].poll_transmit(now, &mut self.frames[count])
            {
                lens[count] = departure.len;
                count += 1;
            }
            self.packets += count as u64;
            let source = ([127, 0, 0, 1], 2 - from as u16).into();
            for (frame, len) in self.frames.iter_mut().zip(lens).take(count) {
                let arrival = Arrival { from: source, datagram: &mut frame[..len], ecn: Ecn::Capable };
                self.endpoints[1 - from].handle_datagram(now, arrival);
            }
            if self.endpoints[from].poll_timeout().is_some_and(|at| at <= now) {
                self.endpoints[from].handle_timeout(now);
            }
            while let Some(event) = self.endpoints[1 - from].poll_event() {
                self.event(1 - from, event);
            }
        }
        while self.outstanding < READS {
            let buffer = self.pool.take().expect("more buffers than reads");
            let (tag, blob) = (self.next, BlobId::from_bytes([0; 32]));
            self.next += 1;
            self.outstanding += 1;
            let read = Read {
                tag,
                blob,
                what: What::Blob,
                offset_bytes: tag << 20,
                len: BUFFER_BYTES as u32,
                buffer,
            };
            assert!(self.endpoints[0].post_read(self.now(), 1, read).is_ok());
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        match event {
            Event::Ask(ask) => {
                let bytes = self.sources[(ask.offset_bytes >> 20) as usize % self.sources.len()].clone();
                let loaded = Loaded { bytes: LoadedBytes::Shared(bytes), len: ask.len, lease: Box::new(()) };
                let now = self.now();
                self.endpoints[index].answer(now, Answer { id: ask.id, result: Ok(loaded) });
            }
            Event::Completion(Completion::Read { result, .. }) => {
                self.bytes += u64::from(result.expect("nothing fails in memory"));
                self.outstanding -= 1;
            }
            Event::Completion(Completion::PathClosed { error, .. }) => panic!("{error}"),
            _ => {}
        }
    }
}

/// The same bytes through the same frames, with checksums, and nothing else: bytes per second.
fn copies(segment: usize, seconds: f64) -> f64 {
    let sources: Vec<Vec<u8>> = (0..64u8).map(|fill| vec![fill; BUFFER_BYTES]).collect();
    let mut targets = vec![vec![0u8; BUFFER_BYTES]; 64];
    let mut frames = vec![vec![0u8; segment]; BURST];
    let (begun, mut bytes, mut turn) = (Instant::now(), 0u64, 0);
    while begun.elapsed().as_secs_f64() < seconds {
        let (source, target) = (&sources[turn % 64], &mut targets[turn % 64]);
        turn += 1;
        for (from, to) in source.chunks_exact(segment * BURST).zip(target.chunks_exact_mut(segment * BURST)) {
            let mut sums = [0; BURST];
            for ((frame, piece), sum) in frames.iter_mut().zip(from.chunks_exact(segment)).zip(&mut sums) {
                *sum = velo_simd::copy_crc32c(frame, piece);
            }
            for ((frame, piece), sum) in frames.iter().zip(to.chunks_exact_mut(segment)).zip(sums) {
                assert_eq!(velo_simd::copy_crc32c(piece, frame), sum);
            }
            bytes += from.len() as u64;
        }
        if segment * BURST > BUFFER_BYTES {
            let frame = &mut frames[0];
            for (from, to) in source.chunks_exact(segment).zip(target.chunks_exact_mut(segment)) {
                let sum = velo_simd::copy_crc32c(frame, from);
                assert_eq!(velo_simd::copy_crc32c(to, frame), sum);
                bytes += segment as u64;
            }
        }
    }
    bytes as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes per second from one endpoint to the other.
fn rate(datagram: usize, lossless: bool, protection: Protection, seconds: f64) -> f64 {
    let mut pair = Pair::new(datagram, lossless, protection);
    while pair.bytes < 64 << 20 {
        pair.turn();
    }
    let (bytes, begun) = (pair.bytes, Instant::now());
    while begun.elapsed().as_secs_f64() < seconds {
        for _ in 0..64 {
            pair.turn();
        }
    }
    (pair.bytes - bytes) as f64 / begun.elapsed().as_secs_f64()
}

/// For each size of datagrams, over ports that lose nothing and others.
pub(super) fn rows(report: &mut Report, rounds: usize, quick: bool) {
    const KINDS: [(&str, bool, Protection); 3] = [
        ("lossless, trusted", true, Protection::Trusted),
        ("trusted", false, Protection::Trusted),
        ("sealed", false, packets::SEALED),
    ];
    let seconds = if quick { 0.2 } else { 1.0 };
    for datagram in [1_472, 8_972, 65_487] {
        let name = |kind: &str| format!("two endpoints on one core, datagrams of {datagram}, {kind}");
        if !KINDS.iter().any(|(kind, ..)| report.wants(&name(kind))) {
            continue;
        }
        let segment = (datagram - 56) & !63;
        let mut bound = Vec::new();
        let mut rates: [Vec<f64>; KINDS.len()] = Default::default();
        for _ in 0..rounds {
            bound.push(copies(segment, seconds) * 8e-9);
            for ((_, lossless, protection), rates) in KINDS.into_iter().zip(&mut rates) {
                rates.push(rate(datagram, lossless, protection, seconds) * 8e-9);
            }
        }
        for ((kind, ..), rates) in KINDS.into_iter().zip(rates) {
            let against = format!("its copies and checksums alone, {:.1} Gbit/s", median(bound.clone()));
            let ratio = median_ratio(&rates, &bound);
            let none = Bars { floor: None, goal: None };
            report.ratio(&name(kind), (median(rates), "Gbit/s"), against, ratio, none);
        }
    }
}
