//! Packs: what the builder makes, the reader reads; what somebody bends, the reader refuses.

use proptest::prelude::*;
use velo_object::pack::{MAX_PACK_BYTES, PACK_TRAILER_BYTES, PackError};
use velo_object::{BlobId, EntryKind, PACKED_FILE_BYTES, PackIndex, PackReader};

use crate::outboard::{bend, bends};
use crate::sample::{self, Directory};

/// A pack with any index, as version 1 would write it.
fn raw(contents: &[u8], index: &[(BlobId, u32)]) -> Vec<u8> {
    let mut pack = contents.to_vec();
    for (id, len) in index {
        pack.extend_from_slice(id.as_bytes());
        pack.extend_from_slice(&len.to_le_bytes());
    }
    pack.extend_from_slice(b"VPK1");
    pack.extend_from_slice(&(index.len() as u32).to_le_bytes());
    pack
}

#[test]
fn packs_that_are_refused() {
    let (one, two) = (BlobId::of(b"one"), BlobId::of(b"two"));
    let good = raw(b"onetwo", &[(one, 3), (two, 3)]);
    PackReader::parse(good.as_slice()).expect("good").verify().expect("good");
    let error = |pack: &[u8]| PackReader::parse(pack).expect_err("refused");

    assert_eq!(error(b"VPK1"), PackError::Size(4));
    assert_eq!(error(b""), PackError::Size(0));
    assert_eq!(error(&good[..good.len() - 1]), PackError::Magic);
    assert_eq!(error(&good[1..]), PackError::Sum { expected: 5, found: 6 });
    assert_eq!(error(&[b"x", good.as_slice()].concat()), PackError::Sum { expected: 7, found: 6 });
    assert_eq!(error(&raw(b"", &[])), PackError::Count { count: 0, size_bytes: PACK_TRAILER_BYTES });
    assert_eq!(error(b"VPK1\x01\0\0\0"), PackError::Count { count: 1, size_bytes: PACK_TRAILER_BYTES });
    assert_eq!(error(b"VPK1\xff\xff\xff\xff"), PackError::Count { count: u32::MAX, size_bytes: 8 });
    assert_eq!(error(b"VPK2\x01\0\0\0"), PackError::Version(b'2'));
    assert_eq!(error(&raw(b"oneone", &[(one, 3), (one, 3)])), PackError::Duplicate(one));
    let long = PACKED_FILE_BYTES as u32 + 1;
    assert_eq!(error(&raw(b"one", &[(one, 3), (two, long)])), PackError::Content { blob: two, len: long });
    assert_eq!(error(&raw(b"one", &[(one, 2)])), PackError::Sum { expected: 3, found: 2 });

    let wrong = PackReader::parse(raw(b"onetwo", &[(two, 3), (one, 3)])).expect("only the bytes are wrong");
    assert_eq!(wrong.verify(), Err(PackError::Mismatch(two)));
    assert_eq!(
        PackIndex::range(MAX_PACK_BYTES + 1, b"VPK1\x01\0\0\0"),
        Err(PackError::Size(MAX_PACK_BYTES + 1))
    );
    for (size, range) in [(80, 0..36), (44, 8..44), (u64::MAX, 0..u64::MAX - 7), (44, 0..u64::MAX)] {
        assert!(PackIndex::parse(size, range, &[0; 36]).is_err());
    }
}

#[test]
fn a_pack_that_goes_on_past_its_end_is_refused() {
    // Ids that end in zeros end a pack as soon as it weighs 32 MiB; ids that end in ones never do.
    let id = |index: u32, last: u8| {
        let mut bytes = [last; 32];
        bytes[..4].copy_from_slice(&index.to_le_bytes());
        BlobId::from_bytes(bytes)
    };
    let parse = |index: &[(BlobId, u32)]| {
        let contents: u64 = index.iter().map(|(_, len)| u64::from(*len)).sum();
        let bytes = raw(b"", index);
        let end = contents + bytes.len() as u64 - PACK_TRAILER_BYTES;
        PackIndex::parse(
            end + PACK_TRAILER_BYTES,
            contents..end,
            &bytes[..bytes.len() - PACK_TRAILER_BYTES as usize],
        )
    };
    let full = PACKED_FILE_BYTES as u32;
    let mut index: Vec<_> = (0..300).map(|i| (id(i, 0xff), full)).collect();
    parse(&index).expect("it may end anywhere, as the last of a tree");
    index.push((id(300, 0), full));
    parse(&index).expect("it ends where it must");
    index.push((id(301, 0xff), 0));
    assert_eq!(parse(&index), Err(PackError::Boundary(id(301, 0xff))));
    let over: Vec<_> = (0..=768).map(|i| (id(i, 0xff), full)).collect();
    assert!(parse(&over[..767]).is_ok());
    assert_eq!(parse(&over), Err(PackError::Size(769 * (u64::from(full) + 36) + 8)));
}

