//! The origin (L4): a folder for now. Content lies there under its own hash, so that whatever is read is checked.
//!
//! Layout, version 1: `velo-1/<first 2 hex>/<64 hex>`, each the plain bytes of one blob (files, packs and tree tables alike). A tree's table is
//! written after all that it names, so that a table that is there stands for a tree that is whole.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, WriteMultipart};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{OnceCell, Semaphore};
use velo_object::{BlobId, ObjectId, ObjectKind, Tree};

use crate::node::lock;
use crate::velod::{Velod, VelodError};

/// Blobs that are moved at once for one who asks.
const AT_ONCE: usize = 4;
/// Blobs that are read at once for all.
const READS: usize = 16;
/// How long a read may stand still.
const STALLED: Duration = Duration::from_secs(10);
/// How long the origin is not asked again for a blob that it did not give; twice as long after every failure that follows.
const FIRST_REFUSAL: Duration = Duration::from_secs(5);
/// The longest of these.
const LONGEST_REFUSAL: Duration = Duration::from_secs(300);
/// How many of them are remembered.
const MOST_REFUSALS: usize = 4096;
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
    /// It has not got it.
    #[error("the origin has no {0}")]
    Absent(BlobId),
    /// It gives no more.
    #[error("the origin gives no more of {0}: nothing came for {secs} s", secs = STALLED.as_secs())]
    Stalled(BlobId),
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

/// What came of reading several blobs.
#[derive(Debug, Default)]
pub struct Fetched {
    /// What was read.
    pub moved: Moved,
    /// What was not, and why.
    pub failed: Vec<(BlobId, OriginError)>,
}

/// One read, which all share who ask for its blob meanwhile.
#[derive(Debug, Default)]
struct Flight {
    size: OnceCell<u64>,
    read_bytes: AtomicU64,
}

type Flights = Mutex<BTreeMap<BlobId, Arc<Flight>>>;

/// Takes part in a flight, which is forgotten when the last one leaves it, however he leaves.
struct Aboard<'a> {
    flights: &'a Flights,
    blob: BlobId,
    flight: Arc<Flight>,
}

impl<'a> Aboard<'a> {
    fn new(flights: &'a Flights, blob: BlobId) -> Self {
        let flight = Arc::clone(lock(flights).entry(blob).or_default());
        Self { flights, blob, flight }
    }
}

impl Drop for Aboard<'_> {
    fn drop(&mut self) {
        let mut flights = lock(self.flights);
        // Given back under the lock, so that of several who leave at once the last one sees that he is.
        self.flight = Arc::default();
        if flights.get(&self.blob).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&self.blob);
        }
    }
}

/// The origin did not give a blob lately.
#[derive(Debug, Clone, Copy)]
struct Refusal {
    until: Instant,
    pause: Duration,
}

/// An origin.
#[derive(Debug)]
pub struct Origin {
    store: LocalFileSystem,
    flights: Flights,
    refusals: Mutex<BTreeMap<BlobId, Refusal>>,
    reads: Semaphore,
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
        Ok(Self {
            store: store.with_fsync(true),
            flights: Mutex::default(),
            refusals: Mutex::default(),
            reads: Semaphore::new(READS),
        })
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

    /// Whether it is worth asking for a blob, for it has not refused it lately: then how many bytes of it have been read by now.
    pub fn offers(&self, blob: &BlobId) -> Option<u64> {
        let refused = lock(&self.refusals).get(blob).is_some_and(|refusal| Instant::now() < refusal.until);
        (!refused).then(|| self.read_bytes([blob]))
    }

