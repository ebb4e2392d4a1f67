//! Which fabric carries what is read from a peer: offers of packet paths, their proof, and falling back to streams.
//!
//! A peer is offered the packet fabrics that come before TCP here; it accepts the best that it has, and both probe the paths. Proven ones
//! carry all reads until one of them ends; then all reads go over streams again and, after a pause that grows with every failure, the
//! fabric is offered anew. Nothing that a peer says makes more than one set of paths for each fabric.

use std::net::SocketAddr;

use velo_fabric::packet::protocol::NewPath;
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, Role};
use velo_fabric::{PathError, PathId};
use velo_object::NodeId;

use super::core::Engine;
use super::peers::{Offered, PathPlace, PathSet, Peer, PeerPath, SessionFacts};
use crate::carrier::AnyPath;
use crate::metrics::FallBack;
use crate::session::PeerMessage;
use crate::session::paths::{
    ENDS_MAX, OfferedFabric, PacketKind, PathAccept, PathEnd, PathMessage, PathOffer, PathProtection,
    PathRefusal,
};
use crate::worker::Command;

/// How long an offer may wait for its answer, and new paths for their proof.
const ANSWER_US: u64 = 3_000_000;
const PROVE_US: u64 = 3_000_000;
/// How long the first and the longest pause after a failure are.
const RETRY_US: u64 = 2_000_000;
const RETRY_MAX_US: u64 = 300_000_000;
/// Paths that were good for this long are no worse for a failure than new ones.
const GOOD_US: u64 = 60_000_000;
/// The least time between two offers of one peer that are taken.
const OFFERS_US: u64 = 500_000;
/// The worker's share of a path's number, and how many numbers that leaves.
const WORKER_BITS: u32 = 8;
const SERIALS: u64 = 1 << (u32::BITS - WORKER_BITS);

/// A packet fabric that this node has.
#[derive(Debug)]
pub(super) struct PacketFabric {
    pub(super) kind: PacketKind,
    /// Its place in the order of preference: lower is better.
    pub(super) rank: u8,
    /// Its workers: each one's index in the engine, and where packets for it go.
    pub(super) ends: Vec<(usize, SocketAddr)>,
    /// The largest datagram that its ports carry.
    pub(super) datagram_max_bytes: u32,
    /// The worker that gets the first path of the next peer.
    pub(super) next_end: usize,
    /// A bit for each of its workers whose port has failed; they get no more paths.
    pub(super) failed: u64,
}

impl PacketFabric {
    fn is_alive(&self, end: usize) -> bool {
        self.failed >> end & 1 == 0
    }

    /// How many paths a peer is offered.
    fn count(&self) -> usize {
        (0..self.ends.len()).filter(|&end| self.is_alive(end)).count().min(ENDS_MAX)
    }

    /// Whether its packets can go to a peer of that session: an unspecified address stands for the one of the session.
    fn reaches(&self, session: &SessionFacts) -> bool {
        let (_, address) = self.ends[0];
        !address.ip().is_unspecified() || address.is_ipv4() == session.address.is_ipv4()
    }

    fn takes(&self, theirs: &OfferedFabric, session: &SessionFacts) -> bool {
        let (_, own) = self.ends[0];
        let fits = |end: &PathEnd| remote(end, session).is_ipv4() == family(own, session);
        self.kind == theirs.kind && self.count() > 0 && self.reaches(session) && theirs.ends.iter().all(fits)
    }

    /// Numbers for new paths: `count` of them, but no more than an offer may have. None where the session, which began at the serial
    /// number `since`, has to be made anew first: no number may come twice in one.
    fn new_ends(&mut self, serial: &mut u64, since: u64, count: usize) -> Option<Vec<(usize, PathEnd)>> {
        let ends = (0..count.min(ENDS_MAX)).map(|_| {
            let mut following = (0..self.ends.len()).map(|end| (self.next_end + end) % self.ends.len());
            let at = following.find(|&end| self.is_alive(end))?;
            self.next_end = at + 1;
            *serial += 1;
            if *serial - since >= SERIALS {
                return None;
            }
            let (worker, address) = self.ends[at];
            Some((
                worker,
                PathEnd { number: ((*serial % SERIALS) as u32) << WORKER_BITS | at as u32, address },
            ))
        });
        ends.collect()
    }
}

