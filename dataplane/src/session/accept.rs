//! The listening side: limits on strangers, and who gets which handshake.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::Connection;
use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};
use velo_fabric::tcp::TlsKeys;
use velo_fabric::tcp::plain::{PREAMBLE_BYTES, Preamble};
use velo_socket::Caller;
use velo_socket::join::MAX_JOIN_BYTES;

use super::dial::HANDSHAKE_TIMEOUT;
use super::live::{self, Authenticated, NoSession};
use super::registry::lock;
use super::wire::{read_bytes, write_bytes};
use super::{CallReply, DataStream, SessionError, Shared};
use crate::identity::{DATA_ALPN, JOIN_ALPN, SESSION_ALPN};

/// Connections whose peer is not known yet.
const HALF_OPEN: usize = 512;
/// Of these, from one address.
const HALF_OPEN_PER_ADDRESS: u32 = 128;
/// Requests to join that are worked on at a time.
const JOINS: usize = 8;
/// Requests to join that may come at once, and how many more come to be allowed each second.
const JOIN_BURST: f64 = 20.0;
const JOINS_PER_S: f64 = 5.0;
/// How long velo-control may take over a request to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);
/// The first byte of a TLS record with a handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// Binds all addresses.
pub(super) fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, SessionError> {
    let bind = |&address: &SocketAddr| {
        let bound = (|| {
            let domain = socket2::Domain::for_address(address);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
            if address.is_ipv6() {
                // `0.0.0.0` and `[::]` may both be listed.
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(1024)?;
            TcpListener::from_std(socket.into())
        })();
        bound.map_err(|error| SessionError::Listen { address, error })
    };
    addresses.iter().map(bind).collect()
}

/// What bounds those whom nobody knows yet.
struct Door {
    half_open: Arc<Semaphore>,
    by_address: Mutex<HashMap<IpAddr, u32>>,
    joins: Semaphore,
    join_tokens: Mutex<(f64, Instant)>,
}

/// One place among the half-open connections.
struct Place {
    door: Arc<Door>,
    address: IpAddr,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Door {
    fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let permit = self.half_open.clone().try_acquire_owned().ok()?;
        let mut by_address = lock(&self.by_address);
        let count = by_address.entry(address).or_default();
        if *count >= HALF_OPEN_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { door: self.clone(), address, _permit: permit })
    }

    /// A token bucket.
    fn may_join(&self) -> bool {
        let mut tokens = lock(&self.join_tokens);
        let now = Instant::now();
        let gained = now.duration_since(tokens.1).as_secs_f64() * JOINS_PER_S;
        *tokens = ((tokens.0 + gained).min(JOIN_BURST), now);
        let allowed = tokens.0 >= 1.0;
        if allowed {
            tokens.0 -= 1.0;
        }
        allowed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = lock(&self.door.by_address);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// Accepts on all listeners until the runtime ends.
pub(super) fn start(shared: &Arc<Shared>, listeners: Vec<TcpListener>) {
    let door = Arc::new(Door {
        half_open: Arc::new(Semaphore::new(HALF_OPEN)),
        by_address: Mutex::default(),
        joins: Semaphore::new(JOINS),
        join_tokens: Mutex::new((JOIN_BURST, Instant::now())),
    });
    for listener in listeners {
        shared.runtime.spawn(accept_all(shared.clone(), door.clone(), listener));
    }
}

async fn accept_all(shared: Arc<Shared>, door: Arc<Door>, listener: TcpListener) {
    while !shared.stopping() {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, for instance: others may close theirs.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let Some(place) = door.place(address.ip()) else {
            shared.counters.crowded.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let (shared, door) = (shared.clone(), door.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            if let Err(reason) = greet(&shared, &door, stream, address, place).await {
                shared.counters.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%address, %reason, "connection refused");
            }
        });
    }
}

/// A connection after its handshake.
enum Greeted {
    Session(Box<Authenticated>),
    Data(Box<Authenticated>),
    Join(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    Plain(TcpStream, Box<[u8; PREAMBLE_BYTES]>),
}

async fn greet(
    shared: &Arc<Shared>,
    door: &Door,
    stream: TcpStream,
    address: SocketAddr,
    place: Place,
) -> Result<(), String> {
    let greeted = timeout(HANDSHAKE_TIMEOUT, handshake(shared, stream, address))
        .await
        .map_err(|_| "the handshake took too long".to_owned())??;
    match greeted {
        Greeted::Session(peer) => {
            // The first frame is still waited for in this place, but within its own time.
            let begun = live::begin_accepted(shared, *peer).await;
            drop(place);
            match begun {
                Ok(()) => Ok(()),
                Err(NoSession::Duplicate) => Ok(()),
                Err(NoSession::Failed(reason)) => Err(reason),
            }
        }
        Greeted::Data(peer) => {
            drop(place);
            accept_data(shared, *peer)
        }
        Greeted::Join(stream) => {
            let joined = accept_join(shared, door, *stream, address).await;
            drop(place);
            joined
        }
        Greeted::Plain(stream, preamble) => {
            drop(place);
            accept_plain(shared, stream, &preamble)
        }
    }
}

async fn handshake(shared: &Shared, mut stream: TcpStream, address: SocketAddr) -> Result<Greeted, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut first = [0];
    if stream.peek(&mut first).await.map_err(text)? == 0 {
        return Err("closed before its first byte".to_owned());
    }
    match first[0] {
        TLS_HANDSHAKE => {}
        b'V' => {
            let mut preamble = Box::new([0; PREAMBLE_BYTES]);
            stream.read_exact(&mut preamble[..]).await.map_err(text)?;
            return Ok(Greeted::Plain(stream, preamble));
        }
        other => return Err(format!("its first byte is {other:#04x}")),
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(text)?;
    let identity = shared.identity();
    let alpn: Vec<Vec<u8>> =
        start.client_hello().alpn().into_iter().flatten().take(4).map(<[u8]>::to_vec).collect();
    let offers = |wanted: &[u8]| alpn.iter().any(|protocol| protocol == wanted);
    if offers(SESSION_ALPN) {
        let stream = start.into_stream(identity.session_server()).await.map_err(text)?;
        let peer = Authenticated::new(TlsStream::Server(stream), address)?;
        Ok(Greeted::Session(Box::new(peer)))
    } else if offers(DATA_ALPN) {
        let stream = start.into_stream(identity.data_server()).await.map_err(text)?;
        let peer = Authenticated::new(TlsStream::Server(stream), address)?;
        Ok(Greeted::Data(Box::new(peer)))
    } else if offers(JOIN_ALPN) {
        let stream = start.into_stream(identity.join_server()).await.map_err(text)?;
        Ok(Greeted::Join(Box::new(stream)))
    } else {
        Err("it speaks no protocol of Velo".to_owned())
    }
}

/// A data stream belongs to a session that is up.
fn accept_data(shared: &Shared, peer: Authenticated) -> Result<(), String> {
    let session = shared.registry.get(&peer.node).ok_or("a data stream without a session")?;
    let TlsStream::Server(stream) = peer.stream else { return Err("not a server's stream".to_owned()) };
    let (tcp, tls) = stream.into_inner();
    let keys = TlsKeys::take(Connection::Server(tls)).map_err(|error| error.to_string())?;
    let tcp = tcp.into_std().map_err(|error| error.to_string())?;
    let stream = DataStream { tcp, tls: Some(keys) };
    Ok(shared.stream_ready(&session, stream)?)
}

/// A plain data stream: only where both sides said trusted, and proven by the session's key. Nothing is answered otherwise.
fn accept_plain(shared: &Shared, stream: TcpStream, bytes: &[u8; PREAMBLE_BYTES]) -> Result<(), String> {
    let preamble = Preamble::decode(bytes).map_err(|error| error.to_string())?;
    let session = shared.registry.get(&preamble.node).filter(|session| session.id == preamble.session);
    let session = session.ok_or("a plain data stream without a session")?;
    if !session.plain {
        return Err("a plain data stream where the network is not declared trusted".to_owned());
    }
    Preamble::check(bytes, &session.stream_key, &mut lock(&session.seen_streams))
        .map_err(|error| error.to_string())?;
    let stream = DataStream { tcp: stream.into_std().map_err(|error| error.to_string())?, tls: None };
    Ok(shared.stream_ready(&session, stream)?)
}

/// One request to join, handed to velo-control as it is; one answer.
async fn accept_join(
    shared: &Shared,
    door: &Door,
    mut stream: tokio_rustls::server::TlsStream<TcpStream>,
    address: SocketAddr,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let request = timeout(HANDSHAKE_TIMEOUT, read_bytes(&mut stream, MAX_JOIN_BYTES))
        .await
        .map_err(|_| "the request to join took too long".to_owned())?
        .map_err(text)?;
    let reply: CallReply = match door.joins.try_acquire() {
        Ok(_permit) if door.may_join() => {
            timeout(JOIN_TIMEOUT, shared.handle_call(Caller::Stranger(address), request))
                .await
                .unwrap_or_else(|_| Err("the authority did not answer in time: try again".to_owned()))
        }
        _ => {
            shared.counters.joins_limited.fetch_add(1, Ordering::Relaxed);
            Err("too many nodes are joining at once: try again in a few seconds".to_owned())
        }
    };
    let bytes = postcard::to_stdvec(&reply).map_err(|error| error.to_string())?;
    let answer = async {
        write_bytes(&mut stream, &bytes).await?;
        stream.shutdown().await
    };
    timeout(HANDSHAKE_TIMEOUT, answer)
        .await
        .map_err(|_| "it did not take the answer".to_owned())?
        .map_err(text)
}
