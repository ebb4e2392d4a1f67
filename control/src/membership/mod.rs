//! Membership: signed records of members, the gossip that carries them and finds failures, and the keys that seal it.

mod gossip;
mod record;
mod roster;
mod seal;

pub use gossip::{Gossip, GossipEvent, GossipOptions};
pub use record::{CheckedMember, MAX_ADDRESSES, MemberRecord};
pub use roster::{Liveness, MAX_MEMBERS, Roster, RosterEntry};
pub use seal::{GossipKey, Keyring, MAX_SEALED_OVERHEAD_BYTES, OpenError, Sealer};
