//! One path: what its frames do to its two sides, and what it has to send.

use std::collections::VecDeque;
use std::time::Duration;

use velo_object::NodeId;

use super::frame::{Body, CloseReason, MESSAGE_MAX_BYTES, Message};
use super::pacer::Pacer;
use super::probing::{Outgoing, Probing, Shown};
use super::reader::{Desk, Reader, Spare};
use super::seal::{Frame, OpenError, Opened, Opener, PathKeys, Proof, Sealer};
use super::supplier::{Counter, Supplier};
use super::{Answer, EndpointCounters, EndpointOptions, Event, NewPath, PathInfo};
use crate::packet::limits;
use crate::packet::port::{Arrival, Departure, Ecn};
use crate::{Completion, PathError, PathId, ProtocolError, Read, ReadError};

/// A CONTROL frame is never longer than what every path carries.
const CONTROL_BYTES: usize = limits::DATAGRAM_MIN_BYTES;
/// PONGs that wait to be sent.
const PONGS: usize = 4;

/// What all paths of an endpoint share.
pub(super) struct Shared {
    pub(super) options: EndpointOptions,
    pub(super) pacer: Pacer,
    pub(super) events: VecDeque<Event>,
    pub(super) spare: Spare,
    pub(super) counters: EndpointCounters,
}

/// A path that is closed and still says so.
#[derive(Debug, Clone, Copy)]
struct Closing {
    why: CloseReason,
    told: u32,
    next_ns: u64,
}

/// One path.
pub(super) struct Path {
    pub(super) id: PathId,
    pub(super) peer: NodeId,
    /// Our number of it on the wire.
    pub(super) number: u32,
    sealer: Sealer,
    opener: Opener,
    reader: Reader,
    supplier: Supplier,
    probing: Probing,
    closing: Option<Closing>,
    pongs: [Option<u32>; PONGS],
    /// Whether a PING is to be sent, when the next is, and how long that was.
    ping: bool,
    ping_at_ns: u64,
    ping_wait_ns: u64,
    /// When the peer last was heard.
    heard_ns: u64,
    /// Whether a deadline may have come nearer.
    pub(super) rearm: bool,
    /// Bytes sent in this turn.
    turn_bytes: usize,
    /// Whether it stands in the endpoint's queue of paths with something to send, and in that of those which the pacer holds back.
    pub(super) queued: bool,
    pub(super) held_back: bool,
}

impl Path {
    pub(super) fn new(now: u64, path: NewPath, options: &EndpointOptions, seed: u64) -> Self {
        let NewPath { id, peer, remote, keys, datagram_max_bytes } = path;
        let number = keys.number();
        let PathKeys { sealer, opener } = keys;
        let most = datagram_max_bytes.min(options.datagram_max_bytes).min(limits::DATAGRAM_MAX_BYTES);
        Self {
            id,
            peer,
            number,
            sealer,
            opener,
            reader: Reader::new(options),
            supplier: Supplier::new(),
            probing: Probing::new(now, remote, most, seed),
            closing: None,
            pongs: [None; PONGS],
            ping: false,
            ping_at_ns: u64::MAX,
            ping_wait_ns: limits::PING_AFTER_NS,
            heard_ns: now,
            rearm: true,
            turn_bytes: 0,
            queued: false,
            held_back: false,
        }
    }

    pub(super) fn info(&self) -> PathInfo {
        let (segments_arrived, segments_lost) = self.reader.segments();
        PathInfo {
            remote: self.probing.remote(),
            proven: self.probing.proven() != 0,
            datagram_bytes: self.probing.proven(),
            rtt: Duration::from_nanos(self.reader.rtt.smoothed()),
            rtt_min: Duration::from_nanos(self.reader.rtt.shortest()),
            window_bytes: self.reader.congestion.window(),
            inflight_bytes: self.reader.inflight(),
            rate_bytes_per_s: self.reader.congestion.rate(),
            segments_arrived,
            segments_lost,
            reordering_packets: self.reader.reordering.threshold().into(),
        }
    }

    /// Whether it is closed, and has said so as often as it says so.
    pub(super) fn is_gone(&self) -> bool {
        self.closing.is_some_and(|closing| closing.told >= limits::CLOSE_TELLS)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    pub(super) fn post(&mut self, now: u64, read: Read, shared: &mut Shared) -> Result<(), Read> {
        let (reader, mut desk) = self.reading(shared);
        reader.post(now, read, &mut desk)
    }

    pub(super) fn cancel(&mut self, tag: u64, shared: &mut Shared) {
        let (reader, mut desk) = self.reading(shared);
        reader.cancel(tag, &mut desk);
    }

    pub(super) fn answer(&mut self, now: u64, answer: Answer, shared: &mut Shared) {
        let (supplier, mut counter) = self.supplying(shared);
        supplier.answer(answer, &mut counter);
        self.expect_sign(now);
    }

    fn reading<'a>(&'a mut self, shared: &'a mut Shared) -> (&'a mut Reader, Desk<'a>) {
        let desk = Desk {
            path: self.id,
            events: &mut shared.events,
            spare: &mut shared.spare,
            counters: &mut shared.counters,
        };
        (&mut self.reader, desk)
    }

