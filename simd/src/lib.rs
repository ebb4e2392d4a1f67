//! The innermost loops of Velo, with the best instructions of the processor that they run on.
//!
//! Each kernel is one generic algorithm, compiled as plain Rust, for SSE, AVX2 and AVX-512. The level is chosen once, at the first
//! call ([`level()`]); the environment variable `VELO_SIMD` (`scalar`, `sse`, `avx2`, `avx512`) forces one. Processors other than
//! x86-64 use `scalar`. No kernel needs any alignment, reads or writes outside its slices, or allocates, unless it says so.
//!
//! No I/O, and no dependency on the rest of Velo.

mod arch;
mod kernels;
mod level;
mod scan;
mod table;
mod vector;

pub use kernels::{Kernels, is_zero, kernels};
pub use level::{Level, LevelError, level};
