//! Starts after every kind of end, the lock, and the book.

mod bench;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bench::*;
use velo_object::{BlobId, EntryKind, IdPrefix, ObjectId, ObjectKind, TreeBuilder};
use velo_store::{Store, StoreError};

#[test]
fn a_second_process_is_refused_by_name() {
    let dir = tempdir();
    let store = open(&dir);
    match Store::open(options(&dir)) {
        Err(StoreError::Locked { pid, dir: locked }) => {
            assert_eq!(pid, std::process::id().to_string());
            assert_eq!(locked, dir.path());
        }
        other => panic!("{other:?}"),
    }
    drop(store);
    assert!(Store::open(options(&dir)).is_ok(), "the lock goes with its holder");
}

#[test]
fn only_its_owner_may_enter_a_store() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir();
    let root = dir.path().join("above/store");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let opened = |root: &std::path::Path| Store::open(velo_store::StoreOptions::new(root)).expect("opens").0;
    opened(&root).close().expect("closed");
    assert_eq!((mode(&root), mode(&dir.path().join("above")) & 0o066), (0o700, 0));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("ours");
    opened(&root).close().expect("closed");
    assert_eq!(mode(&root), 0o700);
}

#[test]
fn a_clean_end_needs_no_rebuild_and_an_unclean_one_rebuilds() {
    let dir = tempdir();
    let contents: Vec<Vec<u8>> = [10, 200 << 10, 3 << 20].map(|len| noise(len, len as u64)).into();
    let (store, first) = reopen(&dir);
    assert!(!first.clean && first.files == 0 && first.damaged.is_empty());
    let ids: Vec<BlobId> = contents.iter().map(|content| put_blob(&store, content)).collect();
    store.close().expect("flushed");
    store.close().expect("again");
    assert!(matches!(store.begin_put(), Err(StoreError::Closed)));
    drop(store);
    for (clean, rebuilt) in [(true, false), (false, true)] {
        let (store, recovery) = reopen(&dir);
        assert_eq!((recovery.clean, recovery.rebuilt, recovery.rehashed), (clean, rebuilt, false));
        assert_eq!(recovery.files, 3);
        for (id, content) in ids.iter().zip(&contents) {
            assert_eq!(&read(&store, id), content);
            assert!(store.stat(id).expect("index").expect("here").pinned);
        }
        assert_eq!(store.pins().expect("book").len(), 3);
        // No close.
    }
}

#[test]
fn an_index_of_garbage_is_thrown_away_after_an_unclean_end() {
    let dir = tempdir();
    let content = noise(2 << 20, 1);
    let id = put_blob(&open(&dir), &content);
    fs::write(dir.path().join("index").join("data.mdb"), noise(9000, 2)).expect("writable");
    let (store, recovery) = reopen(&dir);
    assert!(recovery.rebuilt);
    assert_eq!(read(&store, &id), content);
}

#[test]
fn a_lock_file_of_garbage_is_an_unclean_end() {
    let dir = tempdir();
    let store = open(&dir);
    let id = put_blob(&store, b"content");
    store.close().expect("flushed");
    drop(store);
    fs::write(dir.path().join("LOCK"), [0xff, 0, 0xfe]).expect("writable");
    let (store, recovery) = reopen(&dir);
    assert!(recovery.rebuilt && recovery.rehashed, "nothing says that what is here was flushed");
    assert_eq!(read(&store, &id), b"content");
}

#[test]
fn a_crash_of_the_machine_without_flushes_hashes_everything() {
    let dir = tempdir();
    let (kept, torn, short) = {
        let store = open(&dir);
        (
            put_blob(&store, &noise(2 << 20, 1)),
            put_blob(&store, &noise(3 << 20, 2)),
            put_blob(&store, &noise(300 << 10, 3)),
        )
    };
    let path = |id: &BlobId| dir.path().join("blobs").join(&id.to_hex()[..2]).join(id.to_hex());
    for (id, len) in [(torn, 3 << 20), (short, 1000)] {
        fs::set_permissions(path(&id), fs::Permissions::from_mode(0o600)).expect("ours");
        let mut bytes = fs::read(path(&id)).expect("there");
        bytes.truncate(len);
        bytes[900..1000].fill(0);
        fs::write(path(&id), bytes).expect("writable");
    }
    let lock = fs::read_to_string(dir.path().join("LOCK")).expect("there");
    let boot = lock.lines().nth(1).expect("a boot id");
    fs::write(dir.path().join("LOCK"), lock.replace(boot, "another-boot")).expect("writable");
    let (store, recovery) = reopen(&dir);
    assert!(recovery.rehashed);
    let mut damaged = recovery.damaged;
    damaged.sort_unstable();
    let mut expected = vec![torn, short];
    expected.sort_unstable();
    assert_eq!(damaged, expected);
    assert!(store.has(&kept).expect("index") && !store.has(&torn).expect("index"));
    assert!(dir.path().join("quarantine").join(torn.to_hex()).exists());
}

