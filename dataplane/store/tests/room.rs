//! Room: pins, removal, eviction, a full disk; and the scrub.

mod bench;

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use bench::*;
use tempfile::TempDir;
use velo_object::{BlobId, EntryKind, ObjectId, ObjectKind, Outboard, TreeBuilder};
use velo_store::{StageKind, Store, StoreError, StoreOptions, What};

fn small_store(dir: &TempDir, capacity_bytes: u64) -> Store {
    Store::open(StoreOptions { capacity_bytes: Some(capacity_bytes), ..options(dir) }).expect("opens").0
}

/// Puts a tree of these contents (names are their places) and gives its root.
fn put_tree(store: &Store, contents: &[Vec<u8>]) -> ObjectId {
    let mut put = store.begin_put().expect("open");
    let mut builder = TreeBuilder::new();
    for (n, content) in contents.iter().enumerate() {
        let ingested = put.file(&file_of(content)).expect("room");
        let path = format!("{n:03}");
        builder.content(path.as_bytes(), EntryKind::File, named(&ingested), 0).expect("in order");
    }
    let packs = put.finish_packs().expect("room");
    let tree = builder.finish(&packs.iter().map(named).collect::<Vec<_>>()).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    put.commit(root, Some(tree.as_bytes())).expect("room");
    root
}

fn path_of(dir: &TempDir, id: &BlobId) -> PathBuf {
    dir.path().join("blobs").join(&id.to_hex()[..2]).join(id.to_hex())
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let dir = tempdir();
    let store = small_store(&dir, (5 << 20) + (1 << 19));
    let ids: Vec<BlobId> = (0..4).map(|n| cache_blob(&store, &noise(1 << 20, n))).collect();
    read(&store, &ids[0]);
    let more: Vec<BlobId> = (10..12).map(|n| cache_blob(&store, &noise(1 << 20, n))).collect();
    let here = |id| store.has(id).expect("index");
    assert!(here(&ids[0]), "read lately");
    assert!(!here(&ids[1]), "used longest ago");
    assert!(more.iter().all(here));
    assert!(store.counters().evicted >= 1);
    assert!(store.usage().expect("figures").used_bytes <= (5 << 20) + (1 << 19));
    assert!(!path_of(&dir, &ids[1]).exists());
    // The order survives a clean end.
    read(&store, &ids[2]);
    store.close().expect("flushed");
    drop(store);
    let store = small_store(&dir, (5 << 20) + (1 << 19));
    for n in 20..23 {
        cache_blob(&store, &noise(1 << 20, n));
    }
    assert!(store.has(&ids[2]).expect("index") && !store.has(&ids[3]).expect("index"));
}

#[test]
fn pinned_leased_held_and_arriving_content_stays() {
    let dir = tempdir();
    let store = small_store(&dir, 6 << 20);
    let mut hold = store.hold();
    let wanted = noise(1 << 20, 4);
    hold.add(BlobId::of(&wanted));
    let wanted = cache_blob(&store, &wanted);
    let pinned = put_blob(&store, &noise(1 << 20, 1));
    let leased = cache_blob(&store, &noise(1 << 20, 2));
    let lease = store.serve(&leased, What::Blob, 0..10).expect("here");
    let arriving = noise((1 << 20) + 1, 3);
    let staging = store
        .stage(BlobId::of(&arriving), arriving.len() as u64, outboard_of(&arriving), None, StageKind::Blob)
        .expect("room");
    for n in 10..16 {
        cache_blob(&store, &noise(1 << 20, n));
    }
    for id in [&pinned, &leased, &wanted] {
        assert!(store.has(id).expect("index"));
    }
    assert_eq!(store.staging(&staging.id()).expect("there").remaining(), 2);
    drop((lease, hold));
    for n in 20..26 {
        cache_blob(&store, &noise(1 << 20, n));
    }
    assert!(!store.has(&leased).expect("index"), "nobody reads it any more");
    assert!(!store.has(&wanted).expect("index"), "nobody waits for it any more");
    assert!(store.has(&pinned).expect("index"));
}

