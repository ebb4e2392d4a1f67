//! [`EngineHandle`]: how the local socket, the sessions and the tests speak to the engine.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use velo_fabric::ring::Waker;
use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::{Error, ErrorCode, JobId, JobState, JobStatus};

use super::board::Board;
use super::inbox::{Inbox, Input};
use crate::metrics::Metrics;
use crate::session::SessionEvent;

/// What a job is to get.
#[derive(Debug, Default)]
pub struct PullRequest {
    /// Roots: blobs, or trees with all they name.
    pub roots: Vec<ObjectId>,
    /// Only the tables of the trees, not what they name.
    pub tables_only: bool,
    /// Nodes that may have them.
    pub sources: Vec<NodeId>,
    /// Higher goes first.
    pub priority: u8,
    /// Blobs that are received straight into these files and not kept.
    pub sinks: Vec<(BlobId, File)>,
    /// Sizes of `roots` where a verified tree or a ref states them; may be shorter than `roots`.
    pub sizes: Vec<Option<u64>>,
}

/// Content bytes exchanged with one peer, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Content bytes received from it.
    pub received_bytes: u64,
    /// Content bytes sent to it.
    pub sent_bytes: u64,
    /// Pieces from it that did not verify.
    pub bad_pieces: u64,
    /// What carries what is read from it.
    pub fabric: velo_config::Fabric,
    /// The round trip on a path to it, where packets carry it.
    pub rtt_us: Option<u64>,
    /// How many of a million segments were lost there.
    pub loss_ppm: Option<u64>,
}

impl Default for PeerTraffic {
    fn default() -> Self {
        let fabric = velo_config::Fabric::Tcp;
        Self { received_bytes: 0, sent_bytes: 0, bad_pieces: 0, fabric, rtt_us: None, loss_ppm: None }
    }
}

/// What engine, workers and verifiers have to say for [`velo_socket::Status`].
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Monotonic counters, named as in [`velo_socket::Status::counters`].
    pub counters: Vec<(String, u64)>,
    /// Values that go up and down, named likewise.
    pub gauges: Vec<(String, u64)>,
    /// One line for each worker.
    pub workers: Vec<String>,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// Traffic of each peer that has a session, or had one lately.
    pub peers: Vec<(NodeId, PeerTraffic)>,
}

/// The most roots, sources and running jobs that are taken.
const ROOTS_MAX: usize = 65_536;
const SOURCES_MAX: usize = 4096;
const JOBS_MAX: usize = 1024;

/// What the engine shares with those who hold a handle.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) inbox: Inbox,
    pub(crate) board: Board,
    pub(crate) metrics: Arc<Metrics>,
    /// Jobs that go on.
    pub(crate) running: AtomicUsize,
    next_job: AtomicU64,
}

impl Shared {
    pub(crate) fn new(node: NodeId, waker: Waker, metrics: Arc<Metrics>) -> Self {
        // Begins at the time, so that a number means the same job for who remembers it over a restart.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            node,
            inbox: Inbox::new(waker),
            board: Board::default(),
            metrics,
            running: AtomicUsize::new(0),
            next_job: AtomicU64::new(since.as_millis() as u64),
        }
    }
}

/// Speaks to the engine from any thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

impl EngineHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Starts a job.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], `Limit` or `Cancelled`.
    pub fn pull(&self, request: PullRequest) -> Result<JobId, Error> {
        if request.roots.is_empty() {
            return Err(error(ErrorCode::Invalid, "a job needs at least one root: name a blob or a tree"));
        }
        if request.roots.len() > ROOTS_MAX || request.sources.len() > SOURCES_MAX {
            let message =
                format!("a job takes at most {ROOTS_MAX} roots and {SOURCES_MAX} sources: make several");
            return Err(error(ErrorCode::Limit, message));
        }
        if self.shared.running.fetch_add(1, Ordering::Relaxed) >= JOBS_MAX {
            self.shared.running.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{JOBS_MAX} jobs run already: wait for one, or cancel one");
            return Err(error(ErrorCode::Limit, message));
        }
        let job = self.shared.next_job.fetch_add(1, Ordering::Relaxed);
        let missing = request.roots.iter().take(64).map(|root| root.blob).collect();
        let status = JobStatus::begun(job, request.roots.clone(), JobState::Running, missing);
        self.shared.board.post(status);
        if !self.shared.inbox.push(Input::Pull(job, Box::new(request))) {
            self.shared.board.remove(job);
            return Err(stopping());
        }
        Ok(job)
    }

    /// More places to get a job's content from.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] where the job does not run.
    pub fn add_sources(&self, job: JobId, sources: Vec<NodeId>) -> Result<(), Error> {
        self.runs(job)?;
        if sources.len() > SOURCES_MAX {
            let message = format!("at most {SOURCES_MAX} sources at a time");
            return Err(error(ErrorCode::Limit, message));
        }
        self.shared.inbox.push(Input::AddSources(job, sources)).then_some(()).ok_or_else(stopping)
    }

    /// Ends a job; what has arrived stays.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] where the job does not run.
    pub fn cancel(&self, job: JobId) -> Result<(), Error> {
        self.runs(job)?;
        self.shared.inbox.push(Input::Cancel(job)).then_some(()).ok_or_else(stopping)
    }

    fn runs(&self, job: JobId) -> Result<(), Error> {
        match self.status(job).map(|status| status.state) {
            Some(JobState::Running | JobState::Waiting) => Ok(()),
            Some(_) => Err(error(ErrorCode::NotFound, format!("job {job} has ended"))),
            None => Err(error(ErrorCode::NotFound, format!("there is no job {job}: it may be long ended"))),
        }
    }

    /// The store has a blob, complete, that did not come from a peer (it was put, or read from an origin): jobs that miss it
    /// go on without, and peers that are interested hear of it.
    pub fn stored(&self, blob: BlobId, size_bytes: u64) {
        self.shared.inbox.push(Input::Stored(blob, size_bytes));
    }

    /// A job that runs, or ended lately.
    pub fn status(&self, job: JobId) -> Option<JobStatus> {
        self.shared.board.get(job)
    }

    /// All running jobs and those that ended lately, oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        self.shared.board.all()
    }

    /// Waits until the job's state is newer than version `seen` (0: any), the job has ended, or `timeout` is over.
    /// None where the job is unknown.
    pub fn wait_change(&self, job: JobId, seen: u64, timeout: Duration) -> Option<(u64, JobStatus)> {
        self.shared.board.wait(job, seen, timeout)
    }

    /// An event of the sessions. Waits while the engine has too many of them: what it waits for never waits for
    /// the sessions.
    pub fn session_event(&self, event: SessionEvent) {
        self.shared.inbox.push(Input::Session(Box::new(event)));
    }

    /// Counters, gauges, workers and notes for [`velo_socket::Status`].
    pub fn report(&self) -> Report {
        self.shared.metrics.report()
    }

    /// Adds a line to the notes of [`velo_socket::Status`], once, and logs it.
    pub fn note(&self, note: impl Into<String>) {
        self.shared.metrics.note(note);
    }

    /// Ends the engine; running jobs fail with [`ErrorCode::Cancelled`].
    pub(crate) fn stop(&self) {
        self.shared.inbox.push(Input::Stop);
    }
}

fn error(code: ErrorCode, message: impl Into<String>) -> Error {
    Error { code, message: message.into() }
}

fn stopping() -> Error {
    error(ErrorCode::Cancelled, "velod is stopping: ask again when it runs")
}
