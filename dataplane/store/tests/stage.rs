//! Transfers: pieces in any order from many threads, resume after a kill, reads while they arrive, sinks.

mod bench;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bench::*;
use proptest::prelude::*;
use velo_object::{BlobId, Expected, Outboard, PIECE_BYTES, PackBuilder, PackStep, PieceSet, Verified};
use velo_store::{StageKind, Store, StoreError, StoreOptions, What};

const BLOB: StageKind = StageKind::Blob;

#[test]
fn every_length_arrives_and_reads_back() {
    let dir = tempdir();
    let store = open(&dir);
    for len in [0, 1, PIECE_BYTES as usize, PIECE_BYTES as usize + 1, 3 * PIECE_BYTES as usize] {
        let content = noise(len, len as u64);
        let id = stage_all(&store, &content, BLOB);
        assert_eq!(read(&store, &id), content, "{len} bytes");
        let stat = store.stat(&id).expect("index").expect("here");
        assert!(stat.complete && !stat.pinned, "what was fetched is cache");
    }
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
    assert_eq!(store.usage().expect("figures").staged_bytes, 0);
}

#[test]
fn many_are_committed_at_once_and_each_has_its_own_answer() {
    let dir = tempdir();
    let store = Store::open(StoreOptions { threads: 2, ..StoreOptions::new(dir.path()) }).expect("opens").0;
    let contents: Vec<Vec<u8>> = (0..90).map(|n| noise(2000 + n, n as u64)).collect();
    let mut stagings = Vec::new();
    for content in &contents {
        let id = BlobId::of(content);
        let staging = store.stage(id, content.len() as u64, None, None, BLOB).expect("room");
        staging.write(&piece(content, None, 0)).expect("room");
        stagings.push(staging);
    }
    let short = noise(7, 7);
    stagings.push(store.stage(BlobId::of(&short), 7, None, None, BLOB).expect("room"));
    stagings.push(stagings[0].clone());
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| store.commit_all(&stagings[40..]));
        (store.commit_all(&stagings), other.join().expect("no panic"))
    });
    for results in [&first, &second[..]] {
        let failed: Vec<_> = results.iter().filter(|result| result.is_err()).collect();
        assert!(matches!(failed[..], [Err(StoreError::Incomplete { missing: 1, .. })]), "{failed:?}");
    }
    assert_eq!(store.counters().committed, 90);
    drop((stagings, store));
    let (store, recovery) = reopen(&dir);
    assert_eq!((recovery.files, recovery.resumable), (90, 1));
    for content in &contents {
        assert_eq!(&read(&store, &BlobId::of(content)), content);
    }
}

#[test]
fn what_is_committed_is_never_absent_on_the_way() {
    let dir = tempdir();
    let store = open(&dir);
    let contents: Vec<Vec<u8>> = (0..40).map(|n| noise((1 << 20) + 1 + n, n as u64)).collect();
    for content in &contents {
        let (id, len) = (BlobId::of(content), content.len() as u64);
        let outboard = outboard_of(content);
        let staging = store.stage(id, len, outboard.clone(), None, BLOB).expect("room");
        for index in 0..2 {
            staging.write(&piece(content, outboard.as_ref(), index)).expect("room");
        }
        let committed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                staging.commit().expect("whole");
                committed.store(true, Ordering::Release);
            });
            while !committed.load(Ordering::Acquire) {
                assert_eq!(store.open_blob(&id, true).expect("never absent").size_bytes, len);
                assert_eq!(store.serve(&id, What::Blob, 0..len).expect("never absent").len_bytes, len);
                assert!(store.serve(&id, What::Outboard, 0..1).is_ok());
                assert!(store.outboard(&id).expect("never absent").is_some());
                assert!(store.have(&id).expect("an index").is_some_and(|have| have.have.is_full()));
                assert!(store.stat(&id).expect("an index").is_some());
            }
        });
    }
}

#[test]
fn many_threads_write_and_each_piece_counts_once() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(24 << 20, 1);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
    let fresh = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (staging, outboard, content, fresh) = (&staging, &outboard, &content, &fresh);
            scope.spawn(move || {
                for step in 0..24 {
                    let verified = piece(content, outboard.as_ref(), (step * 5 + thread * 7) % 24);
                    let was_fresh = staging.write(&verified).expect("room");
                    fresh.fetch_add(u64::from(was_fresh), Ordering::Relaxed);
                    assert!(staging.has(verified.index()));
                }
            });
        }
    });
    assert_eq!(fresh.load(Ordering::Relaxed), 24);
    let counters = store.counters();
    assert_eq!((counters.received_pieces, counters.duplicate_pieces), (24, 5 * 24));
    assert_eq!(staging.remaining(), 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| staging.commit().expect("the first commits, the others find it done"));
        }
    });
    assert_eq!(read(&store, &id), content);
    assert_eq!(store.counters().committed, 1);
}

