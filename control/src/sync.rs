//! Anti-entropy: two nodes compare what they know, and each gets what it lacks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use velo_object::NodeId;

use crate::node::{Control, PeerError, lock};
use crate::now_ms;
use crate::rpc::{Ask, Knowledge, MAX_RECORDS, News, PAGE_NAMES, Reply};
use crate::signed::Signed;

/// How long another node may take to answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often deleted names are looked through.
const TIDY_EVERY: Duration = Duration::from_secs(3600);
/// Nodes that are told news at once.
const AT_ONCE: usize = 16;

impl Control {
    pub(crate) fn knowledge(&self) -> Knowledge {
        let members = self.roster().versions();
        let gossip_epoch = lock(&self.keyring).epoch();
        let revoked_serial = self.revocations().serial();
        Knowledge { members, revoked_serial, gossip_epoch, refs: self.refs().digest(now_ms()) }
    }

    /// What somebody with this knowledge lacks. Lists of revocations come first.
    pub(crate) fn answer_sync(&self, theirs: &Knowledge) -> Reply {
        let mut news = Vec::new();
        let revoked_serial = {
            let revocations = self.revocations();
            let newer = revocations.serial() > theirs.revoked_serial;
            news.extend(revocations.signed().filter(|_| newer).cloned().map(News::Revoked));
            revocations.serial()
        };
        let gossip_epoch = {
            let keyring = lock(&self.keyring);
            let newer = keyring.epoch() > theirs.gossip_epoch;
            news.extend(keyring.signed().filter(|_| newer).cloned().map(News::GossipKey));
            keyring.epoch()
        };
        let (members, want_members) = self.roster().compare(&theirs.members);
        news.extend(members.into_iter().take(MAX_RECORDS).map(News::Member));
        let refs = self.refs().digest(now_ms());
        Reply::Sync { news, want_members, revoked_serial, gossip_epoch, refs }
    }

    /// One page of names of another node.
    pub(crate) fn answer_names(&self, ask: &Ask) -> Option<Reply> {
        let Ask::Names { after, page, last } = ask else { return None };
        let (mut records, want) = self.refs().compare(after.as_ref(), page, *last, now_ms());
        records.truncate(MAX_RECORDS);
        Some(Reply::Names { records, want })
    }

    /// Compares with one node, both ways.
    ///
    /// # Errors
    /// [`PeerError`].
    pub(crate) async fn sync_with(&self, node: NodeId) -> Result<(), PeerError> {
        let mine = self.knowledge();
        let reply = self.ask(node, &Ask::Sync(Box::new(mine.clone())), CALL_TIMEOUT).await?;
        let Reply::Sync { news, want_members, revoked_serial, gossip_epoch, refs } = reply else {
            return Err(PeerError::Unexpected(node));
        };
        for news in news.into_iter().take(MAX_RECORDS + 2) {
            if let Err(error) = self.hear(node, news).await {
                tracing::debug!(error, from = %node.short(), "news that is not believed");
            }
        }
        let mut push = Vec::new();
        if mine.revoked_serial > revoked_serial {
            push.extend(self.revocations().signed().cloned().map(News::Revoked));
        }
        if mine.gossip_epoch > gossip_epoch {
            push.extend(lock(&self.keyring).signed().cloned().map(News::GossipKey));
        }
        if want_members {
            let records: Vec<Signed> = self.roster().iter().map(|e| e.member.signed.clone()).collect();
            push.extend(records.into_iter().take(MAX_RECORDS - 2).map(News::Member));
        }
        if !push.is_empty() {
            self.ask(node, &Ask::Push(push), CALL_TIMEOUT).await?;
        }
        if refs != self.refs().digest(now_ms()) {
            self.sync_names(node).await?;
        }
        self.metrics.syncs.inc();
        Ok(())
    }

    async fn sync_names(&self, node: NodeId) -> Result<(), PeerError> {
        let mut after = None;
        loop {
            let page = self.refs().page(after.as_ref(), PAGE_NAMES, now_ms());
            let last = page.len() < PAGE_NAMES;
            let next = page.last().map(|digest| digest.name.clone());
            let reply = self.ask(node, &Ask::Names { after, page, last }, CALL_TIMEOUT).await?;
            let Reply::Names { records, want } = reply else { return Err(PeerError::Unexpected(node)) };
            for record in records.into_iter().take(MAX_RECORDS) {
                if let Err(error) = self.hear(node, News::Ref(record)).await {
                    tracing::debug!(error, from = %node.short(), "a name that is not believed");
                }
            }
            let wanted: Vec<News> = {
                let refs = self.refs();
                let held = want.iter().take(MAX_RECORDS).filter_map(|name| refs.get(name));
                held.map(|held| News::Ref(held.current.signed.clone())).collect()
            };
            if !wanted.is_empty() {
                self.ask(node, &Ask::Push(wanted), CALL_TIMEOUT).await?;
            }
            if last {
                return Ok(());
            }
            after = next;
        }
    }

    /// Tells all reachable members; gives those that took all of it, and those that did not or did not answer.
    pub(crate) async fn tell_all(&self, news: Vec<News>) -> (Vec<NodeId>, Vec<NodeId>) {
        let ask = Ask::Push(news);
        let told = futures_util::stream::iter(self.reachable())
            .map(|node| {
                let ask = &ask;
                async move {
                    let reply = self.ask(node, ask, CALL_TIMEOUT).await;
                    if let Ok(Reply::Refused(news)) = &reply {
                        tracing::warn!(node = %node.short(), ?news, "a member refuses news of this node");
                    }
                    (node, matches!(reply, Ok(Reply::Done)))
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let (told, silent): (Vec<_>, Vec<_>) = told.into_iter().partition(|(_, told)| *told);
        let nodes = |list: Vec<(NodeId, bool)>| list.into_iter().map(|(node, _)| node).collect();
        (nodes(told), nodes(silent))
    }

    /// Compares with one member after another for as long as the node runs: soon while it has no gossip key or somebody is new,
    /// every few seconds otherwise.
    pub(crate) async fn sync_loop(self: Arc<Self>) {
        let mut turn: usize = 0;
        let mut tidied: Option<Instant> = None;
        loop {
            if tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) || self.refs().is_crowded() {
                self.forget_names().await;
                tidied = Some(Instant::now());
            }
            let keyless = lock(&self.keyring).epoch().is_none();
            let nodes = self.reachable();
            let mut pause = Duration::from_millis(if keyless { 300 } else { 4000 });
            if !nodes.is_empty() {
                let node = nodes[turn % nodes.len()];
                turn += 1;
                if let Err(error) = self.sync_with(node).await {
                    tracing::debug!(%error, "anti-entropy");
                    pause = pause.min(Duration::from_secs(1));
                }
            }
            // Spread out, so that nodes that start together do not ask in step.
            let mut random = [0; 2];
            let _ = getrandom::fill(&mut random);
            let jitter = Duration::from_millis(u64::from(u16::from_le_bytes(random) % 500));
            tokio::select! {
                () = tokio::time::sleep(pause + jitter) => {}
                () = self.sync_wanted.notified() => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
