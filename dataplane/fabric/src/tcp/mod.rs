//! The fabric over TCP streams: nonblocking sockets of one worker on one epoll, TLS 1.3 or plain.
//!
//! A stream is symmetrical: each side greets, then may read from the other. All numbers are little-endian. Every frame
//! begins with the same 16 bytes:
//!
//! ```text
//!  0  1  kind: 1 GREETING, 2 READ, 3 DATA, 4 REFUSE, 5 CANCEL
//!  1  1  detail
//!  2  2  zero
//!  4  4  length
//!  8  8  tag
//! ```
//!
//! | frame | detail | length | tag | then |
//! |---|---|---|---|---|
//! | GREETING | version, 1 | 0 | `VELODATA` | |
//! | READ | 0 content, 1 outboard | 1 to 2^20 | new | 32 bytes blob id, 8 bytes offset |
//! | DATA | 0 | 1 to what was asked | of the READ | that many bytes |
//! | REFUSE | 0 not here, 1 refused, 2 cancelled | 0 | of the READ | |
//! | CANCEL | 0 | 0 | of the READ | |
//!
//! The greeting is the first frame and comes once. Each READ is answered by one DATA or one REFUSE, in the order of the
//! READs; a CANCEL asks for a REFUSE instead of DATA that has not begun. At most [`READS_PER_PATH`] READs wait for their
//! answer. Whatever else arrives closes the path.
//!
//! On a TLS stream the side that opened it sends nothing before it has the other's greeting: by then the other has taken
//! the keys out of its handshake ([`TlsKeys`]), and nothing can be stuck in there. Records are as `record` says.
//!
//! **Architecture invariant:** a peer costs at most one partial record, one chunk of sealed records, [`READS_PER_PATH`] requests
//! and a few KiB of frames, whatever it sends or leaves unread.

#![forbid(unsafe_code)]

mod frame;
mod incoming;
mod outgoing;
mod path;
pub mod plain;
mod record;
mod sealed;
mod tls;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use velo_object::NodeId;

#[doc(hidden)]
pub use incoming::fuzz as fuzz_incoming;
pub use tls::{TlsError, TlsKeys, prepare_client, prepare_server};

use self::frame::{Frame, MAX_READ_BYTES, Request};
use self::path::{Path, TURN_SCRATCH_BYTES, Turn};
use self::sealed::Chunks;
use crate::{Completion, Fabric, FabricCounters, PathError, PathId, Read, ReadError, Serve};

/// The most reads that may be outstanding on a path, in each direction. Part of the protocol.
pub const READS_PER_PATH: usize = 64;

/// How a [`Tcp`] behaves.
#[derive(Debug, Clone, Copy)]
pub struct TcpOptions {
    /// With reads outstanding, how long nothing may arrive.
    pub stall_timeout: Duration,
    /// With something to send, how long the peer may take nothing.
    pub send_timeout: Duration,
    /// The most bytes received, and the most sent, for one path in one turn.
    pub turn_bytes: usize,
    /// The most memory for encrypted bytes that the kernel has not taken yet, over all paths.
    pub send_memory_bytes: usize,
    /// The size of the kernel's send and receive buffers of each socket; `None` leaves the kernel to tune them.
    pub socket_buffer_bytes: Option<usize>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(2),
            send_timeout: Duration::from_secs(30),
            turn_bytes: 1 << 20,
            send_memory_bytes: 32 << 20,
            socket_buffer_bytes: None,
        }
    }
}

/// A stream to a peer, ready for frames: after the TLS handshake, or after the preamble.
#[derive(Debug)]
pub struct TcpPath {
    /// Its number; not in use in this fabric.
    pub id: PathId,
    /// Who is at the other end, as authenticated.
    pub peer: NodeId,
    /// The socket. Made nonblocking when it is added.
    pub stream: TcpStream,
    /// The keys; `None` for a plain stream.
    pub tls: Option<TlsKeys>,
}

/// Why a path was not added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddPathError {
    /// The number is in use.
    #[error("path {0} exists already")]
    Exists(PathId),
    /// The socket cannot be used.
    #[error("the socket of a path to {peer} cannot be used: {error}")]
    Socket {
        /// Whose it is.
        peer: NodeId,
        /// What the system says.
        error: io::Error,
    },
    /// The keys cannot be used.
    #[error("the keys of a path to {peer} cannot be used: {error}")]
    Keys {
        /// Whose they are.
        peer: NodeId,
        /// Why.
        error: TlsError,
    },
}

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Paths that get a turn in one poll.
const TURNS_PER_POLL: usize = 32;

