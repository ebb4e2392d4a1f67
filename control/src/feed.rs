//! Feeds a job on velod until it ends: with members that have what it misses, and from the origin with what they do not have.
//!
//! Of several nodes that get the same and can read it from the origin, one does so for all; which one follows from rendezvous hashing of what each
//! of them tells. If it gets nowhere, the next one takes over.
//!
//! A job that waits, and about which nobody has asked for an hour (`velo get` asks while it waits, and so does whoever looks at the job over HTTP),
//! is cancelled: its caller has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use velo_object::{BlobId, NodeId};
use velo_socket::{JobId, JobState, JobStatus};

use crate::directory::ASK_TIMEOUT;
use crate::node::Control;
use crate::origin::{Fetched, Origin, OriginError};
use crate::pull::goes_on;
use crate::rpc::Holding;
use crate::velod::VelodError;

/// How long a job waits before it is read from the origin what members say that they have.
const MEMBERS_FIRST: Duration = Duration::from_secs(2);
/// How long the node that reads the origin for others may stand still before another one takes over.
const TAKE_OVER: Duration = Duration::from_secs(10);
/// A job that has waited for longer than this asks less often.
const HASTE: Duration = Duration::from_secs(60);
/// The longest time between two rounds of questions.
const SELDOM: Duration = Duration::from_secs(5);
/// The time between two rounds after the origin gave something.
const SOON: Duration = Duration::from_millis(100);
/// How long a job that waits is kept after somebody last asked about it.
pub(crate) const UNWANTED: Duration = Duration::from_secs(3600);

/// Who has something of what a job gets, after one round of questions.
#[derive(Debug, Default)]
pub(crate) struct Round {
    asked: Vec<BlobId>,
    /// Whether somebody did not answer.
    silent: bool,
    holders: BTreeSet<NodeId>,
    pullers: BTreeSet<NodeId>,
    /// What somebody has at least a piece of.
    held: BTreeSet<BlobId>,
    /// Who else gets it and can read it from the origin, and how many bytes of it he has read.
    readers: BTreeMap<BlobId, BTreeMap<NodeId, u64>>,
}

impl Round {
    /// A round about these.
    pub(crate) fn of(asked: &[BlobId]) -> Self {
        Self { asked: asked.to_vec(), ..Self::default() }
    }

    /// Notes what a node has of what was asked for, in order; none: it did not answer.
    pub(crate) fn note(&mut self, node: NodeId, holdings: Option<&[Option<Holding>]>) {
        self.silent |= holdings.is_none();
        let holdings = holdings.unwrap_or_default();
        for (id, holding) in self.asked.iter().zip(holdings) {
            let Some(holding) = holding else { continue };
            if holding.complete || holding.pieces > 0 {
                self.holders.insert(node);
                self.held.insert(*id);
            }
            if holding.pulling {
                self.pullers.insert(node);
                let read = holding.origin_bytes.map(|bytes| (node, bytes));
                self.readers.entry(*id).or_default().extend(read);
            }
        }
    }

    /// Whether somebody has something.
    pub(crate) fn has_holder(&self) -> bool {
        !self.holders.is_empty()
    }

    /// All who have or get something of it.
    pub(crate) fn sources(&self) -> Vec<NodeId> {
        self.holders.union(&self.pullers).copied().collect()
    }

    /// How many bytes each of the others has read from the origin.
    fn read_by_others(&self) -> BTreeMap<NodeId, u64> {
        let mut read = BTreeMap::new();
        for (node, bytes) in self.readers.values().flatten() {
            *read.entry(*node).or_default() += bytes;
        }
        read
    }
}

/// A count, and since when it stands.
#[derive(Debug, Clone, Copy)]
struct Standing {
    count: u64,
    since: Instant,
}

