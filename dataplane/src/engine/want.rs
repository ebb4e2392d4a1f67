//! A blob that some job misses.

use std::fs::File;
use std::sync::Arc;

use velo_object::{BlobId, NodeId};
use velo_socket::{Error, JobId};
use velo_store::StageKind;
use velo_swarm::Tag;

use crate::target::Target;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits until others are done.
    Queued,
    /// The store is asked what is here of it.
    Opening,
    /// The planner has it.
    Active,
    /// All pieces are here; the store makes it durable.
    Committing,
}

/// A blob that some job misses.
#[derive(Debug)]
pub(super) struct Want {
    /// Tells it from earlier wants of the same blob, for which answers may still come.
    pub(super) serial: u64,
    pub(super) kind: StageKind,
    pub(super) stage: Stage,
    pub(super) priority: u8,
    /// A size that a verified tree or the caller stated.
    pub(super) trusted_bytes: Option<u64>,
    /// The size that the jobs' totals count.
    pub(super) size_bytes: Option<u64>,
    /// Verified bytes that the jobs count as done.
    pub(super) done_bytes: u64,
    /// Where it goes instead of the store; then only one job can have it.
    pub(super) sink: Option<File>,
    /// Jobs that want it at another place, when this is done.
    pub(super) later: Vec<Later>,
    pub(super) jobs: Vec<JobId>,
    /// Those of them for which it is the table of a tree.
    pub(super) table_of: Vec<JobId>,
    pub(super) target: Option<Arc<Target>>,
    /// The target for the case that it has only one piece.
    pub(super) whole: Option<Arc<Target>>,
    /// Why nothing that was said of it so far can be received, and since when: it fails where nobody says anything else.
    pub(super) refused: Option<(u64, Error)>,
    /// Pieces that those who are interested have not been told of.
    pub(super) news: Vec<(u64, bool)>,
}

/// A job that has to wait for another's transfer of the same blob.
#[derive(Debug)]
pub(super) struct Later {
    pub(super) job: JobId,
    pub(super) sink: Option<File>,
    pub(super) table: bool,
}

impl Want {
    pub(super) fn new(serial: u64, kind: StageKind, trusted_bytes: Option<u64>, priority: u8) -> Self {
        Self {
            serial,
            kind,
            stage: Stage::Queued,
            priority,
            trusted_bytes,
            size_bytes: trusted_bytes,
            done_bytes: 0,
            sink: None,
            later: Vec::new(),
            jobs: Vec::new(),
            table_of: Vec::new(),
            target: None,
            whole: None,
            refused: None,
            news: Vec::new(),
        }
    }

    /// Whether its pieces go there: not where it is complete, or goes on under another outboard.
    pub(super) fn receives_into(&self, target: &Arc<Target>) -> bool {
        let same_place = |own: &Arc<Target>| match (own.staging(), target.staging()) {
            (Some(own), Some(its)) => Arc::ptr_eq(&own, &its),
            _ => Arc::ptr_eq(own, target),
        };
        self.stage == Stage::Active && self.target.as_ref().is_some_and(same_place)
    }
}

/// A read (or a trial of a hole) that the planner asked for and that has not ended.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) node: Option<NodeId>,
    pub(super) blob: BlobId,
    pub(super) what: Asked,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Asked {
    /// A piece or a hole.
    Piece {
        /// Which.
        index: u64,
        /// Its length.
        len: u32,
    },
    /// An encoded outboard, read in parts.
    Outboard {
        /// For which want.
        serial: u64,
        /// What it must state.
        size_bytes: u64,
        /// Its length.
        bytes: u64,
        /// What has come of it.
        collected: Vec<u8>,
    },
}

/// Names an [`Ask`].
pub(super) type AskTag = Tag;
