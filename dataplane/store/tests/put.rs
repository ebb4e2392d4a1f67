//! Puts: what goes in comes out, sparse stays sparse, nothing half-done is visible.

mod bench;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use bench::*;
use velo_object::{
    BlobId, EntryKind, Named, ObjectId, ObjectKind, Outboard, PIECE_BYTES, TreeBuilder, TreeError,
};
use velo_store::{StoreError, What};

#[test]
fn every_length_around_the_boundaries_reads_back() {
    let dir = tempdir();
    let store = open(&dir);
    for len in [0, 1, 128 << 10, (128 << 10) + 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 77] {
        let content = noise(len as usize, len);
        let mut put = store.begin_put().expect("open");
        let ingested = put.file(&file_of(&content)).expect("room");
        assert_eq!((ingested.blob, ingested.size_bytes), (BlobId::of(&content), len));
        assert!(!store.has(&ingested.blob).expect("index"), "not visible before the commit");
        put.commit(blob_root(ingested.blob), None).expect("room");
        assert_eq!(read(&store, &ingested.blob), content, "{len} bytes");
        let stat = store.stat(&ingested.blob).expect("index").expect("here");
        assert!(stat.complete && stat.pinned && stat.size_bytes == len);
        assert_eq!(store.outboard(&ingested.blob).expect("here").is_some(), len > PIECE_BYTES);
    }
}

#[test]
fn the_outboard_is_served_in_parts_and_made_anew_where_it_is_damaged() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(5 << 20, 1);
    let id = put_blob(&store, &content);
    let outboard = store.outboard(&id).expect("here").expect("five pieces");
    let bytes = outboard.encode();
    let served = store.serve(&id, What::Outboard, 10..bytes.len() as u64 + 50).expect("here");
    assert_eq!(served_bytes(&served), &bytes[10..]);
    let hex = id.to_hex();
    let path = dir.path().join("blobs").join(&hex[..2]).join(format!("{hex}.ob"));
    assert_eq!(fs::read(&path).expect("beside the blob"), bytes);
    for damage in [Vec::new(), bytes[..40].to_vec(), vec![7; bytes.len()]] {
        fs::write(&path, damage).expect("writable");
        assert_eq!(store.outboard(&id).expect("here"), Some(outboard.clone()));
        assert_eq!(Outboard::decode(id, &fs::read(&path).expect("there")).expect("whole").encode(), bytes);
    }
}

