//! Pulls: a job on velod is fed with sources for as long as it runs, and with the origin where no member has the content.
//!
//! Who asks "who has this, I am pulling it" tells the others in the same breath, so that those who pull it too become each other's sources.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::{ErrorCode, JobId, JobState, JobStatus};

use crate::directory::ASK_TIMEOUT;
use crate::node::{Control, lock};
use crate::rpc::Holding;
use crate::velod::VelodError;

/// How long a pull waits for the first holder before the job begins without one.
const FIRST_HOLDER: Duration = Duration::from_millis(800);
/// Jobs that are fed at once.
const MOST_JOBS: usize = 1024;

/// How long a node that asked for something while it pulled it is remembered for jobs that begin here.
const MEMORY: Duration = Duration::from_secs(10);
/// How many of them.
const MOST_REMEMBERED: usize = 4096;

/// The jobs that this node feeds, and who pulls what elsewhere.
#[derive(Debug, Default)]
pub struct Pulls {
    fed: Mutex<BTreeMap<JobId, Fed>>,
    /// Of two nodes that begin at one time, each may ask before the other's job is there.
    elsewhere: Mutex<VecDeque<(Instant, NodeId, BlobId)>>,
}

#[derive(Debug, Default)]
struct Fed {
    roots: BTreeSet<BlobId>,
    sources: BTreeSet<NodeId>,
}

impl Pulls {
    /// A node pulls these. The jobs here that get one of them too, and do not have the node as a source yet.
    fn meet(&self, node: NodeId, ids: &[BlobId]) -> Vec<JobId> {
        // In this order, as in `begin`: a job that begins now finds the node in one place or the other.
        {
            let now = Instant::now();
            let mut elsewhere = lock(&self.elsewhere);
            elsewhere.retain(|(at, other, blob)| {
                now.duration_since(*at) < MEMORY && (*other != node || !ids.contains(blob))
            });
            elsewhere.extend(ids.iter().take(64).map(|id| (now, node, *id)));
            let excess = elsewhere.len().saturating_sub(MOST_REMEMBERED);
            elsewhere.drain(..excess);
        }
        let mut fed = lock(&self.fed);
        let same = fed.iter_mut().filter(|(_, fed)| ids.iter().any(|id| fed.roots.contains(id)));
        same.filter_map(|(job, fed)| fed.sources.insert(node).then_some(*job)).collect()
    }

    /// Who was lately heard to pull one of these.
    fn pullers(&self, ids: &[BlobId]) -> BTreeSet<NodeId> {
        let elsewhere = lock(&self.elsewhere);
        let fresh = elsewhere.iter().filter(|(at, _, blob)| at.elapsed() < MEMORY && ids.contains(blob));
        fresh.map(|(_, node, _)| *node).collect()
    }

    /// The sources that a job has been given.
    pub(crate) fn sources(&self, job: JobId) -> Vec<NodeId> {
        lock(&self.fed).get(&job).map(|fed| fed.sources.iter().copied().collect()).unwrap_or_default()
    }

    /// Notes sources; gives those that are new.
    fn add(&self, job: JobId, sources: &[NodeId]) -> Vec<NodeId> {
        let mut fed = lock(&self.fed);
        let Some(fed) = fed.get_mut(&job) else { return Vec::new() };
        sources.iter().copied().filter(|node| fed.sources.insert(*node)).collect()
    }

    fn begin(&self, job: JobId, roots: &[ObjectId]) -> bool {
        let mut fed = lock(&self.fed);
        if fed.contains_key(&job) || fed.len() >= MOST_JOBS {
            return false;
        }
        let roots = roots.iter().map(|root| root.blob).collect();
        fed.insert(job, Fed { roots, sources: BTreeSet::new() });
        true
    }

    fn end(&self, job: JobId) {
        lock(&self.fed).remove(&job);
    }
}

/// Who has something of what a job gets, after one round of questions.
#[derive(Debug, Default)]
struct Round {
    holders: BTreeSet<NodeId>,
    pullers: BTreeSet<NodeId>,
}

impl Round {
    fn note(&mut self, node: NodeId, holdings: &[Option<Holding>]) {
        let some: Vec<&Holding> = holdings.iter().flatten().collect();
        if some.iter().any(|holding| holding.complete || holding.pieces > 0) {
            self.holders.insert(node);
        }
        if some.iter().any(|holding| holding.pulling) {
            self.pullers.insert(node);
        }
    }

