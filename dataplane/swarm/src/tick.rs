//! What time does: stalls, pullers that announce nothing any more, impatience, end game.

use crate::Planner;
use crate::action::{Action, Tag};
use crate::blob::{Map, Phase};
use crate::flight::FlightKind;

/// Time between two looks at the clock's doings.
const TICK_US: u64 = 25_000;
/// Waiting blobs looked at in one tick; the next tick goes on behind them.
const LOOKED_AT: usize = 64;
/// The most pieces that are taken impatiently at once from one source.
const BURST: u32 = 64;
/// A read younger than this is never doubled.
const LATE_US: u64 = 1_000_000;
/// Second reads begun in one tick.
const SECOND_READS: usize = 8;
/// An outboard, or the last piece that proves it, is given this long, and a microsecond for each byte.
const OUTBOARD_US: u64 = 2_000_000;

impl Planner {
    pub(crate) fn tick(&mut self, now: u64) {
        self.next_tick_us = now + TICK_US;
        self.find_stalled(now);
        self.late_outboards(now);
        let patience_us = self.patience_us(now);
        self.find_inactive(now, patience_us);
        self.look_at_waiting(now);
        self.grow_impatient(now, patience_us);
        self.end_game(now);
    }

    fn find_stalled(&mut self, now: u64) {
        for at in 0..self.sources.end() {
            let Some(source) = self.sources.get_mut(at) else { continue };
            if source.reads > 0 && now.saturating_sub(source.last_delivery_us) > self.limits.stall_us {
                source.back_off(now);
                self.counters.stalls += 1;
                self.epoch += 1;
                self.recall(now, at, true);
            }
            self.touch(at, now);
        }
    }

    fn late_outboards(&mut self, now: u64) {
        let late: Vec<Tag> = self
            .flights
            .iter()
            .filter(|(_, flight)| {
                let phase = self.blobs.get(flight.slot).map(|blob| blob.phase);
                let proof = matches!(phase, Some(Phase::Provisional(_)));
                let piece = flight.kind == FlightKind::Piece && proof;
                !flight.checking && (flight.kind == FlightKind::Outboard || piece)
            })
            .filter(|(_, flight)| now > flight.began_us + OUTBOARD_US + flight.bytes)
            .map(|(&tag, _)| tag)
            .collect();
        for tag in late {
            let Some(flight) = self.flights.get(&tag).cloned() else { continue };
            self.cancel(now, tag);
            self.counters.retries += 1;
            self.reopen(now, &flight);
            self.fail(now, &flight, crate::Failure::Stalled);
        }
    }

    /// How long another puller may announce nothing: longer where complete holders are slow, for then they are slow for it too.
    fn patience_us(&self, now: u64) -> u64 {
        let from_seed = |flight: &&crate::flight::Flight| {
            let blob = self.blobs.get(flight.slot);
            let holder = blob.and_then(|blob| Some(&blob.holders[blob.position(flight.source).ok()?]));
            flight.kind == FlightKind::Piece && !flight.checking && holder.is_some_and(|holder| !holder.peer)
        };
        let oldest_us =
            self.flights.values().find(from_seed).map_or(0, |flight| now.saturating_sub(flight.began_us));
        self.limits.patience_us.max(2 * oldest_us).max(3 * self.seed_latency_us)
    }

    fn find_inactive(&mut self, now: u64, patience_us: u64) {
        for (_, source) in self.sources.iter_mut() {
            if source.active && now.saturating_sub(source.last_news_us) > patience_us {
                source.active = false;
                self.epoch += 1;
            }
        }
    }

    /// Blobs that wait are looked at again: all of them if the pullers have changed, else a few in turn, so that whatever a
    /// blob waits for, it does not wait for ever.
    fn look_at_waiting(&mut self, now: u64) {
        let epoch = self.epoch;
        let mut again: Vec<u32> = self
            .waiting
            .iter()
            .copied()
            .filter(|&slot| self.blobs.get(slot).is_some_and(|blob| blob.epoch != epoch))
            .collect();
        for &slot in &again {
            if let Some(blob) = self.blobs.get_mut(slot) {
                blob.reset(epoch);
            }
        }
        if again.is_empty() {
            again = self.waiting_in_turn();
        }
        for slot in again {
            match self.blobs.get(slot).map(|blob| (blob.phase, blob.open.is_empty() && blob.size.is_some())) {
                None | Some((Phase::Done, _) | (_, true)) => {
                    self.waiting.remove(&slot);
                }
                Some(_) => self.wake_all(now, slot),
            }
        }
    }

