//! The planner's actions, the reads that come of them, and what becomes of those.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use velo_config::Fabric;
use velo_fabric::{PathId, Read, ReadError, What};
use velo_object::{BlobId, NodeId, PIECE_BYTES};
use velo_socket::{Error, ErrorCode};
use velo_swarm::{Accusation, Action, Arrival, Blame, DropReason, Failure};

use super::core::Engine;
use super::task::{Arrived, OutboardFault, SentOutboard, Task};
use super::want::{Ask, AskTag, Asked, Stage, Want};
use crate::metrics::add;
use crate::target::Target;
use crate::verify::{Check, Verdict};
use crate::worker::{Command, Then, WorkerEvent};

/// The largest outboard that is taken into memory: that of a blob of 2 TiB.
const OUTBOARD_BYTES_MAX: u64 = 64 << 20;

impl Engine {
    /// Does what the planner says until it has nothing more to say.
    pub(super) fn plan(&mut self, now: u64) {
        while let Some(action) = self.planner.poll(now) {
            match action {
                Action::ReadOutboard { tag, node, blob, size_bytes, bytes } => {
                    if bytes > OUTBOARD_BYTES_MAX {
                        let message = format!(
                            "{blob} is said to have {size_bytes} bytes: the most that can be received is 2 TiB"
                        );
                        self.too_large(now, tag, blob, Error { code: ErrorCode::Limit, message });
                        continue;
                    }
                    let Some(serial) = self.wants.get(&blob).map(|want| want.serial) else { continue };
                    let what = Asked::Outboard { serial, size_bytes, bytes, collected: Vec::new() };
                    self.ask(tag, Ask { node: Some(node), blob, what });
                }
                Action::ReadPiece { tag, blob, index, len: 0, .. } => {
                    // Said to be empty: there is nothing to read, and its id tells whether that is true.
                    self.planner.handle_piece_read(now, tag, 0);
                    self.try_hole(now, tag, blob, index, 0);
                }
                Action::ReadPiece { tag, node, blob, index, len } => {
                    self.ask(tag, Ask { node: Some(node), blob, what: Asked::Piece { index, len } });
                }
                Action::TryHole { tag, blob, index, len } => self.try_hole(now, tag, blob, index, len),
                Action::Cancel { tag, node } => self.cancel(tag, node),
                // The store takes the presence of the last piece for the proof.
                Action::SizeConfirmed { blob, size_bytes } => self.set_size(blob, size_bytes),
                Action::OutboardDropped { blob } => self.outboard_dropped(now, blob),
                Action::BlobReady { blob } => self.commit(now, blob),
                Action::Drop { node, blob, why } => {
                    tracing::info!(%blob, peer = node.short(), ?why, "a peer is asked for a blob no more");
                    // Who sent a false outboard is blamed for it where that is found.
                    if why == DropReason::WrongSize {
                        add(&self.shared.metrics.counters.outboards_bad_total, 1);
                        let note = format!("node {} stated a false size of {blob}", node.short());
                        self.shared.metrics.note(note);
                    }
                }
                other => tracing::debug!(?other, "an action of the planner that this engine does not know"),
            }
        }
    }

    /// A blob is too large for this node. Where only the one who was asked says so, that may be false: others come first.
    fn too_large(&mut self, now: u64, tag: AskTag, blob: BlobId, error: Error) {
        let Some(want) = self.wants.get_mut(&blob) else { return };
        if want.trusted_bytes.is_some() {
            self.planner.handle_failed(now, tag, Failure::Local);
            return self.fail_want(now, blob, error);
        }
        want.refused.get_or_insert((now, error));
        self.planner.handle_too_large(now, tag);
    }

    fn ask(&mut self, tag: AskTag, ask: Ask) {
        if let Some(node) = ask.node {
            self.asks.insert(tag, ask);
            self.peer(node).queue.push_back(tag);
            self.queued_peers.insert(node);
        }
    }

    fn try_hole(&mut self, now: u64, tag: AskTag, blob: BlobId, index: u64, len: u32) {
        let Some(target) = self.target(&blob) else {
            return self.planner.handle_failed(now, tag, Failure::Local);
        };
        self.asks.insert(tag, Ask { node: None, blob, what: Asked::Piece { index, len } });
        let verifier =
            self.verifiers.iter_mut().min_by_key(|v| (v.late.len(), std::cmp::Reverse(v.checks.slots())));
        if let Some(verifier) = verifier {
            verifier.send(Check::Hole { tag, target, index, len });
        }
    }

