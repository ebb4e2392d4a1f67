//! What the store takes and gives: options, states, figures. Values only.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use velo_object::{BlobId, PieceSet};

/// What an acknowledged blob survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// A crash of the machine: every commit is flushed before it is acknowledged.
    #[default]
    Fsync,
    /// A crash of the process only. After a crash of the machine everything is hashed again at the next start.
    Process,
}

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Its directory; made if it is not there.
    pub dir: PathBuf,
    /// The most bytes it may take on disk; none: what the disk has.
    pub capacity_bytes: Option<u64>,
    /// What a commit survives.
    pub durability: Durability,
    /// Threads that hash and copy at once; 0: one for each core.
    pub threads: usize,
}

impl StoreOptions {
    /// A store in `dir`: no capacity of its own, flushed commits, all cores.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), capacity_bytes: None, durability: Durability::Fsync, threads: 0 }
    }
}

/// What opening a store found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether the last process closed it.
    pub clean: bool,
    /// Whether the index was rebuilt from the files.
    pub rebuilt: bool,
    /// Whether everything was hashed again (the machine crashed, and commits were not flushed).
    pub rehashed: bool,
    /// Complete blobs and packs, in files.
    pub files: u64,
    /// Transfers that can go on where they were.
    pub resumable: u64,
    /// What puts that were never committed had left; removed.
    pub orphans: u64,
    /// Files that were not what their name says; now in quarantine.
    pub damaged: Vec<BlobId>,
}

/// Content that is in the store now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ingested {
    /// Its id.
    pub blob: BlobId,
    /// Its size.
    pub size_bytes: u64,
    /// Whether the store had it already.
    pub known: bool,
}

/// What a received blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StageKind {
    /// Any blob.
    Blob,
    /// A pack: its contents are hashed and indexed when it is committed.
    Pack,
}

/// What of a blob is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum What {
    /// Its bytes.
    Blob,
    /// Its encoded outboard.
    Outboard,
}

/// Where bytes to serve are.
#[derive(Debug, Clone)]
pub enum ServedContent {
    /// In a file, from this offset on.
    File {
        /// The file; open for reading.
        file: Arc<File>,
        /// Where in the file the range begins.
        offset_bytes: u64,
    },
    /// In memory; exactly the range.
    Bytes(Arc<[u8]>),
}

/// Verified bytes to send to somebody.
#[derive(Debug, Clone)]
pub struct Served {
    /// Where they are.
    pub content: ServedContent,
    /// How many: less than asked for where the range goes beyond the end.
    pub len_bytes: u64,
    /// Keeps them from eviction.
    pub lease: Lease,
}

/// As long as it exists, the blob it came with is not evicted.
#[derive(Debug, Clone, Default)]
pub struct Lease(
    #[expect(dead_code, reason = "held, never read")] pub(crate) Option<Arc<crate::files::OpenFile>>,
);

/// A blob as a read-only file.
#[derive(Debug)]
pub struct BlobFile {
    /// Opened for reading only: it may be handed to another process.
    pub file: File,
    /// Where in the file the blob begins (small ones lie in packs).
    pub offset_bytes: u64,
    /// The blob's size.
    pub size_bytes: u64,
    /// Whether all of it is there; if not, only ranges that [`crate::Store::wait`] has confirmed may be read.
    pub complete: bool,
    /// Keeps it from eviction. (An open file stays readable all the same.)
    pub lease: Lease,
}

/// What is here of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// The blob's size; of a partial one as its outboard states it.
    pub size_bytes: u64,
    /// Pieces that are here, holes among them.
    pub have: PieceSet,
    /// Those of them that are known to be holes.
    pub holes: PieceSet,
}

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobStat {
    /// Its size.
    pub size_bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
    /// Pieces that are here, holes among them.
    pub have: PieceSet,
    /// Whether a pin keeps it.
    pub pinned: bool,
    /// Bytes it takes on disk.
    pub stored_bytes: u64,
}

/// What a removal did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Files removed: blobs, packs, tables.
    pub blobs: u64,
    /// Bytes freed on disk.
    pub bytes: u64,
    /// Blobs that other pinned roots still name.
    pub kept: u64,
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The blob or pack; it is in quarantine now.
    pub blob: BlobId,
    /// Pieces whose bytes are not what they were; empty where the file could not be read or has another size.
    pub pieces: Vec<u64>,
    /// Contents that were lost with a pack.
    pub contents: u64,
    /// Whether a pin named it: fetch it again.
    pub pinned: bool,
}

/// How far a verification is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Files hashed: blobs and packs.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Bytes to hash in all.
    pub total_bytes: u64,
    /// What was found damaged so far.
    pub damaged: Vec<Damage>,
}

/// What is in the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The most it may take; none: what the disk has.
    pub capacity_bytes: Option<u64>,
    /// What complete blobs and packs take on disk.
    pub used_bytes: u64,
    /// Of these, what pins keep.
    pub pinned_bytes: u64,
    /// What transfers and puts that are under way have reserved.
    pub staged_bytes: u64,
    /// What the disk has free.
    pub disk_free_bytes: u64,
    /// Complete blobs in files of their own.
    pub blobs: u64,
    /// Packs.
    pub packs: u64,
    /// Small contents in packs.
    pub packed: u64,
    /// Blobs that are partly here.
    pub partial: u64,
}

/// Monotonic counters since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes ingested by puts.
    pub ingested_bytes: u64,
    /// Pieces received and written, holes among them.
    pub received_pieces: u64,
    /// Pieces that were received though they were here already.
    pub duplicate_pieces: u64,
    /// Blobs and packs committed.
    pub committed: u64,
    /// Blobs and packs evicted.
    pub evicted: u64,
    /// Bytes evicted.
    pub evicted_bytes: u64,
    /// Files quarantined.
    pub quarantined: u64,
    /// Operations refused because there was no room.
    pub full: u64,
}
