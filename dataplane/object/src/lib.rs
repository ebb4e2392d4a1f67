//! Formats of Velo: ids, pieces, outboards, trees and packs.
//!
//! This crate turns bytes into typed values and back. It does no I/O and reads no clock, so the same
//! code runs in velod, in the tools and in the simulator. Everything is content-addressed by BLAKE3:
//! a name is a hash, so any byte may come from anyone and is checked before anyone can read it.
//!
//! **Architecture invariant:** [`Verified`] has exactly one constructor family, in `verified.rs`; whoever
//! holds one holds bytes (or a hole) that match the id they are stored under.
#![forbid(unsafe_code)]

mod id;
mod outboard;
pub mod pack;
mod piece;
mod piece_set;
pub mod tree;
mod verified;

pub use id::{BlobId, IdError, IdPrefix, NodeId, ObjectId, ObjectKind};
pub use outboard::{
    MAX_BLOB_BYTES, Outboard, OutboardBuilder, OutboardError, chaining_value, hole_chaining_value,
};
pub use pack::{PACKED_FILE_BYTES, PackBuilder, PackEntry, PackIndex, PackReader, PackStep};
pub use piece::{PIECE_BYTES, Pieces};
pub use piece_set::{PieceSet, PieceSetError};
pub use tree::{Entry, EntryKind, Named, Tree, TreeBuilder, TreeError, path_order};
pub use verified::{Content, Expected, Mismatch, Verified};