#[test]
fn what_has_arrived_is_served_while_the_rest_is_on_its_way() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise((4 << 20) + 100, 2);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
    staging.write(&piece(&content, outboard.as_ref(), 1)).expect("room");
    staging.write(&piece(&content, outboard.as_ref(), 4)).expect("room");
    let served = store.serve(&id, What::Blob, PIECE_BYTES + 7..2 * PIECE_BYTES).expect("piece 1 is here");
    assert_eq!(served_bytes(&served), &content[(1 << 20) + 7..2 << 20]);
    let last = store.serve(&id, What::Blob, 4 * PIECE_BYTES..9 * PIECE_BYTES).expect("cut off at the end");
    assert_eq!(served_bytes(&last), &content[4 << 20..]);
    for missing in [0..10, PIECE_BYTES - 1..PIECE_BYTES + 1, PIECE_BYTES..3 * PIECE_BYTES, 0..u64::MAX] {
        assert!(matches!(store.serve(&id, What::Blob, missing), Err(StoreError::NotHere { .. })));
    }
    let backwards = std::ops::Range { start: 10, end: 5 };
    for outside in [content.len() as u64..u64::MAX, u64::MAX - 1..u64::MAX, backwards] {
        assert!(matches!(store.serve(&id, What::Blob, outside), Err(StoreError::NotHere { .. })));
    }
    assert_eq!(
        served_bytes(&store.serve(&id, What::Outboard, 0..u64::MAX).expect("here")),
        outboard.as_ref().expect("five").encode()
    );
    assert!(matches!(staging.commit(), Err(StoreError::Incomplete { missing: 3, .. })));
    assert!(matches!(store.open_blob(&id, false), Err(StoreError::NotFound(_))));
    let opened = store.open_blob(&id, true).expect("partial will do");
    assert!(!opened.complete);
    assert!(opened.file.write_at(b"x", 0).is_err(), "the descriptor is for reading only");
    for index in [0, 2, 3] {
        staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
    }
    staging.commit().expect("whole");
    let mut bytes = Vec::new();
    let mut file = opened.file;
    file.read_to_end(&mut bytes).expect("the same file goes on");
    assert_eq!(bytes, content);
}

#[test]
fn a_wait_ends_with_its_range_or_its_deadline() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(3 << 20, 3);
    let id = BlobId::of(&content);
    let soon = || Instant::now() + Duration::from_millis(30);
    assert!(matches!(store.wait(&id, 0..1, soon()), Err(StoreError::TimedOut { .. })));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| store.wait(&id, 5..(1 << 20) + 5, Instant::now() + Duration::from_secs(20)));
        let outboard = outboard_of(&content);
        std::thread::sleep(Duration::from_millis(20));
        let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
        staging.write(&piece(&content, outboard.as_ref(), 0)).expect("room");
        assert!(!waiting.is_finished());
        staging.write(&piece(&content, outboard.as_ref(), 1)).expect("room");
        waiting.join().expect("no panic").expect("arrived");
        assert!(matches!(store.wait(&id, 0..3 << 20, soon()), Err(StoreError::TimedOut { .. })));
        let waiting = scope.spawn(|| store.wait(&id, 0..u64::MAX, Instant::now() + Duration::from_secs(20)));
        staging.write(&piece(&content, outboard.as_ref(), 2)).expect("room");
        waiting.join().expect("no panic").expect("arrived");
        staging.commit().expect("whole");
        store.wait(&id, 0..3 << 20, soon()).expect("complete");
    });
}

