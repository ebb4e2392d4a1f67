//! Durable, then visible: how arrived files become blobs.
//!
//! Order, so that a crash at any instruction leaves either what was staged or a complete blob:
//!
//! 1. The bytes are flushed, and the outboard.
//! 2. The file gets its name under `blobs/` or `packs/`.
//! 3. The directory is flushed.
//! 4. The index is told.
//! 5. A pin, where there is one, is written into the book.
//!
//! Eviction waits meanwhile. The outboard beside the file is checked whenever it is read, and made anew from the bytes
//! where it is damaged: that takes long, so it is flushed though nothing would be lost with it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use velo_object::pack::{PACK_TRAILER_BYTES, PackError};
use velo_object::{BlobId, ObjectId, PIECE_BYTES, PackEntry, PackIndex};

use crate::copy::on_all_cores;
use crate::dir::{FileKind, Part, remove_file, sync_dir};
use crate::error::At;
use crate::index::{FileRecord, Indexed};
use crate::store::{Inner, Store, lock};
use crate::{Durability, StoreError};

/// From so many files on, one flush of the whole file system is cheaper than one of each.
const FLUSH_ALL_FROM: usize = 64;

/// A whole, verified content in a file of `staging/`.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub id: BlobId,
    pub kind: FileKind,
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Encoded; for more than one piece.
    pub outboard: Option<Vec<u8>>,
    /// Of a pack, each verified.
    pub contents: Vec<PackEntry>,
}

/// A root that is pinned with what arrives.
#[derive(Debug)]
pub(crate) struct Pinned<'a> {
    pub root: ObjectId,
    /// What must be here already.
    pub known: &'a [BlobId],
}

impl Inner {
    /// Makes arrivals durable, then visible, all of them; and pins a root, if there is one.
    pub fn publish(&self, arrivals: &[Arrival], pinned: Option<Pinned<'_>>) -> Result<(), StoreError> {
        self.writable()?;
        if arrivals.is_empty() && pinned.is_none() {
            return Ok(());
        }
        for arrival in arrivals {
            if let Some(bytes) = &arrival.outboard {
                let path = self.dir.outboard(&arrival.id, arrival.kind);
                fs::write(&path, bytes).map_err(|error| self.space.io(error, &path, bytes.len() as u64))?;
            }
            fs::set_permissions(&arrival.path, fs::Permissions::from_mode(0o444)).at(&arrival.path)?;
        }
        self.flush(arrivals)?;

        let changing = lock(&self.changing);
        self.writable()?;
        if let Some(Pinned { root, known }) = &pinned {
            self.still_here(*root, known)?;
        }
        let mut added = Vec::with_capacity(arrivals.len());
        let named = self.name(arrivals, &mut added).and_then(|()| self.index.add(&added));
        if let Err(error) = named {
            // As it was, so that it can be tried again.
            for arrival in arrivals.iter().filter(|arrival| added.iter().any(|done| done.id == arrival.id)) {
                let _ = fs::rename(self.dir.file(&arrival.id, arrival.kind), &arrival.path);
            }
            return Err(self.no_room(error));
        }
        let stored: u64 = added.iter().map(|indexed| indexed.record.stored_bytes).sum();
        self.space.used_bytes.fetch_add(stored, Relaxed);
        self.pinned_arrived(&added)?;
        if let Some(Err(error)) = pinned.map(|pinned| self.pin(pinned.root)) {
            self.unpublish(&added)?;
            return Err(self.no_room(error));
        }
        self.shared.counts.committed.fetch_add(added.len() as u64, Relaxed);
        drop(changing);
        for arrival in
            arrivals.iter().filter(|arrival| arrival.path != self.dir.staged(&arrival.id, Part::Data))
        {
            if let Err(error) = self.supersede(&arrival.id) {
                tracing::warn!(blob = %arrival.id, %error, "it is here; what is left of a transfer stays until the next start");
            }
        }
        self.shared.arrivals.announce();
        Ok(())
    }

    /// Holds keep out eviction and removal, but what is found to be damaged goes all the same.
    fn still_here(&self, root: ObjectId, known: &[BlobId]) -> Result<(), StoreError> {
        let mut missing = Vec::new();
        for id in known {
            if self.locate(id)?.is_none() {
                missing.push(*id);
            }
        }
        match missing.first() {
            Some(first) => Err(StoreError::Missing { root, first: *first, count: missing.len() as u64 }),
            None => Ok(()),
        }
    }

