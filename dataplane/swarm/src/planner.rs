//! The planner's state and the events that change it. What to ask next is in `pick.rs`, what time does in `tick.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use velo_object::{BlobId, NodeId, PIECE_BYTES, Pieces};

use crate::action::*;
use crate::bits::Bits;
use crate::blob::{Blob, Holder, Map, Phase};
use crate::rendezvous::{mix, node_key};
use crate::slab::Slab;
use crate::source::Source;

/// Blobs added one after another are asked for in order of such groups, and inside one in an order of this node's own, so that
/// nodes that begin at the same time do not begin with the same ones.
const GROUP: u64 = 1024;
/// Strikes (not there, refused) after which a source's word on a blob counts no more.
const STRIKES: u8 = 8;
/// How long to wait before the same source is asked for the same outboard again.
const OUTBOARD_AGAIN_US: u64 = 1_000_000;
const REFUSED_AGAIN_US: u64 = 100_000;
const LOCAL_AGAIN_US: u64 = 10_000;
/// Pieces announced before the size of their blob is known, kept for one source and blob.
const EARLY: usize = 1024;
/// Dead tags remembered, so that bytes that come for them can be counted.
const DEAD_TAGS: usize = 1024;
const MAX_BLOB_BYTES: u64 = 1 << 46;
/// Stands for the outboard where the piece's index stands.
pub(crate) const OUTBOARD: u64 = u64::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FlightKind {
    Outboard,
    Piece,
    Hole,
}

/// A read or trial between its action and its end.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) slot: u32,
    /// The piece, or [`OUTBOARD`].
    pub(crate) index: u64,
    pub(crate) source: u32,
    pub(crate) node: NodeId,
    pub(crate) kind: FlightKind,
    /// Size of the blob that it was asked under.
    pub(crate) size: u64,
    pub(crate) bytes: u64,
    pub(crate) began_us: u64,
    /// Its bytes are here and being verified.
    pub(crate) checking: bool,
}

/// Decides what to read next from whom. See the crate's page for who calls what when.
#[derive(Debug)]
pub struct Planner {
    pub(crate) me: NodeId,
    pub(crate) me_key: u64,
    pub(crate) seed: u64,
    pub(crate) limits: Limits,
    pub(crate) blobs: Slab<Blob>,
    by_id: HashMap<BlobId, u32>,
    pub(crate) sources: Slab<Source>,
    by_node: HashMap<NodeId, u32>,
    /// Sources with room and something to look at.
    pub(crate) runnable: BTreeSet<u32>,
    pub(crate) last_picked: u32,
    /// By tag, so the oldest comes first.
    pub(crate) flights: BTreeMap<Tag, Flight>,
    pub(crate) by_piece: HashMap<(u32, u64), Vec<Tag>>,
    next_tag: Tag,
    dead: VecDeque<Tag>,
    /// (slot, source) of claims of holes.
    pub(crate) hole_claims: VecDeque<(u32, u32)>,
    pub(crate) trials: u32,
    pub(crate) out: VecDeque<Action>,
    pub(crate) bytes_in_flight: u64,
    /// Blobs of which something is open that nobody may be asked for now.
    pub(crate) waiting: BTreeSet<u32>,
    pub(crate) waiting_cursor: u32,
    /// Changes whenever the set of pullers that can be counted on does.
    pub(crate) epoch: u64,
    pub(crate) unfinished: usize,
    added: u64,
    pub(crate) next_tick_us: u64,
    pub(crate) paused_until_us: u64,
    /// Since when nothing is in flight; `u64::MAX` while something is.
    pub(crate) idle_since_us: u64,
    /// How long a piece from a complete holder takes, smoothed.
    pub(crate) seed_latency_us: u64,
    pub(crate) counters: Counters,
}

impl Planner {
    /// A planner for the node `me`. `seed` breaks ties.
    pub fn new(me: NodeId, limits: Limits, seed: u64) -> Self {
        Self {
            me,
            me_key: node_key(&me),
            seed,
            limits,
            blobs: Slab::new(),
            by_id: HashMap::new(),
            sources: Slab::new(),
            by_node: HashMap::new(),
            runnable: BTreeSet::new(),
            last_picked: 0,
            flights: BTreeMap::new(),
            by_piece: HashMap::new(),
            next_tag: 1,
            dead: VecDeque::new(),
            hole_claims: VecDeque::new(),
            trials: 0,
            out: VecDeque::new(),
            bytes_in_flight: 0,
            waiting: BTreeSet::new(),
            waiting_cursor: 0,
            epoch: 1,
            unfinished: 0,
            added: 0,
            next_tick_us: 0,
            paused_until_us: 0,
            idle_since_us: 0,
            seed_latency_us: 0,
            counters: Counters::default(),
        }
    }

