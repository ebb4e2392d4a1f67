//! The store.
use std::fs::File;
use std::io::Read;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use velo_object::{BlobId, IdPrefix, ObjectId, Outboard, PieceSet, Verified};

use crate::*;

/// Entries of a table of the book: keys and values.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// The L1 store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}
/// A put that has begun; dropped without a commit, it leaves nothing.
#[derive(Debug)]
pub struct Put {}
/// A blob that is being received.
#[derive(Debug)]
pub struct Staging {}
/// Tables of keys and values that files cannot give back; always flushed.
#[derive(Debug)]
pub struct Book {}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
impl Store {
    pub fn open(options: StoreOptions) -> Result<(Store, Recovery), StoreError> {
        todo!()
    }
    /// Marks a clean shutdown; later calls give [`StoreError::Closed`]. Without it the next start rebuilds the index.
    pub fn close(&self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn begin_put(&self) -> Result<Put, StoreError> {
        todo!()
    }
    /// As cache, whatever its size; refuses other content.
    pub fn ingest_expected(&self, reader: &mut dyn Read, id: BlobId) -> Result<Ingested, StoreError> {
        todo!()
    }
    /// Resumes by itself. `outboard` none: at most one piece, or one is staged here already.
    pub fn stage(
        &self,
        id: BlobId,
        size_bytes: u64,
        outboard: Option<Outboard>,
        sink: Option<File>,
        kind: StageKind,
    ) -> Result<Arc<Staging>, StoreError> {
        todo!()
    }
    /// The running or resumable transfer of `id`, if there is one.
    pub fn staging(&self, id: &BlobId) -> Option<Arc<Staging>> {
        todo!()
    }
    pub fn serve(&self, id: &BlobId, what: What, range: Range<u64>) -> Result<Served, StoreError> {
        todo!()
    }
    pub fn open_blob(&self, id: &BlobId, partial: bool) -> Result<BlobFile, StoreError> {
        todo!()
    }
    pub fn stat(&self, id: &BlobId) -> Result<Option<BlobStat>, StoreError> {
        todo!()
    }
    /// Whether all of it is here.
    pub fn has(&self, id: &BlobId) -> Result<bool, StoreError> {
        todo!()
    }
    /// Files (blobs, packs, partial ones), not what lies in packs.
    pub fn list(&self, after: Option<&BlobId>, limit: usize) -> Result<Vec<(BlobId, BlobStat)>, StoreError> {
        todo!()
    }
    pub fn resolve(&self, prefix: &IdPrefix, limit: usize) -> Result<Vec<BlobId>, StoreError> {
        todo!()
    }
    /// Of a complete or partial blob of more than one piece; none for smaller ones.
    pub fn outboard(&self, id: &BlobId) -> Result<Option<Outboard>, StoreError> {
        todo!()
    }
    pub fn have(&self, id: &BlobId) -> Result<Option<Have>, StoreError> {
        todo!()
    }
    /// Waits also for what is not yet being received.
    pub fn wait(&self, id: &BlobId, range: Range<u64>, deadline: Instant) -> Result<(), StoreError> {
        todo!()
    }
    /// The checked table of a tree that is here.
    pub fn tree(&self, id: &BlobId) -> Result<velo_object::Tree<Vec<u8>>, StoreError> {
        todo!()
    }
    pub fn pin(&self, root: ObjectId) -> Result<(), StoreError> {
        todo!()
    }
    /// False where it was not pinned.
    pub fn unpin(&self, root: ObjectId) -> Result<bool, StoreError> {
        todo!()
    }
    pub fn pins(&self) -> Result<Vec<ObjectId>, StoreError> {
        todo!()
    }
    pub fn remove(&self, root: ObjectId) -> Result<Removed, StoreError> {
        todo!()
    }
    /// Hashes everything; `progress` is called now and then and may stop it.
    pub fn verify(
        &self,
        progress: impl FnMut(&Verification) -> ControlFlow<()>,
    ) -> Result<Verification, StoreError> {
        todo!()
    }
    /// The index anew from the files.
    pub fn rebuild(&self) -> Result<(), StoreError> {
        todo!()
    }
    pub fn usage(&self) -> Result<Usage, StoreError> {
        todo!()
    }
    pub fn counters(&self) -> Counters {
        todo!()
    }
    pub fn book(&self) -> &Book {
        todo!()
    }
}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
impl Put {
    /// A regular file, wherever its position is. In tree order: small ones go to the packs.
    pub fn file(&mut self, file: &File) -> Result<Ingested, StoreError> {
        todo!()
    }
    /// Several files in tree order.
    pub fn files(&mut self, files: &[File]) -> Result<Vec<Ingested>, StoreError> {
        todo!()
    }
    /// A content of at most `PACKED_FILE_BYTES`, in tree order.
    pub fn small(&mut self, content: &[u8]) -> Result<Ingested, StoreError> {
        todo!()
    }
    /// Ends the packs; gives them in order. No small content may follow.
    pub fn finish_packs(&mut self) -> Result<Vec<Ingested>, StoreError> {
        todo!()
    }
    /// Durable, visible, pinned as one unit. `table`: the bytes of a tree's table, unless it is here already.
    pub fn commit(self, root: ObjectId, table: Option<&[u8]>) -> Result<(), StoreError> {
        todo!()
    }
}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
impl Staging {
    pub fn id(&self) -> BlobId {
        todo!()
    }
    pub fn size_bytes(&self) -> u64 {
        todo!()
    }
    pub fn have(&self) -> PieceSet {
        todo!()
    }
    pub fn holes(&self) -> PieceSet {
        todo!()
    }
    pub fn has(&self, index: u64) -> bool {
        todo!()
    }
    /// The outboard it is received under; none for a blob of one piece.
    pub fn outboard(&self) -> Option<Outboard> {
        todo!()
    }
    /// Writes a piece (or punches a hole), from any thread. False where it was there.
    pub fn write<B: AsRef<[u8]>>(&self, piece: &Verified<B>) -> Result<bool, StoreError> {
        todo!()
    }
    /// Pieces still missing.
    pub fn remaining(&self) -> u64 {
        todo!()
    }
    /// Durable, then visible. A sink is only flushed and forgotten.
    pub fn commit(&self) -> Result<(), StoreError> {
        todo!()
    }
    /// Gives up and deletes what has arrived.
    pub fn abandon(&self) -> Result<(), StoreError> {
        todo!()
    }
}

#[allow(unused_variables, missing_docs, clippy::missing_errors_doc)]
impl Book {
    pub fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        todo!()
    }
    /// `expect` none: whatever stands there; else [`StoreError::Conflict`] unless exactly that stands there.
    pub fn put_if(
        &self,
        table: &str,
        key: &[u8],
        value: Option<&[u8]>,
        expect: Option<Option<&[u8]>>,
    ) -> Result<(), StoreError> {
        todo!()
    }
    pub fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Entries, StoreError> {
        todo!()
    }
}