#[test]
fn serving_does_not_wait_until_an_outboard_is_made_anew() {
    let dir = tempdir();
    let content = noise(5 << 20, 1);
    let damaged = noise(5 << 20, 2);
    let (id, bad) = {
        let store = open(&dir);
        (put_blob(&store, &content), put_blob(&store, &damaged))
    };
    let path = |id: &BlobId| dir.path().join("blobs").join(&id.to_hex()[..2]).join(id.to_hex());
    for id in [&id, &bad] {
        fs::remove_file(path(id).with_extension("ob")).expect("beside it");
    }
    fs::set_permissions(path(&bad), fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(path(&bad), &content).expect("writable");
    let store = open(&dir);
    let until = |done: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let serve = |id: &BlobId| store.serve(id, What::Outboard, 0..u64::MAX);
    assert!(matches!(serve(&id), Err(StoreError::NotHere { .. })));
    until(&|| serve(&id).is_ok());
    let encoded = outboard_of(&content).expect("five pieces").encode();
    assert_eq!(served_bytes(&serve(&id).expect("made anew")), encoded);
    assert_eq!(fs::read(path(&id).with_extension("ob")).expect("written"), encoded);
    until(&|| matches!(serve(&bad), Err(StoreError::NotFound(_))));
    assert!(!store.has(&bad).expect("index"), "what is found to be damaged does not stay");
}

#[test]
fn a_tree_is_one_unit_with_its_packs() {
    let dir = tempdir();
    let store = open(&dir);
    let mut put = store.begin_put().expect("open");
    let mut builder = TreeBuilder::new();
    let large = noise(2 << 20, 9);
    let mut contents: Vec<(String, Vec<u8>)> =
        (0..300).map(|n| (format!("d/{n:04}"), noise(n * 13, n as u64))).collect();
    contents.push(("large".into(), large.clone()));
    for (path, content) in &contents {
        let ingested = put.file(&file_of(content)).expect("room");
        builder.content(path.as_bytes(), EntryKind::File, named(&ingested), 0).expect("in order");
    }
    let packs = put.finish_packs().expect("room");
    assert_eq!(packs.len(), 1);
    assert_eq!(put.finish_packs().expect("again"), packs);
    assert!(matches!(put.small(b"late"), Err(StoreError::Ended(_))));
    let tree = builder.finish(&packs.iter().map(named).collect::<Vec<_>>()).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    put.commit(root, Some(tree.as_bytes())).expect("room");
    assert_eq!(store.pins().expect("book"), [root]);
    assert_eq!(store.tree(&root.blob).expect("here").as_bytes(), tree.as_bytes());
    for (path, content) in &contents {
        assert_eq!(&read(&store, &BlobId::of(content)), content, "{path}");
    }
    let usage = store.usage().expect("figures");
    assert_eq!((usage.blobs, usage.packs, usage.packed), (2, 1, 300));
    assert!(matches!(store.tree(&BlobId::of(&large)), Err(StoreError::Tree { .. })));
}

#[test]
fn a_tree_that_has_its_own_pack_as_a_file_finds_its_small_files() {
    let smalls: Vec<Vec<u8>> = (0..40).map(|n| noise(10_000 + n, n as u64)).collect();
    let pack = {
        let dir = tempdir();
        let store = open(&dir);
        let mut put = store.begin_put().expect("open");
        smalls.iter().for_each(|small| _ = put.small(small).expect("room"));
        let pack = put.finish_packs().expect("room")[0].blob;
        put.commit(blob_root(pack), None).expect("room");
        read(&store, &pack)
    };
    let dir = tempdir();
    let store = open(&dir);
    let mut put = store.begin_put().expect("open");
    let file = put.file(&file_of(&pack)).expect("room").blob;
    smalls.iter().for_each(|small| _ = put.small(small).expect("room"));
    assert_eq!(put.finish_packs().expect("room")[0].blob, file);
    put.commit(blob_root(file), None).expect("room");
    assert!(store.has_pack(&file).expect("index"));
    for small in &smalls {
        assert_eq!(&read(&store, &BlobId::of(small)), small);
    }
}

#[test]
fn a_tree_that_names_what_is_not_here_is_refused_and_nothing_is_visible() {
    let dir = tempdir();
    let store = open(&dir);
    let mut put = store.begin_put().expect("open");
    let here = put.file(&file_of(&noise(200 << 10, 1))).expect("room");
    let mut builder = TreeBuilder::new();
    builder.content(b"a", EntryKind::File, named(&here), 0).expect("in order");
    builder
        .content(b"b", EntryKind::File, Named { blob: BlobId::of(b"elsewhere"), size_bytes: 1 << 30 }, 0)
        .expect("in order");
    let tree = builder.finish(&[]).expect("a tree");
    let root = ObjectId { kind: ObjectKind::Tree, blob: tree.id() };
    match put.commit(root, Some(tree.as_bytes())) {
        Err(StoreError::Missing { first, count: 1, .. }) => assert_eq!(first, BlobId::of(b"elsewhere")),
        other => panic!("{other:?}"),
    }
    assert!(!store.has(&here.blob).expect("index"));
    assert!(store.pins().expect("book").is_empty());
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0, "nothing is left");
    let put = store.begin_put().expect("open");
    let lie = ObjectId { kind: ObjectKind::Tree, blob: BlobId::of(b"another") };
    assert!(matches!(put.commit(lie, Some(tree.as_bytes())), Err(StoreError::Mismatch { .. })));
}

