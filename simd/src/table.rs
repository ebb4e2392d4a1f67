//! Every kernel compiled for every level, and the table of them that is chosen at run time.
//! Model for the idea: memchr's `src/arch`, one generic algorithm with a thin wrapper for each set of target features.

use crate::{checksum, delta, scan};

/// Writes, for one level, a wrapper with its target features around each generic kernel, and the table of the wrappers.
macro_rules! level {
    ($(#[$meta:meta])* $level:ident, $vector:ty, $compiled:meta,
     $(fn $module:ident :: $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(#[$meta])*
        pub(crate) mod $level {
            use super::*;

            $(
                #[$compiled]
                unsafe fn $name($($arg: $type),*) $(-> $result)? {
                    // SAFETY: this wrapper is compiled for the features; whoever calls it has them (see `Kernels::at`), and keeps to
                    // what the generic kernel asks of its arguments.
                    unsafe { $module::$name::<$vector>($($arg),*) }
                }
            )*

            pub(crate) static TABLE: Table = Table { $($name),* };
        }
    };
}

macro_rules! kernels {
    ($($kernels:tt)*) => {
        level!(scalar, crate::vector::Plain, inline(never), $($kernels)*);
        level!(
            #[cfg(target_arch = "x86_64")]
            sse, core::arch::x86_64::__m128i, target_feature(enable = "sse4.1,ssse3"), $($kernels)*
        );
        level!(
            #[cfg(target_arch = "x86_64")]
            avx2, core::arch::x86_64::__m256i, target_feature(enable = "avx2"), $($kernels)*
        );
        level!(
            #[cfg(target_arch = "x86_64")]
            avx512, core::arch::x86_64::__m512i, target_feature(enable = "avx512f,avx512bw,avx512vl"),
            $($kernels)*
        );
        table!($($kernels)*);
    };
}

macro_rules! table {
    ($(fn $module:ident :: $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// The kernels of one level. Each may be called only on a processor that has the level.
        #[derive(Debug)]
        pub(crate) struct Table {
            $(pub(crate) $name: unsafe fn($($type),*) $(-> $result)?,)*
        }
    };
}

kernels! {
    fn scan::leading_zeros(bytes: &[u8]) -> usize;
    fn scan::first_difference(a: &[u8], b: &[u8]) -> usize;
    fn scan::end_of_differences(a: &[u8], b: &[u8]) -> usize;
    fn scan::find_zero_run(bytes: &[u8], run: usize) -> usize;
    fn delta::copy_into(dst: &mut [u8], src: &[u8]);
    fn delta::copy_stream(dst: &mut [u8], src: &[u8]);
    fn delta::xor_into(dst: &mut [u8], a: &[u8], b: &[u8]);
    fn delta::xor_in_place(dst: &mut [u8], b: &[u8]);
    fn delta::xor_stream(dst: &mut [u8], a: &[u8], b: &[u8]);
    fn delta::xor_into_lines(dst: &mut [u8], a: &[u8], b: &[u8], words: &mut [u64]);
    fn delta::xor_stream_lines(dst: &mut [u8], a: &[u8], b: &[u8], words: &mut [u64]);
    fn delta::xor_in_place_lines(dst: &mut [u8], b: &[u8], words: &mut [u64]);
    fn delta::differing_lines(a: &[u8], b: &[u8], words: &mut [u64]);
    fn delta::differing_pages(a: &[u8], b: &[u8], words: &mut [u64]) -> usize;
    fn checksum::adler32(state: u32, bytes: &[u8]) -> u32;
    fn checksum::fletcher32(state: u32, bytes: &[u8]) -> u32;
}
