//! One blob: its geometry, which pieces are still open, and who says to have which.

use velo_object::{BlobId, NodeId, PIECE_BYTES, PieceSet, Pieces};

use crate::bits::Bits;
use crate::rendezvous;

/// How far a blob has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its size is not known.
    Unsized,
    /// Its size is proven; its outboard is missing.
    Bare,
    /// The outboard of this node waits for the last piece.
    Provisional(NodeId),
    /// Any piece may be asked for.
    Open,
    /// All pieces are there.
    Done,
}

/// What a source has of a blob.
#[derive(Debug, Clone)]
pub(crate) enum Map {
    Empty,
    Full,
    Some(Bits),
}

/// A source's part in a blob.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) source: u32,
    /// The size it states.
    pub(crate) size: Option<u64>,
    pub(crate) map: Map,
    /// It was seen without all pieces: it pulls the blob too, or did.
    pub(crate) peer: bool,
    /// Of a peer: pieces that it has and that may be open. What is open and it has is always in here.
    pub(crate) useful: Bits,
    /// Holes that it claims and nobody has tried.
    pub(crate) holes: Option<Box<Bits>>,
    pub(crate) hole_queued: bool,
    /// Announced before the size was known.
    pub(crate) early: Vec<(u64, bool)>,
    /// Whether it is in its source's ready set.
    pub(crate) ready: bool,
    pub(crate) strikes: u8,
    pub(crate) not_before_us: u64,
    pub(crate) outboard_not_before_us: u64,
}

impl Holder {
    pub(crate) fn new(source: u32) -> Self {
        Self {
            source,
            size: None,
            map: Map::Empty,
            peer: false,
            useful: Bits::new(0),
            holes: None,
            hole_queued: false,
            early: Vec::new(),
            ready: false,
            strikes: 0,
            not_before_us: 0,
            outboard_not_before_us: 0,
        }
    }

    pub(crate) fn has(&self, index: u64) -> bool {
        match &self.map {
            Map::Empty => false,
            Map::Full => true,
            Map::Some(bits) => bits.contains(index),
        }
    }

    pub(crate) fn claims_hole(&self, index: u64) -> bool {
        self.holes.as_ref().is_some_and(|holes| holes.contains(index))
    }

    pub(crate) fn heap_words(&self) -> usize {
        let map = if let Map::Some(bits) = &self.map { bits.heap_words() } else { 0 };
        map + self.useful.heap_words() + self.holes.as_ref().map_or(0, |holes| holes.heap_words())
    }

    /// Whether its map is one of a blob of this size.
    pub(crate) fn fits(&self, size: Option<u64>) -> bool {
        size.is_some() && (self.size == size || self.size.is_none())
    }
}

/// A wanted blob.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) id: BlobId,
    pub(crate) key: u64,
    pub(crate) order: u64,
    pub(crate) phase: Phase,
    pub(crate) size: Option<u64>,
    pub(crate) proven: bool,
    pub(crate) verified: Bits,
    /// Neither verified nor asked for.
    pub(crate) open: Bits,
    /// Open, and not known to be left to another puller: what complete holders may be asked for.
    pub(crate) from_seeds: Bits,
    /// The state of the pullers for which `from_seeds` was made.
    pub(crate) epoch: u64,
    /// Holes that somebody claims and nobody has tried.
    pub(crate) holes: Option<Box<Bits>>,
    /// Sorted by source.
    pub(crate) holders: Vec<Holder>,
    pub(crate) banned: Vec<NodeId>,
    pub(crate) flights: u32,
    /// The outboard, or the one piece of a blob of unknown size, is asked for.
    pub(crate) asked: bool,
    /// Pieces that may be taken from a complete holder although another puller was to get them.
    pub(crate) impatient: u32,
    pub(crate) cursor: u64,
}

impl Blob {
    pub(crate) fn new(id: BlobId, order: u64, cursor: u64) -> Self {
        Self {
            id,
            key: rendezvous::blob_key(&id),
            order,
            phase: Phase::Unsized,
            size: None,
            proven: false,
            verified: Bits::new(0),
            open: Bits::new(0),
            from_seeds: Bits::new(0),
            epoch: 0,
            holes: None,
            holders: Vec::new(),
            banned: Vec::new(),
            flights: 0,
            asked: false,
            impatient: 0,
            cursor,
        }
    }

