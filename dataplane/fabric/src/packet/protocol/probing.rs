//! What a path carries, and where its other end is: both are only believed when a PROBE has been answered.
//!
//! At the start all usual sizes are probed at once; then what lies between the largest that came through and the smallest that did not.
//! A probe goes both ways at its full size, so the answer proves it for our reads and for the peer's.

use std::net::SocketAddr;

use crate::packet::limits::{
    DATAGRAM_MIN_BYTES, PROBE_AGAIN_NS, PROBE_FIRST_NS, PROBE_MAX_NS, PROBE_TRIES, PROBED_WAITING,
};

/// Sizes of datagrams that fill what common links carry: tunnels of 1480, Ethernet over IPv6 and IPv4, jumbo frames likewise, and halves.
const USUAL: [usize; 7] = [1_412, 1_452, 1_472, 8_952, 8_972, 16_384, 32_768];
/// Two sizes that are this near are one.
const NEAR_BYTES: usize = 32;
/// Probes under way.
const FLIGHTS: usize = USUAL.len() + 3;

/// Why a probe is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// Anything must come through before the path is of use.
    Start,
    /// To know whether this size comes through.
    Size,
    /// Nothing of full size comes through: does something small?
    Small,
    /// Something small does: does the full size still?
    Full,
    /// The peer seems to be there now.
    Move,
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
struct Flight {
    purpose: Purpose,
    nonce: u64,
    bytes: usize,
    to: SocketAddr,
    tries: u32,
    /// When it was first sent.
    sent_ns: u64,
    /// When to send it, again where it was sent.
    due_ns: u64,
}

/// An answer that is to be sent.
#[derive(Debug, Clone, Copy)]
struct Reply {
    nonce: u64,
    bytes: usize,
    to: SocketAddr,
}

/// A datagram to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    /// A PROBE.
    Probe { nonce: u64, bytes: usize, to: SocketAddr },
    /// A PROBED.
    Probed { nonce: u64, bytes: usize, to: SocketAddr },
}

/// What an answer has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// The path works: its first proof.
    pub(super) proven: bool,
    /// A round trip.
    pub(super) rtt_ns: Option<u64>,
    /// The peer has moved there.
    pub(super) moved: Option<SocketAddr>,
    /// The size that is known to come through is another now.
    pub(super) resized: bool,
}

/// The probes of one path.
#[derive(Debug)]
pub(super) struct Probing {
    remote: SocketAddr,
    /// The most that both ports carry.
    most: usize,
    /// The largest size that came through; 0 before any.
    proven: usize,
    /// The smallest that did not.
    refused: usize,
    flights: [Option<Flight>; FLIGHTS],
    replies: [Option<Reply>; PROBED_WAITING],
    random: u64,
    again_ns: u64,
    /// The soonest that anything is due; saves looking.
    next_ns: u64,
}

impl Probing {
    pub(super) fn new(now: u64, remote: SocketAddr, most: usize, seed: u64) -> Self {
        let mut probing = Self {
            remote,
            most,
            proven: 0,
            refused: most + 1,
            flights: [None; FLIGHTS],
            replies: [None; PROBED_WAITING],
            random: seed,
            again_ns: u64::MAX,
            next_ns: now,
        };
        probing.launch(now, Purpose::Start, DATAGRAM_MIN_BYTES, remote);
        probing.try_usual(now);
        probing
    }