    /// What pieces of a blob are checked against. One of at most 1 MiB needs nothing but its id.
    fn target(&mut self, blob: &BlobId) -> Option<Arc<Target>> {
        self.wants.get(blob)?.target.clone()
    }

    fn cancel(&mut self, tag: AskTag, node: NodeId) {
        if self.asks.remove(&tag).is_none() {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(at) = peer.queue.iter().position(|queued| *queued == tag) {
            peer.queue.remove(at);
            return;
        }
        // The paths that do not have it ignore this.
        for path in &peer.paths {
            if let Some(place) = self.paths.get(&path.id) {
                self.workers[place.worker].send(Command::Cancel(path.id, tag));
            }
        }
    }

    /// Posts reads for which there are a path and a buffer.
    pub(super) fn dispatch(&mut self, now: u64) {
        if self.queued_peers.is_empty() {
            return;
        }
        for node in self.queued_peers.clone() {
            while let Some(peer) = self.peers.get_mut(&node) {
                let Some(tag) = peer.queue.front().copied() else {
                    self.queued_peers.remove(&node);
                    break;
                };
                if !self.asks.contains_key(&tag) {
                    peer.queue.pop_front();
                    continue;
                }
                if !peer.has_path() {
                    self.open_streams(now, node);
                    break;
                }
                let Some(path) = peer.free_path() else { break };
                let Some(buffer) = self.pool.take() else { return };
                path.reads += 1;
                let path = path.id;
                peer.queue.pop_front();
                self.post(now, tag, path, buffer);
            }
        }
    }

    fn post(&mut self, now: u64, tag: AskTag, path: PathId, buffer: velo_fabric::pool::Buffer) {
        let (Some(ask), Some(place)) = (self.asks.get(&tag), self.paths.get(&path).copied()) else { return };
        let (what, offset_bytes, len, then) = match &ask.what {
            Asked::Piece { index, len } => {
                let Some(target) = self.wants.get(&ask.blob).and_then(|want| want.target.clone()) else {
                    // The outboard under which it was asked for is gone.
                    self.path_done(path);
                    self.asks.remove(&tag);
                    return self.planner.handle_failed(now, tag, Failure::Local);
                };
                (What::Blob, index * PIECE_BYTES, *len, Then::Verify(target, *index))
            }
            Asked::Outboard { bytes, collected, .. } => {
                let at = collected.len() as u64;
                (What::Outboard, at, (bytes - at).min(PIECE_BYTES) as u32, Then::Collect)
            }
        };
        let read = Read { tag, blob: ask.blob, what, offset_bytes, len, buffer };
        self.workers[place.worker].send(Command::Read(path, read, then));
    }

    fn path_done(&mut self, path: PathId) -> Option<NodeId> {
        let node = self.paths.get(&path)?.node;
        let peer = self.peers.get_mut(&node)?;
        if let Some(path) = peer.paths.iter_mut().find(|known| known.id == path) {
            path.reads = path.reads.saturating_sub(1);
        }
        Some(node)
    }

    pub(super) fn worker_event(&mut self, now: u64, event: WorkerEvent) {
        match event {
            WorkerEvent::Arrived { path, tag, bytes } => {
                self.received(path, u64::from(bytes));
                add(&self.shared.metrics.counters.pieces_received_total, 1);
                // What is no longer needed is verified all the same by now: its verdict says that it was there.
                let (Arrival::Check | Arrival::Discard) = self.planner.handle_piece_read(now, tag, bytes);
            }
            WorkerEvent::Collected { path, tag, buffer } => {
                self.received(path, buffer.as_ref().len() as u64);
                self.collected(now, tag, buffer.as_ref());
            }
            WorkerEvent::Failed { path, tag, error } => {
                self.path_done(path);
                if self.asks.remove(&tag).is_some() {
                    add(&self.shared.metrics.counters.reads_failed_total, 1);
                    let failure = match error {
                        ReadError::NotHere => Failure::NotHere,
                        ReadError::Refused => Failure::Refused,
                        ReadError::Stalled => Failure::Stalled,
                        ReadError::PathClosed => Failure::PathClosed,
                        _ => Failure::Local,
                    };
                    self.planner.handle_failed(now, tag, failure);
                }
            }
            WorkerEvent::PathProven { path } => self.path_proven(now, path),
            WorkerEvent::PortFailed { worker, why } => self.port_failed(worker, Fabric::Rdma, &why),
            WorkerEvent::PortSpent { worker } => self.port_spent(now, worker),
            WorkerEvent::PathClosed { path, peer: node, error } => {
                let place = self.paths.remove(&path);
                tracing::debug!(peer = node.short(), path, %error, "a path has ended");
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.paths.retain(|known| known.id != path);
                }
                if let Some(place) = place.filter(|place| place.fabric != Fabric::Tcp) {
                    self.set_path_closed(now, path, place, &error);
                }
            }
        }
    }

