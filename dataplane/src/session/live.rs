//! One session from its first frame to its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsStream;
use velo_fabric::packet::protocol::seal::PathSecret;
use velo_object::NodeId;
use velo_socket::Caller;

use super::registry::{QUEUE_FRAMES, Session, lock};
use super::wire::{
    Frame, Hello, MAX_FRAME_BYTES, MAX_HELLO_BYTES, Refusal, VERSION, read_frame, write_frame,
};
use super::{PathKeying, PeerMessage, SessionEvent, Shared};
use crate::identity::certificate_facts;

/// How long the first frames may take.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the larger id's connection waits for the smaller id's own attempt.
const OWN_DIAL_FIRST: Duration = Duration::from_secs(2);
/// A session on which nothing is sent for this long gets a ping.
const PING_AFTER: Duration = Duration::from_secs(5);
/// A peer that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// How long the peer's kernel may take no byte.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Calls of one peer that are worked on at a time.
const CALLS_SERVED: usize = 64;
/// Data streams that are being opened at a time because a peer asks for them.
const STREAMS_ASKED: usize = 16;

type Tls = TlsStream<TcpStream>;

/// A connection whose peer is known, before the session is up.
pub(super) struct Authenticated {
    pub(super) stream: Tls,
    pub(super) address: SocketAddr,
    pub(super) node: NodeId,
    pub(super) expires: SystemTime,
}

impl Authenticated {
    /// After a mutual handshake: who it is.
    pub(super) fn new(stream: Tls, address: SocketAddr) -> Result<Self, String> {
        let certificates = stream.get_ref().1.peer_certificates();
        let facts = certificates.and_then(|chain| certificate_facts(chain.first()?));
        let facts = facts.ok_or("it has no certificate of an ed25519 key")?;
        Ok(Self { stream, address, node: facts.node, expires: facts.expires })
    }
}

/// Why there is no session.
#[derive(Debug)]
pub(super) enum NoSession {
    /// Another connection is or becomes the session.
    Duplicate,
    /// It failed.
    Failed(String),
}

