//! What goes into the planner and what comes out of it: limits, descriptions, actions, reports.

use velo_object::{BlobId, NodeId, PieceSet};

/// Names one read (or one trial of a hole) between its action and its end. Never used twice.
pub type Tag = u64;

/// Bounds of a [`Planner`](crate::Planner). Times are in microseconds.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most reads outstanding at one source. The planner begins with fewer and goes by what the source delivers.
    pub reads_per_source: u32,
    /// The most bytes asked for and not yet verified, over all sources. At least one piece is always allowed.
    pub bytes_in_flight: u64,
    /// A source that has reads outstanding and completes none for this long has them taken away and is left alone for
    /// a while. The fabric sees each byte and cuts a stalled path sooner; this is the net below it.
    pub stall_us: u64,
    /// How long to wait for pieces that another puller is to get first, before taking them from a complete holder after
    /// all. Grows by itself where the complete holders are slow.
    pub patience_us: u64,
    /// How much content to keep asked for at one source, as the time that it needs to deliver it.
    pub pipeline_us: u64,
    /// The most sources; further ones are refused.
    pub sources: usize,
    /// The most blobs at a time; further ones are refused.
    pub blobs: usize,
    /// The most 8-byte words of have-maps kept for one source; complete and empty maps cost none.
    pub map_words_per_source: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reads_per_source: 64,
            bytes_in_flight: 256 << 20,
            stall_us: 10_000_000,
            patience_us: 500_000,
            pipeline_us: 100_000,
            sources: 4096,
            blobs: 1 << 20,
            map_words_per_source: 1 << 20,
        }
    }
}

/// What is known of a blob when it is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Only its id.
    Nothing,
    /// Its size, from a verified tree or another proof.
    Size(u64),
    /// Its confirmed outboard is here. An outboard that was still provisional when an earlier run ended is not
    /// this: throw it away and say [`Known::Nothing`] or [`Known::Size`].
    Outboard(u64),
}

/// A blob that is wanted.
#[derive(Debug, Clone)]
pub struct BlobSpec {
    /// Which.
    pub blob: BlobId,
    /// What is known of it.
    pub known: Known,
    /// The pieces that are here and verified, where an earlier run left some. Ignored unless its length fits the known size.
    pub have: Option<PieceSet>,
    /// Higher goes first.
    pub priority: u8,
}

/// What is known of a source when it is added.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceInfo {
    /// 0: the same host; 1: the same zone; 2 and more: other zones. Of complete holders only the nearest are asked while they
    /// deliver; pullers divide pieces only with those at distance 0 and 1.
    pub distance: u8,
}

/// What a source says it has of one blob.
#[derive(Debug, Clone, Default)]
pub struct Have {
    /// The size, if it knows it; nobody need believe it. An honest node states only a proven one.
    pub size_bytes: Option<u64>,
    /// The pieces it serves, holes included. Length 0 where it does not know the size.
    pub have: PieceSet,
    /// Those of them that are holes.
    pub holes: PieceSet,
}

