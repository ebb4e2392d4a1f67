//! Beginning a transfer, or going on with one that an earlier process left.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use velo_object::{BlobId, Expected, Outboard, PIECE_BYTES, PieceSet, Pieces, Verified};

use crate::copy::on_all_cores;
use crate::dir::{Part, remove_file};
use crate::error::At;
use crate::extents::data_ranges;
use crate::have_map::HaveMap;
use crate::slots::Claimed;
use crate::stage::{Made, Progress, Staging, is_readable, open_data};
use crate::store::{Inner, Slot, Store, lock};
use crate::{StageKind, StoreError};

impl Store {
    /// Begins to receive a blob, or goes on where an earlier transfer of it ended, also one of an earlier process:
    /// what [`Staging::have`] says then need not be fetched again. Room for what is missing is set aside; under an
    /// outboard that is not confirmed only for the last piece, until that has proven the size: nothing is evicted for a lie.
    ///
    /// `outboard`: what the pieces were verified under; none for a blob of one piece, or where one is staged here
    /// already. `sink`: a file of the caller's that is to become the blob; nothing is kept in the store, and what the
    /// file has already is hashed and counts as received.
    /// A blob that is here already gives a transfer that has ended, with all pieces.
    ///
    /// # Errors
    /// [`StoreError::NoOutboard`], [`StoreError::SizeConflict`] where the transfer under way has another size,
    /// [`StoreError::InUse`] where one into another file is under way, [`StoreError::Full`], [`StoreError::Io`].
    pub fn stage(
        &self,
        id: BlobId,
        size_bytes: u64,
        outboard: Option<Outboard>,
        sink: Option<File>,
        kind: StageKind,
    ) -> Result<Arc<Staging>, StoreError> {
        let inner = &self.0;
        inner.writable()?;
        let outboard = outboard.filter(|outboard| outboard.id() == id && outboard.size_bytes() == size_bytes);
        let claim = loop {
            let claimed = inner.claim(&id)?;
            if sink.is_none() && inner.index.file(&id)?.is_some() {
                drop(claimed);
                return inner.ended(id, size_bytes, kind);
            }
            let present = match claimed {
                Claimed::Vacant(claim) => break claim,
                Claimed::Present(present) => present,
            };
            let proven = present.has(Pieces::new(present.size_bytes()).last());
            if sink.is_some() || present.is_sink() {
                return Err(StoreError::InUse(id));
            }
            if present.size_bytes() == size_bytes && present.kind() == kind {
                return Ok(present);
            }
            if proven && present.size_bytes() != size_bytes {
                return Err(StoreError::SizeConflict {
                    blob: id,
                    present_bytes: present.size_bytes(),
                    asked_bytes: size_bytes,
                });
            }
            // What was staged under a size that nothing proves, or as another kind, is worth nothing.
            present.abandon()?;
        };
        let pieces = Pieces::new(size_bytes);
        if pieces.count() > 1 && outboard.is_none() {
            return Err(StoreError::NoOutboard(id));
        }
        let made = match sink {
            Some(sink) => inner.stage_sink(id, size_bytes, outboard, sink, kind)?,
            None => inner.stage_file(id, size_bytes, outboard, kind)?,
        };
        let staging = Staging::new(inner, made);
        claim.settle(&staging);
        Ok(staging)
    }
}

impl Inner {
    /// A transfer of what is here already.
    fn ended(
        self: &Arc<Self>,
        id: BlobId,
        size_bytes: u64,
        kind: StageKind,
    ) -> Result<Arc<Staging>, StoreError> {
        let count = Pieces::new(size_bytes).count();
        let state = Progress { have: PieceSet::full(count), holes: PieceSet::new(count) };
        let outboard = self.outboard(&id)?;
        Ok(Staging::new(
            self,
            Made {
                id,
                size_bytes,
                kind,
                outboard,
                file: None,
                reader: None,
                map: None,
                dirty: false,
                state,
                reservation: None,
                unreserved_bytes: 0,
            },
        ))
    }