    /// Gives arrivals their final names, durably; `added` says for which that was done.
    fn name(&self, arrivals: &[Arrival], added: &mut Vec<Indexed>) -> Result<(), StoreError> {
        let mut folders = Vec::new();
        for arrival in arrivals {
            if let Some(record) = self.index.file(&arrival.id)? {
                remove_file(&arrival.path)?;
                if (record.kind, arrival.kind) == (FileKind::Loose, FileKind::Pack) {
                    self.become_pack(arrival.id, record, arrival.contents.clone())?;
                }
                continue;
            }
            let path = self.dir.file(&arrival.id, arrival.kind);
            let stored_bytes = fs::metadata(&arrival.path).at(&arrival.path)?.blocks() * 512;
            fs::rename(&arrival.path, &path).at(&path)?;
            folders.extend(path.parent().map(Path::to_owned));
            let record = FileRecord {
                kind: arrival.kind,
                size_bytes: arrival.size_bytes,
                stored_bytes,
                used: self.files.tick(),
            };
            added.push(Indexed { id: arrival.id, record, contents: arrival.contents.clone() });
        }
        if self.durability == Durability::Fsync {
            folders.sort_unstable();
            folders.dedup();
            if folders.len() >= FLUSH_ALL_FROM {
                self.flush_all()?;
            } else {
                folders.iter().try_for_each(|folder| sync_dir(folder))?;
            }
        }
        Ok(())
    }

    /// What came as any blob is a pack: from now on its contents are found. The caller holds `changing`. The file has
    /// both names meanwhile, so that whoever is about to open it finds it, and nothing is lost where the index fails.
    fn become_pack(
        &self,
        id: BlobId,
        record: FileRecord,
        contents: Vec<PackEntry>,
    ) -> Result<(), StoreError> {
        let kinds = [FileKind::Loose, FileKind::Pack];
        let file = kinds.map(|kind| self.dir.file(&id, kind));
        let outboard = kinds.map(|kind| self.dir.outboard(&id, kind));
        for [from, to] in [&outboard, &file] {
            remove_file(to)?;
            match fs::hard_link(from, to) {
                // It is made anew when it is needed.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound && from == &outboard[0] => {}
                result => result.at(to)?,
            }
        }
        let folder = file[1].parent().filter(|_| self.durability == Durability::Fsync);
        let added = [Indexed { id, record: FileRecord { kind: FileKind::Pack, ..record }, contents }];
        if let Err(error) = folder.map_or(Ok(()), sync_dir).and_then(|()| self.index.add(&added)) {
            for [_, to] in [&outboard, &file] {
                let _ = remove_file(to);
            }
            return Err(self.no_room(error));
        }
        self.roots_arrived(&added)?;
        [&file[0], &outboard[0]].into_iter().try_for_each(|path| remove_file(path))
    }

    /// Where a database had no room: the error that says so with the sizes.
    fn no_room(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Database { error: heed::Error::Io(io), .. }
                if io.kind() == std::io::ErrorKind::StorageFull =>
            {
                self.space.full(0)
            }
            other => other,
        }
    }

    fn flush(&self, arrivals: &[Arrival]) -> Result<(), StoreError> {
        if self.durability == Durability::Process {
            return Ok(());
        }
        if arrivals.len() >= FLUSH_ALL_FROM {
            return self.flush_all();
        }
        let outboards = arrivals.iter().filter(|arrival| arrival.outboard.is_some());
        let outboards = outboards.map(|arrival| self.dir.outboard(&arrival.id, arrival.kind));
        let paths: Vec<PathBuf> =
            arrivals.iter().map(|arrival| arrival.path.clone()).chain(outboards).collect();
        let flush = |_: &mut [u8], index: u64| {
            let path = &paths[index as usize];
            File::open(path).and_then(|file| file.sync_all()).map_err(|error| self.space.io(error, path, 0))
        };
        on_all_cores(paths.len() as u64, 8, &self.buffers, &flush).map(drop)
    }

    /// Flushes the file system that the store lies on.
    pub fn flush_all(&self) -> Result<(), StoreError> {
        let staging = self.dir.folder("staging");
        let dir = File::open(&staging).at(&staging)?;
        rustix::fs::syncfs(&dir).map_err(|error| self.space.io(error.into(), &staging, 0))
    }

    /// Stops what was complete from being here: forgets it and deletes its file. The caller holds `changing`.
    pub fn unpublish(&self, gone: &[Indexed]) -> Result<u64, StoreError> {
        self.index.remove(gone)?;
        self.delete_files(gone)
    }

    /// Deletes files that the index has forgotten; gives their bytes. The caller holds `changing`.
    pub fn delete_files(&self, gone: &[Indexed]) -> Result<u64, StoreError> {
        let mut freed = 0;
        for Indexed { id, record, .. } in gone {
            self.space.used_bytes.fetch_sub(record.stored_bytes, Relaxed);
            if lock(&self.pins).protects(id) {
                self.space.pinned_bytes.fetch_sub(record.stored_bytes, Relaxed);
            }
            freed += record.stored_bytes;
            remove_file(&self.dir.file(id, record.kind))?;
            // Only now: before, somebody could have opened it again.
            self.files.close(id);
            remove_file(&self.dir.outboard(id, record.kind))?;
        }
        Ok(freed)
    }

    /// An entry of the index with the contents of the pack, if it is one that can be read.
    pub fn indexed(&self, id: BlobId, record: FileRecord) -> Indexed {
        let contents = match record.kind {
            FileKind::Loose => Vec::new(),
            FileKind::Pack => File::open(self.dir.file(&id, record.kind))
                .ok()
                .and_then(|file| pack_index(&id, &file, record.size_bytes).ok())
                .unwrap_or_default(),
        };
        Indexed { id, record, contents }
    }
}

