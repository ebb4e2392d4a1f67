//! Puts: content from this host goes in, and becomes visible and pinned all at once.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use velo_object::{
    BlobId, ObjectId, ObjectKind, Outboard, PACKED_FILE_BYTES, PackBuilder, PackEntry, PackStep, PageBuffer,
    Tree,
};

use crate::copy::{Hashed, on_all_cores};
use crate::dir::FileKind;
use crate::error::At;
use crate::ingest::{ReadIn, SIDE_BY_SIDE_BYTES, TOGETHER, read_all_in, read_in, size_of};
use crate::publish::{Arrival, Pinned};
use crate::space::Reservation;
use crate::spool::{Spool, Spooled};
use crate::store::{Inner, Store};
use crate::{Ingested, StoreError};

/// A put that has begun: what it ingests is not visible, and not evicted, before it is committed. Dropped without a
/// commit, it leaves nothing.
#[derive(Debug)]
pub struct Put {
    inner: Arc<Inner>,
    arrivals: Vec<Arrival>,
    reservation: Reservation,
    /// What arrives and what the store had already; kept from eviction meanwhile.
    held: HashSet<BlobId>,
    /// Of these, what the store had.
    known: HashSet<BlobId>,
    packs: Option<PackBuilder>,
    spool: Option<Spool>,
    made_packs: Vec<Ingested>,
    small: HashSet<BlobId>,
    large: HashSet<BlobId>,
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
            held: HashSet::new(),
            known: HashSet::new(),
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
        let mut buffer = PageBuffer::new(256 << 10);
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
            return Err(StoreError::Mismatch { expected: id, found });
        }
        let size_bytes = spooled.size_bytes;
        let path = spooled.scratch.path().to_owned();
        let arrival = arrival(path, spooled.hashed, size_bytes, FileKind::Loose, Vec::new());
        inner.publish(&[arrival], None)?;
        inner.count_ingested(size_bytes);
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
        let size_bytes = size_of(file)?;
        let read = read_in(&self.inner, file, size_bytes, self.inner.threads)?;
        self.take_read(read)
    }

    /// Ingests several files, in the order of the tree: as [`Put::file`] for each, but on all cores.
    ///
    /// # Errors
    /// As [`Put::file`], for one that fails. Which of the others were ingested is not said.
    pub fn files(&mut self, files: &[File]) -> Result<Vec<Ingested>, StoreError> {
        let inner = self.inner.clone();
        let sizes = files.iter().map(size_of).collect::<Result<Vec<u64>, _>>()?;
        let mut ingested = Vec::with_capacity(files.len());
        let mut at = 0;
        while at < files.len() {
            // A large file has all cores for itself; smaller ones are read side by side.
            let run = sizes[at..].iter().take_while(|size| **size <= SIDE_BY_SIDE_BYTES).count();
            if run == 0 {
                ingested.push(self.file(&files[at])?);
                at += 1;
                continue;
            }
            let together = run.div_ceil(inner.threads).min(TOGETHER);
            let groups: Vec<_> =
                files[at..at + run].chunks(together).zip(sizes[at..at + run].chunks(together)).collect();
            let read = |_: &mut [u8], index: u64| {
                let (files, sizes) = groups[index as usize];
                read_all_in(&inner, files, sizes)
            };
            let mut all = on_all_cores(groups.len() as u64, inner.threads, &inner.buffers, &read)?;
            all.sort_unstable_by_key(|(index, _)| *index);
            for read in all.into_iter().flat_map(|(_, group)| group) {
                ingested.push(self.take_read(read)?);
            }
            at += run;
        }
        Ok(ingested)
    }

    fn take_read(&mut self, read: ReadIn) -> Result<Ingested, StoreError> {
        match read {
            ReadIn::Small(blob, content) => self.lay(blob, &content),
            ReadIn::Large(spooled) => {
                self.inner.count_ingested(spooled.size_bytes);
                self.take(spooled, FileKind::Loose, Vec::new())
            }
        }
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
        self.lay(BlobId::of(content), content)
    }

    /// Lays a small content whose id is known.
    fn lay(&mut self, blob: BlobId, content: &[u8]) -> Result<Ingested, StoreError> {
        let size_bytes = content.len() as u64;
        let Self { inner, packs, spool, .. } = self;
        let Some(builder) = packs.as_mut() else { return Err(StoreError::Ended(blob)) };
        let mut closed = Vec::new();
        let fresh = builder.push(blob, content, |step| pack_step(inner, spool, &mut closed, step))?;
        self.small.insert(blob);
        for (spooled, entries) in closed {
            self.take_pack(spooled, entries)?;
        }
        self.inner.count_ingested(size_bytes);
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
        let known: Vec<BlobId> = self.known.iter().copied().collect();
        self.inner.publish(&self.arrivals, Some(Pinned { root, known: &known }))?;
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
                    if !self.has(&root.blob)? {
                        return Err(StoreError::NotFound(root.blob));
                    }
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
        self.hold(root.blob);
        if inner.index.file(&root.blob)?.is_some() {
            self.known.insert(root.blob);
        } else if !self.large.contains(&root.blob) {
            let mut spool = Spool::new(&inner)?;
            spool.append(&inner, bytes)?;
            let spooled = spool.finish(&inner)?;
            self.take(spooled, FileKind::Loose, Vec::new())?;
        }
        Ok(())
    }

    /// Whether this put or the store has it; it then stays until the end of the put.
    fn has(&mut self, id: &BlobId) -> Result<bool, StoreError> {
        let here = self.large.contains(id)
            || self.small.contains(id)
            || self.made_packs.iter().any(|pack| pack.blob == *id);
        Ok(here || self.has_stored(id)?)
    }

    /// Whether the store has it, as a file or in one that is a pack. The file is held before it is believed to be
    /// here: only from then on it is not evicted.
    fn has_stored(&mut self, id: &BlobId) -> Result<bool, StoreError> {
        while let Some(located) = self.inner.locate(id)? {
            if !self.hold(located.file) {
                self.known.insert(*id);
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// False where it was held already.
    fn hold(&mut self, file: BlobId) -> bool {
        let fresh = self.held.insert(file);
        if fresh {
            self.inner.files.hold(file);
        }
        fresh
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
        let Spooled { scratch, hashed, size_bytes, reservation } = spooled;
        let blob = hashed.id;
        // Held first: from then on it is not evicted.
        self.hold(blob);
        // As any blob it is not enough for a pack: its contents would not be found.
        let found = self.inner.index.file(&blob)?;
        let stored = found.is_some_and(|record| kind == FileKind::Loose || record.kind == FileKind::Pack);
        let pending = self.arrivals.iter_mut().find(|arrival| arrival.id == blob);
        if let (FileKind::Pack, Some(pending)) = (kind, pending) {
            // A file with these bytes was put as any blob.
            (pending.kind, pending.contents) = (kind, contents.clone());
        }
        let known = stored || self.large.contains(&blob);
        if stored {
            self.known.insert(blob);
        }
        if !known {
            self.arrivals.push(arrival(scratch.keep(), hashed, size_bytes, kind, contents));
            self.reservation.join(reservation);
        }
        self.large.insert(blob);
        Ok(Ingested { blob, size_bytes, known })
    }
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