    /// Takes a size, proven or stated by a checked outboard, with what is here of it.
    pub(crate) fn set_size(&mut self, size: u64, have: Option<&PieceSet>) {
        let count = Pieces::new(size).count();
        self.size = Some(size);
        self.verified = match have.filter(|have| have.len() == count) {
            Some(have) => Bits::from_words(count, &have.words()),
            None => Bits::new(count),
        };
        let open: Vec<u64> = self.verified.words().iter().map(|word| !word).collect();
        self.open = Bits::from_words(count, &open);
        self.from_seeds = self.open.clone();
        self.holes = None;
        self.cursor %= count;
    }

    pub(crate) fn forget_size(&mut self) {
        self.size = None;
        self.phase = Phase::Unsized;
        self.verified = Bits::new(0);
        self.open = Bits::new(0);
        self.from_seeds = Bits::new(0);
        self.holes = None;
    }

    pub(crate) fn pieces(&self) -> Pieces {
        Pieces::new(self.size.unwrap_or(0))
    }

    pub(crate) fn small(size: u64) -> bool {
        size <= PIECE_BYTES
    }

    pub(crate) fn position(&self, source: u32) -> Result<usize, usize> {
        self.holders.binary_search_by_key(&source, |holder| holder.source)
    }

    pub(crate) fn holder(&mut self, source: u32) -> Option<&mut Holder> {
        let at = self.position(source).ok()?;
        Some(&mut self.holders[at])
    }

    /// Brings what a holder said into the geometry of the blob, once that is known.
    pub(crate) fn fit(&mut self, at: usize) {
        let (count, open) = (self.pieces().count(), &self.open);
        let holder = &mut self.holders[at];
        if !holder.fits(self.size) {
            return;
        }
        let early = std::mem::take(&mut holder.early);
        if !early.is_empty() && !matches!(holder.map, Map::Full) {
            let mut bits = match &holder.map {
                Map::Some(bits) => bits.clone(),
                _ => Bits::new(count),
            };
            for (index, hole) in early {
                bits.insert(index);
                if hole {
                    holder.holes.get_or_insert_with(|| Box::new(Bits::new(count))).insert(index);
                }
            }
            holder.map = if bits.is_full() { Map::Full } else { Map::Some(bits) };
        }
        if holder.peer {
            holder.useful = match &holder.map {
                Map::Empty => Bits::new(count),
                Map::Full => open.clone(),
                Map::Some(bits) => bits.and(open),
            };
        }
        if let Some(holes) = &mut holder.holes {
            **holes = holes.and(open);
            if holes.is_empty() {
                holder.holes = None;
            }
        }
        self.gather_holes();
    }

    /// Joins what the holders claim as holes.
    pub(crate) fn gather_holes(&mut self) {
        let mut words: Vec<u64> = Vec::new();
        for holes in self.holders.iter().filter(|h| h.fits(self.size)).filter_map(|h| h.holes.as_ref()) {
            words.resize(words.len().max(holes.words().len()), 0);
            words.iter_mut().zip(holes.words()).for_each(|(all, one)| *all |= one);
        }
        self.holes = (!words.is_empty()).then(|| Box::new(Bits::from_words(self.pieces().count(), &words)));
    }

    pub(crate) fn maybe_hole(&self, index: u64) -> bool {
        self.holes.as_ref().is_some_and(|holes| holes.contains(index))
    }

    /// Begins again with what complete holders may be asked for, because the pullers have changed.
    pub(crate) fn reset(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.from_seeds = self.open.clone();
        for holder in self.holders.iter_mut().filter(|holder| holder.peer) {
            match &holder.map {
                Map::Empty => {}
                Map::Full => holder.useful = self.open.clone(),
                Map::Some(bits) => holder.useful = bits.and(&self.open),
            }
        }
    }
}