    /// How many bytes of these have been read by the reads that go on now.
    pub fn read_bytes<'a>(&self, blobs: impl IntoIterator<Item = &'a BlobId>) -> u64 {
        let flights = lock(&self.flights);
        let read = blobs.into_iter().filter_map(|blob| flights.get(blob));
        read.map(|flight| flight.read_bytes.load(Ordering::Relaxed)).sum()
    }

    /// Looks which of these it has, without reading them. What it has not got counts as refused from now on.
    pub async fn look(&self, blobs: &[BlobId]) -> Vec<BlobId> {
        let looks = futures_util::stream::iter(blobs.iter().copied())
            .map(|blob| async move { (blob, self.has(&blob).await) })
            .buffer_unordered(READS);
        tokio::pin!(looks);
        let mut there = Vec::new();
        while let Some((blob, has)) = looks.next().await {
            match has {
                Ok(true) => there.push(blob),
                Ok(false) => self.refuse(blob, true),
                // The read will tell what is wrong.
                Err(_) => there.push(blob),
            }
        }
        there
    }

    fn refuse(&self, blob: BlobId, absent: bool) {
        let now = Instant::now();
        let mut refusals = lock(&self.refusals);
        let before = refusals.get(&blob).map(|refusal| refusal.pause * 2).filter(|_| !absent);
        let pause = before.unwrap_or(FIRST_REFUSAL).min(LONGEST_REFUSAL);
        if refusals.len() >= MOST_REFUSALS {
            refusals.retain(|_, refusal| now < refusal.until);
            if refusals.len() >= MOST_REFUSALS {
                refusals.pop_first();
            }
        }
        refusals.insert(blob, Refusal { until: now + pause, pause });
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

    /// Reads blobs into this node's store. What it did not give lately is not asked for again.
    pub async fn fetch(&self, velod: &Velod, blobs: &[BlobId]) -> Fetched {
        let mut fetched = Fetched::default();
        let offered = blobs.iter().copied().filter(|blob| self.offers(blob).is_some());
        let mut reads = futures_util::stream::iter(offered)
            .map(|blob| async move { (blob, self.fetch_blob(velod, blob).await) })
            .buffer_unordered(AT_ONCE);
        while let Some((blob, read)) = reads.next().await {
            match read {
                Ok(read) => {
                    fetched.moved.add(read);
                    lock(&self.refusals).remove(&blob);
                }
                Err(error) => {
                    // Where velod is away, the origin is not to blame.
                    if !matches!(error, OriginError::Velod(VelodError::Down(_) | VelodError::Unexpected(_))) {
                        self.refuse(blob, matches!(error, OriginError::Absent(_)));
                    }
                    fetched.failed.push((blob, error));
                }
            }
        }
        fetched
    }

    /// One blob; all who ask for it at one time share one read. The bytes read; none where it was there, or another one's read brought it.
    async fn fetch_blob(&self, velod: &Velod, blob: BlobId) -> Result<Option<u64>, OriginError> {
        let here = velod.stat(vec![blob]).await?;
        if here.first().is_some_and(|stat| stat.as_ref().is_some_and(|stat| stat.complete)) {
            return Ok(None);
        }
        let aboard = Aboard::new(&self.flights, blob);
        let flight = &aboard.flight;
        let mut mine = false;
        let read = flight.size.get_or_try_init(|| {
            mine = true;
            self.read_blob(velod, blob, &flight.read_bytes)
        });
        let size_bytes = *read.await?;
        Ok(mine.then_some(size_bytes))
    }

    async fn read_blob(
        &self,
        velod: &Velod,
        blob: BlobId,
        read_bytes: &AtomicU64,
    ) -> Result<u64, OriginError> {
        let io = |error| OriginError::Io(blob, error);
        let _turn = self.reads.acquire().await.map_err(|error| io(std::io::Error::other(error)))?;
        let stalled = |_| OriginError::Stalled(blob);
        let object = match tokio::time::timeout(STALLED, self.store.get(&place(&blob))).await {
            Ok(Err(object_store::Error::NotFound { .. })) => return Err(OriginError::Absent(blob)),
            got => got.map_err(stalled)??,
        };
        let (mut writer, reader) = tokio::net::unix::pipe::pipe().map_err(io)?;
        let reader: OwnedFd = reader.into_blocking_fd().map_err(io)?;
        let copying = async move {
            let mut chunks = object.into_stream();
            while let Some(chunk) =
                tokio::time::timeout(STALLED, chunks.try_next()).await.map_err(stalled)??
            {
                if writer.write_all(&chunk).await.is_err() {
                    break; // velod reads no more: it says why
                }
                read_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
            Ok::<_, OriginError>(())
        };
        let (ingested, copied) = tokio::join!(velod.ingest(blob, reader), copying);
        // Where the origin broke off, what velod got is not what it should be.
        copied?;
        Ok(ingested?.size_bytes)
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
