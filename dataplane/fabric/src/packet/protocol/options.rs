//! What goes into an endpoint and comes out of it: options, new paths, events, what it tells of itself.

use std::net::SocketAddr;
use std::time::Duration;

use velo_object::NodeId;

use super::seal::PathKeys;
use super::{Ask, ServeId};
use crate::counters::counters;
use crate::packet::limits;
use crate::{Completion, FabricCounters, PathId};

/// How an endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointOptions {
    /// With reads outstanding, how long nothing new may arrive before the path is closed.
    pub stall_timeout: Duration,
    /// The rate at which this host can receive, headers of the network included: all paths together are granted a little less than that.
    /// `None` where it is not known: then only each path's own window holds its sender back.
    pub line_rate_bytes_per_s: Option<u64>,
    /// How many endpoints share that line: each is granted its part of it.
    pub line_shares: u32,
    /// Whether the port loses nothing and pushes back: then there is neither pacing nor congestion control, and windows are fixed.
    pub lossless: bool,
    /// The largest datagram that the port carries.
    pub datagram_max_bytes: usize,
    /// The most bytes that a path may have granted that have not arrived.
    pub window_max_bytes: u64,
    /// How long a queue congestion control lets stand on the way: more fills a fast or jittery path better, less keeps it free for others.
    pub queue_target: Duration,
    /// Where nonces come from. They need not be secret, but no two endpoints should share it.
    pub seed: u64,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(2),
            line_rate_bytes_per_s: None,
            line_shares: 1,
            lossless: false,
            datagram_max_bytes: 1_472,
            window_max_bytes: limits::WINDOW_MAX_BYTES,
            queue_target: Duration::from_millis(2),
            seed: 0,
        }
    }
}

/// A path to be added.
#[derive(Debug)]
pub struct NewPath {
    /// Its number in events; not in use.
    pub id: PathId,
    /// Who is at the other end.
    pub peer: NodeId,
    /// Where the other end was last known to be.
    pub remote: SocketAddr,
    /// Its keys, which also say both sides' numbers of it on the wire; ours is not in use.
    pub keys: PathKeys,
    /// The largest datagram that the peer's port carries.
    pub datagram_max_bytes: usize,
}

/// Why a path was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPathError {
    /// The number is in use.
    #[error("path {0} exists already")]
    Exists(PathId),
    /// The number on the wire is in use.
    #[error("there is a path with number {0:#x} on the wire")]
    NumberInUse(u32),
    /// There are too many.
    #[error("there are {0} paths already")]
    TooMany(usize),
    /// A port that carries too little.
    #[error("a port that carries datagrams of at most {0} bytes cannot be used")]
    DatagramTooSmall(usize),
}

/// What has come of it.
#[derive(Debug)]
pub enum Event {
    /// A read has ended, or a path.
    Completion(Completion),
    /// A peer wants a range.
    Ask(Ask),
    /// What was asked for is needed no more, whether it was answered or not. Comes once for every [`Event::Ask`].
    Release {
        /// Its name.
        id: ServeId,
        /// Who asked.
        peer: NodeId,
        /// How many bytes of content were sent for it.
        sent_bytes: u64,
    },
    /// Datagrams have come through in both directions. Comes once for a path.
    Proven {
        /// Its number.
        path: PathId,
    },
}

/// How a path is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInfo {
    /// Where the other end is.
    pub remote: SocketAddr,
    /// Whether datagrams have come through in both directions.
    pub proven: bool,
    /// The largest datagram that is known to come through.
    pub datagram_bytes: usize,
    /// The smoothed round trip.
    pub rtt: Duration,
    /// The shortest round trip of late.
    pub rtt_min: Duration,
    /// Granted bytes that may be on their way at once.
    pub window_bytes: u64,
    /// Granted bytes that have not arrived.
    pub inflight_bytes: u64,
    /// At which rate bytes arrived in the last full round trip.
    pub rate_bytes_per_s: u64,
    /// Segments that arrived.
    pub segments_arrived: u64,
    /// Segments that were taken for lost and asked for again.
    pub segments_lost: u64,
    /// How far a packet may come late before it is taken for lost.
    pub reordering_packets: u64,
}

counters! {
    /// Plain counters of one endpoint, besides those that every fabric has; they only grow.
    EndpointCounters {
        ..fabric: FabricCounters,
        /// Datagrams that arrived from peers.
        datagrams_in,
        /// Datagrams sent.
        datagrams_out,
        /// Datagrams of no path.
        unknown,
        /// Datagrams that nobody who holds the keys sent, or that were damaged on their way.
        rejected,
        /// Datagrams that came again, or too late to tell.
        replayed,
        /// Segments that were taken for lost.
        segments_lost,
        /// Segments that came though they were taken for lost, or came twice.
        segments_spurious,
        /// Segments that came for reads which had ended.
        segments_late,
        /// Times that the end of what was granted did not come in time.
        tail_timeouts,
        /// Times that a path's window was cut.
        window_cuts,
        /// Datagrams that came with a mark of congestion.
        congestion_marks,
        /// Grants of peers that there was no room for.
        grants_dropped,
        /// Times that a path turned out to carry smaller datagrams than before.
        black_holes,
        /// Times that a peer has moved to another address.
        moves,
    }
}
