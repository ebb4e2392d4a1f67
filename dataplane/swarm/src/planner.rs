//! The planner's state, its blobs and sources. What is reported to it is in `events.rs`, what to ask next in `pick.rs`, what time
//! does in `tick.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use velo_object::{BlobId, NodeId, PIECE_BYTES};

use crate::action::*;
use crate::blob::{Blob, Holder, Map, Phase};
use crate::flight::{Flight, FlightKind};
use crate::rendezvous::{mix, node_key};
use crate::slab::Slab;
use crate::source::Source;

/// Blobs added one after another are asked for in order of such groups, and inside one in an order of this node's own, so that
/// nodes that begin at the same time do not begin with the same ones.
const GROUP: u64 = 1024;

/// Decides what to read next from whom. See the crate's page for who calls what when.
#[derive(Debug)]
pub struct Planner {
    pub(crate) me: NodeId,
    pub(crate) me_key: u64,
    pub(crate) seed: u64,
    pub(crate) limits: Limits,
    pub(crate) blobs: Slab<Blob>,
    pub(crate) by_id: HashMap<BlobId, u32>,
    pub(crate) sources: Slab<Source>,
    pub(crate) by_node: HashMap<NodeId, u32>,
    /// Sources with room and something to look at.
    pub(crate) runnable: BTreeSet<u32>,
    pub(crate) last_picked: u32,
    /// By tag, so the oldest comes first.
    pub(crate) flights: BTreeMap<Tag, Flight>,
    pub(crate) by_piece: HashMap<(u32, u64), Vec<Tag>>,
    pub(crate) next_tag: Tag,
    pub(crate) dead: VecDeque<Tag>,
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

    pub(crate) fn locate(&self, node: &NodeId, blob: &BlobId) -> Option<(u32, u32)> {
        Some((*self.by_id.get(blob)?, *self.by_node.get(node)?))
    }

    /// The bytes of piece `index` of a blob of `size` bytes.
    pub(crate) fn piece_len(size: u64, index: u64) -> u32 {
        (size - index * PIECE_BYTES).min(PIECE_BYTES) as u32
    }
}