/// Where packets for the other side's end go.
fn remote(end: &PathEnd, session: &SessionFacts) -> SocketAddr {
    let ip =
        if end.address.ip().is_unspecified() { session.address } else { end.address.ip().to_canonical() };
    SocketAddr::new(ip, end.address.port())
}

/// Whether this side's packets go over IPv4.
fn family(own: SocketAddr, session: &SessionFacts) -> bool {
    if own.ip().is_unspecified() { session.address.is_ipv4() } else { own.is_ipv4() }
}

/// How this side would protect frames, best first.
fn protections(trusted: bool) -> Vec<PathProtection> {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    let ciphers = if aes {
        [PathProtection::Aes128Gcm, PathProtection::ChaCha20Poly1305]
    } else {
        [PathProtection::ChaCha20Poly1305, PathProtection::Aes128Gcm]
    };
    trusted.then_some(PathProtection::Trusted).into_iter().chain(ciphers).collect()
}

/// What both sides can: in the clear where both sides trust the network, AES where both have it in hardware.
fn agree(own: &[PathProtection], offered: &[PathProtection]) -> Option<PathProtection> {
    if own.first() == offered.first() {
        return own.first().copied();
    }
    let both = |wanted: &PathProtection| own.contains(wanted) && offered.contains(wanted);
    [PathProtection::ChaCha20Poly1305, PathProtection::Aes128Gcm].into_iter().find(both)
}

impl Engine {
    /// Offers a peer the packet fabrics that are better than what carries its reads now.
    pub(super) fn offer_paths(&mut self, now: u64, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(session) = peer.packets.session.as_ref().filter(|_| peer.packets.offered.is_none()) else {
            return;
        };
        let best = peer.packets.sets.iter().map(|set| set.rank).fold(self.tcp_rank, u8::min);
        let mut fabrics = Vec::new();
        for fabric in &mut self.packets {
            let due = fabric.rank < best && fabric.reaches(session) && peer.packets.may_try(now, fabric.kind);
            let count = fabric.count();
            if !due || count == 0 || self.packet_paths + count > self.packet_paths_max {
                continue;
            }
            let Some(ends) = fabric.new_ends(&mut self.path_serial, session.first_serial, count) else {
                continue;
            };
            fabrics.push((fabric.kind, fabric.datagram_max_bytes, ends));
        }
        if fabrics.is_empty() {
            return;
        }
        self.next_offer = self.next_offer.wrapping_add(1);
        let offered =
            |(kind, datagram_max_bytes, ends): &(PacketKind, u32, Vec<(usize, PathEnd)>)| OfferedFabric {
                kind: *kind,
                datagram_max_bytes: *datagram_max_bytes,
                protections: protections(session.keying.trusted),
                ends: ends.iter().map(|(_, end)| *end).collect(),
            };
        let offer = PathOffer { offer: self.next_offer, fabrics: fabrics.iter().map(offered).collect() };
        let ends = fabrics.into_iter().map(|(kind, _, ends)| (kind, ends)).collect();
        peer.packets.offered = Some(Offered { number: self.next_offer, at: now, ends });
        peer.packets.begin(now);
        self.sessions.send(node, PeerMessage::Paths(PathMessage::Offer(offer)));
    }

    pub(super) fn paths_said(&mut self, now: u64, node: NodeId, message: PathMessage) {
        match message {
            PathMessage::Offer(offer) => {
                let number = offer.offer;
                let answer = match self.take_offer(now, node, offer) {
                    Ok(accept) => PathMessage::Accept(accept),
                    Err(why) => PathMessage::Refuse { offer: number, why },
                };
                self.sessions.send(node, PeerMessage::Paths(answer));
            }
            PathMessage::Accept(accept) => self.offer_accepted(now, node, accept),
            PathMessage::Refuse { offer, why } => self.offer_refused(now, node, offer, why),
        }
    }

