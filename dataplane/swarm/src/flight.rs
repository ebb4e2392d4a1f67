//! Reads and trials from their action to their end.

use velo_object::NodeId;

use crate::action::*;
use crate::blob::Phase;
use crate::planner::Planner;

/// Dead tags remembered, so that bytes that come for them can be counted.
const DEAD_TAGS: usize = 1024;
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

impl Planner {
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
    pub(crate) fn land(&mut self, now: u64, tag: Tag, delivered: bool) -> Option<Flight> {
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

    pub(crate) fn cancel_others(&mut self, now: u64, slot: u32, index: u64, winner: Tag) {
        for tag in self.by_piece.get(&(slot, index)).cloned().unwrap_or_default() {
            if tag != winner && self.flights.get(&tag).is_some_and(|flight| !flight.checking) {
                self.cancel(now, tag);
            }
        }
    }
}
