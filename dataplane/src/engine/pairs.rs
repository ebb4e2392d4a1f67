//! RDMA as the engine sees it: ports of devices with their workers, and queue pairs on their way to become paths.
//!
//! A device takes its time to make, connect and destroy a queue pair, so tasks do it and the engine goes on meanwhile. One pair is made
//! for each port that reaches the peer: pieces go over the path with the fewest reads outstanding, so a slower one gets fewer.

use std::fmt;
use std::sync::Arc;

use velo_config::Fabric;
use velo_fabric::PathId;
use velo_fabric::rdma::device::{Address, Device, Prepared, Queue, RdmaError, addresses_of, reaching};
use velo_fabric::rdma::table::End;
use velo_object::NodeId;

use super::core::Engine;
use super::peers::PathSet;
use super::ports::{PortParts, RdmaPort};
use super::task::{Task, TaskQueue};
use crate::carrier::{AnyPath, RdmaPath};
use crate::metrics::FallBack;
use crate::session::PeerMessage;
use crate::session::paths::{
    ADDRESSES_MAX, AcceptedFabric, AcceptedPair, ENDS_MAX, Gid, OfferedFabric, OfferedPair, PairEnd,
    PathAccept, PathMessage, PathOffer, PathRefusal,
};
use crate::worker::Command;

/// The ports of RDMA devices that this node uses.
pub(super) struct RdmaFabric {
    /// Its place in the order of preference: lower is better.
    pub(super) rank: u8,
    pub(super) ports: Vec<RdmaPort>,
    /// What their workers are made with.
    pub(super) parts: Arc<PortParts>,
}

/// Room for a queue pair at one of the ports.
pub(super) struct Place {
    port: usize,
    device: Device,
    queue: Arc<Queue>,
}

/// A queue pair that is not a path yet. It is to be given away or [discarded](Engine::discard): dropping it may block.
pub(super) struct MadePair {
    port: usize,
    prepared: Prepared,
    /// Those of its port, best first.
    addresses: Vec<Gid>,
}

/// What queue pairs are being made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Making {
    /// An offer of ours.
    Offer,
    /// The answer to one of the peer's.
    Answer,
    /// They are offered, accepted, and being connected.
    Connection,
}

/// For which session something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct For {
    node: NodeId,
    session: u64,
}

/// What a task does with queue pairs.
pub(super) enum PairTask {
    /// Makes them, to be offered.
    Prepare { of: For, places: Vec<Place> },
    /// Makes and connects them with those that were offered.
    Answer { of: For, places: Vec<Place>, offer: PathOffer },
    /// Connects them with those that the peer has made.
    Connect { of: For, pairs: Vec<(MadePair, AcceptedPair)> },
    /// Destroys them.
    Destroy(Vec<MadePair>),
    /// Lets go of a device, the last time perhaps.
    Close(Device, Arc<Queue>),
}

/// What came of it.
pub(crate) struct PairsDone {
    of: For,
    what: Made,
    pairs: Vec<MadePair>,
    /// The ports where no pair came of the room for it.
    left: Vec<usize>,
    /// Why, for one of them.
    fault: Option<Fault>,
}

/// Why no queue pair was made.
#[derive(Debug)]
enum Fault {
    /// No address here reaches one of the peer's: nor will it.
    Unreachable(String),
    /// A device did not do something, this time.
    Device(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) | Self::Device(why) => f.write_str(why),
        }
    }
}

impl From<RdmaError> for Fault {
    fn from(error: RdmaError) -> Self {
        Self::Device(error.to_string())
    }
}

enum Made {
    Offer,
    Answer { offer: PathOffer, accepted: Vec<AcceptedPair> },
    Connection,
}

impl fmt::Debug for MadePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MadePair").field("port", &self.port).finish_non_exhaustive()
    }
}

impl fmt::Debug for PairTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairTask").finish_non_exhaustive()
    }
}

impl fmt::Debug for PairsDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PairsDone").field("of", &self.of).field("fault", &self.fault).finish_non_exhaustive()
    }
}

impl MadePair {
    /// What a peer is told of it.
    pub(super) fn offered(&self) -> OfferedPair {
        OfferedPair { end: told(&self.prepared), addresses: self.addresses.clone() }
    }
}

/// What a peer must know of a queue pair, besides its address.
fn told(prepared: &Prepared) -> PairEnd {
    let end = prepared.end();
    PairEnd {
        number: end.number,
        sequence: end.sequence,
        mtu: end.mtu as u8,
        lid: end.lid as u16,
        reads_in: end.reads_in.clamp(1, u8::MAX.into()) as u8,
    }
}