    fn take_offer(&mut self, now: u64, node: NodeId, offer: PathOffer) -> Result<PathAccept, PathRefusal> {
        let packets = &mut self.peer(node).packets;
        let Some(session) = packets.session.clone() else { return Err(PathRefusal::NoneInCommon) };
        if packets.offered.is_some() {
            if session.dialled {
                return Err(PathRefusal::Crossed);
            }
            packets.offered = None;
        }
        if packets.offer_taken_at.is_some_and(|at| now < at + OFFERS_US) {
            return Err(PathRefusal::TooSoon);
        }
        let own = protections(session.keying.trusted);
        let common = offer.fabrics.iter().find_map(|theirs| {
            let at = self.packets.iter().position(|own| own.takes(theirs, &session))?;
            Some((at, theirs, agree(&own, &theirs.protections)?))
        });
        let Some((at, theirs, protection)) = common else { return Err(PathRefusal::NoneInCommon) };
        if self.packet_paths + theirs.ends.len() > self.packet_paths_max {
            return Err(PathRefusal::Full);
        }
        let fabric = &mut self.packets[at];
        let Some(ends) = fabric.new_ends(&mut self.path_serial, session.first_serial, theirs.ends.len())
        else {
            return Err(PathRefusal::Full);
        };
        let accept = PathAccept {
            offer: offer.offer,
            kind: theirs.kind,
            datagram_max_bytes: fabric.datagram_max_bytes,
            protection,
            ends: ends.iter().map(|(_, end)| *end).collect(),
        };
        let packets = &mut self.peer(node).packets;
        packets.offer_taken_at = Some(now);
        packets.begin(now);
        let pairs = ends.into_iter().zip(theirs.ends.iter().copied()).collect();
        self.add_paths(now, node, theirs.kind, protection, theirs.datagram_max_bytes, pairs);
        Ok(accept)
    }

    fn offer_accepted(&mut self, now: u64, node: NodeId, accept: PathAccept) {
        let packets = &mut self.peer(node).packets;
        let Some(offered) = packets.offered.take_if(|offered| offered.number == accept.offer) else { return };
        let trusted = packets.session.as_ref().is_some_and(|session| session.keying.trusted);
        let Some(at) = offered.ends.iter().position(|(kind, _)| *kind == accept.kind) else { return };
        // It has none of those that came before.
        offered.ends[..at].iter().for_each(|(kind, _)| packets.never(*kind));
        let (_, ends) = &offered.ends[at];
        if accept.ends.len() > ends.len() || !protections(trusted).contains(&accept.protection) {
            let why = "it accepted what was not offered".to_owned();
            return self.packets_failed(now, node, accept.kind, FallBack::Protocol, &why);
        }
        let pairs = ends.iter().copied().zip(accept.ends.iter().copied()).collect();
        self.add_paths(now, node, accept.kind, accept.protection, accept.datagram_max_bytes, pairs);
    }

    fn offer_refused(&mut self, now: u64, node: NodeId, number: u32, why: PathRefusal) {
        let packets = &mut self.peer(node).packets;
        let Some(offered) = packets.offered.take_if(|offered| offered.number == number) else { return };
        match why {
            // The other offer is on its way.
            PathRefusal::Crossed => return,
            PathRefusal::NoneInCommon => offered.ends.iter().for_each(|(kind, _)| packets.never(*kind)),
            PathRefusal::TooSoon | PathRefusal::Full => {
                offered.ends.iter().for_each(|(kind, _)| packets.failed(now, *kind));
            }
        }
        tracing::debug!(peer = node.short(), ?why, "no packet paths");
        self.carry_on(now, node);
    }