#[test]
fn pinned_content_that_fills_the_capacity_is_a_clear_error() {
    let dir = tempdir();
    let store = small_store(&dir, 4 << 20);
    let kept = put_blob(&store, &noise(3 << 20, 1));
    let mut put = store.begin_put().expect("open");
    match put.file(&file_of(&noise(2 << 20, 2))) {
        Err(error @ StoreError::Full { .. }) => {
            assert!(error.is_full());
            let text = error.to_string();
            assert!(text.contains("3145728 pinned") && text.contains("capacity is 4194304"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    let id = BlobId::of(b"big");
    assert!(store.stage(id, 1 << 20, None, None, StageKind::Blob).expect("exactly fits").abandon().is_ok());
    assert!(matches!(
        store.stage(id, (1 << 20) - 1 + 2, None, None, StageKind::Blob),
        Err(StoreError::NoOutboard(_) | StoreError::Full { .. })
    ));
    // Still usable: what fits goes in, and room that is made is used.
    let small = put.file(&file_of(&noise(400 << 10, 3))).expect("fits");
    put.commit(blob_root(small.blob), None).expect("fits");
    assert_eq!(read(&store, &kept).len(), 3 << 20);
    assert!(store.counters().full >= 1);
    store.remove(blob_root(kept)).expect("pinned");
    put_blob(&store, &noise(3 << 20, 4));
}

#[test]
fn transfers_cannot_promise_more_than_there_is() {
    let dir = tempdir();
    let store = small_store(&dir, 10 << 20);
    let stage = |n: u64| {
        let content = noise(4 << 20, n);
        store.stage(BlobId::of(&content), 4 << 20, outboard_of(&content), None, StageKind::Blob)
    };
    let first = stage(1).expect("room");
    let second = stage(2).expect("room");
    assert!(matches!(stage(3), Err(StoreError::Full { staged_bytes: 0x80_0000, .. })));
    first.abandon().expect("gone");
    let third = stage(3).expect("room again");
    assert_eq!(store.usage().expect("figures").staged_bytes, 8 << 20);
    drop((second, third));
}

#[test]
fn only_cache_is_given_up() {
    let dir = tempdir();
    let store = open(&dir);
    let [cached, held] = [1, 2].map(|n| cache_blob(&store, &noise(200_000, n)));
    let pinned = put_blob(&store, &noise(200_000, 3));
    let mut hold = store.hold();
    hold.add(held);
    let removed = store.forget(&[cached, held, pinned, BlobId::of(b"never here")]).expect("open");
    assert_eq!((removed.blobs, removed.kept), (1, 2));
    assert!(!store.has(&cached).expect("index"));
    assert!(store.has(&held).expect("index") && store.has(&pinned).expect("index"));
    assert!(store.stat(&pinned).expect("index").expect("here").pinned);
}

#[test]
fn a_size_that_nothing_proves_evicts_nothing() {
    let dir = tempdir();
    let store = small_store(&dir, 10 << 20);
    let cached = cache_blob(&store, &noise(6 << 20, 1));
    let content = noise(5 << 20, 2);
    let sent = outboard_of(&content).expect("five pieces").encode();
    let provisional = Outboard::decode(BlobId::of(&content), &sent).expect("whole");
    assert!(!provisional.is_confirmed());
    let staging = store
        .stage(BlobId::of(&content), 5 << 20, Some(provisional.clone()), None, StageKind::Blob)
        .expect("room for a piece");
    staging.write(&piece(&content, Some(&provisional), 0)).expect("room");
    assert!(store.has(&cached).expect("index"));
    // The last piece proves it, and makes room.
    staging.write(&piece(&content, Some(&provisional), 4)).expect("room");
    assert!(!store.has(&cached).expect("index"));
    assert_eq!(store.usage().expect("figures").staged_bytes, 5 << 20);
    (1..4).for_each(|index| _ = staging.write(&piece(&content, Some(&provisional), index)).expect("room"));
    staging.commit().expect("all is here");
    assert_eq!(read(&store, &BlobId::of(&content)), content);

    // Too large for the store: that is said when it is known.
    put_blob(&store, &noise(3 << 20, 4));
    let content = noise(8 << 20, 3);
    let sent = outboard_of(&content).expect("eight pieces").encode();
    let provisional = Outboard::decode(BlobId::of(&content), &sent).expect("whole");
    let staging = store
        .stage(BlobId::of(&content), 8 << 20, Some(provisional.clone()), None, StageKind::Blob)
        .expect("room for a piece");
    let last = staging.write(&piece(&content, Some(&provisional), 7));
    assert!(matches!(last, Err(StoreError::Full { needed_bytes: 0x70_0000, .. })), "{last:?}");
    assert!(!staging.has(7));
}

#[test]
fn removal_keeps_what_other_roots_name() {
    let dir = tempdir();
    let store = open(&dir);
    let (shared, own_a, own_b) = (noise(300 << 10, 1), noise(300 << 10, 2), noise(300 << 10, 3));
    let a = put_tree(&store, &[shared.clone(), own_a.clone(), b"only in a".to_vec(), b"in both".to_vec()]);
    let b = put_tree(&store, &[shared.clone(), own_b.clone(), b"in both".to_vec()]);
    let before = store.usage().expect("figures").used_bytes;
    let removed = store.remove(a).expect("pinned");
    assert_eq!((removed.blobs, removed.kept), (3, 1), "table, pack and blob go; the shared blob stays");
    assert_eq!(store.usage().expect("figures").used_bytes, before - removed.bytes);
    let here = |content: &[u8]| store.has(&BlobId::of(content)).expect("index");
    assert!(here(&shared) && here(&own_b) && here(b"in both"));
    assert!(!here(&own_a) && !here(b"only in a"));
    assert_eq!(read(&store, &BlobId::of(b"in both")), b"in both", "from the pack that is left");
    assert_eq!(store.pins().expect("book"), [b]);
    assert!(matches!(store.remove(a), Err(StoreError::NotFound(_))));
    let removed = store.remove(b).expect("pinned");
    assert_eq!((removed.blobs, removed.kept), (4, 0));
    let usage = store.usage().expect("figures");
    assert_eq!((usage.used_bytes, usage.blobs, usage.packs, usage.packed), (0, 0, 0, 0));
    // And nothing of it comes back.
    drop(store);
    let (store, recovery) = reopen(&dir);
    assert_eq!(recovery.files, 0);
    assert!(store.pins().expect("book").is_empty());
}

#[test]
fn a_pin_protects_what_arrives_later_and_unpinning_makes_it_cache() {
    let dir = tempdir();
    let source_dir = tempdir();
    let source = open(&source_dir);
    let large = noise(2 << 20, 1);
    let root = put_tree(&source, &[large.clone(), b"small".to_vec()]);
    let table = source.tree(&root.blob).expect("here");
    let pack = table.packs().next().expect("one");
    let store = small_store(&dir, 6 << 20);
    store.pin(root).expect("not here yet");
    cache_blob(&store, table.as_bytes());
    let pack_bytes = read(&source, &pack.blob);
    let staging = store.stage(pack.blob, pack.size_bytes, None, None, StageKind::Pack).expect("room");
    staging.write(&piece(&pack_bytes, None, 0)).expect("room");
    staging.commit().expect("whole");
    cache_blob(&store, &large);
    for n in 0..8 {
        cache_blob(&store, &noise(1 << 20, 100 + n));
    }
    assert!(store.tree(&root.blob).is_ok() && store.has(&BlobId::of(b"small")).expect("index"));
    assert_eq!(read(&store, &BlobId::of(&large)), large);
    assert!(store.usage().expect("figures").pinned_bytes >= 2 << 20);
    drop(store);
    let store = small_store(&dir, 6 << 20);
    assert_eq!(store.pins().expect("book"), [root]);
    assert!(store.stat(&BlobId::of(&large)).expect("index").expect("here").pinned);
    assert!(store.unpin(root).expect("book") && !store.unpin(root).expect("book"));
    assert_eq!(store.usage().expect("figures").pinned_bytes, 0);
    for n in 0..8 {
        cache_blob(&store, &noise(1 << 20, 200 + n));
    }
    assert!(!store.has(&BlobId::of(&large)).expect("index"), "cache goes");
}

#[test]
fn removal_of_what_is_arriving_gives_its_room_back() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(3 << 20, 1);
    let id = BlobId::of(&content);
    store.stage(id, 3 << 20, outboard_of(&content), None, StageKind::Blob).expect("room");
    store.remove(blob_root(id)).expect("arriving");
    assert!(store.stat(&id).expect("index").is_none());
    assert_eq!(store.usage().expect("figures").staged_bytes, 0);
    assert!(matches!(store.remove(blob_root(id)), Err(StoreError::NotFound(_))));
}

#[test]
fn the_scrub_finds_a_flipped_bit_and_names_it() {
    let dir = tempdir();
    let store = open(&dir);
    let good = put_blob(&store, &noise(2 << 20, 1));
    let bad = put_blob(&store, &noise(5 << 20, 2));
    let no_outboard = put_blob(&store, &noise(3 << 20, 3));
    let short = put_blob(&store, &noise(400 << 10, 4));
    let gone = put_blob(&store, &noise(300 << 10, 5));
    let damage = |id: &BlobId, job: &dyn Fn(&fs::File)| {
        let path = path_of(&dir, id);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        job(&fs::OpenOptions::new().read(true).write(true).open(&path).expect("there"));
    };
    let flip = |file: &fs::File| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, (3 << 20) - 1).expect("there");
        file.write_all_at(&[byte[0] ^ 4], (3 << 20) - 1).expect("writable");
    };
    damage(&bad, &flip);
    damage(&no_outboard, &flip);
    fs::remove_file(path_of(&dir, &no_outboard).with_extension("ob")).expect("beside it");
    damage(&short, &|file| file.set_len(1000).expect("cut"));
    fs::remove_file(path_of(&dir, &gone)).expect("there");
    let mut calls = 0;
    let report = store
        .verify(|state| {
            calls += 1;
            assert_eq!(state.blobs, calls);
            ControlFlow::Continue(())
        })
        .expect("readable");
    assert_eq!((report.blobs, report.bytes), (5, report.total_bytes));
    let found = |id: &BlobId| report.damaged.iter().find(|damage| damage.blob == *id).cloned();
    assert_eq!(found(&good), None);
    assert_eq!(found(&bad).expect("found").pieces, [2], "the piece with the bit");
    for id in [&bad, &no_outboard, &short, &gone] {
        assert!(found(id).expect("found").pinned);
        assert!(!store.has(id).expect("index"));
        assert!(!path_of(&dir, id).exists());
        assert_eq!(dir.path().join("quarantine").join(id.to_hex()).exists(), id != &gone);
    }
    assert_eq!(report.damaged.len(), 4);
    assert_eq!(store.verify(|_| ControlFlow::Continue(())).expect("readable").damaged, []);
    // It can be had again.
    put_blob(&store, &noise(5 << 20, 2));
    assert_eq!(read(&store, &bad).len(), 5 << 20);
    let mut stopped = 0;
    store
        .verify(|_| {
            stopped += 1;
            ControlFlow::Break(())
        })
        .expect("readable");
    assert_eq!(stopped, 1);
}

#[test]
fn a_damaged_pack_takes_its_contents_with_it() {
    let dir = tempdir();
    let store = open(&dir);
    let contents: Vec<Vec<u8>> = (1..30).map(|n| noise(n * 500, n as u64)).collect();
    let root = put_tree(&store, &contents);
    let pack = store.tree(&root.blob).expect("here").packs().next().expect("one").blob;
    let path = dir.path().join("packs").join(pack.to_hex());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(&path, noise(fs::metadata(&path).expect("there").len() as usize, 1)).expect("writable");
    let report = store.verify(|_| ControlFlow::Continue(())).expect("readable");
    assert_eq!(report.damaged.len(), 1);
    assert_eq!((report.damaged[0].blob, report.damaged[0].contents), (pack, 29));
    assert!(!store.has(&BlobId::of(&contents[3])).expect("index"));
    assert!(store.tree(&root.blob).is_ok(), "the table is whole");
    put_tree(&store, &contents);
    assert_eq!(read(&store, &BlobId::of(&contents[3])), contents[3]);
}

#[test]
fn a_put_is_not_acknowledged_without_what_was_here_when_it_began() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(300 << 10, 1);
    let id = cache_blob(&store, &content);
    let mut put = store.begin_put().expect("open");
    assert!(put.file(&file_of(&content)).expect("room").known);
    fs::remove_file(path_of(&dir, &id)).expect("there");
    assert_eq!(store.verify(|_| ControlFlow::Continue(())).expect("readable").damaged.len(), 1);
    match put.commit(blob_root(id), None) {
        Err(StoreError::Missing { first, count: 1, .. }) => assert_eq!(first, id),
        other => panic!("{other:?}"),
    }
    assert!(store.pins().expect("book").is_empty());
    assert_eq!(put_blob(&store, &content), id);
    assert_eq!(read(&store, &id), content);
}

