//! Scans at every level against what they mean, at all lengths and places, with guard pages on both sides.

use crate::guarded::Guarded;
use crate::support::{bytes, levels};

#[test]
fn zeros_are_found_at_every_length_and_alignment() {
    let mut memory = Guarded::new(8192);
    for kernels in levels() {
        for len in 0..=300 {
            for shift in 0..64 {
                // From the front, `shift` bytes in; the last alignment is that of the guard.
                let slice = &mut memory.tail(len + shift)[..len];
                slice.fill(0);
                assert!(kernels.is_zero(slice), "{} {len} {shift}", kernels.level());
                assert_eq!(kernels.leading_zeros(slice), len);
                for at in [0, len / 2, len.wrapping_sub(1)] {
                    if at < len {
                        slice[at] = 0x80;
                        assert_eq!(kernels.leading_zeros(slice), at, "{} {len} {shift}", kernels.level());
                        slice[at] = 0;
                    }
                }
            }
        }
        for at in 0..5000 {
            let slice = memory.head(5000);
            slice.fill(0);
            slice[at] = 1;
            assert!(!kernels.is_zero(slice));
            assert_eq!(kernels.leading_zeros(slice), at);
        }
    }
}

#[test]
fn differences_are_found_at_both_ends() {
    let (mut one, mut two) = (Guarded::new(4096), Guarded::new(4096));
    for kernels in levels() {
        for len in 0..=300 {
            let content = bytes(len as u64, len);
            for shift in [0, 1, 7, 16, 31, 33, 63] {
                let a = one.tail(len);
                let b = &mut two.tail(len + shift)[..len];
                a.copy_from_slice(&content);
                b.copy_from_slice(&content);
                assert_eq!(kernels.first_difference(a, b), None);
                assert_eq!(kernels.last_difference(a, b), None);
                for (first, last) in [(0, len / 2), (len / 3, len.wrapping_sub(1)), (len / 2, len / 2)] {
                    if first > last || last >= len {
                        continue;
                    }
                    b[first] ^= 0xff;
                    b[last] ^= 1;
                    assert_eq!(kernels.first_difference(a, b), Some(first), "{}", kernels.level());
                    assert_eq!(kernels.last_difference(a, b), Some(last), "{}", kernels.level());
                    b.copy_from_slice(&content);
                }
            }
        }
    }
}

/// The definition, byte by byte.
fn zero_run(bytes: &[u8], run: usize) -> usize {
    let zeros_from = |at: usize| bytes[at..].iter().take_while(|&&byte| byte == 0).count();
    (0..bytes.len())
        .find(|&at| zeros_from(at) >= run || at + zeros_from(at) == bytes.len())
        .unwrap_or(bytes.len())
}

#[test]
fn runs_of_zeros_are_found() {
    let mut memory = Guarded::new(4096);
    for kernels in levels() {
        for len in 0..=300 {
            for seed in 0..6 {
                let random = bytes(seed * 1000 + len as u64, len);
                let slice = memory.tail(len);
                // Runs of zeros of all lengths: the more so the higher the seed.
                let mut zero = false;
                for (to, from) in slice.iter_mut().zip(&random) {
                    if from % (3 + 8 * seed as u8) == 0 {
                        zero = !zero;
                    }
                    *to = if zero { 0 } else { from | 1 };
                }
                for run in [1, 2, 3, 8, 16, 17, 40, 64, 100] {
                    assert_eq!(
                        kernels.find_zero_run(slice, run),
                        zero_run(slice, run),
                        "{} {run} {slice:?}",
                        kernels.level()
                    );
                }
            }
        }
        assert_eq!(kernels.find_zero_run(&[1, 2], 0), 0);
    }
}

#[test]
#[should_panic(expected = "one length")]
fn buffers_of_different_lengths_are_not_compared() {
    velo_simd::kernels().first_difference(&[1], &[1, 2]);
}
