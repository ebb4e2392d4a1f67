//! The planner itself.

use velo_object::{BlobId, NodeId};

use crate::action::*;

/// Decides what to read next from whom. See the crate's page for who calls what when.
#[derive(Debug)]
pub struct Planner {}

#[allow(unused_variables)]
impl Planner {
    /// A planner for the node `me`. `seed` breaks ties.
    pub fn new(me: NodeId, limits: Limits, seed: u64) -> Self {
        todo!()
    }

    /// A blob is wanted. False if it was known already (then only its priority may rise) or [`Limits::blobs`] are.
    pub fn add_blob(&mut self, now: u64, spec: BlobSpec) -> bool {
        todo!()
    }

    /// A blob is not wanted any more, or is committed. Its outstanding reads are cancelled by actions.
    pub fn remove_blob(&mut self, now: u64, blob: &BlobId) {
        todo!()
    }

    /// A node can be read from. False if [`Limits::sources`] are there. A known one only gets the new `info`.
    pub fn add_source(&mut self, now: u64, node: NodeId, info: SourceInfo) -> bool {
        todo!()
    }

    /// A node cannot be read from any more: its reads are dead and will be asked elsewhere, what it said is forgotten.
    pub fn remove_source(&mut self, now: u64, node: &NodeId) {
        todo!()
    }

    /// A source says what it has of a blob, all of it; replaces what it said before. Ignored for unknown blobs and sources.
    pub fn handle_have(&mut self, now: u64, node: &NodeId, blob: &BlobId, have: Have) {
        todo!()
    }

    /// A source says that it has nothing of a blob and is not pulling it.
    pub fn handle_have_not(&mut self, now: u64, node: &NodeId, blob: &BlobId) {
        todo!()
    }

    /// A source has more pieces of a blob: (index, whether it is a hole).
    pub fn handle_have_more(&mut self, now: u64, node: &NodeId, blob: &BlobId, pieces: &[(u64, bool)]) {
        todo!()
    }

    /// An outboard has come, merges to the blob's id and states the size that was asked for.
    pub fn handle_outboard(&mut self, now: u64, tag: Tag) {
        todo!()
    }

    /// What came as an outboard is none, or has another root or size. Names whom to charge; `None` for a dead tag.
    pub fn handle_bad_outboard(&mut self, now: u64, tag: Tag) -> Option<Blame> {
        todo!()
    }

    /// The bytes of a piece have come: the source is free for the next. Says whether they are still needed.
    pub fn handle_piece_read(&mut self, now: u64, tag: Tag, bytes: u32) -> Arrival {
        todo!()
    }

    /// A piece (or a hole) is verified and stored, wherever it came from.
    pub fn handle_verified(&mut self, now: u64, blob: &BlobId, index: u64) {
        todo!()
    }

    /// A piece did not verify, or is no hole. Names whom to charge; `None` for a dead tag.
    pub fn handle_bad_piece(&mut self, now: u64, tag: Tag) -> Option<Blame> {
        todo!()
    }

    /// A read brought nothing. It is asked again, elsewhere if possible.
    pub fn handle_failed(&mut self, now: u64, tag: Tag, failure: Failure) {
        todo!()
    }

    /// What to do next; `None` when there is nothing to do before the next event or [`Planner::next_deadline`].
    pub fn poll(&mut self, now: u64) -> Option<Action> {
        todo!()
    }

    /// When to poll again even if nothing happens; `None` if never.
    pub fn next_deadline(&self) -> Option<u64> {
        todo!()
    }

    /// Where a blob stands; `None` if it is not known.
    pub fn progress(&self, blob: &BlobId) -> Option<Progress> {
        todo!()
    }

    /// Where the sources stand.
    pub fn sources(&self) -> impl Iterator<Item = SourceStatus> + '_ {
        std::iter::empty()
    }

    /// Counts since the beginning.
    pub fn counters(&self) -> Counters {
        todo!()
    }
}
