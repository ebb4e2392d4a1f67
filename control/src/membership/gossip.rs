//! Gossip over UDP: foca (SWIM) decides, this file carries its sealed datagrams, its timers and the members' records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use foca::{
    AccumulatingRuntime, BroadcastHandler, Foca, Invalidates, OwnedNotification, PeriodicParams,
    PostcardCodec, Timer,
};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use velo_object::NodeId;

use super::{CheckedMember, Keyring, Liveness, MAX_SEALED_OVERHEAD_BYTES, OpenError, Sealer};
use crate::now_ms;
use crate::signed::Signed;

/// The largest datagram before it is sealed.
const PACKET_BYTES: usize = 1300;
/// Commands and events that may wait.
const QUEUE: usize = 1024;

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

enum Command {
    Announce(Vec<(NodeId, SocketAddr)>),
    Broadcast(Item),
    Block(Vec<NodeId>),
    Leave(oneshot::Sender<()>),
}

/// What is spread beside foca's own updates.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Item {
    Record(Signed),
    RevokedSerial(u64),
}

/// How foca names a member: by its node; the rest is where and since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    node: NodeId,
    generation: u64,
    address: SocketAddr,
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

struct Items {
    cluster: [u8; 32],
    versions: HashMap<NodeId, u64>,
    serial: u64,
    events: mpsc::Sender<GossipEvent>,
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
                if self.versions.len() >= super::MAX_MEMBERS && !self.versions.contains_key(&node) {
                    return Ok(None);
                }
                self.versions.insert(node, version);
                (Key::Record(node, version), GossipEvent::Record(Box::new(member)))
            }
        };
        // What this node spreads itself is no news to it. A full queue loses nothing for good: anti-entropy brings it again.
        if sender.is_some() {
            let _ = self.events.try_send(event);
        }
        Ok(Some(key))
    }
}

/// A running gossip.
#[derive(Debug, Clone)]
pub struct Gossip {
    commands: mpsc::Sender<Command>,
}

impl Gossip {
    /// Starts gossip on a socket, as a task. Its events come out of the receiver.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn start(
        socket: UdpSocket,
        options: GossipOptions,
    ) -> Result<(Self, mpsc::Receiver<GossipEvent>), getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (events, outbox) = mpsc::channel(QUEUE);
        let peer = Peer { node: options.node, generation: options.generation, address: options.advertised };
        let items =
            Items { cluster: options.cluster, versions: HashMap::new(), serial: 0, events: events.clone() };
        let rng = StdRng::from_seed(seed);
        let task = Task {
            foca: Foca::with_custom_broadcast(peer, settings(), rng, PostcardCodec, items),
            runtime: AccumulatingRuntime::new(),
            sealer: Sealer::new(options.node, options.generation),
            keyring: options.keyring,
            socket,
            events,
            blocked: HashSet::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            warned: None,
        };
        tokio::spawn(task.run(inbox));
        Ok((Self { commands }, outbox))
    }

    /// Says hello to members whose gossip is (or was) there.
    pub async fn announce(&self, members: Vec<(NodeId, SocketAddr)>) {
        let _ = self.commands.send(Command::Announce(members)).await;
    }

    /// Spreads a record.
    pub async fn spread(&self, record: &Signed) {
        let _ = self.commands.send(Command::Broadcast(Item::Record(record.clone()))).await;
    }

    /// Spreads that there is a list of revocations with this number.
    pub async fn spread_revoked(&self, serial: u64) {
        let _ = self.commands.send(Command::Broadcast(Item::RevokedSerial(serial))).await;
    }

    /// Hears these nodes no more.
    pub async fn block(&self, nodes: Vec<NodeId>) {
        let _ = self.commands.send(Command::Block(nodes)).await;
    }

    /// Tells the others that this node goes, and ends the task.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
    }
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
        max_packet_size: few(PACKET_BYTES),
        notify_down_members: true,
        periodic_announce: every(30_000, 1),
        periodic_announce_to_down_members: every(10_000, 2),
        periodic_gossip: every(200, 3),
    }
}

