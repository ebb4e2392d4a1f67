//! The protocol of velod's local socket, with its blocking [`Client`] and the server's [`Connection`].
//!
//! velod, velo-control, the CLI and any other local program speak through this crate, so that velo-control
//! never links the fabric or the store.
#![forbid(unsafe_code)]

mod client;
mod error;
mod frame;
pub mod join;
mod message;
mod reader;
mod requests;
mod serving;

pub use client::{Client, Responses};
pub use error::{ClientError, FrameError};
pub use frame::Connection;
pub use message::*;
pub use reader::{BlobReader, check_current};
pub use requests::{BookEntry, Pull, memory_file};
pub use serving::{Answers, Call, Calls};
