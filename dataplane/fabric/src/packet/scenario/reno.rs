//! A flow of TCP's kind, to share a link with: Reno's window (RFC 5681) with fast retransmission, acknowledgement of every segment by
//! its number, and a retransmission timer.

use std::collections::BTreeSet;

use crate::packet::port::sim::{Host, Network};
use crate::packet::port::{Departure, Ecn};
use crate::packet::protocol::Timestamp;

/// Payload of a segment, and what TCP and its peer's acknowledgements have around it.
const SEGMENT_BYTES: usize = 1_448;
const HEADER_BYTES: usize = 24;
const ACK_BYTES: usize = 64;

/// How a flow begins.
#[derive(Debug, Clone, Copy)]
pub struct RenoFlow {
    /// When, in nanoseconds.
    pub start_ns: u64,
    /// The most segments on their way, as the receiver's window would have it.
    pub window_max: f64,
}

/// What a flow has moved.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenoOutcome {
    /// Bytes that were acknowledged.
    pub bytes: u64,
    /// Bytes per second since its start.
    pub rate: f64,
    /// How often it found a loss.
    pub losses: u64,
}

pub(super) struct Reno {
    sender: Host,
    receiver: Host,
    flow: RenoFlow,
    window: f64,
    threshold: f64,
    next: u64,
    /// Sent and not acknowledged, and those of them to be sent again.
    outstanding: BTreeSet<u64>,
    again: BTreeSet<u64>,
    acknowledged: u64,
    /// No second reduction before this segment is acknowledged.
    recover: u64,
    losses: u64,
    rtt_ns: u64,
    timer: u64,
}

impl Reno {
    pub(super) fn new(sender: Host, receiver: Host, flow: RenoFlow) -> Self {
        Self {
            sender,
            receiver,
            flow,
            window: 10.0,
            threshold: f64::MAX,
            next: 0,
            outstanding: BTreeSet::new(),
            again: BTreeSet::new(),
            acknowledged: 0,
            recover: 0,
            losses: 0,
            rtt_ns: 100_000_000,
            timer: flow.start_ns,
        }
    }

    pub(super) fn wake(&self) -> u64 {
        self.timer
    }

    pub(super) fn outcome(&self, now: u64) -> RenoOutcome {
        let bytes = self.acknowledged * SEGMENT_BYTES as u64;
        let elapsed = now.saturating_sub(self.flow.start_ns).max(1);
        RenoOutcome { bytes, rate: bytes as f64 * 1e9 / elapsed as f64, losses: self.losses }
    }

    /// The timer has come.
    pub(super) fn turn(&mut self, now: u64, network: &mut Network) {
        if now < self.timer {
            return;
        }
        if !self.outstanding.is_empty() {
            self.losses += 1;
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = 2.0;
            self.again.append(&mut self.outstanding);
            self.recover = self.next;
        }
        self.send(now, network);
    }

    pub(super) fn arrived(&mut self, now: u64, to: Host, bytes: &[u8], network: &mut Network) {
        let word = |at: usize| {
            bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let (number, stamp) = (word(0), word(8));
        if to == self.receiver {
            let back = network.address(self.sender);
            network.send(Timestamp(now), self.receiver, |space| {
                space[..HEADER_BYTES].copy_from_slice(&bytes[..HEADER_BYTES]);
                Some(Departure { to: back, len: ACK_BYTES, ecn: Ecn::NotCapable, probe: false })
            });
        } else if to == self.sender {
            self.again.remove(&number);
            if !self.outstanding.remove(&number) {
                return;
            }
            self.acknowledged += 1;
            self.rtt_ns = (self.rtt_ns * 7 + (now - stamp)) / 8;
            if self.window < self.threshold {
                self.window += 1.0;
            } else {
                self.window += 1.0 / self.window;
            }
            self.window = self.window.min(self.flow.window_max);
            // Lost is what three later ones have passed.
            let passed: Vec<u64> = self.outstanding.range(..number.saturating_sub(3)).copied().collect();
            if !passed.is_empty() {
                if passed.iter().any(|lost| *lost >= self.recover) {
                    self.losses += 1;
                    self.window = (self.window / 2.0).max(2.0);
                    self.threshold = self.window;
                    self.recover = self.next;
                }
                for lost in passed {
                    self.outstanding.remove(&lost);
                    self.again.insert(lost);
                }
            }
            self.send(now, network);
        }
    }

    fn send(&mut self, now: u64, network: &mut Network) {
        let to = network.address(self.receiver);
        while (self.outstanding.len() as f64) < self.window.floor() {
            // A segment that is sent again has a new number, as with selective acknowledgement: none is waited for behind a gap.
            self.again.pop_first();
            let number = self.next;
            self.next += 1;
            self.outstanding.insert(number);
            network.send(Timestamp(now), self.sender, |space| {
                space[..8].copy_from_slice(&number.to_le_bytes());
                space[8..16].copy_from_slice(&now.to_le_bytes());
                Some(Departure { to, len: SEGMENT_BYTES + HEADER_BYTES, ecn: Ecn::NotCapable, probe: false })
            });
        }
        self.timer = now + (2 * self.rtt_ns).max(200_000_000);
    }
}