    /// Makes the paths of one fabric, in the place of those that there were.
    fn add_paths(
        &mut self,
        now: u64,
        node: NodeId,
        kind: PacketKind,
        protection: PathProtection,
        datagram_max_bytes: u32,
        pairs: Vec<((usize, PathEnd), PathEnd)>,
    ) {
        self.end_set(node, kind);
        let Some(rank) = self.packets.iter().find(|fabric| fabric.kind == kind).map(|fabric| fabric.rank)
        else {
            return;
        };
        let peer = self.peer(node);
        let Some(session) = peer.packets.session.clone() else { return };
        let counters = peer.counters.clone();
        let mut set = PathSet { kind, rank, paths: Vec::new(), since: now, proven: false };
        for ((worker, own), theirs) in pairs {
            let (role, dialler, accepter) = if session.dialled {
                (Role::Dialler, own.number, theirs.number)
            } else {
                (Role::Accepter, theirs.number, own.number)
            };
            let name = PathName { fabric: kind.fabric().name(), dialler, accepter };
            let id = self.next_path;
            self.next_path += 1;
            let path = NewPath {
                id,
                peer: node,
                remote: remote(&theirs, &session),
                keys: PathKeys::derive(&session.keying.secret, &name, role, protection.into()),
                datagram_max_bytes: datagram_max_bytes as usize,
            };
            self.paths.insert(id, PathPlace { worker, node, kind: Some(kind) });
            self.packet_paths += 1;
            set.paths.push(id);
            self.peer(node).paths.push(PeerPath { id, reads: 0, rank, usable: false });
            let path = AnyPath::Packet(Box::new(path));
            self.workers[worker].send(Command::AddPath(path, counters.clone()));
        }
        self.peer(node).packets.sets.push(set);
    }

    /// Datagrams have come through on a path in both directions.
    pub(super) fn path_proven(&mut self, now: u64, id: PathId) {
        let Some(PathPlace { node, kind: Some(kind), .. }) = self.paths.get(&id).copied() else { return };
        let peer = self.peer(node);
        let Some(set) = peer.packets.sets.iter_mut().find(|set| set.paths.contains(&id)) else { return };
        let first = !std::mem::replace(&mut set.proven, true);
        if first {
            set.since = now;
            peer.packets.began = None;
        }
        if let Some(path) = peer.paths.iter_mut().find(|path| path.id == id) {
            path.usable = true;
        }
        if !peer.queue.is_empty() {
            self.queued_peers.insert(node);
        }
        if first {
            tracing::info!(peer = node.short(), fabric = %kind.fabric(), "packets come through");
            self.tell_fabric(node);
        }
    }

    /// A packet path is gone: where nobody here ended it, its whole set ends and streams take over.
    pub(super) fn packet_path_closed(
        &mut self,
        now: u64,
        node: NodeId,
        id: PathId,
        (worker, kind): (usize, PacketKind),
        error: &PathError,
    ) {
        self.packet_paths -= 1;
        if let PathError::Port(error) = error {
            self.port_failed(worker, kind, error);
        }
        let peer = self.peer(node);
        if peer.packets.sets.iter().any(|set| set.paths.contains(&id)) {
            self.packets_failed(now, node, kind, FallBack::of(error), &error.to_string());
        }
    }

    /// A worker's port is of no further use: the others carry on without it.
    fn port_failed(&mut self, worker: usize, kind: PacketKind, error: &std::io::Error) {
        let Some(fabric) = self.packets.iter_mut().find(|fabric| fabric.kind == kind) else { return };
        let Some(at) = fabric.ends.iter().position(|(other, _)| *other == worker) else { return };
        if !fabric.is_alive(at) {
            return;
        }
        fabric.failed |= 1 << at;
        let (address, left) = (fabric.ends[at].1, fabric.count());
        self.shared.metrics.note(format!(
            "{0} at {address} has failed ({error}) and is not used any more ({left} of its ports are left): look at its device, then \
             start velo again",
            kind.fabric(),
        ));
    }

