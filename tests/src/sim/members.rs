//! Membership in virtual time: the gossip of whole clusters over a network with delay and loss, whose nodes crash, freeze and are cut off.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use velo_control::membership::{
    CheckedMember, GossipCounts, GossipEvent, GossipKey, GossipOptions, Keyring, Liveness, Machine,
    MemberRecord, Roster, Seeker,
};
use velo_control::signed::Signer;
use velo_object::NodeId;

const CLUSTER: [u8; 32] = [7; 32];
const EPOCH: u32 = 1;
/// How often a node looks for members that it has lost, as velo-control does.
const TICK: Duration = Duration::from_secs(1);

/// A cluster to be.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// How many nodes.
    pub nodes: usize,
    /// What is drawn.
    pub seed: u64,
    /// Of a thousand datagrams, how many are lost.
    pub lost_per_mille: u32,
    /// The longest time that a datagram takes; it takes a tenth at least.
    pub delay_max: Duration,
}

impl Setting {
    /// Nodes in one datacentre that loses one datagram in a hundred.
    pub fn datacentre(nodes: usize, seed: u64) -> Self {
        Self { nodes, seed, lost_per_mille: 10, delay_max: Duration::from_millis(2) }
    }
}

/// What a node has said of another, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Virtual time.
    pub at: Duration,
    /// Who says it: its place.
    pub by: usize,
    /// Of whom.
    pub of: NodeId,
    /// What.
    pub liveness: Liveness,
}

struct Member {
    signer: Signer,
    address: SocketAddr,
    machine: Machine,
    roster: Roster,
    seeker: Seeker,
    alive: bool,
    /// As a stopped process: until then it neither hears nor acts, and what is sent to it waits.
    frozen_until: Duration,
    wakes: Option<Duration>,
}

#[derive(Debug)]
enum Event {
    Datagram(usize, Vec<u8>),
    Wake(usize),
    Tick(usize),
}

struct Due {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A cluster in virtual time.
pub struct World {
    setting: Setting,
    base: Instant,
    now: Duration,
    queue: BinaryHeap<Reverse<Due>>,
    number: u64,
    rng: StdRng,
    members: Vec<Member>,
    places: BTreeMap<SocketAddr, usize>,
    /// Which side of a cut each is on; none: there is no cut.
    sides: Option<Vec<bool>>,
    said: Vec<Said>,
    trace: blake3::Hasher,
    datagrams: u64,
}

/// A key that depends on the seed only, so that a run can be repeated.
fn signer(seed: u64, place: u64) -> Signer {
    // PKCS#8 of an ed25519 key (RFC 8410, section 7): this, then the key's 32 bytes.
    let mut der =
        vec![0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    let material = [seed.to_le_bytes(), place.to_le_bytes()].concat();
    der.extend_from_slice(blake3::hash(&material).as_bytes());
    let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", der));
    Signer::from_pem(pem.as_bytes()).expect("a key")
}

/// The authority's key of gossip.
pub fn keyring(seed: u64) -> Keyring {
    let authority = signer(seed, u64::MAX);
    let key = GossipKey { cluster: CLUSTER, epoch: EPOCH, revoked_serial: 0, key: [9; 32] };
    let mut keyring = Keyring::default();
    assert!(keyring.merge(&authority.sign(&key), &CLUSTER, authority.public(), 0, 0));
    keyring
}

fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, (place >> 16) as u8, (place >> 8) as u8, place as u8], 7441))
}

impl World {
    /// Nodes that each know the address of the first, as after joining; they begin within one second.
    pub fn new(setting: Setting) -> Self {
        let mut world = Self {
            setting,
            base: Instant::now(),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            number: 0,
            rng: StdRng::seed_from_u64(setting.seed),
            members: Vec::new(),
            places: BTreeMap::new(),
            sides: None,
            said: Vec::new(),
            trace: blake3::Hasher::new(),
            datagrams: 0,
        };
        for _ in 0..setting.nodes {
            world.add();
        }
        world
    }

