//! Handing out bytes: ranges to send to peers, read-only files for local readers.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use velo_object::{BlobId, Outboard, Pieces};

use crate::dir::Part;
use crate::error::At;
use crate::query::{Found, Located};
use crate::stage::Staging;
use crate::store::{Inner, Store};
use crate::{BlobFile, Lease, Served, ServedContent, StoreError, What};

impl Store {
    /// Verified bytes of a complete or partial blob, or of its outboard. A range that goes beyond the end is cut off
    /// there; of a partial blob all of the range must be here, and
    /// one that an earlier process left must have been opened ([`Store::have`] does so): this does not wait for hashing. The lease in it keeps the blob from eviction.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::NotHere`] (also while a damaged outboard is made anew),
    /// [`StoreError::Io`].
    pub fn serve(&self, id: &BlobId, what: What, range: Range<u64>) -> Result<Served, StoreError> {
        match what {
            What::Blob => self.serve_blob(id, range),
            What::Outboard => {
                let bytes = self.encoded_outboard(id)?;
                let range = cut(id, &range, bytes.len() as u64)?;
                let part: Arc<[u8]> = bytes[range.start as usize..range.end as usize].into();
                Ok(Served {
                    len_bytes: part.len() as u64,
                    content: ServedContent::Bytes(part),
                    lease: Lease(None),
                })
            }
        }
    }

    /// Of a complete blob only the stored one: to make it anew, all of the blob must be hashed, for which this does not
    /// wait.
    fn encoded_outboard(&self, id: &BlobId) -> Result<Arc<[u8]>, StoreError> {
        let encode =
            |outboard: Option<Outboard>| outboard.map(|o| o.encode()).ok_or(StoreError::NotFound(*id));
        match self.0.find(id, || self.open_staging(id))? {
            Some(Found::Complete(located)) => self.0.outboards.get_or_make(id, located.size_bytes, || {
                let stored = self.0.stored_outboard(id, &located);
                if stored.is_none() && Pieces::new(located.size_bytes).count() > 1 {
                    self.0.mend_outboard(id, &located);
                    return Err(StoreError::NotHere { blob: *id, start: 0, end: 0 });
                }
                encode(stored)
            }),
            Some(Found::Partial(staging)) => {
                self.0.outboards.get_or_make(id, staging.size_bytes(), || encode(staging.outboard()))
            }
            None => Err(StoreError::NotFound(*id)),
        }
    }

    fn serve_blob(&self, id: &BlobId, range: Range<u64>) -> Result<Served, StoreError> {
        // Files that are open are found without asking the index.
        let (open, base, size_bytes) = match self.0.files.get(id) {
            Some(open) => {
                let size_bytes = open.size_bytes;
                (open, 0, size_bytes)
            }
            None => match self.0.find(id, || self.open_staging(id))? {
                Some(Found::Complete(located)) => {
                    (self.0.open_located(&located)?, located.offset_bytes, located.size_bytes)
                }
                Some(Found::Partial(staging)) => return serve_partial(&staging, id, range),
                None => return Err(StoreError::NotFound(*id)),
            },
        };
        let range = cut(id, &range, size_bytes)?;
        let content = ServedContent::File { file: open.file.clone(), offset_bytes: base + range.start };
        Ok(Served { content, len_bytes: range.end - range.start, lease: Lease(Some(open)) })
    }

    /// A blob as a read-only file of its own, to be handed to a local reader. With `partial`, also one that is still
    /// arriving, once its size is certain: [`Store::wait`] says when a range of it may be read. Holes that have arrived
    /// read as zeros.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Io`].
    pub fn open_blob(&self, id: &BlobId, partial: bool) -> Result<BlobFile, StoreError> {
        let inner = &self.0;
        let staging = match inner.find(id, || partial.then(|| self.staging(id)).flatten())? {
            Some(Found::Complete(located)) => return inner.open_complete(&located),
            Some(Found::Partial(staging)) => staging,
            None => return Err(StoreError::NotFound(*id)),
        };
        let Some(reader) = staging.reader().filter(|_| !staging.is_sink() && staging.size_is_proven()) else {
            return Err(StoreError::NotFound(*id));
        };
        let file = open_again(&reader)?;
        if file.metadata().at(inner.dir.staged(id, Part::Data))?.nlink() == 0 {
            // This transfer was given up just now, maybe because the blob has come in another way.
            return inner.open_complete(&inner.locate(id)?.ok_or(StoreError::NotFound(*id))?);
        }
        Ok(BlobFile {
            file,
            offset_bytes: 0,
            size_bytes: staging.size_bytes(),
            complete: false,
            lease: Lease(None),
        })
    }
}

impl Inner {
    fn open_complete(&self, located: &Located) -> Result<BlobFile, StoreError> {
        let open = self.open_located(located)?;
        Ok(BlobFile {
            file: open_again(&open.file)?,
            offset_bytes: located.offset_bytes,
            size_bytes: located.size_bytes,
            complete: true,
            lease: Lease(Some(open)),
        })
    }
}

/// The same file, read-only. Not a duplicate of the descriptor, which would share its position with all others; and not by its
/// name, which changes when a transfer is committed.
fn open_again(file: &File) -> Result<File, StoreError> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::open(&path).at(&path)
}

fn serve_partial(staging: &Staging, id: &BlobId, range: Range<u64>) -> Result<Served, StoreError> {
    let range = cut(id, &range, staging.size_bytes())?;
    let not_here = StoreError::NotHere { blob: *id, start: range.start, end: range.end };
    match staging.reader() {
        Some(file) if staging.covers(range.clone()) => {
            let content = ServedContent::File { file, offset_bytes: range.start };
            Ok(Served { content, len_bytes: range.end - range.start, lease: Lease(None) })
        }
        _ => Err(not_here),
    }
}

/// The part of a range within `size_bytes`.
fn cut(id: &BlobId, range: &Range<u64>, size_bytes: u64) -> Result<Range<u64>, StoreError> {
    let end = range.end.min(size_bytes);
    if range.start > end || (range.start == end && range.start < range.end && size_bytes > 0) {
        return Err(StoreError::NotHere { blob: *id, start: range.start, end: range.end });
    }
    Ok(range.start..end)
}
