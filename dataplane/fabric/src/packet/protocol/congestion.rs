//! How much a path may have on its way: a window that grows until a queue stands, marks come or more is lost than usual.
//!
//! It is steered once in a round, which is the time from a grant to its data. The queue is the shortest round trip of the round less the
//! shortest of late (bursts do not count, a standing queue does). As in Swift (Kumar et al., SIGCOMM 2020) the window is cut in
//! proportion to what the queue exceeds its target by, and the target is larger for smaller windows, which makes flows equal. Marks are
//! reacted to as in DCTCP (RFC 8257). Loss that is always there is no congestion; loss above that is.

use super::rtt::RoundTrip;

/// Rounds between two in which the window is a quarter, so that every flow sees the path empty now and then.
const DRAIN_ROUNDS: u32 = 64;
/// How many spans of [`LOSS_PACKETS`] the usual loss is the least of.
const LOSS_SPANS: usize = 8;
/// Packets over which loss is measured, at least.
const LOSS_PACKETS: u64 = 256;
/// A round of fewer packets is continued in the next.
const ROUND_PACKETS: u64 = 8;
/// From this round trip on grants are spread over it.
const PACED_RTT_NS: u64 = 1_000_000;
/// Fractions are in 1/1024.
const ONE: u64 = 1_024;

/// What the round has brought so far.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// The first grant of the next round.
    end: u32,
    started: u64,
    bytes: u64,
    packets: u64,
    marked: u64,
    shortest: u64,
    /// Whether the window held a grant back.
    limited: bool,
}

/// The window of one path.
#[derive(Debug)]
pub(super) struct Congestion {
    /// Windows do not change.
    fixed: bool,
    window: u64,
    most: u64,
    /// The size of segments: the window is never less than two.
    segment: u64,
    queue_target: u64,
    slow_start: bool,
    round: Round,
    /// Bytes per second of the last round.
    rate: u64,
    /// Share of marked packets, smoothed.
    marked: u64,
    lost_in_span: u64,
    packets_in_span: u64,
    /// Share of lost packets of the last spans.
    losses: [u64; LOSS_SPANS],
    spans: usize,
    /// Rounds since the last cut, and since the last drain.
    calm: u32,
    undrained: u32,
    /// The window from before a drain.
    draining: Option<u64>,
    cuts: u64,
}

impl Congestion {
    /// `first` is the window to begin with.
    pub(super) fn new(fixed: bool, first: u64, most: u64, queue_target_ns: u64) -> Self {
        Self {
            fixed,
            window: if fixed { most } else { first.min(most) },
            most,
            segment: 1,
            queue_target: queue_target_ns,
            slow_start: true,
            round: Round {
                end: 0,
                started: 0,
                bytes: 0,
                packets: 0,
                marked: 0,
                shortest: u64::MAX,
                limited: false,
            },
            rate: 0,
            marked: 0,
            lost_in_span: 0,
            packets_in_span: 0,
            losses: [0; LOSS_SPANS],
            spans: 0,
            calm: 0,
            undrained: 0,
            draining: None,
            cuts: 0,
        }
    }

    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The rate at which to grant: so that the window is spread over the round trip, and can still grow. In bytes per second; `None` where
    /// the round trip is too short to be worth a timer.
    pub(super) fn pace(&self, rtt: &RoundTrip) -> Option<u64> {
        if self.fixed || rtt.smoothed() < PACED_RTT_NS {
            return None;
        }
        let per_second = u128::from(self.window) * 1_000_000_000 / u128::from(rtt.smoothed());
        let per_second = per_second as u64;
        Some(if self.slow_start { per_second + per_second / 2 } else { per_second + per_second / 4 })
    }

    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// How often it was cut.
    pub(super) fn cuts(&self) -> u64 {
        self.cuts
    }

    pub(super) fn set_segment(&mut self, bytes: u64) {
        self.segment = bytes;
        self.window = self.window.max(2 * bytes);
    }

    /// The window held a grant back.
    pub(super) fn hold_back(&mut self) {
        self.round.limited = true;
    }

