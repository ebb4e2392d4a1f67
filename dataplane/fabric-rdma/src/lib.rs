//! The plugin that joins velod with RDMA devices: one exported table of C functions (`velo_fabric::rdma::table`), so that one velod runs
//! with libibverbs where it is installed and without it where it is not. Built without the feature `libibverbs` it exports nothing.
//!
//! Classic verbs only, by the crate `rdma-sys`: its extended calls compare a version wrongly and fail on 64-bit machines, and the extended
//! completion queues of soft-RoCE report stale completions.
#![cfg_attr(not(feature = "libibverbs"), forbid(unsafe_code), doc = "This build is the empty one.")]
#![cfg_attr(feature = "libibverbs", allow(unsafe_code))]

#[cfg(feature = "libibverbs")]
mod device;
#[cfg(feature = "libibverbs")]
mod export;
#[cfg(feature = "libibverbs")]
mod pair;
#[cfg(feature = "libibverbs")]
mod queue;
#[cfg(feature = "libibverbs")]
mod verbs;
