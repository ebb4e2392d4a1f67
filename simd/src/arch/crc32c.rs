//! A copy whose bytes are summed on their way: three chains of the processor's CRC32C instruction, which takes a word in each cycle
//! and gives its result three later, and a store for each word. The chains are joined as in Intel's "Fast CRC Computation for iSCSI
//! Polynomial Using CRC32 Instruction" (2011), by tables of what zeros after a chain make of its state.

use core::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_crc32_u8, _mm_crc32_u64, _mm_prefetch};
use std::sync::OnceLock;

const WORD: usize = 8;
/// Bytes of one chain in a round: first long ones, then such as make most of what is left of an Ethernet packet. The three of a round
/// lie close together: of bytes in memory, chains of 1024 took half as long again.
const CHAINS: [usize; 3] = [256, 128, 64];
const LINE: usize = 64;
/// How far ahead of a chain its lines are asked for, on both sides: three chains at once are more than the processor foresees.
const AHEAD: usize = 768;

/// What so many bytes of zeros make of each byte of a state.
struct Zeros([[u32; 256]; 4]);

impl Zeros {
    #[target_feature(enable = "sse4.2")]
    fn of(len: usize) -> Self {
        let after =
            |state: u32| (0..len / WORD).fold(u64::from(state), |state, _| _mm_crc32_u64(state, 0)) as u32;
        let bits: [u32; 32] = std::array::from_fn(|bit| after(1 << bit));
        let state = |byte: usize, value: usize| {
            (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |state, bit| state ^ bits[8 * byte + bit])
        };
        Self(std::array::from_fn(|byte| std::array::from_fn(|value| state(byte, value))))
    }

    #[inline(always)]
    fn after(&self, state: u64) -> u64 {
        let [a, b, c, d] = (state as u32).to_le_bytes().map(usize::from);
        u64::from(self.0[0][a] ^ self.0[1][b] ^ self.0[2][c] ^ self.0[3][d])
    }
}

/// Whether this processor has the instruction.
pub(crate) fn is_available() -> bool {
    !cfg!(miri) && is_x86_feature_detected!("sse4.2")
}

/// Copies `src` to `dst` and gives `crc` as it is with those bytes appended.
///
/// # Panics
/// If the lengths differ.
#[target_feature(enable = "sse4.2")]
pub(crate) fn copy(crc: u32, dst: &mut [u8], src: &[u8]) -> u32 {
    static ZEROS: OnceLock<[Zeros; 3]> = OnceLock::new();
    assert_eq!(dst.len(), src.len(), "a copy is as long as what it copies");
    let zeros = ZEROS.get_or_init(|| CHAINS.map(|len| Zeros::of(len)));
    let (mut dst, mut src) = (dst, src);
    let mut state = u64::from(!crc);
    for (len, zeros) in CHAINS.into_iter().zip(zeros) {
        while src.len() >= 3 * len {
            let (to, rest) = dst.split_at_mut(3 * len);
            let (from, more) = src.split_at(3 * len);
            (dst, src) = (rest, more);
            let (mut second, mut third) = (0, 0);
            let (to, from) = (to.as_mut_ptr(), from.as_ptr());
            for line in (0..len).step_by(LINE) {
                for chain in 0..3 {
                    // Beyond the end this does nothing.
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + chain * len + line).cast());
                    _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(AHEAD + chain * len + line).cast());
                }
                for at in (line..line + LINE).step_by(WORD) {
                    // SAFETY: `at + WORD` is at most `len`, and both sides have three times `len` bytes.
                    let word = |chain: usize| unsafe {
                        let word = from.add(chain * len + at).cast::<u64>().read_unaligned();
                        to.add(chain * len + at).cast::<u64>().write_unaligned(word);
                        word
                    };
                    state = _mm_crc32_u64(state, word(0));
                    second = _mm_crc32_u64(second, word(1));
                    third = _mm_crc32_u64(third, word(2));
                }
            }
            state = zeros.after(zeros.after(state) ^ second) ^ third;
        }
    }
    dst.copy_from_slice(src);
    short(!(state as u32), src)
}

/// Gives `crc` as it is with `bytes` appended, by a single chain: for so few bytes that everything else only costs time.
#[target_feature(enable = "sse4.2")]
pub(crate) fn short(crc: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<WORD>();
    let state =
        words.iter().fold(u64::from(!crc), |state, word| _mm_crc32_u64(state, u64::from_le_bytes(*word)));
    !rest.iter().fold(state as u32, |state, byte| _mm_crc32_u8(state, *byte))
}