    fn supplying<'a>(&'a mut self, shared: &'a mut Shared) -> (&'a mut Supplier, Counter<'a>) {
        let counter = Counter {
            path: self.id,
            peer: self.peer,
            events: &mut shared.events,
            counters: &mut shared.counters,
        };
        (&mut self.supplier, counter)
    }

    /// Ends everything, tells the owner, and begins to tell the peer, where `why` says what.
    pub(super) fn close(
        &mut self,
        now: u64,
        error: PathError,
        why: Option<CloseReason>,
        shared: &mut Shared,
    ) {
        if self.closing.is_some() {
            return;
        }
        let ended = match error {
            PathError::Stalled { .. } => ReadError::Stalled,
            _ => ReadError::PathClosed,
        };
        match error {
            PathError::Stalled { .. } => shared.counters.fabric.stalls += 1,
            PathError::Protocol(_) => shared.counters.fabric.protocol_errors += 1,
            _ => {}
        }
        shared.counters.fabric.paths_closed += 1;
        let (reader, mut desk) = self.reading(shared);
        reader.fail_all(ended, &mut desk);
        let (supplier, mut counter) = self.supplying(shared);
        supplier.release_all(&mut counter);
        let closed = Completion::PathClosed { path: self.id, peer: self.peer, error };
        shared.events.push_back(Event::Completion(closed));
        self.closing = Some(match why {
            Some(why) => Closing { why, told: 0, next_ns: now },
            None => Closing { why: CloseReason::Done, told: limits::CLOSE_TELLS, next_ns: now },
        });
    }

    /// A datagram with the number of this path has come.
    pub(super) fn handle(&mut self, now: u64, arrival: Arrival<'_>, shared: &mut Shared) {
        let Arrival { from, datagram, ecn } = arrival;
        let len = datagram.len();
        let opened = match self.opener.open(datagram) {
            Ok(opened) => opened,
            Err(OpenError::Protocol(error)) => {
                return self.close(now, error.into(), Some(CloseReason::Protocol), shared);
            }
            Err(OpenError::Rejected(super::frame::Reject::Replayed)) => {
                shared.counters.replayed += 1;
                return;
            }
            Err(OpenError::Rejected(_)) => {
                shared.counters.rejected += 1;
                return;
            }
        };
        if self.closing.is_some() {
            return;
        }
        shared.counters.datagrams_in += 1;
        shared.counters.fabric.bytes_in += len as u64;
        self.heard_ns = now;
        let Opened { number, newest, proof, frame } = opened;
        if newest && proof == Proof::Strong && from != self.probing.remote() {
            self.probing.seen_at(now, from);
            self.rearm = true;
        }
        self.rearm |= !matches!(frame, Frame::Data(..));
        match frame {
            Frame::Data(data, payload) => {
                let highest = self.opener.newest();
                let desk = &mut Desk {
                    path: self.id,
                    events: &mut shared.events,
                    spare: &mut shared.spare,
                    counters: &mut shared.counters,
                };
                self.reader.data(now, number, highest, &data, &payload, ecn == Ecn::Congested, desk);
            }
            Frame::Control(messages) => {
                for message in messages {
                    if let Err(error) = self.message(now, &message, shared) {
                        return self.close(now, error.into(), Some(CloseReason::Protocol), shared);
                    }
                    // Whatever comes after a CLOSE is for nobody.
                    if self.closing.is_some() {
                        return;
                    }
                }
                self.expect_sign(now);
            }
            Frame::Probe { nonce } => self.probing.probed(nonce, len, from),
            Frame::Probed { nonce } => {
                let shown = self.probing.answered(now, nonce, len, from);
                self.learn(now, shown, shared);
            }
        }
    }

    fn message(&mut self, now: u64, message: &Message, shared: &mut Shared) -> Result<(), ProtocolError> {
        match message {
            Message::Read(request) => {
                if usize::from(request.segment_bytes) + limits::DATA_OVERHEAD_BYTES
                    > shared.options.datagram_max_bytes
                {
                    return Err(ProtocolError::Field { frame: "read", field: "segment_bytes" });
                }
                let (supplier, mut counter) = self.supplying(shared);
                supplier.read(now, request, &mut counter);
            }
            Message::Credit(credit) => {
                let (supplier, mut counter) = self.supplying(shared);
                supplier.credit(now, credit, &mut counter);
            }
            Message::End { slot, read } => {
                let (supplier, mut counter) = self.supplying(shared);
                supplier.end(*slot, *read, &mut counter);
            }
            Message::Refuse { slot, read, why } => {
                let (reader, mut desk) = self.reading(shared);
                reader.refused(now, *slot, *read, *why, &mut desk);
            }
            Message::Ready { slot, read } => self.reader.ready(*slot, *read),
            Message::Close { .. } => self.close(now, PathError::Peer, None, shared),
            Message::Ping { stamp } => {
                if let Some(place) = self.pongs.iter_mut().find(|pong| pong.is_none()) {
                    *place = Some(*stamp);
                }
                self.reader.tell_ends();
            }
            Message::Pong { .. } => {}
        }
        Ok(())
    }

    fn learn(&mut self, now: u64, shown: Shown, shared: &mut Shared) {
        if shown.moved.is_some() {
            shared.counters.moves += 1;
            self.reader.rtt.restart();
            self.reader.congestion.restart(limits::WINDOW_FIRST_BYTES);
        }
        if let Some(rtt) = shown.rtt_ns.filter(|_| !self.reader.rtt.is_known()) {
            self.reader.rtt.sample(now, rtt, rtt);
            self.reader.open_window();
        }
        if shown.resized {
            self.resize();
        }
        if shown.proven {
            shared.events.push_back(Event::Proven { path: self.id });
        }
    }

    /// Segments are as large as what comes through allows; whole cache lines, so that each begins on one.
    fn resize(&mut self) {
        let segment = (self.probing.proven() - limits::DATA_OVERHEAD_BYTES) & !63;
        self.reader.set_segment_bytes(segment.max(limits::SEGMENT_MIN_BYTES) as u32);
    }

    /// While it holds something for the peer, the peer must give a sign now and then.
    fn expect_sign(&mut self, now: u64) {
        self.ping_wait_ns = limits::PING_AFTER_NS;
        self.ping_at_ns = if self.supplier.is_active() { now + self.ping_wait_ns } else { u64::MAX };
    }

    /// Whether there is something to send now.
    pub(super) fn has_work(&self, now: u64) -> bool {
        if let Some(closing) = self.closing {
            return closing.told < limits::CLOSE_TELLS && closing.next_ns <= now;
        }
        self.may_supply() || self.has_messages() || self.probing.is_due(now)
    }

    /// Whether content may go out: to where nobody has answered, a peer could have us flood someone else.
    fn may_supply(&self) -> bool {
        self.supplier.has_data() && self.probing.proven() != 0
    }

    fn has_messages(&self) -> bool {
        self.ping
            || self.supplier.has_messages()
            || (self.probing.proven() != 0 && self.reader.has_messages())
            || self.pongs.iter().any(Option::is_some)
    }

    /// Whether the pacer holds grants of this path back.
    pub(super) fn is_paced(&self) -> bool {
        self.reader.paced
    }

    /// The pacer lets it grant again.
    pub(super) fn let_go(&mut self) {
        self.reader.paced = false;
    }

    /// Whether it has sent as much as it may before others have their turn. Begins its next turn then.
    pub(super) fn ends_turn(&mut self) -> bool {
        if self.turn_bytes < limits::TURN_BYTES {
            return false;
        }
        self.turn_bytes = 0;
        true
    }

    /// Writes the next datagram. `None` where there is nothing to be sent now.
    pub(super) fn transmit(&mut self, now: u64, space: &mut [u8], shared: &mut Shared) -> Option<Departure> {
        self.rearm = true;
        let mut departure = Departure { to: self.probing.remote(), len: 0, ecn: Ecn::Capable, probe: false };
        if let Some(closing) = &mut self.closing {
            if closing.told >= limits::CLOSE_TELLS || closing.next_ns > now {
                return None;
            }
            let why = closing.why;
            closing.told += 1;
            closing.next_ns = now + (2 * self.reader.rtt.smoothed()).max(limits::PROBE_FIRST_NS / 4);
            departure.len = self.sealer.control(space, |body| {
                put(body, &Message::Close { why });
            })?;
            return Some(self.sent(departure, shared));
        }
        while let Some(outgoing) = self.probing.next(now, self.reader.rtt.smoothed()) {
            let (to, written) = match outgoing {
                Outgoing::Probe { nonce, bytes, to } => (to, self.sealer.probe(space, nonce, bytes)),
                Outgoing::Probed { nonce, bytes, to } => (to, self.sealer.probed(space, nonce, bytes)),
            };
            if let Some(len) = written {
                departure = Departure { to, len, ecn: Ecn::NotCapable, probe: true };
                return Some(self.sent(departure, shared));
            }
        }
        let waits = self.has_messages();
        if waits {
            let most = space.len().min(CONTROL_BYTES);
            let Self { sealer, reader, supplier, pongs, ping, probing, .. } = self;
            let pacer = &mut shared.pacer;
            let written = sealer.control(&mut space[..most], |body| {
                for stamp in pongs.iter_mut().filter_map(Option::take) {
                    put(body, &Message::Pong { stamp });
                }
                if std::mem::take(ping) {
                    put(body, &Message::Ping { stamp: (now / 1_000) as u32 });
                }
                fill(body, now, supplier, reader, pacer, probing.proven() != 0);
            });
            if let Some(len) = written {
                departure.len = len;
                return Some(self.sent(departure, shared));
            }
        }
        // A grant that had to wait has set a deadline.
        self.rearm = waits;
        if !self.may_supply() {
            return None;
        }
        let segment = self.supplier.next_segment(now, &mut shared.counters)?;
        departure.len = self.sealer.data(space, &segment.data, segment.payload)?;
        Some(self.sent(departure, shared))
    }

    fn sent(&mut self, departure: Departure, shared: &mut Shared) -> Departure {
        shared.counters.datagrams_out += 1;
        shared.counters.fabric.bytes_out += departure.len as u64;
        self.turn_bytes += departure.len;
        departure
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: u64, shared: &mut Shared) {
        if self.closing.is_some() {
            return;
        }
        let stall_timeout = shared.options.stall_timeout;
        let stalls_at = self.reader.stalls_at(stall_timeout.as_nanos() as u64);
        if stalls_at.is_some_and(|at| at <= now) {
            let error = PathError::Stalled { ms: stall_timeout.as_millis() as u64 };
            return self.close(now, error, Some(CloseReason::Stalled), shared);
        }
        let newest = self.opener.newest();
        let (reader, mut desk) = self.reading(shared);
        reader.lose_passed(now, newest, &mut desk);
        if reader.handle_timeout(now, &mut desk) {
            self.probing.suspect(now);
        }
        if self.probing.handle_timeout(now) {
            shared.counters.black_holes += 1;
            self.resize();
        }
        let (supplier, mut counter) = self.supplying(shared);
        supplier.release_idle(now, &mut counter);
        if now >= self.ping_at_ns {
            self.ping = self.supplier.is_active();
            self.ping_wait_ns = (2 * self.ping_wait_ns).min(limits::SERVE_IDLE_NS / 4);
            self.ping_at_ns = if self.ping { now + self.ping_wait_ns } else { u64::MAX };
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) or [`transmit`](Self::transmit) next has something to do, if nothing arrives.
    pub(super) fn next_timeout(&self, now: u64, options: &EndpointOptions) -> Option<u64> {
        if let Some(closing) = self.closing {
            return Some(closing.next_ns);
        }
        let stalls = self.reader.stalls_at(options.stall_timeout.as_nanos() as u64);
        let tail = self.reader.next_timeout(now);
        let fixed = self.probing.next_timeout().min(self.ping_at_ns);
        let next = [stalls, tail].into_iter().flatten().fold(fixed, u64::min);
        (next != u64::MAX).then_some(next)
    }

    /// The soonest that anything can be due which was not due before.
    pub(super) fn soonest_timeout(&self, now: u64, options: &EndpointOptions) -> u64 {
        if let Some(closing) = self.closing {
            return closing.next_ns;
        }
        let tail = if self.reader.inflight() > 0 { self.reader.soonest_timeout(now) } else { u64::MAX };
        let stalls = self.reader.stalls_at(options.stall_timeout.as_nanos() as u64).unwrap_or(u64::MAX);
        tail.min(stalls).min(self.probing.next_timeout()).min(self.ping_at_ns)
    }
}

/// Adds a message that fits.
fn put(body: &mut Body<'_>, message: &Message) {
    let fitted = body.push(message);
    debug_assert!(fitted, "{message:?} does not fit");
}

/// Puts as many messages into a body as are due and fit.
fn fill(
    body: &mut Body<'_>,
    now: u64,
    supplier: &mut Supplier,
    reader: &mut Reader,
    pacer: &mut Pacer,
    proven: bool,
) {
    let fits = |body: &Body<'_>| body.room() >= MESSAGE_MAX_BYTES;
    while fits(body)
        && let Some((slot, read, why)) = supplier.next_refuse()
    {
        put(body, &Message::Refuse { slot, read, why });
    }
    while fits(body)
        && let Some((slot, read)) = supplier.next_ready()
    {
        put(body, &Message::Ready { slot, read });
    }
    if !proven {
        return;
    }
    reader.tell(|slot, read| fits(body) && body.push(&Message::End { slot, read }));
    while fits(body)
        && let Some(request) = reader.next_ask()
    {
        put(body, &Message::Read(request));
    }
    let mut left = pacer.turn();
    while fits(body)
        && let Some(credit) = reader.next_credit(now, &mut left, pacer)
    {
        put(body, &Message::Credit(credit));
    }
}