    /// One more node. Returns its place.
    pub fn add(&mut self) -> usize {
        let place = self.members.len();
        let signer = signer(self.setting.seed, place as u64);
        let options = GossipOptions {
            node: signer.public(),
            cluster: CLUSTER,
            generation: 1,
            advertised: address(place),
            keyring: Arc::new(Mutex::new(keyring(self.setting.seed))),
        };
        let mut member = Member {
            machine: Machine::new(options, self.rng.random()),
            signer,
            address: address(place),
            roster: Roster::default(),
            seeker: Seeker::default(),
            alive: true,
            frozen_until: Duration::ZERO,
            wakes: None,
        };
        let record = member.record();
        let own = CheckedMember::check(record.clone(), &CLUSTER).expect("a good record");
        member.roster.merge(&own);
        member.machine.spread(self.base + self.now, &record);
        if let Some(first) = self.members.first() {
            member.roster.merge(&CheckedMember::check(first.record(), &CLUSTER).expect("a good record"));
        }
        self.places.insert(member.address, place);
        self.members.push(member);
        let at = self.now + self.rng.random_range(Duration::ZERO..TICK);
        self.push(at, Event::Tick(place));
        place
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Due { at, number: self.number, event }));
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Datagrams sent so far.
    pub fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// What all nodes have said so far, in order.
    pub fn said(&self) -> &[Said] {
        &self.said
    }

    /// The node at a place.
    pub fn node(&self, place: usize) -> NodeId {
        self.members[place].signer.public()
    }

    /// How much a node remembers.
    pub fn counts(&self, place: usize) -> GossipCounts {
        self.members[place].machine.counts()
    }

    /// The hash of everything that happened so far.
    pub fn trace(&self) -> blake3::Hash {
        self.trace.finalize()
    }

    /// A node is dead from now on: nothing leaves it or reaches it.
    pub fn crash(&mut self, place: usize) {
        self.members[place].alive = false;
    }

    /// A node stands still for so long, as a process that is not scheduled.
    pub fn freeze(&mut self, place: usize, how_long: Duration) {
        self.members[place].frozen_until = self.now + how_long;
    }

    /// Nothing passes between the two sides any more.
    pub fn cut(&mut self, side: impl Fn(usize) -> bool) {
        self.sides = Some((0..self.members.len()).map(side).collect());
    }

    /// All reach each other again.
    pub fn heal(&mut self) {
        self.sides = None;
    }

    /// Whether every living node holds exactly the living ones for alive, itself left out.
    pub fn agrees(&self) -> bool {
        let living: Vec<NodeId> =
            self.members.iter().filter(|member| member.alive).map(|member| member.signer.public()).collect();
        self.members.iter().filter(|member| member.alive).all(|member| {
            let me = member.signer.public();
            let held = member.roster.iter().filter(|entry| entry.liveness == Liveness::Alive);
            let held = held.map(|entry| entry.member.node()).filter(|node| *node != me);
            let mut others: Vec<NodeId> = living.iter().copied().filter(|node| *node != me).collect();
            others.sort_unstable();
            held.eq(others)
        })
    }

    /// Lets a stranger's datagram reach a node.
    pub fn deliver(&mut self, place: usize, datagram: &[u8]) {
        self.members[place].machine.handle_datagram(self.base + self.now, 0, datagram);
        self.settle(place);
    }

    /// Goes on for so long.
    pub fn run(&mut self, how_long: Duration) {
        let end = self.now + how_long;
        while self.queue.peek().is_some_and(|Reverse(due)| due.at <= end) {
            let Some(Reverse(due)) = self.queue.pop() else { break };
            self.now = due.at;
            self.happen(due.event);
        }
        self.now = end;
    }

    /// Goes on until all agree, `patience` at most. How long that took; none: they do not.
    pub fn run_until_agreed(&mut self, patience: Duration) -> Option<Duration> {
        let (began, step) = (self.now, Duration::from_millis(50));
        while !self.agrees() {
            if self.now - began >= patience {
                return None;
            }
            self.run(step);
        }
        Some(self.now - began)
    }

    fn happen(&mut self, event: Event) {
        let (Event::Datagram(place, _) | Event::Wake(place) | Event::Tick(place)) = &event;
        let (place, now) = (*place, self.base + self.now);
        let member = &mut self.members[place];
        if !member.alive {
            return;
        }
        if member.frozen_until > self.now {
            let at = member.frozen_until;
            self.push(at, event);
            return;
        }
        match event {
            Event::Datagram(_, bytes) => {
                self.trace.update(&(self.now.as_nanos() as u64).to_le_bytes());
                self.trace.update(&bytes);
                member.machine.handle_datagram(now, 0, &bytes);
            }
            Event::Wake(_) => {
                member.wakes = None;
                member.machine.handle_timeout(now);
            }
            Event::Tick(_) => {
                let me = member.signer.public();
                let lost = member.seeker.tick(&member.roster, me);
                member.machine.announce(now, lost);
                self.push(self.now + TICK, Event::Tick(place));
            }
        }
        self.settle(place);
    }

    /// Takes what a node sends and hears, and sees to it that it is called in time.
    fn settle(&mut self, place: usize) {
        loop {
            let member = &mut self.members[place];
            if let Some((to, bytes)) = member.machine.poll_transmit() {
                self.send(place, to, bytes);
                continue;
            }
            match member.machine.poll_event() {
                Some(GossipEvent::Liveness(of, liveness)) => {
                    member.roster.set_liveness(of, liveness);
                    self.said.push(Said { at: self.now, by: place, of, liveness });
                }
                Some(GossipEvent::Record(record)) => drop(member.roster.merge(&record)),
                Some(_) => {}
                None => break,
            }
        }
        let member = &mut self.members[place];
        if let Some(due) = member.machine.poll_timeout() {
            let at = due.saturating_duration_since(self.base).max(self.now);
            if member.wakes.is_none_or(|wakes| at < wakes) {
                member.wakes = Some(at);
                self.push(at, Event::Wake(place));
            }
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        self.datagrams += 1;
        let lost = self.rng.random_range(0..1000) < self.setting.lost_per_mille;
        let longest = self.setting.delay_max.as_nanos() as u64;
        let delay = Duration::from_nanos(self.rng.random_range(longest / 10..=longest));
        let Some(&place) = self.places.get(&to) else { return };
        let cut = self.sides.as_ref().is_some_and(|sides| sides.get(from) != sides.get(place));
        if !lost && !cut {
            self.push(self.now + delay, Event::Datagram(place, bytes));
        }
    }
}

