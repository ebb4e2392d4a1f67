//! What passes between the sessions and the engine.

use std::net::{SocketAddr, TcpStream};

use serde::{Deserialize, Serialize};
use velo_fabric::packet::protocol::seal::PathSecret;
use velo_fabric::tcp::TlsKeys;
use velo_object::{BlobId, NodeId, PieceSet};

use super::paths::PathMessage;

/// What happens on sessions. For one node they come in order: up, messages and streams, down. A new [`SessionEvent::Up`] while one is up
/// means that another connection took its place.
#[derive(Debug)]
pub enum SessionEvent {
    /// A session is up.
    Up {
        /// With whom.
        node: NodeId,
        /// Their address.
        address: SocketAddr,
        /// Whether they dialled.
        incoming: bool,
        /// What paths of packet fabrics are made of.
        keying: PathKeying,
    },
    /// A session has ended, or could not be made.
    Down {
        /// With whom.
        node: NodeId,
        /// Why, for people.
        reason: String,
    },
    /// They say something.
    Message {
        /// Who.
        node: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// A data stream is ready for the fabric.
    Stream {
        /// To whom.
        node: NodeId,
        /// The stream.
        stream: DataStream,
    },
}

/// What the two ends of a session, and nobody else, know of their paths.
#[derive(Debug, Clone)]
pub struct PathKeying {
    /// All keys come from it.
    pub secret: PathSecret,
    /// Whether both sides declare their network trusted: only then may frames go in the clear.
    pub trusted: bool,
}

/// A data stream after its handshake.
#[derive(Debug)]
pub struct DataStream {
    /// The socket; nonblocking.
    pub tcp: TcpStream,
    /// Its keys; none where both sides declare their network trusted.
    pub tls: Option<TlsKeys>,
}

/// What nodes tell each other about content and the ways to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// I want to know who has these, and hear of what is added.
    Interest {
        /// Which.
        blobs: Vec<BlobId>,
    },
    /// I have this much of it.
    Have {
        /// Which blob.
        blob: BlobId,
        /// Its size, if known.
        size_bytes: Option<u64>,
        /// Pieces that are here, holes among them.
        have: PieceSet,
        /// Those that are holes.
        holes: PieceSet,
    },
    /// I have nothing of it.
    HaveNot {
        /// Which blob.
        blob: BlobId,
    },
    /// These have been added.
    HaveMore {
        /// Which blob.
        blob: BlobId,
        /// Pieces, and whether each is a hole.
        pieces: Vec<(u64, bool)>,
    },
    /// I am no longer interested in these.
    Done {
        /// Which.
        blobs: Vec<BlobId>,
    },
    /// About paths of packet fabrics.
    Paths(PathMessage),
}
