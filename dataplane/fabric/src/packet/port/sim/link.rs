//! One direction of a link: a queue that drains at a rate, a delay, and what may befall a datagram.

use std::collections::VecDeque;
use std::ops::Range;

use crate::packet::port::Ecn;
use crate::packet::port::draw::Draw;
use crate::packet::protocol::Timestamp;

/// How datagrams of a link overtake each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reordering {
    /// How many are held back, of all.
    pub probability: f64,
    /// For how many datagrams of their size at the link's rate, at most: that many may overtake one.
    pub frames: u32,
}

/// What a link does. Probabilities are from 0 to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Bytes of datagrams per second.
    pub rate_bytes_per_s: u64,
    /// How long the way is.
    pub delay_ns: u64,
    /// The most bytes that wait; what comes when they do is dropped.
    pub queue_bytes: u64,
    /// From how many waiting bytes on ECN-capable datagrams are marked.
    pub mark_bytes: Option<u64>,
    /// How many are lost.
    pub loss: f64,
    /// How many come twice.
    pub duplication: f64,
    /// How many are held back.
    pub reordering: Option<Reordering>,
    /// How many are damaged: one to three of their bits.
    pub corruption: f64,
    /// Longer datagrams are dropped.
    pub datagram_max_bytes: usize,
    /// While nothing comes through.
    pub blackout: Option<Range<Timestamp>>,
}

impl Link {
    /// A link without faults, with a queue that is full after a delay of its own: `delay_ns` and 100 µs at its rate.
    pub fn new(rate_bytes_per_s: u64, delay_ns: u64) -> Self {
        let queue_bytes = u128::from(rate_bytes_per_s) * u128::from(delay_ns + 100_000) / 1_000_000_000;
        Self {
            rate_bytes_per_s: rate_bytes_per_s.max(1),
            delay_ns,
            queue_bytes: (queue_bytes as u64).max(1 << 17),
            mark_bytes: None,
            loss: 0.0,
            duplication: 0.0,
            reordering: None,
            corruption: 0.0,
            datagram_max_bytes: usize::MAX,
            blackout: None,
        }
    }
}

/// What has happened on a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Datagrams that came through.
    pub passed: u64,
    /// Their bytes.
    pub passed_bytes: u64,
    /// Lost by lot.
    pub lost: u64,
    /// Dropped by a full queue.
    pub overflowed: u64,
    /// Dropped for their size.
    pub too_long: u64,
    /// Dropped in a blackout.
    pub blacked_out: u64,
    /// Come twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Marked by ECN.
    pub marked: u64,
    /// The most bytes that ever waited.
    pub queue_max_bytes: u64,
}

/// What becomes of a datagram.
pub(super) enum Fate {
    Dropped,
    Arrives { at: Timestamp, held_back: bool, corrupted: bool, again_at: Option<Timestamp> },
}

#[derive(Debug)]
pub(super) struct LinkState {
    pub(super) link: Link,
    pub(super) counters: LinkCounters,
    /// What is on it and has not been held back, in the order of arrival: when, the serial number of that event, and which packet.
    pub(super) on_it: VecDeque<(u64, u64, u32)>,
    /// When all that waits will have left, in picoseconds: a small frame takes less than a nanosecond at 400 Gbit/s.
    busy_until_ps: u64,
}

impl LinkState {
    pub(super) fn new(link: Link) -> Self {
        Self { link, counters: LinkCounters::default(), on_it: VecDeque::new(), busy_until_ps: 0 }
    }

    /// When `bytes` more do not overflow the queue.
    pub(super) fn room_at(&self, bytes: usize) -> Timestamp {
        let room_bytes = self.link.queue_bytes.saturating_sub(bytes as u64);
        let wait_ps = room_bytes as f64 * 1e12 / self.link.rate_bytes_per_s as f64;
        Timestamp(self.busy_until_ps.saturating_sub(wait_ps as u64).div_ceil(1_000))
    }

    pub(super) fn enter(&mut self, now: Timestamp, len: usize, ecn: &mut Ecn, draw: &mut Draw) -> Fate {
        let (link, counters) = (&self.link, &mut self.counters);
        if len > link.datagram_max_bytes {
            counters.too_long += 1;
            return Fate::Dropped;
        }
        if link.blackout.as_ref().is_some_and(|blackout| blackout.contains(&now)) {
            counters.blacked_out += 1;
            return Fate::Dropped;
        }
        let now_ps = now.0 * 1_000;
        let backlog_ps = self.busy_until_ps.saturating_sub(now_ps);
        let queued_bytes = (backlog_ps as f64 * link.rate_bytes_per_s as f64 / 1e12) as u64;
        if backlog_ps > 0 && queued_bytes + len as u64 > link.queue_bytes {
            counters.overflowed += 1;
            return Fate::Dropped;
        }
        counters.queue_max_bytes = counters.queue_max_bytes.max(queued_bytes + len as u64);
        if *ecn == Ecn::Capable && link.mark_bytes.is_some_and(|mark| queued_bytes >= mark) {
            *ecn = Ecn::Congested;
            counters.marked += 1;
        }
        // A datagram has less than 2^24 bytes: this does not overflow.
        let frame_ps = len as u64 * 1_000_000_000_000 / link.rate_bytes_per_s.max(1);
        self.busy_until_ps = self.busy_until_ps.max(now_ps) + frame_ps;
        // What is lost, is lost behind the queue: it has taken its time.
        if draw.happens(link.loss) {
            counters.lost += 1;
            return Fate::Dropped;
        }
        let mut held_back = false;
        let mut at_ps = self.busy_until_ps + link.delay_ns * 1_000;
        if let Some(Reordering { probability, frames }) = link.reordering
            && frames > 0
            && draw.happens(probability)
        {
            counters.reordered += 1;
            held_back = true;
            // Half a frame more, so that as many come before it.
            at_ps += (1 + draw.below(frames.into())) * frame_ps + frame_ps / 2;
        }
        let corrupted = draw.happens(link.corruption);
        counters.corrupted += u64::from(corrupted);
        let again_at = draw.happens(link.duplication).then(|| {
            counters.duplicated += 1;
            Timestamp((at_ps + draw.below(64) * frame_ps).div_ceil(1_000))
        });
        counters.passed += 1;
        counters.passed_bytes += len as u64;
        Fate::Arrives { at: Timestamp(at_ps.div_ceil(1_000)), held_back, corrupted, again_at }
    }
}
