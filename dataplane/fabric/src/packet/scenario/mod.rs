//! The protocol in the simulated network: hosts with an endpoint each, transfers between them, and what came of it. For the acceptance
//! tests and the benchmark, which measure the same things.

mod draw;
mod hostile;
mod measured;
mod reno;
mod world;

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use velo_object::BlobId;

use super::limits;
use super::protocol::EndpointCounters;
use super::protocol::seal::{Cipher, Protection};
use crate::pool::BUFFER_BYTES;

pub use super::port::sim::{Link, Reordering};
pub use draw::LOSSES;
pub use hostile::hostile;
pub use measured::{INCAST_RATE, SETTINGS, Setting, TwoFlows, beside_tcp, incast};
pub use reno::{RenoFlow, RenoOutcome};
pub use world::World;

/// What a piece contains, by its number: a few kinds, so that a piece in the wrong place is noticed.
pub(crate) fn piece(number: u64) -> &'static Bytes {
    static PIECES: OnceLock<Vec<Bytes>> = OnceLock::new();
    let pieces = PIECES.get_or_init(|| {
        let piece = |kind: u64| {
            let mut state = kind.wrapping_add(1);
            let words = (0..BUFFER_BYTES / 8).flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()
            });
            words.collect()
        };
        (0..5).map(piece).collect()
    });
    &pieces[(number % pieces.len() as u64) as usize]
}

/// The blob that all transfers read.
pub(crate) fn blob() -> BlobId {
    BlobId::from_bytes([7; 32])
}

/// A transfer from one or more senders to one receiver, each behind links of its own but the receiver's, which all share.
#[derive(Debug, Clone)]
pub struct Transfer {
    /// Everything follows from it.
    pub seed: u64,
    /// How many send.
    pub senders: usize,
    /// How many bytes each sends.
    pub bytes: u64,
    /// Reads that the receiver keeps outstanding for each sender.
    pub reads: usize,
    /// How many of the reads each sender has the bytes of at a time: the others wait until one has ended.
    pub buffers: usize,
    /// How long it takes to get them.
    pub load: Duration,
    /// The links of each sender, both ways.
    pub sender: Link,
    /// The receiver's link towards it.
    pub down: Link,
    /// The receiver's link from it.
    pub up: Link,
    /// The largest datagram that all ports carry.
    pub datagram_max_bytes: usize,
    /// Whether the receiver knows its line rate.
    pub paced: bool,
    /// How frames are protected.
    pub protection: Protection,
    /// The most bytes that a path may have granted.
    pub window_max_bytes: u64,
    /// How long nothing may arrive.
    pub stall_timeout: Duration,
    /// The queue that congestion control lets stand.
    pub queue_target: Duration,
    /// Virtual time after which it is given up.
    pub limit: Duration,
}

impl Transfer {
    /// `bytes` from one sender over a way of `rate_bytes_per_s` with a round trip of `rtt`, without faults.
    pub fn new(seed: u64, bytes: u64, rate_bytes_per_s: u64, rtt: Duration) -> Self {
        let one_way = rtt.as_nanos() as u64 / 4;
        let link = Link::new(rate_bytes_per_s, one_way);
        Self {
            seed,
            senders: 1,
            bytes,
            reads: limits::READS_PER_PATH,
            buffers: limits::READS_PER_PATH,
            load: Duration::ZERO,
            sender: link.clone(),
            down: link.clone(),
            up: link,
            datagram_max_bytes: 1_472,
            paced: false,
            protection: Protection::Trusted,
            window_max_bytes: limits::WINDOW_MAX_BYTES,
            stall_timeout: Duration::from_secs(5),
            queue_target: Duration::from_micros(100),
            limit: Duration::from_secs(3_600),
        }
    }

    /// With AES-128-GCM.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.protection = Protection::Sealed(Cipher::Aes128Gcm);
        self
    }

    /// Losing this share of all datagrams, in both directions.
    #[must_use]
    pub fn losing(mut self, loss: f64) -> Self {
        (self.down.loss, self.up.loss) = (loss, loss);
        self
    }

    /// Runs it.
    pub fn run(&self) -> Outcome {
        let mut world = World::new(self.seed, self.datagram_max_bytes);
        let down = world.network.add_link(self.down.clone());
        let up = world.network.add_link(self.up.clone());
        // The links count datagrams, a line what is around them, too.
        let datagram = self.datagram_max_bytes as u64;
        let around = limits::WIRE_OVERHEAD_BYTES - limits::DATA_OVERHEAD_BYTES as u64;
        let line_rate = self.down.rate_bytes_per_s / datagram * (datagram + around);
        let receiver = world.add_station(up, down, self, self.paced.then_some(line_rate));
        for _ in 0..self.senders {
            let (there, back) = (self.sender.clone(), self.sender.clone());
            let (there, back) = (world.network.add_link(there), world.network.add_link(back));
            let sender = world.add_station(there, back, self, None);
            world.connect(receiver, sender, self);
            world.fetch(receiver, sender, self.bytes, self.reads);
        }
        world.run(self.limit);
        world.outcome(receiver, down)
    }
}

/// What came of a transfer.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Whether all bytes are there, and right.
    pub complete: bool,
    /// How the first read or path that failed did so.
    pub error: Option<String>,
    /// What was wrong with the bytes or with a bound: always a bug.
    pub wrong: Option<String>,
    /// Bytes that came.
    pub bytes: u64,
    /// From the proof of the first path to the last byte.
    pub elapsed: Duration,
    /// Bytes per second of each sender, until it was done.
    pub rates: Vec<f64>,
    /// The receiver's counters.
    pub receiver: EndpointCounters,
    /// The senders' counters, added up.
    pub payload_bytes_sent: u64,
    /// The longest queue at the receiver's link.
    pub queue_max_bytes: u64,
    /// What that queue dropped.
    pub overflowed: u64,
    /// Datagrams that the network lost by lot.
    pub lost: u64,
}

impl Outcome {
    /// Bytes of content per second.
    pub fn goodput(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Jain's index of the senders' rates: 1 where all are equal, 1/n where one has all.
    pub fn jain(&self) -> f64 {
        jain(&self.rates)
    }
}

/// Jain's fairness index.
pub fn jain(rates: &[f64]) -> f64 {
    let (sum, squares) =
        rates.iter().fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
    if squares == 0.0 { 0.0 } else { sum * sum / (rates.len() as f64 * squares) }
}
