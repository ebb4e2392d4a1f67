//! [`EngineHandle`]: how the local socket, the sessions and the tests speak to the engine.

use std::fs::File;
use std::time::Duration;

use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::{Error, JobId, JobStatus};

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

/// Content bytes exchanged with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// Content bytes received from it.
    pub received_bytes: u64,
    /// Content bytes sent to it.
    pub sent_bytes: u64,
    /// Pieces from it that did not verify.
    pub bad_pieces: u64,
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

/// Speaks to the engine from any thread.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    board: std::sync::Arc<super::board::Board>,
}

impl EngineHandle {
    /// Starts a job.
    ///
    /// # Errors
    /// [`velo_socket::ErrorCode::Invalid`], `Limit` or `Cancelled`.
    pub fn pull(&self, request: PullRequest) -> Result<JobId, Error> {
        let _ = request;
        todo!()
    }

    /// More places to get a job's content from.
    ///
    /// # Errors
    /// [`velo_socket::ErrorCode::NotFound`] where the job does not run.
    pub fn add_sources(&self, job: JobId, sources: Vec<NodeId>) -> Result<(), Error> {
        let _ = (job, sources);
        todo!()
    }

    /// Ends a job; what has arrived stays.
    ///
    /// # Errors
    /// [`velo_socket::ErrorCode::NotFound`] where the job does not run.
    pub fn cancel(&self, job: JobId) -> Result<(), Error> {
        let _ = job;
        todo!()
    }

    /// A job that runs, or ended lately.
    pub fn status(&self, job: JobId) -> Option<JobStatus> {
        self.board.get(job)
    }

    /// All running jobs and those that ended lately, oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        self.board.all()
    }

    /// Waits until the job's state is newer than version `seen` (0: any), the job has ended, or `timeout` is over.
    /// None where the job is unknown.
    pub fn wait_change(&self, job: JobId, seen: u64, timeout: Duration) -> Option<(u64, JobStatus)> {
        self.board.wait(job, seen, timeout)
    }

    /// Counters, gauges, workers and notes for [`velo_socket::Status`].
    pub fn report(&self) -> Report {
        todo!()
    }
}
