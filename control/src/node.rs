//! One node's control plane: what it knows of the cluster, and how news changes that.
//!
//! **Architecture invariant:** what is acknowledged to a caller (a name, a list of revocations, a gossip key) is in the book or on the disk before.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::Member;

use crate::address::{self, Reach};
use crate::authority::{self, Authority, AuthorityError, Revocations, Tokens};
use crate::identity::Identity;
use crate::membership::{CheckedMember, Gossip, GossipKey, Keyring, MAX_ADDRESSES, MemberRecord, Roster};
use crate::metrics::Metrics;
use crate::now_ms;
use crate::origin::Origin;
use crate::pull::Pulls;
use crate::refs::{Held, Refs};
use crate::rpc::{self, Ask, News, Reply};
use crate::signed::Signed;
use crate::velod::{Velod, VelodError};

/// The book's table of members: node → signed record.
const MEMBERS: &str = "members";
/// The book's table of names: name → record.
pub(crate) const REFS: &str = "refs";
/// The book's table of what belongs to the cluster as a whole.
const CLUSTER: &str = "cluster";
const GOSSIP_KEY: &[u8] = b"gossip-key";

/// What a control plane is told at its start.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where everything of this node lies.
    pub data_dir: PathBuf,
    /// What people call it.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Where its velod is reached, as far as is known at the start.
    pub addresses: Vec<SocketAddr>,
    /// How that follows from `run/velod.json`, which changes with velod; none where it does not.
    pub reach: Option<Reach>,
    /// Where its gossip is reached.
    pub gossip: SocketAddr,
    /// Fabrics that its velod is to have, best first.
    pub fabrics: Vec<String>,
    /// Members to begin with, from the join.
    pub seeds: Vec<Member>,
}

/// Why another node's control plane gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// velod could not reach it, or is down itself.
    #[error("node {0} cannot be asked: {1}")]
    Unreachable(NodeId, VelodError),
    /// It answered something that makes no sense.
    #[error("node {0} answered something else than was asked")]
    Unexpected(NodeId),
}

/// A control plane.
pub struct Control {
    pub(crate) node: NodeId,
    pub(crate) cluster: [u8; 32],
    pub(crate) setup: Setup,
    pub(crate) files: Paths,
    pub(crate) identity: ArcSwap<Identity>,
    pub(crate) authority: Option<(Authority, Tokens)>,
    pub(crate) velod: Velod,
    pub(crate) metrics: Metrics,
    pub(crate) pulls: Pulls,
    pub(crate) origin: Option<Origin>,
    pub(crate) started: Instant,
    pub(crate) gossip: OnceLock<Gossip>,
    pub(crate) keyring: Arc<Mutex<Keyring>>,
    /// Changes of names, and takings-over of lists and keys, one at a time.
    pub(crate) ref_writes: tokio::sync::Mutex<()>,
    pub(crate) revoking: tokio::sync::Mutex<()>,
    /// velod is to be told who is in the cluster.
    pub(crate) members_changed: Notify,
    /// Somebody knows something that this node does not.
    pub(crate) sync_wanted: Notify,
    roster: Mutex<Roster>,
    revocations: Mutex<Revocations>,
    refs: Mutex<Refs>,
    own: Mutex<Option<CheckedMember>>,
    addresses: ArcSwap<Vec<SocketAddr>>,
}

