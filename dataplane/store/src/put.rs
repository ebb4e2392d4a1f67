//! Puts: content from this host goes in, and becomes visible and pinned all at once.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_object::{
    BlobId, ObjectId, ObjectKind, Outboard, PACKED_FILE_BYTES, PackBuilder, PackEntry, PackStep, Tree,
};

use crate::copy::{CopyError, Hashed, copy_and_hash};
use crate::dir::{FileKind, remove_file};
use crate::error::At;
use crate::publish::Arrival;
use crate::space::Reservation;
use crate::spool::{Spool, Spooled, create};
use crate::store::{Inner, Store};
use crate::{Durability, Ingested, StoreError};

/// Bytes after which a flush is begun while the rest is still being copied.
const FLUSH_BYTES: u64 = 64 << 20;

/// A put that has begun: what it ingests is not visible, and not evicted, before it is committed. Dropped without a
/// commit, it leaves nothing.
#[derive(Debug)]
pub struct Put {
    inner: Arc<Inner>,
    arrivals: Vec<Arrival>,
    reservation: Reservation,
    /// Blobs that the store had already; kept from eviction meanwhile.
    held: Vec<BlobId>,
    packs: Option<PackBuilder>,
    spool: Option<Spool>,
    made_packs: Vec<Ingested>,
    small: std::collections::HashSet<BlobId>,
    large: std::collections::HashSet<BlobId>,
}

impl Store {
    /// Begins a put.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn begin_put(&self) -> Result<Put, StoreError> {
        Ok(Put {
            inner: self.0.clone(),
            arrivals: Vec::new(),
            reservation: self.0.reserve(0)?,
            held: Vec::new(),
            packs: Some(PackBuilder::new()),
            spool: None,
            made_packs: Vec::new(),
            small: Default::default(),
            large: Default::default(),
        })
    }

    /// Takes a content that should be `id` from a stream, as cache: it is not pinned, and a blob of its own whatever
    /// its size. Other content is refused and leaves nothing.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn ingest_expected(&self, reader: &mut dyn Read, id: BlobId) -> Result<Ingested, StoreError> {
        let inner = &self.0;
        if let Some(record) = inner.index.file(&id)? {
            return Ok(Ingested { blob: id, size_bytes: record.size_bytes, known: true });
        }
        let mut spool = Spool::new(inner)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => spool.append(inner, &buffer[..read])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).at("the source"),
            }
        }
        let spooled = spool.finish(inner)?;
        let found = spooled.hashed.id;
        if found != id {
            remove_file(&spooled.path)?;
            return Err(StoreError::Mismatch { expected: id, found });
        }
        let size_bytes = spooled.size_bytes;
        let path = spooled.path.clone();
        let arrival = arrival(spooled.path, spooled.hashed, size_bytes, FileKind::Loose, Vec::new());
        inner.publish(&[arrival], None).inspect_err(|_| drop(remove_file(&path)))?;
        inner.shared.counts.ingested_bytes.fetch_add(size_bytes, Relaxed);
        Ok(Ingested { blob: id, size_bytes, known: false })
    }
}

fn arrival(
    path: PathBuf,
    hashed: Hashed,
    size_bytes: u64,
    kind: FileKind,
    contents: Vec<PackEntry>,
) -> Arrival {
    let outboard = hashed.outboard.as_ref().map(Outboard::encode);
    Arrival { id: hashed.id, kind, path, size_bytes, outboard, contents }
}

