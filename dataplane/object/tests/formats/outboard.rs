//! Outboards against `blake3::hash`, for every length that could be special and for many that are not.

use std::sync::LazyLock;

use proptest::prelude::*;
use velo_object::{BlobId, Expected, Outboard, PIECE_BYTES, Pieces, Verified};

use crate::sample;

const MOST: usize = 20 << 20;
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| sample::noise(b"outboards", MOST));

/// Every piece of `content` verifies at its place, and the root is the plain hash.
fn check(content: &[u8]) {
    let pieces = Pieces::new(content.len() as u64);
    let plain = BlobId::of(content);
    let part = |index| {
        let range = pieces.range(index);
        &content[range.start as usize..range.end as usize]
    };
    if content.len() as u64 <= PIECE_BYTES {
        assert_eq!(Outboard::encoded_bytes(content.len() as u64), 0);
        let verified = Verified::check(content, content.len(), Expected::Whole(plain)).expect("its own hash");
        assert_eq!(verified.proves_size_bytes(), Some(content.len() as u64));
        return;
    }
    let outboard = sample::outboard(content);
    assert_eq!(outboard.id(), plain, "{} bytes", content.len());
    let decoded = Outboard::decode(plain, &outboard.encode()).expect("what encode made");
    assert!(!decoded.is_confirmed() && decoded.values() == outboard.values());
    for index in [0, pieces.count() / 2, pieces.last()] {
        let verified = Verified::check(part(index), part(index).len(), Expected::Piece(&decoded, index));
        let proves = verified.expect("the right bytes").proves_size_bytes();
        assert_eq!(proves, (index == pieces.last()).then_some(content.len() as u64));
    }
}

#[test]
fn every_length_around_every_boundary() {
    let mut lengths = vec![0, 1, 2, 63, 64, 65, 1023, 1024, 1025, 2048, 2049];
    for piece in 1..=MOST / PIECE_BYTES as usize {
        let boundary = piece * PIECE_BYTES as usize;
        lengths.extend([boundary - 1025, boundary - 1, boundary]);
        if boundary < MOST {
            lengths.extend([boundary + 1, boundary + 1024]);
        }
    }
    lengths.into_iter().for_each(|len| check(&NOISE[..len]));
}

#[test]
fn a_piece_with_one_bit_flipped_is_refused_everywhere() {
    let content = &NOISE[..(3 << 20) + 100];
    let outboard = sample::outboard(content);
    let pieces = outboard.pieces();
    for index in 0..pieces.count() {
        let range = pieces.range(index);
        let honest = &content[range.start as usize..range.end as usize];
        for at in [0, honest.len() / 2, honest.len() - 1] {
            let mut bent = honest.to_vec();
            bent[at] ^= 1 << (at % 8);
            let len = bent.len();
            let (buffer, mismatch) =
                Verified::check(bent, len, Expected::Piece(&outboard, index)).expect_err("a flipped bit");
            assert_eq!((buffer.len(), mismatch.index), (len, index));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_lengths(len in 0..=MOST) {
        check(&NOISE[..len]);
    }
}

proptest! {
    /// A bent outboard is refused, or states another size for the same root: then the true last piece does not verify
    /// under it, so the size is never confirmed.
    #[test]
    fn bent_outboards(bends in bends(16 + 4 * 32), cut in 0usize..4) {
        static HONEST: LazyLock<(BlobId, Vec<u8>)> = LazyLock::new(|| {
            let outboard = sample::outboard(content());
            (outboard.id(), outboard.encode())
        });
        fn content() -> &'static [u8] {
            &NOISE[..(4 << 20) - 3]
        }
        let (id, honest) = &*HONEST;
        let mut bent = honest.clone();
        bend(&mut bent, &bends);
        bent.truncate(bent.len() - cut);
        if let Ok(outboard) = Outboard::decode(*id, &bent) {
            prop_assert_eq!(&outboard.encode(), &bent);
            prop_assert!(!outboard.is_confirmed());
            if outboard.size_bytes() == content().len() as u64 {
                prop_assert_eq!(&bent, honest);
            } else {
                let last = &content()[3 << 20..];
                prop_assert!(Verified::check(last, last.len(), Expected::Piece(&outboard, 3)).is_err());
            }
        }
    }
}

/// Some positions and what to change there.
pub fn bends(most: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..most, any::<u8>()), 1..4)
}

/// Changes `bytes` at those positions (where they have them).
pub fn bend(bytes: &mut [u8], bends: &[(usize, u8)]) {
    for &(at, change) in bends {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= change;
        }
    }
}