struct Task {
    foca: Foca<Peer, PostcardCodec, StdRng, Items>,
    runtime: AccumulatingRuntime<Peer>,
    sealer: Sealer,
    keyring: Arc<Mutex<Keyring>>,
    socket: UdpSocket,
    events: mpsc::Sender<GossipEvent>,
    blocked: HashSet<NodeId>,
    timers: BTreeMap<(Instant, u64), Timer<Peer>>,
    next_timer: u64,
    warned: Option<Instant>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; PACKET_BYTES + MAX_SEALED_OVERHEAD_BYTES + 1];
        loop {
            let due = self.timers.first_key_value().map(|((at, _), _)| *at);
            let sleep =
                tokio::time::sleep_until(due.unwrap_or(Instant::now() + Duration::from_secs(60)).into());
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((len, _)) => self.hear(&buffer[..len]),
                    // An ICMP error of an earlier send; the next probe finds out.
                    Err(error) => tracing::debug!(%error, "gossip socket"),
                },
                command = inbox.recv() => match command {
                    Some(Command::Leave(done)) => {
                        self.log("leaving", |foca, runtime| foca.leave_cluster(runtime));
                        self.flush().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sleep => self.fire(),
            }
            self.flush().await;
        }
    }

    fn log(
        &mut self,
        what: &str,
        act: impl FnOnce(
            &mut Foca<Peer, PostcardCodec, StdRng, Items>,
            &mut AccumulatingRuntime<Peer>,
        ) -> Result<(), foca::Error>,
    ) {
        if let Err(error) = act(&mut self.foca, &mut self.runtime) {
            tracing::debug!(%error, "gossip: {what}");
        }
    }

    fn hear(&mut self, datagram: &[u8]) {
        let opened = {
            let keyring = self.keyring.lock().unwrap_or_else(PoisonError::into_inner);
            self.sealer.open(&keyring, datagram, now_ms())
        };
        match opened {
            Ok((sender, _)) if self.blocked.contains(&sender) => {}
            Ok((_, plain)) => self.log("a datagram", |foca, runtime| foca.handle_data(&plain, runtime)),
            Err(OpenError::Epoch(epoch)) => {
                let now = Instant::now();
                if self.warned.is_none_or(|at| now - at > Duration::from_secs(2)) {
                    self.warned = Some(now);
                    tracing::debug!(epoch, "gossip with a key that is not known here");
                    let _ = self.events.try_send(GossipEvent::UnknownEpoch);
                }
            }
            Err(_) => {}
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Announce(members) => {
                for (node, address) in members {
                    let peer = Peer { node, generation: 0, address };
                    self.log("announcing", |foca, runtime| foca.announce(peer, runtime));
                }
            }
            Command::Broadcast(item) => {
                let data = postcard::to_stdvec(&item).unwrap_or_default();
                self.log("spreading", |foca, _| foca.add_broadcast(&data).map(drop));
            }
            Command::Block(nodes) => self.blocked.extend(nodes),
            Command::Leave(_) => {}
        }
    }

    fn fire(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let timer = entry.remove();
            self.log("a timer", |foca, runtime| foca.handle_timer(timer, runtime));
        }
    }

    async fn flush(&mut self) {
        while let Some((to, data)) = self.runtime.to_send() {
            let sealed = {
                let keyring = self.keyring.lock().unwrap_or_else(PoisonError::into_inner);
                self.sealer.seal(&keyring, &data)
            };
            if let Some(sealed) = sealed
                && let Err(error) = self.socket.send_to(&sealed, to.address).await
            {
                tracing::debug!(%error, to = %to.address, "gossip: sending");
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.next_timer += 1;
            self.timers.insert((Instant::now() + after, self.next_timer), timer);
        }
        while let Some(notification) = self.runtime.to_notify() {
            let event = match notification {
                OwnedNotification::MemberUp(peer) => GossipEvent::Liveness(peer.node, Liveness::Alive),
                OwnedNotification::MemberDown(peer) => GossipEvent::Liveness(peer.node, Liveness::Down),
                _ => continue,
            };
            let _ = self.events.send(event).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GossipKey, MemberRecord};
    use super::*;
    use crate::signed::{Signer, tests::signer};

    struct Node {
        signer: Signer,
        gossip: Gossip,
        events: mpsc::Receiver<GossipEvent>,
        address: SocketAddr,
    }

    async fn node(authority: &Signer, epoch: u32) -> Node {
        let signer = signer();
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("its address");
        let mut keyring = Keyring::default();
        let key =
            authority.sign(&GossipKey { cluster: [0; 32], epoch, revoked_serial: 0, key: [epoch as u8; 32] });
        assert!(keyring.merge(&key, &[0; 32], authority.public(), 0, 0));
        let options = GossipOptions {
            node: signer.public(),
            cluster: [0; 32],
            generation: 1,
            advertised: address,
            keyring: Arc::new(Mutex::new(keyring)),
        };
        let (gossip, events) = Gossip::start(socket, options).expect("started");
        Node { signer, gossip, events, address }
    }

    fn record(node: &Node, version: u64) -> Signed {
        node.signer.sign(&MemberRecord {
            cluster: [0; 32],
            version,
            name: "n".to_owned(),
            addresses: vec![node.address],
            gossip: node.address,
            zone: String::new(),
            free_bytes: 0,
            fabrics: vec![],
            software: String::new(),
            authority: false,
            left: false,
        })
    }

    async fn until(node: &mut Node, mut wanted: impl FnMut(&GossipEvent) -> bool) {
        let wait = async {
            while let Some(event) = node.events.recv().await {
                if wanted(&event) {
                    return;
                }
            }
            panic!("gossip ended");
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("heard in time");
    }

    #[tokio::test]
    async fn members_find_each_other_hear_records_and_see_one_leave() {
        let authority = signer();
        let (mut a, mut b, c) =
            (node(&authority, 1).await, node(&authority, 1).await, node(&authority, 1).await);
        b.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        c.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        let c_node = c.signer.public();
        let up =
            |event: &GossipEvent| matches!(event, GossipEvent::Liveness(n, Liveness::Alive) if *n == c_node);
        until(&mut a, up).await;
        until(&mut b, up).await;
        c.gossip.spread(&record(&c, 7)).await;
        let known = |event: &GossipEvent| matches!(event, GossipEvent::Record(m) if m.node() == c_node && m.record.version == 7);
        until(&mut a, known).await;
        until(&mut b, known).await;
        c.gossip.leave().await;
        let down =
            |event: &GossipEvent| matches!(event, GossipEvent::Liveness(n, Liveness::Down) if *n == c_node);
        until(&mut a, down).await;
        until(&mut b, down).await;
    }

    #[tokio::test]
    async fn who_has_not_the_key_gets_no_answer() {
        let authority = signer();
        let mut a = node(&authority, 1).await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let outdated = node(&authority, 0).await;
        outdated.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        until(&mut a, |event| matches!(event, GossipEvent::UnknownEpoch)).await;
        for datagram in
            [&b""[..], b"hello", &[0; 200], b"VG\x01\x00 and not much more than that, is it, or is it?...."]
        {
            stranger.send_to(datagram, a.address).await.expect("sent");
        }
        let mut buffer = [0; 2000];
        let answer = tokio::time::timeout(Duration::from_millis(500), stranger.recv_from(&mut buffer)).await;
        assert!(answer.is_err(), "answered");
    }
}
