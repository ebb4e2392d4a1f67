//! The L1 store of Velo: blobs and packs in files, an index to find them, transfers that can be resumed.
//!
//! See [`Store`].
#![deny(unsafe_code)]

mod error;
mod files;
mod store;
mod types;

pub use error::StoreError;
pub use store::{Book, Put, Staging, Store};
pub use types::{
    BlobFile, BlobStat, Counters, Damage, Durability, Have, Ingested, Lease, Recovery, Removed, Served,
    ServedContent, StageKind, StoreOptions, Usage, Verification, What,
};
