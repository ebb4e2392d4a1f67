//! The engine: one thread that owns the planner and the jobs, and decides what is read from whom.
//!
//! Everybody else speaks to it through an [`EngineHandle`].

mod board;
mod handle;

pub use handle::{EngineHandle, PeerTraffic, PullRequest, Report};
