//! The L1 store of Velo: blobs and packs in files, an index to find them, transfers that go on after a kill.
//!
//! [`Store`] is the whole of it. A blob comes in by a [`Put`] (from this host; pinned) or a [`Staging`] (from peers;
//! cache), and both end in the same two steps: durable, then visible. What is on disk where, and in which format,
//! stands at the head of the modules `dir`, `have_map`, `index` and `book`.
//!
//! **Architecture invariants**
//! - A [`Staging`] takes only [`velo_object::Verified`] pieces, and only whole, verified content becomes a blob.
//! - A crash at any instruction leaves a transfer that can go on, or a complete blob; never a part under a final name.
//! - The files are the truth: the index is rebuilt from them. Only the book cannot be, so it is always flushed.
//! - Eviction never takes what is pinned, leased, part of a put, or arriving. No room is an error of one operation.
#![deny(unsafe_code)]

mod arrivals;
mod book;
mod copy;
mod dir;
mod error;
mod extents;
mod files;
mod have_map;
mod hold;
mod index;
mod ingest;
mod lmdb;
mod outboards;
mod pins;
mod publish;
mod put;
mod query;
mod recover;
mod resume;
mod serve;
mod slots;
mod space;
mod spool;
mod stage;
mod store;
mod types;
mod verify;

pub use book::{Book, Entries};
pub use error::StoreError;
pub use hold::Hold;
pub use put::Put;
pub use stage::Staging;
pub use store::Store;
pub use types::{
    BlobFile, BlobStat, Counters, Damage, Durability, Have, Ingested, Lease, Recovery, Removed, Served,
    ServedContent, StageKind, StoreOptions, Usage, Verification, What,
};
