//! Formats of Velo: ids, pieces, outboards, trees and packs.
//!
//! This crate turns bytes into typed values and back. It does no I/O and reads no clock, so the same
//! code runs in velod, in the tools and in the simulator. Everything is content-addressed by BLAKE3:
//! a name is a hash, so any byte may come from anyone and is checked before anyone can read it.
//!
//! # Formats
//!
//! Each is given byte by byte at the head of its module, begins or ends with a magic and a version byte, and has a
//! golden file (`tests/golden`), a round-trip property test (`tests/formats`) and a fuzz target (`fuzz`).
//!
//! | format | magic | what it is | how it is trusted |
//! |---|---|---|---|
//! | outboard ([`Outboard`]) | `VOB1` | a blob's size and the chaining values of its pieces | they merge to the blob's id; the size is provisional until the last piece verifies |
//! | tree ([`tree`]) | `VTR1` | a directory: entries, names, packs | its id; every rule is checked before an entry is read |
//! | pack ([`pack`]) | `VPK1` | small contents and their index | its id, and each content by its own hash |
//!
//! To put a directory: sort its paths by [`path_order`], give every content of at most [`PACKED_FILE_BYTES`] to a
//! [`PackBuilder`] in that order, and all entries and the packs to a [`TreeBuilder`]. To get it: fetch the table,
//! [`Tree::parse`] it, fetch [`Tree::packs`] and [`Tree::blobs`]; [`Tree::packed`] says where each small content lies.
//!
//! **Architecture invariant:** [`Verified`] has exactly one constructor family, in `verified.rs`; whoever
//! holds one holds bytes (or a hole) that match the id they are stored under.
#![forbid(unsafe_code)]

mod id;
mod many;
mod outboard;
pub mod pack;
mod page_buffer;
mod piece;
mod piece_set;
pub mod tree;
mod verified;

pub use id::{BlobId, IdError, IdPrefix, NodeId, ObjectId, ObjectKind};
pub use outboard::{
    MAX_BLOB_BYTES, Outboard, OutboardBuilder, OutboardError, chaining_value, hole_chaining_value,
};
pub use pack::{PACKED_FILE_BYTES, PackBuilder, PackEntry, PackIndex, PackReader, PackStep};
pub use page_buffer::PageBuffer;
pub use piece::{PIECE_BYTES, Pieces};
pub use piece_set::{PieceSet, PieceSetError};
pub use tree::{Entry, EntryKind, Named, Tree, TreeBuilder, TreeError, path_order};
pub use verified::{Content, Expected, Mismatch, Verified};