#[test]
fn hashing_that_was_cut_off_is_done_again() {
    let dir = tempdir();
    let torn = put_blob(&open(&dir), &noise(2 << 20, 1));
    let path = dir.path().join("blobs").join(&torn.to_hex()[..2]).join(torn.to_hex());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(&path, noise(2 << 20, 2)).expect("writable");
    let lock = dir.path().join("LOCK");
    let left = fs::read_to_string(&lock).expect("there");
    let boot = left.lines().nth(1).expect("a boot id");
    fs::write(&lock, left.replace(boot, "another-boot")).expect("writable");
    // A start that ends before it has looked at all: a file is in the way of the index.
    let index = dir.path().join("index");
    fs::remove_dir_all(&index).expect("ours");
    fs::write(&index, b"in the way").expect("writable");
    assert!(Store::open(options(&dir)).is_err());
    fs::remove_file(&index).expect("ours");
    let (store, recovery) = reopen(&dir);
    assert!(recovery.rehashed);
    assert_eq!(recovery.damaged, [torn]);
    drop(store);
    let (_, recovery) = reopen(&dir);
    assert!(!recovery.rehashed, "once is enough");
}

#[test]
fn a_pinned_table_that_is_gone_does_not_keep_the_store_from_starting() {
    let dir = tempdir();
    let (store, _) = reopen(&dir);
    let mut put = store.begin_put().expect("open");
    let content = noise(300 << 10, 1);
    let ingested = put.file(&file_of(&content)).expect("room");
    let mut builder = TreeBuilder::new();
    builder.content(b"a", EntryKind::File, named(&ingested), 0).expect("in order");
    let tree = builder.finish(&[]).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    put.commit(root, Some(tree.as_bytes())).expect("room");
    store.close().expect("flushed");
    drop(store);
    let table = dir.path().join("blobs").join(&root.blob.to_hex()[..2]).join(root.blob.to_hex());
    fs::remove_file(&table).expect("there");
    // A folder cannot be read: another error than that of a file that is not there.
    for folder in [false, true] {
        if folder {
            fs::create_dir(&table).expect("room");
        }
        let (store, _) = reopen(&dir);
        assert_eq!(store.pins().expect("book"), [root]);
        store.close().expect("flushed");
    }
    fs::remove_dir(&table).expect("ours");
    let (store, _) = reopen(&dir);
    let report = store.verify(|_| std::ops::ControlFlow::Continue(())).expect("readable");
    assert_eq!(report.damaged.iter().map(|damage| damage.blob).collect::<Vec<_>>(), [root.blob]);
    cache_blob(&store, tree.as_bytes());
    for id in [root.blob, ingested.blob] {
        assert!(store.stat(&id).expect("index").expect("here").pinned, "all of it, once the table is back");
    }
}

#[test]
fn a_commit_that_was_cut_off_after_its_rename_is_whole() {
    let dir = tempdir();
    let content = noise(2 << 20, 5);
    let id = BlobId::of(&content);
    let outboard = outboard_of(&content);
    {
        let store = open(&dir);
        let staging =
            store.stage(id, 2 << 20, outboard.clone(), None, velo_store::StageKind::Blob).expect("room");
        for index in 0..2 {
            staging.write(&piece(&content, outboard.as_ref(), index)).expect("room");
        }
    }
    // As the commit leaves it when it is killed between the flush and the rename ...
    let part = dir.path().join("staging").join(format!("{}.part", id.to_hex()));
    fs::set_permissions(&part, fs::Permissions::from_mode(0o444)).expect("ours");
    let (store, recovery) = reopen(&dir);
    assert_eq!(recovery.resumable, 1);
    assert_eq!(store.staging(&id).expect("resumable").remaining(), 0);
    drop(store);
    // ... and after it, with map and outboard still in staging.
    fs::rename(&part, dir.path().join("blobs").join(&id.to_hex()[..2]).join(id.to_hex())).expect("one disk");
    let (store, recovery) = reopen(&dir);
    assert_eq!((recovery.resumable, recovery.files), (0, 1));
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
    assert_eq!(read(&store, &id), content);
    assert_eq!(store.outboard(&id).expect("made anew"), outboard);
}

