//! Trees: a directory as one flat, sorted, canonical table that is read straight from a mapping.
//!
//! A directory has exactly one table, so equal directories have equal ids. [`Tree::parse`] refuses every other
//! spelling, and everything that would be dangerous to write to a disk.
//!
//! Format, version 1, little-endian; `n` entries, `p` packs:
//!
//! | bytes | what |
//! |---|---|
//! | 0..3 | `VTR` |
//! | 3 | the version: `1` (0x31) |
//! | 4..8 | u32: `n`, at most 2^24 |
//! | 8..12 | u32: `p` |
//! | 12..16 | u32: bytes of all names, at most 2^31 |
//! | 16..24 | u64: sum of the sizes of all entries |
//! | 24..32 | zero |
//! | 56 × `n` | the entries, see below |
//! | 4 × (`n` + 1) | u32: where in the names the path of each entry begins; the last is where the names end |
//! | | the names: whole relative paths, end to end, with nothing between |
//! | 0 to 7 | zero, up to a multiple of 8 from the beginning of the table |
//! | 40 × `p` | the packs in order: 32 bytes id, u64 size |
//!
//! An entry:
//!
//! | bytes | what |
//! |---|---|
//! | 0..32 | BLAKE3 hash of the content (a link's content is its target); zero for a directory |
//! | 32..40 | u64: size of the content in bytes, at most 2^46; 1 to 4095 for a link; zero for a directory |
//! | 40..48 | u64: time of the last modification in ns since 1970, zero where it is not kept |
//! | 48..52 | u32: permissions: 0644 or 0755 for a file, 0777 for a link, 0755 for a directory |
//! | 52..54 | u16: flags: 0 a regular file, 1 a symbolic link, 2 an empty directory |
//! | 54..56 | zero |
//!
//! **Order.** Entries rise strictly by [`path_order`]: bytewise, with `/` before every other byte. Only *empty*
//! directories are entries, all others are implied by what lies in them; so no entry lies under another one.
//! The root itself is no entry: the table of an empty directory has none.
//!
//! **Paths** are bytes, not text. They are relative, at most 4096 bytes, of components of 1 to 255 bytes, none of
//! them `.` or `..`, without zero bytes ([`check_path`]).
//!
//! **Packs.** Contents of at most [`PACKED_FILE_BYTES`] (targets of links and empty files too) lie in packs, in the
//! order of the entries, each at its first occurrence. Where one pack ends and the next begins is a function of
//! their ids and sizes alone (module `pack`), so number and sizes of the packs follow from the entries and are
//! checked; equal contents have equal sizes everywhere in a tree.

mod build;
mod check;
mod error;
mod path;

use std::ops::Range;

pub use build::TreeBuilder;
pub use error::TreeError;
pub use path::{MAX_COMPONENT_BYTES, MAX_PATH_BYTES, PathError, check_path, is_under, path_order, path_text};

use crate::BlobId;
use crate::pack::{Layout, PACKED_FILE_BYTES};

/// The most entries of a tree.
pub const MAX_ENTRIES: u64 = 1 << 24;
/// The longest target of a symbolic link, in bytes (Linux' PATH_MAX without its zero).
pub const MAX_LINK_BYTES: u64 = 4095;
const MAX_NAMES_BYTES: u64 = 1 << 31;
/// No table has more bytes than this: those of the most entries, their names and their packs.
pub const MAX_TABLE_BYTES: u64 = 4 << 30;
const _: () = assert!(
    HEADER_BYTES as u64 + MAX_ENTRIES * (ENTRY_BYTES + 4 + PACK_BYTES) as u64 + MAX_NAMES_BYTES + 16
        <= MAX_TABLE_BYTES
);

const MAGIC: [u8; 3] = *b"VTR";
const VERSION: u8 = b'1';
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 56;
const PACK_BYTES: usize = 40;

