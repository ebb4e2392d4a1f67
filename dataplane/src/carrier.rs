//! A fabric as a worker drives it: [`Carrier`], for TCP streams, for every port of the packet fabric, and for RDMA.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use velo_fabric::packet::port::Port;
use velo_fabric::packet::protocol::NewPath;
use velo_fabric::packet::{Packet, PacketPathError};
use velo_fabric::rdma::device::{Completions, Prepared};
use velo_fabric::rdma::{AddPathError, Rdma};
use velo_fabric::tcp::{Tcp, TcpPath};
use velo_fabric::{Completion, Fabric, FabricCounters, PathError, PathId, Read, rdma};
use velo_object::NodeId;

use crate::numbers::PortFacts;

/// A path for some fabric.
#[derive(Debug)]
pub(crate) enum AnyPath {
    /// A stream.
    Tcp(Box<TcpPath>),
    /// Packets.
    Packet(Box<NewPath>),
    /// A queue pair.
    Rdma(Box<RdmaPath>),
}

/// A connected queue pair that becomes a path.
pub(crate) struct RdmaPath {
    pub(crate) id: PathId,
    pub(crate) peer: NodeId,
    pub(crate) prepared: Prepared,
    /// Whether this side greets first.
    pub(crate) begins: bool,
}

impl fmt::Debug for RdmaPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaPath").field("id", &self.id).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl AnyPath {
    /// Its number, and who is at the other end.
    pub(crate) fn names(&self) -> (PathId, NodeId) {
        match self {
            Self::Tcp(path) => (path.id, path.peer),
            Self::Packet(path) => (path.id, path.peer),
            Self::Rdma(path) => (path.id, path.peer),
        }
    }
}

/// A fabric in the place of one whose device had failed.
pub(crate) struct Renewed {
    pub(crate) carrier: Box<dyn Carrier>,
    /// What the status says of it.
    pub(crate) words: String,
    pub(crate) facts: PortFacts,
}

impl fmt::Debug for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewed").field("words", &self.words).finish_non_exhaustive()
    }
}

/// How a path does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PathHealth {
    /// The smoothed round trip.
    pub(crate) rtt_us: u64,
    /// Of what this side reads.
    pub(crate) segments_arrived: u64,
    pub(crate) segments_lost: u64,
}

/// A fabric that takes paths of its kind.
pub(crate) trait Carrier: Fabric {
    /// Takes a path.
    ///
    /// # Errors
    /// Why it cannot.
    fn take(&mut self, path: AnyPath) -> Result<(), PathError>;

    /// How a path does, where the fabric knows.
    fn health(&self, path: PathId) -> Option<PathHealth> {
        let _ = path;
        None
    }

    /// Why its device is of no further use, where it is.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Whether its device has failed and nothing of it is in use any more: it is best [dropped](Spent::of).
    fn is_spent(&self) -> bool {
        false
    }

    /// Counters of this kind of fabric alone, by name; always the same names in the same order.
    fn own_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        let _ = each;
    }
}

fn refused(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> PathError {
    PathError::Io(std::io::Error::other(error))
}

/// The error for a path of another kind, which nobody gives a worker.
fn other_kind() -> PathError {
    refused("a path of another fabric")
}

impl Carrier for Tcp {
    fn take(&mut self, path: AnyPath) -> Result<(), PathError> {
        match path {
            AnyPath::Tcp(path) => self.add_path(*path).map_err(refused),
            AnyPath::Packet(_) | AnyPath::Rdma(_) => Err(other_kind()),
        }
    }
}

impl<P: Port> Carrier for Packet<P> {
    fn take(&mut self, path: AnyPath) -> Result<(), PathError> {
        match path {
            AnyPath::Packet(path) => self.add_path(*path).map_err(|error| match error {
                PacketPathError::PortFailed(_) => PathError::Port(std::io::Error::other(error)),
                error => refused(error),
            }),
            AnyPath::Tcp(_) | AnyPath::Rdma(_) => Err(other_kind()),
        }
    }

    fn health(&self, path: PathId) -> Option<PathHealth> {
        let info = self.path_info(path)?;
        Some(PathHealth {
            rtt_us: info.rtt.as_micros() as u64,
            segments_arrived: info.segments_arrived,
            segments_lost: info.segments_lost,
        })
    }

    fn own_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.endpoint_counters().named().for_each(|(name, value)| each(name, value));
        self.port_counters().named().for_each(|(name, value)| each(name, value));
    }
}

impl Carrier for Rdma<Completions> {
    fn take(&mut self, path: AnyPath) -> Result<(), PathError> {
        let AnyPath::Rdma(path) = path else { return Err(other_kind()) };
        let RdmaPath { id, peer, prepared, begins } = *path;
        let adopted = self.verbs_mut().adopt(prepared);
        let qp = adopted.ok_or_else(|| refused("another queue pair of its number is not quite gone"))?;
        self.add_path(Instant::now(), rdma::NewPath { id, peer, qp, begins }).map_err(|error| match error {
            AddPathError::DeviceFailed => PathError::Port(std::io::Error::other(error)),
            error => refused(error),
        })
    }

    fn failure(&self) -> Option<String> {
        Rdma::failure(self).map(ToString::to_string)
    }

    fn is_spent(&self) -> bool {
        Rdma::is_spent(self)
    }

    fn own_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.rdma_counters().named().for_each(|(name, value)| each(name, value));
    }
}

/// What remains of a fabric whose device has failed: its name and its counters.
pub(crate) struct Spent {
    name: &'static str,
    counters: FabricCounters,
    own: Vec<(&'static str, u64)>,
    /// Never readable.
    nothing: Option<OwnedFd>,
}

impl Spent {
    pub(crate) fn of(fabric: &dyn Carrier) -> Self {
        let mut own = Vec::new();
        fabric.own_counters(&mut |name, value| own.push((name, value)));
        let nothing = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok();
        Self { name: fabric.name(), counters: fabric.counters(), own, nothing }
    }
}

impl Fabric for Spent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn post_read(&mut self, _: PathId, read: Read) -> Result<(), Read> {
        Err(read)
    }

    fn cancel(&mut self, _: PathId, _: u64) {}

    fn poll(&mut self, _: Instant, _: &mut Vec<Completion>) -> usize {
        0
    }

    fn close(&mut self, _: PathId) {}

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.nothing.as_ref().map(AsFd::as_fd)
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn counters(&self) -> FabricCounters {
        self.counters
    }
}

impl Carrier for Spent {
    fn take(&mut self, path: AnyPath) -> Result<(), PathError> {
        // To destroy a queue pair may take a device its time.
        std::thread::spawn(move || drop(path));
        Err(PathError::Port(std::io::Error::other("its device has failed")))
    }

    fn own_counters(&self, each: &mut dyn FnMut(&'static str, u64)) {
        self.own.iter().for_each(|(name, value)| each(name, *value));
    }
}