/// What is remembered of a job from one round to the next.
#[derive(Debug)]
struct Feeding {
    /// The read from the origin that goes on; it ends with this.
    reading: JoinSet<Fetched>,
    /// The blobs of that read.
    reads: Vec<BlobId>,
    own_read: u64,
    others: BTreeMap<NodeId, Standing>,
    /// What the origin has, as it said when it was looked at.
    seen: BTreeSet<BlobId>,
    /// Whether the origin gave what it was last asked for.
    gives: bool,
    /// What the origin did not give and the log knows.
    told: BTreeSet<BlobId>,
    /// Since when it waits and nothing comes.
    waits_since: Option<Instant>,
    done_bytes: u64,
    pause: Duration,
}

impl Feeding {
    fn new() -> Self {
        Self {
            reading: JoinSet::new(),
            reads: Vec::new(),
            own_read: 0,
            others: BTreeMap::new(),
            seen: BTreeSet::new(),
            gives: false,
            told: BTreeSet::new(),
            waits_since: None,
            done_bytes: 0,
            pause: SELDOM / 20,
        }
    }

    fn look(&mut self, status: &JobStatus, now: Instant) {
        let moved = std::mem::replace(&mut self.done_bytes, status.done_bytes) != status.done_bytes;
        if status.state != JobState::Waiting || moved {
            self.waits_since = None;
        }
        if status.state == JobState::Waiting {
            self.waits_since.get_or_insert(now);
        }
    }

    fn waited(&self, now: Instant) -> Option<Duration> {
        self.waits_since.map(|since| now - since)
    }

    /// How long to the next round.
    fn next_pause(&mut self, now: Instant) -> Duration {
        let most = match self.waited(now) {
            Some(waited) if waited < HASTE => ASK_TIMEOUT / 2,
            _ => SELDOM,
        };
        self.pause = (self.pause * 2).min(most);
        self.pause
    }

    /// Notes how far the others have read. Whether one of them has got on.
    fn hear_of_others(&mut self, round: &Round, now: Instant) -> bool {
        let read = round.read_by_others();
        self.others.retain(|node, _| read.contains_key(node));
        let mut moved = false;
        for (node, count) in read {
            let standing = self.others.entry(node).or_insert(Standing { count, since: now });
            moved |= count > standing.count;
            if count != standing.count {
                *standing = Standing { count, since: now };
            }
        }
        moved
    }

    /// What of this job this node should read from the origin now.
    fn wanted(&self, own: NodeId, status: &JobStatus, round: &Round, now: Instant) -> Vec<BlobId> {
        // Who does not answer may be busy giving it.
        if round.silent && status.state == JobState::Running && !self.gives {
            return Vec::new();
        }
        let members_failed = self.waited(now).is_some_and(|waited| waited >= MEMBERS_FIRST);
        let stuck =
            |node: &NodeId| self.others.get(node).is_some_and(|standing| now - standing.since >= TAKE_OVER);
        let wanted = status.missing.iter().filter(|id| {
            let readers = round.readers.get(id).into_iter().flatten().map(|(node, _)| *node);
            round.asked.contains(id)
                && (members_failed || !round.held.contains(id))
                && elected(id, own, readers.filter(|node| !stuck(node))) == own
        });
        wanted.copied().collect()
    }
}

