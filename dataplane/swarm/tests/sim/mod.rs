//! A discrete-event simulation of a swarm: nodes with rates and latencies, one planner each, driven by a seed.
//! Reads queue at the uplink of who serves and then at the downlink of who asked; messages take only the latency.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use velo_object::{BlobId, NodeId, PIECE_BYTES, PieceSet, Pieces};
use velo_swarm::*;

const ANNOUNCE_US: u64 = 50_000;
const VERIFY_US: u64 = 300;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduct {
    Honest,
    /// Sends pieces that do not verify.
    BadPieces,
    /// States half the size, and an outboard of half the entries that merges to the id.
    Halved,
    /// Sends outboards that do not decode.
    BadOutboard,
    /// Says that it has holes where there are none.
    FalseHoles,
    /// Takes requests and answers none, from this time on.
    StallsAt(u64),
    /// Is lost at this time: the others learn of it by the session's end.
    DiesAt(u64),
    /// Has nothing of what it says.
    Empty,
}

#[derive(Clone)]
pub struct Node {
    pub up_bytes_per_s: u64,
    pub down_bytes_per_s: u64,
    pub latency_us: u64,
    pub starts_us: u64,
    pub seeds: bool,
    pub conduct: Conduct,
    pub distance: u8,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            up_bytes_per_s: 1 << 30,
            down_bytes_per_s: 1 << 30,
            latency_us: 200,
            starts_us: 0,
            seeds: false,
            conduct: Conduct::Honest,
            distance: 1,
        }
    }
}

pub struct BlobTruth {
    pub id: BlobId,
    pub size: u64,
    /// Whether pullers know its size beforehand.
    pub trusted: bool,
    /// Pieces that are holes.
    pub holes: PieceSet,
}

enum Event {
    Start(usize),
    Interest { from: usize, to: usize },
    Haves { from: usize, to: usize, blobs: Vec<usize> },
    More { from: usize, to: usize, pieces: Vec<(usize, u64, bool)> },
    Down { node: usize, lost: usize },
    Request { from: usize, to: usize, tag: Tag, blob: usize, index: Option<u64>, bytes: u64, size: u64 },
    Downlink { from: usize, to: usize, tag: Tag, blob: usize, index: Option<u64>, bytes: u64, what: Reply },
    Reply { from: usize, to: usize, tag: Tag, blob: usize, index: Option<u64>, bytes: u64, what: Reply },
    Checked { node: usize, tag: Tag, blob: usize, index: u64, good: bool },
    Announce(usize),
    Poll(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Good,
    Bad,
    NotHere,
}

struct State {
    planner: Planner,
    have: Vec<PieceSet>,
    /// The size that it states, if it knows one.
    knows: Vec<bool>,
    outboards: BTreeSet<usize>,
    cancelled: BTreeSet<Tag>,
    interested: BTreeSet<usize>,
    news: Vec<(usize, u64, bool)>,
    up_free_us: u64,
    down_free_us: u64,
    dead: bool,
    next_poll_us: u64,
    ready: usize,
}

pub struct Sim {
    pub nodes: Vec<Node>,
    pub blobs: Vec<BlobTruth>,
    states: Vec<State>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    order: u64,
    pub now: u64,
    random: StdRng,
    by_id: HashMap<BlobId, usize>,
    by_node: HashMap<NodeId, usize>,
    /// Content bytes that each node has sent.
    pub sent: Vec<u64>,
    /// (accuser, accused) of each blame.
    pub blames: Vec<(usize, usize, Accusation)>,
    pub drops: Vec<(usize, usize, DropReason)>,
    pub finished_us: Vec<Option<u64>>,
}

pub fn node_id(node: usize) -> NodeId {
    NodeId::from_bytes(*BlobId::of(format!("node {node}").as_bytes()).as_bytes())
}

pub fn truth(name: &str, size: u64, trusted: bool) -> BlobTruth {
    let holes = PieceSet::new(Pieces::new(size).count());
    BlobTruth { id: BlobId::of(name.as_bytes()), size, trusted, holes }
}

impl Sim {
    pub fn new(seed: u64, nodes: Vec<Node>, blobs: Vec<BlobTruth>, limits: &Limits) -> Self {
        let count = nodes.len();
        let by_id = blobs.iter().enumerate().map(|(at, blob)| (blob.id, at)).collect();
        let states = nodes
            .iter()
            .enumerate()
            .map(|(at, node)| State {
                planner: Planner::new(node_id(at), limits.clone(), seed ^ at as u64),
                have: blobs
                    .iter()
                    .map(|blob| {
                        let pieces = Pieces::new(blob.size).count();
                        if node.seeds { PieceSet::full(pieces) } else { PieceSet::new(pieces) }
                    })
                    .collect(),
                knows: blobs.iter().map(|blob| node.seeds || blob.trusted).collect(),
                outboards: BTreeSet::new(),
                cancelled: BTreeSet::new(),
                interested: BTreeSet::new(),
                news: Vec::new(),
                up_free_us: 0,
                down_free_us: 0,
                dead: false,
                next_poll_us: u64::MAX,
                ready: 0,
            })
            .collect();
        let mut sim = Self {
            nodes,
            blobs,
            states,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            order: 0,
            now: 0,
            random: StdRng::seed_from_u64(seed),
            by_id,
            by_node: (0..count).map(|at| (node_id(at), at)).collect(),
            sent: vec![0; count],
            blames: Vec::new(),
            drops: Vec::new(),
            finished_us: vec![None; count],
        };
        for at in 0..count {
            if !sim.nodes[at].seeds {
                sim.at(sim.nodes[at].starts_us, Event::Start(at));
            }
            if let Conduct::DiesAt(when) = sim.nodes[at].conduct {
                for other in (0..count).filter(|&other| other != at) {
                    let latency = sim.latency(at, other);
                    sim.at(when + latency, Event::Down { node: other, lost: at });
                }
                sim.at(when, Event::Down { node: at, lost: at });
            }
        }
        sim
    }

