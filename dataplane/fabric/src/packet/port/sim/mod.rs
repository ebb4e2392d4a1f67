//! A network in virtual time: hosts, and links with a rate, a delay, a bounded queue and faults, all drawn from one seed. [`Network`]
//! drives thousands of transfers in one thread; [`SimPort`] makes a host of it a [`Port`](super::Port).
//!
//! A datagram goes from its sender's up link through its receiver's down link. Hosts may share links: two receivers behind one down link
//! compete for it.

mod link;
mod port;

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;

use super::draw::Draw;
use super::{Arrival, Departure, Ecn};
use crate::packet::protocol::Timestamp;
use link::{Fate, LinkState};

pub use link::{Link, LinkCounters, Reordering};
pub use port::{SimClock, SimPort};

/// A link of a [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(u32);

/// A host of a [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(u32);

impl Host {
    /// Its place in the order in which hosts were added, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A datagram that arrives. It lies in the network's memory until the next call.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// When.
    pub at: Timestamp,
    /// Where.
    pub to: Host,
    /// What.
    pub arrival: Arrival<'a>,
}

#[derive(Debug)]
struct HostState {
    address: SocketAddr,
    up: LinkId,
    down: LinkId,
}

/// Where a datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It reaches its receiver's down link.
    Middle,
    /// It reaches its receiver.
    End,
}

/// What reaches the next stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The first packet on a link.
    First(LinkId),
    /// A packet that was held back, or comes twice.
    Alone(u32),
}

#[derive(Debug)]
struct Packet {
    bytes: Box<[u8]>,
    len: usize,
    from: SocketAddr,
    to: SocketAddr,
    host: Host,
    ecn: Ecn,
    stage: Stage,
}

/// A network in virtual time.
#[derive(Debug)]
pub struct Network {
    now: Timestamp,
    draw: Draw,
    links: Vec<LinkState>,
    hosts: Vec<HostState>,
    addresses: HashMap<SocketAddr, Host>,
    /// Those under way, and those that can be used again.
    packets: Vec<Packet>,
    free: Vec<u32>,
    /// What happens next, each event once: of every link the arrival of the first packet on it, and those that are out of order. So it
    /// stays small, however many are under way. The serial number keeps the order of what happens at once.
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    in_flight: usize,
    /// What the last delivery lent.
    lent: Option<u32>,
    datagram_max_bytes: usize,
    unroutable: u64,
}

impl Network {
    /// A network without hosts, where no datagram is longer than `datagram_max_bytes`. The same seed and calls give the same network.
    pub fn new(seed: u64, datagram_max_bytes: usize) -> Self {
        Self {
            now: Timestamp(0),
            draw: Draw::new(seed),
            links: Vec::new(),
            hosts: Vec::new(),
            addresses: HashMap::new(),
            packets: Vec::new(),
            free: Vec::new(),
            events: BinaryHeap::new(),
            serial: 0,
            in_flight: 0,
            lent: None,
            datagram_max_bytes,
            unroutable: 0,
        }
    }

    /// Adds a link.
    pub fn add_link(&mut self, link: Link) -> LinkId {
        self.links.push(LinkState::new(link));
        LinkId((self.links.len() - 1) as u32)
    }