impl From<std::io::Error> for NoSession {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The dialling side: says hello, waits for the answer, and registers the session.
pub(super) async fn begin_dialled(shared: &Arc<Shared>, mut peer: Authenticated) -> Result<(), NoSession> {
    let hello = Frame::Hello(shared.hello());
    let answer = timeout(HELLO_TIMEOUT, async {
        write_frame(&mut peer.stream, &hello).await?;
        read_frame(&mut peer.stream, MAX_HELLO_BYTES).await
    })
    .await
    .map_err(|_| NoSession::Failed("it did not say hello in time".to_owned()))??;
    match answer {
        Frame::Hello(hello) => {
            check_hello(shared, &peer, &hello)?;
            register(shared, peer, hello, true).map(|begun| begun.run(shared)).map_err(
                |refused| match refused.0 {
                    Refusal::Duplicate => NoSession::Duplicate,
                    other => NoSession::Failed(words(other)),
                },
            )
        }
        Frame::Refuse(Refusal::Duplicate) => Err(NoSession::Duplicate),
        Frame::Refuse(refusal) => Err(NoSession::Failed(words(refusal))),
        _ => Err(NoSession::Failed("it said something else than hello".to_owned())),
    }
}

/// The side that was dialled: hears the hello, registers the session, and answers, so that the other side may use it at once.
pub(super) async fn begin_accepted(shared: &Arc<Shared>, mut peer: Authenticated) -> Result<(), NoSession> {
    let frame = timeout(HELLO_TIMEOUT, read_frame(&mut peer.stream, MAX_HELLO_BYTES))
        .await
        .map_err(|_| NoSession::Failed("it did not say hello in time".to_owned()))??;
    let Frame::Hello(hello) = frame else {
        return Err(NoSession::Failed("it said something else than hello".to_owned()));
    };
    if hello.version != VERSION {
        refuse(&mut peer.stream, Refusal::Version).await;
        return Err(NoSession::Failed(words(Refusal::Version)));
    }
    check_hello(shared, &peer, &hello)?;
    if shared.node() < peer.node {
        // Our own attempt goes first, if there is one; but one that hangs keeps nobody out.
        let _ = timeout(OWN_DIAL_FIRST, shared.dial_ended(peer.node)).await;
    }
    match register(shared, peer, hello, false) {
        Ok(begun) => {
            // First in the queue, hence first on the wire.
            begun.run(shared);
            Ok(())
        }
        Err(refused) => {
            let (refusal, mut peer) = *refused;
            refuse(&mut peer.stream, refusal).await;
            Err(NoSession::Failed(words(refusal)))
        }
    }
}

async fn refuse(stream: &mut Tls, refusal: Refusal) {
    let farewell = async {
        write_frame(stream, &Frame::Refuse(refusal)).await?;
        stream.shutdown().await
    };
    let _ = timeout(HELLO_TIMEOUT, farewell).await;
}

fn words(refusal: Refusal) -> String {
    match refusal {
        Refusal::Duplicate => "there is another session with it",
        Refusal::Full => "the number of sessions is reached (net.max_sessions)",
        Refusal::Version => "it speaks another version: run the same release of velo on all nodes",
    }
    .to_owned()
}

fn check_hello(shared: &Shared, peer: &Authenticated, hello: &Hello) -> Result<(), NoSession> {
    let why = if hello.version != VERSION {
        words(Refusal::Version)
    } else if hello.cluster != shared.identity().cluster() {
        "it belongs to another cluster".to_owned()
    } else if hello.node != peer.node {
        "its certificate is that of another node".to_owned()
    } else if hello.node == shared.node() {
        "it is this node itself".to_owned()
    } else {
        return Ok(());
    };
    Err(NoSession::Failed(why))
}

/// A registered session that has to be run.
struct Begun {
    session: Arc<Session>,
    stream: Tls,
    queue: mpsc::Receiver<Vec<u8>>,
    closing: watch::Receiver<Option<String>>,
}

/// Where the peer takes data streams: where we reached it, then what it says of itself.
fn targets(peer: SocketAddr, dialled: bool, listen: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut targets = Vec::new();
    if dialled {
        targets.push(peer);
    }
    for address in listen.iter().take(16) {
        let ip = if address.ip().is_unspecified() { peer.ip() } else { address.ip() };
        let ip = match ip {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
            IpAddr::V4(_) => ip,
        };
        let address = SocketAddr::new(ip, address.port());
        if address.port() != 0 && !targets.contains(&address) {
            targets.push(address);
        }
    }
    targets
}

fn register(
    shared: &Arc<Shared>,
    peer: Authenticated,
    hello: Hello,
    dialled: bool,
) -> Result<Begun, Box<(Refusal, Authenticated)>> {
    let Ok(exported) = Exported::of(&peer.stream) else { return Err(Box::new((Refusal::Version, peer))) };
    let (queue, receiver) = mpsc::channel(QUEUE_FRAMES);
    let (closing, closed) = watch::channel(None);
    let session = Arc::new(Session {
        node: peer.node,
        id: exported.id,
        stream_key: exported.stream_key,
        address: peer.address,
        dialled,
        boot: hello.boot,
        targets: targets(peer.address, dialled, &hello.listen),
        plain: hello.trusted && shared.options.trusted,
        since: Instant::now(),
        expires: peer.expires,
        queue,
        queued_bytes: 0.into(),
        closing,
        calls: Mutex::default(),
        next_call: 0.into(),
        next_stream: 0.into(),
        seen_streams: Mutex::default(),
    });
    if !dialled {
        // First in the queue, hence first on the wire.
        let _ = session.send(&Frame::Hello(shared.hello()));
    }
    let _order = lock(&shared.registry.order);
    // Between the handshake and here the list of revoked nodes may have changed.
    if shared.identity().revoked().contains(&peer.node) || shared.stopping() {
        return Err(Box::new((Refusal::Full, peer)));
    }
    let replaced = match shared.registry.admit(shared.node(), &session, shared.options.max_sessions) {
        Ok(replaced) => replaced,
        Err(refusal) => return Err(Box::new((refusal, peer))),
    };
    if let Some(old) = replaced {
        old.close("another connection took its place".to_owned());
    }
    let keying = PathKeying { secret: PathSecret(exported.path_secret), trusted: session.plain };
    shared.event(SessionEvent::Up { node: peer.node, address: peer.address, incoming: !dialled, keying });
    Ok(Begun { session, stream: peer.stream, queue: receiver, closing: closed })
}

/// What only the two ends of a connection can know.
struct Exported {
    /// The session's id.
    id: [u8; 16],
    /// The key of its plain data streams.
    stream_key: [u8; 32],
    /// The secret of its paths over packet fabrics.
    path_secret: [u8; 32],
}

impl Exported {
    fn of(stream: &Tls) -> Result<Self, rustls::Error> {
        fn export<const N: usize>(stream: &Tls, label: &[u8]) -> Result<[u8; N], rustls::Error> {
            match stream {
                TlsStream::Client(stream) => stream.get_ref().1.export_keying_material([0; N], label, None),
                TlsStream::Server(stream) => stream.get_ref().1.export_keying_material([0; N], label, None),
            }
        }
        Ok(Self {
            id: export(stream, b"EXPORTER-velo session id")?,
            stream_key: export(stream, b"EXPORTER-velo stream key")?,
            path_secret: export(stream, b"EXPORTER-velo path secret")?,
        })
    }
}

impl Begun {
    fn run(self, shared: &Arc<Shared>) {
        let shared = shared.clone();
        tokio::spawn(async move {
            let Self { session, stream, queue, mut closing } = self;
            let (reader, writer) = tokio::io::split(stream);
            let left = session.expires.duration_since(SystemTime::now()).unwrap_or_default();
            let reason = tokio::select! {
                reason = receive(&shared, &session, reader) => reason,
                reason = transmit(&session, writer, queue) => reason,
                reason = closed(&mut closing) => reason,
                // Slices, because the clock may be set and sleeps of months are not worth trusting.
                () = sleep_in_slices(left, session.expires) => "its certificate has expired".to_owned(),
            };
            session.close(reason.clone());
            lock(&session.calls).clear();
            let _order = lock(&shared.registry.order);
            if shared.registry.remove(&session) {
                tracing::info!(peer = %session.node.short(), %reason, "session ended");
                shared.event(SessionEvent::Down { node: session.node, reason });
            }
        });
    }
}

/// Waits until somebody has given a reason to close.
async fn closed(closing: &mut watch::Receiver<Option<String>>) -> String {
    let reason = closing.wait_for(Option::is_some).await;
    reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
}

async fn sleep_in_slices(left: Duration, until: SystemTime) {
    let mut left = left;
    while !left.is_zero() {
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
        left = until.duration_since(SystemTime::now()).unwrap_or_default();
    }
}

/// Sends what is queued, and pings. Gives the reason why it ended.
async fn transmit(
    session: &Session,
    mut writer: WriteHalf<Tls>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> String {
    let ping = match Frame::Ping.encode() {
        Ok(ping) => ping,
        Err(error) => return error.to_string(),
    };
    loop {
        let bytes = match timeout(PING_AFTER, queue.recv()).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return "velod is stopping".to_owned(),
            Err(_) => {
                session.queued_bytes.fetch_add(ping.len(), Ordering::Relaxed);
                ping.clone()
            }
        };
        let written = timeout(WRITE_TIMEOUT, async {
            writer.write_all(&bytes).await?;
            session.queued_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            if queue.is_empty() { writer.flush().await } else { Ok(()) }
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return failed(&error),
            Err(_) => return "it does not read what it is sent".to_owned(),
        }
    }
}

/// What an error of the connection means.
fn failed(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
            "the connection broke off: its velod stopped or was killed, or the network failed".to_owned()
        }
        _ => format!("the connection failed: {error}"),
    }
}