impl Put {
    /// Ingests a regular file from its beginning, wherever its position is. To be called in the order of the tree:
    /// what has at most [`PACKED_FILE_BYTES`] goes to the packs.
    ///
    /// # Errors
    /// [`StoreError::NotAFile`], [`StoreError::SourceChanged`], [`StoreError::Full`], [`StoreError::Io`]. The put can
    /// go on afterwards, without that file.
    pub fn file(&mut self, file: &File) -> Result<Ingested, StoreError> {
        let metadata = file.metadata().at("the source")?;
        if !metadata.is_file() {
            return Err(StoreError::NotAFile);
        }
        let size_bytes = metadata.len();
        if size_bytes > PACKED_FILE_BYTES {
            let held_bytes = size_bytes.min(metadata.blocks() * 512 + (1 << 20));
            return self.large(file, size_bytes, held_bytes);
        }
        let mut content = vec![0; size_bytes as usize];
        let changed = |after_bytes| StoreError::SourceChanged { before_bytes: size_bytes, after_bytes };
        if let Err(error) = file.read_exact_at(&mut content, 0) {
            return match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Err(changed(file.metadata().at("the source")?.len())),
                _ => Err(error).at("the source"),
            };
        }
        let mut more = [0];
        if file.read_at(&mut more, size_bytes).at("the source")? > 0 {
            return Err(changed(file.metadata().at("the source")?.len()));
        }
        self.small(&content)
    }

    /// Ingests several files, in the order of the tree.
    ///
    /// # Errors
    /// As [`Put::file`], for the first that fails.
    pub fn files(&mut self, files: &[File]) -> Result<Vec<Ingested>, StoreError> {
        files.iter().map(|file| self.file(file)).collect()
    }

    /// Ingests a small content (the target of a symbolic link, for instance), in the order of the tree.
    ///
    /// # Errors
    /// [`StoreError::NotSmall`], [`StoreError::Full`], [`StoreError::Io`].
    pub fn small(&mut self, content: &[u8]) -> Result<Ingested, StoreError> {
        let size_bytes = content.len() as u64;
        if size_bytes > PACKED_FILE_BYTES {
            return Err(StoreError::NotSmall(size_bytes));
        }
        let blob = BlobId::of(content);
        let Self { inner, packs, spool, .. } = self;
        let Some(builder) = packs.as_mut() else { return Err(StoreError::Ended(blob)) };
        let mut closed = Vec::new();
        let fresh = builder.push(blob, content, |step| pack_step(inner, spool, &mut closed, step))?;
        self.small.insert(blob);
        for (spooled, entries) in closed {
            self.take_pack(spooled, entries)?;
        }
        inner_count(&self.inner, size_bytes);
        Ok(Ingested { blob, size_bytes, known: !fresh })
    }

    /// Ends the packs and gives them in order; the same again when called again. No small content may follow.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Io`].
    pub fn finish_packs(&mut self) -> Result<Vec<Ingested>, StoreError> {
        if let Some(builder) = self.packs.take() {
            let mut closed = Vec::new();
            let Self { inner, spool, .. } = self;
            builder.finish(|step| pack_step(inner, spool, &mut closed, step))?;
            for (spooled, entries) in closed {
                self.take_pack(spooled, entries)?;
            }
        }
        Ok(self.made_packs.clone())
    }

    /// Makes all of it durable, visible and pinned, as one unit under `root`: a blob of this put (or of the store), or
    /// a tree, whose `table` is given unless it is here already. Everything that the tree names must be here.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Mismatch`] where `table` is not `root`, [`StoreError::Tree`],
    /// [`StoreError::Full`], [`StoreError::Io`]. Nothing is visible then.
    pub fn commit(mut self, root: ObjectId, table: Option<&[u8]>) -> Result<(), StoreError> {
        self.finish_packs()?;
        if root.kind == ObjectKind::Tree {
            self.check_tree(root, table)?;
        } else if !self.has(&root.blob)? {
            return Err(StoreError::Missing { root, first: root.blob, count: 1 });
        }
        self.inner.clone().publish(&self.arrivals, Some(root))?;
        self.arrivals.clear();
        Ok(())
    }

    fn check_tree(&mut self, root: ObjectId, table: Option<&[u8]>) -> Result<(), StoreError> {
        let inner = self.inner.clone();
        let missing = {
            let kept;
            let bytes = match table {
                Some(bytes) => {
                    let found = BlobId::of(bytes);
                    if found != root.blob {
                        return Err(StoreError::Mismatch { expected: root.blob, found });
                    }
                    bytes
                }
                None => {
                    kept = inner.tree(&root.blob)?.into_bytes();
                    &kept[..]
                }
            };
            let tree = Tree::parse(bytes).map_err(|error| StoreError::Tree { tree: root.blob, error })?;
            let mut missing = Vec::new();
            for named in tree.packs().chain(tree.blobs()) {
                if !self.has(&named.blob)? {
                    missing.push(named.blob);
                }
            }
            missing
        };
        if let Some(first) = missing.first() {
            return Err(StoreError::Missing { root, first: *first, count: missing.len() as u64 });
        }
        let Some(bytes) = table else { return Ok(()) };
        if inner.index.file(&root.blob)?.is_none() && !self.large.contains(&root.blob) {
            let mut spool = Spool::new(&inner)?;
            spool.append(&inner, bytes)?;
            let spooled = spool.finish(&inner)?;
            self.take(spooled, FileKind::Loose, Vec::new())?;
        }
        Ok(())
    }

    fn has(&self, id: &BlobId) -> Result<bool, StoreError> {
        let here = self.large.contains(id)
            || self.small.contains(id)
            || self.made_packs.iter().any(|pack| pack.blob == *id);
        Ok(here || self.inner.locate(id)?.is_some())
    }

    fn large(&mut self, file: &File, size_bytes: u64, held_bytes: u64) -> Result<Ingested, StoreError> {
        let inner = self.inner.clone();
        let reservation = inner.reserve(held_bytes)?;
        let (path, target) = create(&inner)?;
        let copied = copy_flushing(&inner, file, &target, size_bytes, &reservation);
        let after_bytes = file.metadata().at("the source")?.len();
        let hashed = match copied {
            Ok(hashed) if after_bytes == size_bytes => hashed,
            Ok(_) | Err(CopyError::Short) => {
                remove_file(&path)?;
                return Err(StoreError::SourceChanged { before_bytes: size_bytes, after_bytes });
            }
            Err(CopyError::Read(error)) => {
                remove_file(&path)?;
                return Err(error).at("the source");
            }
            Err(CopyError::Write(error)) => {
                drop(remove_file(&path));
                return Err(inner.space.io(error, &path, held_bytes));
            }
        };
        inner_count(&inner, size_bytes);
        self.take(Spooled { path, hashed, size_bytes, reservation }, FileKind::Loose, Vec::new())
    }

    fn take_pack(&mut self, spooled: Spooled, entries: Vec<PackEntry>) -> Result<(), StoreError> {
        let pack = self.take(spooled, FileKind::Pack, entries)?;
        self.made_packs.push(pack);
        Ok(())
    }

    /// Keeps what was written until the commit, or drops it where the store has it already.
    fn take(
        &mut self,
        spooled: Spooled,
        kind: FileKind,
        contents: Vec<PackEntry>,
    ) -> Result<Ingested, StoreError> {
        let Spooled { path, hashed, size_bytes, reservation } = spooled;
        let blob = hashed.id;
        // Held first: from then on it is not evicted.
        self.inner.files.hold(blob);
        self.held.push(blob);
        let known = self.inner.index.file(&blob)?.is_some() || self.large.contains(&blob);
        if known {
            remove_file(&path)?;
        } else {
            self.arrivals.push(arrival(path, hashed, size_bytes, kind, contents));
            self.reservation.join(reservation);
        }
        self.large.insert(blob);
        Ok(Ingested { blob, size_bytes, known })
    }
}