#[test]
fn rebuild_finds_what_lies_in_the_folders() {
    let dir = tempdir();
    let store = open(&dir);
    let mut put = store.begin_put().expect("open");
    let mut builder = TreeBuilder::new();
    for n in 0..40u64 {
        let ingested = put.file(&file_of(&noise(n as usize * 100, n))).expect("room");
        let path = format!("{n:03}");
        builder.content(path.as_bytes(), EntryKind::File, named(&ingested), 0).expect("in order");
    }
    let packs = put.finish_packs().expect("room");
    let tree = builder.finish(&packs.iter().map(named).collect::<Vec<_>>()).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    put.commit(root, Some(tree.as_bytes())).expect("room");
    let before = store.usage().expect("figures");
    // Garbage of several kinds must neither stop it nor be taken for content.
    let blobs = dir.path().join("blobs").join("ab");
    fs::write(blobs.join("README"), b"not ours").expect("room");
    fs::write(blobs.join(format!("{}.ob", "ab".repeat(32))), b"an outboard without its blob").expect("room");
    let false_pack = BlobId::of(b"no pack");
    fs::write(dir.path().join("packs").join(false_pack.to_hex()), b"no pack").expect("room");
    assert_eq!(store.rebuild().expect("rebuilt"), [false_pack]);
    let after = store.usage().expect("figures");
    assert_eq!((after.blobs, after.packs, after.packed), (before.blobs, before.packs, before.packed));
    assert_eq!((after.used_bytes, after.pinned_bytes), (before.used_bytes, before.pinned_bytes));
    assert_eq!(read(&store, &BlobId::of(&noise(1700, 17))), noise(1700, 17));
    assert!(store.stat(&packs[0].blob).expect("index").expect("here").pinned);
    assert!(!store.has(&false_pack).expect("index"));
}

#[test]
fn prefixes_and_lists() {
    let dir = tempdir();
    let store = open(&dir);
    let mut ids: Vec<BlobId> = (0..6).map(|n| put_blob(&store, &noise(200 << 10, n))).collect();
    let small = put_blob(&store, b"small");
    let partial = noise(2 << 20, 77);
    ids.push(BlobId::of(&partial));
    store
        .stage(BlobId::of(&partial), 2 << 20, outboard_of(&partial), None, velo_store::StageKind::Blob)
        .expect("room");
    for id in ids.iter().chain([&small]) {
        let prefix: IdPrefix = id.to_hex()[..10].parse().expect("digits");
        assert_eq!(store.resolve(&prefix, 16).expect("index"), [*id]);
    }
    assert!(store.resolve(&"00000000".parse().expect("digits"), 16).expect("index").is_empty());
    ids.sort_unstable();
    let listed = store.list(None, 100).expect("index");
    assert_eq!(listed.len(), ids.len() + 1, "the pack of the small one too");
    assert_eq!(listed.iter().filter(|(_, stat)| !stat.complete).count(), 1);
    let mut paged = Vec::new();
    while let [.., (last, _)] = &store.list(paged.last(), 3).expect("index")[..] {
        let last = *last;
        paged.extend(store.list(paged.last(), 3).expect("index").into_iter().map(|(id, _)| id));
        assert_eq!(paged.last(), Some(&last));
    }
    assert_eq!(paged, listed.iter().map(|(id, _)| *id).collect::<Vec<_>>());
}

#[test]
fn the_book_compares_and_sets_and_survives() {
    let dir = tempdir();
    let store = open(&dir);
    let book = store.book();
    book.put_if("refs", b"a", Some(b"1"), Some(None)).expect("nothing stood there");
    assert!(matches!(book.put_if("refs", b"a", Some(b"2"), Some(None)), Err(StoreError::Conflict { .. })));
    assert!(matches!(book.put_if("refs", b"a", None, Some(Some(b"0"))), Err(StoreError::Conflict { .. })));
    book.put_if("refs", b"a", Some(b"2"), Some(Some(b"1"))).expect("as expected");
    book.put_if("refs", b"b", Some(b""), None).expect("whatever stood there");
    book.put_if("refs2", b"c", Some(b"other"), None).expect("another table");
    book.put_if("ref", b"s", Some(b"other"), None).expect("another table");
    drop(store);
    let store = open(&dir);
    let book = store.book();
    assert_eq!(book.get("refs", b"a").expect("book"), Some(b"2".to_vec()));
    assert_eq!(book.get("refs", b"c").expect("book"), None);
    let all = book.scan("refs", None, 10).expect("book");
    assert_eq!(all, [(b"a".to_vec(), b"2".to_vec()), (b"b".to_vec(), b"".to_vec())]);
    assert_eq!(book.scan("refs", Some(b"a"), 10).expect("book"), all[1..]);
    assert_eq!(book.scan("refs", None, 1).expect("book"), all[..1]);
    book.put_if("refs", b"a", None, Some(Some(b"2"))).expect("as expected");
    assert_eq!(book.get("refs", b"a").expect("book"), None);
    for (table, key) in
        [("", 1), ("t", 511), ("a-table-with-a-name-of-more-than-64-bytes-is-refused-as-it-must-be", 1)]
    {
        assert!(matches!(book.put_if(table, &vec![1; key], None, None), Err(StoreError::Key { .. })));
    }
    let racers: Vec<bool> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..4u8)
            .map(|n| scope.spawn(move || book.put_if("refs", b"race", Some(&[n]), Some(None)).is_ok()))
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
    });
    assert_eq!(racers.into_iter().filter(|won| *won).count(), 1);
}