    /// A blob is wanted. False if it was known already (then its priority may rise) or [`Limits::blobs`] are.
    ///
    /// What sources said of a blob before it was added was ignored: ask them again (send them Interest) after this.
    pub fn add_blob(&mut self, now: u64, spec: BlobSpec) -> bool {
        if let Some(&slot) = self.by_id.get(&spec.blob) {
            self.raise(slot, spec.priority);
            return false;
        }
        if self.blobs.len() >= self.limits.blobs {
            return false;
        }
        let key = crate::rendezvous::blob_key(&spec.blob);
        let random = mix(self.seed ^ self.me_key ^ key);
        let order = u64::from(u8::MAX - spec.priority) << 56
            | ((self.added / GROUP) & 0xff_ffff) << 32
            | (random & 0xffff_ffff);
        self.added += 1;
        let mut blob = Blob::new(spec.blob, order, random);
        blob.epoch = self.epoch;
        if let Known::Size(size) | Known::Outboard(size) = spec.known {
            blob.set_size(size, spec.have.as_ref());
            blob.proven = true;
            let open = matches!(spec.known, Known::Outboard(_)) || Blob::small(size);
            blob.phase = if open { Phase::Open } else { Phase::Bare };
        }
        self.unfinished += 1;
        let slot = self.blobs.insert(blob);
        self.by_id.insert(spec.blob, slot);
        if self.unfinished == 1 {
            self.next_tick_us = now;
        }
        if spec.known == Known::Size(0) || spec.known == Known::Outboard(0) {
            // Nothing to read: its one piece is empty.
            if self.blobs.get(slot).is_some_and(|blob| !blob.open.is_empty()) {
                let tag = self.launch(now, slot, u32::MAX, FlightKind::Hole, 0, 0, 0);
                self.out.push_back(Action::TryHole { tag, blob: spec.blob, index: 0, len: 0 });
            }
        }
        self.finish_if_full(slot);
        true
    }

