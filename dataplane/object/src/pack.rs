//! Packs: many small contents end to end in one blob, with an index; a canonical function of the tree.
//!
//! Every node makes the same packs of the same directory, so packs are shared, fetched and verified like any
//! other blob. Pack bytes are not compressed; each content is verified by its own hash before anyone indexes it.
//!
//! Format, version 1, little-endian; `n` contents:
//!
//! | bytes | what |
//! |---|---|
//! | | the contents, end to end, with nothing between, from offset 0 |
//! | 36 × `n` | the index, in the same order: 32 bytes id, u32 length of the content, at most 128 KiB |
//! | 3 | `VPK` |
//! | 1 | the version: `1` (0x31) |
//! | 4 | u32: `n`, at least 1 |
//!
//! A content begins where the one before it ends, so there can be no gap and no overlap. No content stands in a pack
//! (or in the packs of one tree) twice. The index stands in the pack, so a lost index of a store is rebuilt from its
//! packs alone.
//!
//! **Boundaries.** A content weighs its length and the 36 bytes of its index entry; an open pack weighs 8 bytes and
//! its contents: what it will have on disk. Contents come in the order of the tree, each at its first occurrence.
//!
//! 1. A content that would make the pack weigh more than 96 MiB begins a new one.
//! 2. After a content has been laid, let `w` be its weight and `h` the last 8 bytes of its id as a u64. If the pack now
//!    weighs at least 32 MiB and less than 64 MiB, it ends where `h < w × 2^38`; if it weighs 64 MiB or more, where
//!    `h < w × 2^41`.
//!
//! So a byte beyond 32 MiB ends a pack with probability 2^-26 and a byte beyond 64 MiB with probability 2^-23: packs
//! have 62 MiB on average, about one in a hundred ends by the first rule, and since the same contents end packs
//! wherever they come to lie, a file that is added or changed moves the boundaries of few packs.

mod build;
mod index;
mod layout;

pub use build::{PackBuilder, PackStep};
pub use index::{PackError, PackIndex, PackReader};
pub(crate) use layout::Layout;

use crate::BlobId;

/// Contents of at most this many bytes lie in packs: 128 KiB. A constant of the format, version 1.
pub const PACKED_FILE_BYTES: u64 = 128 << 10;
/// No pack has more bytes. A constant of the format, version 1.
pub const MAX_PACK_BYTES: u64 = 96 << 20;
/// Bytes at the end of a pack that say where its index begins: see [`PackIndex::range`].
pub const PACK_TRAILER_BYTES: u64 = 8;

const MIN_PACK_BYTES: u64 = 32 << 20;
const TARGET_PACK_BYTES: u64 = 64 << 20;
const INDEX_ENTRY_BYTES: u64 = 36;
const MAGIC: [u8; 3] = *b"VPK";
const VERSION: u8 = b'1';

const _: () = assert!(MIN_PACK_BYTES < TARGET_PACK_BYTES && TARGET_PACK_BYTES < MAX_PACK_BYTES);
const _: () = assert!(MAX_PACK_BYTES < u32::MAX as u64, "offsets and lengths fit into u32");

/// One content of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackEntry {
    /// Its id.
    pub blob: BlobId,
    /// Where in the pack it begins.
    pub offset_bytes: u32,
    /// Its length, at most [`PACKED_FILE_BYTES`].
    pub len: u32,
}

impl PackEntry {
    /// Where in the pack it ends.
    pub fn end_bytes(&self) -> u32 {
        self.offset_bytes + self.len
    }
}
