//! What gossip decides, without a socket and without a clock: foca (SWIM) over sealed datagrams, its timers, and the members' records.
//!
//! Times are arguments. What is to be sent and what is heard is asked for after every call.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foca::{
    AccumulatingRuntime, BroadcastHandler, Foca, Invalidates, OwnedNotification, PeriodicParams, Timer,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use velo_object::NodeId;

use super::admission::{Admission, Admitting, MAX_UNPROVEN};
use super::{CheckedMember, Keyring, Liveness, MAX_MEMBERS, OpenError, Sealer};
use crate::signed::Signed;

/// The largest datagram before it is sealed.
pub const MAX_PACKET_BYTES: usize = 1300;
/// Records and serials that may wait to be taken; what comes then is dropped, and anti-entropy brings it again.
const MAX_WAITING: usize = 1024;
/// How often it is looked which members foca has forgotten.
const RECOUNT: Duration = Duration::from_secs(60);
/// How often it is said that a key is not known.
const WARN_AGAIN: Duration = Duration::from_secs(2);

/// What gossip needs to know.
#[derive(Debug)]
pub struct GossipOptions {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: [u8; 32],
    /// Higher at every start: milliseconds since the epoch.
    pub generation: u64,
    /// Where others reach it.
    pub advertised: SocketAddr,
    /// The keys, shared with who hands them out.
    pub keyring: Arc<Mutex<Keyring>>,
}

/// What gossip hears.
#[derive(Debug)]
pub enum GossipEvent {
    /// A member's record that was not known.
    Record(Box<CheckedMember>),
    /// A member answers, or does not any more.
    Liveness(NodeId, Liveness),
    /// The authority has signed a list of revocations with this number.
    RevokedSerial(u64),
    /// Somebody uses a key that this node has not got.
    UnknownEpoch,
}

/// How much a [`Machine`] remembers: all of it is bounded, whatever others send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipCounts {
    /// Members, those that are down among them.
    pub members: usize,
    /// Of these, members whose record has not come yet.
    pub unproven: usize,
    /// Updates of members that are still to be spread.
    pub updates: usize,
    /// Records that are still to be spread.
    pub records: usize,
    /// Timers.
    pub timers: usize,
    /// Names of members that were not taken in since the start, for want of room.
    pub refused: u64,
}

/// What is spread beside foca's own updates.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Item {
    Record(Signed),
    RevokedSerial(u64),
}

/// How foca names a member: by its node; the rest is where and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub node: NodeId,
    pub generation: u64,
    pub address: SocketAddr,
}

impl foca::Identity for Peer {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { generation: self.generation + 1, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

#[derive(Debug, Clone, Copy)]
enum Key {
    Record(NodeId, u64),
    RevokedSerial(u64),
}

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Record(node, version), Self::Record(other, older)) => node == other && version >= older,
            (Self::RevokedSerial(serial), Self::RevokedSerial(older)) => serial >= older,
            _ => false,
        }
    }
}

/// An item that is not handed on.
#[derive(Debug, thiserror::Error)]
#[error("an item of gossip is not believed: {0}")]
struct Refused(String);

/// Records and serials that were heard and nobody has taken yet.
type Heard = Arc<Mutex<VecDeque<GossipEvent>>>;

struct Items {
    cluster: [u8; 32],
    versions: HashMap<NodeId, u64>,
    serial: u64,
    heard: Heard,
    admission: Arc<Mutex<Admission>>,
}