    fn waiting_in_turn(&mut self) -> Vec<u32> {
        let behind = self.waiting.range(self.waiting_cursor..).take(LOOKED_AT);
        let slots: Vec<u32> = behind.copied().collect();
        self.waiting_cursor = if slots.len() < LOOKED_AT { 0 } else { slots[slots.len() - 1] + 1 };
        slots
    }

    /// Where a complete holder has long not been asked for anything and the peers do not make up for it, take pieces from it that
    /// others were to get first: one at first, then more.
    fn grow_impatient(&mut self, now: u64, patience_us: u64) {
        if self.waiting.is_empty() {
            return;
        }
        let delivers = |source: &crate::source::Source| {
            source.reads > 0 && now.saturating_sub(source.last_delivery_us) < patience_us
        };
        let at_work: u64 =
            self.sources.iter().filter(|(_, s)| delivers(s)).map(|(_, source)| source.rate).sum();
        for at in 0..self.sources.end() {
            let Some(source) = self.sources.get(at) else { continue };
            let idle = source.reads == 0 && now.saturating_sub(source.idle_since_us) >= patience_us;
            if !idle || !source.usable(now) || at_work > source.rate / 4 {
                continue;
            }
            let mut left = source.burst;
            let mut lent = Vec::new();
            for slot in self.waiting_in_turn() {
                let Some(blob) = self.blobs.get_mut(slot) else { continue };
                let Ok(position) = blob.position(at) else { continue };
                let open = matches!(blob.phase, Phase::Open) && !blob.open.is_empty();
                let seed = matches!(blob.holders[position].map, Map::Full) && !blob.holders[position].peer;
                if left > 0 && seed && (open || (blob.phase == Phase::Unsized && !blob.asked)) {
                    blob.impatient = u32::try_from(blob.open.count().max(1)).unwrap_or(left).min(left);
                    left -= blob.impatient;
                    lent.push((slot, position));
                }
            }
            if lent.is_empty() {
                continue;
            }
            if let Some(source) = self.sources.get_mut(at) {
                source.burst = (source.burst * 2).min(BURST);
                source.idle_since_us = now;
            }
            lent.into_iter().for_each(|(slot, position)| self.wake(now, slot, position));
        }
    }

    /// When nothing else is left to ask, ask a second source for what is late at its first.
    fn end_game(&mut self, now: u64) {
        if !self.runnable.is_empty() {
            return;
        }
        let delivering = self.sources.iter().filter(|(_, source)| source.latency_us > 0);
        let (sum_us, count) = delivering.fold((0, 0), |(sum, count), (_, s)| (sum + s.latency_us, count + 1));
        let mean_us = sum_us / u64::max(count, 1);
        let late: Vec<Tag> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.kind == FlightKind::Piece && !flight.checking)
            .filter(|(_, flight)| {
                let source = self.sources.get(flight.source);
                let (last_us, latency_us) = source.map_or((0, 0), |s| (s.last_delivery_us, s.latency_us));
                now.saturating_sub(flight.began_us.max(last_us)) > LATE_US.max(4 * latency_us.max(mean_us))
            })
            .filter(|(_, f)| self.by_piece.get(&(f.slot, f.index)).is_some_and(|tags| tags.len() == 1))
            .map(|(&tag, _)| tag)
            .collect();
        let mut begun = 0;
        for tag in late {
            if begun == SECOND_READS {
                return;
            }
            let Some(flight) = self.flights.get(&tag).cloned() else { continue };
            let Some(blob) = self.blobs.get(flight.slot) else { continue };
            if blob.phase != Phase::Open {
                continue;
            }
            let other = blob.holders.iter().find(|holder| {
                holder.source != flight.source
                    && holder.has(flight.index)
                    && holder.fits(blob.size)
                    && now >= holder.not_before_us
                    && self
                        .sources
                        .get(holder.source)
                        .is_some_and(|s| s.usable(now) && s.has_room(&self.limits))
            });
            let Some(at) = other.map(|holder| holder.source) else { continue };
            let (id, index, size) = (blob.id, flight.index, flight.size);
            let Some(node) = self.sources.get(at).map(|source| source.node) else { continue };
            let second = self.launch(now, flight.slot, at, FlightKind::Piece, index, size, flight.bytes);
            let len = Self::piece_len(size, index);
            self.out.push_back(Action::ReadPiece { tag: second, node, blob: id, index, len });
            self.counters.end_game += 1;
            begun += 1;
        }
    }
}