impl Control {
    /// Feeds a job until it ends, beginning with what a first round of questions found.
    pub(crate) async fn feed(self: Arc<Self>, job: JobId, first: Round) {
        let mut feeding = Feeding::new();
        let mut first = Some(first);
        loop {
            let status = match self.job(job).await {
                Ok(status) if goes_on(&status) => status,
                Ok(_) | Err(VelodError::Refused(_)) => break,
                // velod is starting again; its jobs are gone with it, or will be there.
                Err(_) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            feeding.look(&status, Instant::now());
            if self.unwanted(job, &feeding) {
                tracing::info!(job, "cancelled: it waits, and nobody has asked about it for an hour");
                let _ = self.velod.cancel(job).await;
                break;
            }
            let round = match first.take() {
                Some(round) => round,
                None => {
                    let mut ids: Vec<BlobId> = status.roots.iter().map(|root| root.blob).collect();
                    let roots: BTreeSet<BlobId> = ids.iter().copied().collect();
                    ids.extend(status.missing.iter().filter(|id| !roots.contains(id)));
                    let mut round = Round::of(&ids);
                    let mut answers = self.ask_all(&ids, true);
                    self.finish_round(job, &mut answers, &mut round).await;
                    round
                }
            };
            self.supply(job, &status, &round, &mut feeding).await;
            let pause = feeding.next_pause(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(fetched) = feeding.reading.join_next(), if !feeding.reading.is_empty() => {
                    self.take_in(job, fetched.unwrap_or_default(), &mut feeding).await;
                }
            }
        }
        self.pulls.end(job);
    }

    fn unwanted(&self, job: JobId, feeding: &Feeding) -> bool {
        let waited = feeding.waited(Instant::now()).unwrap_or_default();
        waited >= UNWANTED && self.pulls.unasked(job) >= UNWANTED
    }

    /// Lets the origin be read for what no member gives, by this node or by another one that can.
    async fn supply(self: &Arc<Self>, job: JobId, status: &JobStatus, round: &Round, feeding: &mut Feeding) {
        let now = Instant::now();
        let mut comes = feeding.hear_of_others(round, now);
        if let Some(origin) = &self.origin {
            self.look(job, origin, status, round, feeding).await;
            if feeding.reading.is_empty() {
                feeding.reads = feeding.wanted(self.node, status, round, now);
                feeding.reads.retain(|id| origin.offers(id).is_some());
                feeding.own_read = 0;
                if !feeding.reads.is_empty() {
                    let (control, reads) = (Arc::clone(self), feeding.reads.clone());
                    feeding.reading.spawn(async move {
                        match &control.origin {
                            Some(origin) => origin.fetch(&control.velod, &reads).await,
                            None => Fetched::default(),
                        }
                    });
                }
            }
            let read = origin.read_bytes(&feeding.reads);
            comes |= read > feeding.own_read;
            feeding.own_read = read;
        }
        if comes {
            self.wake(job).await;
        }
    }

    /// Looks whether the origin has what no member has, so that nobody relies on this node for what it cannot read.
    async fn look(
        &self,
        job: JobId,
        origin: &Origin,
        status: &JobStatus,
        round: &Round,
        feeding: &mut Feeding,
    ) {
        feeding.seen.retain(|id| status.missing.contains(id));
        let unseen = round.asked.iter().filter(|id| {
            status.missing.contains(id)
                && !round.held.contains(id)
                && !feeding.seen.contains(id)
                && origin.offers(id).is_some()
        });
        let unseen: Vec<BlobId> = unseen.copied().collect();
        if unseen.is_empty() {
            return;
        }
        if let Ok(there) = tokio::time::timeout(ASK_TIMEOUT, origin.look(&unseen)).await {
            feeding.seen.extend(there);
        }
        for id in unseen.into_iter().filter(|id| origin.offers(id).is_none()) {
            if feeding.told.insert(id) {
                tracing::warn!(job, error = %OriginError::Absent(id), "a missing part is not read from the origin");
            }
        }
    }

    /// Something has come or is on its way: the job does not wait for nothing.
    async fn wake(&self, job: JobId) {
        let _ = self.velod.add_sources(job, Vec::new()).await;
    }

    async fn take_in(&self, job: JobId, fetched: Fetched, feeding: &mut Feeding) {
        let Fetched { moved, failed } = fetched;
        feeding.gives = moved.blobs > 0;
        if moved.blobs > 0 {
            self.metrics.origin_read_bytes.inc_by(moved.bytes);
            tracing::info!(job, blobs = moved.blobs, bytes = moved.bytes, "read from the origin");
            feeding.pause = SOON / 2;
            self.wake(job).await;
        }
        for (blob, error) in failed {
            if feeding.told.insert(blob) {
                tracing::warn!(job, %error, "a missing part is not read from the origin");
            }
        }
    }
}

/// The node that reads a blob from the origin for all.
fn elected(blob: &BlobId, own: NodeId, others: impl IntoIterator<Item = NodeId>) -> NodeId {
    let weight = |node: &NodeId| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(blob.as_bytes()).update(node.as_bytes());
        *hasher.finalize().as_bytes()
    };
    others.into_iter().chain([own]).max_by_key(weight).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn holding(complete: bool, origin_bytes: Option<u64>) -> Option<Holding> {
        let pieces = u64::from(complete);
        Some(Holding { size_bytes: None, complete, pieces, pulling: !complete, origin_bytes })
    }