#[test]
fn what_came_by_another_way_does_not_make_zeros_of_a_transfer_readable() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(3 << 20, 8);
    let id = BlobId::of(&content);
    // As a peer sent it.
    let outboard = outboard_of(&content).and_then(|outboard| Outboard::decode(id, &outboard.encode()).ok());
    let stage = || store.stage(id, 3 << 20, outboard.clone(), None, BLOB).expect("room");
    let soon = || Instant::now() + Duration::from_millis(30);
    let staging = stage();
    staging.write(&piece(&content, outboard.as_ref(), 0)).expect("room");
    assert!(matches!(store.open_blob(&id, true), Err(StoreError::NotFound(_))), "its size may be a lie");
    staging.write(&piece(&content, outboard.as_ref(), 2)).expect("room");
    let links = |file: &fs::File| file.metadata().expect("open").nlink();
    // Replaced by a transfer of its own kind: its file has no name before the other one answers.
    let first = store.open_blob(&id, true).expect("its size is proven").file;
    store.remove(blob_root(id)).expect("arriving");
    let staging = stage();
    staging.write(&piece(&content, outboard.as_ref(), 1)).expect("room");
    staging.write(&piece(&content, outboard.as_ref(), 2)).expect("room");
    store.wait(&id, 1 << 20..2 << 20, soon()).expect("of the second");
    assert_eq!(links(&first), 0);
    // Overtaken by the whole blob.
    let second = store.open_blob(&id, true).expect("its size is proven").file;
    assert_eq!(links(&second), 1);
    assert!(matches!(store.wait(&id, 0..1, soon()), Err(StoreError::TimedOut { .. })));
    cache_blob(&store, &content);
    store.wait(&id, 0..1, soon()).expect("complete");
    assert_eq!(links(&second), 0, "piece 0 is a hole in it");
    assert_eq!(store.usage().expect("figures").staged_bytes, 0);
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
    // Who still receives it is not disturbed.
    assert!(!staging.write(&piece(&content, outboard.as_ref(), 0)).expect("here"));
    staging.commit().expect("here");
    assert_eq!(read(&store, &id), content);
    // Committed, a file keeps its name.
    let other = noise(3 << 20, 9);
    let (id, outboard) = (BlobId::of(&other), outboard_of(&other));
    let staging = store.stage(id, 3 << 20, outboard.clone(), None, BLOB).expect("room");
    (0..3).for_each(|index| _ = staging.write(&piece(&other, outboard.as_ref(), index)).expect("room"));
    let opened = store.open_blob(&id, true).expect("its size is proven").file;
    staging.commit().expect("whole");
    assert_eq!(links(&opened), 1);
}

#[test]
fn who_begins_anew_while_another_gives_up_keeps_what_is_made() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise((1 << 20) + 5, 3);
    let (id, outboard) = (BlobId::of(&content), outboard_of(&content));
    let stage = || store.stage(id, content.len() as u64, outboard.clone(), None, BLOB);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // Not where the blob is here, and removed just now.
                if let Ok(staging) = stage() {
                    staging.abandon().expect("gone");
                }
            }
        });
        let mut failed = Vec::new();
        for _ in 0..400 {
            let staging = stage().expect("room");
            let write = |index| staging.write(&piece(&content, outboard.as_ref(), index)).map(drop);
            match write(0).and_then(|()| write(1)).and_then(|()| staging.commit()) {
                Ok(()) => drop(store.remove(blob_root(id))),
                // The other one gave up what both had.
                Err(StoreError::Ended(_)) => {}
                Err(error) => failed.push(error.to_string()),
            }
        }
        ended.store(true, Ordering::Relaxed);
        assert_eq!(failed, Vec::<String>::new());
    });
    let _ = store.remove(blob_root(id));
    assert_eq!(store.usage().expect("figures").staged_bytes, 0);
    assert_eq!(std::fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
}

#[test]
fn hashing_a_destination_holds_up_nobody_else() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(96 << 20, 7);
    let (id, outboard) = (BlobId::of(&content), outboard_of(&content));
    let other = BlobId::of(b"something else");
    let mut answered = false;
    // Again and again: on a busy machine this thread may not get a turn while the other hashes.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        let (outboard, sink) = (outboard.clone(), file_of(&content));
        std::thread::scope(|scope| {
            let hashing =
                scope.spawn(|| store.stage(id, 96 << 20, outboard, Some(sink), BLOB).expect("room"));
            while !hashing.is_finished() {
                assert!(matches!(store.serve(&other, What::Blob, 0..1), Err(StoreError::NotFound(_))));
                let begun = store.usage().expect("figures").partial == 1;
                answered |= begun && store.have(&id).expect("index").is_none();
            }
            let staging = hashing.join().expect("no panic");
            assert_eq!(staging.remaining(), 0);
            staging.abandon().expect("nothing to delete");
        });
        if answered {
            return;
        }
    }
    panic!("nothing was answered while a destination was being hashed");
}

