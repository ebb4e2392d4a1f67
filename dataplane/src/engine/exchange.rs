//! Who has what: sessions coming and going, interest, have-maps, news.

use std::collections::BTreeSet;

use velo_config::Fabric;
use velo_fabric::tcp::{READS_PER_PATH, TcpPath};
use velo_object::{BlobId, NodeId, PIECE_BYTES, PieceSet, Pieces};
use velo_swarm::{Failure, Have, SourceInfo};

use super::core::Engine;
use super::peers::{PathPlace, Peer, PeerPath, SessionFacts};
use super::pulls::ASKED_UNASKED;
use super::task::{HaveMap, Task};
use super::want::Stage;
use crate::carrier::AnyPath;
use crate::metrics::add;
use crate::session::{PeerMessage, SessionEvent};
use crate::worker::Command;

/// Ids in one message: 32 bytes each, far below the limit of a message.
const IDS_PER_MESSAGE: usize = 8192;
/// Pieces in one message.
const PIECES_PER_MESSAGE: usize = 16_384;
/// Blobs that one peer may be interested in at a time; 1 MiB of ids.
const INTERESTS_MAX: usize = 32_768;
/// Streams that one peer may have open to us.
const PATHS_PER_PEER: usize = 64;
/// How long streams that were asked for may take before they are asked for again.
const STREAMS_US: u64 = 2_000_000;
/// How long the first and the longest pause between two attempts at a session are.
const REDIAL_US: u64 = 250_000;
const REDIAL_MAX_US: u64 = 10_000_000;
/// How long an attempt may take until it counts as failed.
const DIAL_US: u64 = 10_000_000;
/// How long the planner may be kept from knowing a complete holder.
const HOLD_US: u64 = 30_000;
/// Peers that are remembered without a session, at most.
const PEERS_MAX: usize = 16_384;

/// What a peer has, as long as the planner need not know.
#[derive(Debug)]
pub(super) struct HeldHave {
    node: NodeId,
    blob: BlobId,
    have: Have,
    pub(super) until: u64,
}