    /// A packet fabric does not carry to a peer.
    fn packets_failed(&mut self, now: u64, node: NodeId, kind: PacketKind, why: FallBack, detail: &str) {
        self.peer(node).packets.forgive(now, kind);
        self.end_set(node, kind);
        self.peer(node).packets.failed(now, kind);
        self.tell_fabric(node);
        let fabric = kind.fabric();
        self.shared.metrics.fell_back(fabric, why);
        tracing::info!(peer = node.short(), %fabric, reason = why.name(), detail, "packets do not come through");
        // Where the other side ended it, the reason is its own, and told there.
        if why != FallBack::Closed {
            self.shared.metrics.note(format!(
                "{fabric} to node {} has failed ({}): TCP is used until it works again; {}",
                node.short(),
                why.words(),
                why.advice(fabric),
            ));
        }
        self.carry_on(now, node);
    }

    /// What waits for a path goes over whatever there is, at once.
    fn carry_on(&mut self, now: u64, node: NodeId) {
        let peer = self.peer(node);
        peer.packets.began = None;
        if peer.up && (!peer.queue.is_empty() || peer.paths.iter().any(|path| path.reads > 0)) {
            if !peer.has_path() {
                peer.streams_asked_at = None;
            }
            self.open_streams(now, node);
        }
    }

    /// Closes the paths of one fabric.
    fn end_set(&mut self, node: NodeId, kind: PacketKind) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for set in peer.packets.sets.extract_if(.., |set| set.kind == kind) {
            for id in set.paths {
                // The number stays until the worker says that it is closed.
                if let Some(path) = peer.paths.iter_mut().find(|path| path.id == id) {
                    path.usable = false;
                }
                if let Some(place) = self.paths.get(&id) {
                    self.workers[place.worker].send(Command::Close(id));
                }
            }
        }
    }

    /// Closes all packet paths to a peer: their session is over.
    pub(super) fn end_packets(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let kinds: Vec<_> = peer.packets.sets.iter().map(|set| set.kind).collect();
        kinds.into_iter().for_each(|kind| self.end_set(node, kind));
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.packets.session_ended();
        }
        self.tell_fabric(node);
    }

    /// Looks after offers without an answer, paths without a proof, and what may be tried again.
    pub(super) fn look_after_packets(&mut self, now: u64) {
        if self.packets.is_empty() {
            return;
        }
        let nodes: Vec<_> =
            self.peers.iter().filter(|(_, peer)| peer.up && busy(peer)).map(|(node, _)| *node).collect();
        for node in nodes {
            let packets = &mut self.peer(node).packets;
            if let Some(offered) = packets.offered.take_if(|offered| now >= offered.at + ANSWER_US) {
                for (kind, _) in offered.ends {
                    self.packets_failed(now, node, kind, FallBack::Unanswered, "the offer was not answered");
                }
            }
            let packets = &self.peer(node).packets;
            let late = |set: &&PathSet| !set.proven && now >= set.since + PROVE_US;
            let late: Vec<_> = packets.sets.iter().filter(late).map(|set| set.kind).collect();
            for kind in late {
                self.packets_failed(now, node, kind, FallBack::Unproven, "no packet has come back in time");
            }
            self.end_worse(node);
            let peer = self.peer(node);
            if !peer.queue.is_empty() || peer.paths.iter().any(|path| path.reads > 0) {
                self.offer_paths(now, node);
            }
        }
    }

    /// Closes paths that nothing is read over because a better fabric carries it.
    fn end_worse(&mut self, node: NodeId) {
        let peer = self.peer(node);
        let proven = |set: &&PathSet| set.proven;
        let Some(best) = peer.packets.sets.iter().filter(proven).map(|set| set.rank).min() else { return };
        let idle = |set: &PathSet| {
            peer.paths.iter().filter(|path| set.paths.contains(&path.id)).all(|path| path.reads == 0)
        };
        let worse: Vec<_> =
            peer.packets.sets.iter().filter(|set| set.rank > best && idle(set)).map(|set| set.kind).collect();
        worse.into_iter().for_each(|kind| self.end_set(node, kind));
    }

    /// Says for the status which fabric carries what is read from a peer.
    fn tell_fabric(&mut self, node: NodeId) {
        let tcp = self.tcp_rank;
        let Some(peer) = self.peers.get(&node) else { return };
        let best =
            peer.packets.sets.iter().filter(|set| set.proven && set.rank < tcp).min_by_key(|set| set.rank);
        peer.counters.set_fabric(best.map_or(velo_config::Fabric::Tcp, |set| set.kind.fabric()));
    }
}