impl BroadcastHandler<Peer> for Items {
    type Key = Key;
    type Error = Refused;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Peer>) -> Result<Option<Key>, Refused> {
        let item: Item = postcard::from_bytes(data).map_err(|error| Refused(error.to_string()))?;
        let (key, event) = match item {
            Item::RevokedSerial(serial) if serial <= self.serial => return Ok(None),
            Item::RevokedSerial(serial) => {
                self.serial = serial;
                (Key::RevokedSerial(serial), GossipEvent::RevokedSerial(serial))
            }
            Item::Record(signed) => {
                let member = CheckedMember::check(signed, &self.cluster).map_err(Refused)?;
                let (node, version) = (member.node(), member.record.version);
                if self.versions.get(&node).is_some_and(|&known| known >= version) {
                    return Ok(None);
                }
                if self.versions.len() >= MAX_MEMBERS && !self.versions.contains_key(&node) {
                    return Ok(None);
                }
                self.versions.insert(node, version);
                lock(&self.admission).prove(node);
                (Key::Record(node, version), GossipEvent::Record(Box::new(member)))
            }
        };
        // What this node spreads itself is no news to it.
        if sender.is_some() {
            let mut heard = lock(&self.heard);
            if heard.len() < MAX_WAITING {
                heard.push_back(event);
            }
        }
        Ok(Some(key))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn settings() -> foca::Config {
    let few = |number| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    let every = |ms, members| {
        Some(PeriodicParams { frequency: Duration::from_millis(ms), num_members: few(members) })
    };
    foca::Config {
        probe_period: Duration::from_millis(1000),
        probe_rtt: Duration::from_millis(400),
        num_indirect_probes: few(3),
        max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: Duration::from_secs(4),
        remove_down_after: Some(Duration::from_secs(3600)),
        max_packet_size: few(MAX_PACKET_BYTES),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        periodic_announce_to_down_members: every(10_000, 2),
        periodic_gossip: every(200, 3),
    }
}

/// The gossip of one node.
pub struct Machine {
    foca: Foca<Peer, Admitting, StdRng, Items>,
    runtime: AccumulatingRuntime<Peer>,
    sealer: Sealer,
    keyring: Arc<Mutex<Keyring>>,
    admission: Arc<Mutex<Admission>>,
    heard: Heard,
    events: VecDeque<GossipEvent>,
    blocked: HashSet<NodeId>,
    timers: BTreeMap<(Instant, u64), Timer<Peer>>,
    next_timer: u64,
    warned: Option<Instant>,
    counted: Option<Instant>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Machine {
    /// A node that knows nobody yet. `seed` decides whom it asks first.
    pub fn new(options: GossipOptions, seed: [u8; 32]) -> Self {
        let me = Peer { node: options.node, generation: options.generation, address: options.advertised };
        let admission = Arc::new(Mutex::new(Admission::new(me.clone())));
        let heard = Heard::default();
        let items = Items {
            cluster: options.cluster,
            versions: HashMap::new(),
            serial: 0,
            heard: Arc::clone(&heard),
            admission: Arc::clone(&admission),
        };
        let codec = Admitting::new(Arc::clone(&admission));
        Self {
            foca: Foca::with_custom_broadcast(me, settings(), StdRng::from_seed(seed), codec, items),
            runtime: AccumulatingRuntime::new(),
            sealer: Sealer::new(options.node, options.generation),
            keyring: options.keyring,
            admission,
            heard,
            events: VecDeque::new(),
            blocked: HashSet::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            warned: None,
            counted: None,
        }
    }

    /// A datagram has come. `wall_ms` says for how long the key before the current one is believed: milliseconds since the Unix epoch.
    pub fn handle_datagram(&mut self, now: Instant, wall_ms: u64, datagram: &[u8]) {
        let opened = self.sealer.open(&lock(&self.keyring), datagram, wall_ms);
        match opened {
            Ok((sender, _)) if self.blocked.contains(&sender) => {}
            Ok((sender, plain)) => {
                lock(&self.admission).begin(sender);
                self.act(now, "a datagram", |foca, runtime| foca.handle_data(&plain, runtime));
            }
            Err(OpenError::Epoch(epoch)) => {
                if self.warned.is_none_or(|at| now.saturating_duration_since(at) > WARN_AGAIN) {
                    self.warned = Some(now);
                    tracing::debug!(epoch, "gossip with a key that is not known here");
                    self.events.push_back(GossipEvent::UnknownEpoch);
                }
            }
            Err(_) => {}
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let timer = entry.remove();
            self.act(now, "a timer", |foca, runtime| foca.handle_timer(timer, runtime));
        }
        if self.counted.is_none_or(|at| now.saturating_duration_since(at) >= RECOUNT) {
            self.counted = Some(now);
            lock(&self.admission).recount(self.foca.iter_membership_state().map(|member| member.id().node));
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called; `None` where nothing is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next datagram to be sent, and where to.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        while let Some((to, data)) = self.runtime.to_send() {
            // Without a key yet there is nothing to say.
            if let Some(sealed) = self.sealer.seal(&lock(&self.keyring), &data) {
                return Some((to.address, sealed));
            }
        }
        None
    }

    /// The next thing that was heard.
    pub fn poll_event(&mut self) -> Option<GossipEvent> {
        self.events.pop_front().or_else(|| lock(&self.heard).pop_front())
    }

    /// Says hello to members whose gossip is (or was) there.
    pub fn announce(&mut self, now: Instant, members: Vec<(NodeId, SocketAddr)>) {
        for (node, address) in members {
            let peer = Peer { node, generation: 0, address };
            self.act(now, "announcing", |foca, runtime| foca.announce(peer, runtime));
        }
    }

    /// Spreads a record.
    pub fn spread(&mut self, now: Instant, record: &Signed) {
        self.broadcast(now, &Item::Record(record.clone()));
    }

    /// Spreads that there is a list of revocations with this number.
    pub fn spread_revoked(&mut self, now: Instant, serial: u64) {
        self.broadcast(now, &Item::RevokedSerial(serial));
    }

    fn broadcast(&mut self, now: Instant, item: &Item) {
        let data = postcard::to_stdvec(item).unwrap_or_default();
        self.act(now, "spreading", |foca, _| foca.add_broadcast(&data).map(drop));
    }

    /// The record of this node has come by another way than gossip.
    pub fn prove(&mut self, node: NodeId) {
        lock(&self.admission).prove(node);
    }

    /// Hears these nodes no more.
    pub fn block(&mut self, nodes: Vec<NodeId>) {
        self.blocked.extend(nodes);
    }

    /// Tells the others that this node goes.
    pub fn leave(&mut self, now: Instant) {
        self.act(now, "leaving", |foca, runtime| foca.leave_cluster(runtime));
    }

    /// How much it remembers.
    pub fn counts(&self) -> GossipCounts {
        let admission = lock(&self.admission);
        GossipCounts {
            members: self.foca.iter_membership_state().len(),
            unproven: admission.unproven(),
            updates: self.foca.updates_backlog(),
            records: self.foca.custom_broadcast_backlog(),
            timers: self.timers.len(),
            refused: admission.refused(),
        }
    }

    fn act(
        &mut self,
        now: Instant,
        what: &str,
        act: impl FnOnce(
            &mut Foca<Peer, Admitting, StdRng, Items>,
            &mut AccumulatingRuntime<Peer>,
        ) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = act(&mut self.foca, &mut self.runtime) {
            tracing::debug!(%error, "gossip: {what}");
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.next_timer += 1;
            self.timers.insert((now + after, self.next_timer), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(peer) => {
                    self.events.push_back(GossipEvent::Liveness(peer.node, Liveness::Alive));
                }
                OwnedNotification::MemberDown(peer) => {
                    self.events.push_back(GossipEvent::Liveness(peer.node, Liveness::Down));
                }
                OwnedNotification::Rejoin(me) => lock(&self.admission).renamed(me),
                _ => {}
            }
        }
    }
}

const _: () = assert!(2 * MAX_UNPROVEN < MAX_MEMBERS);