    /// The largest datagram that is known to come through; 0 before any.
    pub(super) fn proven(&self) -> usize {
        self.proven
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// SplitMix64.
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn launch(&mut self, now: u64, purpose: Purpose, bytes: usize, to: SocketAddr) {
        let nonce = self.random();
        if let Some(place) = self.flights.iter_mut().find(|flight| flight.is_none()) {
            *place = Some(Flight { purpose, nonce, bytes, to, tries: 0, sent_ns: 0, due_ns: now });
            self.next_ns = self.next_ns.min(now);
        }
    }

    fn is_flying(&self, purpose: Purpose) -> bool {
        self.flights.iter().flatten().any(|flight| flight.purpose == purpose)
    }

    fn try_usual(&mut self, now: u64) {
        for bytes in USUAL.into_iter().chain([self.most]) {
            let between = self.proven.max(DATAGRAM_MIN_BYTES) < bytes && bytes < self.refused;
            if between && bytes <= self.most && (bytes == self.most || bytes + NEAR_BYTES <= self.most) {
                self.launch(now, Purpose::Size, bytes, self.remote);
            }
        }
    }

    /// A probe has come: it is to be answered to where it came from.
    pub(super) fn probed(&mut self, nonce: u64, bytes: usize, from: SocketAddr) {
        if bytes <= self.most
            && let Some(place) = self.replies.iter_mut().find(|reply| reply.is_none())
        {
            *place = Some(Reply { nonce, bytes, to: from });
            self.next_ns = 0;
        }
    }

    /// The peer has sent the newest packet from there.
    pub(super) fn seen_at(&mut self, now: u64, from: SocketAddr) {
        if from == self.remote || self.proven == 0 {
            return;
        }
        let known =
            self.flights.iter().flatten().any(|flight| flight.purpose == Purpose::Move && flight.to == from);
        if !known {
            // Only the latest counts.
            self.forget(|flight| flight.purpose == Purpose::Move);
            self.launch(now, Purpose::Move, DATAGRAM_MIN_BYTES, from);
        }
    }

    /// Nothing of full size seems to come through any more.
    pub(super) fn suspect(&mut self, now: u64) {
        if self.proven > DATAGRAM_MIN_BYTES
            && !self.is_flying(Purpose::Small)
            && !self.is_flying(Purpose::Full)
        {
            self.launch(now, Purpose::Small, DATAGRAM_MIN_BYTES, self.remote);
        }
    }

    fn forget(&mut self, which: impl Fn(&Flight) -> bool) {
        for place in &mut self.flights {
            if place.as_ref().is_some_and(&which) {
                *place = None;
            }
        }
    }

    /// A probe was answered.
    pub(super) fn answered(&mut self, now: u64, nonce: u64, bytes: usize, from: SocketAddr) -> Shown {
        let mut shown = Shown::default();
        let place = self.flights.iter_mut().find(|flight| {
            flight
                .as_ref()
                .is_some_and(|flight| flight.nonce == nonce && flight.bytes == bytes && flight.tries > 0)
        });
        let Some(flight) = place.and_then(Option::take) else { return shown };
        if flight.purpose == Purpose::Move {
            if from != flight.to {
                return shown;
            }
            self.remote = from;
            shown.moved = Some(from);
            // The new way may carry less.
            if self.proven > DATAGRAM_MIN_BYTES {
                self.launch(now, Purpose::Full, self.proven, from);
            }
        }
        // Of a probe that was sent more than once this is too long, never too short.
        shown.rtt_ns = Some(now.saturating_sub(flight.sent_ns));
        match flight.purpose {
            Purpose::Start | Purpose::Size => {
                shown.proven = self.proven == 0;
                if bytes > self.proven {
                    self.proven = bytes;
                    shown.resized = true;
                }
                let proven = self.proven;
                self.forget(|other| {
                    other.purpose == Purpose::Start || other.purpose == Purpose::Size && other.bytes <= proven
                });
                self.narrow(now);
            }
            Purpose::Small => self.launch(now, Purpose::Full, self.proven, self.remote),
            Purpose::Full | Purpose::Move => {}
        }
        shown
    }

    /// Probes between what comes through and what does not, once nothing else is under way.
    fn narrow(&mut self, now: u64) {
        if self.proven == 0 || self.is_flying(Purpose::Size) {
            return;
        }
        let limit = self.refused.min(self.most + 1);
        if limit - self.proven > NEAR_BYTES {
            self.launch(now, Purpose::Size, (self.proven + limit) / 2, self.remote);
        } else if self.proven + NEAR_BYTES < self.most {
            self.again_ns = now.saturating_add(PROBE_AGAIN_NS);
        } else {
            self.again_ns = u64::MAX;
        }
    }

    /// The next datagram that is due, where there is any. `rtt` is the round trip, as far as it is known.
    pub(super) fn next(&mut self, now: u64, rtt: u64) -> Option<Outgoing> {
        if now < self.next_ns {
            return None;
        }
        if let Some(Reply { nonce, bytes, to }) = self.replies.iter_mut().find_map(Option::take) {
            return Some(Outgoing::Probed { nonce, bytes, to });
        }
        let place = self
            .flights
            .iter_mut()
            .flatten()
            .filter(|flight| flight.due_ns <= now)
            .max_by_key(|flight| flight.bytes);
        if let Some(flight) = place {
            let wait = if rtt == 0 { PROBE_FIRST_NS } else { rtt + rtt / 2 + PROBE_FIRST_NS / 4 };
            flight.tries += 1;
            if flight.tries == 1 {
                flight.sent_ns = now;
            }
            flight.due_ns = now
                .saturating_add((wait << flight.tries.min(8).saturating_sub(1)).min(PROBE_MAX_NS.max(wait)));
            return Some(Outgoing::Probe { nonce: flight.nonce, bytes: flight.bytes, to: flight.to });
        }
        self.next_ns = self.next_timeout();
        None
    }

    /// Whether [`next`](Self::next) may have something.
    pub(super) fn is_due(&self, now: u64) -> bool {
        now >= self.next_ns
    }

    /// Gives up what was tried often enough. Returns whether the size that comes through is another now.
    pub(super) fn handle_timeout(&mut self, now: u64) -> bool {
        let mut shrunk = false;
        for index in 0..FLIGHTS {
            let Some(flight) =
                self.flights[index].filter(|flight| flight.tries >= PROBE_TRIES && flight.due_ns <= now)
            else {
                continue;
            };
            match flight.purpose {
                // There is nothing to do but to go on.
                Purpose::Start | Purpose::Small => continue,
                Purpose::Size => {
                    self.refused = self.refused.min(flight.bytes);
                    let refused = self.refused;
                    self.forget(|other| other.purpose == Purpose::Size && other.bytes >= refused);
                }
                Purpose::Full => {
                    self.refused = self.proven;
                    self.proven = DATAGRAM_MIN_BYTES;
                    self.forget(|other| other.purpose == Purpose::Size);
                    self.try_usual(now);
                    shrunk = true;
                }
                Purpose::Move => {}
            }
            self.forget(|other| other.nonce == flight.nonce);
            self.narrow(now);
        }
        if now >= self.again_ns {
            self.again_ns = u64::MAX;
            self.refused = self.most + 1;
            self.try_usual(now);
            self.narrow(now);
        }
        shrunk
    }

    /// When something is due.
    pub(super) fn next_timeout(&self) -> u64 {
        self.flights.iter().flatten().map(|flight| flight.due_ns).min().unwrap_or(u64::MAX).min(self.again_ns)
    }
}
