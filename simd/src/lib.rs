//! The innermost loops of Velo, with the best instructions of the processor that they run on.
//!
//! Each kernel is one generic algorithm, compiled as plain Rust, for SSE, AVX2 and AVX-512. The level is chosen once, at the first
//! call ([`level()`]); the environment variable `VELO_SIMD` (`scalar`, `sse`, `avx2`, `avx512`) forces one. Processors other than
//! x86-64 use `scalar`. No kernel needs any alignment, reads or writes outside its slices, or allocates, unless it says so.
//!
//! Where a well-kept crate is as fast, it is used, and there is no kernel here: CRC-32 is that of `crc-fast`, CRC32C that or the one of
//! `crc32c`, whichever the processor runs faster, xxHash and XXH3
//! those of `xxhash-rust`, LZ4 that of `lz4_flex`.
//!
//! No I/O, and no dependency on the rest of Velo.

mod arch;
mod checksum;
mod crc;
mod delta;
mod gear;
mod kernels;
mod level;
mod pack;
mod scan;
mod table;
mod vector;

pub use crc::{Crc32c, copy_crc32c, crc32, crc32c};
pub use gear::Gear;
pub use kernels::{
    Kernels, adler32, differing_lines, differing_pages, find_zero_run, first_difference, fletcher32, is_zero,
    kernels, last_difference, leading_zeros, line_words, page_words, xor_in_place, xor_in_place_lines,
    xor_into, xor_into_lines,
};
pub use level::{Level, LevelError, level};
pub use pack::{MAX_DELTA_BYTES, PackError, Packer, apply, pack, packed_len, unpack};
/// XXH3 with 64 bits, of `xxhash-rust`: fast and not cryptographic.
pub use xxhash_rust::xxh3::xxh3_64;
/// xxHash with 32 bits, of `xxhash-rust`.
pub use xxhash_rust::xxh32::xxh32;
/// xxHash with 64 bits, of `xxhash-rust`.
pub use xxhash_rust::xxh64::xxh64;