    fn stage_file(
        &self,
        id: BlobId,
        size_bytes: u64,
        outboard: Option<Outboard>,
        kind: StageKind,
    ) -> Result<Made, StoreError> {
        let proven = outboard.as_ref().is_none_or(Outboard::is_confirmed);
        let reserved_bytes = if proven { size_bytes } else { size_bytes.min(PIECE_BYTES) };
        let reservation = self.reserve(reserved_bytes)?;
        let path = self.dir.staged(&id, Part::Data);
        let failed = |error: std::io::Error| self.space.io(error, &path, size_bytes);
        if let Some(outboard) = &outboard {
            fs::write(self.dir.staged(&id, Part::Outboard), outboard.encode()).map_err(failed)?;
        }
        remove_file(&path)?;
        let file = open_data(&path, true)?;
        file.set_len(size_bytes).map_err(failed)?;
        let proven = outboard.as_ref().is_some_and(Outboard::is_confirmed);
        let map =
            HaveMap::create(&self.dir.staged(&id, Part::Map), kind, size_bytes, proven).map_err(failed)?;
        let count = Pieces::new(size_bytes).count();
        Ok(Made {
            id,
            size_bytes,
            kind,
            outboard,
            file: Some(file),
            reader: Some(Arc::new(File::open(&path).at(&path)?)),
            map: Some(map),
            dirty: false,
            state: Progress { have: PieceSet::new(count), holes: PieceSet::new(count) },
            reservation: Some(reservation),
            unreserved_bytes: size_bytes - reserved_bytes,
        })
    }

    fn stage_sink(
        &self,
        id: BlobId,
        size_bytes: u64,
        outboard: Option<Outboard>,
        sink: File,
        kind: StageKind,
    ) -> Result<Made, StoreError> {
        let name = "the destination";
        let count = Pieces::new(size_bytes).count();
        let mut have = PieceSet::new(count);
        let found = sink.metadata().at(name)?.len();
        let readable = is_readable(&sink);
        let dirty = found > 0;
        sink.set_len(size_bytes).at(name)?;
        if dirty && readable {
            let mut claimed = PieceSet::new(count);
            for range in data_ranges(&sink, size_bytes).at(name)? {
                Pieces::new(size_bytes).covering(range).for_each(|index| _ = claimed.insert(index));
            }
            have = self.proven(id, &sink, size_bytes, outboard.as_ref(), &claimed, &PieceSet::new(count))?;
        }
        let reader = if readable { Some(Arc::new(sink.try_clone().at(name)?)) } else { None };
        let state = Progress { have, holes: PieceSet::new(count) };
        Ok(Made {
            id,
            size_bytes,
            kind,
            outboard,
            file: Some(sink),
            reader,
            map: None,
            dirty,
            state,
            reservation: None,
            unreserved_bytes: 0,
        })
    }

