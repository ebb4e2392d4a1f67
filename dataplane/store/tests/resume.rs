//! Transfers that an earlier process left: after a kill, after a crash of the machine, damaged, or garbage.

mod bench;

use std::fs;
use std::os::unix::fs::FileExt;

use bench::*;
use velo_object::{BlobId, Expected, Verified};
use velo_store::{StageKind, StoreError};

const BLOB: StageKind = StageKind::Blob;

#[test]
fn a_kill_loses_no_verified_piece() {
    let dir = tempdir();
    let mut content = noise((6 << 20) + 5, 4);
    content[2 << 20..3 << 20].fill(0);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    {
        let store = open(&dir);
        let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
        for index in [0, 5, 6] {
            staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
        }
        let expected = Expected::Piece(outboard.as_ref().expect("seven"), 2);
        let hole = Verified::<Vec<u8>>::check_hole(1 << 20, expected).expect("zeros");
        assert!(staging.write(&hole).expect("room"));
        assert!(!staging.write(&hole).expect("there"));
        // No close: as after kill -9.
    }
    let (store, recovery) = reopen(&dir);
    assert!(!recovery.clean && recovery.resumable == 1);
    let have = store.have(&id).expect("index").expect("partial");
    assert_eq!(have.have.iter().collect::<Vec<_>>(), [0, 2, 5, 6]);
    assert_eq!(have.holes.iter().collect::<Vec<_>>(), [2]);
    assert_eq!(store.usage().expect("figures").staged_bytes, (5 << 20) + 5, "all but the hole");
    let staging = store.stage(id, content.len() as u64, None, None, BLOB).expect("its outboard is here");
    assert_eq!(staging.outboard().map(|outboard| outboard.encode()), outboard.as_ref().map(|o| o.encode()));
    for index in [1, 3, 4] {
        assert!(staging.write(&piece(&content, outboard.as_ref(), index)).expect("room"));
    }
    staging.commit().expect("whole");
    assert_eq!(read(&store, &id), content);
    assert_eq!(store.counters().duplicate_pieces, 0);
}

#[test]
fn after_a_crash_of_the_machine_every_claimed_piece_is_hashed_again() {
    let dir = tempdir();
    let content = noise(4 << 20, 5);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    {
        let store = open(&dir);
        let staging = store.stage(id, content.len() as u64, outboard.clone(), None, BLOB).expect("room");
        for index in 0..3 {
            staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
        }
    }
    // Another boot, and the bytes of piece 1 never reached the disk though its mark did.
    let staged = |extension| dir.path().join("staging").join(format!("{}.{extension}", id.to_hex()));
    let map = fs::OpenOptions::new().write(true).open(staged("map")).expect("there");
    map.write_all_at(&[7; 32], 16).expect("writable");
    let data = fs::OpenOptions::new().write(true).open(staged("part")).expect("there");
    data.write_all_at(&[0; 1 << 20], 1 << 20).expect("writable");
    let (store, _) = reopen(&dir);
    let have = store.have(&id).expect("index").expect("partial").have;
    assert_eq!(have.iter().collect::<Vec<_>>(), [0, 2]);
    drop(store);
    let (store, _) = reopen(&dir);
    assert_eq!(store.have(&id).expect("index").expect("partial").have, have, "the map on disk was put right");
}

#[test]
fn garbage_in_staging_is_cleared_away() {
    let dir = tempdir();
    let content = noise(3 << 20, 6);
    let id = BlobId::of(&content);
    let hex = id.to_hex();
    drop(open(&dir));
    let staging = dir.path().join("staging");
    for (name, bytes) in [
        ("put-3", &b"half a blob"[..]),
        ("strange", b""),
        (&format!("{hex}.ob"), b"garbage"),
        (&format!("{hex}.part"), &content[..100]),
        (&format!("{}.map", "0".repeat(64)), b"VHM1"),
    ] {
        fs::write(staging.join(name), bytes).expect("room");
    }
    let (store, recovery) = reopen(&dir);
    assert_eq!((recovery.orphans, recovery.resumable), (1, 0));
    assert_eq!(fs::read_dir(&staging).expect("there").count(), 0);
    // A map that is none, beside data.
    drop(store);
    fs::write(staging.join(format!("{hex}.part")), &content).expect("room");
    fs::write(staging.join(format!("{hex}.map")), b"VHM1 and then nothing").expect("room");
    let (store, _) = reopen(&dir);
    assert_eq!(store.have(&id).expect("index"), None);
    assert!(matches!(
        store.stage(id, 3 << 20, None, None, BLOB),
        Err(StoreError::NoOutboard(blob)) if blob == id
    ));
    stage_all(&store, &content, BLOB);
    assert_eq!(read(&store, &id), content);
}

#[test]
fn a_damaged_outboard_makes_a_transfer_begin_anew() {
    let dir = tempdir();
    let content = noise(3 << 20, 7);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    {
        let store = open(&dir);
        let staging = store.stage(id, 3 << 20, outboard.clone(), None, BLOB).expect("room");
        staging.write(&piece(&content, outboard.as_ref(), 0)).expect("room");
    }
    fs::write(dir.path().join("staging").join(format!("{}.ob", id.to_hex())), b"VOB1").expect("writable");
    let (store, _) = reopen(&dir);
    let staging = store.stage(id, 3 << 20, outboard, None, BLOB).expect("room");
    assert!(staging.have().is_empty());
}