/// What the owner of the planner is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Read the whole encoded outboard, in as many reads as it takes, decode it against the id and check that it states
    /// `size_bytes`; otherwise it is bad.
    ReadOutboard {
        /// Name of this read.
        tag: Tag,
        /// From whom.
        node: NodeId,
        /// Of which blob.
        blob: BlobId,
        /// The size that it must state.
        size_bytes: u64,
        /// Its length when encoded.
        bytes: u64,
    },
    /// Read one piece (for a blob of at most 1 MiB that is all of it) and verify it.
    ReadPiece {
        /// Name of this read.
        tag: Tag,
        /// From whom.
        node: NodeId,
        /// Of which blob.
        blob: BlobId,
        /// Which piece; it begins at `index * PIECE_BYTES`.
        index: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// Check whether this piece is all zeros; nothing is read. Also the one piece of an empty blob.
    TryHole {
        /// Name of this trial.
        tag: Tag,
        /// Of which blob.
        blob: BlobId,
        /// Which piece.
        index: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// Cancel a read; its tag is dead.
    Cancel {
        /// Name of the read.
        tag: Tag,
        /// From whom it was to come.
        node: NodeId,
    },
    /// The last piece has verified under a provisional outboard: confirm it.
    SizeConfirmed {
        /// Of which blob.
        blob: BlobId,
        /// The proven size.
        size_bytes: u64,
    },
    /// The provisional outboard was refuted or its sender cannot prove it: throw it and the staging made under it away.
    OutboardDropped {
        /// Of which blob.
        blob: BlobId,
    },
    /// All pieces are verified and stored: commit. The blob stays known to the planner until `remove_blob`.
    BlobReady {
        /// Which.
        blob: BlobId,
    },
    /// This source is asked for this blob no more.
    Drop {
        /// The source.
        node: NodeId,
        /// The blob.
        blob: BlobId,
        /// Why.
        why: DropReason,
    },
}

/// Why a source is not asked for a blob any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DropReason {
    /// It sent a piece that did not verify.
    BadPiece,
    /// It sent an outboard that is none, or whose last piece is not what it says.
    BadOutboard,
    /// It stated a size that is proven wrong, or maps that do not fit the size.
    WrongSize,
    /// It stated a size that nobody has proven and that cannot be received here.
    TooLarge,
    /// It refuses to serve it, or said that it had what it has not, again and again.
    Refused,
}

/// What to do with the bytes of a read that has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Verify and store them, then call `handle_verified` or `handle_bad_piece`.
    Check,
    /// The piece came from elsewhere meanwhile: give the buffer back, report nothing.
    Discard,
}

/// Who is to blame for bytes that did not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blame {
    /// The node to name, count and show.
    pub node: NodeId,
    /// The blob.
    pub blob: BlobId,
    /// What it did.
    pub accusation: Accusation,
}

/// What a source did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Accusation {
    /// It sent a piece that does not match the confirmed hash.
    Piece {
        /// Which.
        index: u64,
    },
    /// It sent a false outboard.
    Outboard,
    /// It called a piece a hole that is none.
    Hole {
        /// Which.
        index: u64,
    },
}

/// Why a read brought nothing, without anybody having lied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The source does not have it (any more).
    NotHere,
    /// The source does not want to serve it now.
    Refused,
    /// The path stood still.
    Stalled,
    /// The path is gone; `remove_source` follows if it was the last.
    PathClosed,
    /// Something on this side (no buffer, the disk, the read could not be posted): asked again later, nobody is charged.
    Local,
}

/// Where one blob stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Its size, once proven or stated by an outboard that merges to its id.
    pub size_bytes: Option<u64>,
    /// How many pieces it has; 0 while the size is not known.
    pub pieces: u64,
    /// How many are verified.
    pub verified: u64,
    /// Reads outstanding for it.
    pub in_flight: u32,
    /// Sources that said they have something of it and are not barred from it. 0 means that it cannot go on
    /// until somebody is found.
    pub sources: u32,
    /// Whether the outboard waits for the last piece to prove the size.
    pub provisional: bool,
}

/// Where one source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceStatus {
    /// The node.
    pub node: NodeId,
    /// Its distance.
    pub distance: u8,
    /// Reads outstanding.
    pub in_flight: u32,
    /// What it delivers, smoothed.
    pub bytes_per_s: u64,
    /// All it has delivered.
    pub delivered_bytes: u64,
    /// How often it was charged.
    pub accusations: u32,
}

/// Counts since the planner was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Pieces verified, holes included.
    pub verified: u64,
    /// Of them, holes that were never sent.
    pub holes: u64,
    /// Pieces whose bytes arrived although they were verified or being verified already.
    pub duplicates: u64,
    /// Bytes of those.
    pub duplicate_bytes: u64,
    /// Reads asked again after a failure, a stall or a bad piece.
    pub retries: u64,
    /// Second reads for a piece that was late at its first source.
    pub end_game: u64,
    /// Times that a source was charged.
    pub accusations: u64,
    /// Times that a source was found stalled.
    pub stalls: u64,
    /// Pieces taken from a complete holder because the puller that was to get them first did not.
    pub impatient: u64,
}
