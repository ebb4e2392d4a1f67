//! What the engine knows of each node it may speak to: its session, its paths, who is interested in what.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use velo_fabric::PathId;
use velo_object::{BlobId, NodeId};
use velo_swarm::Tag;

use crate::metrics::PeerCounters;
use crate::session::PeerMessage;

/// How long a peer may take to answer before nobody counts on it.
const ANSWER_US: u64 = 3_000_000;

/// The engine's way to other nodes. None of it blocks.
pub trait Peers: Send {
    /// Makes a session, if there is none; `SessionEvent::Up` or `Down` follows.
    fn connect(&self, node: NodeId);
    /// Sends a message; lost if there is no session.
    fn send(&self, node: NodeId, message: PeerMessage);
    /// Opens `count` data streams; `SessionEvent::Stream` follows for each.
    fn open_streams(&self, node: NodeId, count: usize);
    /// How far a node is, as the planner counts: 1 in the same zone, 2 in another.
    fn distance(&self, node: &NodeId) -> u8 {
        let _ = node;
        1
    }
}

/// One node.
#[derive(Debug)]
pub(super) struct Peer {
    /// Whether a session is up.
    pub(super) up: bool,
    /// When a session was last asked for, in microseconds, and how often in vain.
    pub(super) dialled_at: Option<u64>,
    pub(super) dialling: bool,
    pub(super) failures: u32,
    /// When streams were last asked for.
    pub(super) streams_asked_at: Option<u64>,
    /// Whether the planner knows it as a source.
    pub(super) source: bool,
    /// Its streams, and how many reads are outstanding on each.
    pub(super) paths: Vec<(PathId, u32)>,
    /// Reads that wait for a path or a buffer.
    pub(super) queue: VecDeque<Tag>,
    /// What it wants to hear of.
    pub(super) interested: HashSet<BlobId>,
    /// Blobs that the store is being asked about for it.
    pub(super) lookups: usize,
    /// What we asked it about and it has not answered.
    pub(super) unanswered: HashSet<BlobId>,
    pub(super) asked_at: u64,
    /// What we want to hear of from it.
    pub(super) told: HashSet<BlobId>,
    /// Interest and end of interest not yet sent.
    pub(super) to_ask: BTreeSet<BlobId>,
    pub(super) to_end: BTreeSet<BlobId>,
    pub(super) counters: Arc<PeerCounters>,
}

impl Peer {
    pub(super) fn new(counters: Arc<PeerCounters>) -> Self {
        Self {
            up: false,
            dialled_at: None,
            dialling: false,
            failures: 0,
            streams_asked_at: None,
            source: false,
            paths: Vec::new(),
            queue: VecDeque::new(),
            interested: HashSet::new(),
            lookups: 0,
            unanswered: HashSet::new(),
            asked_at: 0,
            told: HashSet::new(),
            to_ask: BTreeSet::new(),
            to_end: BTreeSet::new(),
            counters,
        }
    }

    /// Forgets what belongs to a session that has ended.
    pub(super) fn session_ended(&mut self) {
        self.up = false;
        self.dialling = false;
        self.source = false;
        self.streams_asked_at = None;
        self.interested.clear();
        self.unanswered.clear();
        self.told.clear();
        self.to_ask.clear();
        self.to_end.clear();
    }

    /// Whether it is being asked something, or dialled for the first time, and may still answer soon.
    pub(super) fn may_answer(&self, now: u64) -> bool {
        if self.up {
            return !self.unanswered.is_empty() && now < self.asked_at + ANSWER_US;
        }
        self.dialling && self.failures == 0 && self.dialled_at.is_some_and(|at| now < at + ANSWER_US)
    }

    /// Its path with the fewest outstanding reads, if one takes more.
    pub(super) fn free_path(&mut self, most: u32) -> Option<&mut (PathId, u32)> {
        self.paths.iter_mut().min_by_key(|(_, reads)| *reads).filter(|(_, reads)| *reads < most)
    }
}

/// Which worker has a path, and to whom it leads.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathPlace {
    pub(super) worker: usize,
    pub(super) node: NodeId,
}

/// Where peers are found.
pub(super) type PeerMap = HashMap<NodeId, Peer>;
