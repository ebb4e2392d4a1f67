//! What to ask next: the source that is next in turn, its first blob that has something for it, and the piece.

use velo_object::{Outboard, PIECE_BYTES, Pieces};

use crate::Planner;
use crate::action::Action;
use crate::blob::{Blob, Map, Phase};
use crate::flight::{FlightKind, OUTBOARD};
use crate::rendezvous::{mix, piece_key, score};

/// Trials of holes at a time.
const TRIALS: u32 = 32;
/// Pieces of a peer that are compared to find the rarest.
const SAMPLE: usize = 6;

enum Pick {
    Outboard { size: u64 },
    Piece { index: u64, size: u64 },
    Hole { index: u64 },
}

impl Planner {
    /// What to do next; `None` when there is nothing to do before the next event or [`Planner::next_deadline`].
    pub fn poll(&mut self, now: u64) -> Option<Action> {
        if let Some(action) = self.out.pop_front() {
            return Some(action);
        }
        if now >= self.next_tick_us {
            self.tick(now);
            if let Some(action) = self.out.pop_front() {
                return Some(action);
            }
        }
        if now < self.paused_until_us {
            return None;
        }
        self.paused_until_us = 0;
        if let Some(action) = self.next_hole(now) {
            return Some(action);
        }
        loop {
            if self.bytes_in_flight + PIECE_BYTES > self.limits.bytes_in_flight && self.bytes_in_flight > 0 {
                return None;
            }
            let next = self.runnable.range(self.last_picked + 1..).next().or_else(|| self.runnable.first());
            let at = *next?;
            self.last_picked = at;
            if let Some(action) = self.ask(now, at) {
                return Some(action);
            }
        }
    }

    fn ask(&mut self, now: u64, at: u32) -> Option<Action> {
        while let Some(&(order, slot)) = self.sources.get(at)?.ready.first() {
            let pick = self.pick(now, at, slot);
            let blob = self.blobs.get_mut(slot)?;
            let (id, node) = (blob.id, self.sources.get(at)?.node);
            match pick {
                Some(Pick::Outboard { size }) => {
                    blob.asked = true;
                    let bytes = Outboard::encoded_bytes(size);
                    let tag = self.launch(now, slot, at, FlightKind::Outboard, OUTBOARD, size, bytes);
                    return Some(Action::ReadOutboard { tag, node, blob: id, size_bytes: size, bytes });
                }
                Some(Pick::Piece { index, size }) => {
                    blob.asked |= blob.phase == Phase::Unsized;
                    let len = Self::piece_len(size, index);
                    let tag = self.launch(now, slot, at, FlightKind::Piece, index, size, u64::from(len));
                    return Some(Action::ReadPiece { tag, node, blob: id, index, len });
                }
                Some(Pick::Hole { index }) => {
                    let size = blob.pieces().size_bytes();
                    let len = Self::piece_len(size, index);
                    let tag = self.launch(now, slot, at, FlightKind::Hole, index, size, 0);
                    return Some(Action::TryHole { tag, blob: id, index, len });
                }
                None => {
                    if let Some(holder) = blob.holder(at) {
                        holder.ready = false;
                    }
                    if !matches!(blob.phase, Phase::Done) && (!blob.open.is_empty() || blob.size.is_none()) {
                        self.waiting.insert(slot);
                    }
                    self.sources.get_mut(at)?.ready.remove(&(order, slot));
                    self.touch(at, now);
                }
            }
        }
        self.touch(at, now);
        None
    }