    fn waiting(missing: &[BlobId]) -> JobStatus {
        JobStatus::begun(1, Vec::new(), JobState::Waiting, missing.to_vec())
    }

    #[test]
    fn all_pullers_elect_the_same_reader() {
        let nodes: Vec<NodeId> = (0..5).map(node).collect();
        let mut elected_ones = BTreeSet::new();
        for content in 0..20u8 {
            let blob = BlobId::of(&[content]);
            let vote = |own: &NodeId| elected(&blob, *own, nodes.iter().copied().filter(|node| node != own));
            let votes: BTreeSet<NodeId> = nodes.iter().map(vote).collect();
            assert_eq!(votes.len(), 1);
            elected_ones.extend(votes);
        }
        assert!(elected_ones.len() > 2, "not always the same one");
    }

    #[test]
    fn the_origin_gives_what_is_held_by_nobody_and_what_holders_do_not_give() {
        let (table, part) = (BlobId::of(b"table"), BlobId::of(b"part"));
        let mut round = Round::of(&[table, part]);
        round.note(node(2), Some(&[holding(true, None), None]));
        let status = waiting(&[table, part]);
        let (mut feeding, now) = (Feeding::new(), Instant::now());
        feeding.look(&status, now);
        assert_eq!(
            feeding.wanted(node(1), &status, &round, now),
            [part],
            "its holder may still give the table"
        );
        let later = now + MEMBERS_FIRST;
        feeding.look(&status, later);
        assert_eq!(feeding.wanted(node(1), &status, &round, later), [table, part]);
        assert!(feeding.wanted(node(1), &status, &Round::of(&[]), later).is_empty(), "ask members first");

        let mut feeding = Feeding::new();
        round.note(node(3), None);
        let running = JobStatus { state: JobState::Running, ..status.clone() };
        assert!(feeding.wanted(node(1), &running, &round, now).is_empty(), "the silent one may be giving it");
        feeding.look(&status, now);
        assert_eq!(feeding.wanted(node(1), &status, &round, now), [part], "nobody gives it");
    }

    #[test]
    fn only_those_who_can_read_the_origin_are_elected_and_only_while_they_get_on() {
        let blob = BlobId::of(b"x");
        let own = node(1);
        let other = (2..50).map(node).find(|other| elected(&blob, own, [*other]) == *other);
        let other = other.expect("one of many weighs more");
        let status = waiting(&[blob]);
        let (mut feeding, mut now) = (Feeding::new(), Instant::now());
        let mut step = |origin_bytes, now| {
            let mut round = Round::of(&[blob]);
            round.note(other, Some(&[holding(false, origin_bytes)]));
            let moved = feeding.hear_of_others(&round, now);
            (moved, feeding.wanted(own, &status, &round, now).len())
        };
        assert_eq!(step(None, now), (false, 1), "the other one cannot, or failed");
        assert_eq!(step(Some(0), now), (false, 0), "the other one does it");
        for read in 1..5 {
            now += TAKE_OVER - Duration::from_secs(1);
            assert_eq!(step(Some(read), now), (true, 0), "it gets on, slowly");
        }
        now += TAKE_OVER;
        assert_eq!(step(Some(4), now), (false, 1), "it stands still");
    }
}
