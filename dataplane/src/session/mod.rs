//! Sessions: authenticated relations between nodes, kept over one TLS connection each.

mod event;

pub use event::{DataStream, PeerMessage, SessionEvent};
