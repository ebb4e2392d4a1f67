//! One source: what it delivers, how much may be asked of it at once, and which blobs it may have something for.

use std::collections::BTreeSet;

use velo_object::{NodeId, PIECE_BYTES};

use crate::action::{Limits, SourceInfo};

/// Reads asked of a source that has delivered nothing yet: few, because the other pullers may not be known yet.
const FIRST_WINDOW_BYTES: u64 = 2 * PIECE_BYTES;
/// The shortest time over which a rate is taken.
const METER_US: u64 = 20_000;
const BACKOFF_US: u64 = 100_000;

#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) node: NodeId,
    pub(crate) key: u64,
    pub(crate) info: SourceInfo,
    /// (order, slot) of blobs that it may have something for. What is not here is not looked at.
    pub(crate) ready: BTreeSet<(u64, u32)>,
    pub(crate) reads: u32,
    pub(crate) bytes: u64,
    pub(crate) delivered: u64,
    pub(crate) rate: u64,
    /// The shortest time that a read has taken, and the smoothed one.
    pub(crate) shortest_us: u64,
    pub(crate) latency_us: u64,
    /// The last delivery, or when it got a read after having none.
    pub(crate) last_delivery_us: u64,
    /// When its last read ended; `u64::MAX` while it has any.
    pub(crate) idle_since_us: u64,
    /// When it last announced something new, and whether that is recent enough to count on it as a puller.
    pub(crate) last_news_us: u64,
    pub(crate) active: bool,
    pub(crate) backoff_until_us: u64,
    backoff_level: u32,
    pub(crate) burst: u32,
    pub(crate) accusations: u32,
    /// Heap words of the maps kept for it.
    pub(crate) map_words: usize,
    meter_start_us: u64,
    meter_bytes: u64,
    window_filled: bool,
}

impl Source {
    pub(crate) fn new(now: u64, node: NodeId, info: SourceInfo) -> Self {
        Self {
            node,
            key: crate::rendezvous::node_key(&node),
            info,
            ready: BTreeSet::new(),
            reads: 0,
            bytes: 0,
            delivered: 0,
            rate: 0,
            shortest_us: 0,
            latency_us: 0,
            last_delivery_us: now,
            idle_since_us: now,
            last_news_us: now,
            active: true,
            backoff_until_us: 0,
            backoff_level: 0,
            burst: 1,
            accusations: 0,
            map_words: 0,
            meter_start_us: now,
            meter_bytes: 0,
            window_filled: false,
        }
    }

    /// Whether it is in this zone.
    pub(crate) fn near(&self) -> bool {
        self.info.distance <= 1
    }

    pub(crate) fn usable(&self, now: u64) -> bool {
        now >= self.backoff_until_us
    }

    /// Bytes that may be outstanding: what it delivers in the pipeline's time and two of its shortest round trips, so that
    /// the window grows until the rate does not.
    fn window_bytes(&self, limits: &Limits) -> u64 {
        if self.rate == 0 {
            return FIRST_WINDOW_BYTES;
        }
        let time_us = limits.pipeline_us + 2 * self.shortest_us;
        let bytes = u128::from(self.rate) * u128::from(time_us) / 1_000_000;
        (bytes as u64).max(FIRST_WINDOW_BYTES)
    }

    pub(crate) fn has_room(&self, limits: &Limits) -> bool {
        self.reads < limits.reads_per_source && (self.reads == 0 || self.bytes < self.window_bytes(limits))
    }

    pub(crate) fn begin(&mut self, now: u64, bytes: u64, limits: &Limits) {
        if self.reads == 0 {
            self.meter_start_us = now;
            self.meter_bytes = 0;
            self.window_filled = false;
            self.last_delivery_us = now;
            self.idle_since_us = u64::MAX;
        }
        self.reads += 1;
        self.bytes += bytes;
        self.window_filled |= !self.has_room(limits);
    }

    /// A read has ended, well or not.
    pub(crate) fn end(&mut self, now: u64, bytes: u64) {
        self.reads -= 1;
        self.bytes -= bytes;
        if self.reads == 0 {
            self.idle_since_us = now;
        }
    }

    /// Bytes have come. `began_us` is when they were asked for.
    pub(crate) fn deliver(&mut self, now: u64, began_us: u64, bytes: u64) {
        let took_us = now.saturating_sub(began_us).max(1);
        self.shortest_us = if self.shortest_us == 0 { took_us } else { self.shortest_us.min(took_us) };
        self.latency_us =
            if self.latency_us == 0 { took_us } else { self.latency_us - self.latency_us / 8 + took_us / 8 };
        self.last_delivery_us = now;
        self.delivered += bytes;
        self.backoff_level = 0;
        self.meter_bytes += bytes;
        let elapsed_us = now.saturating_sub(self.meter_start_us);
        if elapsed_us >= METER_US || self.rate == 0 {
            let sample = (u128::from(self.meter_bytes) * 1_000_000 / u128::from(elapsed_us.max(1))) as u64;
            // A source that was not asked for more than it could deliver says nothing about how slow it is.
            if self.rate == 0 {
                self.rate = sample.max(1);
            } else if sample > self.rate || self.window_filled {
                self.rate = (self.rate - self.rate / 4 + sample / 4).max(1);
            }
            self.meter_start_us = now;
            self.meter_bytes = 0;
            self.window_filled = false;
        }
    }

    /// Leaves it alone for a while, twice as long each time until it delivers again.
    pub(crate) fn back_off(&mut self, now: u64) {
        self.backoff_until_us = now + (BACKOFF_US << self.backoff_level);
        self.backoff_level = (self.backoff_level + 1).min(7);
        self.rate /= 2;
    }
}
