//! All paths of one worker: finds the path of what arrives, gives each its turn to send, keeps their deadlines.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::deadlines::Deadlines;
use super::frame::{CloseReason, Header};
use super::pacer::Pacer;
use super::path::{Path, Shared};
use super::{AddPathError, Answer, EndpointCounters, EndpointOptions, Event, NewPath, PathInfo, Timestamp};
use crate::packet::limits;
use crate::packet::port::{Arrival, Departure};
use crate::{PathError, PathId, Read};

/// The least time between two looks at the deadlines of one path.
const LOOK_NS: u64 = 10_000;

/// How late a call may come before what waits to be received is given its time.
const LATE_NS: u64 = 100_000;

/// Numbers that this node chose need no hash that withstands an attacker: a multiplication by 2^64 divided by the golden ratio.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

type Numbers<K> = HashMap<K, u32, BuildHasherDefault<NumberHasher>>;

/// The protocol's end at one worker: a state machine that owns all its paths, and neither socket nor clock.
///
/// Give it what arrives ([`handle_datagram`](Self::handle_datagram)) and, when [`poll_timeout`](Self::poll_timeout) has come, the time
/// ([`handle_timeout`](Self::handle_timeout)); then send what [`poll_transmit`](Self::poll_transmit) writes, until it has nothing more,
/// and do what [`poll_event`](Self::poll_event) says. `now` never goes back from one call to the next.
pub struct Endpoint {
    shared: Shared,
    paths: Vec<Option<Box<Path>>>,
    vacant: Vec<u32>,
    /// The place of every open path by its number in events, and of every path by its number on the wire.
    ids: Numbers<PathId>,
    numbers: Numbers<u32>,
    /// The number and place of the path that the last datagram was for.
    last: (u32, u32),
    /// Paths with something to send, each once.
    ready: VecDeque<u32>,
    /// Paths whose grants the pacer holds back, each once.
    held_back: VecDeque<u32>,
    deadlines: Deadlines,
    /// No timer runs out before: this thread was late, and what it is late for may have arrived meanwhile.
    grace_ns: Option<u64>,
}

impl Endpoint {
    /// An endpoint without paths.
    pub fn new(options: EndpointOptions) -> Self {
        let largest = options.datagram_max_bytes + limits::WIRE_OVERHEAD_BYTES as usize;
        let rate = options.line_rate_bytes_per_s.filter(|_| !options.lossless);
        let rate = rate.map(|rate| (rate / u64::from(options.line_shares.max(1))).max(1));
        let shared = Shared {
            options,
            pacer: Pacer::new(rate, largest),
            events: VecDeque::with_capacity(limits::EVENTS),
            spare: Vec::new(),
            counters: EndpointCounters::default(),
        };
        Self {
            shared,
            paths: Vec::new(),
            vacant: Vec::new(),
            ids: Numbers::default(),
            numbers: Numbers::default(),
            last: (0, u32::MAX),
            ready: VecDeque::new(),
            held_back: VecDeque::new(),
            deadlines: Deadlines::default(),
            grace_ns: None,
        }
    }

    /// What it was made with.
    pub fn options(&self) -> &EndpointOptions {
        &self.shared.options
    }

    /// What has happened so far.
    pub fn counters(&self) -> EndpointCounters {
        self.shared.counters
    }

    /// How many paths are open.
    pub fn paths(&self) -> usize {
        self.ids.len()
    }

    /// How a path is doing.
    pub fn path_info(&self, path: PathId) -> Option<PathInfo> {
        let place = *self.ids.get(&path)?;
        Some(self.paths[place as usize].as_ref()?.info())
    }

