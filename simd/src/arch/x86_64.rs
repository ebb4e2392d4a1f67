//! The vectors of x86-64: SSE, AVX2 and AVX-512.

use core::arch::x86_64::*;

use crate::vector::Vector;

macro_rules! vector {
    (
        $type:ty, $bytes:literal, $load:ident, $store:ident, $stream:ident, $zero:ident, $xor:ident, $or:ident,
        $add32:ident, $and:ident, $shift:ident, $set32:ident, $set16:ident, $maddubs:ident, $madd:ident,
        $pointer:ty, |$v:ident| is_zero: $is_zero:expr, nonzero: $nonzero:expr
    ) => {
        // SAFETY: the instructions are those of the level that the trait's caller answers for.
        unsafe impl Vector for $type {
            const BYTES: usize = $bytes;

            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                // SAFETY: the caller says that the bytes are readable; this load takes any alignment.
                unsafe { $load(from.cast::<$pointer>()) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u8) {
                // SAFETY: the caller says that the bytes are writable; this store takes any alignment.
                unsafe { $store(to.cast::<$pointer>(), self) }
            }
            #[inline(always)]
            unsafe fn stream(self, to: *mut u8) {
                // SAFETY: the caller says that the bytes are writable and aligned.
                unsafe { $stream(to.cast::<$pointer>(), self) }
            }
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $zero() }
            }
            #[inline(always)]
            unsafe fn xor(self, other: Self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $xor(self, other) }
            }
            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $or(self, other) }
            }
            #[inline(always)]
            unsafe fn is_zero(self) -> bool {
                let $v = self;
                // SAFETY: the caller has these instructions.
                unsafe { $is_zero }
            }
            #[inline(always)]
            unsafe fn nonzero_bytes(self) -> u64 {
                let $v = self;
                // SAFETY: the caller has these instructions.
                unsafe { $nonzero }
            }
            #[inline(always)]
            unsafe fn add32(self, other: Self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $add32(self, other) }
            }
            #[inline(always)]
            unsafe fn even16(self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $and(self, $set32(0xffff)) }
            }
            #[inline(always)]
            unsafe fn odd16(self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $shift::<16>(self) }
            }
            #[inline(always)]
            unsafe fn sum4(self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $madd($maddubs(self, $set32(0x0101_0101)), $set16(1)) }
            }
            #[inline(always)]
            unsafe fn weigh4(self) -> Self {
                // SAFETY: the caller has these instructions.
                unsafe { $madd($maddubs(self, $set32(0x0102_0304)), $set16(1)) }
            }
            #[inline(always)]
            unsafe fn prefetch(from: *const u8) {
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast::<i8>()) }
            }
            #[inline(always)]
            unsafe fn fence() {
                // SAFETY: the caller has these instructions.
                unsafe { _mm_sfence() }
            }
        }
    };
}

vector!(
    __m128i, 16, _mm_loadu_si128, _mm_storeu_si128, _mm_stream_si128, _mm_setzero_si128, _mm_xor_si128,
    _mm_or_si128, _mm_add_epi32, _mm_and_si128, _mm_srli_epi32, _mm_set1_epi32, _mm_set1_epi16,
    _mm_maddubs_epi16, _mm_madd_epi16, __m128i,
    |v| is_zero: _mm_testz_si128(v, v) == 1,
    nonzero: u64::from(!_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_setzero_si128())) as u16)
);

vector!(
    __m256i, 32, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_stream_si256, _mm256_setzero_si256,
    _mm256_xor_si256, _mm256_or_si256, _mm256_add_epi32, _mm256_and_si256, _mm256_srli_epi32,
    _mm256_set1_epi32, _mm256_set1_epi16, _mm256_maddubs_epi16, _mm256_madd_epi16, __m256i,
    |v| is_zero: _mm256_testz_si256(v, v) == 1,
    nonzero: u64::from(!_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())) as u32)
);

vector!(
    __m512i, 64, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_stream_si512, _mm512_setzero_si512,
    _mm512_xor_si512, _mm512_or_si512, _mm512_add_epi32, _mm512_and_si512, _mm512_srli_epi32,
    _mm512_set1_epi32, _mm512_set1_epi16, _mm512_maddubs_epi16, _mm512_madd_epi16, __m512i,
    |v| is_zero: _mm512_test_epi64_mask(v, v) == 0,
    nonzero: _mm512_test_epi8_mask(v, v)
);
