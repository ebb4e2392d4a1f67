//! Dialling members, opening data streams, and calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::Connection;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};
use velo_fabric::tcp::TlsKeys;
use velo_fabric::tcp::plain::Preamble;
use velo_object::NodeId;
use velo_socket::{Caller, Error, ErrorCode};

use super::live::{self, Authenticated, NoSession};
use super::registry::{Session, lock};
use super::wire::{Frame, MAX_FRAME_BYTES};
use super::{DIALS, DataStream, SessionEvent, Shared};
use crate::identity::server_name;

/// How long one address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a handshake may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one member that are tried.
const ADDRESSES: usize = 16;
/// How long the other of two simultaneous connections may take to become the session.
const DUPLICATE_GRACE: Duration = Duration::from_secs(6);

/// Dials a member, unless it is being dialled or has a session.
pub(super) fn connect(shared: &Arc<Shared>, node: NodeId) {
    if shared.stopping() || shared.registry.get(&node).is_some() {
        return;
    }
    let (ended, dial) = watch::channel(());
    {
        let mut dialling = lock(&shared.dialling);
        if dialling.contains_key(&node) {
            return;
        }
        if dialling.len() >= DIALS {
            drop(dialling);
            let reason = format!("{DIALS} nodes are being dialled already");
            // Not from here: who asks may be the one who hears.
            let shared = shared.clone();
            shared.runtime.clone().spawn(async move { shared.event(SessionEvent::Down { node, reason }) });
            return;
        }
        dialling.insert(node, dial);
    }
    let shared = shared.clone();
    shared.runtime.clone().spawn(async move {
        let dialled = dial_member(&shared, node).await;
        lock(&shared.dialling).remove(&node);
        drop(ended);
        let reason = match dialled {
            Ok(()) => return,
            Err(NoSession::Duplicate) => {
                if comes_up(&shared, node).await {
                    return;
                }
                "it refused our connection for another one that did not come".to_owned()
            }
            Err(NoSession::Failed(reason)) => reason,
        };
        let _order = lock(&shared.registry.order);
        if shared.registry.get(&node).is_none() {
            tracing::debug!(peer = %node.short(), %reason, "no session");
            shared.event(SessionEvent::Down { node, reason });
        }
    });
}

/// Waits a little for a session that the other side makes.
async fn comes_up(shared: &Shared, node: NodeId) -> bool {
    let up = async {
        while shared.registry.get(&node).is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DUPLICATE_GRACE, up).await.is_ok()
}

async fn dial_member(shared: &Arc<Shared>, node: NodeId) -> Result<(), NoSession> {
    if node == shared.node() {
        return Err(NoSession::Failed("it is this node itself".to_owned()));
    }
    if shared.revoked.contains(&node) {
        return Err(NoSession::Failed("its certificate is revoked".to_owned()));
    }
    let addresses = lock(&shared.members).get(&node).map(|member| member.addresses.clone());
    let Some(addresses) = addresses.filter(|addresses| !addresses.is_empty()) else {
        return Err(NoSession::Failed("no address of it is known".to_owned()));
    };
    let mut reasons = Vec::new();
    for address in addresses.into_iter().take(ADDRESSES) {
        if shared.registry.get(&node).is_some() {
            // Meanwhile the other side has dialled.
            return Ok(());
        }
        match dial_address(shared, node, address).await {
            Err(NoSession::Failed(reason)) => reasons.push(format!("{address}: {reason}")),
            other => return other,
        }
    }
    Err(NoSession::Failed(reasons.join("; ")))
}

async fn connect_tcp(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| "it does not answer".to_owned())?
        .map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn dial_address(shared: &Arc<Shared>, node: NodeId, address: SocketAddr) -> Result<(), NoSession> {
    let stream = connect_tcp(address).await.map_err(NoSession::Failed)?;
    let connector = TlsConnector::from(shared.identity().session_client());
    let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(server_name(&node), stream))
        .await
        .map_err(|_| NoSession::Failed("the handshake took too long".to_owned()))??;
    let peer = Authenticated::new(TlsStream::Client(stream), address).map_err(NoSession::Failed)?;
    live::begin_dialled(shared, peer).await
}

/// Asks the control service of a node.
pub(super) async fn call(shared: &Arc<Shared>, node: NodeId, payload: Vec<u8>) -> Result<Vec<u8>, Error> {
    let error = |code, message| Err(Error { code, message });
    if payload.len() > MAX_FRAME_BYTES - 1024 {
        return error(ErrorCode::Limit, format!("a call carries at most 4 MiB, not {} bytes", payload.len()));
    }
    let reply = if node == shared.node() {
        shared.handle_call(Caller::Member(node), payload).await
    } else {
        let session = match session_with(shared, node).await {
            Ok(session) => session,
            Err(reason) => {
                return error(ErrorCode::Unreachable, format!("no session with {}: {reason}", node.short()));
            }
        };
        let (seq, receiver) =
            session.register_call().map_err(|message| Error { code: ErrorCode::Limit, message })?;
        let sent = session.send(&Frame::Call { seq, payload });
        let replied = match sent {
            Ok(()) => receiver.await.map_err(|_| "the session ended before the answer".to_owned()),
            Err(reason) => Err(reason),
        };
        match replied {
            Ok(reply) => reply,
            Err(reason) => {
                return error(ErrorCode::Unreachable, format!("{}: {reason}", node.short()));
            }
        }
    };
    reply.map_err(|message| Error { code: ErrorCode::Denied, message })
}