/// Handles what the peer says. Gives the reason why it ended.
async fn receive(shared: &Arc<Shared>, session: &Arc<Session>, reader: ReadHalf<Tls>) -> String {
    let mut reader = BufReader::with_capacity(16 << 10, reader);
    let served = Arc::new(Semaphore::new(CALLS_SERVED));
    let opening = Arc::new(Semaphore::new(STREAMS_ASKED));
    loop {
        match timeout(SILENCE, reader.fill_buf()).await {
            Ok(Ok([])) => return "it closed the connection".to_owned(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return failed(&error),
            Err(_) => return format!("it said nothing for {} s", SILENCE.as_secs()),
        }
        let frame = match timeout(WRITE_TIMEOUT, read_frame(&mut reader, MAX_FRAME_BYTES)).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(error)) => return failed(&error),
            Err(_) => return "it stopped in the middle of a message".to_owned(),
        };
        let sent = match frame {
            Frame::Message(message) => {
                let checked = if let PeerMessage::Paths(paths) = &message { paths.check() } else { Ok(()) };
                checked
                    .map(|()| shared.event(SessionEvent::Message { node: session.node, message }))
                    .map_err(|why| format!("it broke the protocol: {why}"))
            }
            Frame::Call { seq, payload } => serve_call(shared, session, &served, seq, payload),
            Frame::Reply { seq, reply } => {
                if let Some(waiting) = lock(&session.calls).remove(&seq) {
                    let _ = waiting.send(reply);
                }
                Ok(())
            }
            Frame::OpenStreams(count) => {
                shared.open_asked(session, count, &opening);
                Ok(())
            }
            Frame::Ping => session.send(&Frame::Pong),
            Frame::Pong => Ok(()),
            Frame::Hello(_) | Frame::Refuse(_) => Err("it broke the protocol".to_owned()),
        };
        if let Err(reason) = sent {
            return reason;
        }
    }
}

fn serve_call(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    served: &Arc<Semaphore>,
    seq: u64,
    payload: Vec<u8>,
) -> Result<(), String> {
    let Ok(permit) = served.clone().try_acquire_owned() else {
        let reply = Err(format!("{CALLS_SERVED} calls of this node are being served: try again"));
        return session.send(&Frame::Reply { seq, reply });
    };
    let reply = shared.handle_call(Caller::Member(session.node), payload);
    let session = session.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let reply = reply.await;
        if let Err(reason) = session.send(&Frame::Reply { seq, reply }) {
            session.close(reason);
        }
    });
    Ok(())
}
