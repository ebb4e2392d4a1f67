//! One bucket of bytes for all paths of an endpoint: together they are granted no more than the line carries.

use crate::packet::limits::{LINE_SHARE_PERCENT, PACER_BURST_NS, WIRE_OVERHEAD_BYTES};

/// Fills at the line rate and empties with every grant.
#[derive(Debug)]
pub(super) struct Pacer {
    /// Bytes per second; 0 where nothing is paced.
    rate: u64,
    burst: i64,
    level: i64,
    filled_ns: u64,
}

impl Pacer {
    /// `rate` is that of the line; `least` is the largest single grant.
    pub(super) fn new(rate: Option<u64>, least: usize) -> Self {
        let rate = rate.map_or(0, |rate| (rate / 100).saturating_mul(LINE_SHARE_PERCENT).max(1));
        let burst = (u128::from(rate) * u128::from(PACER_BURST_NS) / 1_000_000_000) as i64;
        let burst = burst.max(2 * least as i64);
        Self { rate, burst, level: 0, filled_ns: 0 }
    }

    /// What a segment costs on the wire.
    pub(super) fn cost(payload: u64, segments: u64) -> u64 {
        payload + segments * WIRE_OVERHEAD_BYTES
    }

    pub(super) fn fill(&mut self, now: u64) {
        if self.rate == 0 || now <= self.filled_ns {
            return;
        }
        let elapsed = now - self.filled_ns;
        let added = u128::from(elapsed) * u128::from(self.rate) / 1_000_000_000;
        if added == 0 {
            return;
        }
        self.level = self.level.saturating_add(i64::try_from(added).unwrap_or(i64::MAX)).min(self.burst);
        // The part of a byte that is over stays for the next time.
        self.filled_ns += (added * 1_000_000_000 / u128::from(self.rate)) as u64;
    }

    /// Bytes that may be granted now.
    pub(super) fn available(&self) -> u64 {
        if self.rate == 0 { u64::MAX } else { self.level.max(0) as u64 }
    }

    /// Bytes that one path may grant before the others have their turn.
    pub(super) fn turn(&self) -> u64 {
        if self.rate == 0 { u64::MAX } else { self.burst as u64 / 2 }
    }

    pub(super) fn spend(&mut self, bytes: u64) {
        if self.rate != 0 {
            self.level -= bytes as i64;
        }
    }

    /// When half a burst may be granted again.
    pub(super) fn ready_at(&self) -> u64 {
        let missing = (self.burst / 2 - self.level).max(0) as u128;
        if self.rate == 0 {
            0
        } else {
            self.filled_ns + (missing * 1_000_000_000 / u128::from(self.rate)) as u64 + 1
        }
    }

    /// Whether half a burst may be granted.
    pub(super) fn is_ready(&self) -> bool {
        self.rate == 0 || self.level >= self.burst / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_granted_than_the_line_carries() {
        let rate = 1_250_000_000;
        let mut pacer = Pacer::new(Some(rate), 1_500);
        let (mut spent, mut now) = (0, pacer.ready_at());
        while now < 1_000_000_000 {
            pacer.fill(now);
            assert!(pacer.is_ready());
            let bytes = pacer.available().min(20_000);
            pacer.spend(bytes);
            spent += bytes;
            now = pacer.ready_at().max(now);
        }
        let most = rate / 100 * LINE_SHARE_PERCENT + pacer.burst as u64 + 20_000;
        assert!(spent <= most, "{spent} of {most}");
        assert!(spent >= rate / 100 * (LINE_SHARE_PERCENT - 1), "{spent}");
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut pacer = Pacer::new(None, 1_500);
        pacer.spend(1 << 40);
        assert_eq!((pacer.available(), pacer.is_ready(), pacer.ready_at()), (u64::MAX, true, 0));
    }
}
