//! Arbitrary bytes, cut anywhere, as the frames of a data stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| velo_fabric::tcp::fuzz_incoming(input));