impl Engine {
    pub(super) fn peer(&mut self, node: NodeId) -> &mut Peer {
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&node) {
            self.peers.retain(|_, peer| peer.up || !peer.paths.is_empty() || !peer.queue.is_empty());
        }
        let metrics = &self.shared.metrics;
        self.peers.entry(node).or_insert_with(|| Peer::new(metrics.peer(&node)))
    }

    pub(super) fn session_event(&mut self, now: u64, event: SessionEvent) {
        match event {
            SessionEvent::Up { node, address, incoming, keying } => {
                self.session_up(node);
                let first_serial = self.path_serial;
                let address = address.ip().to_canonical();
                self.next_session += 1;
                let number = self.next_session;
                let facts = SessionFacts { number, keying, dialled: !incoming, address, first_serial };
                self.peer(node).fabrics.session = Some(facts);
            }
            SessionEvent::Down { node, .. } => self.session_down(now, node),
            SessionEvent::Message { node, message } => self.message(now, node, message),
            SessionEvent::Stream { node, stream } => {
                if !self.peers.get(&node).is_some_and(|peer| peer.up) {
                    // Nothing would close it: what ends a peer's streams is the end of its session.
                    tracing::debug!(peer = node.short(), "a data stream without a session is dropped");
                    return;
                }
                let rank = self.tcp_rank;
                let streams = self.peer(node).paths.iter().filter(|path| path.rank == rank).count();
                if streams >= PATHS_PER_PEER {
                    add(&self.shared.metrics.counters.peer_limit_total, 1);
                    return;
                }
                let id = self.next_path;
                self.next_path += 1;
                let worker = self.next_path as usize % self.tcp_workers;
                self.paths.insert(id, PathPlace { worker, node, fabric: Fabric::Tcp });
                let peer = self.peer(node);
                let most = READS_PER_PATH as u32;
                peer.paths.push(PeerPath { id, reads: 0, most, rank, usable: true, since: now });
                if !peer.queue.is_empty() {
                    self.queued_peers.insert(node);
                }
                let path = TcpPath { id, peer: node, stream: stream.tcp, tls: stream.tls };
                let command =
                    Command::AddPath(AnyPath::Tcp(Box::new(path)), self.peer(node).counters.clone());
                self.workers[worker].send(command);
            }
        }
    }

    fn session_up(&mut self, node: NodeId) {
        // Their keys are those of the session that was up before.
        self.end_sets(node);
        let peer = self.peer(node);
        // Where one was up, a new session took its place: the peer may have started anew and knows nothing of us.
        let interested = std::mem::take(&mut peer.interested);
        peer.session_ended();
        peer.up = true;
        peer.failures = 0;
        peer.dialled_at = None;
        interested.iter().for_each(|blob| self.not_interested(node, blob));
        let few = self.peers.values().filter(|peer| peer.up).count() <= ASKED_UNASKED;
        let of_job = |id| self.jobs.get(id).is_some_and(|job| job.sources.contains(&node));
        let asked =
            |blob: &&BlobId| few || self.wants.get(*blob).is_some_and(|want| want.jobs.iter().any(of_job));
        let blobs: Vec<_> = self.active.iter().filter(asked).copied().collect();
        blobs.into_iter().for_each(|blob| self.ask_about(node, blob));
    }

    fn session_down(&mut self, now: u64, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if !peer.up {
            peer.failures = peer.failures.saturating_add(1);
        }
        peer.dialled_at = Some(now);
        let interested = std::mem::take(&mut peer.interested);
        peer.session_ended();
        for tag in peer.queue.drain(..) {
            self.asks.remove(&tag);
        }
        for path in &peer.paths {
            if let Some(place) = self.paths.get(&path.id) {
                self.workers[place.worker].send(Command::Close(path.id));
            }
        }
        self.end_sets(node);
        self.queued_peers.remove(&node);
        self.to_tell.remove(&node);
        self.held.retain(|held| held.node != node);
        self.planner.remove_source(now, &node);
        interested.iter().for_each(|blob| self.not_interested(node, blob));
    }

    /// A peer wants to hear of a blob no more.
    fn not_interested(&mut self, node: NodeId, blob: &BlobId) {
        if let Some(nodes) = self.interested.get_mut(blob) {
            nodes.remove(&node);
            if nodes.is_empty() {
                self.interested.remove(blob);
            }
        }
    }

    /// Makes sessions with the sources of running jobs.
    pub(super) fn dial(&mut self, now: u64) {
        let jobs = self.jobs.values().filter(|job| job.goes_on());
        let nodes: BTreeSet<_> = jobs.flat_map(|job| job.sources.iter()).copied().collect();
        for node in nodes {
            let peer = self.peer(node);
            let pause = (REDIAL_US << peer.failures.min(8)).min(REDIAL_MAX_US);
            let due = match peer.dialled_at {
                None => true,
                Some(at) => now >= at + if peer.dialling { DIAL_US } else { pause },
            };
            if !peer.up && due {
                peer.dialled_at = Some(now);
                peer.dialling = true;
                self.sessions.connect(node);
            }
        }
    }

    fn message(&mut self, now: u64, node: NodeId, message: PeerMessage) {
        match message {
            PeerMessage::Interest { blobs } => self.interest(node, blobs),
            PeerMessage::Done { blobs } => {
                for blob in blobs {
                    if self.peer(node).interested.remove(&blob) {
                        self.not_interested(node, &blob);
                    }
                }
            }
            PeerMessage::Have { blob, size_bytes, have, holes } => {
                let peer = self.peer(node);
                peer.unanswered.remove(&blob);
                if !peer.told.contains(&blob) {
                    return;
                }
                if !peer.source {
                    let info = SourceInfo { distance: self.sessions.distance(&node) };
                    let source = self.planner.add_source(now, node, info);
                    self.peer(node).source = source;
                }
                if !have.is_empty() {
                    self.open_streams(now, node);
                }
                let have = Have { size_bytes, have, holes };
                self.held.push(HeldHave { node, blob, have, until: now + HOLD_US });
                self.release_haves(now);
            }
            PeerMessage::HaveNot { blob } => {
                self.peer(node).unanswered.remove(&blob);
                self.held.retain(|held| held.node != node || held.blob != blob);
                self.planner.handle_have_not(now, &node, &blob);
            }
            PeerMessage::HaveMore { blob, pieces } => {
                if self.peer(node).told.contains(&blob) {
                    self.planner.handle_have_more(now, &node, &blob, &pieces);
                    self.open_streams(now, node);
                }
            }
            PeerMessage::Paths(message) => self.paths_said(now, node, message),
        }
    }

    /// Tells the planner what peers have. That somebody has all of a blob it hears only when the others that were asked have
    /// answered, or a moment later: who pulls the blob too should be known before everything is asked of the one that has it.
    pub(super) fn release_haves(&mut self, now: u64) {
        for held in std::mem::take(&mut self.held) {
            let awaited = |(node, peer): (&NodeId, &Peer)| {
                *node != held.node && now < peer.asked_at + HOLD_US && peer.unanswered.contains(&held.blob)
            };
            if held.have.have.is_full() && now < held.until && self.peers.iter().any(awaited) {
                self.held.push(held);
            } else {
                self.planner.handle_have(now, &held.node, &held.blob, held.have);
            }
        }
    }

    /// Sees to it that something can be read from a peer: offers it other paths than streams, and asks for streams where it has
    /// fewer than it should and nothing better carries what is read from it.
    pub(super) fn open_streams(&mut self, now: u64, node: NodeId) {
        self.offer_paths(now, node);
        let (most, tcp) = (self.settings.streams_per_peer, self.tcp_rank);
        let peer = self.peer(node);
        if peer.is_carried_by_better(tcp) || peer.fabrics.may_prove_soon(now) {
            return;
        }
        let streams = peer.paths.iter().filter(|path| path.rank == tcp).count();
        let asked = peer.streams_asked_at.is_some_and(|at| now < at + STREAMS_US);
        if peer.up && !asked && streams < most {
            peer.streams_asked_at = Some(now);
            self.sessions.open_streams(node, most - streams);
        }
    }

    /// A peer wants to hear of blobs: what is being received is answered now, the rest when the store has been asked.
    fn interest(&mut self, node: NodeId, mut blobs: Vec<BlobId>) {
        // Each answer may be a whole have-map: one for each blob.
        blobs.sort_unstable();
        blobs.dedup();
        let mut others = Vec::new();
        for blob in blobs {
            let peer = self.peer(node);
            if !peer.up {
                return;
            }
            let known = peer.interested.contains(&blob);
            if !known && peer.interested.len().max(peer.lookups + others.len()) >= INTERESTS_MAX {
                add(&self.shared.metrics.counters.peer_limit_total, 1);
                self.sessions.send(node, PeerMessage::HaveNot { blob });
                continue;
            }
            peer.interested.insert(blob);
            self.interested.entry(blob).or_default().insert(node);
            if self.wants.contains_key(&blob) {
                self.send_have(node, &blob);
                self.ask_about(node, blob);
            } else if !known {
                others.push(blob);
            }
        }
        if !others.is_empty() {
            self.peer(node).lookups += others.len();
            self.tasks.push(Task::Haves { node, blobs: others });
        }
    }

    /// What is here of a blob that is wanted: nothing yet, where it waits for its turn.
    fn send_have(&self, node: NodeId, blob: &BlobId) {
        let Some(want) = self.wants.get(blob) else { return };
        let staging = want.target.as_ref().and_then(|target| target.staging());
        let (size_bytes, have, holes) = match staging {
            Some(staging) => (Some(staging.size_bytes()), staging.have(), staging.holes()),
            None => {
                let nothing = PieceSet::new(want.size_bytes.map_or(0, |size| Pieces::new(size).count()));
                (want.size_bytes, nothing.clone(), nothing)
            }
        };
        self.sessions.send(node, PeerMessage::Have { blob: *blob, size_bytes, have, holes });
    }

    /// Tells all who are interested in a blob that it is being received here.
    pub(super) fn announce(&self, blob: &BlobId) {
        for node in self.interested.get(blob).into_iter().flatten() {
            self.send_have(*node, blob);
        }
    }

    pub(super) fn haves_found(&mut self, node: NodeId, haves: Vec<(BlobId, Option<HaveMap>)>) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.lookups = peer.lookups.saturating_sub(haves.len());
        }
        for (blob, have) in haves {
            if !self.peers.get(&node).is_some_and(|peer| peer.interested.contains(&blob)) {
                continue;
            }
            if self.wants.get(&blob).is_some_and(|want| want.stage == Stage::Active) {
                // It began meanwhile, and was announced then with more than this.
                continue;
            }
            let message = match have {
                Some(HaveMap { size_bytes, have, holes }) => {
                    PeerMessage::Have { blob, size_bytes: Some(size_bytes), have, holes }
                }
                None => PeerMessage::HaveNot { blob },
            };
            self.sessions.send(node, message);
        }
    }

    /// A peer should be asked about a blob, if it has not been. Not before the planner knows the blob: it would not hear
    /// the answer.
    pub(super) fn ask_about(&mut self, node: NodeId, blob: BlobId) {
        if self.wants.get(&blob).is_none_or(|want| want.stage != Stage::Active) {
            return;
        }
        let peer = self.peer(node);
        if peer.up && !peer.told.contains(&blob) && peer.to_ask.insert(blob) {
            self.to_tell.insert(node);
        }
    }

    /// Sends what peers are to be asked, and that they need tell us no more.
    pub(super) fn tell_interests(&mut self) {
        let now = self.now();
        for node in self.to_tell.drain() {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let ended: Vec<_> = std::mem::take(&mut peer.to_end).into_iter().collect();
            let asked: Vec<_> = std::mem::take(&mut peer.to_ask).into_iter().collect();
            for blobs in ended.chunks(IDS_PER_MESSAGE) {
                self.sessions.send(node, PeerMessage::Done { blobs: blobs.to_vec() });
            }
            for blobs in asked.chunks(IDS_PER_MESSAGE) {
                peer.told.extend(blobs);
                peer.unanswered.extend(blobs);
                peer.asked_at = now;
                self.sessions.send(node, PeerMessage::Interest { blobs: blobs.to_vec() });
            }
        }
    }

    /// Tells those who are interested what has come since they were last told.
    pub(super) fn tell_news(&mut self) {
        for blob in std::mem::take(&mut self.with_news) {
            let Some(want) = self.wants.get_mut(&blob) else { continue };
            let news = std::mem::take(&mut want.news);
            if want.size_bytes.is_some_and(|size_bytes| size_bytes <= PIECE_BYTES) {
                self.announce(&blob);
                continue;
            }
            for node in self.interested.get(&blob).into_iter().flatten() {
                for pieces in news.chunks(PIECES_PER_MESSAGE) {
                    self.sessions.send(*node, PeerMessage::HaveMore { blob, pieces: pieces.to_vec() });
                }
            }
        }
    }

    /// Reads that wait in vain for a path go elsewhere.
    pub(super) fn fail_pathless(&mut self, now: u64) {
        for node in self.queued_peers.clone() {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let late = peer.streams_asked_at.is_some_and(|at| now >= at + STREAMS_US);
            if !peer.has_path() && late {
                let tags: Vec<_> = peer.queue.drain(..).collect();
                for tag in tags {
                    self.asks.remove(&tag);
                    self.planner.handle_failed(now, tag, Failure::PathClosed);
                }
                self.queued_peers.remove(&node);
            }
        }
    }
}