    fn at(&mut self, when: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((when.max(self.now), self.order)));
        self.events.insert(self.order, event);
    }

    fn latency(&mut self, a: usize, b: usize) -> u64 {
        let base = self.nodes[a].latency_us + self.nodes[b].latency_us;
        base + self.random.random_range(0..=base / 4)
    }

    /// Runs until all pullers that live are done. Gives the time, or `None` if `limit_us` came first.
    pub fn run(&mut self, limit_us: u64) -> Option<u64> {
        while let Some(Reverse((when, order))) = self.queue.pop() {
            self.now = when;
            if when > limit_us {
                return None;
            }
            let event = self.events.remove(&order).expect("each event once");
            self.handle(event);
            let done = (0..self.nodes.len())
                .all(|at| self.nodes[at].seeds || self.states[at].dead || self.finished_us[at].is_some());
            if done {
                return Some(self.now);
            }
        }
        None
    }

    pub fn counters(&self, node: usize) -> Counters {
        self.states[node].planner.counters()
    }

    pub fn alive_pullers(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&at| !self.nodes[at].seeds && !self.states[at].dead).collect()
    }

    pub fn total_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.size).sum()
    }

    pub fn stuck(&self, node: usize) -> String {
        let progress: Vec<_> = self
            .blobs
            .iter()
            .filter_map(|blob| self.states[node].planner.progress(&blob.id))
            .filter(|p| p.pieces == 0 || p.verified < p.pieces)
            .take(5)
            .collect();
        format!(
            "{progress:?} {:?} {:?}",
            self.counters(node),
            self.states[node].planner.sources().collect::<Vec<_>>()
        )
    }

    fn have_of(&self, from: usize, blob: usize) -> Have {
        let truth = &self.blobs[blob];
        let state = &self.states[from];
        match self.nodes[from].conduct {
            Conduct::Halved => {
                let size = truth.size / 2;
                let pieces = Pieces::new(size).count();
                Have { size_bytes: Some(size), have: PieceSet::full(pieces), holes: PieceSet::new(pieces) }
            }
            Conduct::FalseHoles => {
                let pieces = Pieces::new(truth.size).count();
                Have {
                    size_bytes: Some(truth.size),
                    have: PieceSet::full(pieces),
                    holes: PieceSet::full(pieces),
                }
            }
            Conduct::Empty => {
                let pieces = Pieces::new(truth.size).count();
                Have {
                    size_bytes: Some(truth.size),
                    have: PieceSet::full(pieces),
                    holes: PieceSet::new(pieces),
                }
            }
            _ if state.knows[blob] => {
                let mut holes = truth.holes.clone();
                truth.holes.iter().filter(|&index| !state.have[blob].contains(index)).for_each(|index| {
                    holes.remove(index);
                });
                Have { size_bytes: Some(truth.size), have: state.have[blob].clone(), holes }
            }
            _ => Have::default(),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Start(at) => self.start(at),
            Event::Interest { from, to } => {
                if self.states[to].dead || self.states[from].dead {
                    return;
                }
                let fresh = self.states[to].interested.insert(from);
                let blobs: Vec<usize> = (0..self.blobs.len()).collect();
                if self.nodes[to].seeds || self.nodes[to].starts_us <= self.now {
                    let latency = self.latency(from, to);
                    self.at(self.now + latency, Event::Haves { from: to, to: from, blobs });
                    if fresh && !self.nodes[to].seeds {
                        let latency = self.latency(from, to);
                        self.at(self.now + latency, Event::Interest { from: to, to: from });
                    }
                }
            }
            Event::Haves { from, to, blobs } => {
                for blob in blobs {
                    let have = self.have_of(from, blob);
                    let id = self.blobs[blob].id;
                    self.states[to].planner.handle_have(self.now, &node_id(from), &id, have);
                }
                self.poll(to);
            }
            Event::More { from, to, pieces } => {
                let mut by_blob: BTreeMap<usize, Vec<(u64, bool)>> = BTreeMap::new();
                for (blob, index, hole) in pieces {
                    by_blob.entry(blob).or_default().push((index, hole));
                }
                for (blob, pieces) in by_blob {
                    let id = self.blobs[blob].id;
                    self.states[to].planner.handle_have_more(self.now, &node_id(from), &id, &pieces);
                }
                self.poll(to);
            }
            Event::Down { node, lost } => {
                if node == lost {
                    self.states[node].dead = true;
                } else {
                    self.states[node].planner.remove_source(self.now, &node_id(lost));
                    self.poll(node);
                }
            }
            Event::Request { from, to, tag, blob, index, bytes, size } => {
                self.serve(from, to, tag, blob, index, bytes, size);
            }
            Event::Downlink { from, to, tag, blob, index, bytes, what } => {
                let on_wire = if what == Reply::NotHere { 0 } else { bytes };
                let down = on_wire * 1_000_000 / self.nodes[to].down_bytes_per_s;
                let arrived = self.now.max(self.states[to].down_free_us + down);
                self.states[to].down_free_us = arrived;
                self.at(arrived, Event::Reply { from, to, tag, blob, index, bytes, what });
            }
            Event::Reply { from, to, tag, blob, index, bytes, what } => {
                self.reply(from, to, tag, blob, index, bytes, what);
            }
            Event::Checked { node, tag, blob, index, good } => self.checked(node, tag, blob, index, good),
            Event::Announce(at) => {
                let news = std::mem::take(&mut self.states[at].news);
                for to in self.states[at].interested.clone() {
                    let latency = self.latency(at, to);
                    self.at(self.now + latency, Event::More { from: at, to, pieces: news.clone() });
                }
            }
            Event::Poll(at) => {
                if self.states[at].next_poll_us <= self.now {
                    self.states[at].next_poll_us = u64::MAX;
                    self.poll(at);
                }
            }
        }
    }

    fn start(&mut self, at: usize) {
        let now = self.now;
        for other in (0..self.nodes.len()).filter(|&other| other != at) {
            let info = SourceInfo { distance: self.nodes[at].distance.max(self.nodes[other].distance) };
            self.states[at].planner.add_source(now, node_id(other), info);
            let latency = self.latency(at, other);
            self.at(now + latency, Event::Interest { from: at, to: other });
        }
        for blob in &self.blobs {
            let known = if blob.trusted { Known::Size(blob.size) } else { Known::Nothing };
            let spec = BlobSpec { blob: blob.id, known, have: None, priority: 0 };
            assert!(self.states[at].planner.add_blob(now, spec));
        }
        self.poll(at);
    }

    #[expect(clippy::too_many_arguments)]
    fn serve(
        &mut self,
        from: usize,
        to: usize,
        tag: Tag,
        blob: usize,
        index: Option<u64>,
        bytes: u64,
        size: u64,
    ) {
        let stalled = matches!(self.nodes[from].conduct, Conduct::StallsAt(when) if self.now >= when);
        if self.states[from].dead || stalled || self.states[to].cancelled.contains(&tag) {
            return;
        }
        let state = &self.states[from];
        let honest_has = match index {
            Some(index) => state.have[blob].contains(index),
            None => state.knows[blob] && (self.nodes[from].seeds || !state.have[blob].is_empty()),
        };
        let what = match (self.nodes[from].conduct, index) {
            (Conduct::BadPieces, Some(_)) | (Conduct::BadOutboard, None) => Reply::Bad,
            (Conduct::Halved, None) => Reply::Good,
            (Conduct::Halved, Some(_)) => Reply::Bad,
            (Conduct::Empty, _) => Reply::NotHere,
            _ if honest_has && size == self.blobs[blob].size => Reply::Good,
            _ if honest_has => Reply::Bad,
            _ => Reply::NotHere,
        };
        let on_wire = if what == Reply::NotHere { 0 } else { bytes };
        self.sent[from] += on_wire;
        let up = on_wire * 1_000_000 / self.nodes[from].up_bytes_per_s;
        let done = self.states[from].up_free_us.max(self.now) + up;
        self.states[from].up_free_us = done;
        let there = done + self.latency(from, to);
        self.at(there, Event::Downlink { from, to, tag, blob, index, bytes, what });
    }

    #[expect(clippy::too_many_arguments)]
    fn reply(
        &mut self,
        from: usize,
        at: usize,
        tag: Tag,
        blob: usize,
        index: Option<u64>,
        bytes: u64,
        what: Reply,
    ) {
        if self.states[at].dead || self.states[from].dead {
            return;
        }
        let now = self.now;
        let planner = &mut self.states[at].planner;
        match (index, what) {
            (_, Reply::NotHere) => planner.handle_failed(now, tag, Failure::NotHere),
            (None, Reply::Good) => {
                planner.handle_outboard(now, tag);
                self.states[at].outboards.insert(blob);
            }
            (None, Reply::Bad) => {
                let blame = planner.handle_bad_outboard(now, tag);
                self.blame(at, blame);
            }
            (Some(index), what) => {
                if planner.handle_piece_read(now, tag, bytes as u32) == Arrival::Check {
                    let good = what == Reply::Good;
                    self.at(now + VERIFY_US, Event::Checked { node: at, tag, blob, index, good });
                }
            }
        }
        self.poll(at);
    }

    fn blame(&mut self, at: usize, blame: Option<Blame>) {
        if let Some(blame) = blame {
            self.blames.push((at, self.by_node[&blame.node], blame.accusation));
        }
    }

    fn checked(&mut self, at: usize, tag: Tag, blob: usize, index: u64, good: bool) {
        let now = self.now;
        if self.states[at].dead {
            return;
        }
        if good {
            let id = self.blobs[blob].id;
            let hole = self.blobs[blob].holes.contains(index);
            let first = self.states[at].have[blob].insert(index);
            assert!(first, "piece {index} of blob {blob} was verified twice at node {at}");
            let state = &mut self.states[at];
            state.planner.handle_verified(now, &id, index);
            let size_news = !state.knows[blob] && state.planner.progress(&id).is_some_and(|p| !p.provisional);
            if size_news {
                state.knows[blob] = true;
                for to in state.interested.clone() {
                    let latency = self.latency(at, to);
                    self.at(now + latency, Event::Haves { from: at, to, blobs: vec![blob] });
                }
            } else {
                if state.news.is_empty() {
                    self.at(now + ANNOUNCE_US, Event::Announce(at));
                }
                self.states[at].news.push((blob, index, hole));
            }
        } else {
            let blame = self.states[at].planner.handle_bad_piece(now, tag);
            self.blame(at, blame);
        }
        self.poll(at);
    }

    fn poll(&mut self, at: usize) {
        if self.states[at].dead {
            return;
        }
        let now = self.now;
        while let Some(action) = self.states[at].planner.poll(now) {
            match action {
                Action::ReadOutboard { tag, node, blob, size_bytes, bytes } => {
                    self.request(at, tag, &node, &blob, None, bytes, size_bytes);
                }
                Action::ReadPiece { tag, node, blob, index, len } => {
                    let stated = self.states[at].planner.progress(&blob).and_then(|p| p.size_bytes);
                    let truth = self.blob(&blob);
                    // Of a small blob the size is what the source states.
                    let size = stated.unwrap_or(u64::from(len));
                    let good_len = u64::from(len) == Pieces::new(size).len(index);
                    assert!(good_len, "the length of a piece is that of its blob");
                    let checkable = size <= PIECE_BYTES || self.states[at].outboards.contains(&truth);
                    assert!(checkable, "a piece cannot be verified without the outboard");
                    assert!(!self.states[at].have[truth].contains(index), "asked for a verified piece");
                    self.request(at, tag, &node, &blob, Some(index), u64::from(len), size);
                }
                Action::TryHole { tag, blob, index, .. } => {
                    let blob = self.blob(&blob);
                    let checkable =
                        self.blobs[blob].size <= PIECE_BYTES || self.states[at].outboards.contains(&blob);
                    assert!(checkable, "a hole cannot be tried without the outboard");
                    let good = self.blobs[blob].size == 0 || self.blobs[blob].holes.contains(index);
                    self.at(now + VERIFY_US, Event::Checked { node: at, tag, blob, index, good });
                }
                Action::Cancel { tag, .. } => {
                    self.states[at].cancelled.insert(tag);
                }
                Action::SizeConfirmed { blob, size_bytes } => {
                    let blob = self.blob(&blob);
                    assert_eq!(size_bytes, self.blobs[blob].size, "a wrong size was confirmed");
                }
                Action::OutboardDropped { blob } => {
                    let blob = self.blob(&blob);
                    let pieces = Pieces::new(self.blobs[blob].size).count();
                    assert!(self.states[at].have[blob].is_empty());
                    self.states[at].have[blob] = PieceSet::new(pieces);
                }
                Action::BlobReady { blob } => {
                    let blob = self.blob(&blob);
                    assert!(self.states[at].have[blob].is_full(), "ready without all pieces");
                    self.states[at].ready += 1;
                    if self.states[at].ready == self.blobs.len() {
                        self.finished_us[at] = Some(now);
                    }
                }
                Action::Drop { node, why, .. } => {
                    self.drops.push((at, self.by_node[&node], why));
                }
                other => panic!("unknown action {other:?}"),
            }
        }
        if let Some(when) = self.states[at].planner.next_deadline() {
            assert!(when > now, "a deadline in the past: {when} at {now}");
            if when < self.states[at].next_poll_us {
                self.states[at].next_poll_us = when;
                self.at(when, Event::Poll(at));
            }
        }
    }

    fn blob(&self, id: &BlobId) -> usize {
        self.by_id[id]
    }

    #[expect(clippy::too_many_arguments)]
    fn request(
        &mut self,
        at: usize,
        tag: Tag,
        node: &NodeId,
        blob: &BlobId,
        index: Option<u64>,
        bytes: u64,
        size: u64,
    ) {
        let to = self.by_node[node];
        let blob = self.blob(blob);
        let latency = self.latency(at, to);
        self.at(self.now + latency, Event::Request { from: to, to: at, tag, blob, index, bytes, size });
    }
}