#[test]
fn strangers_are_refused() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(3 << 20, 8);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    let staging = store.stage(id, 3 << 20, outboard.clone(), None, BLOB).expect("room");
    let other = noise(4 << 20, 9);
    let stranger = piece(&other, outboard_of(&other).as_ref(), 1);
    assert!(matches!(staging.write(&stranger), Err(StoreError::Stranger { .. })));
    let foreign = outboard_of(&other);
    assert!(matches!(
        store.stage(BlobId::of(b"x"), 4 << 20, foreign, None, BLOB),
        Err(StoreError::NoOutboard(_))
    ));
    // The last piece proves the size; another one is then refused.
    staging.write(&piece(&content, outboard.as_ref(), 2)).expect("room");
    assert!(matches!(
        store.stage(id, 2 << 20, outboard.clone(), None, BLOB),
        Err(StoreError::SizeConflict { present_bytes: 0x30_0000, asked_bytes: 0x20_0000, .. })
    ));
    staging.abandon().expect("gone");
    assert!(matches!(staging.write(&piece(&content, outboard.as_ref(), 0)), Err(StoreError::Ended(_))));
    assert!(matches!(staging.commit(), Err(StoreError::Ended(_))));
    assert!(store.stat(&id).expect("index").is_none());
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
    stage_all(&store, &content, BLOB);
    assert!(staging.abandon().is_ok() && store.has(&id).expect("index"), "the old one touches nothing");
}

#[test]
fn a_lie_about_the_size_gives_way_to_the_truth() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(4 << 20, 10);
    let id = BlobId::of(&content);
    let honest = outboard_of(&content).expect("four");
    let merged: Vec<[u8; 32]> = honest
        .values()
        .chunks(2)
        .map(|pair| blake3::hazmat::merge_subtrees_non_root(&pair[0], &pair[1], blake3::hazmat::Mode::Hash))
        .collect();
    let lie = velo_object::Outboard::from_values(id, 2 << 20, merged).expect("merges to the root");
    store.stage(id, 2 << 20, Some(lie), None, BLOB).expect("room");
    let staging =
        store.stage(id, 4 << 20, Some(honest.clone()), None, BLOB).expect("the lie has proven nothing");
    assert_eq!(staging.have().len(), 4);
    for index in 0..4 {
        staging.write(&piece(&content, Some(&honest), index)).expect("room");
    }
    staging.commit().expect("whole");
    assert_eq!(read(&store, &id), content);
}

fn pack(contents: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut builder = PackBuilder::new();
    let mut step = |step: PackStep<'_>| -> Result<(), std::convert::Infallible> {
        if let PackStep::Append(more) = step {
            bytes.extend_from_slice(more);
        }
        Ok(())
    };
    for content in contents {
        builder.push(BlobId::of(content), content, &mut step).expect("infallible");
    }
    builder.finish(&mut step).expect("infallible");
    bytes
}

#[test]
fn the_contents_of_a_received_pack_are_indexed_when_they_match() {
    let dir = tempdir();
    let store = open(&dir);
    let contents: Vec<Vec<u8>> = (0..50).map(|n| noise(n * 1000, n as u64)).collect();
    let bytes = pack(&contents);
    let id = stage_all(&store, &bytes, StageKind::Pack);
    for content in &contents {
        assert_eq!(&read(&store, &BlobId::of(content)), content);
    }
    assert_eq!(read(&store, &id), bytes);
    // A pack whose index lies about one content has a right hash, and is refused all the same.
    let mut bent = bytes.clone();
    bent[5000] ^= 1;
    let bent_id = BlobId::of(&bent);
    let outboard = outboard_of(&bent);
    let staging =
        store.stage(bent_id, bent.len() as u64, outboard.clone(), None, StageKind::Pack).expect("room");
    for index in 0..staging.have().len() {
        staging.write(&piece(&bent, outboard.as_ref(), index)).expect("room");
    }
    assert!(matches!(staging.commit(), Err(StoreError::Pack { .. })));
    assert!(!store.has(&bent_id).expect("index"));
    let not_a_pack = noise(3000, 1);
    let id = BlobId::of(&not_a_pack);
    let staging = store.stage(id, 3000, None, None, StageKind::Pack).expect("room");
    staging.write(&piece(&not_a_pack, None, 0)).expect("room");
    assert!(matches!(staging.commit(), Err(StoreError::Pack { .. })));
}