/// The same, as a device takes it.
fn end_at(end: &PairEnd, gid: Gid) -> End {
    End {
        number: end.number,
        sequence: end.sequence,
        mtu: end.mtu.into(),
        lid: end.lid.into(),
        reads_in: end.reads_in.into(),
        gid,
    }
}

/// The addresses that a port has now.
fn addresses_now(device: &Device) -> Vec<Address> {
    let mut own = addresses_of(device.place());
    own.truncate(ADDRESSES_MAX);
    own
}

impl Place {
    fn make(&self, own: &[Address]) -> Result<MadePair, Fault> {
        let mut sequence = [0; 4];
        getrandom::fill(&mut sequence).map_err(|error| Fault::Device(error.to_string()))?;
        let sequence = u32::from_le_bytes(sequence) >> 8;
        let prepared = self.device.prepare(&self.queue, sequence)?;
        let addresses = own.iter().map(|address| address.gid).collect();
        Ok(MadePair { port: self.port, prepared, addresses })
    }

    /// Makes a pair and connects it with one that was offered.
    fn answer(
        &self,
        own: &[Address],
        of: usize,
        theirs: &OfferedPair,
    ) -> Result<(MadePair, AcceptedPair), Fault> {
        let (from, to) = reaching(own, &theirs.addresses).ok_or_else(|| {
            let why = format!("no address of {} reaches one of the peer's devices", self.device.place());
            Fault::Unreachable(why)
        })?;
        let made = self.make(own)?;
        made.prepared.connect(from.gid_index, &end_at(&theirs.end, to))?;
        let accepted = AcceptedPair { of: of as u8, to, end: told(&made.prepared), from: from.gid };
        Ok((made, accepted))
    }
}

/// Connects a pair that was offered.
fn connect(pair: &MadePair, device: &Device, accepted: &AcceptedPair) -> Result<(), Fault> {
    let own = addresses_now(device);
    let from = own.iter().find(|address| address.gid == accepted.to);
    let gone = || Fault::Device(format!("{} does not have the address any more", device.place()));
    let from = from.ok_or_else(gone)?;
    let theirs = end_at(&accepted.end, accepted.from);
    Ok(pair.prepared.connect(from.gid_index, &theirs)?)
}

/// Does a task; on a thread that may block.
pub(super) fn perform(task: PairTask) -> Option<PairsDone> {
    let (mut pairs, mut left, mut fault) = (Vec::new(), Vec::new(), None);
    match task {
        PairTask::Prepare { of, places } => {
            for place in places {
                match place.make(&addresses_now(&place.device)) {
                    Ok(made) if !made.addresses.is_empty() => pairs.push(made),
                    Ok(_) => {
                        left.push(place.port);
                        fault = Some(Fault::Device(format!("{} has no address", place.device.place())));
                    }
                    Err(why) => {
                        left.push(place.port);
                        fault = Some(why);
                    }
                }
            }
            Some(PairsDone { of, what: Made::Offer, pairs, left, fault })
        }
        PairTask::Answer { of, places, offer } => {
            let mut accepted = Vec::new();
            let own = |place: Place| (addresses_now(&place.device), place);
            let mut places: Vec<_> = places.into_iter().map(own).collect();
            let theirs = offer.fabrics.iter().find_map(|fabric| match fabric {
                OfferedFabric::Rdma(pairs) => Some(pairs),
                OfferedFabric::Packets(_) => None,
            });
            for (at, theirs) in theirs.into_iter().flatten().enumerate() {
                let answered = places.iter().enumerate().find_map(|(index, (own, place))| {
                    // That a device failed is worth more than that another does not lead there.
                    let answer = place.answer(own, at, theirs).map_err(|why| {
                        if !matches!(fault, Some(Fault::Device(_))) {
                            fault = Some(why);
                        }
                    });
                    answer.ok().map(|answer| (index, answer))
                });
                if let Some((index, (made, pair))) = answered {
                    places.swap_remove(index);
                    pairs.push(made);
                    accepted.push(pair);
                }
            }
            left.extend(places.iter().map(|(_, place)| place.port));
            Some(PairsDone { of, what: Made::Answer { offer, accepted }, pairs, left, fault })
        }
        PairTask::Connect { of, pairs: offered } => {
            for (made, accepted) in offered {
                match connect(&made, made.prepared.device(), &accepted) {
                    Ok(()) => pairs.push(made),
                    Err(why) => {
                        left.push(made.port);
                        fault = Some(why);
                    }
                }
            }
            Some(PairsDone { of, what: Made::Connection, pairs, left, fault })
        }
        PairTask::Destroy(pairs) => {
            drop(pairs);
            None
        }
        PairTask::Close(device, queue) => {
            drop((queue, device));
            None
        }
    }
}

