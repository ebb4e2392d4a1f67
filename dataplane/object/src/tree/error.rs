//! Why bytes are not a tree, or entries cannot become one.

use super::path::{PathError, path_text};
use super::{MAX_ENTRIES, MAX_LINK_BYTES, MAX_TABLE_BYTES};
use crate::BlobId;

/// Why bytes are not a tree, or entries cannot become one. Paths are shown by [`path_text`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// It does not begin as a tree does, or is shorter than a header.
    #[error("not a tree table")]
    Magic,
    /// More bytes than the table of a tree may have.
    #[error("it has {0} bytes, more than the table of a tree may have ({MAX_TABLE_BYTES})")]
    TooLarge(u64),
    /// A tree of a version that this program does not know.
    #[error("a tree of version {:?}; this program reads version '1': upgrade it", char::from(*.0))]
    Version(u8),
    /// Bytes that must be zero are not.
    #[error("bytes of the table that must be zero are not, at offset {0}")]
    Padding(u64),
    /// More entries than a tree may have.
    #[error("the tree has {0} entries; {MAX_ENTRIES} is the limit: split the directory")]
    TooManyEntries(u64),
    /// The names take more bytes than their offsets can say.
    #[error("the names of the tree take {0} bytes; 2 GiB is the limit: split the directory")]
    TooManyNames(u64),
    /// The header asks for another length.
    #[error("the tree table has {found} bytes where its header asks for {expected}")]
    Length {
        /// What the counts in the header make.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// The offsets of the names do not rise from 0 to the end.
    #[error("the name of entry {0} does not lie where it must")]
    NameOffset(usize),
    /// A path that cannot stand in a tree.
    #[error("the path `{path}` cannot stand in a tree: {why}")]
    Path {
        /// The path (its beginning, if it is long).
        path: String,
        /// What is wrong with it.
        why: PathError,
    },
    /// The entries are not in order.
    #[error("`{path}` stands after `{before}`, which is not the order of a tree")]
    Order {
        /// The path.
        path: String,
        /// The one before it.
        before: String,
    },
    /// The same path twice.
    #[error("`{0}` stands in the tree twice")]
    Duplicate(String),
    /// An entry lies under another entry that is a file, a link or stated as an empty directory.
    #[error("`{path}` lies under `{parent}`, which is no directory with entries")]
    Parent {
        /// The path.
        path: String,
        /// The entry above it.
        parent: String,
    },
    /// Flags that this version does not know.
    #[error("`{path}` has the flags {flags:#06x}, which version 1 does not know")]
    Flags {
        /// The path.
        path: String,
        /// The flags.
        flags: u16,
    },
    /// A mode that is not one of the normalised ones.
    #[error("`{path}` has the mode {mode:#o}; files have 0644 or 0755, links 0777, directories 0755")]
    Mode {
        /// The path.
        path: String,
        /// The mode.
        mode: u32,
    },
    /// The padding of an entry is not zero.
    #[error("the entry of `{0}` has padding that is not zero")]
    EntryPadding(String),
    /// More bytes than a blob may have.
    #[error("`{path}` has {size_bytes} bytes, which is more than a blob may have")]
    Size {
        /// The path.
        path: String,
        /// The stated size.
        size_bytes: u64,
    },
    /// A link whose target is empty or too long.
    #[error("the link `{path}` has a target of {size_bytes} bytes; 1 to {MAX_LINK_BYTES} are possible")]
    LinkTarget {
        /// The path.
        path: String,
        /// Bytes of the target.
        size_bytes: u64,
    },
    /// A directory with a content.
    #[error("the directory `{0}` has a size or a hash, which must be zero")]
    DirectoryContent(String),
    /// The same content with two sizes.
    #[error("`{path}` states {size_bytes} bytes for {blob}, which has another size elsewhere in the tree")]
    SizeConflict {
        /// The path.
        path: String,
        /// The content.
        blob: BlobId,
        /// The size stated here.
        size_bytes: u64,
    },
    /// The total in the header is not the sum of the sizes, or the sum is too large.
    #[error("the tree states {stated} bytes in all, which is not the sum of its sizes")]
    Total {
        /// What the header states.
        stated: u64,
    },
    /// Another number of packs than the small contents make.
    #[error("the small contents of the tree make {expected} packs, but it lists {found}")]
    PackCount {
        /// What the contents make.
        expected: u64,
        /// What is listed.
        found: u64,
    },
    /// A pack of another size than its contents make.
    #[error("pack {index} of the tree has {expected} bytes by its contents, but {found} are stated")]
    PackSize {
        /// Which pack.
        index: usize,
        /// What the contents make.
        expected: u64,
        /// What is stated.
        found: u64,
    },
    /// The same pack twice.
    #[error("{0} stands in the tree's list of packs twice")]
    PackTwice(BlobId),
}

impl TreeError {
    pub(super) fn path(path: &[u8], why: PathError) -> Self {
        Self::Path { path: path_text(&path[..path.len().min(super::MAX_PATH_BYTES)]), why }
    }
}
