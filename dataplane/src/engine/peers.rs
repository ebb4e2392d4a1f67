//! What the engine knows of each node it may speak to: its session, its paths, who is interested in what.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use velo_config::Fabric;
use velo_fabric::PathId;
use velo_object::{BlobId, NodeId};
use velo_swarm::Tag;

use super::pairs::{MadePair, Making};
use super::paths::{retry_at, was_good};
use crate::metrics::PeerCounters;
use crate::session::paths::PathEnd;
use crate::session::{PathKeying, PeerMessage};

/// How long a peer may take to answer before nobody counts on it.
const ANSWER_US: u64 = 3_000_000;
/// How long streams wait for the first packet paths of a session.
const STREAMS_WAIT_US: u64 = 150_000;

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
    /// Its streams and other paths.
    pub(super) paths: Vec<PeerPath>,
    /// How far it is with other fabrics than TCP.
    pub(super) fabrics: PeerFabrics,
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
            fabrics: PeerFabrics::default(),
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

    /// Whether something can be read from it now.
    pub(super) fn has_path(&self) -> bool {
        self.paths.iter().any(|path| path.usable)
    }

    /// Whether something better than streams carries what is read from it.
    pub(super) fn is_carried_by_better(&self, tcp_rank: u8) -> bool {
        self.paths.iter().any(|path| path.usable && path.rank < tcp_rank)
    }

    /// Of the best fabric's paths the one with the fewest outstanding reads, if one takes more.
    pub(super) fn free_path(&mut self) -> Option<&mut PeerPath> {
        let best = self.paths.iter().filter(|path| path.usable).map(|path| path.rank).min()?;
        let of_best = self.paths.iter_mut().filter(|path| path.usable && path.rank == best);
        of_best.min_by_key(|path| path.reads).filter(|path| path.reads < path.most)
    }
}

/// One path to a peer.
#[derive(Debug)]
pub(super) struct PeerPath {
    pub(super) id: PathId,
    /// Reads outstanding on it.
    pub(super) reads: u32,
    /// And the most of them.
    pub(super) most: u32,
    /// Its fabric's place in the order of preference: lower is better.
    pub(super) rank: u8,
    /// Whether it takes reads: only a stream does before it is proven.
    pub(super) usable: bool,
    /// Since when it is there.
    pub(super) since: u64,
}

/// What of a session paths are made of.
#[derive(Debug, Clone)]
pub(super) struct SessionFacts {
    /// No other session has it.
    pub(super) number: u64,
    pub(super) keying: PathKeying,
    /// Whether this node dialled.
    pub(super) dialled: bool,
    /// The peer's address as the session sees it.
    pub(super) address: IpAddr,
    /// The serial number of the last path before it.
    pub(super) first_serial: u64,
}

/// An offer that waits for its answer.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) number: u32,
    pub(super) at: u64,
    /// What was offered, and this side of it.
    pub(super) fabrics: Vec<(Fabric, OfferedEnds)>,
}

/// This side of an offered fabric.
#[derive(Debug)]
pub(super) enum OfferedEnds {
    /// The ends of packet paths, and the worker of each.
    Packets(Vec<(usize, PathEnd)>),
    /// Queue pairs.
    Pairs(Vec<MadePair>),
}

/// The paths of one fabric.
#[derive(Debug)]
pub(super) struct PathSet {
    pub(super) fabric: Fabric,
    pub(super) rank: u8,
    pub(super) paths: Vec<PathId>,
    /// Since when it is so: being proven, or proven.
    pub(super) since: u64,
    pub(super) proven: bool,
}

/// How often a fabric has failed lately, and until when it rests.
#[derive(Debug)]
struct Rest {
    fabric: Fabric,
    failures: u32,
    until: u64,
}

/// How far a peer is with other fabrics than TCP.
#[derive(Debug, Default)]
pub(super) struct PeerFabrics {
    /// While a session is up.
    pub(super) session: Option<SessionFacts>,
    pub(super) offered: Option<Offered>,
    /// What queue pairs are being made for.
    pub(super) making: Option<Making>,
    /// When an offer of its was last taken.
    pub(super) offer_taken_at: Option<u64>,
    /// At most one of each kind, and of queue pairs besides those that carry the ones that are to take their place.
    pub(super) sets: Vec<PathSet>,
    /// When the first attempt of this session began, until it has ended in whatever way.
    pub(super) began: Option<u64>,
    /// Whether there was one.
    tried: bool,
    rests: Vec<Rest>,
    /// Workers whose queue pair was lost while others carried on, how often one was lately, and until when they rest.
    lost: Vec<usize>,
    losses: u32,
    lost_until: u64,
}

impl PeerFabrics {
    /// An attempt begins.
    pub(super) fn begin(&mut self, now: u64) {
        if !std::mem::replace(&mut self.tried, true) {
            self.began = Some(now);
        }
    }

    /// Whether streams are worth waiting with.
    pub(super) fn may_prove_soon(&self, now: u64) -> bool {
        self.began.is_some_and(|at| now < at + STREAMS_WAIT_US)
    }

    /// Whether a fabric may be offered.
    pub(super) fn may_try(&self, now: u64, fabric: Fabric) -> bool {
        self.rests.iter().all(|rest| rest.fabric != fabric || now >= rest.until)
    }

    /// A fabric has failed: it rests, longer each time.
    pub(super) fn failed(&mut self, now: u64, fabric: Fabric) {
        let rest = self.rest(fabric);
        rest.failures = rest.failures.saturating_add(1);
        rest.until = retry_at(now, rest.failures);
    }

    /// The paths of a fabric that has failed were good for long: that it failed before counts no more.
    pub(super) fn forgive(&mut self, now: u64, fabric: Fabric) {
        if self.sets.iter().any(|set| set.fabric == fabric && set.proven && was_good(now, set.since)) {
            self.rest(fabric).failures = 0;
        }
    }