impl RdmaFabric {
    /// Takes room for up to `count` queue pairs, at most one for each port.
    fn take_places(&mut self, count: usize) -> Vec<Place> {
        let free = self.ports.iter_mut().enumerate().filter(|(_, port)| port.pairs < port.pairs_max);
        let places = free.filter_map(|(at, port)| {
            let (device, queue) = port.opened.clone()?;
            port.pairs += 1;
            Some(Place { port: at, device, queue })
        });
        places.take(count.min(ENDS_MAX)).collect()
    }

    fn leave(&mut self, port: usize) {
        self.ports[port].pairs = self.ports[port].pairs.saturating_sub(1);
    }
}

/// Has pairs destroyed that will not be paths.
pub(super) fn discard(tasks: &TaskQueue, rdma: &mut Option<RdmaFabric>, pairs: Vec<MadePair>) {
    if let Some(rdma) = rdma {
        pairs.iter().for_each(|pair| rdma.leave(pair.port));
    }
    if !pairs.is_empty() {
        tasks.push(Task::Pairs(PairTask::Destroy(pairs)));
    }
}

impl Engine {
    /// Has pairs destroyed that will not be paths.
    pub(super) fn discard(&mut self, pairs: Vec<MadePair>) {
        discard(&self.pair_tasks, &mut self.rdma, pairs);
    }

    /// The queue pair of a path is gone.
    pub(super) fn pair_closed(&mut self, worker: usize) {
        let port = self.rdma.iter_mut().flat_map(|rdma| &mut rdma.ports).find(|port| port.worker == worker);
        if let Some(port) = port {
            port.pairs = port.pairs.saturating_sub(1);
        }
    }

    fn session_of(&self, node: NodeId) -> Option<For> {
        let session = self.peers.get(&node)?.fabrics.session.as_ref()?;
        Some(For { node, session: session.number })
    }

    /// Has queue pairs made where RDMA is to be offered to a peer, which is when they are. False where it is not to be.
    pub(super) fn prepare_pairs(&mut self, now: u64, node: NodeId) -> bool {
        let Some(of) = self.session_of(node) else { return false };
        let (Some(peer), Some(rdma)) = (self.peers.get_mut(&node), &mut self.rdma) else { return false };
        // What has failed alone is offered again together with the others, when its device can do it.
        let lacks = peer.fabrics.lacks(now, |worker| {
            rdma.ports.iter().any(|port| port.worker == worker && port.opened.is_some())
        });
        if !(lacks || rdma.rank < peer.fabrics.best_rank(self.tcp_rank))
            || !peer.fabrics.may_try(now, Fabric::Rdma)
            || self.packet_paths >= self.packet_paths_max
        {
            return false;
        }
        let places = rdma.take_places(self.packet_paths_max - self.packet_paths);
        if places.is_empty() {
            return false;
        }
        if lacks {
            peer.fabrics.tried_again(now);
        }
        peer.fabrics.making = Some(Making::Offer);
        peer.fabrics.begin(now);
        self.pair_tasks.push(Task::Pairs(PairTask::Prepare { of, places }));
        true
    }

    /// Has queue pairs made and connected with those of an offer. False where there is nothing to make them with.
    pub(super) fn answer_pairs(&mut self, node: NodeId, count: usize, offer: &PathOffer) -> bool {
        let Some(of) = self.session_of(node) else { return false };
        let (Some(peer), Some(rdma)) = (self.peers.get_mut(&node), &mut self.rdma) else { return false };
        // Whichever of our ports reach the peer's is found out there.
        let room = self.packet_paths_max.saturating_sub(self.packet_paths);
        let places = if count == 0 { Vec::new() } else { rdma.take_places(room) };
        if places.is_empty() {
            return false;
        }
        peer.fabrics.making = Some(Making::Answer);
        self.pair_tasks.push(Task::Pairs(PairTask::Answer { of, places, offer: offer.clone() }));
        true
    }

    /// Has those pairs connected that the peer has accepted. False where it accepted what was not offered.
    pub(super) fn connect_pairs(
        &mut self,
        node: NodeId,
        pairs: Vec<MadePair>,
        accepted: Vec<AcceptedPair>,
    ) -> bool {
        let mut pairs: Vec<_> = pairs.into_iter().map(Some).collect();
        let mut connected = Vec::new();
        for accepted in accepted {
            let pair = pairs.get_mut(usize::from(accepted.of));
            if let Some(pair) =
                pair.and_then(|pair| pair.take_if(|pair| pair.addresses.contains(&accepted.to)))
            {
                connected.push((pair, accepted));
            }
        }
        self.discard(pairs.into_iter().flatten().collect());
        let (Some(of), Some(peer)) = (self.session_of(node), self.peers.get_mut(&node)) else {
            self.discard(connected.into_iter().map(|(pair, _)| pair).collect());
            return true;
        };
        if connected.is_empty() {
            return false;
        }
        peer.fabrics.making = Some(Making::Connection);
        self.pair_tasks.push(Task::Pairs(PairTask::Connect { of, pairs: connected }));
        true
    }