/// Where the fields of the header lie.
mod header {
    use std::ops::Range;
    pub const ENTRIES: Range<usize> = 4..8;
    pub const PACKS: Range<usize> = 8..12;
    pub const NAMES: Range<usize> = 12..16;
    pub const TOTAL: Range<usize> = 16..24;
    pub const ZERO: Range<usize> = 24..32;
}

/// Where the fields of an entry lie.
mod field {
    use std::ops::Range;
    pub const HASH: Range<usize> = 0..32;
    pub const SIZE: Range<usize> = 32..40;
    pub const MTIME: Range<usize> = 40..48;
    pub const MODE: Range<usize> = 48..52;
    pub const FLAGS: Range<usize> = 52..54;
    pub const PAD: Range<usize> = 54..56;
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A regular file that may be run.
    Executable,
    /// A symbolic link; its content is its target.
    Symlink,
    /// An empty directory.
    Directory,
}

impl EntryKind {
    /// The permissions that such an entry has.
    pub const fn mode(self) -> u32 {
        match self {
            Self::File => 0o644,
            Self::Executable | Self::Directory => 0o755,
            Self::Symlink => 0o777,
        }
    }

    const fn flags(self) -> u16 {
        match self {
            Self::File | Self::Executable => 0,
            Self::Symlink => 1,
            Self::Directory => 2,
        }
    }

    /// The kind with these permissions and flags; both were checked.
    fn of(mode: u32, flags: u16) -> Self {
        match (flags, mode) {
            (0, 0o755) => Self::Executable,
            (0, _) => Self::File,
            (1, _) => Self::Symlink,
            _ => Self::Directory,
        }
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its whole path from the root of the tree, as [`check_path`] wants it.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
    /// Its content: a link's target; for a directory 32 zero bytes, which name nothing.
    pub blob: BlobId,
    /// Bytes of the content.
    pub size_bytes: u64,
    /// Time of its last modification in ns since 1970; 0 where it is not kept.
    pub mtime_ns: u64,
}

impl Entry<'_> {
    /// Its permissions.
    pub const fn mode(&self) -> u32 {
        self.kind.mode()
    }

    /// Whether it has a content: it is no directory.
    pub fn has_content(&self) -> bool {
        self.kind != EntryKind::Directory
    }

    /// Whether its content lies in one of the tree's packs; if not, it is a blob of its own.
    pub fn is_packed(&self) -> bool {
        self.has_content() && self.size_bytes <= PACKED_FILE_BYTES
    }
}

/// A blob that a tree names, with the size that the tree states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Named {
    /// Its id.
    pub blob: BlobId,
    /// Its size.
    pub size_bytes: u64,
}

/// Where in a tree's packs a small content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed<'a> {
    /// The first entry with that content.
    pub entry: Entry<'a>,
    /// Which of [`Tree::packs`].
    pub pack: usize,
    /// Where in the pack it begins.
    pub offset_bytes: u64,
}

/// A checked table. `B` is what holds its bytes: a slice, a vector, a mapping; it must not change while this exists.
#[derive(Clone)]
pub struct Tree<B> {
    bytes: B,
    entries: usize,
    packs: usize,
    offsets_at: usize,
    names_at: usize,
    packs_at: usize,
    total_bytes: u64,
    /// One bit for each entry: it has a content, and is the first that has it.
    firsts: Vec<u64>,
}

impl<B: AsRef<[u8]>> Tree<B> {
    /// Checks `bytes`. Takes time in proportion to them and 17 bytes of memory for each entry.
    ///
    /// # Errors
    /// [`TreeError`] for everything that [`TreeBuilder`] would not write.
    pub fn parse(bytes: B) -> Result<Self, TreeError> {
        check::parse(bytes)
    }

    /// The table.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Gives the bytes back.
    pub fn into_bytes(self) -> B {
        self.bytes
    }

