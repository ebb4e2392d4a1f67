//! Sessions: authenticated relations between nodes, kept over one TLS connection each.
//!
//! One TCP port takes everything: its first byte tells TLS from the preamble of a plain data stream, and ALPN tells sessions, data
//! streams and requests to join apart. All of it runs on a small runtime of its own; what happens is told through [`SessionEvent`]s.
//!
//! **Architecture invariant:** before the peer's certificate has been verified nothing but the handshake is sent to it.

mod accept;
mod dial;
mod event;
mod live;
pub mod paths;
mod registry;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{oneshot, watch};
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::{Caller, Error, ErrorCode, Member};

pub use event::{DataStream, PathKeying, PeerMessage, SessionEvent};

use crate::identity::{Identity, IdentityError, RevokedNodes};
use registry::{Registry, lock};
use wire::{Frame, Hello};

/// Nodes that are being dialled at one time.
const DIALS: usize = 1024;

/// How sessions are made.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Where the identity lies.
    pub paths: Paths,
    /// Addresses to listen on; port 0 takes any.
    pub listen: Vec<SocketAddr>,
    /// Addresses by which others reach this node, where these are not the ones it listens on.
    pub advertise: Vec<SocketAddr>,
    /// Whether data streams may go in plain text to peers that say the same.
    pub trusted: bool,
    /// The most sessions.
    pub max_sessions: usize,
    /// The zone of this node.
    pub zone: String,
}

impl SessionOptions {
    /// What a configuration says.
    pub fn from_config(config: &velo_config::Config) -> Self {
        Self {
            paths: Paths::new(config.node.data_dir.clone()),
            listen: config.net.listen.clone(),
            advertise: config.net.advertise.clone(),
            trusted: config.net.trusted,
            max_sessions: config.net.max_sessions as usize,
            zone: config.node.zone.clone(),
        }
    }
}

/// Why sessions cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}; choose another with net.listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// The runtime cannot start.
    #[error("cannot start the threads of the sessions: {0}")]
    Runtime(std::io::Error),
}

/// The answer to a call: bytes, or why there are none.
pub type CallReply = Result<Vec<u8>, String>;
/// Answers calls: is given who asks, what, and where the answer goes. It must not block.
pub type CallHandler = Arc<dyn Fn(Caller, Vec<u8>, oneshot::Sender<CallReply>) + Send + Sync>;

/// A session, for the status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// With whom.
    pub node: NodeId,
    /// Their address.
    pub address: SocketAddr,
    /// How long it has been up.
    pub up: Duration,
    /// Whether data streams go in plain text.
    pub plain: bool,
}

/// Counters of the sessions.
#[derive(Debug, Default)]
pub struct SessionCounters {
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections closed at once because too many handshakes were under way.
    pub crowded: AtomicU64,
    /// Handshakes that failed (strangers, foreign, expired and revoked certificates among them).
    pub refused: AtomicU64,
    /// Sessions begun.
    pub begun: AtomicU64,
    /// Requests to join that were turned away by the rate limit.
    pub joins_limited: AtomicU64,
}

struct Shared {
    options: SessionOptions,
    identity: ArcSwap<Identity>,
    revoked: RevokedNodes,
    boot: u64,
    listening: Vec<SocketAddr>,
    registry: Registry,
    members: Mutex<HashMap<NodeId, Member>>,
    /// Nodes that are being dialled; the sender's end is the dial's end.
    dialling: Mutex<HashMap<NodeId, watch::Receiver<()>>>,
    events: Box<dyn Fn(SessionEvent) + Send + Sync>,
    handler: RwLock<Option<CallHandler>>,
    stopping: AtomicBool,
    counters: SessionCounters,
    runtime: Handle,
}

impl Shared {
    fn identity(&self) -> Arc<Identity> {
        self.identity.load_full()
    }

    fn node(&self) -> NodeId {
        self.identity.load().node()
    }

