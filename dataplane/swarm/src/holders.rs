//! The sources of one blob: which are looked at, charged, barred or forgotten, and when a blob is done.

use velo_object::{BlobId, NodeId};

use crate::action::*;
use crate::bits::Bits;
use crate::blob::Phase;
use crate::flight::{Flight, FlightKind};
use crate::planner::Planner;

impl Planner {
    pub(crate) fn finish_if_full(&mut self, slot: u32) {
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

    pub(crate) fn fit_all(&mut self, now: u64, slot: u32) {
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

    pub(crate) fn queue_holes(&mut self, slot: u32, position: usize) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        let holder = &mut blob.holders[position];
        if holder.holes.is_some() && holder.fits(blob.size) && !holder.hole_queued {
            holder.hole_queued = true;
            self.hole_claims.push_back((slot, holder.source));
        }
    }

    pub(crate) fn forget_holder(&mut self, now: u64, slot: u32, at: u32) {
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
    pub(crate) fn drop_outboard(&mut self, now: u64, slot: u32) {
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

    pub(crate) fn charge(
        &mut self,
        now: u64,
        flight: &Flight,
        node: NodeId,
        accusation: Accusation,
    ) -> Blame {
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
    pub(crate) fn ban(&mut self, now: u64, slot: u32, at: u32, why: DropReason) {
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
    pub(crate) fn wake_starved(&mut self, now: u64, slot: u32) {
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
}
