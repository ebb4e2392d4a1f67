//! The scrub: everything is hashed again, and what is damaged goes to quarantine.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::Relaxed;

use velo_object::{BlobId, Outboard, Pieces, chaining_value};

use crate::copy::on_all_cores;
use crate::error::At;
use crate::index::FileRecord;
use crate::store::{Inner, Store, lock};
use crate::{Damage, StoreError, Verification};

impl Store {
    /// Hashes every complete blob and pack again. What is damaged moves to `quarantine/` and is not here any more (so
    /// it can be fetched again); a pack takes its contents with it. `progress` is called after each file and may stop
    /// it. What arrives or is removed meanwhile is left out.
    ///
    /// # Errors
    /// [`StoreError::Closed`], [`StoreError::Database`], [`StoreError::Io`].
    pub fn verify(
        &self,
        mut progress: impl FnMut(&Verification) -> ControlFlow<()>,
    ) -> Result<Verification, StoreError> {
        let inner = &self.0;
        inner.writable()?;
        let files = inner.index.files(None, usize::MAX)?;
        let total_bytes = files.iter().map(|(_, record)| record.size_bytes).sum();
        let mut state = Verification { total_bytes, ..Verification::default() };
        for (id, record) in files {
            if let Some(damage) = inner.scrub(id, record)? {
                tracing::error!(blob = %id, pieces = ?damage.pieces, "damaged; it is in quarantine now");
                state.damaged.push(damage);
            }
            state.blobs += 1;
            state.bytes += record.size_bytes;
            if progress(&state).is_break() {
                break;
            }
        }
        Ok(state)
    }
}

impl Inner {
    /// Hashes a file again; what of it is damaged, if anything is. It is in quarantine then.
    pub fn scrub(&self, id: BlobId, record: FileRecord) -> Result<Option<Damage>, StoreError> {
        let path = self.dir.file(&id, record.kind);
        let pieces = match File::open(&path) {
            Ok(file) => {
                let pieces = self.damaged_pieces(&id, &file, record)?;
                if pieces.is_empty() {
                    return Ok(None);
                }
                pieces
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).at(path),
        };
        let _changing = lock(&self.changing);
        // It may have been removed meanwhile.
        if self.index.file(&id)? != Some(record) {
            return Ok(None);
        }
        let contents = self.index.remove_unreadable(&id)?;
        self.space.used_bytes.fetch_sub(record.stored_bytes, Relaxed);
        if path.exists() {
            self.quarantine(&id, record.kind)?;
        }
        let pinned = lock(&self.pins).protects(&id);
        if pinned {
            self.space.pinned_bytes.fetch_sub(record.stored_bytes, Relaxed);
        }
        Ok(Some(Damage { blob: id, pieces: pieces.into_iter().flatten().collect(), contents, pinned }))
    }

    /// What of a file is not what its id says: indexes of pieces, or one none for the file as a whole.
    pub fn damaged_pieces(
        &self,
        id: &BlobId,
        file: &File,
        record: FileRecord,
    ) -> Result<Vec<Option<u64>>, StoreError> {
        let size_bytes = record.size_bytes;
        if file.metadata().map_or(true, |metadata| metadata.len() != size_bytes) {
            return Ok(vec![None]);
        }
        let pieces = Pieces::new(size_bytes);
        let hash = |buffer: &mut [u8], index: u64| -> Result<Option<[u8; 32]>, StoreError> {
            let range = pieces.range(index);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            if file.read_exact_at(bytes, range.start).is_err() {
                return Ok(None);
            }
            Ok(Some(if pieces.count() == 1 {
                *BlobId::of(bytes).as_bytes()
            } else {
                chaining_value(index, bytes)
            }))
        };
        let mut values = on_all_cores(pieces.count(), self.threads, &self.buffers, &hash)?;
        values.sort_unstable_by_key(|(index, _)| *index);
        if pieces.count() == 1 {
            let good = values.first().is_some_and(|(_, value)| value.as_ref() == Some(id.as_bytes()));
            return Ok(if good { Vec::new() } else { vec![Some(0)] });
        }
        let unreadable: Vec<Option<u64>> =
            values.iter().filter(|(_, value)| value.is_none()).map(|(index, _)| Some(*index)).collect();
        let stored = std::fs::read(self.dir.outboard(id, record.kind)).unwrap_or_default();
        match Outboard::decode(*id, &stored) {
            Ok(outboard) if outboard.size_bytes() == size_bytes => Ok(values
                .iter()
                .filter(|(index, value)| value.as_ref() != Some(&outboard.values()[*index as usize]))
                .map(|(index, _)| Some(*index))
                .collect()),
            _ if !unreadable.is_empty() => Ok(unreadable),
            // Without an outboard only the whole can be checked.
            _ => {
                let found = values.into_iter().filter_map(|(_, value)| value).collect();
                let sound = Outboard::from_values(*id, size_bytes, found).is_ok();
                Ok(if sound { Vec::new() } else { vec![None] })
            }
        }
    }
}
