//! Hard stops of a guest: a disk whose write cache forgets when the power is cut, served over NBD; the guest as a process;
//! and the ledger of what the guest was told is done.
//!
//! The program `hard-stops` runs on the host and cuts the power, `guest-workload` runs Velo's nodes in the guest.
#![forbid(unsafe_code)]

pub mod disk;
pub mod ledger;
pub mod machine;
pub mod nbd;
