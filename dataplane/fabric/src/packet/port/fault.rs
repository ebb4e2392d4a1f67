//! A port that wraps another one and does to its traffic what bad networks do: loss, duplication, reordering, corruption and blackout,
//! all drawn from one seed, in both directions.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::{Arrival, Departure, Ecn, Port, PortCaps, PortCounters};

/// The most datagrams that are held back at once in each direction.
const HELD_MAX: usize = 256;
/// For how long one is held back where no others overtake it.
const HELD_FOR: Duration = Duration::from_millis(2);

/// What befalls the datagrams of one direction. Probabilities are from 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    /// How many are lost.
    pub loss: f64,
    /// How many come twice.
    pub duplication: f64,
    /// How many are held back while others overtake them.
    pub reordering: f64,
    /// By how many others, at most.
    pub reordering_frames: u32,
    /// How many are damaged: one to three of their bits.
    pub corruption: f64,
}

/// What has befallen them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Lost.
    pub lost: u64,
    /// Sent or received twice.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Damaged.
    pub corrupted: u64,
    /// Lost in a blackout.
    pub blacked_out: u64,
}

/// Turns the blackout of a [`Fault`] on and off, from any thread.
#[derive(Debug, Clone, Default)]
pub struct Blackout(Arc<AtomicBool>);

impl Blackout {
    /// While it is on, nothing comes through in either direction.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something of a datagram besides its bytes.
#[derive(Debug, Clone, Copy)]
enum Envelope {
    Out(Departure),
    In { from: SocketAddr, ecn: Ecn },
}

/// A copy of a datagram that is to come through when `after` datagrams have, or at the latest at `until`.
#[derive(Debug)]
struct Held {
    after: u64,
    until: Instant,
    envelope: Envelope,
    bytes: Vec<u8>,
}

/// What becomes of a datagram.
enum Fate {
    Passes,
    Lost,
    HeldBack,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    faults: Faults,
    draw: Draw,
    counters: FaultCounters,
    /// How many have come through.
    passed: u64,
    held: Vec<Held>,
    spare: Vec<Vec<u8>>,
}

impl Lane {
    fn new(faults: Faults, seed: u64) -> Self {
        Self {
            faults,
            draw: Draw::new(seed),
            counters: FaultCounters::default(),
            passed: 0,
            held: Vec::with_capacity(HELD_MAX),
            spare: Vec::with_capacity(HELD_MAX),
        }
    }

    /// Decides on a datagram, which may be damaged, and copied to come through later.
    fn decide(&mut self, blackout: bool, envelope: Envelope, bytes: &mut [u8]) -> Fate {
        let Faults { loss, duplication, reordering, reordering_frames, corruption } = self.faults;
        if blackout {
            self.counters.blacked_out += 1;
            return Fate::Lost;
        }
        if self.draw.happens(loss) {
            self.counters.lost += 1;
            return Fate::Lost;
        }
        if self.draw.happens(corruption) {
            self.counters.corrupted += 1;
            self.draw.damage(bytes);
        }
        let others = u64::from(reordering_frames.max(1));
        if self.draw.happens(duplication) && self.held.len() < HELD_MAX {
            self.counters.duplicated += 1;
            let after = self.passed + 1 + self.draw.below(others);
            self.hold(after, envelope, bytes);
        }
        if reordering_frames > 0 && self.draw.happens(reordering) && self.held.len() < HELD_MAX {
            self.counters.reordered += 1;
            let after = self.passed + 1 + self.draw.below(others);
            self.hold(after, envelope, bytes);
            return Fate::HeldBack;
        }
        self.passed += 1;
        Fate::Passes
    }

    fn hold(&mut self, after: u64, envelope: Envelope, bytes: &[u8]) {
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        self.held.push(Held { after, until: Instant::now() + HELD_FOR, envelope, bytes: copy });
    }

    /// One whose time has come.
    fn release(&mut self) -> Option<Held> {
        let (place, next) = self.held.iter().enumerate().min_by_key(|(_, held)| held.after)?;
        if next.after > self.passed && Instant::now() < next.until {
            return None;
        }
        self.passed += 1;
        Some(self.held.remove(place))
    }

    fn take_back(&mut self, held: Held) {
        self.spare.push(held.bytes);
    }
}

/// A port with faults. What is held back comes through when others have overtaken it, or a moment later where there are no others.
#[derive(Debug)]
pub struct Fault<P> {
    port: P,
    out: Lane,
    into: Lane,
    blackout: Blackout,
}

impl<P: Port> Fault<P> {
    /// Does `out` to what `port` sends and `into` to what it receives.
    pub fn new(port: P, seed: u64, out: Faults, into: Faults) -> Self {
        Self { port, out: Lane::new(out, seed), into: Lane::new(into, !seed), blackout: Blackout::default() }
    }

    /// The switch of its blackout.
    pub fn blackout(&self) -> Blackout {
        self.blackout.clone()
    }

    /// What has befallen what was sent, and what was received.
    pub fn faults(&self) -> (FaultCounters, FaultCounters) {
        (self.out.counters, self.into.counters)
    }

    /// The port within.
    pub fn port(&self) -> &P {
        &self.port
    }
}

impl<P: Port> Port for Fault<P> {
    fn name(&self) -> &'static str {
        self.port.name()
    }

    fn caps(&self) -> PortCaps {
        PortCaps { lossless: false, ..self.port.caps() }
    }

    fn local(&self) -> SocketAddr {
        self.port.local()
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let Self { port, into, blackout, .. } = self;
        let mut late = 0;
        let mut deliver_late = |lane: &mut Lane, each: &mut dyn FnMut(Arrival<'_>)| {
            while let Some(mut held) = lane.release() {
                if let Envelope::In { from, ecn } = held.envelope {
                    late += 1;
                    each(Arrival { from, datagram: &mut held.bytes, ecn });
                }
                lane.take_back(held);
            }
        };
        let mut arrived = 0;
        port.rx_burst(&mut |arrival| {
            let envelope = Envelope::In { from: arrival.from, ecn: arrival.ecn };
            if let Fate::Passes = into.decide(blackout.is_on(), envelope, arrival.datagram) {
                arrived += 1;
                each(arrival);
            }
            deliver_late(into, each);
        })?;
        deliver_late(into, each);
        Ok(late + arrived)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        let Self { port, out, blackout, .. } = self;
        let mut dropped = 0;
        let sent = port.tx_burst(&mut |space| {
            // Losing without end would be a turn without end.
            while dropped < HELD_MAX {
                if let Some(held) = out.release() {
                    space[..held.bytes.len()].copy_from_slice(&held.bytes);
                    let envelope = held.envelope;
                    out.take_back(held);
                    if let Envelope::Out(departure) = envelope {
                        return Some(departure);
                    }
                    continue;
                }
                let departure = fill(space)?;
                let bytes = &mut space[..departure.len];
                match out.decide(blackout.is_on(), Envelope::Out(departure), bytes) {
                    Fate::Passes => return Some(departure),
                    Fate::Lost | Fate::HeldBack => dropped += 1,
                }
            }
            None
        })?;
        Ok(sent + dropped)
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(self.out.held.is_empty() && self.into.held.is_empty() && self.port.arm()?)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.port.descriptor()
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }
}
