//! A method for each [`Request`], with the answer's own type.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use velo_object::{BlobId, IdPrefix, NodeId, ObjectId};

use crate::client::unexpected;
use crate::{
    BlobStat, Client, ClientError, Ingested, JobId, JobStatus, MAX_DESCRIPTORS, Member, PutId, Request,
    Response, Responses, Status,
};

macro_rules! expect {
    ($answer:expr, $pattern:pat => $value:expr) => {
        match $answer?.0 {
            $pattern => Ok($value),
            other => Err(unexpected(other)),
        }
    };
}

/// A key of the book and its value.
pub type BookEntry = (Vec<u8>, Vec<u8>);

/// What [`Client::pull`] is to get.
#[derive(Debug, Default)]
pub struct Pull<'a> {
    /// Blobs, and trees with all they name.
    pub roots: Vec<ObjectId>,
    /// Only the tables of trees.
    pub tables_only: bool,
    /// Nodes that may have them.
    pub sources: Vec<NodeId>,
    /// Higher goes first.
    pub priority: u8,
    /// Blobs that go to files of the caller, which must be open for reading and writing, and are not kept by velod.
    pub sinks: Vec<(BlobId, BorrowedFd<'a>)>,
    /// Sizes of `roots`, where known for certain.
    pub sizes: Vec<Option<u64>>,
}

fn milliseconds(timeout: Duration) -> u64 {
    u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)
}

