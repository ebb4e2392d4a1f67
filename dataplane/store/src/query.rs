//! What is here: finding, describing, waiting.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use velo_object::tree::MAX_TABLE_BYTES;
use velo_object::{BlobId, IdPrefix, Outboard, OutboardBuilder, PieceSet, Pieces, TreeError, chaining_value};

use crate::copy::on_all_cores;
use crate::dir::FileKind;
use crate::error::At;
use crate::files::OpenFile;
use crate::index::FileRecord;
use crate::stage::Staging;
use crate::store::{Inner, Store, lock};
use crate::{BlobStat, Have, StoreError, Usage};

/// Where a complete blob lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Located {
    /// The file: the blob itself, or its pack.
    pub file: BlobId,
    pub record: FileRecord,
    pub offset_bytes: u64,
    pub size_bytes: u64,
}

impl Store {
    /// Whether all of a blob is here.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn has(&self, id: &BlobId) -> Result<bool, StoreError> {
        Ok(self.0.locate(id)?.is_some())
    }

    /// What is known of a blob, complete or partial.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Io`].
    pub fn stat(&self, id: &BlobId) -> Result<Option<BlobStat>, StoreError> {
        Ok(self.0.find(id, || self.staging_unless_busy(id))?.map(|found| match found {
            Found::Complete(located) => self.0.stat_complete(id, located),
            Found::Partial(staging) => self.0.stat_partial(&staging),
        }))
    }

    /// Files after `after` in order of ids, at most `limit`: blobs, packs and partial ones, but not what lies in
    /// packs.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Io`].
    pub fn list(&self, after: Option<&BlobId>, limit: usize) -> Result<Vec<(BlobId, BlobStat)>, StoreError> {
        let files = self.0.index.files(after, limit)?;
        let mut found: Vec<(BlobId, BlobStat)> = files
            .into_iter()
            .map(|(id, record)| {
                let located = Located { file: id, record, offset_bytes: 0, size_bytes: record.size_bytes };
                (id, self.0.stat_complete(&id, located))
            })
            .collect();
        let mut partial: Vec<BlobId> = lock(&self.0.stagings)
            .keys()
            .filter(|id| after.is_none_or(|after| *id > after))
            .copied()
            .collect();
        partial.sort_unstable();
        for id in partial.into_iter().take(limit) {
            if let Some(staging) = self.staging_unless_busy(&id) {
                found.push((id, self.0.stat_partial(&staging)));
            }
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        found.dedup_by_key(|(id, _)| *id);
        found.truncate(limit);
        Ok(found)
    }

    /// Ids that begin so, at most `limit`: complete ones (also in packs) and partial ones.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn resolve(&self, prefix: &IdPrefix, limit: usize) -> Result<Vec<BlobId>, StoreError> {
        let mut found = self.0.index.resolve(&prefix.first(), limit, |id| prefix.matches(id))?;
        found.extend(lock(&self.0.stagings).keys().filter(|id| prefix.matches(id)));
        found.sort_unstable();
        found.dedup();
        found.truncate(limit);
        Ok(found)
    }

    /// Which pieces of a blob are here; none where nothing is known of it.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Io`].
    pub fn have(&self, id: &BlobId) -> Result<Option<Have>, StoreError> {
        Ok(self.0.find(id, || self.staging_unless_busy(id))?.map(|found| match found {
            Found::Complete(located) => {
                let (size_bytes, count) = (located.size_bytes, Pieces::new(located.size_bytes).count());
                let holes = self.0.known_holes(located).unwrap_or_else(|_| PieceSet::new(count));
                Have { size_bytes, have: PieceSet::full(count), holes }
            }
            Found::Partial(staging) => {
                Have { size_bytes: staging.size_bytes(), have: staging.have(), holes: staging.holes() }
            }
        }))
    }

    /// The outboard of a complete or partial blob; none for blobs of one piece. Made anew from the bytes where the
    /// stored one is damaged.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Damaged`], [`StoreError::Io`].
    pub fn outboard(&self, id: &BlobId) -> Result<Option<Outboard>, StoreError> {
        match self.0.find(id, || self.staging(id))? {
            Some(Found::Complete(_)) => self.0.outboard(id),
            Some(Found::Partial(staging)) => Ok(staging.outboard()),
            None => Err(StoreError::NotFound(*id)),
        }
    }

    /// Waits until a range is here and verified, also of a blob that is not yet being received. What lies beyond the
    /// blob's end counts as here. Who has a file of a transfer from [`Store::open_blob`] looks afterwards whether it
    /// still has a name: if not, the transfer gave way to another, and the blob must be opened again.
    ///
    /// # Errors
    /// [`StoreError::TimedOut`] at the deadline, [`StoreError::Database`], [`StoreError::Io`].
    pub fn wait(&self, id: &BlobId, range: Range<u64>, deadline: Instant) -> Result<(), StoreError> {
        // Opened first: while it waits, it only looks.
        drop(self.staging_unless_busy(id));
        let arrived = || match self.is_here(id, &range) {
            Ok(false) => None,
            Ok(true) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        };
        let timed_out = StoreError::TimedOut { blob: *id, start: range.start, end: range.end };
        self.0.shared.arrivals.wait(deadline, arrived).unwrap_or(Err(timed_out))
    }

    /// What takes how much room.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Io`].
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let inner = &self.0;
        let files = inner.index.files(None, usize::MAX)?;
        let packs = files.iter().filter(|(_, record)| record.kind == FileKind::Pack).count() as u64;
        Ok(Usage {
            capacity_bytes: inner.space.capacity_bytes(),
            used_bytes: inner.space.used_bytes.load(Relaxed),
            pinned_bytes: inner.space.pinned_bytes.load(Relaxed),
            staged_bytes: inner.space.reserved_bytes.load(Relaxed),
            disk_free_bytes: inner.space.disk_bytes()?.0,
            blobs: files.len() as u64 - packs,
            packs,
            packed: inner.index.packed_len()?,
            partial: lock(&inner.stagings).len() as u64,
        })
    }
}

