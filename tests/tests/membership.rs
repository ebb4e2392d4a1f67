//! Membership in virtual time: 16 nodes and more, whose datagrams are lost and late.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Codec as _, Header, Incarnation, Member, Message, PostcardCodec, State};
use serde::{Deserialize, Serialize};
use velo_control::membership::{Liveness, MAX_MEMBERS, MAX_PACKET_BYTES, Sealer};
use velo_object::NodeId;
use velo_tests::full;
use velo_tests::sim::members::{Setting, World, death, frozen, keyring, partition};

const NODES: usize = 16;

fn seeds() -> u64 {
    if full() { 200 } else { 10 }
}

/// The value that 99 of 100 do not exceed.
fn p99(mut of: Vec<Duration>) -> Duration {
    of.sort_unstable();
    of[(of.len() * 99).div_ceil(100) - 1]
}

#[test]
fn a_dead_node_is_known_everywhere_in_ten_seconds() {
    let knew: Vec<_> = (0..seeds()).flat_map(|seed| death(Setting::datacentre(NODES, seed))).collect();
    let (p99, count) = (p99(knew.clone()), knew.len());
    println!("{count} times: p99 {p99:?}, longest {:?}", knew.iter().max());
    assert!(p99 <= Duration::from_secs(10), "p99 {p99:?}");
}

#[test]
fn a_node_that_stands_still_now_and_then_is_not_dead() {
    let hours = if full() { 24 } else { 1 };
    let (deaths, datagrams) = frozen(Setting::datacentre(NODES, 1), Duration::from_secs(hours * 3600));
    println!("{hours} h, {datagrams} datagrams: {deaths} times said to be dead");
    assert_eq!(deaths, 0);
}

#[test]
fn two_halves_are_one_again_in_fifteen_seconds() {
    let took: Vec<_> = (0..seeds()).map(|seed| partition(Setting::datacentre(NODES, seed))).collect();
    println!("{} times: p99 {:?}", took.len(), p99(took.clone()));
    assert!(p99(took.clone()) <= Duration::from_secs(15), "{took:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(Setting::datacentre(NODES, seed));
        world.run(Duration::from_secs(20));
        world.crash(3);
        world.run(Duration::from_secs(20));
        (world.trace(), world.said().len())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// How gossip names a member on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Peer {
    node: NodeId,
    generation: u64,
    address: SocketAddr,
}

impl foca::Identity for Peer {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, _: &Self) -> bool {
        true
    }
}

/// Names of members that do not exist.
struct Liar {
    me: Peer,
    to: Peer,
    sealer: Sealer,
    keyring: velo_control::membership::Keyring,
    invented: u64,
}

impl Liar {
    fn new(seed: u64, to: NodeId, to_address: SocketAddr) -> Self {
        let node = NodeId::from_bytes([0xee; 32]);
        let me = Peer { node, generation: 1, address: SocketAddr::from(([10, 9, 9, 9], 1)) };
        let to = Peer { node: to, generation: 1, address: to_address };
        Self { me, to, sealer: Sealer::new(node, 1), keyring: keyring(seed), invented: 0 }
    }

    /// The next datagram, sealed with the key that every member has.
    fn datagram(&mut self) -> Vec<u8> {
        let header = Header {
            src: self.me.clone(),
            src_incarnation: Incarnation::default(),
            dst: self.to.clone(),
            message: Message::Gossip,
        };
        let mut plain = Vec::new();
        PostcardCodec.encode_header(&header, &mut plain).expect("room");
        let (mut members, mut count) = (Vec::new(), 0_u16);
        while plain.len() + members.len() < MAX_PACKET_BYTES - 80 {
            self.invented += 1;
            let node = NodeId::from_bytes(*blake3::hash(&self.invented.to_le_bytes()).as_bytes());
            let peer = Peer { node, generation: 1, address: SocketAddr::from(([10, 8, 8, 8], 1)) };
            PostcardCodec
                .encode_member(&Member::new(peer, Incarnation::default(), State::Alive), &mut members)
                .expect("room");
            count += 1;
        }
        plain.extend_from_slice(&count.to_be_bytes());
        plain.extend_from_slice(&members);
        self.sealer.seal(&self.keyring, &plain).expect("a key")
    }
}

#[test]
fn a_million_invented_members_leave_memory_in_bounds() {
    let setting = Setting::datacentre(4, 5);
    let mut world = World::new(setting);
    assert!(world.run_until_agreed(Duration::from_secs(60)).is_some());
    let to = SocketAddr::from(([10, 0, 0, 2], 7441));
    let mut liar = Liar::new(setting.seed, world.node(2), to);
    let mut refused = 0;
    while liar.invented < 1_000_000 {
        for _ in 0..100 {
            world.deliver(2, &liar.datagram());
        }
        // It spreads what it believes, and asks whether they live.
        world.run(Duration::from_millis(10));
        for place in 0..4 {
            let counts = world.counts(place);
            assert!(counts.members <= MAX_MEMBERS && counts.unproven <= 2048, "{counts:?}");
            assert!(counts.updates <= MAX_MEMBERS && counts.records <= MAX_MEMBERS, "{counts:?}");
            assert!(counts.timers <= 4 * MAX_MEMBERS, "{counts:?}");
            refused = refused.max(counts.refused);
        }
    }
    assert!(refused > 900_000, "{refused} refused: were they heard at all?");
    // Those who are real are still heard, and one that comes now is let in.
    let (late, began) = (world.add(), world.now());
    let node = world.node(late);
    let known = |world: &World, place: usize| {
        let last = world.said().iter().rfind(|said| said.by == place && said.of == node);
        last.is_some_and(|said| said.liveness == Liveness::Alive)
    };
    while !(0..4).all(|place| known(&world, place)) {
        assert!(world.now() - began < Duration::from_secs(600), "it is never let in: {:?}", world.counts(1));
        world.run(Duration::from_secs(1));
    }
    println!("one that joins after that is known everywhere in {:?}", world.now() - began);
}
