//! The origin (L4): a folder for now. Content lies there under its own hash, so that whatever is read is checked.
//!
//! Layout, version 1: `velo-1/<first 2 hex>/<64 hex>`, each the plain bytes of one blob (files, packs and tree tables alike). A tree's table is
//! written after all that it names, so that a table that is there stands for a tree that is whole.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OnceCell;
use velo_object::{BlobId, ObjectId, ObjectKind, Tree};

use crate::node::lock;
use crate::velod::{Velod, VelodError};

/// Blobs that are moved at once.
const AT_ONCE: usize = 4;
/// Bytes that are read from a blob in one go.
const CHUNK_BYTES: u64 = 4 << 20;
/// The largest table of a tree that is read into memory, in bytes.
pub(crate) const MAX_TABLE_BYTES: u64 = 1 << 30;

/// Why the origin did not do it.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// Its URL is none that this version reads.
    #[error("the origin `{0}` cannot be used: write `file:///` and an existing folder")]
    Url(String),
    /// It failed.
    #[error("the origin: {0}")]
    Store(#[from] object_store::Error),
    /// velod failed.
    #[error(transparent)]
    Velod(#[from] VelodError),
    /// This node has not got all of it.
    #[error("{0} is not complete on this node: get it first")]
    Incomplete(BlobId),
    /// What was read is not what its id says.
    #[error("{0} was read from the store with another hash: run `velo verify`")]
    Mismatch(BlobId),
    /// Not a tree.
    #[error("{id} is no tree: {why}")]
    Tree {
        /// What was taken for one.
        id: BlobId,
        /// Why it is none.
        why: String,
    },
    /// A file or a pipe failed.
    #[error("moving {0}: {1}")]
    Io(BlobId, std::io::Error),
}

/// What was moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Blobs moved.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that were there already.
    pub present: u64,
}

type Flight = Arc<OnceCell<u64>>;

/// An origin.
#[derive(Debug)]
pub struct Origin {
    store: LocalFileSystem,
    /// What is being fetched; one fetch for all who ask.
    flights: Mutex<BTreeMap<BlobId, Flight>>,
}

fn place(blob: &BlobId) -> Path {
    let digits = blob.to_hex();
    Path::from_iter(["velo-1", &digits[..2], &digits])
}

impl Origin {
    /// The origin at a URL.
    ///
    /// # Errors
    /// [`OriginError::Url`].
    pub fn open(url: &str) -> Result<Self, OriginError> {
        let bad = || OriginError::Url(url.to_owned());
        let folder = url.strip_prefix("file://").filter(|path| path.starts_with('/')).ok_or_else(bad)?;
        let store = LocalFileSystem::new_with_prefix(PathBuf::from(folder)).map_err(|_| bad())?;
        Ok(Self { store: store.with_fsync(true), flights: Mutex::new(BTreeMap::new()) })
    }

