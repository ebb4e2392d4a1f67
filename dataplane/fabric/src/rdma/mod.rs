//! The RDMA fabric: pieces move by RDMA READ out of memory that the provider has lent, with no work for its processor.
//!
//! Both ends of a reliable-connected queue pair speak a few small [`message`]s over it: the reader asks for a range, the provider loads it
//! into registered memory and grants it for a time, the reader reads it with one work request and says that it has ended. [`Rdma`] is that
//! protocol as a [`crate::Fabric`]; it reaches its device through [`Verbs`], which the plugin implements for real devices and [`fake`] for
//! the simulator.
//!
//! **Architecture invariants:** no memory of ours is remotely writable. Memory that was lent is used again only after the device has
//! [`Revoked`](verbs::Event::Revoked) the loan or the queue pair is [`Gone`](verbs::Event::Gone), never because time has passed. A buffer
//! that a READ fills belongs to the device until the READ is reported. Bytes that came after their lease ended are thrown away.

pub mod device;
mod fabric;
#[doc(hidden)]
pub mod fake;
pub mod limits;
pub mod message;
mod path;
mod provider;
mod reader;
pub mod table;
pub mod verbs;

pub use fabric::{AddPathError, NewPath, Rdma, RdmaCounters, RdmaOptions};
pub use verbs::Verbs;
