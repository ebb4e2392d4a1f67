//! Encoded outboards that were asked for lately. Checking one from disk takes a hash for every piece, and a peer asks
//! for a long one in many parts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use velo_object::BlobId;

use crate::StoreError;

/// What the kept ones may take together, at least one.
const MOST_BYTES: usize = 16 << 20;

/// The bytes, and the time of their last use.
type Entry = (Arc<[u8]>, u64);

#[derive(Debug, Default)]
struct Kept {
    /// By id and size of the blob: a lie about the size has another outboard.
    entries: HashMap<(BlobId, u64), Entry>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Outboards(Mutex<Kept>);

impl Outboards {
    /// The encoded outboard, made by `make` if it is not kept.
    pub fn get_or_make(
        &self,
        id: &BlobId,
        size_bytes: u64,
        make: impl FnOnce() -> Result<Vec<u8>, StoreError>,
    ) -> Result<Arc<[u8]>, StoreError> {
        if let Some(bytes) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(*id, size_bytes)) {
            return Ok(bytes);
        }
        let bytes: Arc<[u8]> = make()?.into();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put((*id, size_bytes), bytes.clone());
        Ok(bytes)
    }
}

impl Kept {
    fn get(&mut self, key: &(BlobId, u64)) -> Option<Arc<[u8]>> {
        self.clock += 1;
        let (bytes, used) = self.entries.get_mut(key)?;
        *used = self.clock;
        Some(bytes.clone())
    }

    fn put(&mut self, key: (BlobId, u64), bytes: Arc<[u8]>) {
        self.clock += 1;
        self.bytes += bytes.len();
        if let Some((old, _)) = self.entries.insert(key, (bytes, self.clock)) {
            self.bytes -= old.len();
        }
        while self.bytes > MOST_BYTES && self.entries.len() > 1 {
            let oldest = self.entries.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            if let Some((old, _)) = oldest.and_then(|key| self.entries.remove(&key)) {
                self.bytes -= old.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_is_made_again() {
        let outboards = Outboards::default();
        let ask = |n: u8| {
            let mut made = false;
            let make = || {
                made = true;
                Ok(vec![n; 7 << 20])
            };
            let bytes = outboards.get_or_make(&BlobId::of(&[n]), 1, make).expect("infallible");
            assert_eq!(bytes[0], n);
            made
        };
        assert!(ask(1) && ask(2) && !ask(1));
        assert!(ask(3), "the third does not fit beside two others");
        assert!(!ask(1) && ask(2));
    }
}
