//! Sequences of operations on an endpoint of the packet protocol, by a peer that holds the keys.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| velo_fabric::packet::scenario::hostile(input));
