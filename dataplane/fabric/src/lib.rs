//! Ways of moving pieces between nodes: the [`Fabric`] trait, the [`pool`] of buffers that fabrics fill, the
//! [`ring`]s between velod's threads, and [`tcp`], the fabric that always works.
//!
//! Every fabric has one shape: post a [`Read`] of a remote range into a local [`pool::Buffer`], poll for its
//! [`Completion`]. The other side answers through [`Serve`]. A fabric belongs to one thread and never blocks.
//!
//! **Architecture invariant:** what a fabric delivers is unverified bytes; only `velo_object::Verified` makes them content.
#![deny(unsafe_code)]

mod counters;
mod fabric;
pub mod packet;
mod plugin;
pub mod pool;
pub mod rdma;
pub mod ring;
pub mod supply;
pub mod tcp;

/// Shared memory that is served, of the crate `bytes`.
pub use bytes::Bytes;
pub use fabric::{
    Completion, Fabric, FabricCounters, PathError, PathId, ProtocolError, Read, ReadError, Refusal, Serve,
    Served, ServedContent, What,
};
pub use plugin::PluginError;