    fn raise(&mut self, slot: u32, priority: u8) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        let high = u64::from(u8::MAX - priority) << 56;
        if high >= blob.order & 0xff << 56 {
            return;
        }
        let old = blob.order;
        blob.order = high | old & !(0xff << 56);
        for holder in blob.holders.iter().filter(|holder| holder.ready) {
            if let Some(source) = self.sources.get_mut(holder.source) {
                source.ready.remove(&(old, slot));
                source.ready.insert((blob.order, slot));
            }
        }
    }

    /// A blob is not wanted any more, or is committed. Its outstanding reads are cancelled by actions.
    pub fn remove_blob(&mut self, now: u64, blob: &BlobId) {
        let Some(slot) = self.by_id.remove(blob) else { return };
        let tags: Vec<Tag> =
            self.flights.iter().filter(|(_, flight)| flight.slot == slot).map(|(&tag, _)| tag).collect();
        tags.into_iter().for_each(|tag| self.cancel(now, tag));
        let Some(blob) = self.blobs.remove(slot) else { return };
        if blob.phase != Phase::Done {
            self.unfinished -= 1;
        }
        self.waiting.remove(&slot);
        self.hole_claims.retain(|claim| claim.0 != slot);
        for holder in &blob.holders {
            if let Some(source) = self.sources.get_mut(holder.source) {
                source.ready.remove(&(blob.order, slot));
                source.map_words = source.map_words.saturating_sub(holder.heap_words());
            }
            self.touch(holder.source, now);
        }
    }

    /// A node can be read from. False if [`Limits::sources`] are there. A known one only gets the new `info`.
    pub fn add_source(&mut self, now: u64, node: NodeId, info: SourceInfo) -> bool {
        if let Some(source) = self.by_node.get(&node).and_then(|&at| self.sources.get_mut(at)) {
            source.info = info;
            self.epoch += 1;
            return true;
        }
        if self.sources.len() >= self.limits.sources || node == self.me {
            return false;
        }
        let at = self.sources.insert(Source::new(now, node, info));
        self.by_node.insert(node, at);
        true
    }

    /// A node cannot be read from any more: reads whose bytes have not come are dead and will be asked elsewhere, and what it
    /// said is forgotten.
    pub fn remove_source(&mut self, now: u64, node: &NodeId) {
        let Some(at) = self.by_node.remove(node) else { return };
        self.recall(now, at, false);
        for slot in 0..self.blobs.end() {
            self.forget_holder(now, slot, at);
        }
        self.sources.remove(at);
        self.runnable.remove(&at);
        self.epoch += 1;
        // The slot may get another source: what is still being checked must not count for that one.
        self.flights.values_mut().filter(|flight| flight.source == at).for_each(|f| f.source = u32::MAX);
    }

    /// A source says what it has of a blob, all of it; replaces what it said before. Ignored for unknown blobs and sources.
    ///
    /// A puller that did not know the size at first must call this again when it does.
    pub fn handle_have(&mut self, now: u64, node: &NodeId, blob: &BlobId, have: Have) {
        let Some((slot, at)) = self.locate(node, blob) else { return };
        let (Some(state), Some(source)) = (self.blobs.get_mut(slot), self.sources.get_mut(at)) else {
            return;
        };
        if state.phase == Phase::Done || state.banned.contains(node) {
            return;
        }
        let count = have.size_bytes.map_or(0, |size| Pieces::new(size.min(MAX_BLOB_BYTES)).count());
        let fits = have.have.len() == count && (have.holes.len() == count || have.holes.is_empty());
        let size_fits = !state.proven || have.size_bytes.is_none() || have.size_bytes == state.size;
        if !fits || !size_fits || have.size_bytes.is_some_and(|size| size > MAX_BLOB_BYTES) {
            self.ban(now, slot, at, DropReason::WrongSize);
            return;
        }
        let position = match state.position(at) {
            Ok(position) => position,
            Err(position) => {
                state.holders.insert(position, Holder::new(at));
                position
            }
        };
        let full = have.have.is_full() && have.size_bytes.is_some();
        let holder = &mut state.holders[position];
        source.map_words = source.map_words.saturating_sub(holder.heap_words());
        holder.size = have.size_bytes;
        holder.peer |= !full;
        holder.early.clear();
        holder.strikes = 0;
        holder.outboard_not_before_us = 0;
        holder.useful = Bits::new(0);
        holder.holes = None;
        // A map costs up to three sets (what it has, what of it is useful, holes); beyond its share a source has nothing.
        let room = source.map_words + 4 * have.have.words().len() <= self.limits.map_words_per_source;
        holder.map = match (full, have.have.is_empty() || !room) {
            (true, _) => Map::Full,
            (_, true) => Map::Empty,
            _ => Map::Some(Bits::from_words(count, have.have.words())),
        };
        if !have.holes.is_empty() && room {
            holder.holes = Some(Box::new(Bits::from_words(count, have.holes.words())));
        }
        if holder.peer {
            source.last_news_us = now;
            source.active = true;
        }
        state.fit(position);
        source.map_words += state.holders[position].heap_words();
        self.queue_holes(slot, position);
        self.wake(now, slot, position);
        self.wake_starved(now, slot);
    }

    /// A source says that it has nothing of a blob and is not pulling it.
    pub fn handle_have_not(&mut self, now: u64, node: &NodeId, blob: &BlobId) {
        let Some((slot, at)) = self.locate(node, blob) else { return };
        self.forget_holder(now, slot, at);
        self.epoch += 1;
    }

    /// A source has more pieces of a blob: (index, whether it is a hole).
    pub fn handle_have_more(&mut self, now: u64, node: &NodeId, blob: &BlobId, pieces: &[(u64, bool)]) {
        let Some((slot, at)) = self.locate(node, blob) else { return };
        let (Some(state), Some(source)) = (self.blobs.get_mut(slot), self.sources.get_mut(at)) else {
            return;
        };
        if state.phase == Phase::Done || state.banned.contains(node) {
            return;
        }
        let position = match state.position(at) {
            Ok(position) => position,
            Err(position) => {
                let mut holder = Holder::new(at);
                holder.peer = true;
                state.holders.insert(position, holder);
                position
            }
        };
        let holder = &mut state.holders[position];
        source.last_news_us = now;
        source.active = true;
        holder.outboard_not_before_us = 0;
        let sized = if holder.size.is_some() { holder.size } else { state.size };
        let Some(size) = sized.filter(|_| state.size.is_none() || holder.fits(state.size)) else {
            let room = EARLY - holder.early.len().min(EARLY);
            holder.early.extend(pieces.iter().take(room));
            return;
        };
        source.map_words = source.map_words.saturating_sub(holder.heap_words());
        let count = Pieces::new(size).count();
        if matches!(holder.map, Map::Empty)
            && source.map_words + 4 * count.div_ceil(64) as usize <= self.limits.map_words_per_source
        {
            holder.map = Map::Some(Bits::new(count));
        }
        if holder.peer && holder.useful.len() != count {
            holder.useful = Bits::new(count);
        }
        let mut holes = false;
        if let Map::Some(bits) = &mut holder.map {
            for &(index, hole) in pieces {
                if !bits.insert(index) || state.verified.contains(index) {
                    continue;
                }
                holder.useful.insert(index);
                if hole && (state.size.is_none() || state.open.contains(index)) {
                    holes = true;
                    holder.holes.get_or_insert_with(|| Box::new(Bits::new(count))).insert(index);
                }
            }
            if bits.is_full() {
                holder.map = Map::Full;
            }
        }
        source.map_words += holder.heap_words();
        if holes {
            state.gather_holes();
            self.queue_holes(slot, position);
        }
        self.wake(now, slot, position);
    }

    /// An outboard has come, merges to the blob's id and states the size that was asked for.
    pub fn handle_outboard(&mut self, now: u64, tag: Tag) {
        let Some(flight) = self.land(now, tag, true) else { return };
        let Some(blob) = self.blobs.get_mut(flight.slot) else { return };
        blob.asked = false;
        match blob.phase {
            Phase::Bare => blob.phase = Phase::Open,
            Phase::Unsized => {
                blob.set_size(flight.size, None);
                blob.phase = Phase::Provisional(flight.node);
            }
            Phase::Provisional(_) | Phase::Open | Phase::Done => return,
        }
        self.fit_all(now, flight.slot);
        self.finish_if_full(flight.slot);
    }

    /// What came as an outboard is none, or has another root or size. Names whom to charge; `None` for a dead tag.
    pub fn handle_bad_outboard(&mut self, now: u64, tag: Tag) -> Option<Blame> {
        let flight = self.land(now, tag, true)?;
        self.counters.retries += 1;
        self.blobs.get_mut(flight.slot)?.asked = false;
        Some(self.charge(now, &flight, flight.node, Accusation::Outboard))
    }

    /// The bytes of a piece have come: the source is free for the next. Says whether they are still needed.
    pub fn handle_piece_read(&mut self, now: u64, tag: Tag, bytes: u32) -> Arrival {
        let Some(flight) = self.flights.get_mut(&tag) else {
            if let Some(at) = self.dead.iter().position(|&dead| dead == tag) {
                self.dead.remove(at);
                self.counters.duplicates += 1;
                self.counters.duplicate_bytes += u64::from(bytes);
            }
            return Arrival::Discard;
        };
        if flight.checking || flight.kind != FlightKind::Piece {
            return Arrival::Discard;
        }
        flight.checking = true;
        let flight = flight.clone();
        if let Some(source) = self.sources.get_mut(flight.source) {
            source.end(now, flight.bytes);
            source.deliver(now, flight.began_us, u64::from(bytes));
        }
        let seed = |blob: &mut Blob| blob.holder(flight.source).is_some_and(|holder| !holder.peer);
        if self.blobs.get_mut(flight.slot).is_some_and(seed) {
            let took_us = now.saturating_sub(flight.began_us);
            self.seed_latency_us = self.seed_latency_us - self.seed_latency_us / 4 + took_us / 4;
        }
        self.touch(flight.source, now);
        self.cancel_others(now, flight.slot, flight.index, tag);
        Arrival::Check
    }

    /// A piece (or a hole) is verified and stored, wherever it came from.
    pub fn handle_verified(&mut self, now: u64, blob: &BlobId, index: u64) {
        let Some(&slot) = self.by_id.get(blob) else { return };
        let tags = self.by_piece.get(&(slot, index)).cloned().unwrap_or_default();
        let mut size = None;
        for tag in tags {
            let Some(flight) = self.flights.get(&tag) else { continue };
            size = Some(flight.size);
            if flight.kind == FlightKind::Hole {
                self.counters.holes += 1;
            }
            if flight.checking || flight.kind == FlightKind::Hole {
                self.land(now, tag, false);
            } else {
                self.cancel(now, tag);
            }
        }
        let Some(state) = self.blobs.get_mut(slot) else { return };
        if state.phase == Phase::Unsized {
            // The one piece of a small blob has proven the size that it was asked under.
            let Some(size) = size.filter(|&size| index == 0 && Blob::small(size)) else { return };
            state.set_size(size, None);
            state.proven = true;
            state.asked = false;
            state.phase = Phase::Open;
        }
        if !state.verified.insert(index) {
            return;
        }
        self.counters.verified += 1;
        state.open.remove(index);
        state.from_seeds.remove(index);
        if let Some(holes) = &mut state.holes {
            holes.remove(index);
        }
        if matches!(state.phase, Phase::Provisional(_)) && index == state.pieces().last() {
            let size_bytes = state.pieces().size_bytes();
            state.proven = true;
            state.phase = Phase::Open;
            let liars: Vec<u32> = state
                .holders
                .iter()
                .filter(|holder| holder.size.is_some_and(|size| size != size_bytes))
                .map(|holder| holder.source)
                .collect();
            self.out.push_back(Action::SizeConfirmed { blob: *blob, size_bytes });
            liars.into_iter().for_each(|at| self.ban(now, slot, at, DropReason::WrongSize));
            self.fit_all(now, slot);
        }
        self.finish_if_full(slot);
    }

    /// A piece did not verify, or is no hole. Names whom to charge; `None` for a dead tag, and for further holes claimed by who
    /// was charged already.
    pub fn handle_bad_piece(&mut self, now: u64, tag: Tag) -> Option<Blame> {
        let flight = self.land(now, tag, false)?;
        self.counters.retries += 1;
        let blob = self.blobs.get(flight.slot)?;
        let phase = blob.phase;
        let charged = blob.banned.contains(&flight.node) || flight.source == u32::MAX;
        self.reopen(now, &flight);
        let blame = match (flight.kind, phase) {
            (FlightKind::Hole, _) if charged => return None,
            (_, Phase::Provisional(sender)) => {
                self.drop_outboard(now, flight.slot);
                self.charge(now, &flight, sender, Accusation::Outboard)
            }
            (FlightKind::Hole, _) => {
                self.charge(now, &flight, flight.node, Accusation::Hole { index: flight.index })
            }
            _ => self.charge(now, &flight, flight.node, Accusation::Piece { index: flight.index }),
        };
        Some(blame)
    }

    /// A read brought nothing. It is asked again, elsewhere if possible.
    pub fn handle_failed(&mut self, now: u64, tag: Tag, failure: Failure) {
        let Some(flight) = self.land(now, tag, false) else { return };
        self.counters.retries += 1;
        self.reopen(now, &flight);
        self.fail(now, &flight, failure);
    }

    /// What a failed read says of its source.
    pub(crate) fn fail(&mut self, now: u64, flight: &Flight, failure: Failure) {
        let slot = flight.slot;
        match failure {
            Failure::Local => {
                self.paused_until_us = now + LOCAL_AGAIN_US;
                self.wake_all(now, slot);
                return;
            }
            Failure::Stalled | Failure::PathClosed => {
                if let Some(source) = self.sources.get_mut(flight.source) {
                    // One lost path or one stall takes many reads with it: it counts once.
                    if source.usable(now) {
                        self.counters.stalls += u64::from(failure == Failure::Stalled);
                        source.back_off(now);
                        self.epoch += 1;
                    }
                }
                self.touch(flight.source, now);
            }
            Failure::NotHere | Failure::Refused => self.strike(now, flight, failure),
        }
        self.try_other_outboard(now, flight);
        self.wake_all(now, slot);
    }

    /// Who did not deliver an outboard, or the last piece that would have proven it, lets others come first.
    fn try_other_outboard(&mut self, now: u64, flight: &Flight) {
        let Some(blob) = self.blobs.get_mut(flight.slot) else { return };
        let provisional = matches!(blob.phase, Phase::Provisional(_));
        if !provisional && flight.kind != FlightKind::Outboard {
            return;
        }
        if let Some(holder) = blob.holder(flight.source) {
            holder.outboard_not_before_us = now + OUTBOARD_AGAIN_US;
            self.waiting.insert(flight.slot);
        }
        if provisional {
            self.drop_outboard(now, flight.slot);
        }
    }

    fn strike(&mut self, now: u64, flight: &Flight, failure: Failure) {
        let Some(holder) = self.blobs.get_mut(flight.slot).and_then(|blob| blob.holder(flight.source)) else {
            return;
        };
        holder.strikes = holder.strikes.saturating_add(1);
        let gone = holder.strikes >= STRIKES
            || (failure == Failure::NotHere
                && flight.kind == FlightKind::Piece
                && !matches!(holder.map, Map::Some(_)));
        if gone {
            self.forget_holder(now, flight.slot, flight.source);
            if let Some(blob) = self.blobs.get(flight.slot) {
                let why = DropReason::Refused;
                self.out.push_back(Action::Drop { node: flight.node, blob: blob.id, why });
            }
            self.epoch += 1;
        } else if failure == Failure::Refused {
            holder.not_before_us = now + (REFUSED_AGAIN_US << holder.strikes.min(6));
            self.waiting.insert(flight.slot);
        } else if let (Map::Some(bits), FlightKind::Piece) = (&mut holder.map, flight.kind) {
            bits.remove(flight.index);
            holder.useful.remove(flight.index);
        }
    }

    /// Where a blob stands; `None` if it is not known. Counts the holders.
    pub fn progress(&self, blob: &BlobId) -> Option<Progress> {
        let state = self.blobs.get(*self.by_id.get(blob)?)?;
        let has = |holder: &&Holder| !matches!(holder.map, Map::Empty);
        Some(Progress {
            size_bytes: state.size,
            pieces: state.verified.len(),
            verified: state.verified.count(),
            in_flight: state.flights,
            sources: state.holders.iter().filter(has).count() as u32,
            provisional: matches!(state.phase, Phase::Provisional(_)),
        })
    }

    /// Where the sources stand.
    pub fn sources(&self) -> impl Iterator<Item = SourceStatus> + '_ {
        self.sources.iter().map(|(_, source)| SourceStatus {
            node: source.node,
            distance: source.info.distance,
            in_flight: source.reads,
            bytes_per_s: source.rate,
            delivered_bytes: source.delivered,
            accusations: source.accusations,
        })
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// When to poll again even if nothing happens; `None` if never.
    pub fn next_deadline(&self) -> Option<u64> {
        let busy = self.unfinished > 0 || !self.flights.is_empty();
        let paused = if self.paused_until_us > 0 { self.paused_until_us } else { u64::MAX };
        busy.then(|| self.next_tick_us.min(paused))
    }

    fn locate(&self, node: &NodeId, blob: &BlobId) -> Option<(u32, u32)> {
        Some((*self.by_id.get(blob)?, *self.by_node.get(node)?))
    }

    fn finish_if_full(&mut self, slot: u32) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        if blob.phase != Phase::Open || !blob.verified.is_full() {
            return;
        }
        blob.phase = Phase::Done;
        self.unfinished -= 1;
        self.waiting.remove(&slot);
        self.out.push_back(Action::BlobReady { blob: blob.id });
        // Nothing is wanted from its holders any more.
        for holder in std::mem::take(&mut blob.holders) {
            if let Some(source) = self.sources.get_mut(holder.source) {
                source.ready.remove(&(blob.order, slot));
                source.map_words = source.map_words.saturating_sub(holder.heap_words());
            }
        }
        blob.open = Bits::new(blob.verified.len().min(64));
        blob.from_seeds = blob.open.clone();
    }

    fn fit_all(&mut self, now: u64, slot: u32) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        for at in 0..blob.holders.len() {
            let before = blob.holders[at].heap_words();
            blob.fit(at);
            if let Some(source) = self.sources.get_mut(blob.holders[at].source) {
                source.map_words = (source.map_words + blob.holders[at].heap_words()).saturating_sub(before);
            }
        }
        for at in 0..self.blobs.get(slot).map_or(0, |blob| blob.holders.len()) {
            self.queue_holes(slot, at);
        }
        self.wake_all(now, slot);
    }

    fn queue_holes(&mut self, slot: u32, position: usize) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        let holder = &mut blob.holders[position];
        if holder.holes.is_some() && holder.fits(blob.size) && !holder.hole_queued {
            holder.hole_queued = true;
            self.hole_claims.push_back((slot, holder.source));
        }
    }

    fn forget_holder(&mut self, now: u64, slot: u32, at: u32) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        let Ok(position) = blob.position(at) else { return };
        let holder = blob.holders.remove(position);
        let sender = matches!(blob.phase, Phase::Provisional(sender)
            if self.sources.get(at).is_some_and(|source| source.node == sender));
        if holder.holes.is_some() {
            blob.gather_holes();
            blob.reset(self.epoch);
        }
        if let Some(source) = self.sources.get_mut(at) {
            source.ready.remove(&(blob.order, slot));
            source.map_words = source.map_words.saturating_sub(holder.heap_words());
        }
        if holder.hole_queued {
            self.hole_claims.retain(|claim| *claim != (slot, at));
        }
        // Where the last piece is being verified, that decides.
        if sender && !self.flights.values().any(|flight| flight.slot == slot && flight.checking) {
            self.drop_outboard(now, slot);
        }
        self.touch(at, now);
        self.waiting.insert(slot);
    }

    /// The provisional outboard cannot be proven: begin again without it.
    fn drop_outboard(&mut self, now: u64, slot: u32) {
        let Some(blob) = self.blobs.get(slot) else { return };
        if !matches!(blob.phase, Phase::Provisional(_)) {
            return;
        }
        self.out.push_back(Action::OutboardDropped { blob: blob.id });
        let tags: Vec<Tag> =
            self.flights.iter().filter(|(_, flight)| flight.slot == slot).map(|(&tag, _)| tag).collect();
        tags.into_iter().for_each(|tag| self.cancel(now, tag));
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.forget_size();
            blob.asked = false;
        }
        self.wake_all(now, slot);
    }

    fn charge(&mut self, now: u64, flight: &Flight, node: NodeId, accusation: Accusation) -> Blame {
        self.counters.accusations += 1;
        let why = match accusation {
            Accusation::Outboard => DropReason::BadOutboard,
            Accusation::Piece { .. } | Accusation::Hole { .. } => DropReason::BadPiece,
        };
        let blob = self.blobs.get(flight.slot).map_or(BlobId::from_bytes([0; 32]), |blob| blob.id);
        match self.by_node.get(&node).copied() {
            Some(at) => {
                if let Some(source) = self.sources.get_mut(at) {
                    source.accusations += 1;
                }
                self.ban(now, flight.slot, at, why);
            }
            None => {
                // It has left meanwhile; it shall not come back for this blob.
                if let Some(state) = self.blobs.get_mut(flight.slot)
                    && !state.banned.contains(&node)
                {
                    state.banned.push(node);
                }
                self.out.push_back(Action::Drop { node, blob, why });
            }
        }
        self.wake_all(now, flight.slot);
        Blame { node, blob, accusation }
    }

    /// Asks a source for a blob no more, whatever it says.
    fn ban(&mut self, now: u64, slot: u32, at: u32, why: DropReason) {
        let (Some(blob), Some(source)) = (self.blobs.get_mut(slot), self.sources.get(at)) else { return };
        if blob.banned.contains(&source.node) {
            return;
        }
        blob.banned.push(source.node);
        self.out.push_back(Action::Drop { node: source.node, blob: blob.id, why });
        let tags: Vec<Tag> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.slot == slot && flight.source == at && !flight.checking)
            .filter(|(_, flight)| flight.kind != FlightKind::Hole)
            .map(|(&tag, _)| tag)
            .collect();
        for tag in tags {
            if let Some(flight) = self.flights.get(&tag).cloned() {
                self.cancel(now, tag);
                self.reopen(now, &flight);
            }
        }
        self.forget_holder(now, slot, at);
        self.epoch += 1;
    }

    /// Takes away all reads of a source whose bytes have not come. `aloud`: with actions that cancel them.
    pub(crate) fn recall(&mut self, now: u64, at: u32, aloud: bool) {
        let tags: Vec<Tag> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.source == at && !flight.checking && flight.kind != FlightKind::Hole)
            .map(|(&tag, _)| tag)
            .collect();
        for tag in tags {
            let Some(flight) = self.flights.get(&tag).cloned() else { continue };
            self.counters.retries += 1;
            if aloud {
                self.cancel(now, tag);
            } else {
                self.land(now, tag, false);
            }
            self.reopen(now, &flight);
            self.try_other_outboard(now, &flight);
        }
    }

    /// Makes the piece of a flight that has ended without it open again, unless another flight is after it.
    pub(crate) fn reopen(&mut self, now: u64, flight: &Flight) {
        let slot = flight.slot;
        let others = self.by_piece.contains_key(&(slot, flight.index));
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        if flight.kind == FlightKind::Outboard || blob.phase == Phase::Unsized {
            blob.asked = others;
            self.wake_all(now, slot);
            return;
        }
        let index = flight.index;
        if others || blob.verified.contains(index) || !blob.open.insert(index) {
            return;
        }
        blob.from_seeds.insert(index);
        if let Phase::Provisional(sender) = blob.phase
            && !self.by_node.contains_key(&sender)
        {
            self.drop_outboard(now, slot);
            return;
        }
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        if flight.kind == FlightKind::Hole
            && let Some(holes) = &mut blob.holes
        {
            holes.remove(index);
        }
        for at in 0..blob.holders.len() {
            let holder = &mut blob.holders[at];
            if holder.has(index) {
                holder.useful.insert(index);
            }
        }
        self.wake_all(now, slot);
    }

    /// Notes a new read or trial.
    #[expect(clippy::too_many_arguments, reason = "the fields of a flight, at its one place of birth")]
    pub(crate) fn launch(
        &mut self,
        now: u64,
        slot: u32,
        at: u32,
        kind: FlightKind,
        index: u64,
        size: u64,
        bytes: u64,
    ) -> Tag {
        let tag = self.next_tag;
        self.next_tag += 1;
        let node = self.sources.get(at).map_or(self.me, |source| source.node);
        let flight =
            Flight { slot, index, source: at, node, kind, size, bytes, began_us: now, checking: false };
        self.flights.insert(tag, flight);
        self.by_piece.entry((slot, index)).or_default().push(tag);
        self.idle_since_us = u64::MAX;
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.flights += 1;
            blob.open.remove(index);
            blob.from_seeds.remove(index);
        }
        if kind == FlightKind::Hole {
            self.trials += 1;
        } else {
            self.bytes_in_flight += bytes;
            if let Some(source) = self.sources.get_mut(at) {
                source.begin(now, bytes, &self.limits);
            }
            self.touch(at, now);
        }
        tag
    }

    /// Ends a flight. `delivered`: its bytes have just come.
    fn land(&mut self, now: u64, tag: Tag, delivered: bool) -> Option<Flight> {
        let flight = self.flights.remove(&tag)?;
        if let Some(tags) = self.by_piece.get_mut(&(flight.slot, flight.index)) {
            tags.retain(|&other| other != tag);
            if tags.is_empty() {
                self.by_piece.remove(&(flight.slot, flight.index));
            }
        }
        if let Some(blob) = self.blobs.get_mut(flight.slot) {
            blob.flights -= 1;
        }
        if flight.kind == FlightKind::Hole {
            self.trials -= 1;
        } else {
            self.bytes_in_flight -= flight.bytes;
            if !flight.checking
                && let Some(source) = self.sources.get_mut(flight.source)
            {
                source.end(now, flight.bytes);
                if delivered {
                    source.deliver(now, flight.began_us, flight.bytes);
                }
            }
            self.touch(flight.source, now);
        }
        if self.flights.is_empty() {
            self.idle_since_us = now;
        }
        Some(flight)
    }

    /// Ends a flight whose bytes are not wanted any more.
    pub(crate) fn cancel(&mut self, now: u64, tag: Tag) {
        let Some(flight) = self.land(now, tag, false) else { return };
        if flight.kind != FlightKind::Hole && !flight.checking {
            self.out.push_back(Action::Cancel { tag, node: flight.node });
            self.dead.push_back(tag);
            if self.dead.len() > DEAD_TAGS {
                self.dead.pop_front();
            }
        }
    }

    fn cancel_others(&mut self, now: u64, slot: u32, index: u64, winner: Tag) {
        for tag in self.by_piece.get(&(slot, index)).cloned().unwrap_or_default() {
            if tag != winner && self.flights.get(&tag).is_some_and(|flight| !flight.checking) {
                self.cancel(now, tag);
            }
        }
    }

    /// Has a holder looked at when its source is next asked.
    pub(crate) fn wake(&mut self, now: u64, slot: u32, position: usize) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        let holder = &mut blob.holders[position];
        if !holder.ready {
            holder.ready = true;
            if let Some(source) = self.sources.get_mut(holder.source) {
                source.ready.insert((blob.order, slot));
            }
        }
        let at = holder.source;
        self.touch(at, now);
    }

    pub(crate) fn wake_all(&mut self, now: u64, slot: u32) {
        for position in 0..self.blobs.get(slot).map_or(0, |blob| blob.holders.len()) {
            self.wake(now, slot, position);
        }
    }

    /// A new word may end another holder's wait: of two that could give the outboard the better is asked.
    fn wake_starved(&mut self, now: u64, slot: u32) {
        if self.blobs.get(slot).is_some_and(|blob| blob.flights == 0 && blob.phase != Phase::Open) {
            self.wake_all(now, slot);
        }
    }

    /// Brings `runnable` up to date for one source.
    pub(crate) fn touch(&mut self, at: u32, now: u64) {
        let Some(source) = self.sources.get(at) else { return };
        if !source.ready.is_empty() && source.usable(now) && source.has_room(&self.limits) {
            self.runnable.insert(at);
        } else {
            self.runnable.remove(&at);
        }
    }

    /// The bytes of piece `index` of a blob of `size` bytes.
    pub(crate) fn piece_len(size: u64, index: u64) -> u32 {
        (size - index * PIECE_BYTES).min(PIECE_BYTES) as u32
    }
}
