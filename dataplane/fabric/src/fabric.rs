//! The [`Fabric`] trait and the words that every fabric speaks: reads, completions, refusals, what is served.

use std::any::Any;
use std::fs::File;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use velo_object::{BlobId, NodeId};

use crate::counters::counters;
use crate::pool::Buffer;

/// The number of a path, chosen by whoever adds it; one per path for as long as the fabric lives.
pub type PathId = u64;

/// Which bytes of a blob are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// Its content.
    Blob,
    /// Its outboard, encoded.
    Outboard,
}

/// A read of a remote range into a local buffer.
#[derive(Debug)]
pub struct Read {
    /// Names the read in its [`Completion`]; no two outstanding reads of a path may share one.
    pub tag: u64,
    /// The blob.
    pub blob: BlobId,
    /// Content or outboard.
    pub what: What,
    /// Where the range begins.
    pub offset_bytes: u64,
    /// The most bytes to deliver: 1 to [`crate::pool::BUFFER_BYTES`]. Fewer come where what is read ends earlier.
    pub len: u32,
    /// Where the bytes go.
    pub buffer: Buffer,
}

/// What a poll reports.
#[derive(Debug)]
pub enum Completion {
    /// A read has ended. Exactly one for every read that [`Fabric::post_read`] accepted.
    Read {
        /// The path it was posted on.
        path: PathId,
        /// Its tag.
        tag: u64,
        /// Its buffer; cut to the bytes that arrived where the result is `Ok`.
        buffer: Buffer,
        /// How many bytes arrived.
        result: Result<u32, ReadError>,
    },
    /// Datagrams have come through in both directions: the path works. Comes at most once, and not from `tcp`.
    PathProven {
        /// Its number.
        path: PathId,
    },
    /// A path is gone. Comes once, after the completions of all its reads; the fabric knows its number no more.
    PathClosed {
        /// Its number.
        path: PathId,
        /// Who is at the other end.
        peer: NodeId,
        /// Why.
        error: PathError,
    },
}

/// Why a read brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The peer does not hold that range.
    #[error("the peer does not hold that range: ask another source")]
    NotHere,
    /// The peer will not serve it to us.
    #[error("the peer refused: it may be busy or not allowed to serve this; ask another source")]
    Refused,
    /// The peer sent nothing for the stall timeout.
    #[error("the peer stalled: ask another source")]
    Stalled,
    /// The path was closed.
    #[error("the path was closed: ask again on another path")]
    PathClosed,
    /// [`Fabric::cancel`] ended it.
    #[error("cancelled")]
    Cancelled,
}

/// Why a path was closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// [`Fabric::close`] was called.
    #[error("closed by this node")]
    Local,
    /// The peer closed it.
    #[error("closed by the peer")]
    Peer,
    /// Reads were outstanding and nothing arrived for the stall timeout.
    #[error("the peer sent nothing for {ms} ms with reads outstanding: it stalled or cannot be reached")]
    Stalled {
        /// The timeout.
        ms: u64,
    },
    /// The peer took none of what we send for the send timeout.
    #[error("the peer took none of what we send for {ms} ms")]
    NotReading {
        /// The timeout.
        ms: u64,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The port that all paths of this worker's fabric go through failed: no path can be added to it any more.
    #[error("the port failed: {0}")]
    Port(std::io::Error),
    /// What we promised to serve could not be read: the fault is in this node's store.
    #[error("this node could not read what it serves ({0}): run `velo verify`")]
    Source(std::io::Error),
}

/// How a peer broke the protocol. Every variant closes the path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// It does not begin with the greeting.
    #[error("it does not begin with a greeting")]
    NoGreeting,
    /// It greeted twice.
    #[error("it greeted twice")]
    SecondGreeting,
    /// It speaks another version.
    #[error("it speaks version {0} of the data protocol: run the same release of velo on both nodes")]
    Version(u16),
    /// A kind of frame that does not exist.
    #[error("no frame has kind {0}")]
    Kind(u8),
    /// A field of a frame that is out of its range.
    #[error("a {frame} frame with a bad {field}")]
    Field {
        /// The frame.
        frame: &'static str,
        /// The field.
        field: &'static str,
    },
    /// An answer to a question that was not asked.
    #[error("it answered read {tag}, which was not asked")]
    Unasked {
        /// The tag it sent.
        tag: u64,
    },
    /// More bytes than asked for.
    #[error("it sends {len} bytes for read {tag}, which asked for {asked}")]
    TooLong {
        /// The tag.
        tag: u64,
        /// What it announces.
        len: u32,
        /// What was asked.
        asked: u32,
    },
    /// More requests at once than the protocol allows.
    #[error("it has more than {limit} reads outstanding")]
    TooManyReads {
        /// The limit.
        limit: usize,
    },
    /// A record that does not decrypt, or is none.
    #[error("a TLS record is not valid: {0}")]
    Record(&'static str),
    /// A TLS alert.
    #[error("it sent TLS alert {0}")]
    Alert(u8),
}