/// The TCP fabric of one worker.
pub struct Tcp {
    options: TcpOptions,
    serve: Arc<dyn Serve>,
    epoll: OwnedFd,
    paths: HashMap<PathId, Path>,
    /// Paths that have something to do, each once.
    due: VecDeque<PathId>,
    /// Paths that have something to send and no memory to seal it in.
    starved: VecDeque<PathId>,
    scratch: Box<[u8]>,
    chunks: Chunks,
    /// When the last poll was.
    now: Instant,
    /// No path expires before.
    next_expiry: Option<Instant>,
    /// Completions that came up outside of a poll.
    early: Vec<Completion>,
    counters: FabricCounters,
}

impl Tcp {
    /// A fabric without paths.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new(options: TcpOptions, serve: Arc<dyn Serve>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            options,
            serve,
            epoll,
            paths: HashMap::new(),
            due: VecDeque::new(),
            starved: VecDeque::new(),
            scratch: vec![0; TURN_SCRATCH_BYTES].into_boxed_slice(),
            chunks: Chunks::new(options.send_memory_bytes),
            now: Instant::now(),
            next_expiry: None,
            early: Vec::new(),
            counters: FabricCounters::default(),
        })
    }

    /// Takes a stream in.
    ///
    /// # Errors
    /// [`AddPathError`]; the stream is closed then.
    pub fn add_path(&mut self, path: TcpPath) -> Result<(), AddPathError> {
        let TcpPath { id, peer, stream, tls } = path;
        if self.paths.contains_key(&id) {
            return Err(AddPathError::Exists(id));
        }
        let socket = |error| AddPathError::Socket { peer, error };
        self.configure(&stream).map_err(socket)?;
        let path =
            Path::new(id, peer, stream, tls.as_ref()).map_err(|error| AddPathError::Keys { peer, error })?;
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, &path.stream, epoll::EventData::new_u64(id), flags)
            .map_err(|error| socket(error.into()))?;
        self.paths.insert(id, path);
        self.make_due(id);
        self.counters.paths_opened += 1;
        Ok(())
    }

    /// How many paths it has.
    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    fn configure(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        if let Some(bytes) = self.options.socket_buffer_bytes {
            let socket = socket2::SockRef::from(stream);
            socket.set_send_buffer_size(bytes)?;
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(())
    }

    fn make_due(&mut self, id: PathId) {
        if let Some(path) = self.paths.get_mut(&id)
            && !path.queued
        {
            path.queued = true;
            self.due.push_back(id);
        }
    }

    /// Takes what the kernel has to say. Returns how much that was.
    fn take_events(&mut self) -> usize {
        let mut taken = 0;
        // Twice as often as there are paths at most, so that a turn ends.
        for _ in 0..=2 * self.paths.len() / EVENTS {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let mut space = [const { MaybeUninit::uninit() }; EVENTS];
            // Fails only by a signal; the next poll sees the events.
            let Ok((events, _)) = epoll::wait(&self.epoll, &mut space, Some(&now)) else { break };
            let count = events.len();
            for event in events {
                let flags = event.flags;
                let Some(path) = self.paths.get_mut(&event.data.u64()) else { continue };
                let gone = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
                path.hung_up |= gone || flags.intersects(epoll::EventFlags::RDHUP);
                path.readable |= path.hung_up || flags.intersects(epoll::EventFlags::IN);
                path.writable |= gone || flags.intersects(epoll::EventFlags::OUT);
                if !path.queued {
                    path.queued = true;
                    self.due.push_back(path.id);
                }
            }
            taken += count;
            if count < EVENTS {
                break;
            }
        }
        taken
    }

    /// Gives each due path its turn. Returns how many bytes moved.
    fn take_turns(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize {
        let mut moved = 0;
        for _ in 0..self.due.len().min(TURNS_PER_POLL) {
            let Some(id) = self.due.pop_front() else { break };
            let Some(path) = self.paths.get_mut(&id) else { continue };
            path.queued = false;
            self.chunks.starved = false;
            let mut turn = Turn {
                now,
                options: &self.options,
                serve: &*self.serve,
                scratch: &mut self.scratch,
                chunks: &mut self.chunks,
                counters: &mut self.counters,
                completions,
            };
            match path.turn(&mut turn) {
                Ok(count) => {
                    moved += count;
                    let starved = self.chunks.starved;
                    if let Some(deadline) = path.deadline(&self.options) {
                        self.next_expiry = Some(self.next_expiry.map_or(deadline, |next| next.min(deadline)));
                    }
                    if path.is_due(starved) {
                        path.queued = true;
                        self.due.push_back(id);
                    } else if starved && !path.starving {
                        path.starving = true;
                        self.starved.push_back(id);
                    }
                }
                Err(error) => self.drop_path(id, error, completions),
            }
            self.wake_starved();
        }
        moved
    }

    /// Gives a path that waits for a chunk its turn, where there is one.
    fn wake_starved(&mut self) {
        while self.chunks.has_free()
            && let Some(id) = self.starved.pop_front()
        {
            // It may have ended while it waited: then the chunk is for the next.
            if let Some(path) = self.paths.get_mut(&id) {
                path.starving = false;
                return self.make_due(id);
            }
        }
    }

    fn drop_path(&mut self, id: PathId, error: PathError, completions: &mut Vec<Completion>) {
        let Some(mut path) = self.paths.remove(&id) else { return };
        path.finish(&mut self.chunks);
        let stalled = matches!(error, PathError::Stalled { .. });
        for (tag, buffer) in path.incoming.take_reads() {
            let error = if stalled { ReadError::Stalled } else { ReadError::PathClosed };
            self.counters.reads_failed += 1;
            completions.push(Completion::Read { path: id, tag, buffer, result: Err(error) });
        }
        self.counters.paths_closed += 1;
        match error {
            PathError::Stalled { .. } => self.counters.stalls += 1,
            PathError::NotReading { .. } => self.counters.not_reading += 1,
            PathError::Protocol(_) => self.counters.protocol_errors += 1,
            _ => {}
        }
        completions.push(Completion::PathClosed { path: id, peer: path.peer, error });
    }

    fn expire(&mut self, now: Instant, completions: &mut Vec<Completion>) {
        if self.next_expiry.is_none_or(|next| now < next) {
            return;
        }
        let options = &self.options;
        let expired: Vec<_> =
            self.paths.values().filter_map(|path| Some((path.id, path.expired(now, options)?))).collect();
        for (id, error) in expired {
            self.drop_path(id, error, completions);
            self.wake_starved();
        }
        // What could not be judged yet is looked at again soon, not at once.
        let soon = now + self.options.stall_timeout / 16;
        self.next_expiry = self.paths.values().filter_map(|path| path.deadline(&self.options)).min();
        self.next_expiry = self.next_expiry.map(|next| next.max(soon));
    }
}

impl Fabric for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn post_read(&mut self, path: PathId, read: Read) -> Result<(), Read> {
        let fits = (1..=MAX_READ_BYTES).contains(&read.len)
            && read.offset_bytes.checked_add(read.len.into()).is_some();
        let Some(to) = self.paths.get_mut(&path).filter(|to| {
            fits && to.closing.is_none()
                && to.incoming.outstanding() < READS_PER_PATH
                && to.outgoing.has_room()
                && !to.incoming.has_tag(read.tag)
        }) else {
            return Err(read);
        };
        let Read { tag, blob, what, offset_bytes, len, mut buffer } = read;
        buffer.set_len(len as usize);
        to.incoming.expect(tag, len, buffer);
        to.outgoing.push(&Frame::Read(Request { tag, blob, what, offset_bytes, len, cancelled: false }));
        self.counters.reads_posted += 1;
        self.make_due(path);
        Ok(())
    }

    fn cancel(&mut self, path: PathId, tag: u64) {
        let Some(from) = self.paths.get_mut(&path) else { return };
        let Some((buffer, tell)) = from.incoming.cancel(tag) else { return };
        if tell {
            from.outgoing.push(&Frame::Cancel { tag });
        }
        self.counters.reads_failed += 1;
        self.early.push(Completion::Read { path, tag, buffer, result: Err(ReadError::Cancelled) });
        self.make_due(path);
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize {
        self.now = now;
        let early = self.early.len();
        completions.append(&mut self.early);
        let events = self.take_events();
        let moved = self.take_turns(now, completions);
        let before = completions.len();
        self.expire(now, completions);
        early + events + moved + (completions.len() - before) + self.due.len()
    }

    fn close(&mut self, path: PathId) {
        if let Some(closing) = self.paths.get_mut(&path) {
            closing.closing = Some(PathError::Local);
            self.make_due(path);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.due.is_empty() && self.early.is_empty() { self.next_expiry } else { Some(self.now) }
    }

    fn counters(&self) -> FabricCounters {
        self.counters
    }
}
