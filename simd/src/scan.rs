//! Scans: zeros, runs of zeros, first and last difference.

use crate::vector::Vector;

/// How many zero bytes stand at the front.
#[inline(always)]
pub(crate) unsafe fn leading_zeros<V: Vector>(bytes: &[u8]) -> usize {
    let (start, len) = (bytes.as_ptr(), bytes.len());
    let mut at = 0;
    // SAFETY: every load lies within `bytes`, by the conditions of the loops; the caller answers for the instructions.
    unsafe {
        while at + 4 * V::BYTES <= len {
            let from = start.add(at);
            let low = V::load(from).or(V::load(from.add(V::BYTES)));
            let high = V::load(from.add(2 * V::BYTES)).or(V::load(from.add(3 * V::BYTES)));
            if !low.or(high).is_zero() {
                break;
            }
            at += 4 * V::BYTES;
        }
        while at + V::BYTES <= len {
            let set = V::load(start.add(at)).nonzero_bytes();
            if set != 0 {
                return at + set.trailing_zeros() as usize;
            }
            at += V::BYTES;
        }
    }
    bytes[at..].iter().position(|&byte| byte != 0).map_or(len, |more| at + more)
}

/// The first index at which two slices of one length differ; their length if nowhere.
#[inline(always)]
pub(crate) unsafe fn first_difference<V: Vector>(a: &[u8], b: &[u8]) -> usize {
    let len = a.len();
    let (pa, pb) = (a.as_ptr(), b.as_ptr());
    let mut at = 0;
    // SAFETY: every load lies within both slices, which have one length (checked by the public function).
    unsafe {
        while at + V::BYTES <= len {
            let set = V::load(pa.add(at)).xor(V::load(pb.add(at))).nonzero_bytes();
            if set != 0 {
                return at + set.trailing_zeros() as usize;
            }
            at += V::BYTES;
        }
    }
    (at..len).find(|&index| a[index] != b[index]).unwrap_or(len)
}

/// One more than the last index at which two slices of one length differ; 0 if nowhere.
#[inline(always)]
pub(crate) unsafe fn end_of_differences<V: Vector>(a: &[u8], b: &[u8]) -> usize {
    let (pa, pb) = (a.as_ptr(), b.as_ptr());
    let mut end = a.len();
    // SAFETY: every load lies within both slices, which have one length (checked by the public function).
    unsafe {
        while end >= V::BYTES {
            let from = end - V::BYTES;
            let set = V::load(pa.add(from)).xor(V::load(pb.add(from))).nonzero_bytes();
            if set != 0 {
                return from + 64 - set.leading_zeros() as usize;
            }
            end = from;
        }
    }
    (0..end).rev().find(|&index| a[index] != b[index]).map_or(0, |index| index + 1)
}

/// The first index from which on at least `run` zero bytes follow each other (or zeros to the end); the length if there is none.
#[inline(always)]
pub(crate) unsafe fn find_zero_run<V: Vector>(bytes: &[u8], run: usize) -> usize {
    let (start, len) = (bytes.as_ptr(), bytes.len());
    // `zeros` is the length of the run of zeros that ends at `at`.
    let (mut at, mut zeros) = (0, 0);
    // SAFETY: every load lies within `bytes`, by the condition of the loop.
    unsafe {
        while at + V::BYTES <= len {
            let mut set = V::load(start.add(at)).nonzero_bytes();
            let mut from = 0;
            while set != 0 {
                let next = set.trailing_zeros() as usize;
                if zeros + next - from >= run {
                    return at + from - zeros;
                }
                zeros = 0;
                from = next + 1;
                set &= set - 1;
            }
            zeros += V::BYTES - from;
            if zeros >= run {
                return at + V::BYTES - zeros;
            }
            at += V::BYTES;
        }
    }
    while at < len {
        zeros = if bytes[at] == 0 { zeros + 1 } else { 0 };
        at += 1;
        if zeros >= run {
            break;
        }
    }
    at - zeros
}