    /// Adds a path, and begins to probe it. [`Event::Proven`] follows when it works; if nothing can be heard of the peer, nothing does.
    ///
    /// # Errors
    /// [`AddPathError`].
    pub fn add_path(&mut self, now: Timestamp, path: NewPath) -> Result<(), AddPathError> {
        let (id, number) = (path.id, path.keys.number());
        if self.ids.contains_key(&id) {
            return Err(AddPathError::Exists(id));
        }
        if self.numbers.contains_key(&number) {
            return Err(AddPathError::NumberInUse(number));
        }
        if self.numbers.len() >= limits::PATHS {
            return Err(AddPathError::TooMany(limits::PATHS));
        }
        let datagram = path.datagram_max_bytes.min(self.shared.options.datagram_max_bytes);
        if datagram < limits::DATAGRAM_MIN_BYTES {
            return Err(AddPathError::DatagramTooSmall(datagram));
        }
        let seed = self.shared.options.seed ^ (u64::from(number) << 32 | id & 0xffff_ffff);
        let path = Box::new(Path::new(now.0, path, &self.shared.options, seed));
        let place = match self.vacant.pop() {
            Some(place) => {
                self.paths[place as usize] = Some(path);
                place
            }
            None => {
                self.paths.push(Some(path));
                self.paths.len() as u32 - 1
            }
        };
        self.ids.insert(id, place);
        self.numbers.insert(number, place);
        self.shared.counters.fabric.paths_opened += 1;
        self.settle(now.0, place);
        Ok(())
    }

    /// Posts a read on a path; where that is not proven yet, it waits.
    ///
    /// # Errors
    /// Gives the read back where the path is unknown or has as many outstanding reads as it may have, where its tag is in use, or where
    /// its length is 0 or more than its buffer holds, or its range ends beyond 2^64.
    pub fn post_read(&mut self, now: Timestamp, path: PathId, mut read: Read) -> Result<(), Read> {
        read.buffer.set_len(read.len as usize);
        let fits = read.len > 0
            && read.buffer.len() == read.len as usize
            && read.offset_bytes.checked_add(read.len.into()).is_some();
        let place = self.ids.get(&path).copied().filter(|_| fits);
        let Some((place, to)) = place.and_then(|place| Some((place, self.paths[place as usize].as_mut()?)))
        else {
            return Err(read);
        };
        to.post(now.0, read, &mut self.shared)?;
        self.shared.counters.fabric.reads_posted += 1;
        self.settle(now.0, place);
        Ok(())
    }

    /// Ends a read, where it has not ended before, with [`crate::ReadError::Cancelled`].
    pub fn cancel(&mut self, now: Timestamp, path: PathId, tag: u64) {
        let Some(&place) = self.ids.get(&path) else { return };
        if let Some(path) = &mut self.paths[place as usize] {
            path.cancel(tag, &mut self.shared);
            self.settle(now.0, place);
        }
    }

    /// Closes a path: its reads end, and the peer is told.
    pub fn close(&mut self, now: Timestamp, path: PathId) {
        let Some(&place) = self.ids.get(&path) else { return };
        if let Some(path) = &mut self.paths[place as usize] {
            path.close(now.0, PathError::Local, Some(CloseReason::Done), &mut self.shared);
            self.settle(now.0, place);
        }
    }

    /// Nothing can be sent or received any more: closes all paths, tells no peer and keeps no deadline.
    pub fn abandon(&mut self, now: Timestamp) {
        for place in 0..self.paths.len() {
            let Some(path) = &mut self.paths[place] else { continue };
            path.close(now.0, PathError::Local, None, &mut self.shared);
            let id = path.id;
            if self.ids.get(&id) == Some(&(place as u32)) {
                self.ids.remove(&id);
            }
            self.remove(place as u32);
        }
    }

    /// Gives what was asked for by [`Event::Ask`]. What is not needed any more is dropped.
    pub fn answer(&mut self, now: Timestamp, answer: Answer) {
        let Some(&place) = self.ids.get(&answer.id.path) else { return };
        if let Some(path) = &mut self.paths[place as usize] {
            path.answer(now.0, answer, &mut self.shared);
            self.settle(now.0, place);
        }
    }