/// Whether there is anything of packets to look after.
fn busy(peer: &Peer) -> bool {
    peer.packets.offered.is_some()
        || !peer.packets.sets.is_empty()
        || !peer.queue.is_empty()
        || peer.paths.iter().any(|path| path.reads > 0)
}

/// When a fabric that has failed so often may be tried again.
pub(super) fn retry_at(now: u64, failures: u32) -> u64 {
    now + (RETRY_US << failures.saturating_sub(1).min(16)).min(RETRY_MAX_US)
}

/// Whether paths that were proven then were good for long.
pub(super) fn was_good(now: u64, since: u64) -> bool {
    now >= since + GOOD_US
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_protects_is_what_both_sides_can() {
        use PathProtection::{Aes128Gcm, ChaCha20Poly1305, Trusted};
        let (with, without) = ([Aes128Gcm, ChaCha20Poly1305], [ChaCha20Poly1305, Aes128Gcm]);
        assert_eq!(agree(&with, &with), Some(Aes128Gcm));
        assert_eq!(agree(&with, &without), Some(ChaCha20Poly1305));
        assert_eq!(agree(&without, &without), Some(ChaCha20Poly1305));
        let trusting = [Trusted, Aes128Gcm, ChaCha20Poly1305];
        assert_eq!(agree(&trusting, &trusting), Some(Trusted));
        assert_eq!(agree(&with, &trusting), Some(ChaCha20Poly1305), "only one side trusts the network");
        assert_eq!(agree(&with, &[Trusted]), None);
        assert!(protections(true).starts_with(&[Trusted]) && !protections(false).contains(&Trusted));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(retry_at(0, 1), RETRY_US);
        assert_eq!(retry_at(0, 2), 2 * RETRY_US);
        assert_eq!(retry_at(5, u32::MAX), 5 + RETRY_MAX_US);
    }

    #[test]
    fn no_number_comes_twice_in_a_session() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7442));
        let ends = vec![(3, address), (4, address)];
        let mut fabric = PacketFabric {
            kind: PacketKind::Udp,
            rank: 0,
            ends,
            datagram_max_bytes: 1472,
            next_end: 0,
            failed: 0,
        };
        let mut serial = 0;
        let ends = fabric.new_ends(&mut serial, 0, 3).expect("numbers");
        let numbers: Vec<_> = ends.iter().map(|(worker, end)| (*worker, end.number)).collect();
        assert_eq!(numbers, [(3, 0x100), (4, 0x201), (3, 0x300)]);
        assert_eq!(fabric.new_ends(&mut serial, 0, 100).map(|ends| ends.len()), Some(ENDS_MAX));
        serial = SERIALS - 2;
        assert!(fabric.new_ends(&mut serial, 0, 1).is_some());
        assert_eq!(fabric.new_ends(&mut serial, 0, 1), None);
        assert!(fabric.new_ends(&mut serial, SERIALS, 2).is_some(), "a new session may begin again");
    }

    #[test]
    fn a_port_that_has_failed_gets_no_paths() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7442));
        let ends = vec![(3, address), (4, address), (5, address)];
        let kind = PacketKind::Udp;
        let mut fabric =
            PacketFabric { kind, rank: 0, ends, datagram_max_bytes: 1472, next_end: 0, failed: 0b010 };
        assert_eq!(fabric.count(), 2);
        let ends = fabric.new_ends(&mut 0, 0, 4).expect("numbers");
        let workers: Vec<_> = ends.iter().map(|(worker, end)| (*worker, end.number & 0xff)).collect();
        assert_eq!(workers, [(3, 0), (5, 2), (3, 0), (5, 2)]);
        fabric.failed = 0b111;
        assert_eq!((fabric.count(), fabric.new_ends(&mut 0, 0, 1)), (0, None));
    }
}