    /// The peer does not have a fabric, or not so that it could be reached: not in this session.
    pub(super) fn never(&mut self, fabric: Fabric) {
        self.rest(fabric).until = u64::MAX;
    }

    /// Nothing here reaches the peer by a fabric, or nothing there is reached: not for long.
    pub(super) fn rest_long(&mut self, now: u64, fabric: Fabric) {
        self.rest(fabric).until = retry_at(now, u32::MAX);
    }

    /// What had failed may be different now.
    pub(super) fn may_try_again(&mut self, now: u64, fabric: Fabric) {
        if let Some(rest) = self.rests.iter_mut().find(|rest| rest.fabric == fabric) {
            (rest.failures, rest.until) = (0, rest.until.min(now));
        }
        (self.losses, self.lost_until) = (0, self.lost_until.min(now));
    }

    /// The best rank of what there is, or that of streams.
    pub(super) fn best_rank(&self, tcp_rank: u8) -> u8 {
        self.sets.iter().map(|set| set.rank).fold(tcp_rank, u8::min)
    }

    /// A worker's queue pair was lost while others carry on.
    pub(super) fn lost(&mut self, now: u64, worker: usize) {
        let carry = |set: &PathSet| set.fabric == Fabric::Rdma && set.proven;
        if self.sets.iter().any(|set| carry(set) && was_good(now, set.since)) {
            self.losses = 0;
        }
        if !self.lost.contains(&worker) {
            self.lost.push(worker);
        }
        // What went with others, or in the attempt that has made it rest, counts once.
        if now >= self.lost_until {
            self.tried_again(now);
        }
    }

    /// These have a queue pair again, which may carry.
    pub(super) fn found(&mut self, workers: &[usize]) {
        self.lost.retain(|lost| !workers.contains(lost));
    }

    pub(super) fn none_is_lost(&mut self) {
        self.lost.clear();
    }

    /// Whether a queue pair was lost that is worth another attempt now, which is not while one goes on.
    pub(super) fn lacks(&self, now: u64, works: impl Fn(usize) -> bool) -> bool {
        let settled = self.sets.iter().all(|set| set.fabric != Fabric::Rdma || set.proven);
        settled && now >= self.lost_until && self.lost.iter().any(|worker| works(*worker))
    }

    /// Those that were lost are offered again, or were lost again: the next time is later.
    pub(super) fn tried_again(&mut self, now: u64) {
        self.losses = self.losses.saturating_add(1);
        self.lost_until = retry_at(now, self.losses);
    }

    fn rest(&mut self, fabric: Fabric) -> &mut Rest {
        let at = self.rests.iter().position(|rest| rest.fabric == fabric).unwrap_or_else(|| {
            self.rests.push(Rest { fabric, failures: 0, until: 0 });
            self.rests.len() - 1
        });
        &mut self.rests[at]
    }

    /// Forgets what belongs to a session that has ended. What has failed rests on.
    pub(super) fn session_ended(&mut self) {
        self.rests.retain(|rest| rest.until != u64::MAX);
        let rests = std::mem::take(&mut self.rests);
        *self = Self { rests, ..Self::default() };
    }
}

/// Which worker has a path, to whom it leads, and of which fabric it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct PathPlace {
    pub(super) worker: usize,
    pub(super) node: NodeId,
    pub(super) fabric: Fabric,
}

/// Where peers are found.
pub(super) type PeerMap = HashMap<NodeId, Peer>;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(fabric: Fabric, proven: bool, since: u64) -> PathSet {
        PathSet { fabric, rank: 0, paths: vec![1], since, proven }
    }

    #[test]
    fn a_lost_queue_pair_is_offered_again_after_its_rest_and_less_often_each_time() {
        let mut fabrics = PeerFabrics { sets: vec![set(Fabric::Rdma, true, 0)], ..PeerFabrics::default() };
        let all = |_| true;
        assert!(!fabrics.lacks(0, all), "nothing is lost");
        fabrics.lost(0, 7);
        let first = retry_at(0, 1);
        assert!(!fabrics.lacks(first - 1, all) && fabrics.lacks(first, all));
        assert!(!fabrics.lacks(first, |worker| worker != 7), "its port is still down");
        fabrics.lost(1, 8);
        assert!(fabrics.lacks(first, all), "both went together");
        fabrics.found(&[8]);
        fabrics.tried_again(first);
        let second = retry_at(first, 2);
        assert!(second - first > first && !fabrics.lacks(second - 1, all) && fabrics.lacks(second, all));
        // While the new ones are being proven there is no further attempt.
        fabrics.sets.push(set(Fabric::Rdma, false, second));
        assert!(!fabrics.lacks(second, all));
        fabrics.sets.pop();
        fabrics.may_try_again(first, Fabric::Rdma);
        assert!(fabrics.lacks(first, all), "its port is back");
        fabrics.found(&[3]);
        assert!(fabrics.lacks(first, all), "that was another");
        fabrics.found(&[7]);
        assert!(!fabrics.lacks(u64::MAX, all));
    }

    #[test]
    fn what_is_not_reached_now_may_be_later() {
        let mut fabrics = PeerFabrics::default();
        fabrics.rest_long(5, Fabric::Rdma);
        fabrics.never(Fabric::Udp);
        assert!(!fabrics.may_try(5, Fabric::Rdma) && fabrics.may_try(retry_at(5, u32::MAX), Fabric::Rdma));
        assert!(!fabrics.may_try(u64::MAX - 1, Fabric::Udp));
        fabrics.may_try_again(9, Fabric::Rdma);
        assert!(fabrics.may_try(9, Fabric::Rdma));
    }
}
