//! What is said over the local socket of velod: one [`Request`], then one or more [`Response`]s.
//!
//! A frame is a little-endian u32 length (at most [`MAX_FRAME_BYTES`]) and that many bytes of `postcard`.
//! File descriptors travel beside the frame that speaks of them, in order, by `SCM_RIGHTS`; never a path.
//! Requests on one connection are answered in order; [`Request::Watch`] and [`Request::Verify`] stream
//! [`Response`]s until one that says it is the last.

use std::net::SocketAddr;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use velo_object::{BlobId, NodeId, ObjectId, PieceSet};

/// Version of the messages; both sides refuse another.
pub const PROTOCOL_VERSION: u32 = 2;
/// The largest frame, in bytes.
pub const MAX_FRAME_BYTES: usize = 8 << 20;
/// The most descriptors beside one frame (the kernel's SCM_MAX_FD is 253).
pub const MAX_DESCRIPTORS: usize = 250;

/// A running or ended job.
pub type JobId = u64;
/// A put that has begun and is not committed.
pub type PutId = u64;

/// What a caller asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// The first message on every connection. Answered by [`Response::Hello`].
    Hello {
        /// [`PROTOCOL_VERSION`] of the caller.
        version: u32,
        /// What the caller calls itself, for the log.
        client: String,
    },
    /// What is known of these ids. Answered by [`Response::Stats`], in order.
    Stat(Vec<BlobId>),
    /// Up to `limit` complete or partial blobs after `after`, in order of ids. [`Response::List`].
    List {
        /// Begin after this one.
        after: Option<BlobId>,
        /// At most this many.
        limit: u32,
    },
    /// All ids that begin so (at most 16 are returned). [`Response::Ids`].
    Resolve(velo_object::IdPrefix),

    /// Begins a put: what it ingests is kept from eviction until it is committed or the connection ends. [`Response::Put`].
    PutBegin,
    /// Ingests files (one descriptor each, in tree order). Those of at most `velo_object::PACKED_FILE_BYTES` go into the
    /// put's packs, the others are stored as blobs. [`Response::Ingested`], one each.
    PutFiles {
        /// Which put.
        put: PutId,
        /// How many descriptors stand beside this.
        count: u32,
    },
    /// Ingests small contents given inline (targets of symbolic links), in tree order, into the packs. [`Response::Ingested`].
    PutSmall {
        /// Which put.
        put: PutId,
        /// The contents, each at most `velo_object::PACKED_FILE_BYTES`.
        contents: Vec<Vec<u8>>,
    },
    /// Closes the packs. [`Response::Packs`]: their ids in order.
    PutPacks {
        /// Which put.
        put: PutId,
    },
    /// Commits: the root (a blob of this put, or a tree whose table is in the descriptor beside this) and all it names are
    /// durable and pinned when [`Response::Done`] comes.
    PutCommit {
        /// Which put.
        put: PutId,
        /// The root; a tree's bytes come as a descriptor (memfd or file) unless the tree is here already.
        root: ObjectId,
    },
    /// Ingests one blob from a descriptor (a pipe or a file) that should have this id, as cache. [`Response::Ingested`].
    Ingest {
        /// The id it must have.
        expected: BlobId,
    },

    /// A read-only descriptor of a blob, and where in it the blob lies. For a partial blob only where `partial` is set: then only
    /// ranges for which [`Request::Wait`] has answered may be read, and only if the file still has a name (a link) then: one
    /// without gave way to another transfer, and the blob must be opened again. [`ErrorCode::NotFound`] also while the size of a
    /// partial blob is not proven. [`Response::Opened`].
    Open {
        /// Which blob.
        blob: BlobId,
        /// Whether a partial one will do.
        partial: bool,
    },
    /// Answers [`Response::Done`] when the range is verified and readable.
    Wait {
        /// Which blob.
        blob: BlobId,
        /// Bytes.
        range: Range<u64>,
        /// Give up with [`ErrorCode::TimedOut`] after this long.
        timeout_ms: u64,
    },

    /// Starts a job. [`Response::Job`]. With descriptors beside it, each names a place for one of `sinks`, in order: that blob is
    /// received straight into it and not kept.
    Pull {
        /// What to get. A tree brings all it names; an id that is here already costs nothing.
        roots: Vec<ObjectId>,
        /// Only the tree tables themselves, not what they name.
        tables_only: bool,
        /// Nodes that may have them; more may be added later.
        sources: Vec<NodeId>,
        /// Higher goes first.
        priority: u8,
        /// Blobs that go to the descriptors beside this message.
        sinks: Vec<BlobId>,
        /// Where `roots` were named by a verified tree or a ref: their sizes, if known.
        sizes: Vec<Option<u64>>,
    },
    /// More places to get a job's content from. [`Response::Done`].
    AddSources {
        /// Which job.
        job: JobId,
        /// The nodes.
        sources: Vec<NodeId>,
    },
    /// Streams [`Response::Progress`] about every `every_ms` until the job has ended.
    Watch {
        /// Which job.
        job: JobId,
        /// The time between two.
        every_ms: u32,
    },
    /// Ends a job; what has arrived stays and a later one goes on from there. [`Response::Done`].
    Cancel {
        /// Which job.
        job: JobId,
    },
    /// All running jobs, and those that ended lately. [`Response::Jobs`].
    Jobs,

    /// Pins (or unpins) roots. [`Response::Done`].
    Pin {
        /// What.
        root: ObjectId,
        /// Whether it is to be pinned.
        pinned: bool,
    },
    /// The pinned roots. [`Response::Pins`].
    Pins,
    /// Removes a root and what only it names. [`Response::Removed`].
    Remove {
        /// What.
        root: ObjectId,
    },
    /// Hashes everything again; what is damaged is quarantined. Streams [`Response::Verifying`].
    Verify,
    /// Counters and state. [`Response::Status`].
    Status,

    /// From control: who is in the cluster and how to reach them. Replaces what was said before. [`Response::Done`].
    Members(Vec<Member>),
    /// From control: these certificates are revoked; their sessions are closed now. [`Response::Done`].
    Revoked(Vec<NodeId>),
    /// From control: the certificate on disk is a new one. [`Response::Done`].
    ReloadIdentity,
    /// From control: a message to the control service of another node. [`Response::Reply`].
    Call {
        /// To whom.
        node: NodeId,
        /// At most 4 MiB.
        payload: Vec<u8>,
        /// Give up after this long.
        timeout_ms: u64,
    },
    /// From control: this connection answers calls of other nodes from now on. velod sends [`Response::Incoming`] at any time
    /// and is answered by [`Request::Answer`]; nothing else may be asked on it.
    Serve,
    /// The answer to an [`Response::Incoming`]; not answered itself.
    Answer {
        /// Which call.
        call: u64,
        /// The reply, or why there is none.
        reply: Result<Vec<u8>, String>,
    },

    /// A value of the book. [`Response::BookValue`].
    BookGet {
        /// The table: `refs`, `policies`, `cluster`, …
        table: String,
        /// The key.
        key: Vec<u8>,
    },
    /// Writes a value durably (or deletes it), if the present one is what the caller expects. [`Response::Done`] or
    /// [`ErrorCode::Conflict`].
    BookPut {
        /// The table.
        table: String,
        /// The key.
        key: Vec<u8>,
        /// The new value; none deletes.
        value: Option<Vec<u8>>,
        /// What must stand there now; outer none: anything.
        expect: Option<Option<Vec<u8>>>,
    },
    /// Up to `limit` entries of a table after a key. [`Response::BookEntries`].
    BookScan {
        /// The table.
        table: String,
        /// Begin after this key.
        after: Option<Vec<u8>>,
        /// At most this many.
        limit: u32,
    },
    /// Gives up files that are cache: nothing that is pinned or in use. [`Response::Removed`].
    Forget {
        /// Which.
        blobs: Vec<BlobId>,
    },
}