    /// A datagram has arrived. What is not from a peer is thrown away.
    pub fn handle_datagram(&mut self, now: Timestamp, arrival: Arrival<'_>) {
        let Ok(header) = Header::parse(arrival.datagram) else {
            self.shared.counters.unknown += 1;
            return;
        };
        let place = if self.last.0 == header.path && self.last.1 != u32::MAX {
            self.last.1
        } else {
            let Some(&place) = self.numbers.get(&header.path) else {
                self.shared.counters.unknown += 1;
                return;
            };
            self.last = (header.path, place);
            place
        };
        if let Some(path) = &mut self.paths[place as usize] {
            path.handle(now.0, arrival, &mut self.shared);
            self.settle(now.0, place);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        let now = now.0;
        match (self.grace_ns, self.deadlines.first()) {
            (Some(grace), _) if now < grace => return,
            (None, Some(first)) if first.saturating_add(LATE_NS) < now => {
                // As long again as it was late, but not so long that a peer that is gone is not noticed.
                self.grace_ns = Some(now + (now - first).min(limits::TAIL_MAX_NS));
                return;
            }
            _ => self.grace_ns = None,
        }
        while let Some(place) = self.deadlines.take_due(now) {
            let Some(path) = &mut self.paths[place as usize] else { continue };
            path.handle_timeout(now, &mut self.shared);
            if path.is_gone() {
                self.remove(place);
                continue;
            }
            if let Some(next) = path.next_timeout(now, &self.shared.options) {
                self.deadlines.at_least(place, next.max(now + LOOK_NS));
            }
            self.settle(now, place);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) and then [`poll_transmit`](Self::poll_transmit) are to be called next, if nothing
    /// arrives. Means something after `poll_transmit` has returned `None`.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let paced = (!self.held_back.is_empty()).then(|| self.shared.pacer.ready_at());
        let due = self.deadlines.first().map(|first| first.max(self.grace_ns.unwrap_or(0)));
        let next = [due, paced].into_iter().flatten().min();
        next.map(Timestamp)
    }

    /// Writes the next datagram to the beginning of `space`, which is as long as the port's largest datagram. `None` where nothing is to
    /// be sent now.
    pub fn poll_transmit(&mut self, now: Timestamp, space: &mut [u8]) -> Option<Departure> {
        let now = now.0;
        if !self.held_back.is_empty() {
            self.release(now);
        }
        while let Some(&place) = self.ready.front() {
            let Some(path) = &mut self.paths[place as usize] else {
                self.ready.pop_front();
                continue;
            };
            let departure = path.transmit(now, space, &mut self.shared);
            if path.is_paced() && !path.held_back {
                path.held_back = true;
                self.held_back.push_back(place);
            }
            if departure.is_none() || path.ends_turn() {
                self.ready.pop_front();
                path.queued = departure.is_some();
                if path.queued {
                    self.ready.push_back(place);
                }
            }
            if std::mem::take(&mut path.rearm) {
                self.deadlines.at_least(place, path.soonest_timeout(now, &self.shared.options).max(now));
            }
            if departure.is_some() {
                return departure;
            }
            if path.is_gone() {
                self.remove(place);
            }
        }
        None
    }

    /// Lets the path that has waited longest grant again, where the pacer allows it.
    fn release(&mut self, now: u64) {
        self.shared.pacer.fill(now);
        if !self.shared.pacer.is_ready() {
            return;
        }
        while let Some(place) = self.held_back.pop_front() {
            let Some(path) = &mut self.paths[place as usize] else { continue };
            path.held_back = false;
            path.let_go();
            if !path.has_work(now) {
                continue;
            }
            if !path.queued {
                path.queued = true;
                self.ready.push_front(place);
            }
            return;
        }
    }

    /// The next thing that has come of it all.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.shared.events.pop_front()
    }

    /// After anything that a path was told.
    fn settle(&mut self, now: u64, place: u32) {
        let Some(path) = &mut self.paths[place as usize] else { return };
        if path.is_closing() && self.ids.get(&path.id) == Some(&place) {
            self.ids.remove(&path.id);
        }
        if path.is_gone() {
            return self.remove(place);
        }
        if std::mem::take(&mut path.rearm) {
            self.deadlines.at_least(place, path.soonest_timeout(now, &self.shared.options).max(now));
        }
        if !path.queued && path.has_work(now) {
            path.queued = true;
            self.ready.push_back(place);
        }
    }

    fn remove(&mut self, place: u32) {
        let Some(path) = self.paths[place as usize].take() else { return };
        self.numbers.remove(&path.number);
        self.last = (0, u32::MAX);
        self.deadlines.clear(place);
        // Its places in the queues must not be another's.
        self.ready.retain(|other| *other != place);
        self.held_back.retain(|other| *other != place);
        self.vacant.push(place);
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("paths", &self.ids.len())
            .field("counters", &self.shared.counters)
            .finish()
    }
}