impl Store {
    /// Whether a blob is here in a file of its own, and not only in a pack.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn has_file(&self, id: &BlobId) -> Result<bool, StoreError> {
        Ok(self.0.index.file(id)?.is_some())
    }

    /// Whether a pack is here, as one: its contents are found.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn has_pack(&self, id: &BlobId) -> Result<bool, StoreError> {
        Ok(self.0.index.file(id)?.is_some_and(|record| record.kind == FileKind::Pack))
    }

    /// Has the contents of a pack found that may be here as any blob. False where it is not here.
    ///
    /// # Errors
    /// [`StoreError::Pack`] where it is none, [`StoreError::Database`], [`StoreError::Io`].
    pub fn index_pack(&self, id: &BlobId) -> Result<bool, StoreError> {
        let inner = &self.0;
        let Some(record) = inner.index.file(id)? else { return Ok(false) };
        if record.kind == FileKind::Pack {
            return Ok(true);
        }
        inner.writable()?;
        let path = inner.dir.file(id, record.kind);
        let contents = check_pack(inner, id, &File::open(&path).at(&path)?, record.size_bytes)?;
        let _changing = lock(&inner.changing);
        match inner.index.file(id)? {
            Some(record) if record.kind == FileKind::Loose => inner.become_pack(*id, record, contents)?,
            Some(_) => {}
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// The checked index of a pack file.
pub(crate) fn pack_index(id: &BlobId, file: &File, size_bytes: u64) -> Result<Vec<PackEntry>, StoreError> {
    let not_a_pack = |error| StoreError::Pack { pack: *id, error };
    let mut trailer = [0; PACK_TRAILER_BYTES as usize];
    let at =
        size_bytes.checked_sub(PACK_TRAILER_BYTES).ok_or_else(|| not_a_pack(PackError::Size(size_bytes)))?;
    file.read_exact_at(&mut trailer, at).at(id.to_string())?;
    let range = PackIndex::range(size_bytes, &trailer).map_err(not_a_pack)?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut bytes, range.start).at(id.to_string())?;
    Ok(PackIndex::parse(size_bytes, range, &bytes).map_err(not_a_pack)?.into_entries())
}

/// The index of a received pack, every content hashed.
pub(crate) fn check_pack(
    inner: &Inner,
    id: &BlobId,
    file: &File,
    size_bytes: u64,
) -> Result<Vec<PackEntry>, StoreError> {
    let entries = pack_index(id, file, size_bytes)?;
    // They lie one behind the other: as many as fit a buffer are read and hashed together.
    let mut groups = Vec::new();
    let mut rest = &entries[..];
    while let Some(first) = rest.first() {
        let fits = |entry: &&PackEntry| u64::from(entry.end_bytes() - first.offset_bytes) <= PIECE_BYTES;
        let (group, others) = rest.split_at(rest.iter().take_while(fits).count());
        groups.push(group);
        rest = others;
    }
    let check = |buffer: &mut [u8], index: u64| {
        let group = groups[index as usize];
        let start = group[0].offset_bytes;
        let bytes = &mut buffer[..(group[group.len() - 1].end_bytes() - start) as usize];
        file.read_exact_at(bytes, start.into()).at(id.to_string())?;
        let content = |entry: &PackEntry| {
            &bytes[(entry.offset_bytes - start) as usize..(entry.end_bytes() - start) as usize]
        };
        let found = BlobId::of_many(&group.iter().map(content).collect::<Vec<_>>());
        match group.iter().zip(found).find(|(entry, found)| entry.blob != *found) {
            Some((entry, _)) => Err(StoreError::Pack { pack: *id, error: PackError::Mismatch(entry.blob) }),
            None => Ok(()),
        }
    };
    on_all_cores(groups.len() as u64, inner.threads, &inner.buffers, &check)?;
    Ok(entries)
}