/// What velod answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Hello`].
    Hello {
        /// velod's [`PROTOCOL_VERSION`].
        version: u32,
        /// Its node.
        node: NodeId,
        /// Its process id.
        pid: u32,
    },
    /// Done, and nothing more to say.
    Done,
    /// It could not be done.
    Error(Error),
    /// To [`Request::Stat`].
    Stats(Vec<Option<BlobStat>>),
    /// To [`Request::List`].
    List(Vec<(BlobId, BlobStat)>),
    /// To [`Request::Resolve`].
    Ids(Vec<BlobId>),
    /// To [`Request::PutBegin`].
    Put(PutId),
    /// To the requests that ingest.
    Ingested(Vec<Ingested>),
    /// To [`Request::PutPacks`].
    Packs(Vec<Ingested>),
    /// To [`Request::Open`]; the descriptor is beside it.
    Opened {
        /// Where in the file the blob begins.
        offset_bytes: u64,
        /// Its size.
        size_bytes: u64,
        /// Whether all of it is there.
        complete: bool,
    },
    /// To [`Request::Pull`].
    Job(JobId),
    /// To [`Request::Watch`]; the last has a state that is not [`JobState::Running`].
    Progress(JobStatus),
    /// To [`Request::Jobs`].
    Jobs(Vec<JobStatus>),
    /// To [`Request::Pins`].
    Pins(Vec<ObjectId>),
    /// To [`Request::Remove`] and [`Request::Forget`].
    Removed {
        /// Blobs removed.
        blobs: u64,
        /// Bytes freed.
        bytes: u64,
        /// Blobs that other roots still name.
        kept: u64,
    },
    /// To [`Request::Verify`], several times.
    Verifying {
        /// Blobs hashed.
        blobs: u64,
        /// Bytes hashed.
        bytes: u64,
        /// Bytes to hash in all.
        total_bytes: u64,
        /// Damaged ones, newly found.
        damaged: Vec<BlobId>,
        /// Whether this is the last.
        last: bool,
    },
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Call`].
    Reply(Vec<u8>),
    /// On a connection that serves: another node asks.
    Incoming {
        /// To be repeated in [`Request::Answer`].
        call: u64,
        /// Who asks.
        from: Caller,
        /// What.
        payload: Vec<u8>,
    },
    /// To [`Request::BookGet`].
    BookValue(Option<Vec<u8>>),
    /// To [`Request::BookScan`].
    BookEntries(Vec<(Vec<u8>, Vec<u8>)>),
}

/// Who sends a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// A member, by its certificate.
    Member(NodeId),
    /// Somebody without a certificate, who may only ask to join.
    Stranger(SocketAddr),
}

/// One ingested content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingested {
    /// Its id.
    pub blob: BlobId,
    /// Its size.
    pub size_bytes: u64,
}

/// What is known of a blob on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStat {
    /// Its size, if known.
    pub size_bytes: Option<u64>,
    /// Whether all of it is here.
    pub complete: bool,
    /// Verified pieces that are here (holes among them).
    pub have: PieceSet,
    /// Whether a pin keeps it.
    pub pinned: bool,
    /// Bytes it takes on disk.
    pub stored_bytes: u64,
}

/// State of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// It goes on.
    Running,
    /// No source that is reachable has what is missing; it goes on when one comes.
    Waiting,
    /// All is here.
    Complete,
    /// It was cancelled.
    Cancelled,
    /// It cannot go on.
    Failed(Error),
}

/// Where a job stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Which job.
    pub job: JobId,
    /// What it gets.
    pub roots: Vec<ObjectId>,
    /// How it goes.
    pub state: JobState,
    /// Bytes in all, as far as is known.
    pub total_bytes: u64,
    /// Bytes that are here and verified (also those that were here before).
    pub done_bytes: u64,
    /// Bytes that this job received.
    pub received_bytes: u64,
    /// Pieces that came and did not verify.
    pub bad_pieces: u64,
    /// Verified pieces that were received though they were here already.
    pub duplicate_pieces: u64,
    /// Milliseconds since it began.
    pub elapsed_ms: u64,
    /// Bytes from each source.
    pub sources: Vec<(NodeId, u64)>,
    /// Blobs not yet complete (at most 64 are listed).
    pub missing: Vec<BlobId>,
}

impl JobStatus {
    /// A job of which nothing has come yet.
    pub fn begun(job: JobId, roots: Vec<ObjectId>, state: JobState, missing: Vec<BlobId>) -> Self {
        Self {
            job,
            roots,
            state,
            total_bytes: 0,
            done_bytes: 0,
            received_bytes: 0,
            bad_pieces: 0,
            duplicate_pieces: 0,
            elapsed_ms: 0,
            sources: Vec::new(),
            missing,
        }
    }
}

/// A member as velod needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its key.
    pub node: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Where its velod can be reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// Its zone.
    pub zone: String,
}

/// Counters and state of velod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Monotonic counters by Prometheus name without the `velo_` prefix, labels as in the exposition format
    /// (`fabric_received_bytes_total{fabric="tcp"}`).
    pub counters: Vec<(String, u64)>,
    /// Values that go up and down, named likewise.
    pub gauges: Vec<(String, u64)>,
    /// Sessions: node, address, since when (ms), fabric in use, bytes received, bytes sent.
    pub sessions: Vec<SessionStatus>,
    /// One line for each worker: core (if pinned), NUMA node, poll mode.
    pub workers: Vec<String>,
    /// What the operator should know, in words (a fall back, a full disk, pinning that is off).
    pub notes: Vec<String>,
}

/// A session with a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The peer.
    pub node: NodeId,
    /// Its address.
    pub address: SocketAddr,
    /// How long it has been up.
    pub up_ms: u64,
    /// What carries what is read from it: `tcp`, `udp`, `xdp` or `dpdk`.
    pub fabric: String,
    /// The round trip on a path to it in microseconds, where packets carry it.
    pub rtt_us: Option<u64>,
    /// How many of a million segments were lost there.
    pub loss_ppm: Option<u64>,
    /// Content bytes received from it.
    pub received_bytes: u64,
    /// Content bytes sent to it.
    pub sent_bytes: u64,
    /// Pieces from it that did not verify.
    pub bad_pieces: u64,
}

/// The kinds of error, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// No such id, job, put or entry.
    NotFound,
    /// More than one id begins so.
    Ambiguous,
    /// The request makes no sense.
    Invalid,
    /// The content is not what its id says.
    Mismatch,
    /// No space on the disk, or the capacity is reached by pinned content.
    Full,
    /// Something else stands there than the caller expected.
    Conflict,
    /// It is in use or pinned.
    InUse,
    /// It took too long.
    TimedOut,
    /// The node cannot be reached.
    Unreachable,
    /// The caller may not do this.
    Denied,
    /// A limit of the configuration is reached.
    Limit,
    /// The disk, or something else below, failed.
    Io,
    /// It was cancelled, or velod is stopping.
    Cancelled,
}

/// Why something could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub code: ErrorCode,
    /// For people: names the culprit and says what to do.
    pub message: String,
}
