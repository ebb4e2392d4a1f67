//! The engine: one thread that owns the planner and the jobs, and decides what is read from whom.
//!
//! Everybody else speaks to it through an [`EngineHandle`].

mod board;
mod core;
mod exchange;
mod fatal;
mod handle;
mod inbox;
mod job;
mod packets;
mod pairs;
mod paths;
mod peers;
mod ports;
mod pulls;
mod reads;
mod start;
mod task;
mod want;

pub use handle::{EngineHandle, PeerTraffic, PullRequest, Report};
pub use peers::Peers;
pub use start::{DataPlane, DataPlaneOptions, RunningDataPlane};
