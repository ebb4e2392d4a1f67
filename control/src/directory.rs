//! The directory: which members hold what, found by asking all of them at once.
//!
//! Answers come out as they arrive, so that a job begins with the first holder and does not wait for a member that is silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use velo_object::{BlobId, IdPrefix, NodeId, ObjectId, ObjectKind};
use velo_socket::{BlobStat, JobState};

use crate::node::Control;
use crate::origin;
use crate::rpc::{Ask, Holding, MAX_IDS, MAX_TREES, Reply, TreeHolding};
use crate::velod::VelodError;

/// Members that are asked at once.
const AT_ONCE: usize = 32;
/// How long a member may take to say what it has.
pub(crate) const ASK_TIMEOUT: Duration = Duration::from_millis(1500);

/// The largest table that is read to say how much of its tree is here, in bytes.
const COUNTED_TABLE_BYTES: u64 = 64 << 20;

/// What one member answered; none: it did not.
pub(crate) type Answered = (NodeId, Option<Vec<Option<Holding>>>);

/// Why an id is not found.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// No member knows an id that begins so.
    #[error("nobody knows an id that begins with {0}")]
    Unknown(String),
    /// Several do.
    #[error("{prefix} is ambiguous: {} begin so; give more digits", .ids.join(", "))]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// Some of the ids that begin so.
        ids: Vec<String>,
    },
    /// velod does not answer.
    #[error(transparent)]
    Velod(#[from] VelodError),
}

impl Control {
    /// What this node has of these, for another one.
    pub(crate) async fn holdings(&self, ids: &[BlobId]) -> Result<Vec<Option<Holding>>, VelodError> {
        let stats = self.velod.stat(ids.to_vec()).await?;
        let pulling: BTreeSet<BlobId> = self
            .velod
            .jobs()
            .await?
            .into_iter()
            .filter(|job| matches!(job.state, JobState::Running | JobState::Waiting))
            .flat_map(|job| job.roots.into_iter().map(|root| root.blob).chain(job.missing))
            .collect();
        let holding = |(id, stat): (&BlobId, Option<BlobStat>)| {
            let complete = stat.as_ref().is_some_and(|stat| stat.complete);
            let pulling = pulling.contains(id) && !complete;
            let pieces = stat.as_ref().map_or(0, |stat| stat.have.count());
            (complete || pulling || pieces > 0).then(|| Holding {
                size_bytes: stat.and_then(|stat| stat.size_bytes),
                complete,
                pieces,
                pulling,
                origin_bytes: self.origin.as_ref().filter(|_| pulling).and_then(|origin| origin.offers(id)),
            })
        };
        Ok(ids.iter().zip(stats).map(holding).collect())
    }

    /// Asks all reachable members who has these ids; their answers come out as they arrive, within [`ASK_TIMEOUT`].
    pub(crate) fn ask_all(self: &Arc<Self>, ids: &[BlobId], pulling: bool) -> mpsc::Receiver<Answered> {
        let ids = ids[..ids.len().min(MAX_IDS)].to_vec();
        let nodes = self.reachable();
        let (answers, receiver) = mpsc::channel(nodes.len().max(1));
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for node in nodes {
            let (control, ids, answers, turns) =
                (Arc::clone(self), ids.clone(), answers.clone(), Arc::clone(&turns));
            tokio::spawn(async move {
                let _turn = turns.acquire().await;
                let asked = ids.len();
                let reply = control.ask(node, &Ask::Have { ids, pulling }, ASK_TIMEOUT).await;
                let holdings = match reply {
                    Ok(Reply::Have(holdings)) if holdings.len() == asked => Some(holdings),
                    Ok(_) => None,
                    Err(error) => {
                        tracing::debug!(%error, "directory");
                        None
                    }
                };
                let _ = answers.send((node, holdings)).await;
            });
        }
        receiver
    }

    /// How much of these trees is here.
    pub(crate) async fn tree_holdings(&self, trees: &[BlobId]) -> Vec<Option<TreeHolding>> {
        let mut holdings = Vec::with_capacity(trees.len());
        for tree in trees {
            holdings.push(self.tree_holding(*tree).await);
        }
        holdings
    }

    /// None where its table is not here, is too large to be counted, or is no table.
    async fn tree_holding(&self, tree: BlobId) -> Option<TreeHolding> {
        let table = origin::read(&self.velod, tree, COUNTED_TABLE_BYTES).await.ok()?;
        let parts = origin::parts(tree, table).ok()?;
        let mut complete = 0;
        for some in parts.chunks(MAX_IDS) {
            let stats = self.velod.stat(some.to_vec()).await.ok()?;
            complete += stats.iter().flatten().filter(|stat| stat.complete).count() as u64;
        }
        Some(TreeHolding { complete, total: parts.len() as u64 })
    }

