//! The sessions that are up, and the rule which of two connections with one node stays.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use velo_fabric::tcp::plain::StreamNumbers;
use velo_object::NodeId;

use super::CallReply;
use super::wire::{Frame, Refusal};

/// Frames that wait to be sent to one peer.
pub(super) const QUEUE_FRAMES: usize = 4096;
/// Bytes that wait to be sent to one peer.
const QUEUE_BYTES: usize = 32 << 20;
/// Calls to one peer that wait for their reply.
const CALLS_WAITING: usize = 256;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session that is up.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: NodeId,
    /// The same on both sides, from the TLS exporter.
    pub(super) id: [u8; 16],
    /// Keys the preambles of plain data streams; from the TLS exporter.
    pub(super) stream_key: [u8; 32],
    pub(super) address: SocketAddr,
    /// Whether this node dialled.
    pub(super) dialled: bool,
    /// The peer's process.
    pub(super) boot: u64,
    /// Where the peer takes data streams, best first.
    pub(super) targets: Vec<SocketAddr>,
    /// Whether both sides declare their network trusted.
    pub(super) plain: bool,
    pub(super) since: Instant,
    /// When the peer's certificate ends.
    pub(super) expires: SystemTime,
    pub(super) queue: mpsc::Sender<Vec<u8>>,
    pub(super) queued_bytes: AtomicUsize,
    pub(super) closing: watch::Sender<Option<String>>,
    pub(super) calls: Mutex<HashMap<u64, oneshot::Sender<CallReply>>>,
    pub(super) next_call: AtomicU64,
    pub(super) next_stream: AtomicU64,
    pub(super) seen_streams: Mutex<StreamNumbers>,
}

impl Session {
    /// Queues a frame. A peer that does not read is dropped: its queue is bounded.
    pub(super) fn send(&self, frame: &Frame) -> Result<(), String> {
        let bytes = frame.encode().map_err(|error| error.to_string())?;
        let len = bytes.len();
        if self.queued_bytes.fetch_add(len, Ordering::Relaxed) + len > QUEUE_BYTES {
            return Err(self.give_up());
        }
        match self.queue.try_send(bytes) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => Err(self.give_up()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err("the session has ended".to_owned()),
        }
    }

    fn give_up(&self) -> String {
        let reason = "it does not read what it is sent".to_owned();
        self.close(reason.clone());
        reason
    }

    /// Ends the session; the first reason stands.
    pub(super) fn close(&self, reason: String) {
        self.closing.send_if_modified(|closing| {
            let first = closing.is_none();
            closing.get_or_insert(reason);
            first
        });
    }

    /// Remembers a call that waits for its reply.
    pub(super) fn register_call(&self) -> Result<(u64, oneshot::Receiver<CallReply>), String> {
        let mut calls = lock(&self.calls);
        calls.retain(|_, reply| !reply.is_closed());
        if calls.len() >= CALLS_WAITING {
            return Err(format!("{CALLS_WAITING} calls to {} wait already", self.node.short()));
        }
        let seq = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (reply, receiver) = oneshot::channel();
        calls.insert(seq, reply);
        Ok((seq, receiver))
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Registry {
    sessions: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    /// Held while a session comes or goes and the event of it is given out, so that these never cross.
    pub(super) order: Mutex<()>,
}

impl Registry {
    pub(super) fn get(&self, node: &NodeId) -> Option<Arc<Session>> {
        lock(&self.sessions).get(node).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        lock(&self.sessions).values().cloned().collect()
    }

    /// Takes a session in, or says why not. Gives the session whose place it took.
    ///
    /// Of two connections with the same process the one that the smaller id dialled stays; a newer one that the same side dialled, or that
    /// comes from a process that has started anew, replaces the older one.
    pub(super) fn admit(
        &self,
        own: NodeId,
        session: &Arc<Session>,
        most: usize,
    ) -> Result<Option<Arc<Session>>, Refusal> {
        let mut sessions = lock(&self.sessions);
        match sessions.get(&session.node) {
            None if sessions.len() >= most => return Err(Refusal::Full),
            None => {}
            Some(old) => {
                let dialled_by_smaller = session.dialled == (own < session.node);
                let same_dialler = old.dialled == session.dialled;
                if old.boot == session.boot && !same_dialler && !dialled_by_smaller {
                    return Err(Refusal::Duplicate);
                }
            }
        }
        Ok(sessions.insert(session.node, session.clone()))
    }

    /// Whether this very session is up: neither ended, nor replaced.
    pub(super) fn is_up(&self, session: &Arc<Session>) -> bool {
        lock(&self.sessions).get(&session.node).is_some_and(|present| Arc::ptr_eq(present, session))
    }

    /// Takes a session out; false where another has taken its place.
    pub(super) fn remove(&self, session: &Arc<Session>) -> bool {
        let mut sessions = lock(&self.sessions);
        let present = sessions.get(&session.node).is_some_and(|present| Arc::ptr_eq(present, session));
        if present {
            sessions.remove(&session.node);
        }
        present
    }
}
