//! Simulators in virtual time over the code that real nodes run: the same seed gives the same run.

pub mod members;