    fn sources(&self) -> Vec<NodeId> {
        self.holders.union(&self.pullers).copied().collect()
    }
}

impl Control {
    /// Another node pulls these: the jobs here that get them too take it as a source.
    pub(crate) async fn meet_puller(&self, node: NodeId, ids: &[BlobId]) {
        for job in self.pulls.meet(node, ids) {
            if let Err(error) = self.velod.add_sources(job, vec![node]).await {
                tracing::debug!(%error, job, "a source was not added");
            }
        }
    }

    /// Starts a job for these and feeds it.
    ///
    /// # Errors
    /// [`VelodError`].
    pub(crate) async fn pull(
        self: &Arc<Self>,
        roots: Vec<ObjectId>,
        tables_only: bool,
        priority: u8,
    ) -> Result<JobId, VelodError> {
        let ids: Vec<BlobId> = roots.iter().map(|root| root.blob).collect();
        let mut answers = self.ask_all(&ids, true);
        let mut round = Round::default();
        // What is here begins at once; what it names may have to be found meanwhile.
        let here = self.velod.stat(ids.clone()).await?;
        if !here.iter().all(|stat| stat.as_ref().is_some_and(|stat| stat.complete)) {
            let first = async {
                while let Some((node, holdings)) = answers.recv().await {
                    round.note(node, &holdings.unwrap_or_default());
                    if !round.holders.is_empty() {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(FIRST_HOLDER, first).await;
        }
        let job = self.velod.pull(roots.clone(), tables_only, round.sources(), priority).await?;
        self.metrics.pulls.inc();
        if self.pulls.begin(job, &roots) {
            self.pulls.add(job, &round.sources());
            self.add_pullers(job, &ids).await;
            let control = Arc::clone(self);
            tokio::spawn(async move {
                control.finish_round(job, &mut answers, &mut round).await;
                control.feed(job, roots, tables_only, round).await;
            });
        }
        Ok(job)
    }

    /// Feeds a job that somebody else began on velod. The sources that it has so far.
    ///
    /// # Errors
    /// [`VelodError`], with [`ErrorCode::NotFound`] where there is no such job.
    pub(crate) async fn feed_job(self: &Arc<Self>, job: JobId) -> Result<Vec<NodeId>, VelodError> {
        let status = self.job(job).await?;
        if self.pulls.begin(job, &status.roots) {
            let ids: Vec<BlobId> = status.roots.iter().map(|root| root.blob).collect();
            let mut answers = self.ask_all(&ids, true);
            let mut round = Round::default();
            self.add_pullers(job, &ids).await;
            self.finish_round(job, &mut answers, &mut round).await;
            let control = Arc::clone(self);
            tokio::spawn(async move { control.feed(job, status.roots, false, round).await });
        }
        Ok(self.pulls.sources(job))
    }

    /// Where one job stands.
    ///
    /// # Errors
    /// [`VelodError`], with [`ErrorCode::NotFound`] where there is no such job.
    pub(crate) async fn job(&self, job: JobId) -> Result<JobStatus, VelodError> {
        let jobs = self.velod.jobs().await?;
        jobs.into_iter().find(|status| status.job == job).ok_or_else(|| {
            velo_socket::Error { code: ErrorCode::NotFound, message: format!("there is no job {job}") }.into()
        })
    }

    /// Hands the job those who were heard to pull the same.
    async fn add_pullers(&self, job: JobId, ids: &[BlobId]) {
        let pullers: Vec<NodeId> =
            self.pulls.pullers(ids).into_iter().filter(|node| !self.revoked(node)).collect();
        let new = self.pulls.add(job, &pullers);
        if !new.is_empty()
            && let Err(error) = self.velod.add_sources(job, new).await
        {
            tracing::debug!(%error, job, "sources were not added");
        }
    }

    /// Hands the job every source as it answers.
    async fn finish_round(
        &self,
        job: JobId,
        answers: &mut tokio::sync::mpsc::Receiver<crate::directory::Answered>,
        round: &mut Round,
    ) {
        while let Some((node, holdings)) = answers.recv().await {
            round.note(node, &holdings.unwrap_or_default());
            let new = self.pulls.add(job, &round.sources());
            if !new.is_empty()
                && let Err(error) = self.velod.add_sources(job, new).await
            {
                tracing::debug!(%error, job, "sources were not added");
            }
        }
    }

    async fn feed(self: Arc<Self>, job: JobId, roots: Vec<ObjectId>, tables_only: bool, first: Round) {
        let mut round = first;
        let mut pause = Duration::from_millis(500);
        loop {
            if round.holders.is_empty() {
                self.read_origin(job, &roots, tables_only, &round.pullers).await;
            }
            tokio::time::sleep(pause).await;
            let status = match self.job(job).await {
                Ok(status) => status,
                Err(VelodError::Refused(_)) => break,
                // velod is starting again; its jobs are gone with it, or will be there.
                Err(_) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let waiting = match status.state {
                JobState::Running => false,
                JobState::Waiting => true,
                _ => break,
            };
            pause = if waiting { ASK_TIMEOUT / 2 } else { (pause * 2).min(Duration::from_secs(5)) };
            let mut ids: Vec<BlobId> = roots.iter().map(|root| root.blob).collect();
            ids.extend(status.missing.iter().filter(|id| !roots.iter().any(|root| root.blob == **id)));
            round = Round::default();
            let mut answers = self.ask_all(&ids, true);
            self.finish_round(job, &mut answers, &mut round).await;
        }
        self.pulls.end(job);
    }

    /// Reads the origin, if this node is the one to do it: of all that pull the same, the one that rendezvous hashing names.
    async fn read_origin(
        &self,
        job: JobId,
        roots: &[ObjectId],
        tables_only: bool,
        pullers: &BTreeSet<NodeId>,
    ) {
        let Some(origin) = &self.origin else { return };
        for root in roots {
            if elected(root, self.node, pullers) != self.node {
                continue;
            }
            match origin.fetch(&self.velod, *root, tables_only).await {
                Ok(None) => {}
                Ok(Some(fetched)) => {
                    self.metrics.origin_read_bytes.inc_by(fetched.bytes);
                    tracing::info!(%root, blobs = fetched.blobs, bytes = fetched.bytes, "read from the origin");
                    // The job looks again at what is there.
                    let _ = self.velod.add_sources(job, Vec::new()).await;
                }
                Err(error) => tracing::warn!(%error, %root, "the origin did not give it"),
            }
        }
    }
}

/// The node that reads a root from the origin for all.
fn elected(root: &ObjectId, own: NodeId, pullers: &BTreeSet<NodeId>) -> NodeId {
    let weight = |node: &NodeId| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(root.blob.as_bytes()).update(node.as_bytes());
        *hasher.finalize().as_bytes()
    };
    pullers.iter().copied().chain([own]).max_by_key(weight).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pullers_elect_the_same_reader() {
        let nodes: Vec<NodeId> = (0..5u8).map(|n| NodeId::from_bytes([n; 32])).collect();
        let mut elected_ones = BTreeSet::new();
        for content in 0..20u8 {
            let root: ObjectId = format!("tree:{}", BlobId::of(&[content]).to_hex()).parse().expect("an id");
            let votes: BTreeSet<NodeId> = nodes
                .iter()
                .map(|own| elected(&root, *own, &nodes.iter().copied().filter(|node| node != own).collect()))
                .collect();
            assert_eq!(votes.len(), 1);
            elected_ones.extend(votes);
        }
        assert!(elected_ones.len() > 2, "not always the same one");
    }

    #[test]
    fn a_puller_becomes_a_source_once() {
        let pulls = Pulls::default();
        let root = ObjectId { kind: velo_object::ObjectKind::Blob, blob: BlobId::of(b"x") };
        let node = NodeId::from_bytes([1; 32]);
        assert!(pulls.begin(7, &[root]) && !pulls.begin(7, &[root]));
        assert_eq!(pulls.meet(node, &[BlobId::of(b"y")]), [0; 0]);
        assert_eq!(pulls.meet(node, &[root.blob]), [7]);
        assert_eq!(
            pulls.pullers(&[root.blob]),
            BTreeSet::from([node]),
            "remembered for a job that begins later"
        );
        assert!(pulls.pullers(&[BlobId::of(b"z")]).is_empty());
        assert_eq!(pulls.meet(node, &[root.blob]), [0; 0]);
        assert_eq!((pulls.add(7, &[node]), pulls.sources(7)), (vec![], vec![node]));
        pulls.end(7);
        assert!(pulls.sources(7).is_empty() && pulls.add(7, &[node]).is_empty());
    }
}
