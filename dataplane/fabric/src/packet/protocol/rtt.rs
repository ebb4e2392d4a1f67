//! How long things take on a path: the round trip through the network, its shortest of late, and the time in which the supplier responds.

use crate::packet::limits::PROBE_FIRST_NS;

/// For how long the shortest round trip counts, at least; at most twice as long.
const SHORTEST_NS: u64 = 5_000_000_000;

/// Estimates of one path, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    smoothed: u64,
    /// The shortest since `since`, and in the span before.
    shortest: [u64; 2],
    since: u64,
    /// The longest time from a grant to its data in this round and the last.
    response: [u64; 2],
    /// A tail timer waits at least this much longer.
    slack: u64,
}

impl RoundTrip {
    pub(super) fn new(slack_ns: u64) -> Self {
        Self { smoothed: 0, shortest: [u64::MAX; 2], since: 0, response: [0; 2], slack: slack_ns }
    }

    /// The network took `rtt` for both ways, and all took `response`.
    pub(super) fn sample(&mut self, now: u64, rtt: u64, response: u64) {
        self.smoothed = if self.smoothed == 0 { rtt } else { self.smoothed - self.smoothed / 8 + rtt / 8 };
        if now.saturating_sub(self.since) > SHORTEST_NS {
            self.shortest = [u64::MAX, self.shortest[0]];
            self.since = now;
        }
        self.shortest[0] = self.shortest[0].min(rtt);
        self.response[0] = self.response[0].max(response);
    }

    /// A round is over.
    pub(super) fn end_round(&mut self) {
        self.response = [0, self.response[0]];
    }

    /// The path has moved: what was is no measure.
    pub(super) fn restart(&mut self) {
        *self = Self::new(self.slack);
    }

    /// Whether there was any sample.
    pub(super) fn is_known(&self) -> bool {
        self.smoothed != 0
    }

    pub(super) fn smoothed(&self) -> u64 {
        self.smoothed
    }

    /// The shortest of late; 0 where nothing is known.
    pub(super) fn shortest(&self) -> u64 {
        let shortest = self.shortest[0].min(self.shortest[1]);
        if shortest == u64::MAX { 0 } else { shortest }
    }

    /// After how long without any sign what was granted is taken for lost.
    pub(super) fn tail_timeout(&self) -> u64 {
        if !self.is_known() {
            return PROBE_FIRST_NS;
        }
        let response = self.response[0].max(self.response[1]).max(self.smoothed);
        response + response / 8 + self.slack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_is_forgotten_in_time() {
        let mut rtt = RoundTrip::new(1_000);
        assert!(!rtt.is_known());
        rtt.sample(0, 50, 50);
        rtt.sample(SHORTEST_NS, 90, 100);
        assert_eq!(rtt.shortest(), 50);
        rtt.sample(SHORTEST_NS + 2, 90, 100);
        assert_eq!(rtt.shortest(), 50);
        rtt.sample(2 * SHORTEST_NS + 4, 90, 100);
        assert_eq!(rtt.shortest(), 90);
    }

    #[test]
    fn the_tail_waits_for_the_slowest_response_of_two_rounds() {
        let mut rtt = RoundTrip::new(1_000);
        rtt.sample(0, 80, 8_000);
        rtt.end_round();
        rtt.sample(0, 80, 80);
        assert_eq!(rtt.tail_timeout(), 10_000);
        rtt.end_round();
        assert_eq!(rtt.tail_timeout(), 1_090);
    }
}
