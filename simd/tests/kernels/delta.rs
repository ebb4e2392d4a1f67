//! XOR deltas and their bitmaps at every level against what they mean: lengths 0 to 300, long ones, all alignments, guard pages.

use crate::guarded::Guarded;
use crate::support::{bytes, levels};
use velo_simd::{Kernels, line_words, page_words};

fn bitmap(a: &[u8], b: &[u8], grain: usize, words: usize) -> Vec<u64> {
    let mut bits = vec![0; words];
    for (at, (a, b)) in a.chunks(grain).zip(b.chunks(grain)).enumerate() {
        bits[at / 64] |= u64::from(a != b) << (at % 64);
    }
    bits
}

/// Every kernel on one pair of buffers; the bitmaps hold rubbish before.
pub fn check(kernels: Kernels, dst: &mut [u8], a: &[u8], b: &[u8]) {
    let what = (kernels.level(), a.len(), dst.as_ptr().addr() % 64, a.as_ptr().addr() % 64);
    let xor: Vec<u8> = a.iter().zip(b).map(|(a, b)| a ^ b).collect();
    let lines = bitmap(a, b, 64, line_words(a.len()));
    let pages = bitmap(a, b, 4096, page_words(a.len()));
    let rubbish = || vec![0xdead_beef_dead_beef; lines.len()];

    for past_caches in [false, true] {
        dst.fill(0x5a);
        kernels.copy(dst, a, past_caches);
        assert!(dst == a, "copy {what:?}");
    }

    dst.fill(0x5a);
    kernels.xor_into(dst, a, b);
    assert!(dst == xor, "xor_into {what:?}");

    dst.fill(0x5a);
    let mut found = rubbish();
    kernels.xor_into_lines(dst, a, b, &mut found);
    assert!(dst == xor && found == lines, "xor_into_lines {what:?}");

    dst.copy_from_slice(a);
    kernels.xor_in_place(dst, b);
    assert!(dst == xor, "xor_in_place {what:?}");
    kernels.xor_in_place(dst, b);
    assert!(dst == a, "a delta applied to what it was made from gives the other back {what:?}");

    let mut found = rubbish();
    kernels.xor_in_place_lines(dst, b, &mut found);
    assert!(dst == xor && found == lines, "xor_in_place_lines {what:?}");

    let mut found = rubbish();
    kernels.differing_lines(a, b, &mut found);
    assert!(found == lines, "differing_lines {what:?}");

    let mut found = vec![u64::MAX; pages.len()];
    let count = kernels.differing_pages(a, b, &mut found);
    assert!(found == pages, "differing_pages {what:?}");
    assert_eq!(count, pages.iter().map(|word| word.count_ones() as usize).sum::<usize>());
}

/// A second buffer that differs in about one line of three.
pub fn other(a: &[u8], seed: u64) -> Vec<u8> {
    let mut b = a.to_vec();
    let random = bytes(seed, a.len().div_ceil(64) * 2);
    for (line, random) in b.chunks_mut(64).zip(random.chunks(2)) {
        if random[0] % 3 == 0 {
            let at = usize::from(random[1]) % line.len();
            line[at] ^= random[0] | 1;
        }
    }
    b
}

#[test]
fn every_short_length_at_every_alignment() {
    let (mut to, mut one, mut two) = (Guarded::new(8192), Guarded::new(8192), Guarded::new(8192));
    for kernels in levels() {
        for len in 0..=300 {
            let a = bytes(len as u64, len);
            let b = other(&a, len as u64 + 7);
            for shift in 0..64 {
                // Each buffer takes each alignment in turn, and each ends at its guard in turn.
                let (d, x, y) = (shift, (shift * 5) % 64, (shift * 11 + 3) % 64);
                let dst = &mut to.tail(len + d)[..len];
                let source = &mut one.tail(len + x)[..len];
                source.copy_from_slice(&a);
                let second = &mut two.tail(len + y % 2 * y)[..len];
                second.copy_from_slice(&b);
                check(kernels, dst, source, second);
            }
        }
    }
}

#[test]
fn long_buffers_before_and_behind_guards() {
    // The longest is streamed past the caches.
    let most = (4 << 20) + 4096 + 17;
    let (mut to, mut one, mut two) = (Guarded::new(most), Guarded::new(most), Guarded::new(most));
    for kernels in levels() {
        for len in [1000, 4095, 4096, 4097, 65_536, 262_144 + 100, 300_000, 4 << 20, most] {
            let a = bytes(len as u64, len);
            let b = other(&a, 3);
            one.tail(len).copy_from_slice(&a);
            two.tail(len).copy_from_slice(&b);
            check(kernels, to.tail(len), one.tail(len), two.tail(len));
            one.head(len).copy_from_slice(&a);
            two.head(len).copy_from_slice(&b);
            check(kernels, to.head(len), one.head(len), two.head(len));
        }
    }
}

#[test]
fn equal_buffers_have_no_difference() {
    let a = bytes(1, 100_000);
    for kernels in levels() {
        let mut pages = vec![u64::MAX; page_words(a.len())];
        assert_eq!(kernels.differing_pages(&a, &a.clone(), &mut pages), 0);
        assert!(pages.iter().all(|&word| word == 0));
    }
}

#[test]
#[should_panic(expected = "a word for each 4 KiB")]
fn a_short_bitmap_is_refused() {
    velo_simd::differing_lines(&[0; 4097], &[0; 4097], &mut [0]);
}

#[test]
#[should_panic(expected = "one length")]
fn buffers_of_different_lengths_are_refused() {
    velo_simd::xor_into(&mut [0; 3], &[0; 3], &[0; 4]);
}