/// Where a blob is.
#[derive(Debug)]
pub(crate) enum Found {
    Complete(Located),
    Partial(Arc<Staging>),
}

impl Inner {
    /// A blob, whether complete or (as `staging` looks for it) still arriving.
    pub fn find(
        &self,
        id: &BlobId,
        staging: impl FnOnce() -> Option<Arc<Staging>>,
    ) -> Result<Option<Found>, StoreError> {
        if let Some(located) = self.locate(id)? {
            return Ok(Some(Found::Complete(located)));
        }
        if let Some(staging) = staging() {
            return Ok(Some(Found::Partial(staging)));
        }
        // Between the two looks it may have been committed.
        Ok(self.locate(id)?.map(Found::Complete))
    }

    /// The file that has a complete blob: its own, or else a pack.
    pub fn locate(&self, id: &BlobId) -> Result<Option<Located>, StoreError> {
        if let Some(record) = self.index.file(id)? {
            return Ok(Some(Located { file: *id, record, offset_bytes: 0, size_bytes: record.size_bytes }));
        }
        let Some(place) = self.index.place(id)? else { return Ok(None) };
        Ok(self.index.file(&place.pack)?.map(|record| Located {
            file: place.pack,
            record,
            offset_bytes: u64::from(place.offset_bytes),
            size_bytes: u64::from(place.len),
        }))
    }

