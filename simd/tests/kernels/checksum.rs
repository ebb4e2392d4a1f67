//! Checksums against published values and other implementations.

use crate::guarded::Guarded;
use crate::support::{bytes, levels};
use velo_simd::*;

pub fn adler(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1u32, 0u32);
    for &byte in bytes {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

pub fn fletcher(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (0u32, 0u32);
    for pair in bytes.chunks(2) {
        a = (a + u32::from(pair[0]) + 256 * u32::from(pair.get(1).copied().unwrap_or(0))) % 65_535;
        b = (b + a) % 65_535;
    }
    b << 16 | a
}

/// CRC32C by its definition: the reflected polynomial, a bit at a time.
fn bit_by_bit(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[test]
fn published_values() {
    for kernels in levels() {
        assert_eq!(kernels.adler32(1, b""), 1);
        assert_eq!(kernels.adler32(1, b"Wikipedia"), 0x11e6_0398);
        // Wikipedia, "Fletcher's checksum", test vectors.
        assert_eq!(kernels.fletcher32(0, b"abcde"), 0xf04f_c729);
        assert_eq!(kernels.fletcher32(0, b"abcdef"), 0x5650_2d2a);
        assert_eq!(kernels.fletcher32(0, b"abcdefgh"), 0xebe1_9591);
    }
    // RFC 3720, B.4.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    assert_eq!(crc32c(&(0..32).rev().collect::<Vec<u8>>()), 0x113f_db5c);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    // xxHash's own specification and sanity checks.
    assert_eq!(xxh32(b"", 0), 0x02cc_5d05);
    assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999);
    assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
    assert_eq!(xxh32(b"Nobody inspects the spammish repetition", 0), 0xe229_3b2f);
    assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xfbce_a83c_8a37_8bf1);
}

#[test]
fn sums_at_every_length_alignment_and_level() {
    let mut memory = Guarded::new(8192);
    for kernels in levels() {
        for len in 0..=300 {
            let content = bytes(len as u64, len);
            for shift in 0..64 {
                let slice = &mut memory.tail(len + shift)[..len];
                slice.copy_from_slice(&content);
                assert_eq!(kernels.adler32(1, slice), adler(slice), "{} {len}", kernels.level());
                assert_eq!(kernels.fletcher32(0, slice), fletcher(slice), "{} {len}", kernels.level());
            }
        }
        // The largest sums there can be, over more than one block, and in two parts.
        for content in [vec![0xff; 100_001], bytes(5, 70_000)] {
            assert_eq!(kernels.adler32(1, &content), adler(&content), "{}", kernels.level());
            assert_eq!(kernels.fletcher32(0, &content), fletcher(&content), "{}", kernels.level());
            let (front, back) = content.split_at(31_234);
            assert_eq!(kernels.adler32(kernels.adler32(1, front), back), adler(&content));
            assert_eq!(kernels.fletcher32(kernels.fletcher32(0, front), back), fletcher(&content));
        }
    }
}

#[test]
fn crc32c_is_what_the_other_crate_says_and_copies_what_it_sums() {
    // The longest are written past the caches.
    let most = (4 << 20) + 4109;
    let (mut from, mut to) = (Guarded::new(most), Guarded::new(most));
    for len in (0..=300).chain([
        383,
        384,
        385,
        3071,
        3072,
        3073,
        4095,
        8191,
        8192,
        8193,
        16_384,
        50_000,
        4 << 20,
        most,
    ]) {
        let content = bytes(len as u64, len);
        let (src, dst) = (from.tail(len), to.tail(len));
        src.copy_from_slice(&content);
        dst.fill(0);
        let expected = bit_by_bit(&content);
        assert_eq!(crc32c(src), expected, "{len}");
        assert_eq!(copy_crc32c(dst, src), expected, "{len}");
        assert!(dst == content, "{len}");
        let mut parts = Crc32c::new();
        let (front, back) = content.split_at(len / 3);
        parts.update(front);
        dst.fill(0);
        parts.copy(&mut dst[..back.len()], back);
        assert_eq!(parts.finish(), expected, "{len}");
        assert!(dst[..back.len()] == *back);
    }
}

#[test]
#[should_panic(expected = "as long as")]
fn a_copy_to_a_shorter_buffer_is_refused() {
    Crc32c::new().copy(&mut [0; 3], &[0; 4]);
}
