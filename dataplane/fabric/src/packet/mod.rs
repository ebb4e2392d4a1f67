//! The packet fabric: one receiver-driven protocol ([`protocol`]) over interchangeable [`port`]s.
//!
//! The protocol is a state machine without socket and clock; a port moves datagrams and knows nothing above UDP.

mod fabric;
pub mod limits;
pub mod port;
pub mod protocol;
#[doc(hidden)]
pub mod scenario;

pub use fabric::{Packet, PacketPathError};