#[test]
fn a_tree_of_several_packs_says_where_everything_lies() {
    let mut directory: Directory = (0..900u32)
        .map(|index| {
            let content = sample::noise(&index.to_le_bytes(), 100_000 + index as usize);
            (format!("{:03}", index).into_bytes(), (EntryKind::File, content, 0))
        })
        .collect();
    directory.insert(b"500 again".to_vec(), directory[b"500".as_slice()].clone());
    let (packs, tree) = sample::tree(&directory);
    let tree = tree.expect("a good directory");
    assert!(packs.len() >= 2, "{} packs", packs.len());
    assert_eq!(
        tree.packs().collect::<Vec<_>>(),
        packs.iter().map(|pack| sample::name(pack)).collect::<Vec<_>>()
    );

    let readers: Vec<_> =
        packs.iter().map(|pack| PackReader::parse(pack.as_slice()).expect("a pack")).collect();
    readers.iter().for_each(|reader| reader.verify().expect("the right contents"));
    let by_tree: Vec<_> =
        tree.packed().map(|at| (at.pack, at.offset_bytes, at.entry.blob, at.entry.size_bytes)).collect();
    let by_index: Vec<_> = readers
        .iter()
        .enumerate()
        .flat_map(|(pack, reader)| {
            let entries = reader.index().entries().iter();
            entries.map(move |e| (pack, u64::from(e.offset_bytes), e.blob, u64::from(e.len)))
        })
        .collect();
    assert_eq!(by_tree.len(), 900);
    assert_eq!(by_tree, by_index);
}

#[test]
fn a_step_that_fails_is_reported() {
    let mut builder = velo_object::PackBuilder::new();
    let id = BlobId::of(b"x");
    assert_eq!(builder.push(id, b"x", |_| Err("disk full")), Err("disk full"));
}

proptest! {
    #[test]
    fn what_is_laid_can_be_read(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60)) {
        let packs = sample::packs(contents.iter().map(Vec::as_slice));
        let mut seen = std::collections::HashSet::new();
        let distinct: Vec<_> = contents.iter().filter(|content| seen.insert(*content)).collect();
        prop_assert_eq!(packs.len(), usize::from(!contents.is_empty()));
        for pack in &packs {
            let reader = PackReader::parse(pack.as_slice()).expect("what the builder made");
            let read: Vec<_> = reader.index().entries().iter()
                .map(|entry| reader.content(entry).expect("the right bytes").to_vec()).collect();
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), distinct.clone());
        }
    }

    /// Every single change is found, by the index or by the hash of a content.
    #[test]
    fn bent_packs(bends in bends(200), cut in 0usize..40, front in 0usize..2) {
        let contents: [&[u8]; 4] = [b"first", b"", b"second", b"third content"];
        let honest = sample::packs(contents).remove(0);
        let mut bent = honest.clone();
        bend(&mut bent, &bends);
        bent.truncate(bent.len() - cut);
        let bent = &bent[front.min(bent.len())..];
        let verified = PackReader::parse(bent).and_then(|reader| reader.verify());
        if bent == honest { prop_assert_eq!(verified, Ok(())) } else { prop_assert!(verified.is_err()) }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0u32..9) {
        let _ = PackReader::parse(bytes.as_slice());
        let _ = PackReader::parse([bytes.as_slice(), b"VPK1", &count.to_le_bytes()].concat());
    }
}