fn inner_count(inner: &Inner, bytes: u64) {
    inner.shared.counts.ingested_bytes.fetch_add(bytes, Relaxed);
}

fn pack_step(
    inner: &Inner,
    spool: &mut Option<Spool>,
    closed: &mut Vec<(Spooled, Vec<PackEntry>)>,
    step: PackStep<'_>,
) -> Result<(), StoreError> {
    match step {
        PackStep::Append(bytes) => {
            let open = match spool {
                Some(open) => open,
                None => spool.insert(Spool::new(inner)?),
            };
            open.append(inner, bytes)
        }
        PackStep::Close(entries) => {
            if let Some(open) = spool.take() {
                closed.push((open.finish(inner)?, entries));
            }
            Ok(())
        }
    }
}

/// Copies and hashes; a large file is flushed while the rest of it is still being copied, so that the disk is busy
/// from the beginning.
fn copy_flushing(
    inner: &Inner,
    source: &File,
    target: &File,
    size_bytes: u64,
    reservation: &Reservation,
) -> Result<Hashed, CopyError> {
    let copied = AtomicU64::new(0);
    let written = |bytes: u64| {
        copied.fetch_add(bytes, Relaxed);
        reservation.written(bytes);
    };
    let copy = || copy_and_hash(source, target, size_bytes, inner.threads, &inner.buffers, &written);
    if inner.durability == Durability::Process || size_bytes < 2 * FLUSH_BYTES {
        return copy();
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            let mut flushed = 0;
            while !ended.load(Relaxed) {
                let now = copied.load(Relaxed);
                if now - flushed >= FLUSH_BYTES {
                    // An error is found again by the flush before the commit.
                    let _ = target.sync_data();
                    flushed = now;
                } else {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        });
        let result = copy();
        ended.store(true, Relaxed);
        flusher.thread().unpark();
        result
    })
}

impl Drop for Put {
    fn drop(&mut self) {
        for arrival in &self.arrivals {
            let _ = fs::remove_file(&arrival.path);
        }
        for id in &self.held {
            self.inner.files.release(id);
        }
    }
}