    fn event(&self, event: SessionEvent) {
        if matches!(event, SessionEvent::Up { .. }) {
            self.counters.begun.fetch_add(1, Ordering::Relaxed);
        }
        (self.events)(event);
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn hello(&self) -> Hello {
        let identity = self.identity();
        let listen =
            if self.options.advertise.is_empty() { &self.listening } else { &self.options.advertise };
        Hello {
            version: wire::VERSION,
            cluster: identity.cluster(),
            node: identity.node(),
            boot: self.boot,
            listen: listen.iter().take(16).copied().collect(),
            trusted: self.options.trusted,
        }
    }

    /// Waits until no dial of this node is under way.
    async fn dial_ended(&self, node: NodeId) {
        let dial = lock(&self.dialling).get(&node).cloned();
        if let Some(mut dial) = dial {
            while dial.changed().await.is_ok() {}
        }
    }

    fn handle_call(&self, from: Caller, payload: Vec<u8>) -> impl Future<Output = CallReply> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        let handler = self.handler.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some(handler) = handler {
            handler(from, payload, sender);
        }
        async move {
            receiver
                .await
                .unwrap_or_else(|_| Err("velo-control does not run there: try again later".to_owned()))
        }
    }
}

/// The sessions of this node. Clones share them; they end with [`Sessions::stop`] or the last clone.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
    runtime: Arc<Mutex<Option<Runtime>>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("listening", &self.shared.listening).finish_non_exhaustive()
    }
}