    fn received(&mut self, path: PathId, bytes: u64) {
        if let Some(peer) = self.path_done(path).and_then(|node| self.peers.get(&node)) {
            peer.counters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// A part of an outboard has come.
    fn collected(&mut self, now: u64, tag: AskTag, part: &[u8]) {
        let Some(Ask { node: Some(node), blob, what: Asked::Outboard { size_bytes, bytes, collected, .. } }) =
            self.asks.get_mut(&tag)
        else {
            return;
        };
        let wanted = (*bytes - collected.len() as u64).min(PIECE_BYTES);
        collected.extend_from_slice(part);
        let short = (part.len() as u64) < wanted;
        if !short && (collected.len() as u64) < *bytes {
            let node = *node;
            self.peer(node).queue.push_front(tag);
            self.queued_peers.insert(node);
            return;
        }
        let (blob, size_bytes, bytes) = (*blob, *size_bytes, std::mem::take(collected));
        if short {
            self.asks.remove(&tag);
            let blame = self.planner.handle_bad_outboard(now, tag);
            return self.blame(blame);
        }
        self.planner.handle_outboard_read(now, tag);
        let Some(want) = self.wants.get_mut(&blob) else { return };
        let (kind, trusted_bytes) = (want.kind, want.trusted_bytes);
        let sink = want.sink.as_ref().and_then(|sink| sink.try_clone().ok());
        let outboard = SentOutboard { blob, bytes, size_bytes, trusted_bytes, kind, sink };
        self.tasks.push(Task::Outboard { tag, outboard });
    }

    pub(super) fn outboard_done(
        &mut self,
        now: u64,
        tag: AskTag,
        blob: BlobId,
        result: Result<Arc<Target>, OutboardFault>,
    ) {
        let serial = match self.asks.remove(&tag) {
            Some(Ask { what: Asked::Outboard { serial, .. }, .. }) => Some(serial),
            _ => None,
        };
        let active = |want: &Want| Some(want.serial) == serial && want.stage == Stage::Active;
        if !self.wants.get(&blob).is_some_and(active) {
            // Nobody waits for it: a sink must be free for the next transfer.
            result.into_iter().for_each(|target| target.let_go());
            return;
        }
        match result {
            Ok(target) => {
                let Some(want) = self.wants.get_mut(&blob) else { return };
                let size_bytes = match target.expected(0) {
                    velo_object::Expected::Piece(outboard, _) => outboard.size_bytes(),
                    velo_object::Expected::Whole(_) => 0,
                };
                want.target = Some(Arc::clone(&target));
                want.refused = None;
                self.set_size(blob, size_bytes);
                self.planner.handle_outboard(now, tag);
                self.resume(now, blob, &target);
                self.announce(&blob);
            }
            Err(OutboardFault::Bad) => {
                let blame = self.planner.handle_bad_outboard(now, tag);
                self.blame(blame);
            }
            Err(OutboardFault::Store(error)) => {
                self.planner.handle_failed(now, tag, Failure::Local);
                self.fail_want(now, blob, error);
            }
        }
    }

    fn outboard_dropped(&mut self, now: u64, blob: BlobId) {
        let Some(want) = self.wants.get_mut(&blob) else { return };
        // Here and not by a task: the next outboard is staged by one, which must not come first.
        let dropped = std::mem::replace(&mut want.target, want.whole.clone());
        let staging = dropped.and_then(|target| target.staging());
        if let Some(Err(error)) = staging.map(|staging| staging.abandon()) {
            tracing::warn!("throwing away what was received of {blob}: {error}");
        }
        self.asks.retain(|_, ask| ask.blob != blob || !matches!(ask.what, Asked::Piece { .. }));
        self.begin_again(now, blob);
        self.announce(&blob);
    }

    pub(super) fn verdict(&mut self, now: u64, verdict: Verdict) {
        match verdict {
            Verdict::Good { tag, target, index, bytes, hole, fresh } => {
                let blob = target.blob();
                let ask = self.asks.remove(&tag);
                let node = ask.and_then(|ask| ask.node);
                let counters = &self.shared.metrics.counters;
                if fresh {
                    add(&counters.pieces_verified_total, 1);
                    add(&counters.pieces_holes_total, u64::from(hole));
                    add(&counters.stored_bytes_total, if hole { 0 } else { u64::from(bytes) });
                } else {
                    add(&counters.pieces_refetched_total, u64::from(!hole));
                }
                let Some(want) = self.wants.get_mut(&blob).filter(|want| want.receives_into(&target)) else {
                    return;
                };
                if fresh {
                    let small = want.target.as_ref().is_some_and(|target| target.is_whole());
                    want.news.push((index, hole));
                    self.with_news.insert(blob);
                    if small {
                        self.set_size(blob, u64::from(bytes));
                    }
                } else {
                    for id in want.jobs.clone() {
                        if let Some(job) = self.jobs.get_mut(&id) {
                            job.duplicate_pieces += u64::from(!hole);
                        }
                    }
                }
                // What came in while the target was opened was counted there.
                if self.planner.handle_verified(now, &blob, index) {
                    self.account(now, blob, node, u64::from(bytes));
                }
            }
            Verdict::Bad { tag } => {
                if self.asks.remove(&tag).is_some() {
                    let blame = self.planner.handle_bad_piece(now, tag);
                    self.blame(blame);
                }
            }
            Verdict::NotStored { tag, target, error } => {
                self.asks.remove(&tag);
                self.planner.handle_failed(now, tag, Failure::Local);
                if self.wants.get(&target.blob()).is_some_and(|want| want.receives_into(&target)) {
                    self.fail_want(now, target.blob(), error);
                }
            }
        }
    }

    fn blame(&mut self, blame: Option<Blame>) {
        let Some(Blame { node, blob, accusation }) = blame else { return };
        let counters = &self.shared.metrics.counters;
        let peer = self.shared.metrics.peer(&node);
        match accusation {
            Accusation::Piece { index } => {
                add(&counters.pieces_bad_total, 1);
                add(&peer.bad_pieces, 1);
                tracing::warn!(%blob, piece = index, peer = %node, "a piece does not match its hash: it is thrown away and asked elsewhere");
                self.shared.metrics.note(format!(
                    "node {} sent a damaged piece of {blob}: run `velo verify` there",
                    node.short()
                ));
                for id in self.wants.get(&blob).map(|want| want.jobs.clone()).unwrap_or_default() {
                    if let Some(job) = self.jobs.get_mut(&id) {
                        job.bad_pieces += 1;
                        job.changed = true;
                    }
                }
                self.board_behind = true;
            }
            Accusation::Outboard => {
                add(&counters.outboards_bad_total, 1);
                tracing::warn!(%blob, peer = %node, "an outboard is false: it is thrown away and asked elsewhere");
                self.shared.metrics.note(format!("node {} sent a false outboard of {blob}", node.short()));
            }
            other => tracing::info!(%blob, peer = %node, ?other, "a peer was wrong about a blob"),
        }
    }

    fn commit(&mut self, now: u64, blob: BlobId) {
        let Some(want) = self.wants.get_mut(&blob).filter(|want| want.stage == Stage::Active) else { return };
        match want.target.as_ref().and_then(|target| target.staging()) {
            Some(staging) => {
                want.stage = Stage::Committing;
                self.tasks.push(Task::Commit(vec![Arrived { serial: want.serial, blob, staging }]));
            }
            None => {
                let message = format!("{blob} is said to be complete and is nowhere: report this");
                self.fail_want(now, blob, Error { code: ErrorCode::Io, message });
            }
        }
    }
}
