//! What the tests of the store share: directories, contents, pieces.
#![allow(dead_code, reason = "not every test uses all of it")]

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use tempfile::TempDir;
use velo_object::{
    BlobId, Expected, Named, ObjectId, ObjectKind, Outboard, OutboardBuilder, Pieces, Verified,
    chaining_value,
};
use velo_store::{
    Durability, Ingested, Recovery, Served, ServedContent, StageKind, Store, StoreOptions, What,
};

pub fn tempdir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

pub fn options(dir: &TempDir) -> StoreOptions {
    StoreOptions { threads: 2, durability: Durability::Process, ..StoreOptions::new(dir.path()) }
}

pub fn open(dir: &TempDir) -> Store {
    reopen(dir).0
}

pub fn reopen(dir: &TempDir) -> (Store, Recovery) {
    Store::open(options(dir)).expect("opens")
}

/// Bytes that do not repeat, the same for the same seed.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

pub fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(content).expect("room");
    file.seek(SeekFrom::Start(3)).expect("anywhere");
    file
}

pub fn blob_root(blob: BlobId) -> ObjectId {
    ObjectId { kind: ObjectKind::Blob, blob }
}

pub fn named(ingested: &Ingested) -> Named {
    Named { blob: ingested.blob, size_bytes: ingested.size_bytes }
}

/// Puts (and so pins) one content.
pub fn put_blob(store: &Store, content: &[u8]) -> BlobId {
    let mut put = store.begin_put().expect("open");
    let ingested = put.file(&file_of(content)).expect("room");
    put.commit(blob_root(ingested.blob), None).expect("room");
    ingested.blob
}

/// Takes a content as cache.
pub fn cache_blob(store: &Store, content: &[u8]) -> BlobId {
    let id = BlobId::of(content);
    store.ingest_expected(&mut &*content, id).expect("room");
    id
}

pub fn outboard_of(content: &[u8]) -> Option<Outboard> {
    let pieces = Pieces::new(content.len() as u64);
    if pieces.count() == 1 {
        return None;
    }
    let mut builder = OutboardBuilder::new(content.len() as u64);
    for index in 0..pieces.count() {
        let range = pieces.range(index);
        builder.set(index, chaining_value(index, &content[range.start as usize..range.end as usize]));
    }
    Some(builder.finish())
}

/// Piece `index` of a content, verified.
pub fn piece(content: &[u8], outboard: Option<&Outboard>, index: u64) -> Verified<Vec<u8>> {
    let range = Pieces::new(content.len() as u64).range(index);
    let bytes = content[range.start as usize..range.end as usize].to_vec();
    let id = BlobId::of(content);
    let expected = outboard.map_or(Expected::Whole(id), |outboard| Expected::Piece(outboard, index));
    let len = bytes.len();
    Verified::check(bytes, len, expected).expect("the right bytes")
}

pub fn served_bytes(served: &Served) -> Vec<u8> {
    match &served.content {
        ServedContent::File { file, offset_bytes } => {
            let mut bytes = vec![0; served.len_bytes as usize];
            file.read_exact_at(&mut bytes, *offset_bytes).expect("there");
            bytes
        }
        ServedContent::Bytes(bytes) => bytes.to_vec(),
    }
}

/// All of a blob, read both ways.
pub fn read(store: &Store, id: &BlobId) -> Vec<u8> {
    let served = served_bytes(&store.serve(id, What::Blob, 0..u64::MAX).expect("here"));
    let opened = store.open_blob(id, false).expect("here");
    let mut bytes = vec![0; opened.size_bytes as usize];
    opened.file.read_exact_at(&mut bytes, opened.offset_bytes).expect("there");
    assert_eq!(served, bytes);
    bytes
}

/// Receives a whole content.
pub fn stage_all(store: &Store, content: &[u8], kind: StageKind) -> BlobId {
    let id = BlobId::of(content);
    let outboard = outboard_of(content);
    let staging = store.stage(id, content.len() as u64, outboard.clone(), None, kind).expect("room");
    for index in 0..staging.have().len() {
        assert!(staging.write(&piece(content, outboard.as_ref(), index)).expect("room"));
    }
    staging.commit().expect("room");
    id
}