    /// Opens what an earlier process left; none (and it is removed) where it is of no use.
    pub fn load_staging(&self, id: BlobId) -> Result<Option<Made>, StoreError> {
        let made = self.try_load(id);
        match made {
            Ok(Some(made)) => Ok(Some(made)),
            Ok(None) => {
                tracing::warn!(blob = %id, "what an earlier transfer left cannot be used; it is removed");
                self.remove_staged(&id)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn try_load(&self, id: BlobId) -> Result<Option<Made>, StoreError> {
        let path = self.dir.staged(&id, Part::Data);
        let map_path = self.dir.staged(&id, Part::Map);
        let Some(mut loaded) = HaveMap::load(&map_path).at(&map_path)? else { return Ok(None) };
        let size_bytes = loaded.size_bytes;
        let outboard = if Pieces::new(size_bytes).count() > 1 {
            let bytes = fs::read(self.dir.staged(&id, Part::Outboard)).unwrap_or_default();
            match Outboard::decode(id, &bytes) {
                Ok(mut outboard) if outboard.size_bytes() == size_bytes => {
                    if loaded.proven {
                        outboard.confirm();
                    }
                    Some(outboard)
                }
                _ => return Ok(None),
            }
        } else {
            None
        };
        // It was made read-only where a commit had begun.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).at(&path)?;
        let file = open_data(&path, false)?;
        if file.metadata().at(&path)?.len() != size_bytes {
            return Ok(None);
        }
        if !loaded.same_boot {
            let proven =
                self.proven(id, &file, size_bytes, outboard.as_ref(), &loaded.have, &loaded.holes)?;
            let lost: Vec<u64> = loaded.have.iter().filter(|index| !proven.contains(*index)).collect();
            loaded.map.clear(&lost).at(&map_path)?;
            loaded.map.renew(loaded.kind, size_bytes, loaded.proven).at(&map_path)?;
            lost.iter().for_each(|index| _ = loaded.holes.remove(*index));
            loaded.have = proven;
        }
        let pieces = Pieces::new(size_bytes);
        let reservation = self.space.reserve(size_bytes);
        for index in loaded.have.iter() {
            let len = pieces.len(index);
            if loaded.holes.contains(index) { reservation.not_needed(len) } else { reservation.written(len) }
        }
        Ok(Some(Made {
            id,
            size_bytes,
            kind: loaded.kind,
            outboard,
            file: Some(file),
            reader: Some(Arc::new(File::open(&path).at(&path)?)),
            map: Some(loaded.map),
            dirty: true,
            state: Progress { have: loaded.have, holes: loaded.holes },
            reservation: Some(reservation),
            unreserved_bytes: 0,
        }))
    }

    /// Those of the claimed pieces whose bytes in `file` are what they should be.
    fn proven(
        &self,
        id: BlobId,
        file: &File,
        size_bytes: u64,
        outboard: Option<&Outboard>,
        claimed: &PieceSet,
        holes: &PieceSet,
    ) -> Result<PieceSet, StoreError> {
        let pieces = Pieces::new(size_bytes);
        let indexes: Vec<u64> = claimed.iter().collect();
        let check = |buffer: &mut [u8], at: u64| -> Result<bool, StoreError> {
            let index = indexes[at as usize];
            let range = pieces.range(index);
            let len = (range.end - range.start) as usize;
            let bytes = &mut buffer[..len];
            if file.read_exact_at(bytes, range.start).is_err() {
                return Ok(false);
            }
            let expected = outboard.map_or(Expected::Whole(id), |outboard| Expected::Piece(outboard, index));
            let verified = Verified::check(&*bytes, len, expected).is_ok();
            Ok(verified && (!holes.contains(index) || velo_simd::is_zero(bytes)))
        };
        let results = on_all_cores(indexes.len() as u64, self.threads, &self.buffers, &check)?;
        let mut proven = PieceSet::new(claimed.len());
        for (at, good) in results {
            if good {
                proven.insert(indexes[at as usize]);
            }
        }
        Ok(proven)
    }

    /// Finds what can go on; counts it.
    pub fn load_stagings(&self) -> Result<u64, StoreError> {
        let mut slots = lock(&self.stagings);
        for id in crate::recover::staged_ids(&self.dir)? {
            if self.index.file(&id)?.is_some_and(|record| self.dir.file(&id, record.kind).exists()) {
                // It was committed; only the rest was not cleared away.
                self.remove_staged(&id)?;
                continue;
            }
            slots.insert(id, Slot::Parked);
        }
        Ok(slots.len() as u64)
    }

    /// Figures from the index, after opening it. Gives how many files there are.
    pub fn load_figures(&self) -> Result<u64, StoreError> {
        let files = self.index.files(None, usize::MAX)?;
        let used = files.iter().map(|(_, record)| record.stored_bytes).sum();
        self.space.used_bytes.store(used, Relaxed);
        self.files.wind(files.iter().map(|(_, record)| record.used).max().unwrap_or(0));
        Ok(files.len() as u64)
    }
}
