//! The protocol and the client of velod's local socket.
//!
//! velod, velo-control, the CLI and any other local program speak through this crate, so that velo-control
//! never links the fabric or the store.

pub mod join;
mod message;

pub use message::*;
