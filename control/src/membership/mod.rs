//! Membership: signed records of members, the gossip that carries them and finds failures, and the keys that seal it.

mod admission;
mod gossip;
mod machine;
mod record;
mod roster;
mod seal;

pub use gossip::Gossip;
pub use machine::{GossipCounts, GossipEvent, GossipOptions, MAX_PACKET_BYTES, Machine};
pub use record::{CheckedMember, MAX_ADDRESSES, MemberRecord};
pub use roster::{Liveness, MAX_MEMBERS, Roster, RosterEntry, Seeker};
pub use seal::{GossipKey, Keyring, MAX_SEALED_OVERHEAD_BYTES, OpenError, Sealer};
