//! Answering other nodes: members by their certificates, strangers only when they ask to join.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use velo_object::NodeId;
use velo_socket::Caller;

use crate::authority::CERTIFICATE_LIFETIME;
use crate::node::Control;
use crate::rpc::{self, Ask, Reply};
use crate::velod::{Incoming, VelodError};

/// Questions of members that are answered at once.
const MEMBERS_AT_ONCE: usize = 64;
/// Joins that are answered at once.
const STRANGERS_AT_ONCE: usize = 4;

impl Control {
    /// Serves velod's calls for as long as the node runs. After each start of velod it is told all that it must know.
    pub(crate) async fn serve_loop(self: Arc<Self>) {
        let members = Arc::new(Semaphore::new(MEMBERS_AT_ONCE));
        let strangers = Arc::new(Semaphore::new(STRANGERS_AT_ONCE));
        loop {
            match self.attach().await {
                Ok(mut calls) => {
                    self.metrics.velod_up.set(1);
                    while let Some(call) = calls.recv().await {
                        let turns =
                            if matches!(call.from, Caller::Member(_)) { &members } else { &strangers };
                        let Ok(turn) = Arc::clone(turns).try_acquire_owned() else {
                            self.metrics.calls_refused.inc();
                            call.answer(Err("busy: try again".to_owned())).await;
                            continue;
                        };
                        let control = Arc::clone(&self);
                        tokio::spawn(async move {
                            control.answer(call).await;
                            drop(turn);
                        });
                    }
                    tracing::warn!("velod has gone; waiting for it");
                }
                Err(error) => tracing::debug!(%error, "velod"),
            }
            self.metrics.velod_up.set(0);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn attach(self: &Arc<Self>) -> Result<tokio::sync::mpsc::Receiver<Incoming>, VelodError> {
        let revoked = self.revocations().nodes();
        self.velod.revoked(revoked).await?;
        self.velod.members(self.members()).await?;
        let calls = self.velod.serve().await?;
        self.look_for_velod().await;
        // Those that run were begun by a control plane that is gone: nobody else feeds them.
        tokio::spawn(Arc::clone(self).feed_all());
        Ok(calls)
    }

    /// Tells velod who is in the cluster whenever that changes.
    pub(crate) async fn members_loop(self: Arc<Self>) {
        loop {
            self.members_changed.notified().await;
            // Changes come in groups.
            tokio::time::sleep(Duration::from_millis(20)).await;
            if let Err(error) = self.velod.members(self.members()).await {
                tracing::debug!(%error, "velod was not told of the members; it is when it is back");
            }
        }
    }

    async fn answer(self: &Arc<Self>, mut call: Incoming) {
        let payload = std::mem::take(&mut call.payload);
        let answered = match call.from {
            Caller::Member(node) => self.answer_member(node, &payload).await.map(|reply| rpc::encode(&reply)),
            Caller::Stranger(address) => self.answer_stranger(address, &payload).await,
        };
        match &answered {
            Ok(_) => self.metrics.calls_answered.inc(),
            Err(error) => {
                self.metrics.calls_refused.inc();
                tracing::info!(error, from = ?call.from, "a call was refused");
            }
        }
        call.answer(answered).await;
    }

    pub(crate) async fn answer_member(
        self: &Arc<Self>,
        node: NodeId,
        payload: &[u8],
    ) -> Result<Reply, String> {
        if self.revoked(&node) {
            return Err("this node is revoked".to_owned());
        }
        let ask: Ask = rpc::decode(payload).map_err(|error| error.to_string())?;
        if !ask.within_limits() {
            return Err("more than this node answers at once".to_owned());
        }
        match ask {
            Ask::Sync(theirs) => {
                let mine = self.knowledge();
                if theirs.revoked_serial > mine.revoked_serial || theirs.gossip_epoch > mine.gossip_epoch {
                    self.sync_wanted.notify_one();
                }
                Ok(self.answer_sync(&theirs))
            }
            Ask::Names { .. } => self.answer_names(&ask).ok_or_else(|| "not understood".to_owned()),
            Ask::Push(news) => {
                let mut refused = Vec::new();
                for (number, news) in (0..).zip(news) {
                    if let Err(error) = self.hear(node, news).await {
                        tracing::debug!(error, from = %node.short(), "news that is not believed");
                        refused.push((number, error));
                    }
                }
                Ok(if refused.is_empty() { Reply::Done } else { Reply::Refused(refused) })
            }
            Ask::ChangeRef(change) => {
                let changed = match self.write_ref(&change).await {
                    Ok(Ok(held)) => Ok(held.current.signed),
                    Ok(Err(writer)) => Err(crate::refs::RefError::Writer {
                        name: change.name.to_string(),
                        writer: writer.to_hex(),
                        why: format!("node {} does not write it", self.node.short()),
                    }),
                    Err(crate::names::ChangeError::Ref(error)) => Err(error),
                    Err(error) => return Err(error.to_string()),
                };
                Ok(Reply::Changed(changed))
            }
            Ask::Have { ids, pulling } => {
                if pulling {
                    self.meet_puller(node, &ids).await;
                }
                self.holdings(&ids).await.map(Reply::Have).map_err(|error| error.to_string())
            }
            Ask::Trees(ids) => Ok(Reply::Trees(self.tree_holdings(&ids).await)),
            Ask::Resolve(prefix) => {
                self.known_ids(&prefix).await.map(Reply::Ids).map_err(|error| error.to_string())
            }
            Ask::Renew { request } => {
                let (authority, _) =
                    self.authority.as_ref().ok_or("the cluster's authority is not on this node")?;
                let issued = authority.issue(&request, CERTIFICATE_LIFETIME);
                let (certified, certificate) = issued.map_err(|error| error.to_string())?;
                if certified != node {
                    return Err("a node renews no certificate but its own".to_owned());
                }
                tracing::info!(node = %node.short(), "certificate renewed");
                Ok(Reply::Certificate(certificate.to_vec()))
            }
        }
    }
}