    fn next_hole(&mut self, now: u64) -> Option<Action> {
        while self.trials < TRIALS {
            let &(slot, at) = self.hole_claims.front()?;
            let blob = self.blobs.get_mut(slot)?;
            let (id, size) = (blob.id, blob.pieces().size_bytes());
            let found = match (blob.position(at), blob.phase) {
                (Ok(position), Phase::Open) => {
                    let holder = &mut blob.holders[position];
                    let mut found = None;
                    while let Some(index) = holder.holes.as_ref().and_then(|holes| holes.next(0)) {
                        holder.holes.as_mut().map(|holes| holes.remove(index));
                        if blob.open.contains(index) {
                            found = Some(index);
                            break;
                        }
                    }
                    found
                }
                _ => None,
            };
            let Some(index) = found else {
                // Without a confirmed outboard the claims wait; they are queued again when there is one.
                self.hole_claims.pop_front();
                if let Some(holder) = blob.holder(at) {
                    holder.hole_queued = false;
                }
                continue;
            };
            let tag = self.launch(now, slot, at, FlightKind::Hole, index, size, 0);
            return Some(Action::TryHole { tag, blob: id, index, len: Self::piece_len(size, index) });
        }
        None
    }

    fn pick(&mut self, now: u64, at: u32, slot: u32) -> Option<Pick> {
        let epoch = self.epoch;
        let blob = self.blobs.get(slot)?;
        let holder = &blob.holders[blob.position(at).ok()?];
        if now < holder.not_before_us {
            return None;
        }
        match blob.phase {
            Phase::Done => None,
            Phase::Unsized => {
                let size = holder.size.filter(|_| !blob.asked)?;
                if Blob::small(size) {
                    let free = holder.peer || blob.impatient > 0 || self.mine(now, blob, 0);
                    if !free || !holder.has(0) {
                        return None;
                    }
                    self.spend_impatience(slot, at);
                    return Some(Pick::Piece { index: 0, size });
                }
                // Only who can also prove the size, by the last piece, is asked.
                let proves = holder.has(Pieces::new(size).last());
                (proves && now >= holder.outboard_not_before_us).then_some(Pick::Outboard { size })
            }
            Phase::Bare => {
                let able = holder.size == blob.size && !matches!(holder.map, Map::Empty);
                let ask = able && !blob.asked && now >= holder.outboard_not_before_us;
                ask.then(|| Pick::Outboard { size: blob.pieces().size_bytes() })
            }
            Phase::Provisional(sender) => {
                let last = blob.pieces().last();
                let may = self.sources.get(at)?.node == sender && blob.open.contains(last);
                if !may {
                    return None;
                }
                if holder.claims_hole(last) {
                    return Some(Pick::Hole { index: last });
                }
                Some(Pick::Piece { index: last, size: blob.pieces().size_bytes() })
            }
            Phase::Open => {
                if !holder.fits(blob.size) {
                    return None;
                }
                let size = blob.pieces().size_bytes();
                let near = self.sources.get(at)?.near();
                let index = if holder.peer && near {
                    self.peer_piece(slot, at)
                } else {
                    self.far_piece(now, slot, at).or_else(|| {
                        // Pullers may have come and gone since the pieces were divided.
                        let blob = self.blobs.get_mut(slot)?;
                        if blob.epoch == epoch || blob.open.is_empty() {
                            return None;
                        }
                        blob.reset(epoch);
                        self.far_piece(now, slot, at)
                    })
                };
                Some(Pick::Piece { index: index?, size })
            }
        }
    }

    /// A piece that a peer of this zone has: the rarest of a few.
    fn peer_piece(&mut self, slot: u32, at: u32) -> Option<u64> {
        let blob = self.blobs.get_mut(slot)?;
        let position = blob.position(at).ok()?;
        let mut sample = [0; SAMPLE];
        let mut found = 0;
        let mut from = blob.cursor;
        while found < SAMPLE {
            let Some(index) = blob.holders[position].useful.next_around(from) else { break };
            if sample[..found].contains(&index) {
                break;
            }
            if blob.open.contains(index) && !blob.maybe_hole(index) {
                sample[found] = index;
                found += 1;
            } else {
                blob.holders[position].useful.remove(index);
            }
            from = index + 1;
        }
        let rarity = |index: &u64| blob.holders.iter().filter(|holder| holder.has(*index)).count();
        let index = *sample[..found].iter().min_by_key(|index| rarity(index))?;
        blob.holders[position].useful.remove(index);
        blob.cursor = mix(blob.cursor ^ self.seed ^ index) % blob.open.len();
        Some(index)
    }