/// Why [`Serve`] gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// This node does not hold the range, or has not verified it.
    NotHere,
    /// This node will not serve it.
    Refused,
}

/// Gives fabrics what peers ask for. Called on worker threads: it must not block for long.
pub trait Serve: Send + Sync {
    /// The bytes of `range`, which is not empty, or a part of it from its beginning where what is meant ends earlier.
    /// Only verified bytes.
    ///
    /// # Errors
    /// A [`Refusal`], which the peer is told.
    fn serve(&self, peer: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal>;

    /// `bytes` of content were handed to the kernel for `peer`.
    fn sent(&self, peer: NodeId, bytes: u64);
}

/// A range about to be sent.
pub struct Served {
    /// Where its bytes are.
    pub content: ServedContent,
    /// How many: at least 1, at most what was asked.
    pub len: u32,
    /// Dropped when the bytes have been sent, or never will be: keeps them from being evicted.
    pub lease: Box<dyn Any + Send>,
}

/// Where served bytes are.
pub enum ServedContent {
    /// In a file, which is not cut short while the lease lives.
    File {
        /// The file, open for reading.
        file: Arc<File>,
        /// Where the range begins in it.
        offset_bytes: u64,
    },
    /// In memory, from its beginning.
    Bytes(Bytes),
}

/// One way of moving pieces between nodes. Belongs to one worker.
pub trait Fabric: Send {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Posts a read on a path.
    ///
    /// # Errors
    /// Gives the read back where the path is unknown or has as many outstanding reads as it may have, where its tag
    /// is in use, or where its length is 0 or more than a buffer holds.
    fn post_read(&mut self, path: PathId, read: Read) -> Result<(), Read>;

    /// Ends a read: its completion says [`ReadError::Cancelled`] unless it had ended before. What still arrives for it
    /// is thrown away.
    fn cancel(&mut self, path: PathId, tag: u64);

    /// One bounded turn: receives, serves, sends, and adds what ended to `completions`. Returns how much was done;
    /// after 0 the thread may sleep until [`descriptor`](Self::descriptor) is readable,
    /// [`next_deadline`](Self::next_deadline) has come or it has something to post.
    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize;

    /// Closes a path. The next poll reports its reads and that it is closed.
    fn close(&mut self, path: PathId);

    /// Readable when a poll has work to do; meaningful after a poll that returned 0.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// When to poll again even if the descriptor is not readable.
    fn next_deadline(&self) -> Option<Instant>;

    /// What has happened so far.
    fn counters(&self) -> FabricCounters;
}

counters! {
    /// Plain counters of one fabric, kept by its worker and copied out; they only grow.
    FabricCounters {
        /// Reads accepted from this node.
        reads_posted,
        /// Reads that delivered their bytes.
        reads_done,
        /// Reads that ended without.
        reads_failed,
        /// Reads of peers that were answered with bytes.
        reads_served,
        /// Reads of peers that were refused.
        reads_refused,
        /// Bytes of content delivered.
        payload_bytes_in,
        /// Bytes of content handed to the kernel.
        payload_bytes_out,
        /// Bytes received, with frames and encryption.
        bytes_in,
        /// Bytes handed to the kernel, with frames and encryption.
        bytes_out,
        /// Paths closed because the peer stalled.
        stalls,
        /// Paths closed because the peer read nothing of what we sent.
        not_reading,
        /// Paths closed because the peer broke the protocol.
        protocol_errors,
        /// Paths added.
        paths_opened,
        /// Paths closed, for whatever reason.
        paths_closed,
    }
}
