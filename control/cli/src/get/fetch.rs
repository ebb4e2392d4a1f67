//! Brings content into the store of this node: control finds who has it, velod fetches it, and we watch.

use std::time::{Duration, Instant};

use velo_control::client::{PullReply, PullRequest, SourcesReply, SourcesRequest};
use velo_object::{BlobId, ObjectId, Tree};
use velo_socket::{Client, JobStatus};

use crate::job::{self, Limits};
use crate::node::Node;
use crate::output;
use crate::progress::Progress;

/// How often control hears that somebody still wants a job.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// What a transfer cost, for the answer.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Traffic {
    /// Bytes that came over the network.
    pub received_bytes: u64,
    /// From how many nodes.
    pub sources: u64,
    /// Pieces that came and did not verify.
    pub bad_pieces: u64,
    /// Verified pieces that came twice.
    pub duplicate_pieces: u64,
}

impl Traffic {
    /// Adds what a job did.
    pub fn add(&mut self, status: &JobStatus) {
        self.received_bytes += status.received_bytes;
        let sources = status.sources.iter().filter(|(_, bytes)| *bytes > 0).count() as u64;
        self.sources = self.sources.max(sources);
        self.bad_pieces += status.bad_pieces;
        self.duplicate_pieces += status.duplicate_pieces;
    }
}

/// Whether all these blobs are complete here.
pub fn all_here(velod: &mut Client, blobs: impl IntoIterator<Item = BlobId>) -> anyhow::Result<bool> {
    let blobs: Vec<BlobId> = blobs.into_iter().collect();
    for some in blobs.chunks(4096) {
        let stats = velod.stat(some.to_vec())?;
        if !stats.iter().all(|stat| stat.as_ref().is_some_and(|stat| stat.complete)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether all that a tree names is complete here.
pub fn tree_is_here(velod: &mut Client, tree: &Tree<Vec<u8>>) -> anyhow::Result<bool> {
    all_here(velod, tree.packs().chain(tree.blobs()).map(|named| named.blob))
}

/// Pulls these through control and waits for them.
pub fn fetch(
    node: &Node,
    what: &[ObjectId],
    tables_only: bool,
    limits: Limits<'_>,
    progress: &mut Progress,
) -> anyhow::Result<Traffic> {
    let what = what.iter().map(ToString::to_string).collect();
    let request = PullRequest { what, tables_only, priority: 0 };
    let reply: PullReply = node.control()?.post("/v1/pull", &request)?;
    watch(node, reply.job, limits, progress)
}

/// Waits for a job.
pub fn watch(node: &Node, job: u64, limits: Limits<'_>, progress: &mut Progress) -> anyhow::Result<Traffic> {
    let mut asked = Instant::now();
    let status = job::follow(&node.paths().socket(), job, limits, |status| {
        show(progress, status);
        // Control cancels a job that waits and about which nobody asks.
        if asked.elapsed() >= ASK_EVERY {
            asked = Instant::now();
            let _ = node
                .control()
                .and_then(|control| control.post::<SourcesReply>("/v1/sources", &SourcesRequest { job }));
        }
    })?;
    let mut traffic = Traffic::default();
    traffic.add(&status);
    Ok(traffic)
}

fn show(progress: &mut Progress, status: &JobStatus) {
    progress.total(status.total_bytes);
    let sources = status.sources.iter().filter(|(_, bytes)| *bytes > 0).count() as u64;
    let message = match status.state {
        velo_socket::JobState::Waiting => "waiting for a node that has it".to_owned(),
        _ if sources > 0 => format!("from {}", output::count(sources, "node")),
        _ => String::new(),
    };
    progress.set(status.done_bytes, &message);
}
