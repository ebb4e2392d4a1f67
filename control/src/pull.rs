//! Pulls: a job on velod begins with the members that have its content, and is fed with more for as long as it runs (`feed.rs`).
//!
//! Who asks "who has this, I am pulling it" tells the others in the same breath, so that those who pull it too become each other's sources.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;
use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::{ErrorCode, JobId, JobState, JobStatus};

use crate::feed::Round;
use crate::node::{Control, lock};
use crate::velod::VelodError;

/// How long a pull waits for the first holder before the job begins without one.
const FIRST_HOLDER: Duration = Duration::from_millis(800);
/// Jobs that are fed at once.
const MOST_JOBS: usize = 1024;

/// Jobs that are taken up at once after a start.
const FED_AT_ONCE: usize = 16;
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

#[derive(Debug)]
struct Fed {
    roots: BTreeSet<BlobId>,
    sources: BTreeSet<NodeId>,
    /// When somebody last asked about it.
    asked: Instant,
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
    pub(crate) fn add(&self, job: JobId, sources: &[NodeId]) -> Vec<NodeId> {
        let mut fed = lock(&self.fed);
        let Some(fed) = fed.get_mut(&job) else { return Vec::new() };
        sources.iter().copied().filter(|node| fed.sources.insert(*node)).collect()
    }

    /// Somebody is interested in a job.
    pub(crate) fn touch(&self, job: JobId) {
        if let Some(fed) = lock(&self.fed).get_mut(&job) {
            fed.asked = Instant::now();
        }
    }

    /// How long nobody has been interested in a job.
    pub(crate) fn unasked(&self, job: JobId) -> Duration {
        lock(&self.fed).get(&job).map(|fed| fed.asked.elapsed()).unwrap_or_default()
    }

    fn begin(&self, job: JobId, roots: &[ObjectId]) -> bool {
        let mut fed = lock(&self.fed);
        if fed.contains_key(&job) || fed.len() >= MOST_JOBS {
            return false;
        }
        let roots = roots.iter().map(|root| root.blob).collect();
        fed.insert(job, Fed { roots, sources: BTreeSet::new(), asked: Instant::now() });
        true
    }

    pub(crate) fn end(&self, job: JobId) {
        lock(&self.fed).remove(&job);
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
        let roots = roots.into_iter().map(|root| (root, None)).collect();
        self.pull_sized(roots, tables_only, priority).await
    }

    /// The same, where a verified tree has told the sizes of some.
    ///
    /// # Errors
    /// [`VelodError`].
    pub(crate) async fn pull_sized(
        self: &Arc<Self>,
        roots: Vec<(ObjectId, Option<u64>)>,
        tables_only: bool,
        priority: u8,
    ) -> Result<JobId, VelodError> {
        let (roots, sizes): (Vec<ObjectId>, Vec<Option<u64>>) = roots.into_iter().unzip();
        let ids: Vec<BlobId> = roots.iter().map(|root| root.blob).collect();
        let mut answers = self.ask_all(&ids, true);
        let mut round = Round::of(&ids);
        // What is here begins at once; what it names may have to be found meanwhile.
        let here = self.velod.stat(ids.clone()).await?;
        if !here.iter().all(|stat| stat.as_ref().is_some_and(|stat| stat.complete)) {
            let first = async {
                while let Some((node, holdings)) = answers.recv().await {
                    round.note(node, holdings.as_deref());
                    if round.has_holder() {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(FIRST_HOLDER, first).await;
        }
        let job = self.velod.pull(roots.clone(), sizes, tables_only, round.sources(), priority).await?;
        self.metrics.pulls.inc();
        if self.pulls.begin(job, &roots) {
            self.pulls.add(job, &round.sources());
            self.add_pullers(job, &ids).await;
            let control = Arc::clone(self);
            tokio::spawn(async move {
                control.finish_round(job, &mut answers, &mut round).await;
                control.feed(job, round).await;
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
        self.pulls.touch(job);
        if goes_on(&status) && self.pulls.begin(job, &status.roots) {
            let ids: Vec<BlobId> = status.roots.iter().map(|root| root.blob).collect();
            let mut answers = self.ask_all(&ids, true);
            let mut round = Round::of(&ids);
            self.add_pullers(job, &ids).await;
            self.finish_round(job, &mut answers, &mut round).await;
            let control = Arc::clone(self);
            tokio::spawn(async move { control.feed(job, round).await });
        }
        Ok(self.pulls.sources(job))
    }

    /// Feeds all jobs that go on, also those that a control plane before this one began.
    pub(crate) async fn feed_all(self: Arc<Self>) {
        let jobs = self.velod.jobs().await.unwrap_or_default();
        let feeding = jobs.into_iter().filter(goes_on).map(|status| {
            let control = &self;
            async move {
                if let Err(error) = control.feed_job(status.job).await {
                    tracing::debug!(%error, job = status.job, "a job is not fed");
                }
            }
        });
        futures_util::stream::iter(feeding).for_each_concurrent(FED_AT_ONCE, |feeding| feeding).await;
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
    pub(crate) async fn finish_round(
        &self,
        job: JobId,
        answers: &mut tokio::sync::mpsc::Receiver<crate::directory::Answered>,
        round: &mut Round,
    ) {
        while let Some((node, holdings)) = answers.recv().await {
            round.note(node, holdings.as_deref());
            let new = self.pulls.add(job, &round.sources());
            if !new.is_empty()
                && let Err(error) = self.velod.add_sources(job, new).await
            {
                tracing::debug!(%error, job, "sources were not added");
            }
        }
    }
}

/// Whether a job has not ended.
pub(crate) fn goes_on(status: &JobStatus) -> bool {
    matches!(status.state, JobState::Running | JobState::Waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

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
