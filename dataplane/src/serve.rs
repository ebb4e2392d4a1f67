//! Serves what the store holds to members; fabrics ask it from their workers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use velo_fabric::{Bytes, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};
use velo_store::{Store, StoreError};

use crate::metrics::{Metrics, add};

/// The store, as peers see it. Only authenticated members have a path on which they could ask.
pub(crate) struct StoreServe {
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
}

impl Serve for StoreServe {
    fn serve(&self, peer: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
        let wanted = match what {
            What::Blob => velo_store::What::Blob,
            What::Outboard => velo_store::What::Outboard,
        };
        let served = self.store.serve(blob, wanted, range).map_err(|error| {
            add(&self.metrics.counters.serve_refused_total, 1);
            match error {
                StoreError::NotFound(_) | StoreError::NotHere { .. } => Refusal::NotHere,
                error => {
                    tracing::warn!(%blob, peer = peer.short(), "cannot serve: {error}");
                    Refusal::Refused
                }
            }
        })?;
        let content = match served.content {
            velo_store::ServedContent::File { file, offset_bytes } => {
                ServedContent::File { file, offset_bytes }
            }
            velo_store::ServedContent::Bytes(bytes) => ServedContent::Bytes(Bytes::from_owner(bytes)),
        };
        Ok(Served { content, len: served.len_bytes as u32, lease: Box::new(served.lease) })
    }

    fn sent(&self, peer: NodeId, bytes: u64) {
        self.metrics.peer(&peer).sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
