//! Adler-32 and Fletcher-32.

use crate::vector::Vector;

const ADLER: u64 = 65_521;
/// The most bytes whose Adler sums fit 32 bits in one lane: a multiple of every vector, below the classic 5552 for one lane.
const ADLER_BLOCK: usize = 4096;
const FLETCHER: u64 = 65_535;
/// Steps after which a lane of 16-bit words summed twice must be brought down: 65535 * 300 * 301 / 2 < 2^32.
const FLETCHER_STEPS: usize = 300;

/// The 32-bit lanes of a vector.
///
/// # Safety
/// The trait's.
#[inline(always)]
unsafe fn lanes<V: Vector>(vector: V) -> impl Iterator<Item = u64> {
    let mut bytes = [0; 64];
    // SAFETY: no vector is longer than 64 bytes.
    unsafe { vector.store(bytes.as_mut_ptr()) };
    (0..V::BYTES / 4).map(move |lane| {
        let lane = bytes[lane * 4..lane * 4 + 4].try_into().expect("four bytes");
        u64::from(u32::from_le_bytes(lane))
    })
}

/// Adler-32 of RFC 1950, going on from `state` (1 at the beginning).
#[inline(always)]
pub(crate) unsafe fn adler32<V: Vector>(state: u32, bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (u64::from(state & 0xffff), u64::from(state >> 16));
    let whole = bytes.len() / V::BYTES * V::BYTES;
    let (vectors, rest) = bytes.split_at(whole);
    for block in vectors.chunks(ADLER_BLOCK) {
        // In a block of n bytes, byte i counts n - i times in the second sum. In a lane of four bytes at offset o of the vector of step s,
        // that is 4, 3, 2, 1 by its place in the lane, and (bytes behind the lane) more.
        // SAFETY: every load is a whole vector of `block`; the caller has the instructions.
        unsafe {
            let (mut sums, mut before, mut weighed) = (V::zero(), V::zero(), V::zero());
            for vector in block.chunks_exact(V::BYTES) {
                let vector = V::load(vector.as_ptr());
                before = before.add32(sums);
                sums = sums.add32(vector.sum4());
                weighed = weighed.add32(vector.weigh4());
            }
            b += a * block.len() as u64;
            for (lane, ((sum, before), weighed)) in
                lanes(sums).zip(lanes(before)).zip(lanes(weighed)).enumerate()
            {
                a += sum;
                let behind = (V::BYTES - 4 * (lane + 1)) as u64;
                b += before * V::BYTES as u64 + weighed + sum * behind;
            }
        }
        a %= ADLER;
        b %= ADLER;
    }
    for &byte in rest {
        a += u64::from(byte);
        b += a;
    }
    (((b % ADLER) << 16) | (a % ADLER)) as u32
}

/// Fletcher-32 over little-endian 16-bit words; an odd last byte counts as a word with a zero upper byte. Going on from `state`.
#[inline(always)]
pub(crate) unsafe fn fletcher32<V: Vector>(state: u32, bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (u64::from(state & 0xffff), u64::from(state >> 16));
    let words = V::BYTES / 2;
    let whole = bytes.len() / V::BYTES * V::BYTES;
    let (vectors, rest) = bytes.split_at(whole);
    for block in vectors.chunks(FLETCHER_STEPS * V::BYTES) {
        // SAFETY: every load is a whole vector of `block`; the caller has the instructions.
        unsafe {
            let zero = V::zero();
            let (mut even, mut even_twice, mut odd, mut odd_twice) = (zero, zero, zero, zero);
            for vector in block.chunks_exact(V::BYTES) {
                let vector = V::load(vector.as_ptr());
                even = even.add32(vector.even16());
                even_twice = even_twice.add32(even);
                odd = odd.add32(vector.odd16());
                odd_twice = odd_twice.add32(odd);
            }
            b += a * (block.len() / 2) as u64;
            // A word at place p of the vector of step s (of n) counts (n - s) * words - p times; a lane's second sum has it n - s times.
            for (place, (sum, twice)) in lanes(even).zip(lanes(even_twice)).enumerate() {
                a += sum;
                b += twice * words as u64 - sum * (2 * place as u64);
            }
            for (place, (sum, twice)) in lanes(odd).zip(lanes(odd_twice)).enumerate() {
                a += sum;
                b += twice * words as u64 - sum * (2 * place as u64 + 1);
            }
        }
        a %= FLETCHER;
        b %= FLETCHER;
    }
    for pair in rest.chunks(2) {
        a += u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 8;
        b += a;
    }
    (((b % FLETCHER) << 16) | (a % FLETCHER)) as u32
}