/// The right to change the list of revocations and the gossip key.
pub(crate) type Revoking<'a> = tokio::sync::MutexGuard<'a, ()>;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its identity cannot be read.
    #[error(transparent)]
    Identity(#[from] AuthorityError),
    /// velod does not answer.
    #[error(transparent)]
    Velod(#[from] VelodError),
    /// The system has no randomness.
    #[error("the system's randomness: {0}")]
    Randomness(getrandom::Error),
    /// It is revoked.
    #[error("this node ({0}) is revoked: remove its data directory and join again with a new token")]
    Revoked(NodeId),
}

impl Control {
    /// Reads what the disk and the book know, and tells velod.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(setup: Setup, velod: Velod, origin: Option<Origin>) -> Result<Arc<Self>, StartError> {
        let data_dir: &Path = &setup.data_dir;
        let files = Paths::new(data_dir.to_owned());
        let identity = Identity::load(data_dir)?;
        let (node, cluster, authority_key) = (identity.node, identity.cluster, identity.authority);
        let revocations = Revocations::load(&files, cluster, authority_key)?;
        if revocations.contains(&node) {
            return Err(StartError::Revoked(node));
        }
        let authority = match Authority::open(data_dir) {
            Ok(authority) => Some((authority, Tokens::open(&files)?)),
            Err(AuthorityError::Absent(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let mut refs = Refs::new(cluster);
        for (key, value) in velod.book_scan(REFS).await? {
            match Held::decode(&value, &cluster) {
                Ok(held) => refs.restore(held),
                Err(error) => {
                    tracing::warn!(name = %String::from_utf8_lossy(&key), error, "a name of the book is left out");
                }
            }
        }
        let mut roster = Roster::default();
        for (_, value) in velod.book_scan(MEMBERS).await? {
            let checked = postcard::from_bytes(&value)
                .map_err(|error| error.to_string())
                .and_then(|signed| CheckedMember::check(signed, &cluster));
            match checked {
                Ok(member) if !revocations.contains(&member.node()) => _ = roster.merge(&member),
                Ok(_) => {}
                Err(error) => tracing::warn!(error, "a member of the book is left out"),
            }
        }
        let mut keyring = Keyring::default();
        if let Some(value) = velod.book_get(CLUSTER, GOSSIP_KEY).await?
            && let Ok(signed) = postcard::from_bytes(&value)
        {
            keyring.merge(&signed, &cluster, authority_key, revocations.serial(), now_ms());
        }
        if let Some((authority, _)) = &authority
            && keyring.epoch().is_none()
        {
            let epoch = authority::first_epoch(&files, revocations.serial(), now_ms());
            let key = authority.signer().sign(
                &GossipKey::generate(cluster, epoch, revocations.serial()).map_err(StartError::Randomness)?,
            );
            velod.book_put(CLUSTER, GOSSIP_KEY, Some(postcard::to_stdvec(&key).unwrap_or_default())).await?;
            keyring.merge(&key, &cluster, authority_key, revocations.serial(), now_ms());
        }
        Ok(Arc::new(Self {
            node,
            cluster,
            files,
            identity: ArcSwap::from_pointee(identity),
            authority,
            velod,
            metrics: Metrics::new(),
            pulls: Pulls::default(),
            origin,
            started: Instant::now(),
            gossip: OnceLock::new(),
            keyring: Arc::new(Mutex::new(keyring)),
            ref_writes: tokio::sync::Mutex::new(()),
            revoking: tokio::sync::Mutex::new(()),
            members_changed: Notify::new(),
            sync_wanted: Notify::new(),
            roster: Mutex::new(roster),
            revocations: Mutex::new(revocations),
            refs: Mutex::new(refs),
            own: Mutex::new(None),
            addresses: ArcSwap::from_pointee(setup.addresses.clone()),
            setup,
        }))
    }

    pub(crate) fn roster(&self) -> MutexGuard<'_, Roster> {
        lock(&self.roster)
    }

    pub(crate) fn refs(&self) -> MutexGuard<'_, Refs> {
        lock(&self.refs)
    }

    pub(crate) fn revocations(&self) -> MutexGuard<'_, Revocations> {
        lock(&self.revocations)
    }

    pub(crate) fn revoked(&self, node: &NodeId) -> bool {
        self.revocations().contains(node)
    }

    /// Whether a node is a member or was one, as far as this node knows.
    pub(crate) fn was_member(&self, node: &NodeId) -> bool {
        *node == self.node
            || self.roster().get(node).is_some()
            || self.revoked(node)
            || self.setup.seeds.iter().any(|seed| seed.node == *node)
    }

    /// Members that may answer a call, seeds among them that have not shown a record yet.
    pub(crate) fn reachable(&self) -> Vec<NodeId> {
        let mut nodes = self.roster().reachable(self.node);
        for seed in &self.setup.seeds {
            if seed.node != self.node && self.roster().get(&seed.node).is_none() && !self.revoked(&seed.node)
            {
                nodes.push(seed.node);
            }
        }
        nodes
    }

    /// A node's name, for people; empty if it is not known.
    pub(crate) fn name_of(&self, node: &NodeId) -> String {
        self.roster().get(node).map(|entry| entry.member.record.name.clone()).unwrap_or_default()
    }

    /// What velod is told: all members, and the seeds that have not shown a record yet.
    pub(crate) fn members(&self) -> Vec<Member> {
        let roster = self.roster();
        let mut members = roster.members();
        let unseen = self.setup.seeds.iter().filter(|seed| roster.get(&seed.node).is_none());
        members.extend(unseen.cloned());
        drop(roster);
        members.retain(|member| !self.revoked(&member.node));
        members
    }

    /// Signs this node's record anew if something in it has changed (or `again`), keeps it and spreads it.
    pub(crate) async fn publish(&self, left: bool, again: bool) {
        let free_bytes = self.free_bytes().await;
        let member = {
            let mut own = lock(&self.own);
            let before = own.as_ref().map(|own| &own.record);
            let known = self.roster().get(&self.node).map_or(0, |entry| entry.member.record.version);
            let record = MemberRecord {
                cluster: self.cluster,
                version: now_ms().max(known + 1),
                name: self.setup.name.chars().filter(|c| !c.is_control()).take(32).collect(),
                addresses: self.addresses().into_iter().take(MAX_ADDRESSES).collect(),
                gossip: self.setup.gossip,
                zone: self.setup.zone.chars().filter(|c| !c.is_control()).take(32).collect(),
                free_bytes,
                fabrics: self.setup.fabrics.clone(),
                software: env!("CARGO_PKG_VERSION").to_owned(),
                authority: self.authority.is_some(),
                left,
            };
            // Free space counts as changed when it moves by a sixteenth.
            let same = before.is_some_and(|before| {
                before.left == left && before.free_bytes.abs_diff(free_bytes) <= before.free_bytes / 16
            });
            if same && !again {
                return;
            }
            let signed = self.identity.load().signer.sign(&record);
            let member = CheckedMember { record, signed };
            *own = Some(member.clone());
            member
        };
        self.roster().set_liveness(self.node, crate::membership::Liveness::Alive);
        self.roster().merge(&member);
        self.roster().set_liveness(self.node, crate::membership::Liveness::Alive);
        self.keep_member(&member).await;
        if let Some(gossip) = self.gossip.get() {
            gossip.spread(&member.signed).await;
        }
        self.members_changed.notify_one();
    }

    /// What the store can still take: what its capacity and the disk leave.
    async fn free_bytes(&self) -> u64 {
        let status = self.velod.status().await.unwrap_or_default();
        let gauge = |name: &str| status.gauges.iter().find(|(own, _)| own == name).map(|(_, value)| *value);
        let disk = gauge("store_disk_free_bytes").unwrap_or(0);
        let used = gauge("store_used_bytes").unwrap_or(0);
        match gauge("store_capacity_bytes") {
            Some(capacity) if capacity > 0 => disk.min(capacity.saturating_sub(used)),
            _ => disk,
        }
    }

    /// Where velod is reached.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.load().to_vec()
    }

    /// velod may have begun anew, on another port.
    pub(crate) async fn look_for_velod(&self) {
        let Some(reach) = &self.setup.reach else { return };
        let Some(listens) = address::listens(&self.files.velod_ready(), self.node) else { return };
        let addresses = reach.advertised(&listens);
        if addresses != self.addresses() {
            self.addresses.store(Arc::new(addresses));
            self.publish(false, true).await;
        }
    }

    /// This node's record.
    pub(crate) fn own_record(&self) -> Option<Signed> {
        lock(&self.own).as_ref().map(|own| own.signed.clone())
    }

    async fn keep_member(&self, member: &CheckedMember) {
        let value = postcard::to_stdvec(&member.signed).unwrap_or_default();
        // The book is only where a restart begins: the cluster itself knows better.
        if let Err(error) = self.velod.book_put(MEMBERS, member.node().as_bytes(), Some(value)).await {
            tracing::debug!(%error, "a member's record was not kept");
        }
    }

    /// Takes news over that a member sent. Whether it was any.
    ///
    /// # Errors
    /// Why it is not believed, or could not be kept.
    pub(crate) async fn hear(&self, from: NodeId, news: News) -> Result<bool, String> {
        match news {
            News::Member(signed) => {
                let member = CheckedMember::check(signed, &self.cluster)?;
                Ok(self.hear_member(&member).await)
            }
            News::Ref(signed) => self.hear_ref(from, signed).await,
            News::Revoked(signed) => self.hear_revoked(&signed).await,
            News::GossipKey(signed) => self.hear_key(&signed).await,
        }
    }

    pub(crate) async fn hear_member(&self, member: &CheckedMember) -> bool {
        if self.revoked(&member.node()) {
            return false;
        }
        if member.node() == self.node {
            // Somebody remembers this node with a later version than it does: it must rise above that.
            let behind = lock(&self.own).as_ref().is_some_and(|own| {
                own.record.version < member.record.version
                    || own.record.version == member.record.version && own.record != member.record
            });
            if behind {
                self.roster().merge(member);
                self.publish(false, true).await;
            }
            return behind;
        }
        let new = self.roster().merge(member);
        if new {
            if let Some(gossip) = self.gossip.get() {
                gossip.prove(vec![member.node()]);
            }
            self.keep_member(member).await;
            self.members_changed.notify_one();
        }
        new
    }

    pub(crate) async fn hear_key(&self, signed: &Signed) -> Result<bool, String> {
        let one = self.revoking.lock().await;
        self.take_key(&one, signed).await
    }

    /// [`Control::hear_key`] for whoever holds `revoking` already.
    pub(crate) async fn take_key(&self, _one: &Revoking<'_>, signed: &Signed) -> Result<bool, String> {
        let authority = self.identity.load().authority;
        let heard = self.revocations().serial();
        let key = Keyring::check(signed, &self.cluster, authority, heard)?;
        if lock(&self.keyring).epoch() >= Some(key.epoch) {
            return Ok(false);
        }
        // The book before the keyring: what could not be kept must be news again when it comes again.
        let value = postcard::to_stdvec(signed).map_err(|error| error.to_string())?;
        let kept = self.velod.book_put(CLUSTER, GOSSIP_KEY, Some(value)).await;
        kept.map_err(|error| error.to_string())?;
        let new = lock(&self.keyring).merge(signed, &self.cluster, authority, heard, now_ms());
        tracing::info!(epoch = key.epoch, "gossip has a new key");
        Ok(new)
    }

    pub(crate) async fn hear_revoked(&self, signed: &Signed) -> Result<bool, String> {
        let one = self.revoking.lock().await;
        self.take_revoked(&one, signed).await
    }

    /// [`Control::hear_revoked`] for whoever holds `revoking` already.
    pub(crate) async fn take_revoked(&self, _one: &Revoking<'_>, signed: &Signed) -> Result<bool, String> {
        let mut next = self.revocations().clone();
        if !next.merge(signed) {
            return if next.covers(signed) {
                Ok(false)
            } else {
                Err("a list of revocations that does not follow from the one known here".to_owned())
            };
        }
        next.store(&self.files).map_err(|error| error.to_string())?;
        let (serial, nodes) = (next.serial(), next.nodes());
        *self.revocations() = next;
        tracing::warn!(serial, revoked = nodes.len(), "a new list of revocations");
        for node in &nodes {
            self.roster().remove(node);
            let _ = self.velod.book_put(MEMBERS, node.as_bytes(), None).await;
        }
        if let Some(gossip) = self.gossip.get() {
            gossip.block(nodes.clone()).await;
            gossip.spread_revoked(serial).await;
        }
        // A velod that is down is told when it is back.
        if let Err(error) = self.velod.revoked(nodes).await {
            tracing::warn!(%error, "velod does not know of the revocation yet");
        }
        self.members_changed.notify_one();
        Ok(true)
    }

    /// Asks another node's control plane.
    ///
    /// # Errors
    /// [`PeerError`].
    pub(crate) async fn ask(&self, node: NodeId, ask: &Ask, timeout: Duration) -> Result<Reply, PeerError> {
        self.metrics.calls_sent.inc();
        let payload = rpc::encode(ask);
        let reply = self.velod.call(node, payload, timeout).await;
        let reply = reply.map_err(|error| {
            self.metrics.calls_failed.inc();
            PeerError::Unreachable(node, error)
        })?;
        rpc::decode(&reply).map_err(|_| PeerError::Unexpected(node))
    }
}