    /// A piece that a complete holder, or one in another zone, is to be asked for: one that no peer of this zone has, and that
    /// falls to this node among those that pull the blob.
    fn far_piece(&mut self, now: u64, slot: u32, at: u32) -> Option<u64> {
        let blob = self.blobs.get(slot)?;
        let distance = self.sources.get(at)?.info.distance.max(1);
        let impatient = blob.impatient > 0;
        let nearer = |holder: &crate::blob::Holder| {
            matches!(holder.map, Map::Full)
                && holder.fits(blob.size)
                && now >= holder.not_before_us
                && self
                    .sources
                    .get(holder.source)
                    .is_some_and(|s| s.info.distance.max(1) < distance && s.usable(now))
        };
        if !impatient && blob.holders.iter().any(nearer) {
            return None;
        }
        if impatient {
            let start = mix(self.seed ^ self.me_key ^ blob.key ^ now) % blob.open.len();
            let index = self.open_piece(slot, at, start)?;
            self.spend_impatience(slot, at);
            return Some(index);
        }
        let mut from = blob.cursor;
        let peers = blob.holders.iter().any(|holder| holder.peer);
        let mut skipped = 0;
        loop {
            let blob = self.blobs.get(slot)?;
            let index = blob.from_seeds.next_around(from)?;
            let holder = &blob.holders[blob.position(at).ok()?];
            if !holder.has(index) {
                // Another complete holder may have it.
                skipped += 1;
                if skipped > 64 {
                    return None;
                }
                from = index + 1;
                continue;
            }
            let free = !blob.maybe_hole(index)
                && (!peers || (!self.at_near_peer(now, blob, index) && self.mine(now, blob, index)));
            let blob = self.blobs.get_mut(slot)?;
            blob.from_seeds.remove(index);
            from = index + 1;
            if free {
                blob.cursor = from % blob.open.len();
                if let Some(source) = self.sources.get_mut(at) {
                    source.burst = 1;
                }
                return Some(index);
            }
        }
    }

    /// Any open piece that this source has, from `start` on.
    fn open_piece(&self, slot: u32, at: u32, start: u64) -> Option<u64> {
        let blob = self.blobs.get(slot)?;
        let holder = &blob.holders[blob.position(at).ok()?];
        let mut from = start;
        for _ in 0..64 {
            let index = blob.open.next_around(from)?;
            if holder.has(index) && !blob.maybe_hole(index) {
                return Some(index);
            }
            from = index + 1;
        }
        None
    }

    fn spend_impatience(&mut self, slot: u32, at: u32) {
        let Some(blob) = self.blobs.get_mut(slot) else { return };
        if blob.impatient > 0 && blob.holder(at).is_some_and(|holder| !holder.peer) {
            blob.impatient -= 1;
            self.counters.impatient += 1;
        }
    }

    fn at_near_peer(&self, now: u64, blob: &Blob, index: u64) -> bool {
        blob.holders.iter().any(|holder| {
            holder.peer
                && holder.has(index)
                && holder.fits(blob.size)
                && now >= holder.not_before_us
                && self.sources.get(holder.source).is_some_and(|source| source.near() && source.usable(now))
        })
    }

    /// Whether this node is the one, of those in its zone that pull the blob, that gets the piece first.
    fn mine(&self, now: u64, blob: &Blob, index: u64) -> bool {
        let piece = piece_key(blob.key, index);
        let own = score(piece, self.me_key);
        !blob.holders.iter().any(|holder| {
            holder.peer
                && !matches!(holder.map, Map::Full)
                && (holder.size.is_none() || blob.size.is_none() || holder.size == blob.size)
                && self.sources.get(holder.source).is_some_and(|source| {
                    source.near() && source.active && source.usable(now) && score(piece, source.key) > own
                })
        })
    }
}