    /// The window opens to `bytes`, where it has not been steered yet.
    pub(super) fn open(&mut self, bytes: u64) {
        if self.slow_start && !self.fixed && self.rate == 0 {
            self.window = self.window.max(bytes).min(self.most);
        }
    }

    /// Data have arrived by the grant `credit`; the next grant will have number `next`. Returns whether that ended a round.
    #[expect(clippy::too_many_arguments, reason = "each is another fact of one packet")]
    pub(super) fn arrived(
        &mut self,
        now: u64,
        bytes: u64,
        rtt_ns: u64,
        credit: u32,
        next: u32,
        marked: bool,
        rtt: &RoundTrip,
    ) -> bool {
        // What comes is no measure of the way where the supplier, or what it sends through, is slower than the window is large.
        let used = self.rate == 0 || self.window <= 4 * self.carried(rtt.smoothed()).max(4 * self.segment);
        let round = &mut self.round;
        if self.rate == 0 && round.bytes == 0 {
            round.started = now.saturating_sub(rtt_ns);
        }
        round.bytes += bytes;
        round.packets += 1;
        round.marked += u64::from(marked);
        round.shortest = round.shortest.min(rtt_ns);
        let Round { packets, shortest, limited, .. } = *round;
        if self.slow_start && limited && !self.fixed {
            if packets >= ROUND_PACKETS && shortest > rtt.shortest() + self.target(rtt.shortest()) {
                self.leave_slow_start(shortest, rtt);
            } else if used {
                self.window = (self.window + bytes).min(self.most);
            }
        }
        if (credit.wrapping_sub(self.round.end) as i32) < 0 {
            return false;
        }
        // One packet that had to wait says nothing of the way.
        if self.round.packets < ROUND_PACKETS {
            self.round.end = next;
            return true;
        }
        self.end_round(now, next, rtt);
        true
    }

    /// A segment was lost on its way.
    pub(super) fn lost(&mut self, count: u64) {
        self.lost_in_span += count;
    }

    /// Nothing has come through for longer than the tail timer waits.
    pub(super) fn silence(&mut self) {
        if !self.fixed {
            self.window = (self.window / 2).max(16 * self.segment).min(self.window);
            self.cuts += 1;
        }
    }

    /// The path has moved: begins again from a small window.
    pub(super) fn restart(&mut self, first: u64) {
        let (segment, end) = (self.segment, self.round.end);
        *self = Self::new(self.fixed, first, self.most, self.queue_target);
        self.round.end = end;
        self.set_segment(segment);
    }

    /// The queue that may stand, for a window like this.
    fn target(&self, shortest: u64) -> u64 {
        // The square root of 10 Gbit/s / rate, between a half and sixteen; the rate is the window's over the shortest round trip.
        let rate = u128::from(self.window) * 1_000_000_000 / u128::from(shortest.max(1));
        let share = (1_250_000_000u128 * u128::from(ONE * ONE) / rate.max(1)).isqrt();
        let share = (share as u64).clamp(ONE / 2, 16 * ONE);
        // Four segments must fit, however slow the path is.
        let segments = (4 * self.segment * 1_000_000_000).checked_div(self.rate).unwrap_or(0);
        let target = self.queue_target * share / ONE;
        target.max(shortest / 64 * share / ONE).max(segments)
    }

    fn leave_slow_start(&mut self, shortest: u64, rtt: &RoundTrip) {
        self.slow_start = false;
        self.cuts += 1;
        self.calm = 0;
        // As much of what is on its way as takes the round trip that it should take.
        let wanted = rtt.shortest() + self.target(rtt.shortest()) / 2;
        let fits = (u128::from(self.window) * u128::from(wanted) / u128::from(shortest.max(1))) as u64;
        self.window = fits.clamp(self.window / 2, self.window).max(2 * self.segment);
        self.undrained = DRAIN_ROUNDS / 2;
    }

    /// What the path delivers in `ns`.
    fn carried(&self, ns: u64) -> u64 {
        (u128::from(self.rate) * u128::from(ns) / 1_000_000_000) as u64
    }