/// Each of these fails with [`ClientError`]; what velod has to say is in [`ClientError::Velod`].
#[allow(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    /// What is known of these ids, in order.
    pub fn stat(&mut self, blobs: Vec<BlobId>) -> Result<Vec<Option<BlobStat>>, ClientError> {
        expect!(self.call(&Request::Stat(blobs), &[]), Response::Stats(stats) => stats)
    }

    /// What is known of one id.
    pub fn stat_one(&mut self, blob: BlobId) -> Result<Option<BlobStat>, ClientError> {
        Ok(self.stat(vec![blob])?.into_iter().next().flatten())
    }

    /// Up to `limit` blobs after `after`.
    pub fn list(
        &mut self,
        after: Option<BlobId>,
        limit: u32,
    ) -> Result<Vec<(BlobId, BlobStat)>, ClientError> {
        expect!(self.call(&Request::List { after, limit }, &[]), Response::List(list) => list)
    }

    /// Ids that begin so.
    pub fn resolve(&mut self, prefix: IdPrefix) -> Result<Vec<BlobId>, ClientError> {
        expect!(self.call(&Request::Resolve(prefix), &[]), Response::Ids(ids) => ids)
    }

    /// Begins a put; it is dropped when this connection ends before the commit.
    pub fn put_begin(&mut self) -> Result<PutId, ClientError> {
        expect!(self.call(&Request::PutBegin, &[]), Response::Put(put) => put)
    }

    /// Ingests files in tree order, in as many requests as are needed.
    pub fn put_files(&mut self, put: PutId, files: &[BorrowedFd<'_>]) -> Result<Vec<Ingested>, ClientError> {
        let mut all = Vec::with_capacity(files.len());
        for files in files.chunks(MAX_DESCRIPTORS) {
            let request = Request::PutFiles { put, count: files.len() as u32 };
            let ingested: Vec<Ingested> =
                expect!(self.call(&request, files), Response::Ingested(ingested) => ingested)?;
            all.extend(ingested);
        }
        Ok(all)
    }

    /// Ingests small contents in tree order. All of them together must fit a frame.
    pub fn put_small(&mut self, put: PutId, contents: Vec<Vec<u8>>) -> Result<Vec<Ingested>, ClientError> {
        let request = Request::PutSmall { put, contents };
        expect!(self.call(&request, &[]), Response::Ingested(ingested) => ingested)
    }

    /// Closes the packs of a put.
    pub fn put_packs(&mut self, put: PutId) -> Result<Vec<Ingested>, ClientError> {
        expect!(self.call(&Request::PutPacks { put }, &[]), Response::Packs(packs) => packs)
    }

    /// Commits a put; `table` has the bytes of a tree that is the root.
    pub fn put_commit(
        &mut self,
        put: PutId,
        root: ObjectId,
        table: Option<BorrowedFd<'_>>,
    ) -> Result<(), ClientError> {
        let answer = self.call(&Request::PutCommit { put, root }, table.as_slice());
        expect!(answer, Response::Done => ())
    }

    /// Ingests one blob from a pipe or a file, as cache.
    pub fn ingest(&mut self, expected: BlobId, from: BorrowedFd<'_>) -> Result<Ingested, ClientError> {
        let answer = self.call(&Request::Ingest { expected }, &[from]);
        let ingested = expect!(answer, Response::Ingested(ingested) => ingested)?;
        ingested.first().copied().ok_or_else(|| ClientError::Unexpected("nothing".to_owned()))
    }

    /// A read-only descriptor of a blob, where in it the blob begins, its size, and whether all of it is there.
    pub fn open(&mut self, blob: BlobId, partial: bool) -> Result<(OwnedFd, u64, u64, bool), ClientError> {
        match self.call(&Request::Open { blob, partial }, &[])? {
            (Response::Opened { offset_bytes, size_bytes, complete }, fds) => {
                let file = fds.into_iter().next();
                let file = file.ok_or_else(|| ClientError::Unexpected("no descriptor".to_owned()))?;
                Ok((file, offset_bytes, size_bytes, complete))
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    /// Waits until a range is verified and readable.
    pub fn wait(&mut self, blob: BlobId, range: Range<u64>, timeout: Duration) -> Result<(), ClientError> {
        let request = Request::Wait { blob, range, timeout_ms: milliseconds(timeout) };
        expect!(self.call(&request, &[]), Response::Done => ())
    }

    /// Starts a job.
    pub fn pull(&mut self, pull: Pull<'_>) -> Result<JobId, ClientError> {
        let (sinks, fds): (Vec<_>, Vec<_>) = pull.sinks.into_iter().unzip();
        let request = Request::Pull {
            roots: pull.roots,
            tables_only: pull.tables_only,
            sources: pull.sources,
            priority: pull.priority,
            sinks,
            sizes: pull.sizes,
        };
        expect!(self.call(&request, &fds), Response::Job(job) => job)
    }

    /// More places to get a job's content from.
    pub fn add_sources(&mut self, job: JobId, sources: Vec<NodeId>) -> Result<(), ClientError> {
        expect!(self.call(&Request::AddSources { job, sources }, &[]), Response::Done => ())
    }

    /// A stream of [`Response::Progress`] until the job has ended.
    pub fn watch(&mut self, job: JobId, every: Duration) -> Result<Responses<'_>, ClientError> {
        let every_ms = u32::try_from(every.as_millis()).unwrap_or(u32::MAX);
        self.stream(&Request::Watch { job, every_ms })
    }

    /// Ends a job.
    pub fn cancel(&mut self, job: JobId) -> Result<(), ClientError> {
        expect!(self.call(&Request::Cancel { job }, &[]), Response::Done => ())
    }

    /// Running jobs, and those that ended lately.
    pub fn jobs(&mut self) -> Result<Vec<JobStatus>, ClientError> {
        expect!(self.call(&Request::Jobs, &[]), Response::Jobs(jobs) => jobs)
    }

    /// Pins or unpins a root.
    pub fn pin(&mut self, root: ObjectId, pinned: bool) -> Result<(), ClientError> {
        expect!(self.call(&Request::Pin { root, pinned }, &[]), Response::Done => ())
    }

    /// The pinned roots.
    pub fn pins(&mut self) -> Result<Vec<ObjectId>, ClientError> {
        expect!(self.call(&Request::Pins, &[]), Response::Pins(pins) => pins)
    }

    /// Removes a root: how many blobs and bytes went, and how many blobs other roots keep.
    pub fn remove(&mut self, root: ObjectId) -> Result<(u64, u64, u64), ClientError> {
        let answer = self.call(&Request::Remove { root }, &[]);
        expect!(answer, Response::Removed { blobs, bytes, kept } => (blobs, bytes, kept))
    }

    /// Gives up files that are cache: how many went, how many bytes they had, and how many stay.
    pub fn forget(&mut self, blobs: Vec<BlobId>) -> Result<(u64, u64, u64), ClientError> {
        let answer = self.call(&Request::Forget { blobs }, &[]);
        expect!(answer, Response::Removed { blobs, bytes, kept } => (blobs, bytes, kept))
    }

    /// A stream of [`Response::Verifying`].
    pub fn verify(&mut self) -> Result<Responses<'_>, ClientError> {
        self.stream(&Request::Verify)
    }

    /// Counters and state.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        expect!(self.call(&Request::Status, &[]), Response::Status(status) => *status)
    }

    /// Says who is in the cluster.
    pub fn members(&mut self, members: Vec<Member>) -> Result<(), ClientError> {
        expect!(self.call(&Request::Members(members), &[]), Response::Done => ())
    }

    /// Says which certificates are revoked.
    pub fn revoked(&mut self, nodes: Vec<NodeId>) -> Result<(), ClientError> {
        expect!(self.call(&Request::Revoked(nodes), &[]), Response::Done => ())
    }

    /// Has velod read its identity again.
    pub fn reload_identity(&mut self) -> Result<(), ClientError> {
        expect!(self.call(&Request::ReloadIdentity, &[]), Response::Done => ())
    }

    /// Asks the control service of another node (or of this one).
    pub fn call_node(
        &mut self,
        node: NodeId,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let request = Request::Call { node, payload, timeout_ms: milliseconds(timeout) };
        expect!(self.call(&request, &[]), Response::Reply(reply) => reply)
    }

    /// A value of the book.
    pub fn book_get(&mut self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        let request = Request::BookGet { table: table.to_owned(), key: key.to_vec() };
        expect!(self.call(&request, &[]), Response::BookValue(value) => value)
    }

    /// Writes (or deletes) a value of the book durably; with `expect`, only where that stands there now.
    pub fn book_put(
        &mut self,
        table: &str,
        key: &[u8],
        value: Option<Vec<u8>>,
        expect: Option<Option<Vec<u8>>>,
    ) -> Result<(), ClientError> {
        let request = Request::BookPut { table: table.to_owned(), key: key.to_vec(), value, expect };
        expect!(self.call(&request, &[]), Response::Done => ())
    }

    /// Up to `limit` entries of a table after a key.
    pub fn book_scan(
        &mut self,
        table: &str,
        after: Option<Vec<u8>>,
        limit: u32,
    ) -> Result<Vec<BookEntry>, ClientError> {
        let request = Request::BookScan { table: table.to_owned(), after, limit };
        expect!(self.call(&request, &[]), Response::BookEntries(entries) => entries)
    }

    /// A reader of a blob; with `partial`, reads wait for ranges that are still arriving.
    pub fn reader(self, blob: BlobId, partial: bool) -> Result<crate::BlobReader, ClientError> {
        crate::BlobReader::open(self, blob, partial)
    }
}

/// Puts a table of bytes where a descriptor is asked for.
///
/// # Errors
/// Where no memory file can be made.
pub fn memory_file(name: &str, bytes: &[u8]) -> std::io::Result<std::fs::File> {
    use std::io::Write;
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    Ok(file)
}