    /// Adds a host that sends through `up` and receives through `down`.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn add_host(&mut self, address: SocketAddr, up: LinkId, down: LinkId) -> Host {
        let host = Host(self.hosts.len() as u32);
        assert!(self.addresses.insert(address, host).is_none(), "{address} is taken");
        self.hosts.push(HostState { address, up, down });
        host
    }

    /// All links, in the order in which they were added.
    pub fn links(&self) -> impl Iterator<Item = LinkId> + use<> {
        (0..self.links.len() as u32).map(LinkId)
    }

    /// A link as it is.
    pub fn link(&self, link: LinkId) -> &Link {
        &self.links[link.0 as usize].link
    }

    /// A link, to be changed; what is on it already goes on as before.
    pub fn link_mut(&mut self, link: LinkId) -> &mut Link {
        &mut self.links[link.0 as usize].link
    }

    /// What has happened on a link.
    pub fn counters(&self, link: LinkId) -> LinkCounters {
        self.links[link.0 as usize].counters
    }

    /// Datagrams for addresses that nobody has, or has any more.
    pub fn unroutable(&self) -> u64 {
        self.unroutable
    }

    /// A host's address.
    pub fn address(&self, host: Host) -> SocketAddr {
        self.hosts[host.index()].address
    }

    /// Gives a host another address, as a NAT does. What is under way to the old one is lost.
    ///
    /// # Panics
    /// If the address is taken.
    pub fn readdress(&mut self, host: Host, address: SocketAddr) {
        assert!(self.addresses.insert(address, host).is_none(), "{address} is taken");
        let old = std::mem::replace(&mut self.hosts[host.index()].address, address);
        self.addresses.remove(&old);
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// Datagrams under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When the host's up link has room for one more datagram of the largest size: the past, if it has now. A device that pushes back
    /// takes none before; [`send`](Self::send) drops what comes before where the queue is full.
    pub fn room_at(&self, host: Host) -> Timestamp {
        let up = &self.links[self.hosts[host.index()].up.0 as usize];
        up.room_at(self.datagram_max_bytes)
    }

    /// Sends the datagram that `fill` writes at `now`, up to which everything has been [polled](Self::poll). False where it writes none.
    pub fn send(
        &mut self,
        now: Timestamp,
        from: Host,
        fill: impl FnOnce(&mut [u8]) -> Option<Departure>,
    ) -> bool {
        self.take_back();
        self.now = self.now.max(now);
        let HostState { address, up, .. } = self.hosts[from.index()];
        let id = self.free.pop().unwrap_or_else(|| {
            self.packets.push(Packet {
                bytes: vec![0; self.datagram_max_bytes].into_boxed_slice(),
                len: 0,
                from: address,
                to: address,
                host: from,
                ecn: Ecn::NotCapable,
                stage: Stage::Middle,
            });
            (self.packets.len() - 1) as u32
        });
        let packet = &mut self.packets[id as usize];
        let Some(departure) = fill(&mut packet.bytes) else {
            self.free.push(id);
            return false;
        };
        let Some(&host) = self.addresses.get(&departure.to) else {
            self.unroutable += 1;
            self.free.push(id);
            return true;
        };
        (packet.len, packet.from, packet.to, packet.host) = (departure.len, address, departure.to, host);
        (packet.ecn, packet.stage) = (departure.ecn, Stage::Middle);
        self.enter(self.now, up, id);
        true
    }

    /// The next thing to happen, if any: [`poll`](Self::poll) up to then may bring a datagram, or nothing yet.
    pub fn next_event(&self) -> Option<Timestamp> {
        self.events.peek().map(|Reverse((at, ..))| Timestamp(*at))
    }

    /// The next datagram that arrives, not later than `until`. `None`: then it is `until`.
    pub fn poll(&mut self, until: Timestamp) -> Option<Delivery<'_>> {
        self.take_back();
        let (at, id) = loop {
            match self.events.peek() {
                Some(Reverse((at, ..))) if *at <= until.0 => {}
                _ => {
                    self.now = self.now.max(until);
                    return None;
                }
            }
            let (at, id) = self.pop()?;
            self.now = self.now.max(at);
            let packet = &mut self.packets[id as usize];
            let host = &self.hosts[packet.host.index()];
            if packet.stage == Stage::Middle {
                packet.stage = Stage::End;
                let down = host.down;
                self.enter(at, down, id);
            } else if host.address == packet.to {
                break (at, id);
            } else {
                self.unroutable += 1;
                self.free.push(id);
            }
        };
        self.lent = Some(id);
        let Packet { bytes, len, from, host, ecn, .. } = &mut self.packets[id as usize];
        let arrival = Arrival { from: *from, datagram: &mut bytes[..*len], ecn: *ecn };
        Some(Delivery { at, to: *host, arrival })
    }

    fn take_back(&mut self) {
        self.free.extend(self.lent.take());
    }

    /// A packet reaches the beginning of a link.
    fn enter(&mut self, now: Timestamp, link: LinkId, id: u32) {
        let packet = &mut self.packets[id as usize];
        let state = &mut self.links[link.0 as usize];
        let fate = state.enter(now, packet.len, &mut packet.ecn, &mut self.draw);
        let Fate::Arrives { at, held_back, corrupted, again_at } = fate else {
            self.free.push(id);
            return;
        };
        if corrupted {
            self.draw.damage(&mut packet.bytes[..packet.len]);
        }
        if let Some(again_at) = again_at {
            let copy = self.copy(id);
            self.schedule(again_at, copy, None);
        }
        self.schedule(at, id, (!held_back).then_some(link));
    }

    /// A packet reaches the next stage at `at`; where it is on a link and was not held back, in the order in which it got there.
    fn schedule(&mut self, at: Timestamp, id: u32, on: Option<LinkId>) {
        self.serial += 1;
        self.in_flight += 1;
        if let Some(link) = on {
            let on_it = &mut self.links[link.0 as usize].on_it;
            // Where the link was made shorter meanwhile, what comes later may arrive before.
            if on_it.back().is_none_or(|(last, ..)| *last <= at.0) {
                if on_it.is_empty() {
                    self.events.push(Reverse((at.0, self.serial, Event::First(link))));
                }
                on_it.push_back((at.0, self.serial, id));
                return;
            }
        }
        self.events.push(Reverse((at.0, self.serial, Event::Alone(id))));
    }

    /// The next event, and its packet.
    fn pop(&mut self) -> Option<(Timestamp, u32)> {
        let mut first = self.events.peek_mut()?;
        let Reverse((at, _, event)) = *first;
        self.in_flight -= 1;
        let id = match event {
            Event::Alone(id) => {
                PeekMut::pop(first);
                id
            }
            Event::First(link) => {
                let on_it = &mut self.links[link.0 as usize].on_it;
                let (_, _, id) = on_it.pop_front()?;
                match on_it.front() {
                    Some((at, serial, _)) => *first = Reverse((*at, *serial, event)),
                    None => drop(PeekMut::pop(first)),
                }
                id
            }
        };
        Some((Timestamp(at), id))
    }

    fn copy(&mut self, id: u32) -> u32 {
        let copy = match self.free.pop() {
            Some(copy) => copy,
            None => {
                let Packet { ref bytes, len, from, to, host, ecn, stage } = self.packets[id as usize];
                self.packets.push(Packet { bytes: bytes.clone(), len, from, to, host, ecn, stage });
                return (self.packets.len() - 1) as u32;
            }
        };
        let [from, to] = self
            .packets
            .get_disjoint_mut([id as usize, copy as usize])
            .expect("a packet under way is not free");
        to.bytes[..from.len].copy_from_slice(&from.bytes[..from.len]);
        (to.len, to.from, to.to, to.host, to.ecn, to.stage) =
            (from.len, from.from, from.to, from.host, from.ecn, from.stage);
        copy
    }
}