/// The session with a node, made if there is none.
async fn session_with(shared: &Arc<Shared>, node: NodeId) -> Result<Arc<Session>, String> {
    if let Some(session) = shared.registry.get(&node) {
        return Ok(session);
    }
    connect(shared, node);
    shared.dial_ended(node).await;
    match shared.registry.get(&node) {
        Some(session) => Ok(session),
        // Perhaps the other side's connection becomes the session.
        None => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            shared.registry.get(&node).ok_or_else(|| "it cannot be reached".to_owned())
        }
    }
}

impl Shared {
    /// Opens data streams. Where the peer cannot be reached and `may_ask` is set, asks it to open them.
    pub(super) fn open_streams(self: &Arc<Self>, node: NodeId, count: u8, may_ask: bool) {
        let Some(session) = self.registry.get(&node) else { return };
        for _ in 0..count {
            self.open_one(&session, may_ask, None);
        }
    }

    /// Opens data streams that the peer asks for, as many as `opening` has permits: what is asked beyond that is dropped, since
    /// each costs a socket here, to an address that the peer chose.
    pub(super) fn open_asked(self: &Arc<Self>, session: &Arc<Session>, count: u8, opening: &Arc<Semaphore>) {
        for _ in 0..count {
            let Ok(permit) = opening.clone().try_acquire_owned() else { return };
            self.open_one(session, false, Some(permit));
        }
    }

    fn open_one(
        self: &Arc<Self>,
        session: &Arc<Session>,
        may_ask: bool,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let (shared, session) = (self.clone(), session.clone());
        self.runtime.spawn(async move {
            let _permit = permit;
            let peer = session.node.short();
            match open_stream(&shared, &session).await {
                Ok(stream) => {
                    if let Err(reason) = shared.stream_ready(&session, stream) {
                        tracing::debug!(%peer, reason, "a data stream is dropped");
                    }
                }
                Err(reason) => {
                    tracing::debug!(%peer, %reason, "no data stream");
                    if may_ask && let Err(reason) = session.send(&Frame::OpenStreams(1)) {
                        session.close(reason);
                    }
                }
            }
        });
    }

    /// Gives out a data stream of `session`, unless that has ended during the handshake: nobody would close it.
    pub(super) fn stream_ready(
        &self,
        session: &Arc<Session>,
        stream: DataStream,
    ) -> Result<(), &'static str> {
        let _order = lock(&self.registry.order);
        if !self.registry.is_up(session) {
            return Err("its session has ended");
        }
        self.event(SessionEvent::Stream { node: session.node, stream });
        Ok(())
    }
}

async fn open_stream(shared: &Shared, session: &Session) -> Result<DataStream, String> {
    let mut reasons = Vec::new();
    let known = lock(&shared.members).get(&session.node).map(|member| member.addresses.clone());
    let mut targets = session.targets.clone();
    for address in known.unwrap_or_default().into_iter().take(ADDRESSES) {
        if !targets.contains(&address) {
            targets.push(address);
        }
    }
    for address in targets {
        match open_at(shared, session, address).await {
            Ok(stream) => return Ok(stream),
            Err(reason) => reasons.push(format!("{address}: {reason}")),
        }
    }
    Err(if reasons.is_empty() { "no address of it is known".to_owned() } else { reasons.join("; ") })
}

async fn open_at(shared: &Shared, session: &Session, address: SocketAddr) -> Result<DataStream, String> {
    let mut tcp = connect_tcp(address).await?;
    if session.plain {
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).map_err(|error| error.to_string())?;
        let stream = session.next_stream.fetch_add(1, Ordering::Relaxed);
        let preamble = Preamble { node: shared.node(), session: session.id, stream, nonce };
        timeout(HANDSHAKE_TIMEOUT, tcp.write_all(&preamble.encode(&session.stream_key)))
            .await
            .map_err(|_| "it takes no bytes".to_owned())?
            .map_err(|error| error.to_string())?;
        return Ok(DataStream { tcp: tcp.into_std().map_err(|error| error.to_string())?, tls: None });
    }
    let connector = TlsConnector::from(shared.identity().data_client());
    let stream = timeout(HANDSHAKE_TIMEOUT, connector.connect(server_name(&session.node), tcp))
        .await
        .map_err(|_| "the handshake took too long".to_owned())?
        .map_err(|error| error.to_string())?;
    let (tcp, tls) = stream.into_inner();
    let keys = TlsKeys::take(Connection::Client(tls)).map_err(|error| error.to_string())?;
    Ok(DataStream { tcp: tcp.into_std().map_err(|error| error.to_string())?, tls: Some(keys) })
}