#[test]
fn a_sink_becomes_the_blob_and_the_store_keeps_nothing() {
    let dir = tempdir();
    let store = open(&dir);
    let mut content = noise((5 << 20) + 9, 11);
    content[1 << 20..2 << 20].fill(0);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    let mut sink = tempfile::tempfile().expect("a file");
    // What an interrupted run left: pieces 0 and 3 right, 1 (a hole) and 4 wrong, and too long.
    sink.write_all_at(&content[..1 << 20], 0).expect("room");
    sink.write_all_at(&[9; 1 << 20], 1 << 20).expect("room");
    sink.write_all_at(&content[3 << 20..4 << 20], 3 << 20).expect("room");
    sink.write_all_at(&[8; 4 << 20], 4 << 20).expect("room");
    let handed = sink.try_clone().expect("a descriptor");
    let staging = store.stage(id, content.len() as u64, outboard.clone(), Some(handed), BLOB).expect("room");
    assert!(staging.is_sink());
    assert_eq!(staging.have().iter().collect::<Vec<_>>(), [0, 3]);
    let again = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB);
    assert!(matches!(again, Err(StoreError::InUse(_))));
    let served = store.serve(&id, What::Blob, 3 << 20..4 << 20).expect("verified");
    assert_eq!(served_bytes(&served), &content[3 << 20..4 << 20]);
    let hole = Verified::<Vec<u8>>::check_hole(1 << 20, Expected::Piece(outboard.as_ref().expect("six"), 1));
    staging.write(&hole.expect("zeros")).expect("punched");
    for index in [2, 4, 5] {
        staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
    }
    staging.commit().expect("whole");
    let mut bytes = Vec::new();
    sink.seek(SeekFrom::Start(0)).expect("a file");
    sink.read_to_end(&mut bytes).expect("there");
    assert!(bytes == content);
    assert!(store.stat(&id).expect("index").is_none());
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
}

#[test]
fn holes_cost_no_room() {
    let dir = tempdir();
    let store = open(&dir);
    let mut builder = velo_object::OutboardBuilder::new(64 << 20);
    let piece_bytes = noise(1 << 20, 1);
    for index in 0..64 {
        let value = match index {
            9 => velo_object::chaining_value(9, &piece_bytes),
            _ => velo_object::hole_chaining_value(index, 1 << 20),
        };
        builder.set(index, value);
    }
    let outboard = builder.finish();
    let id = outboard.id();
    let staging = store.stage(id, 64 << 20, Some(outboard.clone()), None, BLOB).expect("room");
    for index in 0..64 {
        let expected = Expected::Piece(&outboard, index);
        if index == 9 {
            let verified = Verified::check(piece_bytes.clone(), 1 << 20, expected).expect("right");
            staging.write(&verified).expect("room");
        } else {
            staging.write(&Verified::<Vec<u8>>::check_hole(1 << 20, expected).expect("zeros")).expect("room");
        }
    }
    staging.commit().expect("whole");
    let opened = store.open_blob(&id, false).expect("here");
    assert!(opened.file.metadata().expect("open").blocks() * 512 < 2 << 20);
    assert_eq!(store.have(&id).expect("index").expect("here").holes.count(), 63);
}

#[test]
fn a_blob_that_is_here_gives_an_ended_transfer() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(3 << 20, 12);
    let id = put_blob(&store, &content);
    let staging = store.stage(id, 3 << 20, outboard_of(&content), None, BLOB).expect("here");
    assert_eq!((staging.have(), staging.remaining()), (PieceSet::full(3), 0));
    staging.commit().expect("nothing to do");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// Any pieces in any order, any number of kills in between: at the end the content is there, and every piece was
    /// fresh exactly once.
    #[test]
    fn any_order_with_kills(
        order in Just((0..7u64).collect::<Vec<_>>()).prop_shuffle(),
        kills in proptest::collection::vec(any::<bool>(), 7),
        seed in any::<u64>(),
    ) {
        let dir = tempdir();
        let content = noise((6 << 20) + 1 + (seed % 1000) as usize, seed);
        let id = BlobId::of(&content);
        let outboard = outboard_of(&content);
        let mut store = open(&dir);
        let mut expected = PieceSet::new(7);
        for (index, kill) in order.into_iter().zip(kills) {
            let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
            prop_assert_eq!(&staging.have(), &expected);
            prop_assert!(staging.write(&piece(&content, outboard.as_ref(), index)).expect("room"));
            expected.insert(index);
            if kill {
                drop((staging, store));
                store = open(&dir);
            }
        }
        store.staging(&id).expect("still there").commit().expect("whole");
        drop(store);
        let store = open(&dir);
        prop_assert!(read(&store, &id) == content);
    }
}
