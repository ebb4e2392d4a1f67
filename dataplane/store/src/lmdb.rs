//! Opening LMDB: the only `unsafe` of this crate.
//!
//! The index is written without flushing (it is rebuilt from the files after an unclean start), but not through a
//! writable mapping: on a full disk that would kill the process with SIGBUS instead of failing one operation.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;

use heed::{Env, EnvFlags, EnvOpenOptions, WithoutTls};

use crate::StoreError;
use crate::error::At;

/// An environment whose read transactions belong to no thread.
pub(crate) type Environment = Env<WithoutTls>;

/// Whether commits are flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    Always,
    OnClose,
}

/// Opens (or makes) the environment in `path`. The caller holds the lock of the store's directory.
pub(crate) fn open(
    name: &'static str,
    path: &Path,
    map_bytes: usize,
    flush: Flush,
) -> Result<Environment, StoreError> {
    fs::create_dir_all(path).at(path)?;
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_bytes).max_dbs(4).max_readers(1024);
    if flush == Flush::OnClose {
        // SAFETY: NO_SYNC and NO_META_SYNC can corrupt the file only when the machine goes down before a flush; the
        // store then finds that it was not closed, deletes this environment unopened and makes it anew.
        unsafe {
            options.flags(EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC);
        }
    }
    // SAFETY: the files are mapped, so nobody else may change them while the environment is open. The store holds an
    // exclusive lock on its directory, opens each environment once, and no other code of it touches these files.
    unsafe { options.open(path) }.map_err(|error| StoreError::Database { name, error })
}
