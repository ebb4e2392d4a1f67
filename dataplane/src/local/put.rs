//! Puts of one connection. They live in its thread, so that what is not committed is dropped with it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use velo_object::ObjectId;
use velo_object::tree::MAX_TABLE_BYTES;
use velo_socket::{Error, ErrorCode, Ingested, PutId};
use velo_store::{Put, Store};

use super::answer::{error, store_error};

/// Puts that one connection may have begun.
const PUTS: usize = 16;

#[derive(Default)]
pub(super) struct Puts {
    begun: HashMap<PutId, Put>,
    next: PutId,
}

/// What the store ingested, as the socket tells it.
pub(super) fn ingested(ingested: velo_store::Ingested) -> Ingested {
    Ingested { blob: ingested.blob, size_bytes: ingested.size_bytes }
}

impl Puts {
    pub(super) fn begin(&mut self, store: &Store) -> Result<PutId, Error> {
        if self.begun.len() >= PUTS {
            return Err(error(ErrorCode::Limit, format!("{PUTS} puts have begun here: commit one first")));
        }
        let put = store.begin_put().map_err(|e| store_error(&e))?;
        self.next += 1;
        self.begun.insert(self.next, put);
        Ok(self.next)
    }

    fn get(&mut self, put: PutId) -> Result<&mut Put, Error> {
        self.begun.get_mut(&put).ok_or_else(|| unknown(put))
    }

    pub(super) fn files(&mut self, put: PutId, files: Vec<OwnedFd>) -> Result<Vec<Ingested>, Error> {
        let put = self.get(put)?;
        let files: Vec<File> = files.into_iter().map(File::from).collect();
        let all = put.files(&files).map_err(|e| store_error(&e))?;
        Ok(all.into_iter().map(ingested).collect())
    }

    pub(super) fn small(&mut self, put: PutId, contents: &[Vec<u8>]) -> Result<Vec<Ingested>, Error> {
        let put = self.get(put)?;
        let one = |content: &Vec<u8>| put.small(content).map(ingested).map_err(|e| store_error(&e));
        contents.iter().map(one).collect()
    }

    pub(super) fn packs(&mut self, put: PutId) -> Result<Vec<Ingested>, Error> {
        let packs = self.get(put)?.finish_packs().map_err(|e| store_error(&e))?;
        Ok(packs.into_iter().map(ingested).collect())
    }

    pub(super) fn commit(&mut self, put: PutId, root: ObjectId, table: Option<OwnedFd>) -> Result<(), Error> {
        let table = table.map(|table| read_table(&File::from(table))).transpose()?;
        let put = self.begun.remove(&put).ok_or_else(|| unknown(put))?;
        put.commit(root, table.as_deref()).map_err(|e| store_error(&e))
    }
}

fn unknown(put: PutId) -> Error {
    error(ErrorCode::NotFound, format!("no put {put} has begun on this connection"))
}

/// The bytes of a table, from a regular file or a memory file, wherever its position stands.
fn read_table(file: &File) -> Result<Vec<u8>, Error> {
    let io = |e: std::io::Error| error(ErrorCode::Io, format!("the descriptor of the tree's table: {e}"));
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() || metadata.len() > MAX_TABLE_BYTES {
        let message = format!("a tree's table must be a file of at most {MAX_TABLE_BYTES} bytes");
        return Err(error(ErrorCode::Invalid, message));
    }
    let mut table = vec![0; metadata.len() as usize];
    file.read_exact_at(&mut table, 0).map_err(io)?;
    Ok(table)
}