    /// Whether it has a blob.
    ///
    /// # Errors
    /// [`OriginError::Store`].
    pub async fn has(&self, blob: &BlobId) -> Result<bool, OriginError> {
        match self.store.head(&place(blob)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether something is being read from it now.
    pub fn is_reading(&self) -> bool {
        !lock(&self.flights).is_empty()
    }

    /// Stores what this node has, with all that a tree names; what is there already is not written again. It is durable when this returns.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn put(&self, velod: &Velod, root: ObjectId) -> Result<Moved, OriginError> {
        let mut moved = Moved::default();
        if root.kind == ObjectKind::Tree {
            let parts = parts(root.blob, read(velod, root.blob, MAX_TABLE_BYTES).await?)?;
            let mut puts = futures_util::stream::iter(parts)
                .map(|part| self.put_blob(velod, part))
                .buffer_unordered(AT_ONCE);
            while let Some(put) = puts.try_next().await? {
                moved.add(put);
            }
        }
        moved.add(self.put_blob(velod, root.blob).await?);
        Ok(moved)
    }

    /// The bytes written; none where it was there.
    async fn put_blob(&self, velod: &Velod, blob: BlobId) -> Result<Option<u64>, OriginError> {
        let (file, offset, size, complete) = velod.open(blob, false).await?;
        if !complete {
            return Err(OriginError::Incomplete(blob));
        }
        let there = place(&blob);
        if matches!(self.store.head(&there).await, Ok(meta) if meta.size == size) {
            return Ok(None);
        }
        let file = Arc::new(std::fs::File::from(file));
        let mut upload = WriteMultipart::new(self.store.put_multipart(&there).await?);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        let copied = loop {
            if at == size {
                break Ok(());
            }
            let len = CHUNK_BYTES.min(size - at);
            let (file, hash) = (Arc::clone(&file), hasher);
            let read = tokio::task::spawn_blocking(move || {
                let mut hash = hash;
                let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
                file.read_exact_at(&mut bytes, offset + at)?;
                hash.update(&bytes);
                Ok::<_, std::io::Error>((bytes, hash))
            });
            match read.await.map_err(std::io::Error::other).and_then(|read| read) {
                Ok((bytes, hash)) => {
                    hasher = hash;
                    upload.wait_for_capacity(2).await?;
                    upload.put(Bytes::from(bytes));
                    at += len;
                }
                Err(error) => {
                    hasher = blake3::Hasher::new();
                    break Err(OriginError::Io(blob, error));
                }
            }
        };
        let verified = copied.and_then(|()| {
            let same = hasher.finalize().as_bytes() == blob.as_bytes();
            if same { Ok(()) } else { Err(OriginError::Mismatch(blob)) }
        });
        if let Err(error) = verified {
            upload.abort().await?;
            return Err(error);
        }
        upload.finish().await?;
        Ok(Some(size))
    }

    /// Reads a root into this node's store, with all that a tree names unless only its table is wanted. None where the origin has not got it.
    ///
    /// # Errors
    /// [`OriginError`].
    pub async fn fetch(
        &self,
        velod: &Velod,
        root: ObjectId,
        tables_only: bool,
    ) -> Result<Option<Moved>, OriginError> {
        let mut moved = Moved::default();
        if !self.fetch_blob(velod, root.blob, &mut moved).await? {
            return Ok(None);
        }
        if root.kind == ObjectKind::Tree && !tables_only {
            let parts = parts(root.blob, read(velod, root.blob, MAX_TABLE_BYTES).await?)?;
            let mut fetches = futures_util::stream::iter(parts)
                .map(|part| async move {
                    let mut moved = Moved::default();
                    self.fetch_blob(velod, part, &mut moved).await.map(|_| moved)
                })
                .buffer_unordered(AT_ONCE);
            while let Some(part) = fetches.try_next().await? {
                moved.blobs += part.blobs;
                moved.bytes += part.bytes;
                moved.present += part.present;
            }
        }
        Ok(Some(moved))
    }

    /// One blob; all who ask for it at one time share one read.
    async fn fetch_blob(&self, velod: &Velod, blob: BlobId, moved: &mut Moved) -> Result<bool, OriginError> {
        let here = velod.stat(vec![blob]).await?;
        if here.first().is_some_and(|stat| stat.as_ref().is_some_and(|stat| stat.complete)) {
            moved.present += 1;
            return Ok(true);
        }
        let flight = Arc::clone(lock(&self.flights).entry(blob).or_default());
        let mut mine = false;
        let fetched = flight
            .get_or_try_init(|| {
                mine = true;
                self.read_blob(velod, blob)
            })
            .await
            .copied();
        lock(&self.flights).remove(&blob);
        match fetched {
            Ok(bytes) => {
                moved.blobs += u64::from(mine);
                moved.bytes += if mine { bytes } else { 0 };
                Ok(true)
            }
            Err(OriginError::Store(object_store::Error::NotFound { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn read_blob(&self, velod: &Velod, blob: BlobId) -> Result<u64, OriginError> {
        let io = |error| OriginError::Io(blob, error);
        let object = self.store.get(&place(&blob)).await?;
        let (mut writer, reader) = tokio::net::unix::pipe::pipe().map_err(io)?;
        let reader: OwnedFd = reader.into_blocking_fd().map_err(io)?;
        let copying = async move {
            let mut chunks = object.into_stream();
            while let Some(chunk) = chunks.try_next().await? {
                if writer.write_all(&chunk).await.is_err() {
                    break; // velod reads no more: it says why
                }
            }
            Ok::<_, OriginError>(())
        };
        let (ingested, copied) = tokio::join!(velod.ingest(blob, reader), copying);
        let ingested = ingested?;
        copied?;
        Ok(ingested.size_bytes)
    }
}

impl Moved {
    fn add(&mut self, put: Option<u64>) {
        match put {
            Some(bytes) => {
                self.blobs += 1;
                self.bytes += bytes;
            }
            None => self.present += 1,
        }
    }
}

/// The blobs that a tree names.
pub(crate) fn parts(id: BlobId, table: Vec<u8>) -> Result<Vec<BlobId>, OriginError> {
    let tree = Tree::parse(table).map_err(|error| OriginError::Tree { id, why: error.to_string() })?;
    Ok(tree.packs().chain(tree.blobs()).map(|named| named.blob).collect())
}

/// Reads a whole, complete blob of this node into memory.
pub(crate) async fn read(velod: &Velod, blob: BlobId, most_bytes: u64) -> Result<Vec<u8>, OriginError> {
    let (file, offset, size, complete) = velod.open(blob, false).await?;
    if !complete {
        return Err(OriginError::Incomplete(blob));
    }
    if size > most_bytes {
        return Err(OriginError::Tree { id: blob, why: format!("it has {size} bytes") });
    }
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        std::fs::File::from(file).read_exact_at(&mut bytes, offset)?;
        Ok::<_, std::io::Error>(bytes)
    });
    read.await
        .map_err(std::io::Error::other)
        .and_then(|read| read)
        .map_err(|error| OriginError::Io(blob, error))
}