    /// The open file of a located blob.
    pub fn open_located(&self, located: &Located) -> Result<Arc<OpenFile>, StoreError> {
        self.files.get_or_open(&located.file, || {
            let open = |kind| File::open(self.dir.file(&located.file, kind));
            let mut opened = open(located.record.kind);
            if opened.is_err() && located.record.kind == FileKind::Loose {
                // It may have become a pack just now.
                opened = open(FileKind::Pack);
            }
            let file = match opened {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(StoreError::NotFound(located.file));
                }
                result => result.at(self.dir.file(&located.file, located.record.kind))?,
            };
            Ok(OpenFile { file: Arc::new(file), size_bytes: located.record.size_bytes })
        })
    }

    fn stat_complete(&self, id: &BlobId, located: Located) -> BlobStat {
        let own = located.file == *id;
        BlobStat {
            size_bytes: located.size_bytes,
            complete: true,
            have: PieceSet::full(Pieces::new(located.size_bytes).count()),
            pinned: lock(&self.pins).protects(&located.file),
            stored_bytes: if own { located.record.stored_bytes } else { located.size_bytes },
        }
    }

    fn stat_partial(&self, staging: &Staging) -> BlobStat {
        let (have, holes) = (staging.have(), staging.holes());
        let pieces = Pieces::new(staging.size_bytes());
        let stored = have.iter().filter(|index| !holes.contains(*index)).map(|index| pieces.len(index)).sum();
        BlobStat {
            size_bytes: staging.size_bytes(),
            complete: false,
            pinned: lock(&self.pins).protects(&staging.id()),
            have,
            stored_bytes: stored,
        }
    }

    /// Pieces of a complete blob that are holes in its file.
    fn known_holes(&self, located: Located) -> Result<PieceSet, StoreError> {
        let pieces = Pieces::new(located.size_bytes);
        let own_file = located.record.size_bytes == located.size_bytes;
        if !own_file || located.record.stored_bytes >= located.size_bytes {
            return Ok(PieceSet::new(pieces.count()));
        }
        let mut holes = PieceSet::full(pieces.count());
        // A descriptor of its own: seeking moves a position that all users of an open file share.
        let path = self.dir.file(&located.file, located.record.kind);
        let seekable = File::open(&path).at(&path)?;
        for range in crate::extents::data_ranges(&seekable, located.size_bytes).at(&path)? {
            pieces.covering(range).for_each(|index| _ = holes.remove(index));
        }
        Ok(holes)
    }

    /// The outboard of a complete blob.
    pub fn outboard(&self, id: &BlobId) -> Result<Option<Outboard>, StoreError> {
        let located = self.locate(id)?.ok_or(StoreError::NotFound(*id))?;
        if Pieces::new(located.size_bytes).count() == 1 {
            return Ok(None);
        }
        if let Some(outboard) = self.stored_outboard(id, &located) {
            return Ok(Some(outboard));
        }
        let path = self.dir.outboard(id, located.record.kind);
        tracing::warn!(blob = %id, "its outboard is missing or damaged; it is made anew");
        let outboard = self.hash_again(id, &located)?;
        if let Err(error) = fs::write(&path, outboard.encode()) {
            tracing::warn!(path = %path.display(), %error, "the outboard could not be written");
        }
        Ok(Some(outboard))
    }

    /// The outboard that lies beside a complete blob, if it is sound.
    pub fn stored_outboard(&self, id: &BlobId, located: &Located) -> Option<Outboard> {
        let bytes = fs::read(self.dir.outboard(id, located.record.kind)).ok()?;
        let mut outboard = Outboard::decode(*id, &bytes).ok()?;
        if outboard.size_bytes() != located.size_bytes {
            return None;
        }
        outboard.confirm();
        Some(outboard)
    }

    /// Begins to make the outboard of a complete blob anew, unless one is being made: whoever is asked for it meanwhile
    /// refuses. A blob that turns out to be damaged goes to quarantine, so that it is not hashed again and again.
    pub fn mend_outboard(self: &Arc<Self>, id: &BlobId, located: &Located) {
        if self.mending.swap(true, Relaxed) {
            return;
        }
        let (inner, id, located) = (self.clone(), *id, *located);
        let mend = move || {
            let mended = match inner.outboard(&id) {
                Err(StoreError::Damaged(_)) if located.file == id => {
                    inner.scrub(id, located.record).map(drop)
                }
                made => made.map(drop),
            };
            if let Err(error) = mended {
                tracing::warn!(blob = %id, %error, "its outboard could not be made anew");
            }
            inner.mending.store(false, Relaxed);
        };
        if let Err(error) = std::thread::Builder::new().name("velo-outboard".into()).spawn(mend) {
            tracing::warn!(blob = %id, %error, "its outboard is not made anew: no thread");
            self.mending.store(false, Relaxed);
        }
    }

    fn hash_again(&self, id: &BlobId, located: &Located) -> Result<Outboard, StoreError> {
        let open = self.open_located(located)?;
        let pieces = Pieces::new(located.size_bytes);
        let hash = |buffer: &mut [u8], index: u64| {
            let range = pieces.range(index);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            open.file.read_exact_at(bytes, range.start).map(|()| chaining_value(index, bytes))
        };
        let values = on_all_cores(pieces.count(), self.threads, &self.buffers, &hash)
            .map_err(|_| StoreError::Damaged(*id))?;
        let mut builder = OutboardBuilder::new(located.size_bytes);
        values.into_iter().for_each(|(index, value)| builder.set(index, value));
        let outboard = builder.finish();
        if outboard.id() == *id { Ok(outboard) } else { Err(StoreError::Damaged(*id)) }
    }

    /// All bytes of the table of a tree. Anything else is refused by its first bytes or its size, before it is read:
    /// of holes, any size costs its author nothing.
    pub fn read_whole(&self, id: &BlobId) -> Result<Vec<u8>, StoreError> {
        let located = self.locate(id)?.ok_or(StoreError::NotFound(*id))?;
        let open = self.open_located(&located)?;
        let mut bytes = vec![0; located.size_bytes.min(4) as usize];
        open.file.read_exact_at(&mut bytes, located.offset_bytes).at(id.to_string())?;
        if !bytes.starts_with(b"VTR") {
            return Err(StoreError::Tree { tree: *id, error: TreeError::Magic });
        }
        if located.size_bytes > MAX_TABLE_BYTES {
            return Err(StoreError::Tree { tree: *id, error: TreeError::TooLarge(located.size_bytes) });
        }
        bytes.resize(located.size_bytes as usize, 0);
        open.file.read_exact_at(&mut bytes, located.offset_bytes).at(id.to_string())?;
        Ok(bytes)
    }
}