    /// A task has done what it could.
    pub(super) fn pairs_done(&mut self, now: u64, done: PairsDone) {
        let PairsDone { of, what, pairs, left, fault } = done;
        let node = of.node;
        if let Some(rdma) = &mut self.rdma {
            left.into_iter().for_each(|port| rdma.leave(port));
        }
        let making = match &what {
            Made::Offer => Making::Offer,
            Made::Answer { .. } => Making::Answer,
            Made::Connection => Making::Connection,
        };
        let current = self.session_of(node) == Some(of);
        let wanted = |making_now: &mut Making| current && *making_now == making;
        let peer = self.peers.get_mut(&node);
        if peer.and_then(|peer| peer.fabrics.making.take_if(wanted)).is_none() {
            return self.discard(pairs);
        }
        if let Some(why) = &fault {
            tracing::info!(peer = node.short(), %why, "a queue pair was not made");
        }
        let refusal = match &fault {
            Some(Fault::Device(_)) => PathRefusal::Full,
            _ => PathRefusal::NoneInCommon,
        };
        let fault = fault.map(|why| why.to_string()).unwrap_or_default();
        match what {
            Made::Offer => {
                if pairs.is_empty() {
                    self.peer(node).fabrics.failed(now, Fabric::Rdma);
                    self.shared.metrics.fell_back(Fabric::Rdma, FallBack::Device);
                    self.shared.metrics.note(format!("RDMA cannot be offered to other nodes: {fault}"));
                }
                self.offer(now, node, pairs);
            }
            Made::Answer { offer, .. } if pairs.is_empty() => {
                self.take_offer(now, node, offer, Some(refusal));
            }
            Made::Answer { offer, accepted } => {
                self.add_pairs(now, node, pairs, false);
                let accept = PathAccept { offer: offer.offer, fabric: AcceptedFabric::Rdma(accepted) };
                self.sessions.send(node, PeerMessage::Paths(PathMessage::Accept(accept)));
            }
            Made::Connection if pairs.is_empty() => {
                self.attempt_failed(now, node, Fabric::Rdma, FallBack::Device, &fault);
            }
            Made::Connection => self.add_pairs(now, node, pairs, true),
        }
    }

    /// A queue pair to a peer carries nothing, and others do: they go on, and it is offered again after its rest.
    pub(super) fn lose_path(
        &mut self,
        now: u64,
        node: NodeId,
        (id, worker): (PathId, usize),
        why: FallBack,
        detail: &str,
    ) {
        let peer = self.peer(node);
        let Some(set) = peer.fabrics.sets.iter_mut().find(|set| set.paths.contains(&id)) else { return };
        set.paths.retain(|path| *path != id);
        if let Some(path) = peer.paths.iter_mut().find(|path| path.id == id) {
            path.usable = false;
        }
        peer.fabrics.sets.retain(|set| !set.paths.is_empty());
        peer.fabrics.lost(now, worker);
        let of_fabric = |set: &&PathSet| set.fabric == Fabric::Rdma;
        let left: usize = peer.fabrics.sets.iter().filter(of_fabric).map(|set| set.paths.len()).sum();
        self.workers[worker].send(Command::Close(id));
        self.shared.metrics.path_lost(Fabric::Rdma, why);
        let place = self.rdma.iter().flat_map(|rdma| &rdma.ports).find(|port| port.worker == worker);
        let place = place.map_or_else(String::new, |port| format!(" at {}", port.place));
        self.shared.metrics.note(format!(
            "rdma{place} to node {} has failed ({detail}): {left} other paths carry on without it until it works again",
            node.short(),
        ));
        self.carry_on(now, node);
    }

    /// Who connected last greets first: `begins`.
    fn add_pairs(&mut self, now: u64, node: NodeId, pairs: Vec<MadePair>, begins: bool) {
        let Some(rdma) = &self.rdma else { return };
        let paths = pairs.into_iter().map(|MadePair { port, prepared, .. }| {
            let path = move |id| AnyPath::Rdma(Box::new(RdmaPath { id, peer: node, prepared, begins }));
            (rdma.ports[port].worker, path)
        });
        let paths = paths.collect();
        self.add_set(now, node, Fabric::Rdma, paths);
    }
}
