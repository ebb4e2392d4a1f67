//! The book: small tables that files cannot give back (refs, pins, policies, jobs). Every change is flushed.
//!
//! One LMDB database; a key is the length of the table's name (1 byte), the name, and the caller's key.

use std::ops::Bound;
use std::path::Path;

use heed::Database;
use heed::types::Bytes;

use crate::StoreError;
use crate::dir::sync_dir;
use crate::lmdb::{self, Environment, Flush};

const MAP_BYTES: usize = 4 << 30;
/// What LMDB takes as a key.
const MOST_KEY_BYTES: usize = 511;
const MOST_TABLE_BYTES: usize = 64;

/// Entries of a table of the book: keys and values.
pub type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// Tables of keys and values that files cannot give back; every change is flushed before it is acknowledged.
#[derive(Debug)]
pub struct Book {
    env: Environment,
    entries: Database<Bytes, Bytes>,
}

fn failed(error: heed::Error) -> StoreError {
    StoreError::Database { name: "book", error }
}

fn whole_key(table: &str, key: &[u8]) -> Result<Vec<u8>, StoreError> {
    let whole = [&[table.len() as u8], table.as_bytes(), key].concat();
    if table.is_empty() || table.len() > MOST_TABLE_BYTES || whole.len() > MOST_KEY_BYTES {
        return Err(StoreError::Key { most: MOST_KEY_BYTES - 1 });
    }
    Ok(whole)
}

impl Book {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let env = lmdb::open("book", path, MAP_BYTES, Flush::Always)?;
        // A read first: making it costs a flush.
        let txn = env.read_txn().map_err(failed)?;
        let present = env.open_database(&txn, Some("entries")).map_err(failed)?;
        txn.commit().map_err(failed)?;
        let entries = match present {
            Some(entries) => entries,
            None => {
                let mut txn = env.write_txn().map_err(failed)?;
                let entries = env.create_database(&mut txn, Some("entries")).map_err(failed)?;
                txn.commit().map_err(failed)?;
                // LMDB flushes its file, not the names that lead to it.
                sync_dir(path)?;
                path.parent().map_or(Ok(()), sync_dir)?;
                entries
            }
        };
        Ok(Self { env, entries })
    }

    /// The value at `key`.
    ///
    /// # Errors
    /// [`StoreError::Key`], [`StoreError::Database`].
    pub fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let key = whole_key(table, key)?;
        let txn = self.env.read_txn().map_err(failed)?;
        Ok(self.entries.get(&txn, &key).map_err(failed)?.map(<[u8]>::to_vec))
    }

    /// Writes (or, with no `value`, deletes) an entry durably. `expect`: what must stand there now; outer none:
    /// anything.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where something else stands there; [`StoreError::Key`], [`StoreError::Database`].
    pub fn put_if(
        &self,
        table: &str,
        key: &[u8],
        value: Option<&[u8]>,
        expect: Option<Option<&[u8]>>,
    ) -> Result<(), StoreError> {
        let key = whole_key(table, key)?;
        let mut txn = self.env.write_txn().map_err(failed)?;
        if let Some(expected) = expect
            && self.entries.get(&txn, &key).map_err(failed)? != expected
        {
            return Err(StoreError::Conflict { table: table.to_owned() });
        }
        match value {
            Some(value) => self.entries.put(&mut txn, &key, value).map_err(failed)?,
            None => drop(self.entries.delete(&mut txn, &key).map_err(failed)?),
        }
        txn.commit().map_err(failed)
    }

    /// Up to `limit` entries of a table after a key, in order of their keys.
    ///
    /// # Errors
    /// [`StoreError::Key`], [`StoreError::Database`].
    pub fn scan(&self, table: &str, after: Option<&[u8]>, limit: usize) -> Result<Entries, StoreError> {
        let prefix = whole_key(table, &[])?;
        let start = whole_key(table, after.unwrap_or_default())?;
        let lower = if after.is_some() { Bound::Excluded(&start[..]) } else { Bound::Included(&start[..]) };
        let txn = self.env.read_txn().map_err(failed)?;
        let mut found = Vec::new();
        for entry in self.entries.range(&txn, &(lower, Bound::Unbounded)).map_err(failed)?.take(limit) {
            let (key, value) = entry.map_err(failed)?;
            match key.strip_prefix(&prefix[..]) {
                Some(key) => found.push((key.to_vec(), value.to_vec())),
                None => break,
            }
        }
        Ok(found)
    }
}
