//! A job's books: what it still misses, what came from whom.

use std::collections::{BTreeMap, BTreeSet};

use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::{JobId, JobState, JobStatus};
use velo_store::Hold;

/// Blobs that a status lists at most.
const MISSING_LISTED: usize = 64;

/// A job that runs or has ended lately.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) roots: Vec<ObjectId>,
    pub(super) tables_only: bool,
    pub(super) sources: BTreeSet<NodeId>,
    pub(super) priority: u8,
    pub(super) state: JobState,
    /// In microseconds of the engine's clock.
    pub(super) began: u64,
    pub(super) ended: Option<u64>,
    /// When something last came of it.
    pub(super) progressed: u64,
    pub(super) missing: BTreeSet<BlobId>,
    /// What it needs stays until it ends, also what came first.
    pub(super) hold: Hold,
    /// Tables that are here and still to be read.
    pub(super) tables_to_read: usize,
    pub(super) total_bytes: u64,
    pub(super) done_bytes: u64,
    pub(super) received_bytes: u64,
    pub(super) bad_pieces: u64,
    pub(super) duplicate_pieces: u64,
    pub(super) by_source: BTreeMap<NodeId, u64>,
    /// Whether the board is behind.
    pub(super) changed: bool,
}

impl Job {
    pub(super) fn new(id: JobId, roots: Vec<ObjectId>, hold: Hold, now: u64) -> Self {
        Self {
            id,
            roots,
            tables_only: false,
            sources: BTreeSet::new(),
            priority: 0,
            state: JobState::Running,
            began: now,
            ended: None,
            progressed: now,
            missing: BTreeSet::new(),
            hold,
            tables_to_read: 0,
            total_bytes: 0,
            done_bytes: 0,
            received_bytes: 0,
            bad_pieces: 0,
            duplicate_pieces: 0,
            by_source: BTreeMap::new(),
            changed: true,
        }
    }

    /// Whether it goes on.
    pub(super) fn goes_on(&self) -> bool {
        self.ended.is_none()
    }

    /// Whether nothing is missing.
    pub(super) fn has_all(&self) -> bool {
        self.missing.is_empty() && self.tables_to_read == 0
    }

    /// A verified piece has come.
    pub(super) fn account(&mut self, node: Option<NodeId>, bytes: u64, now: u64) {
        self.done_bytes += bytes;
        if let Some(node) = node {
            self.received_bytes += bytes;
            *self.by_source.entry(node).or_default() += bytes;
        }
        self.progressed = now;
        self.changed = true;
        if self.state == JobState::Waiting {
            self.state = JobState::Running;
        }
    }

    pub(super) fn status(&self, now: u64) -> JobStatus {
        JobStatus {
            job: self.id,
            roots: self.roots.clone(),
            state: self.state.clone(),
            total_bytes: self.total_bytes,
            done_bytes: self.done_bytes,
            received_bytes: self.received_bytes,
            bad_pieces: self.bad_pieces,
            duplicate_pieces: self.duplicate_pieces,
            elapsed_ms: (self.ended.unwrap_or(now) - self.began) / 1000,
            sources: self.by_source.iter().map(|(node, bytes)| (*node, *bytes)).collect(),
            missing: self.missing.iter().take(MISSING_LISTED).copied().collect(),
        }
    }
}
