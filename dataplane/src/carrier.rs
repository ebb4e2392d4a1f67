//! A fabric as a worker drives it: [`Carrier`], for TCP streams and for every port of the packet fabric.

use velo_fabric::packet::port::Port;
use velo_fabric::packet::protocol::NewPath;
use velo_fabric::packet::{Packet, PacketPathError};
use velo_fabric::tcp::{Tcp, TcpPath};
use velo_fabric::{Fabric, PathError, PathId};
use velo_object::NodeId;

/// A path for some fabric.
#[derive(Debug)]
pub(crate) enum AnyPath {
    /// A stream.
    Tcp(Box<TcpPath>),
    /// Packets.
    Packet(Box<NewPath>),
}

impl AnyPath {
    /// Its number, and who is at the other end.
    pub(crate) fn names(&self) -> (PathId, NodeId) {
        match self {
            Self::Tcp(path) => (path.id, path.peer),
            Self::Packet(path) => (path.id, path.peer),
        }
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
            AnyPath::Packet(_) => Err(other_kind()),
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
            AnyPath::Tcp(_) => Err(other_kind()),
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
