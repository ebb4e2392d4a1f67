//! The protocol of the packet fabric: reliable, authenticated, receiver-driven reads over datagrams. No socket, no clock: time, datagrams
//! and randomness are arguments, and what is to be done comes out of `poll_*`.

#![forbid(unsafe_code)]

mod congestion;
mod deadlines;
mod endpoint;
pub mod frame;
mod options;
mod pacer;
mod path;
mod probing;
mod reader;
mod reading;
mod reordering;
mod rtt;
pub mod seal;
mod segment_set;
mod supplier;

pub use endpoint::Endpoint;
pub use options::{AddPathError, EndpointCounters, EndpointOptions, Event, NewPath, PathInfo};

use crate::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId};

/// A moment, in nanoseconds since some beginning that all calls share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);
