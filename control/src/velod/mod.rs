//! velod, as velo-control sees it: typed questions over its local socket.
//!
//! [`Velod`] hides how they get there: over the socket (`socket.rs`), or in tests to a velod that is only a map.

#[cfg(test)]
pub(crate) mod fake;
mod socket;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use velo_object::{BlobId, IdPrefix, NodeId, ObjectId};
use velo_socket::{BlobStat, Caller, Ingested, JobId, JobStatus, Member, Request, Response, Status};

pub use socket::Socket;

/// Why velod did not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VelodError {
    /// It cannot be reached (it may be starting again).
    #[error("velod does not answer: {0}")]
    Down(String),
    /// It said no.
    #[error(transparent)]
    Refused(#[from] velo_socket::Error),
    /// It answered something else than was asked.
    #[error("velod answered `{0}` with something else: are velod and velo-control of one version?")]
    Unexpected(&'static str),
}

/// An answer and the descriptors beside it.
pub type Answer = (Response, Vec<OwnedFd>);

/// A call of another node (or of somebody who wants to join), which waits for [`Incoming::answer`].
#[derive(Debug)]
pub struct Incoming {
    /// Who calls.
    pub from: Caller,
    /// What.
    pub payload: Vec<u8>,
    call: u64,
    answers: mpsc::Sender<(u64, Result<Vec<u8>, String>)>,
}

impl Incoming {
    /// Makes one; answers go into the channel with the call's number.
    pub fn new(
        from: Caller,
        payload: Vec<u8>,
        call: u64,
        answers: mpsc::Sender<(u64, Result<Vec<u8>, String>)>,
    ) -> Self {
        Self { from, payload, call, answers }
    }

    /// Answers it.
    pub async fn answer(self, reply: Result<Vec<u8>, String>) {
        let _ = self.answers.send((self.call, reply)).await;
    }
}

/// A way to velod.
pub trait Link: Send + Sync + 'static {
    /// One question, one answer.
    fn ask(&self, request: Request, descriptors: Vec<OwnedFd>) -> BoxFuture<'_, Result<Answer, VelodError>>;
    /// The progress of a job, until it has ended.
    fn watch(
        &self,
        job: JobId,
        every_ms: u32,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<JobStatus>, VelodError>>;
    /// The calls of other nodes, until velod goes away.
    fn serve(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Incoming>, VelodError>>;
}

/// velod.
#[derive(Clone)]
pub struct Velod(Arc<dyn Link>);

macro_rules! expect {
    ($asked:expr, $name:literal, $pattern:pat => $value:expr) => {
        match $asked.await?.0 {
            $pattern => Ok($value),
            Response::Error(error) => Err(VelodError::Refused(error)),
            _ => Err(VelodError::Unexpected($name)),
        }
    };
}

impl Velod {
    /// Over this link.
    pub fn new(link: impl Link) -> Self {
        Self(Arc::new(link))
    }

    fn ask(&self, request: Request) -> BoxFuture<'_, Result<Answer, VelodError>> {
        self.0.ask(request, Vec::new())
    }

    /// What it has of these blobs, in order.
    pub async fn stat(&self, blobs: Vec<BlobId>) -> Result<Vec<Option<BlobStat>>, VelodError> {
        let asked = blobs.len();
        let stats = expect!(self.ask(Request::Stat(blobs)), "stat", Response::Stats(stats) => stats)?;
        if stats.len() == asked { Ok(stats) } else { Err(VelodError::Unexpected("stat")) }
    }

    /// The ids that begin so.
    pub async fn resolve(&self, prefix: IdPrefix) -> Result<Vec<BlobId>, VelodError> {
        expect!(self.ask(Request::Resolve(prefix)), "resolve", Response::Ids(ids) => ids)
    }

    /// A descriptor of a blob: the file, where in it the blob begins, its size, and whether all of it is there.
    pub async fn open(&self, blob: BlobId, partial: bool) -> Result<(OwnedFd, u64, u64, bool), VelodError> {
        let (response, descriptors) = self.ask(Request::Open { blob, partial }).await?;
        match (response, descriptors.into_iter().next()) {
            (Response::Opened { offset_bytes, size_bytes, complete }, Some(file)) => {
                Ok((file, offset_bytes, size_bytes, complete))
            }
            (Response::Error(error), _) => Err(VelodError::Refused(error)),
            _ => Err(VelodError::Unexpected("open")),
        }
    }

    /// Waits until a range is verified.
    pub async fn wait(&self, blob: BlobId, range: Range<u64>, timeout: Duration) -> Result<(), VelodError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        expect!(self.ask(Request::Wait { blob, range, timeout_ms }), "wait", Response::Done => ())
    }

    /// Ingests what comes out of a pipe or file.
    pub async fn ingest(&self, expected: BlobId, from: OwnedFd) -> Result<Ingested, VelodError> {
        let asked = self.0.ask(Request::Ingest { expected }, vec![from]);
        let ingested = expect!(asked, "ingest", Response::Ingested(ingested) => ingested)?;
        ingested.first().copied().ok_or(VelodError::Unexpected("ingest"))
    }

    /// Starts a job; each root with its size, if a verified tree has told it.
    pub async fn pull(
        &self,
        roots: Vec<ObjectId>,
        sizes: Vec<Option<u64>>,
        tables_only: bool,
        sources: Vec<NodeId>,
        priority: u8,
    ) -> Result<JobId, VelodError> {
        let request = Request::Pull { roots, tables_only, sources, priority, sinks: Vec::new(), sizes };
        expect!(self.ask(request), "pull", Response::Job(job) => job)
    }

    /// Gives a job more sources.
    pub async fn add_sources(&self, job: JobId, sources: Vec<NodeId>) -> Result<(), VelodError> {
        expect!(self.ask(Request::AddSources { job, sources }), "add sources", Response::Done => ())
    }

    /// Ends a job.
    pub async fn cancel(&self, job: JobId) -> Result<(), VelodError> {
        expect!(self.ask(Request::Cancel { job }), "cancel", Response::Done => ())
    }

    /// All jobs.
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, VelodError> {
        expect!(self.ask(Request::Jobs), "jobs", Response::Jobs(jobs) => jobs)
    }

    /// The progress of a job, until it has ended.
    pub async fn watch(&self, job: JobId, every_ms: u32) -> Result<mpsc::Receiver<JobStatus>, VelodError> {
        self.0.watch(job, every_ms).await
    }

    /// Pins or unpins a root.
    pub async fn pin(&self, root: ObjectId, pinned: bool) -> Result<(), VelodError> {
        expect!(self.ask(Request::Pin { root, pinned }), "pin", Response::Done => ())
    }

    /// The pinned roots.
    pub async fn pins(&self) -> Result<Vec<ObjectId>, VelodError> {
        expect!(self.ask(Request::Pins), "pins", Response::Pins(pins) => pins)
    }

    /// Counters and state.
    pub async fn status(&self) -> Result<Status, VelodError> {
        expect!(self.ask(Request::Status), "status", Response::Status(status) => *status)
    }

    /// Who is in the cluster.
    pub async fn members(&self, members: Vec<Member>) -> Result<(), VelodError> {
        expect!(self.ask(Request::Members(members)), "members", Response::Done => ())
    }

    /// Who is revoked.
    pub async fn revoked(&self, nodes: Vec<NodeId>) -> Result<(), VelodError> {
        expect!(self.ask(Request::Revoked(nodes)), "revoked", Response::Done => ())
    }

    /// The certificate on the disk is a new one.
    pub async fn reload_identity(&self) -> Result<(), VelodError> {
        expect!(self.ask(Request::ReloadIdentity), "reload", Response::Done => ())
    }

    /// Asks the control service of another node.
    pub async fn call(
        &self,
        node: NodeId,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, VelodError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        expect!(self.ask(Request::Call { node, payload, timeout_ms }), "call", Response::Reply(reply) => reply)
    }

    /// The calls of other nodes, until velod goes away.
    pub async fn serve(&self) -> Result<mpsc::Receiver<Incoming>, VelodError> {
        self.0.serve().await
    }

    /// A value of the book.
    pub async fn book_get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, VelodError> {
        let request = Request::BookGet { table: table.to_owned(), key: key.to_owned() };
        expect!(self.ask(request), "book", Response::BookValue(value) => value)
    }

    /// Writes a value of the book, or deletes it; durable when this returns.
    pub async fn book_put(&self, table: &str, key: &[u8], value: Option<Vec<u8>>) -> Result<(), VelodError> {
        let request = Request::BookPut { table: table.to_owned(), key: key.to_owned(), value, expect: None };
        expect!(self.ask(request), "book", Response::Done => ())
    }

    /// All entries of a table of the book.
    pub async fn book_scan(&self, table: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, VelodError> {
        const PAGE: u32 = 1000;
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        loop {
            let after = entries.last().map(|(key, _)| key.clone());
            let request = Request::BookScan { table: table.to_owned(), after, limit: PAGE };
            let page = expect!(self.ask(request), "book", Response::BookEntries(entries) => entries)?;
            let last = page.len() < PAGE as usize;
            entries.extend(page);
            if last {
                return Ok(entries);
            }
        }
    }
}