    /// How much of these trees is on which member, this one included.
    pub(crate) async fn ask_trees(
        self: &Arc<Self>,
        trees: &[BlobId],
    ) -> BTreeMap<(NodeId, BlobId), TreeHolding> {
        let mut found = BTreeMap::new();
        for some in trees.chunks(MAX_TREES) {
            let mut note = |node: NodeId, holdings: Vec<Option<TreeHolding>>| {
                let both = some.iter().zip(holdings);
                found.extend(both.filter_map(|(tree, holding)| Some(((node, *tree), holding?))));
            };
            let asks = self.reachable().into_iter().map(|node| async move {
                (node, self.ask(node, &Ask::Trees(some.to_vec()), ASK_TIMEOUT).await)
            });
            for (node, reply) in futures_util::future::join_all(asks).await {
                if let Ok(Reply::Trees(holdings)) = reply {
                    note(node, holdings);
                }
            }
            note(self.node, self.tree_holdings(some).await);
        }
        found
    }

    /// The whole id that begins so, with its kind: from this node's store and names, else from all members'.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub(crate) async fn resolve_prefix(
        self: &Arc<Self>,
        prefix: &IdPrefix,
    ) -> Result<ObjectId, ResolveError> {
        let mut found: BTreeMap<BlobId, Option<ObjectId>> = BTreeMap::new();
        let mut merge = |ids: Vec<(BlobId, Option<ObjectId>)>| {
            for (id, kind) in ids.into_iter().filter(|(id, _)| prefix.matches(id)).take(64) {
                let known = found.entry(id).or_default();
                *known = known.or(kind.filter(|object| object.blob == id));
            }
        };
        merge(self.known_ids(prefix).await?);
        if let Some(whole) = prefix.whole() {
            merge(vec![(whole, prefix.kind.map(|kind| ObjectId { kind, blob: whole }))]);
        }
        let settled = |found: &BTreeMap<BlobId, Option<ObjectId>>| {
            prefix.whole().is_some() && found.values().all(|kind| kind.is_some())
        };
        if !settled(&found) {
            let asks = self.reachable().into_iter().map(|node| {
                let ask = Ask::Resolve(prefix.clone());
                async move { self.ask(node, &ask, ASK_TIMEOUT).await }
            });
            for reply in futures_util::future::join_all(asks).await {
                if let Ok(Reply::Ids(ids)) = reply {
                    for (id, kind) in ids.into_iter().filter(|(id, _)| prefix.matches(id)).take(64) {
                        let known = found.entry(id).or_default();
                        *known = known.or(kind.filter(|object| object.blob == id));
                    }
                }
            }
        }
        let mut ids = found.into_iter().map(|(blob, known)| {
            let kind = prefix.kind.or(known.map(|object| object.kind)).unwrap_or(ObjectKind::Blob);
            ObjectId { kind, blob }
        });
        match (ids.next(), ids.next()) {
            (Some(id), None) => Ok(id),
            (None, _) => Err(ResolveError::Unknown(prefix.digits().to_owned())),
            (Some(first), Some(second)) => {
                let ids = [first, second].into_iter().chain(ids.take(6)).map(|id| id.to_string()).collect();
                Err(ResolveError::Ambiguous { prefix: prefix.digits().to_owned(), ids })
            }
        }
    }

    /// Ids of this node that begin so, with their kinds where a pin or a name tells.
    pub(crate) async fn known_ids(
        &self,
        prefix: &IdPrefix,
    ) -> Result<Vec<(BlobId, Option<ObjectId>)>, VelodError> {
        let mut kinds: BTreeMap<BlobId, ObjectId> = BTreeMap::new();
        {
            let refs = self.refs();
            let named = refs.iter_live().filter_map(|held| held.current.id());
            kinds.extend(named.filter(|id| prefix.matches(&id.blob)).map(|id| (id.blob, id)));
        }
        let pins = self.velod.pins().await?;
        kinds.extend(pins.into_iter().filter(|id| prefix.matches(&id.blob)).map(|id| (id.blob, id)));
        let stored = self.velod.resolve(prefix.clone()).await?;
        let mut ids: BTreeMap<BlobId, Option<ObjectId>> = stored.into_iter().map(|id| (id, None)).collect();
        ids.extend(kinds.into_iter().map(|(id, object)| (id, Some(object))));
        Ok(ids.into_iter().take(64).collect())
    }
}
