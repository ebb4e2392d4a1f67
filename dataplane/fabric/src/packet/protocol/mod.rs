//! The protocol of the packet fabric: reliable, authenticated, receiver-driven reads over datagrams. No socket, no clock: time, datagrams
//! and randomness are arguments, and what is to be done comes out of `poll_*`.

#![forbid(unsafe_code)]

mod congestion;
mod deadlines;
mod endpoint;
pub mod frame;
mod options;
mod pacer;
mod path;
mod probing;
mod reader;
mod reading;
mod reordering;
mod rtt;
pub mod seal;
mod segment_set;
mod supplier;

use std::any::Any;

use bytes::Bytes;
use velo_object::{BlobId, NodeId};

pub use endpoint::Endpoint;
pub use options::{AddPathError, EndpointCounters, EndpointOptions, Event, NewPath, PathInfo};

use crate::pool::Buffer;
use crate::{PathId, Refusal, What};

/// A moment, in nanoseconds since some beginning that all calls share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// Names a range that a peer wants to be supplied with, until its [`Event::Release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServeId {
    /// The path that it was asked on.
    pub path: PathId,
    /// Which of the peer's slots.
    pub slot: u16,
    /// The number of the read in that slot.
    pub read: u32,
}

/// A range that a peer wants: answer with [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its name.
    pub id: ServeId,
    /// Who asks.
    pub peer: NodeId,
    /// Which blob.
    pub blob: BlobId,
    /// Content or outboard.
    pub what: What,
    /// Where the range begins.
    pub offset_bytes: u64,
    /// How long it is: 1 to [`crate::pool::BUFFER_BYTES`].
    pub len: u32,
}

/// The answer to an [`Ask`].
pub struct Answer {
    /// Which.
    pub id: ServeId,
    /// The bytes, or why there are none.
    pub result: Result<Loaded, Refusal>,
}

/// Bytes to be sent.
pub struct Loaded {
    /// Where they are: shared memory or a buffer of a pool, from its beginning.
    pub bytes: LoadedBytes,
    /// How many: 1 to what was asked.
    pub len: u32,
    /// Dropped with it: keeps the bytes from being evicted.
    pub lease: Box<dyn Any + Send>,
}

/// Where bytes to be sent lie.
pub enum LoadedBytes {
    /// In a buffer.
    Buffer(Buffer),
    /// In memory that is shared.
    Shared(Bytes),
}