impl Sessions {
    /// Reads the identity, listens, and begins to accept. `events` may wait, but for nothing that waits for a session.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn start(
        options: SessionOptions,
        events: impl Fn(SessionEvent) + Send + Sync + 'static,
    ) -> Result<Self, SessionError> {
        let revoked = RevokedNodes::default();
        let identity = Identity::load(&options.paths, &revoked)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .thread_name("velod-session")
            .enable_all()
            .build()
            .map_err(SessionError::Runtime)?;
        let listeners = {
            let _inside = runtime.enter();
            accept::listen(&options.listen)?
        };
        let listening = listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
        let mut boot = [0; 8];
        getrandom::fill(&mut boot)
            .map_err(|error| SessionError::Runtime(std::io::Error::other(error.to_string())))?;
        let shared = Arc::new(Shared {
            options,
            identity: ArcSwap::from_pointee(identity),
            revoked,
            boot: u64::from_le_bytes(boot),
            listening,
            registry: Registry::default(),
            members: Mutex::default(),
            dialling: Mutex::default(),
            events: Box::new(events),
            handler: RwLock::default(),
            stopping: AtomicBool::new(false),
            counters: SessionCounters::default(),
            runtime: runtime.handle().clone(),
        });
        accept::start(&shared, listeners);
        Ok(Self { shared, runtime: Arc::new(Mutex::new(Some(runtime))) })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.shared.node()
    }

    /// Where it listens, with the real ports.
    pub fn listen_addresses(&self) -> Vec<SocketAddr> {
        self.shared.listening.clone()
    }

    /// Says who is in the cluster and how to reach them. Replaces what was said before; sessions stay.
    pub fn set_members(&self, members: Vec<Member>) {
        *lock(&self.shared.members) = members.into_iter().map(|member| (member.node, member)).collect();
    }

    /// The members, as they were last said.
    pub fn members(&self) -> Vec<Member> {
        lock(&self.shared.members).values().cloned().collect()
    }

    /// Says which nodes are revoked: their sessions end now, and no new ones begin.
    pub fn set_revoked(&self, nodes: Vec<NodeId>) {
        self.shared.revoked.set(nodes);
        // Whoever registers from here on sees the new set; whoever is registered is closed.
        drop(lock(&self.shared.registry.order));
        self.close_revoked();
    }

    fn close_revoked(&self) {
        for session in self.shared.registry.all() {
            if self.shared.revoked.contains(&session.node) {
                session.close("its certificate is revoked".to_owned());
            }
        }
    }

    /// Reads the identity again. Handshakes from now on use the new certificate; sessions stay.
    ///
    /// # Errors
    /// [`IdentityError`]; the old one stays in use then. Also where the files are those of another node.
    pub fn reload_identity(&self) -> Result<(), IdentityError> {
        let identity = Identity::load(&self.shared.options.paths, &self.shared.revoked)?;
        if identity.node() != self.node() {
            return Err(IdentityError::Malformed {
                path: self.shared.options.paths.node_certificate(),
                why: "it is the certificate of another node: restart velo".to_owned(),
            });
        }
        self.shared.identity.store(Arc::new(identity));
        self.close_revoked();
        Ok(())
    }

    /// Makes a session with a member, if there is none; [`SessionEvent::Up`] or [`SessionEvent::Down`] follows.
    pub fn connect(&self, node: NodeId) {
        dial::connect(&self.shared, node);
    }

    /// Whether a session is up.
    pub fn is_up(&self, node: &NodeId) -> bool {
        self.shared.registry.get(node).is_some()
    }

    /// Sends a message; lost if there is no session. A peer that does not read what it is sent is dropped.
    pub fn send(&self, node: NodeId, message: PeerMessage) {
        if let Some(session) = self.shared.registry.get(&node)
            && let Err(reason) = session.send(&Frame::Message(message))
        {
            session.close(reason);
        }
    }

    /// Opens data streams to a peer with a session; [`SessionEvent::Stream`] follows for each that could be opened, on either side.
    pub fn open_streams(&self, node: NodeId, count: usize) {
        let count = u8::try_from(count).unwrap_or(u8::MAX);
        self.shared.open_streams(node, count, true);
    }

    /// Ends a session.
    pub fn close(&self, node: NodeId, why: &str) {
        if let Some(session) = self.shared.registry.get(&node) {
            session.close(why.to_owned());
        }
    }

    /// Asks the control service of a node (or of this one), making a session if there is none. Blocks; not for the sessions' own threads.
    ///
    /// # Errors
    /// `Unreachable`, `TimedOut`, or `Denied` with what the other service says.
    pub fn call(&self, node: NodeId, payload: Vec<u8>, timeout: Duration) -> Result<Vec<u8>, Error> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let shared = self.shared.clone();
        self.shared.runtime.spawn(async move {
            let answer = tokio::time::timeout(timeout, dial::call(&shared, node, payload)).await;
            let _ = sender.send(answer.unwrap_or_else(|_| {
                let message = format!("{} did not answer within {} ms", node.short(), timeout.as_millis());
                Err(Error { code: ErrorCode::TimedOut, message })
            }));
        });
        receiver.recv().unwrap_or_else(|_| {
            Err(Error { code: ErrorCode::Cancelled, message: "velod is stopping".to_owned() })
        })
    }

    /// Sets (or takes away) who answers the calls of other nodes and requests to join.
    pub fn set_call_handler(&self, handler: Option<CallHandler>) {
        *self.shared.handler.write().unwrap_or_else(std::sync::PoisonError::into_inner) = handler;
    }

    /// The sessions that are up.
    pub fn status(&self) -> Vec<SessionInfo> {
        let info = |session: Arc<registry::Session>| SessionInfo {
            node: session.node,
            address: session.address,
            up: session.since.elapsed(),
            plain: session.plain,
        };
        self.shared.registry.all().into_iter().map(info).collect()
    }

    /// The counters.
    pub fn counters(&self) -> &SessionCounters {
        &self.shared.counters
    }

    /// Ends all sessions and the listening. Does not wait longer than a second.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        for session in self.shared.registry.all() {
            session.close("velod is stopping".to_owned());
        }
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl crate::engine::Peers for Sessions {
    fn connect(&self, node: NodeId) {
        Self::connect(self, node);
    }

    fn send(&self, node: NodeId, message: PeerMessage) {
        Self::send(self, node, message);
    }

    fn open_streams(&self, node: NodeId, count: usize) {
        Self::open_streams(self, node, count);
    }

    fn distance(&self, node: &NodeId) -> u8 {
        let members = lock(&self.shared.members);
        let elsewhere = members.get(node).is_some_and(|member| member.zone != self.shared.options.zone);
        if elsewhere { 2 } else { 1 }
    }
}

#[cfg(test)]
pub(crate) mod tests;
