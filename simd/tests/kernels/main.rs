//! Every kernel at every level that this machine has, against what it means.

mod checksum;
mod delta;
mod guarded;
mod interpreted;
mod pack;
mod scan;
mod support;