#[test]
fn a_table_that_is_too_large_is_refused_before_it_is_read() {
    let dir = tempdir();
    let store = open(&dir);
    let file = tempfile::tempfile_in(dir.path()).expect("a file");
    let size_bytes = (4 << 30) + 1;
    file.set_len(size_bytes).expect("sparse");
    file.write_all_at(b"VTR1", 0).expect("room");
    let mut put = store.begin_put().expect("open");
    let ingested = put.file(&file).expect("room");
    put.commit(blob_root(ingested.blob), None).expect("room");
    match store.tree(&ingested.blob) {
        Err(StoreError::Tree { error: TreeError::TooLarge(found), .. }) => assert_eq!(found, size_bytes),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sparse_stays_sparse_and_takes_no_time() {
    let dir = tempdir();
    let store = open(&dir);
    let file = tempfile::tempfile_in(dir.path()).expect("a file");
    file.set_len(1 << 30).expect("sparse");
    file.write_all_at(&noise(3 << 20, 5), (100 << 20) + 4096).expect("room");
    file.write_all_at(b"x", (700 << 20) + 123).expect("room");
    let begun = Instant::now();
    let mut put = store.begin_put().expect("open");
    let ingested = put.file(&file).expect("room");
    put.commit(blob_root(ingested.blob), None).expect("room");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let opened = store.open_blob(&ingested.blob, false).expect("here");
    let metadata = opened.file.metadata().expect("open");
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 8 << 20, "{} bytes on disk", metadata.blocks() * 512);
    let have = store.have(&ingested.blob).expect("index").expect("here");
    assert!(have.holes.contains(0) && !have.holes.contains(100) && !have.holes.contains(700));
    let mut back = vec![0; 3 << 20];
    opened.file.read_exact_at(&mut back, (100 << 20) + 4096).expect("there");
    assert_eq!(back, noise(3 << 20, 5));
    // The id is that of the same bytes put densely, which an independent hash confirms.
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    for index in 0..1024 {
        file.read_exact_at(&mut buffer, index << 20).expect("there");
        hasher.update(&buffer);
    }
    assert_eq!(ingested.blob.as_bytes(), hasher.finalize().as_bytes());
}

#[test]
fn zeros_that_were_written_become_holes() {
    let dir = tempdir();
    let store = open(&dir);
    let mut content = noise(8 << 20, 3);
    content[1 << 20..7 << 20].fill(0);
    let id = put_blob(&store, &content);
    assert_eq!(read(&store, &id), content);
    assert!(store.stat(&id).expect("index").expect("here").stored_bytes <= 3 << 20);
}

#[test]
fn stored_files_are_read_only_and_put_twice_costs_nothing() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise(300 << 10, 2);
    let id = put_blob(&store, &content);
    let hex = id.to_hex();
    let path = dir.path().join("blobs").join(&hex[..2]).join(&hex);
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o444);
    let used = store.usage().expect("figures").used_bytes;
    let mut put = store.begin_put().expect("open");
    assert!(put.file(&file_of(&content)).expect("room").known);
    put.commit(blob_root(id), None).expect("room");
    assert_eq!(store.usage().expect("figures").used_bytes, used);
    assert_eq!(store.usage().expect("figures").staged_bytes, 0);
}

#[test]
fn a_source_that_shrinks_is_an_error_and_the_put_goes_on() {
    let dir = tempdir();
    let store = open(&dir);
    let file = file_of(&noise(64 << 20, 1));
    let shrink = file.try_clone().expect("a descriptor");
    let mut put = store.begin_put().expect("open");
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(2));
            shrink.set_len(1 << 20).expect("shrunk");
        });
        put.file(&file)
    });
    match result {
        Err(StoreError::SourceChanged { before_bytes, after_bytes }) => {
            assert_eq!((before_bytes, after_bytes), (64 << 20, 1 << 20));
        }
        // The copy may have won, or begun later; then it must have been whole.
        Ok(ingested) => assert!([1 << 20, 64 << 20].contains(&ingested.size_bytes)),
        Err(other) => panic!("{other}"),
    }
    let after = put.file(&file_of(b"still usable")).expect("room");
    put.commit(blob_root(after.blob), None).expect("room");
    assert_eq!(read(&store, &after.blob), b"still usable");
}

#[test]
fn a_stream_must_be_what_it_is_said_to_be() {
    let dir = tempdir();
    let store = open(&dir);
    let content = noise((2 << 20) + 5, 4);
    let id = BlobId::of(&content);
    let wrong = store.ingest_expected(&mut &content[1..], id);
    assert!(matches!(wrong, Err(StoreError::Mismatch { expected, .. }) if expected == id));
    assert!(!store.has(&id).expect("index"));
    assert_eq!(fs::read_dir(dir.path().join("staging")).expect("there").count(), 0);
    let ingested = store.ingest_expected(&mut &content[..], id).expect("room");
    assert_eq!(ingested.size_bytes, content.len() as u64);
    assert_eq!(read(&store, &id), content);
    assert!(!store.stat(&id).expect("index").expect("here").pinned, "a stream is cache");
    assert!(store.ingest_expected(&mut &b""[..], id).expect("here").known);
    assert!(store.ingest_expected(&mut &b""[..], BlobId::of(b"")).is_ok());
}

#[test]
fn only_regular_files_can_be_put() {
    let dir = tempdir();
    let store = open(&dir);
    let mut put = store.begin_put().expect("open");
    let folder = fs::File::open(dir.path()).expect("a directory");
    assert!(matches!(put.file(&folder), Err(StoreError::NotAFile)));
    assert!(matches!(put.small(&vec![0; (128 << 10) + 1]), Err(StoreError::NotSmall(_))));
}
