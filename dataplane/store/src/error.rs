//! What can go wrong in the store: who is at fault, which id or path, and what to do next.

use std::io;
use std::path::{Path, PathBuf};

use velo_object::pack::PackError;
use velo_object::{BlobId, ObjectId, OutboardError, TreeError};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has this directory.
    #[error("{} is in use by process {pid}: stop that one, or choose another data directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, as it wrote itself down; `?` if unreadable.
        pid: String,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// No such blob here.
    #[error("{0} is not here")]
    NotFound(BlobId),
    /// The range is not (or not yet) here and verified, or lies outside of the blob.
    #[error("bytes {start}..{end} of {blob} are not here")]
    NotHere {
        /// Which blob.
        blob: BlobId,
        /// First byte asked for.
        start: u64,
        /// The byte after the last one asked for.
        end: u64,
    },
    /// A wait came to its deadline.
    #[error("bytes {start}..{end} of {blob} did not arrive in time")]
    TimedOut {
        /// Which blob.
        blob: BlobId,
        /// First byte waited for.
        start: u64,
        /// The byte after the last one waited for.
        end: u64,
    },
    /// Neither the disk nor the capacity has room, and nothing more may be evicted.
    #[error(
        "no room for {needed_bytes} bytes: {used_bytes} are used, of them {pinned_bytes} pinned and {staged_bytes} \
         arriving; the capacity is {capacity_bytes}, the disk has {disk_free_bytes} free: remove or unpin something, \
         or give the store more room"
    )]
    Full {
        /// What was to be stored.
        needed_bytes: u64,
        /// Bytes in the store.
        used_bytes: u64,
        /// Bytes that pins keep.
        pinned_bytes: u64,
        /// Bytes that running transfers and puts have reserved.
        staged_bytes: u64,
        /// The capacity in bytes; the size of the disk where none is set.
        capacity_bytes: u64,
        /// Bytes that the disk has free.
        disk_free_bytes: u64,
    },
    /// A file changed while it was read.
    #[error(
        "the file changed while it was read ({before_bytes} bytes before, {after_bytes} after): put it again"
    )]
    SourceChanged {
        /// Its size when reading began.
        before_bytes: u64,
        /// Its size afterwards.
        after_bytes: u64,
    },
    /// Only regular files can be ingested this way.
    #[error("only a regular file can be put")]
    NotAFile,
    /// The content is not what its id says.
    #[error("the content is {found}, not {expected}")]
    Mismatch {
        /// What it should have been.
        expected: BlobId,
        /// What it is.
        found: BlobId,
    },
    /// A tree was to be committed, but things that it names are not here.
    #[error("{root} names {count} blobs that are not here, the first is {first}: put them first")]
    Missing {
        /// The root.
        root: ObjectId,
        /// The first that is missing.
        first: BlobId,
        /// How many are missing.
        count: u64,
    },
    /// A blob of more than one piece cannot be staged without its outboard.
    #[error("{0} has more than one piece: its outboard is needed first")]
    NoOutboard(BlobId),
    /// The outboard, the size or the kind is another than that of the transfer that is under way.
    #[error("{blob} is being received with {present_bytes} bytes, not {asked_bytes}")]
    SizeConflict {
        /// Which blob.
        blob: BlobId,
        /// The size under which it is being received.
        present_bytes: u64,
        /// The size that was asked for.
        asked_bytes: u64,
    },
    /// A piece of another blob, or of another geometry.
    #[error("piece {index} does not belong to the transfer of {blob}")]
    Stranger {
        /// Whose transfer it was given to.
        blob: BlobId,
        /// Its index.
        index: u64,
    },
    /// Pieces are missing yet.
    #[error("{missing} pieces of {blob} are missing yet")]
    Incomplete {
        /// Which blob.
        blob: BlobId,
        /// How many pieces.
        missing: u64,
    },
    /// The transfer was given up or has been committed.
    #[error("the transfer of {0} has ended")]
    Ended(BlobId),
    /// It is in use.
    #[error("{0} is in use: try again when its transfer has ended")]
    InUse(BlobId),
    /// The small content is too long for a pack.
    #[error("a content of {0} bytes is too long for a pack")]
    NotSmall(u64),
    /// Something else stands in the book than the caller expected.
    #[error("the entry in `{table}` was changed by somebody else: read it again")]
    Conflict {
        /// The table.
        table: String,
    },
    /// A table's name or a key that the book cannot hold.
    #[error("a key of the book has at most {most} bytes with its table, and a table's name 1 to 64")]
    Key {
        /// The most bytes.
        most: usize,
    },
    /// Received bytes are not the pack they should be.
    #[error("{pack} is not a pack: {error}")]
    Pack {
        /// The blob.
        pack: BlobId,
        /// Why.
        error: PackError,
    },
    /// The blob is not the table of a tree.
    #[error("{tree} is not a tree: {error}")]
    Tree {
        /// The blob.
        tree: BlobId,
        /// Why.
        error: TreeError,
    },
    /// The outboard does not fit the blob.
    #[error("outboard of {blob}: {error}")]
    Outboard {
        /// The blob.
        blob: BlobId,
        /// Why.
        error: OutboardError,
    },
    /// A file of the store is not what it should be; [`crate::Store::verify`] quarantines such.
    #[error("{0} is damaged on this disk: run `velo verify`")]
    Damaged(BlobId),
    /// The file system failed.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was being done, or the path it was done to.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// LMDB failed.
    #[error("database {name}: {error}")]
    Database {
        /// `index` or `book`.
        name: &'static str,
        /// Why it failed.
        error: heed::Error,
    },
}

impl StoreError {
    /// Whether there was no room.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Names the path in an I/O error.
pub(crate) trait At<T> {
    /// The result, with `path` in its error.
    fn at(self, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|error| StoreError::Io { path: path.as_ref().to_owned(), error: error.into() })
    }
}