    fn end_round(&mut self, now: u64, next: u32, rtt: &RoundTrip) {
        let round = self.round;
        self.round = Round {
            end: next,
            started: now,
            bytes: 0,
            packets: 0,
            marked: 0,
            shortest: u64::MAX,
            limited: false,
        };
        let elapsed = now.saturating_sub(round.started).max(1);
        self.rate = (u128::from(round.bytes) * 1_000_000_000 / u128::from(elapsed)) as u64;
        let excess = self.loss_excess(round.packets);
        if self.fixed {
            return;
        }
        if let Some(window) = self.draining.take() {
            self.window = window;
            return;
        }
        self.marked = self.marked - self.marked / 16 + (round.marked * ONE / round.packets.max(1)) / 16;
        let queue = round.shortest.saturating_sub(rtt.shortest());
        let target = self.target(rtt.shortest());
        let mut cut = if round.marked > 0 { (self.marked / 2).max(1) } else { 0 };
        if queue > target {
            cut = cut.max((queue - target) * ONE / 2 / round.shortest.max(1));
        }
        // What comes through in spite of loss is what the path carries; a little less makes room for others to catch up.
        let floor = self.carried(rtt.shortest()) / 8 * 7;
        // A queue that overflows stands; without one only much more than is usual can come of too large a window, as where a policer cuts.
        let excess = if queue > target / 8 || excess > ONE / 4 { excess } else { 0 };
        let by_loss = self.window - self.window * excess.clamp(ONE / 4, ONE) / 2 / ONE;
        if excess > 0 && by_loss.max(floor) < self.window {
            cut = cut.max((self.window - by_loss.max(floor)) * ONE / self.window.max(1));
        }
        self.undrained += 1;
        if cut > 0 {
            if self.slow_start {
                self.leave_slow_start(round.shortest, rtt);
                return;
            }
            self.window -= self.window * cut.min(ONE / 2) / ONE;
            self.window = self.window.max(2 * self.segment);
            self.cuts += 1;
            self.calm = 0;
        } else if round.limited && !self.slow_start && 2 * self.carried(rtt.smoothed()) >= self.window {
            self.calm += 1;
            // The longer nothing stands in the way, the bolder.
            let step = match self.calm {
                // Less than in proportion to the window, so that the smaller of two flows catches up.
                _ if queue > target / 8 => (self.window * self.segment).isqrt() / 8,
                0..3 => (self.window * self.segment).isqrt() / 8,
                3..6 => self.window / 16,
                _ => self.window / 8,
            };
            let step = step.max(self.segment);
            self.window = (self.window + step).min(self.most);
        }
        // Who came when a queue stood takes it for the way itself, until it has let it drain.
        if self.undrained >= DRAIN_ROUNDS && !self.slow_start && self.window > 16 * self.segment {
            self.undrained = 0;
            self.draining = Some(self.window);
            self.window /= 4;
        }
    }

    /// By how much the share of lost packets exceeds what is usual.
    fn loss_excess(&mut self, packets: u64) -> u64 {
        self.packets_in_span += packets;
        let all = self.packets_in_span + self.lost_in_span;
        if all < LOSS_PACKETS {
            return 0;
        }
        let lost = std::mem::take(&mut self.lost_in_span);
        self.packets_in_span = 0;
        let loss = lost * ONE / all;
        // Between the least and the mean of the last spans: congestion that lasts does not become usual at once.
        let known = &self.losses[..self.spans.min(LOSS_SPANS)];
        let least = known.iter().copied().min().unwrap_or(loss);
        let mean = known.iter().sum::<u64>().checked_div(known.len() as u64).unwrap_or(loss);
        let usual = ((least + mean) / 2).min(loss);
        self.losses[self.spans % LOSS_SPANS] = loss;
        self.spans += 1;
        // Two per cent are no matter, as in BBR's second version, nor is what chance does: four standard deviations of a count.
        let expected = usual * all / ONE;
        let chance = 4 * (expected + 4).isqrt();
        if lost > expected + chance && loss > usual + ONE / 50 { loss - usual } else { 0 }
    }
}
