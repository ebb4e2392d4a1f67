//! Which fabric carries what is read from a peer: offers of paths, their proof, and falling back to streams.
//!
//! A peer is offered the fabrics that come before TCP here; it accepts the best that it has, and both probe the paths. Proven ones carry
//! all reads until one of them ends; then all reads go over streams again and, after a pause that grows with every failure, the fabric is
//! offered anew. Nothing that a peer says makes more than one set of paths for each fabric.

use velo_config::Fabric;
use velo_fabric::tcp::READS_PER_PATH;
use velo_fabric::{PathError, PathId, rdma};
use velo_object::NodeId;

use super::core::Engine;
use super::packets::{agree, new_path, protections};
use super::pairs::{MadePair, Making, discard};
use super::peers::{Offered, OfferedEnds, PathPlace, PathSet, Peer, PeerPath};
use crate::carrier::AnyPath;
use crate::metrics::FallBack;
use crate::session::PeerMessage;
use crate::session::paths::{
    AcceptedFabric, AcceptedPackets, OfferedFabric, OfferedPackets, PacketKind, PathAccept, PathEnd,
    PathMessage, PathOffer, PathProtection, PathRefusal,
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

impl Engine {
    /// Offers a peer the fabrics that are better than what carries its reads now.
    pub(super) fn offer_paths(&mut self, now: u64, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let fabrics = &peer.fabrics;
        if fabrics.session.is_none() || fabrics.offered.is_some() || fabrics.making.is_some() {
            return;
        }
        // Where there are to be queue pairs they are made first.
        if !self.prepare_pairs(now, node) {
            self.offer(now, node, Vec::new());
        }
    }

    /// Makes the offer, with these queue pairs if there are any.
    pub(super) fn offer(&mut self, now: u64, node: NodeId, pairs: Vec<MadePair>) {
        let Some(peer) = self.peers.get_mut(&node) else { return self.discard(pairs) };
        let Some(session) = &peer.fabrics.session else { return self.discard(pairs) };
        let best = peer.fabrics.best_rank(self.tcp_rank);
        let mut fabrics = Vec::new();
        for fabric in &mut self.packets {
            let may = peer.fabrics.may_try(now, fabric.kind.fabric());
            let (due, count) = (may && fabric.rank < best && fabric.reaches(session), fabric.count());
            if !due || count == 0 || self.packet_paths + count > self.packet_paths_max {
                continue;
            }
            let Some(ends) = fabric.new_ends(&mut self.path_serial, session.first_serial, count) else {
                continue;
            };
            let offered = OfferedFabric::Packets(OfferedPackets {
                kind: fabric.kind,
                datagram_max_bytes: fabric.datagram_max_bytes,
                protections: protections(session.keying.trusted),
                ends: ends.iter().map(|(_, end)| *end).collect(),
            });
            fabrics.push((fabric.rank, offered, OfferedEnds::Packets(ends)));
        }
        // Pairs were made to be offered, perhaps in the place of some that carry.
        let rdma =
            self.rdma.as_ref().map(|rdma| rdma.rank).filter(|rank| *rank <= best && *rank < self.tcp_rank);
        match rdma {
            Some(rank) if !pairs.is_empty() => {
                let offered = OfferedFabric::Rdma(pairs.iter().map(MadePair::offered).collect());
                fabrics.push((rank, offered, OfferedEnds::Pairs(pairs)));
            }
            _ => discard(&self.pair_tasks, &mut self.rdma, pairs),
        }
        if fabrics.is_empty() {
            return;
        }
        fabrics.sort_by_key(|(rank, ..)| *rank);
        self.next_offer = self.next_offer.wrapping_add(1);
        let number = self.next_offer;
        let mut offer = PathOffer { offer: number, fabrics: Vec::new() };
        let mut offered = Offered { number, at: now, fabrics: Vec::new() };
        for (_, fabric, ends) in fabrics {
            offered.fabrics.push((fabric.fabric(), ends));
            offer.fabrics.push(fabric);
        }
        peer.fabrics.offered = Some(offered);
        peer.fabrics.begin(now);
        self.sessions.send(node, PeerMessage::Paths(PathMessage::Offer(offer)));
    }

    pub(super) fn paths_said(&mut self, now: u64, node: NodeId, message: PathMessage) {
        match message {
            PathMessage::Offer(offer) => match self.may_take_offer(now, node) {
                Ok(()) => self.take_offer(now, node, offer, None),
                Err(why) => self.refuse(node, offer.offer, why),
            },
            PathMessage::Accept(accept) => self.offer_accepted(now, node, accept),
            PathMessage::Refuse { offer, why } => self.offer_refused(now, node, offer, why),
        }
    }

    fn refuse(&self, node: NodeId, offer: u32, why: PathRefusal) {
        self.sessions.send(node, PeerMessage::Paths(PathMessage::Refuse { offer, why }));
    }

    /// Whether an offer of a peer's is to be looked at now. Ours gives way to it.
    fn may_take_offer(&mut self, now: u64, node: NodeId) -> Result<(), PathRefusal> {
        let fabrics = &mut self.peer(node).fabrics;
        let Some(session) = &fabrics.session else { return Err(PathRefusal::NoneInCommon) };
        if fabrics.offered.is_some() && session.dialled {
            return Err(PathRefusal::Crossed);
        }
        let too_soon = fabrics.offer_taken_at.is_some_and(|at| now < at + OFFERS_US);
        if too_soon || !matches!(fabrics.making, None | Some(Making::Offer)) {
            return Err(PathRefusal::TooSoon);
        }
        fabrics.making = None;
        fabrics.offer_taken_at = Some(now);
        fabrics.begin(now);
        let ours = fabrics.offered.take();
        self.forget_offer(ours);
        Ok(())
    }

    /// Accepts the best of what a peer offers, or says why nothing; RDMA not where `unpaired` says why no queue pair was made for it.
    pub(super) fn take_offer(
        &mut self,
        now: u64,
        node: NodeId,
        offer: PathOffer,
        unpaired: Option<PathRefusal>,
    ) {
        let mut refusal = unpaired.unwrap_or(PathRefusal::NoneInCommon);
        let Some(session) = self.peer(node).fabrics.session.clone() else { return };
        let own = protections(session.keying.trusted);
        for theirs in &offer.fabrics {
            match theirs {
                OfferedFabric::Packets(theirs) => {
                    let Some(at) = self.packets.iter().position(|own| own.takes(theirs, &session)) else {
                        continue;
                    };
                    let Some(protection) = agree(&own, &theirs.protections) else { continue };
                    return self.accept_packets(now, node, offer.offer, (at, protection), theirs);
                }
                OfferedFabric::Rdma(theirs) => {
                    if unpaired.is_none() && self.answer_pairs(node, theirs.len(), &offer) {
                        return;
                    }
                    if unpaired.is_none() && self.rdma.is_some() {
                        refusal = PathRefusal::Full;
                    }
                }
            }
        }
        self.refuse(node, offer.offer, refusal);
    }

    fn accept_packets(
        &mut self,
        now: u64,
        node: NodeId,
        offer: u32,
        (at, protection): (usize, PathProtection),
        theirs: &OfferedPackets,
    ) {
        if self.packet_paths + theirs.ends.len() > self.packet_paths_max {
            return self.refuse(node, offer, PathRefusal::Full);
        }
        let since = self.peer(node).fabrics.session.as_ref().map_or(0, |session| session.first_serial);
        let fabric = &mut self.packets[at];
        let Some(ends) = fabric.new_ends(&mut self.path_serial, since, theirs.ends.len()) else {
            return self.refuse(node, offer, PathRefusal::Full);
        };
        let accepted = AcceptedFabric::Packets(AcceptedPackets {
            kind: theirs.kind,
            datagram_max_bytes: fabric.datagram_max_bytes,
            protection,
            ends: ends.iter().map(|(_, end)| *end).collect(),
        });
        let pairs = ends.into_iter().zip(theirs.ends.iter().copied()).collect();
        self.add_packets(now, node, (theirs.kind, protection, theirs.datagram_max_bytes), pairs);
        let accept = PathAccept { offer, fabric: accepted };
        self.sessions.send(node, PeerMessage::Paths(PathMessage::Accept(accept)));
    }

    fn offer_accepted(&mut self, now: u64, node: NodeId, accept: PathAccept) {
        let fabrics = &mut self.peer(node).fabrics;
        let Some(mut offered) = fabrics.offered.take_if(|offered| offered.number == accept.offer) else {
            return;
        };
        let trusted = fabrics.session.as_ref().is_some_and(|session| session.keying.trusted);
        let fabric = accept.fabric.fabric();
        let Some(at) = offered.fabrics.iter().position(|(offered, _)| *offered == fabric) else {
            return self.forget_offer(Some(offered));
        };
        // It has none of those that came before; or, of devices for RDMA, none that can do it just now.
        for (fabric, _) in &offered.fabrics[..at] {
            if *fabric == Fabric::Rdma { fabrics.failed(now, *fabric) } else { fabrics.never(*fabric) }
        }
        let (_, ends) = offered.fabrics.swap_remove(at);
        self.forget_offer(Some(offered));
        let accepted = match (ends, accept.fabric) {
            (OfferedEnds::Packets(ends), AcceptedFabric::Packets(packets))
                if packets.ends.len() <= ends.len() && protections(trusted).contains(&packets.protection) =>
            {
                let pairs = ends.into_iter().zip(packets.ends).collect();
                let what = (packets.kind, packets.protection, packets.datagram_max_bytes);
                self.add_packets(now, node, what, pairs);
                true
            }
            (OfferedEnds::Pairs(pairs), AcceptedFabric::Rdma(accepted)) => {
                self.connect_pairs(node, pairs, accepted)
            }
            _ => false,
        };
        if !accepted {
            let why = "it accepted what was not offered";
            self.attempt_failed(now, node, fabric, FallBack::Protocol, why);
        }
    }

    fn offer_refused(&mut self, now: u64, node: NodeId, number: u32, why: PathRefusal) {
        let fabrics = &mut self.peer(node).fabrics;
        let Some(offered) = fabrics.offered.take_if(|offered| offered.number == number) else { return };
        for (fabric, _) in &offered.fabrics {
            match why {
                // The other offer is on its way.
                PathRefusal::Crossed => {}
                // Which ports reach each other changes with their links and addresses.
                PathRefusal::NoneInCommon if *fabric == Fabric::Rdma => fabrics.rest_long(now, *fabric),
                PathRefusal::NoneInCommon => fabrics.never(*fabric),
                PathRefusal::TooSoon | PathRefusal::Full => fabrics.failed(now, *fabric),
            }
        }
        self.forget_offer(Some(offered));
        if why != PathRefusal::Crossed {
            tracing::debug!(peer = node.short(), ?why, "no paths besides streams");
            self.carry_on(now, node);
        }
    }

    /// Makes the paths of a packet fabric, in the place of those that there were.
    fn add_packets(
        &mut self,
        now: u64,
        node: NodeId,
        (kind, protection, datagram_max_bytes): (PacketKind, PathProtection, u32),
        ends: Vec<((usize, PathEnd), PathEnd)>,
    ) {
        let Some(session) = self.peer(node).fabrics.session.clone() else { return };
        let paths = ends.into_iter().map(|((worker, own), theirs)| {
            let session = session.clone();
            let made = move |id| {
                let what = (kind, protection, datagram_max_bytes);
                AnyPath::Packet(Box::new(new_path(id, node, &session, what, (own, theirs))))
            };
            (worker, made)
        });
        self.add_set(now, node, kind.fabric(), paths.collect());
    }

    /// Gives the paths of one fabric to their workers, in the place of those that there were. Queue pairs that carry do so until the new
    /// ones are proven.
    pub(super) fn add_set(
        &mut self,
        now: u64,
        node: NodeId,
        fabric: Fabric,
        paths: Vec<(usize, impl FnOnce(PathId) -> AnyPath)>,
    ) {
        self.end_sets_where(node, |set| set.fabric == fabric && !(set.proven && fabric == Fabric::Rdma));
        let own = self.packets.iter().map(|own| (own.kind.fabric(), own.rank));
        let rdma = self.rdma.iter().map(|rdma| (Fabric::Rdma, rdma.rank));
        let Some((_, rank)) = own.chain(rdma).find(|(own, _)| *own == fabric) else { return };
        let counters = self.peer(node).counters.clone();
        let mut set = PathSet { fabric, rank, paths: Vec::new(), since: now, proven: false };
        let most = if fabric == Fabric::Rdma { rdma::limits::READS_PER_PATH } else { READS_PER_PATH };
        let workers: Vec<_> = paths.iter().map(|(worker, _)| *worker).collect();
        self.peer(node).fabrics.found(&workers);
        for (worker, make) in paths {
            let id = self.next_path;
            self.next_path += 1;
            self.paths.insert(id, PathPlace { worker, node, fabric });
            self.packet_paths += 1;
            set.paths.push(id);
            let path = PeerPath { id, reads: 0, most: most as u32, rank, usable: false, since: now };
            self.peer(node).paths.push(path);
            self.workers[worker].send(Command::AddPath(make(id), counters.clone()));
        }
        self.peer(node).fabrics.sets.push(set);
    }

    /// What was offered will not be used.
    fn forget_offer(&mut self, offered: Option<Offered>) {
        for (_, ends) in offered.into_iter().flat_map(|offered| offered.fabrics) {
            if let OfferedEnds::Pairs(pairs) = ends {
                self.discard(pairs);
            }
        }
    }

    /// Something has come through on a path in both directions.
    pub(super) fn path_proven(&mut self, now: u64, id: PathId) {
        let Some(PathPlace { node, fabric, .. }) = self.paths.get(&id).copied() else { return };
        let peer = self.peer(node);
        let Some(set) = peer.fabrics.sets.iter_mut().find(|set| set.paths.contains(&id)) else { return };
        let first = !std::mem::replace(&mut set.proven, true);
        if first {
            set.since = now;
            peer.fabrics.began = None;
            self.end_sets_where(node, |set| set.fabric == fabric && !set.paths.contains(&id));
        }
        let peer = self.peer(node);
        if let Some(path) = peer.paths.iter_mut().find(|path| path.id == id) {
            path.usable = true;
        }
        if !peer.queue.is_empty() {
            self.queued_peers.insert(node);
        }
        if first {
            tracing::info!(peer = node.short(), %fabric, "it carries what is read from there");
            self.tell_fabric(node);
        }
    }

    /// A path that is no stream is gone: where nobody here ended it, its whole set ends and streams take over.
    pub(super) fn set_path_closed(
        &mut self,
        now: u64,
        id: PathId,
        PathPlace { worker, node, fabric }: PathPlace,
        error: &PathError,
    ) {
        self.packet_paths -= 1;
        if fabric == Fabric::Rdma {
            self.pair_closed(worker);
        }
        if let PathError::Port(error) = error {
            self.port_failed(worker, fabric, &error.to_string());
        }
        let peer = self.peer(node);
        let Some(set) = peer.fabrics.sets.iter().find(|set| set.paths.contains(&id)) else { return };
        // Each queue pair has a device of its own: the others may be as good as ever.
        let others = peer.paths.iter().any(|path| path.usable && set.paths.contains(&path.id));
        let mut of_fabric = peer.fabrics.sets.iter().filter(|set| set.fabric == fabric);
        let beside = of_fabric.clone().count() > 1;
        if beside && of_fabric.next_back().is_some_and(|newest| !newest.paths.contains(&id)) {
            // Others are about to take its place: the peer knows already that they carry.
            peer.fabrics.sets.iter_mut().for_each(|set| set.paths.retain(|path| *path != id));
            peer.fabrics.sets.retain(|set| !set.paths.is_empty());
            return self.carry_on(now, node);
        }
        if fabric == Fabric::Rdma && (others || beside) {
            return self.lose_path(now, node, (id, worker), FallBack::of(error), &error.to_string());
        }
        self.fabric_failed(now, node, fabric, FallBack::of(error), &error.to_string());
    }

    /// An offer came to nothing: the fabric does not carry to a peer, unless it was for more than what carries already.
    pub(super) fn attempt_failed(
        &mut self,
        now: u64,
        node: NodeId,
        fabric: Fabric,
        why: FallBack,
        detail: &str,
    ) {
        if self.peer(node).fabrics.sets.iter().any(|set| set.fabric == fabric && set.proven) {
            tracing::info!(peer = node.short(), %fabric, reason = why.name(), detail, "what was lost is not back");
            return self.shared.metrics.path_lost(fabric, why);
        }
        self.fabric_failed(now, node, fabric, why, detail);
    }

    /// A fabric does not carry to a peer.
    pub(super) fn fabric_failed(
        &mut self,
        now: u64,
        node: NodeId,
        fabric: Fabric,
        why: FallBack,
        detail: &str,
    ) {
        self.peer(node).fabrics.forgive(now, fabric);
        self.end_set(node, fabric);
        self.peer(node).fabrics.failed(now, fabric);
        if fabric == Fabric::Rdma {
            // All its ports are offered next.
            self.peer(node).fabrics.none_is_lost();
        }
        self.tell_fabric(node);
        self.shared.metrics.fell_back(fabric, why);
        tracing::info!(peer = node.short(), %fabric, reason = why.name(), detail, "it carries nothing any more");
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
    pub(super) fn carry_on(&mut self, now: u64, node: NodeId) {
        let peer = self.peer(node);
        peer.fabrics.began = None;
        if peer.up && (!peer.queue.is_empty() || peer.paths.iter().any(|path| path.reads > 0)) {
            if !peer.has_path() {
                peer.streams_asked_at = None;
            }
            self.open_streams(now, node);
        }
    }

    /// Closes the paths of one fabric.
    fn end_set(&mut self, node: NodeId, fabric: Fabric) {
        self.end_sets_where(node, |set| set.fabric == fabric);
    }

    fn end_sets_where(&mut self, node: NodeId, which: impl Fn(&PathSet) -> bool) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        for set in peer.fabrics.sets.extract_if(.., |set| which(set)) {
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

    /// Closes all paths to a peer that are no streams: their session is over.
    pub(super) fn end_sets(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let offered = peer.fabrics.offered.take();
        let fabrics: Vec<_> = peer.fabrics.sets.iter().map(|set| set.fabric).collect();
        self.forget_offer(offered);
        fabrics.into_iter().for_each(|fabric| self.end_set(node, fabric));
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.fabrics.session_ended();
        }
        self.tell_fabric(node);
    }

    /// Looks after offers without an answer, paths without a proof, and what may be tried again.
    pub(super) fn look_after_fabrics(&mut self, now: u64) {
        self.look_after_ports(now);
        if self.packets.is_empty() && self.rdma.is_none() {
            return;
        }
        let nodes: Vec<_> =
            self.peers.iter().filter(|(_, peer)| peer.up && busy(peer)).map(|(node, _)| *node).collect();
        for node in nodes {
            let fabrics = &mut self.peer(node).fabrics;
            if let Some(offered) = fabrics.offered.take_if(|offered| now >= offered.at + ANSWER_US) {
                let unanswered: Vec<_> = offered.fabrics.iter().map(|(fabric, _)| *fabric).collect();
                self.forget_offer(Some(offered));
                for fabric in unanswered {
                    let detail = "the offer was not answered";
                    self.attempt_failed(now, node, fabric, FallBack::Unanswered, detail);
                }
            }
            self.end_unproven(now, node);
            self.end_worse(node);
            let peer = self.peer(node);
            if !peer.queue.is_empty() || peer.paths.iter().any(|path| path.reads > 0) {
                self.offer_paths(now, node);
            }
        }
    }

    /// Closes paths over which nothing has come back in time: all of a fabric, or those beside others that carry.
    fn end_unproven(&mut self, now: u64, node: NodeId) {
        const WHY: &str = "nothing has come back in time";
        let peer = self.peer(node);
        let carries = |fabric| peer.fabrics.sets.iter().any(|set| set.fabric == fabric && set.proven);
        let (mut fabrics, mut paths) = (Vec::new(), Vec::new());
        for set in &peer.fabrics.sets {
            if !carries(set.fabric) && now >= set.since + PROVE_US {
                fabrics.push(set.fabric);
            }
            let late = |path: &&PeerPath| !path.usable && now >= path.since + PROVE_US;
            if carries(set.fabric) && set.fabric == Fabric::Rdma {
                let of_set = peer.paths.iter().filter(|path| set.paths.contains(&path.id));
                paths.extend(of_set.filter(late).map(|path| path.id));
            }
        }
        for fabric in fabrics {
            self.fabric_failed(now, node, fabric, FallBack::Unproven, WHY);
        }
        for id in paths {
            let Some(worker) = self.paths.get(&id).map(|place| place.worker) else { continue };
            self.lose_path(now, node, (id, worker), FallBack::Unproven, WHY);
        }
    }

    /// Closes paths that nothing is read over because a better fabric carries it.
    fn end_worse(&mut self, node: NodeId) {
        let peer = self.peer(node);
        let proven = |set: &&PathSet| set.proven;
        let Some(best) = peer.fabrics.sets.iter().filter(proven).map(|set| set.rank).min() else { return };
        let idle = |set: &PathSet| {
            peer.paths.iter().filter(|path| set.paths.contains(&path.id)).all(|path| path.reads == 0)
        };
        let worse: Vec<_> = peer
            .fabrics
            .sets
            .iter()
            .filter(|set| set.rank > best && idle(set))
            .map(|set| set.fabric)
            .collect();
        worse.into_iter().for_each(|fabric| self.end_set(node, fabric));
    }

    /// Says for the status which fabric carries what is read from a peer.
    fn tell_fabric(&mut self, node: NodeId) {
        let tcp = self.tcp_rank;
        let Some(peer) = self.peers.get(&node) else { return };
        let best =
            peer.fabrics.sets.iter().filter(|set| set.proven && set.rank < tcp).min_by_key(|set| set.rank);
        peer.counters.set_fabric(best.map_or(Fabric::Tcp, |set| set.fabric));
    }
}

/// Whether there is anything besides streams to look after.
fn busy(peer: &Peer) -> bool {
    peer.fabrics.offered.is_some()
        || !peer.fabrics.sets.is_empty()
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
    fn pauses_grow_to_a_bound() {
        assert_eq!(retry_at(0, 1), RETRY_US);
        assert_eq!(retry_at(0, 2), 2 * RETRY_US);
        assert_eq!(retry_at(5, u32::MAX), 5 + RETRY_MAX_US);
    }
}
