//! Packed deltas: what goes in comes out, and nothing that comes from elsewhere panics, over-reads or allocates without bound.

use crate::support::bytes;
use proptest::prelude::*;
use velo_simd::*;

/// A delta of a memory image: most pages the same, some changed in a few bytes, some wholly.
fn image_delta(seed: u64, pages: usize) -> Vec<u8> {
    let mut delta = vec![0; pages * 4096];
    for (at, page) in delta.chunks_mut(4096).enumerate() {
        let random = bytes(seed + at as u64, 4096);
        match random[0] % 20 {
            0 => page.copy_from_slice(&random),
            1 => (0..usize::from(random[1] % 8)).for_each(|change| {
                page[usize::from(random[2 + change]) * 16] = random[20 + change];
            }),
            _ => {}
        }
    }
    delta
}

fn round_trip(delta: &[u8]) -> Vec<u8> {
    let packed = pack(delta);
    assert_eq!(packed_len(&packed), Ok(delta.len() as u64));
    assert!(unpack(&packed, delta.len()).as_deref() == Ok(delta));
    let old = bytes(9, delta.len());
    let mut new = old.clone();
    apply(&packed, &mut new).expect("its own length");
    xor_in_place(&mut new, &old);
    assert!(new == delta);
    packed
}

#[test]
fn deltas_come_back() {
    assert_eq!(round_trip(&[]).len(), 2);
    assert!(round_trip(&[0; 1 << 20]).len() < 10);
    assert!(round_trip(&bytes(1, 100_000)).len() <= 100_016);
    assert!(round_trip(&[7; 100_000]).len() < 1000, "LZ4 pays");
    let delta = image_delta(3, 1000);
    let whole_pages =
        delta.chunks(4096).filter(|page| page.iter().filter(|&&byte| byte != 0).count() > 100).count();
    let packed = round_trip(&delta);
    assert!(packed.len() < whole_pages * 4096 + 20_000, "{} for {whole_pages} new pages", packed.len());
}

/// The format of version 1 is fixed by this.
#[test]
fn golden() {
    assert_eq!(pack(&[0, 0, 0, 0, 0, 9, 8, 0, 7, 0, 0, 0, 0]), [1, 13, 5, 4, 9, 8, 0, 7, 4]);
    assert_eq!(pack(&[1]), [1, 1, 0, 1, 1]);
    assert_eq!(pack(&[0; 300]), [1, 0xac, 2, 0xac, 2]);
}

#[test]
fn malformed_input_is_an_error() {
    let too_long = PackError::TooLong { declared: 300, most: 299 };
    assert_eq!(unpack(&pack(&[0; 300]), 299), Err(too_long));
    for bad in [
        &[][..],
        &[3, 0],
        &[1],
        &[1, 0x80],
        &[1, 0x80, 0],
        &[1, 5, 6],
        &[1, 5, 0, 6, 1, 2, 3, 4, 5, 6],
        &[1, 5, 0, 5, 1],
        &[1, 5, 0, 0, 5],
        &[1, 5, 5, 0],
        &[1, 0, 0],
        &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        &[2, 5, 200, 200, 200, 200, 1, 0],
        &[2, 5, 4, 0xf0, 1, 2],
        &[2, 5, 4],
    ] {
        let error = unpack(bad, 1000).expect_err("it is malformed");
        assert!(matches!(error, PackError::Format(_)), "{bad:?}: {error}");
    }
    let mut content = [1, 2, 3];
    assert_eq!(apply(&pack(&[0; 4]), &mut content), Err(PackError::Length { delta: 4, content: 3 }));
    // Sound at first and damaged behind: the content is untouched.
    assert!(apply(&[1, 3, 0, 1, 9, 1, 9], &mut content).is_err());
    assert_eq!(content, [1, 2, 3]);
}

#[test]
fn a_declared_length_allocates_nothing_by_itself() {
    // 2^62 bytes, and runs of 2^40.
    let declared = [1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 0];
    assert!(matches!(unpack(&declared, usize::MAX), Err(PackError::TooLong { .. })));
    let runs = [2, 10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, 0];
    assert!(matches!(unpack(&runs, usize::MAX), Err(PackError::Format(_))));
}

proptest! {
    #[test]
    fn any_delta_comes_back(parts in prop::collection::vec((0usize..300, 0usize..300, any::<u64>()), 0..40)) {
        let mut delta = Vec::new();
        for (zeros, literal, seed) in parts {
            delta.resize(delta.len() + zeros, 0);
            delta.extend(bytes(seed, literal).iter().map(|byte| if seed % 2 == 0 { byte & 3 } else { *byte }));
        }
        round_trip(&delta);
    }

    #[test]
    fn bent_input_never_panics(seed in any::<u64>(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut packed = pack(&image_delta(seed, 8));
        let index = at.index(packed.len());
        packed[index] = to;
        if let Ok(delta) = unpack(&packed, 1 << 16) {
            prop_assert!(delta.len() <= 1 << 16);
        }
        packed.truncate(cut.index(packed.len()));
        let _ = unpack(&packed, 1 << 16);
    }

    #[test]
    fn random_input_never_panics(input in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = unpack(&input, 1 << 16);
    }
}