impl Member {
    fn record(&self) -> velo_control::signed::Signed {
        self.signer.sign(&MemberRecord {
            cluster: CLUSTER,
            version: 1,
            name: "simulated".to_owned(),
            addresses: vec![self.address],
            gossip: self.address,
            zone: String::new(),
            free_bytes: 0,
            fabrics: Vec::new(),
            software: String::new(),
            authority: false,
            left: false,
        })
    }
}

/// How long a cluster may take to find itself.
const PATIENCE: Duration = Duration::from_secs(120);

/// One node of a cluster dies: how long each of the others took to know it.
///
/// # Panics
/// Where the cluster does not find itself, or somebody never knows.
pub fn death(setting: Setting) -> Vec<Duration> {
    let mut world = World::new(setting);
    assert!(world.run_until_agreed(PATIENCE).is_some(), "seed {}: no cluster", setting.seed);
    let waited = Duration::from_millis(world.rng.random_range(0..10_000));
    world.run(waited);
    let place = world.rng.random_range(0..setting.nodes);
    let (dead, began) = (world.node(place), world.now());
    world.crash(place);
    world.run(Duration::from_secs(60));
    let mut knew = BTreeMap::new();
    for said in world.said().iter().filter(|said| said.of == dead && said.at >= began) {
        assert_eq!(said.liveness, Liveness::Down, "seed {}: a dead node is said to be alive", setting.seed);
        knew.entry(said.by).or_insert(said.at - began);
    }
    assert_eq!(knew.len(), setting.nodes - 1, "seed {}: not all know", setting.seed);
    knew.into_values().collect()
}

/// One node of a cluster stands still for 2 s of every 10, for so long: how many nodes were said to be dead, how often; and the datagrams.
///
/// # Panics
/// Where the cluster does not find itself.
pub fn frozen(setting: Setting, how_long: Duration) -> (usize, u64) {
    let mut world = World::new(setting);
    assert!(world.run_until_agreed(PATIENCE).is_some(), "seed {}: no cluster", setting.seed);
    let (began, place) = (world.now(), world.rng.random_range(0..setting.nodes));
    let before = world.said().len();
    while world.now() - began < how_long {
        world.freeze(place, Duration::from_secs(2));
        world.run(Duration::from_secs(10));
    }
    let deaths = world.said()[before..].iter().filter(|said| said.liveness == Liveness::Down).count();
    (deaths, world.datagrams())
}

/// A cluster is cut in two for 60 s: how long after that all nodes hold all others for alive again.
///
/// # Panics
/// Where the cluster does not find itself, or never again.
pub fn partition(setting: Setting) -> Duration {
    let mut world = World::new(setting);
    assert!(world.run_until_agreed(PATIENCE).is_some(), "seed {}: no cluster", setting.seed);
    let half = world.rng.random_range(1..setting.nodes);
    world.cut(|place| place < half);
    world.run(Duration::from_secs(60));
    world.heal();
    world.run_until_agreed(PATIENCE).unwrap_or_else(|| panic!("seed {}: they never agree", setting.seed))
}
