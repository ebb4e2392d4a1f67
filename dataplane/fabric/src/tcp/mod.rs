//! The fabric over TCP streams: nonblocking sockets of one worker on one epoll, TLS 1.3 or plain.

#![forbid(unsafe_code)]

pub mod plain;
mod tls;

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use velo_object::NodeId;

pub use tls::{TlsError, TlsKeys, prepare_client, prepare_server};

use crate::{Completion, Fabric, FabricCounters, PathId, Read, Serve};

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
}

/// The TCP fabric of one worker.
pub struct Tcp {
    options: TcpOptions,
    serve: Arc<dyn Serve>,
    epoll: OwnedFd,
    counters: FabricCounters,
}

impl Tcp {
    /// A fabric without paths.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new(options: TcpOptions, serve: Arc<dyn Serve>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { options, serve, epoll, counters: FabricCounters::default() })
    }

    /// Takes a stream in.
    ///
    /// # Errors
    /// [`AddPathError`]; the stream is closed then.
    pub fn add_path(&mut self, path: TcpPath) -> Result<(), AddPathError> {
        let _ = (path, &self.options, &self.serve);
        todo!()
    }

    /// How many paths it has.
    pub fn paths(&self) -> usize {
        todo!()
    }
}

impl Fabric for Tcp {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn post_read(&mut self, _path: PathId, _read: Read) -> Result<(), Read> {
        todo!()
    }

    fn cancel(&mut self, _path: PathId, _tag: u64) {
        todo!()
    }

    fn poll(&mut self, _now: Instant, _completions: &mut Vec<Completion>) -> usize {
        todo!()
    }

    fn close(&mut self, _path: PathId) {
        todo!()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn next_deadline(&self) -> Option<Instant> {
        todo!()
    }

    fn counters(&self) -> FabricCounters {
        self.counters
    }
}
