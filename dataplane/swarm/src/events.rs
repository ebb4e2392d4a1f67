//! What is reported to the planner: words of sources, and the ends of reads.

use velo_object::{BlobId, NodeId, Pieces};

use crate::action::*;
use crate::bits::Bits;
use crate::blob::{Blob, Holder, Map, Phase};
use crate::flight::{Flight, FlightKind};
use crate::planner::Planner;

/// Strikes (not there, refused) after which a source's word on a blob counts no more.
const STRIKES: u8 = 8;
/// How long to wait before the same source is asked for the same outboard again.
const OUTBOARD_AGAIN_US: u64 = 1_000_000;
const REFUSED_AGAIN_US: u64 = 100_000;
const LOCAL_AGAIN_US: u64 = 10_000;
/// Pieces announced before the size of their blob is known, kept for one source and blob.
const EARLY: usize = 1024;
const MAX_BLOB_BYTES: u64 = 1 << 46;

impl Planner {
    /// A source says what it has of a blob, all of it; replaces what it said before. Ignored for unknown blobs and sources.
    ///
    /// A puller that did not know the size at first must call this again when it does.
    pub fn handle_have(&mut self, now: u64, node: &NodeId, blob: &BlobId, mut have: Have) {
        let Some((slot, at)) = self.locate(node, blob) else { return };
        let (Some(state), Some(source)) = (self.blobs.get_mut(slot), self.sources.get_mut(at)) else {
            return;
        };
        if state.phase == Phase::Done || state.banned.contains(node) {
            return;
        }
        if state.proven && have.size_bytes != state.size && have.have.is_empty() {
            // A puller that somebody has told a wrong size, and that has not found out yet.
            have = Have::default();
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
        // A map costs up to three sets (what it has, what of it is useful, holes); beyond its share a source has nothing, or
        // counts as one that has all and never pulled it.
        let room = source.map_words + 4 * count.div_ceil(64) as usize <= self.limits.map_words_per_source;
        holder.peer &= room || !full;
        holder.map = match (full, have.have.is_empty() || !room) {
            (true, _) => Map::Full,
            (_, true) => Map::Empty,
            _ => Map::Some(Bits::from_words(count, &have.have.words())),
        };
        if !have.holes.is_empty() && room {
            holder.holes = Some(Box::new(Bits::from_words(count, &have.holes.words())));
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
        let (count, before) = (Pieces::new(size).count(), holder.heap_words());
        if matches!(holder.map, Map::Empty) {
            if source.map_words + 4 * count.div_ceil(64) as usize > self.limits.map_words_per_source {
                return;
            }
            holder.map = Map::Some(Bits::new(count));
        }
        source.map_words = source.map_words.saturating_sub(before);
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
        let provisional = matches!(blob.phase, Phase::Provisional(_));
        if provisional && !self.by_node.contains_key(&flight.node) {
            // Its sender went while it was checked, and nobody else answers for it.
            return self.drop_outboard(now, flight.slot);
        }
        self.fit_all(now, flight.slot);
        self.finish_if_full(flight.slot);
    }

    /// The bytes of an outboard have come: their check may take its time, for what is at the target already is hashed then. The
    /// source is free, and its end or delay does not take the read away any more.
    pub fn handle_outboard_read(&mut self, now: u64, tag: Tag) {
        let Some(flight) = self.flights.get_mut(&tag) else { return };
        if flight.checking || flight.kind != FlightKind::Outboard {
            return;
        }
        flight.checking = true;
        let flight = flight.clone();
        if let Some(source) = self.sources.get_mut(flight.source) {
            source.end(now, flight.bytes);
            source.deliver(now, flight.began_us, flight.bytes);
        }
        self.touch(flight.source, now);
    }

    /// What came as an outboard is none, or has another root or size. Names whom to charge; `None` for a dead tag.
    pub fn handle_bad_outboard(&mut self, now: u64, tag: Tag) -> Option<Blame> {
        let flight = self.land(now, tag, true)?;
        self.counters.retries += 1;
        self.blobs.get_mut(flight.slot)?.asked = false;
        Some(self.charge(now, &flight, flight.node, Accusation::Outboard))
    }

    /// The blob that an outboard describes, or that its length implies, cannot be received here, and only its sender says that it
    /// is so large: others are asked.
    pub fn handle_too_large(&mut self, now: u64, tag: Tag) {
        let Some(flight) = self.land(now, tag, true) else { return };
        self.counters.retries += 1;
        if let Some(blob) = self.blobs.get_mut(flight.slot) {
            blob.asked = false;
        }
        self.ban(now, flight.slot, flight.source, DropReason::TooLarge);
        self.wake_all(now, flight.slot);
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

    /// A piece (or a hole) is verified and stored, wherever it came from. False where that was known, or helps nobody.
    pub fn handle_verified(&mut self, now: u64, blob: &BlobId, index: u64) -> bool {
        let Some(&slot) = self.by_id.get(blob) else { return false };
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
        let Some(state) = self.blobs.get_mut(slot) else { return false };
        if state.phase == Phase::Unsized {
            // The one piece of a small blob has proven the size that it was asked under.
            let Some(size) = size.filter(|&size| index == 0 && Blob::small(size)) else { return false };
            state.set_size(size, None);
            state.proven = true;
            state.asked = false;
            state.phase = Phase::Open;
        }
        if !state.verified.insert(index) {
            return false;
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
            let mut liars = Vec::new();
            for holder in &mut state.holders {
                match holder.map {
                    _ if holder.size.is_none_or(|size| size == size_bytes) => {}
                    Map::Empty => holder.size = None,
                    Map::Full | Map::Some(_) => liars.push(holder.source),
                }
            }
            self.out.push_back(Action::SizeConfirmed { blob: *blob, size_bytes });
            liars.into_iter().for_each(|at| self.ban(now, slot, at, DropReason::WrongSize));
            self.fit_all(now, slot);
        }
        self.finish_if_full(slot);
        true
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
    pub(crate) fn try_other_outboard(&mut self, now: u64, flight: &Flight) {
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
}