/// Says that something was not tested where `tests/run` finds it: what a passing test prints is not shown.
fn skip(why: &str) {
    eprintln!("SKIP: {why}");
    if let Some(path) = std::env::var_os("VELO_SKIPS")
        && let Ok(mut file) = fs::OpenOptions::new().append(true).open(path)
    {
        let _ = writeln!(file, "SKIP: {why}");
    }
}

/// A full disk, where this test may mount one.
#[test]
fn a_full_disk_fails_one_operation_and_no_more() {
    let dir = tempdir();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "none"])
        .arg(dir.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        skip("the store on a full disk: a small tmpfs cannot be mounted here (root is needed)");
        return;
    }
    let result = std::panic::catch_unwind(|| fill_the_disk(&dir));
    let unmounted = std::process::Command::new("umount").arg(dir.path()).status();
    assert!(unmounted.is_ok_and(|status| status.success()));
    result.expect("the disk was full, the store was not broken");
}

fn fill_the_disk(dir: &TempDir) {
    let store = open(dir);
    let first = put_blob(&store, &noise(8 << 20, 1));
    let mut put = store.begin_put().expect("open");
    match put.file(&file_of(&noise(16 << 20, 2))) {
        Err(StoreError::Full { capacity_bytes, .. }) => assert_eq!(capacity_bytes, 24 << 20),
        other => panic!("{other:?}"),
    }
    drop(put);
    // Somebody else fills the disk while a transfer is under way.
    let content = noise(3 << 20, 3);
    let outboard = outboard_of(&content);
    let staging =
        store.stage(BlobId::of(&content), 3 << 20, outboard.clone(), None, StageKind::Blob).expect("room");
    staging.write(&piece(&content, outboard.as_ref(), 0)).expect("room");
    let ballast = dir.path().join("ballast");
    let _ = fs::write(&ballast, vec![1; 24 << 20]);
    let error = staging.write(&piece(&content, outboard.as_ref(), 1)).expect_err("no room");
    assert!(error.is_full(), "{error}");
    assert!(!staging.has(1));
    assert_eq!(read(&store, &first).len(), 8 << 20);
    fs::remove_file(&ballast).expect("there");
    for index in 1..3 {
        staging.write(&piece(&content, outboard.as_ref(), index)).expect("room again");
    }
    staging.commit().expect("room again");
    assert_eq!(read(&store, &BlobId::of(&content)), content);
    store.close().expect("flushed");
    drop(store);
    let (store, recovery) = reopen(dir);
    assert!(recovery.clean);
    assert_eq!(read(&store, &first).len(), 8 << 20);
    drop(store);
}