    /// The id of the table, hashed now.
    pub fn id(&self) -> BlobId {
        BlobId::of(self.as_bytes())
    }

    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether it is the tree of an empty directory.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The sum of the sizes of all entries: what the directory takes once written, holes and copies counted in full.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Entry `index`, in the order of the tree.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn entry(&self, index: usize) -> Entry<'_> {
        let record = self.record(index);
        Entry {
            path: self.path(index),
            kind: EntryKind::of(u32_at(record, field::MODE), u16_at(record, field::FLAGS)),
            blob: hash_at(record, field::HASH),
            size_bytes: u64_at(record, field::SIZE),
            mtime_ns: u64_at(record, field::MTIME),
        }
    }

    /// All entries, in the order of the tree.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Entry<'_>> + DoubleEndedIterator + '_ {
        (0..self.entries).map(|index| self.entry(index))
    }

    /// The entry at `path`. A directory that is not empty has none: see [`Tree::under`].
    pub fn find(&self, path: &[u8]) -> Option<Entry<'_>> {
        let index = self.partition(|other| path_order(other, path).is_lt());
        (index < self.entries && self.path(index) == path).then(|| self.entry(index))
    }

    /// The indexes of the entries that lie under the directory `path` (at any depth); all of them for the empty path.
    pub fn under(&self, path: &[u8]) -> Range<usize> {
        if path.is_empty() {
            return 0..self.entries;
        }
        let start = self.partition(|other| path_order(other, path).is_le());
        let end = self.partition(|other| path_order(other, path).is_le() || is_under(other, path));
        start..end
    }

    /// The blobs that do not lie in packs, each once, in the order of the tree.
    pub fn blobs(&self) -> impl Iterator<Item = Named> + '_ {
        self.first_contents()
            .filter(|entry| !entry.is_packed())
            .map(|entry| Named { blob: entry.blob, size_bytes: entry.size_bytes })
    }

    /// The packs, in order.
    pub fn packs(&self) -> impl ExactSizeIterator<Item = Named> + '_ {
        self.as_bytes()[self.packs_at..].chunks_exact(PACK_BYTES).map(|record| Named {
            blob: hash_at(record, field::HASH),
            size_bytes: u64_at(record, field::SIZE),
        })
    }

    /// Where each small content lies, each once, in the order of the tree: known without having any pack.
    pub fn packed(&self) -> impl Iterator<Item = Packed<'_>> + '_ {
        let mut layout = Layout::default();
        self.first_contents().filter(Entry::is_packed).map(move |entry| {
            let place = layout.place(&entry.blob, entry.size_bytes);
            Packed { entry, pack: place.pack, offset_bytes: place.offset_bytes }
        })
    }

    fn first_contents(&self) -> impl Iterator<Item = Entry<'_>> + '_ {
        (0..self.entries)
            .filter(|index| self.firsts[index / 64] >> (index % 64) & 1 == 1)
            .map(|index| self.entry(index))
    }

    fn record(&self, index: usize) -> &[u8] {
        assert!(index < self.entries, "entry beyond the end of the tree");
        let start = HEADER_BYTES + index * ENTRY_BYTES;
        &self.as_bytes()[start..start + ENTRY_BYTES]
    }

    fn path(&self, index: usize) -> &[u8] {
        let bytes = self.as_bytes();
        let at = |index| {
            let start = self.offsets_at + 4 * index;
            self.names_at + u32_at(bytes, start..start + 4) as usize
        };
        &bytes[at(index)..at(index + 1)]
    }

    /// The first index whose path does not satisfy `before`.
    fn partition(&self, before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(self.path(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl<B: AsRef<[u8]>> std::fmt::Debug for Tree<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("entries", &self.entries)
            .field("packs", &self.packs)
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}

fn u16_at(bytes: &[u8], range: Range<usize>) -> u16 {
    u16::from_le_bytes(bytes[range].try_into().expect("2 bytes"))
}

fn u32_at(bytes: &[u8], range: Range<usize>) -> u32 {
    u32::from_le_bytes(bytes[range].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], range: Range<usize>) -> u64 {
    u64::from_le_bytes(bytes[range].try_into().expect("8 bytes"))
}

fn hash_at(bytes: &[u8], range: Range<usize>) -> BlobId {
    BlobId::from_bytes(bytes[range].try_into().expect("32 bytes"))
}
