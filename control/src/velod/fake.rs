//! A velod that is only a map, and a network of such: enough for the control planes of a test to meet.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use velo_object::{BlobId, NodeId, ObjectId, ObjectKind, PieceSet, Pieces};
use velo_socket::{
    BlobStat, Caller, Error, ErrorCode, Ingested, JobId, JobState, JobStatus, Member, Request, Response,
    Status,
};

use super::{Answer, Incoming, Link, VelodError};
use crate::node::lock;

/// Carries the calls.
#[derive(Default)]
pub(crate) struct Net {
    serving: Mutex<HashMap<NodeId, mpsc::Sender<Incoming>>>,
    cut: Mutex<HashSet<NodeId>>,
}

impl Net {
    /// Cuts a node off, or brings it back.
    pub(crate) fn cut(&self, node: NodeId, off: bool) {
        let mut cut = lock(&self.cut);
        if off {
            cut.insert(node)
        } else {
            cut.remove(&node)
        };
    }
}

/// What such a velod holds.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) book: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    pub(crate) blobs: BTreeMap<BlobId, Vec<u8>>,
    pub(crate) pins: BTreeSet<ObjectId>,
    pub(crate) jobs: BTreeMap<JobId, JobStatus>,
    pub(crate) sources: BTreeMap<JobId, BTreeSet<NodeId>>,
    /// How often somebody gave a job more sources, or none.
    pub(crate) wakes: BTreeMap<JobId, usize>,
    pub(crate) tables_only: BTreeSet<JobId>,
    /// The last pull's priority and sizes.
    pub(crate) pulled: (u8, Vec<Option<u64>>),
    pub(crate) members: Vec<Member>,
    pub(crate) revoked: Vec<NodeId>,
    pub(crate) reloads: usize,
}

/// One velod.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) node: NodeId,
    pub(crate) net: Arc<Net>,
    pub(crate) state: Arc<Mutex<State>>,
}

fn refused(code: ErrorCode, message: &str) -> VelodError {
    VelodError::Refused(Error { code, message: message.to_owned() })
}

impl State {
    /// Puts a content there, as a put would; jobs that miss it are done with it, or miss what it names.
    pub(crate) fn store(&mut self, content: &[u8]) -> BlobId {
        let id = BlobId::of(content);
        self.blobs.insert(id, content.to_vec());
        for job in self.jobs.values_mut() {
            if !job.missing.contains(&id) {
                continue;
            }
            job.missing.retain(|blob| *blob != id);
            let tree = job.roots.iter().any(|root| root.blob == id && root.kind == ObjectKind::Tree);
            if tree && !self.tables_only.contains(&job.job) {
                let parts = crate::origin::parts(id, content.to_vec()).expect("a tree");
                job.missing.extend(parts.into_iter().filter(|part| !self.blobs.contains_key(part)));
            }
            if job.missing.is_empty() && job.state == JobState::Waiting {
                job.state = JobState::Complete;
            }
        }
        id
    }

    fn stat(&self, blob: &BlobId) -> Option<BlobStat> {
        let size = self.blobs.get(blob)?.len() as u64;
        Some(BlobStat {
            size_bytes: Some(size),
            complete: true,
            have: PieceSet::full(Pieces::new(size).count()),
            pinned: false,
            stored_bytes: size,
        })
    }
}

impl Fake {
    pub(crate) fn new(node: NodeId, net: &Arc<Net>) -> Self {
        Self { node, net: Arc::clone(net), state: Arc::default() }
    }

    async fn call(&self, node: NodeId, payload: Vec<u8>, timeout_ms: u64) -> Result<Response, VelodError> {
        let unreachable = || refused(ErrorCode::Unreachable, "not there");
        if lock(&self.net.cut).contains(&node) || lock(&self.net.cut).contains(&self.node) {
            return Err(unreachable());
        }
        let serving = lock(&self.net.serving).get(&node).cloned().ok_or_else(unreachable)?;
        let (answers, mut answered) = mpsc::channel(1);
        let call = Incoming::new(Caller::Member(self.node), payload, 7, answers);
        serving.send(call).await.map_err(|_| unreachable())?;
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(timeout_ms), answered.recv());
        match waiting.await {
            Ok(Some((7, Ok(reply)))) => Ok(Response::Reply(reply)),
            Ok(Some((_, Err(why)))) => Err(refused(ErrorCode::Denied, &why)),
            _ => Err(refused(ErrorCode::TimedOut, "no answer")),
        }
    }

    fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Answer, VelodError> {
        let mut state = lock(&self.state);
        let response = match request {
            Request::Stat(blobs) => Response::Stats(blobs.iter().map(|blob| state.stat(blob)).collect()),
            Request::Resolve(prefix) => {
                Response::Ids(state.blobs.keys().filter(|id| prefix.matches(id)).copied().collect())
            }
            Request::Open { blob, .. } => {
                let content =
                    state.blobs.get(&blob).ok_or_else(|| refused(ErrorCode::NotFound, "no such blob"))?;
                let mut file = tempfile::tempfile().expect("a file");
                file.write_all(b"before").and_then(|()| file.write_all(content)).expect("written");
                let size_bytes = content.len() as u64;
                let opened = Response::Opened { offset_bytes: 6, size_bytes, complete: true };
                return Ok((opened, vec![file.into()]));
            }
            Request::Ingest { expected } => {
                let mut content = Vec::new();
                let descriptor = descriptors.into_iter().next().expect("a descriptor");
                drop(state);
                std::fs::File::from(descriptor).read_to_end(&mut content).expect("read");
                if BlobId::of(&content) != expected {
                    return Err(refused(ErrorCode::Mismatch, "another hash"));
                }
                let blob = lock(&self.state).store(&content);
                Response::Ingested(vec![Ingested { blob, size_bytes: content.len() as u64 }])
            }
            Request::Pull { roots, sources, tables_only, priority, sizes, .. } => {
                let job = 100 + state.jobs.len() as u64;
                if tables_only {
                    state.tables_only.insert(job);
                }
                state.pulled = (priority, sizes);
                let missing: Vec<BlobId> = roots
                    .iter()
                    .map(|root| root.blob)
                    .filter(|blob| !state.blobs.contains_key(blob))
                    .collect();
                let begun = if missing.is_empty() { JobState::Complete } else { JobState::Waiting };
                let status = JobStatus::begun(job, roots, begun, missing);
                state.jobs.insert(job, status);
                state.sources.insert(job, sources.into_iter().collect());
                Response::Job(job)
            }
            Request::AddSources { job, sources } => {
                state.sources.entry(job).or_default().extend(sources);
                *state.wakes.entry(job).or_default() += 1;
                Response::Done
            }
            Request::Cancel { job } => match state.jobs.get_mut(&job) {
                Some(status) => {
                    status.state = JobState::Cancelled;
                    Response::Done
                }
                None => return Err(refused(ErrorCode::NotFound, "no such job")),
            },
            Request::Jobs => Response::Jobs(state.jobs.values().cloned().collect()),
            Request::Pin { root, pinned } => {
                if pinned {
                    state.pins.insert(root)
                } else {
                    state.pins.remove(&root)
                };
                Response::Done
            }
            Request::Pins => Response::Pins(state.pins.iter().copied().collect()),
            Request::Status => Response::Status(Box::new(Status {
                counters: vec![("blobs_total".to_owned(), state.blobs.len() as u64)],
                ..Status::default()
            })),
            Request::Members(members) => {
                state.members = members;
                Response::Done
            }
            Request::Revoked(nodes) => {
                state.revoked = nodes;
                Response::Done
            }
            Request::ReloadIdentity => {
                state.reloads += 1;
                Response::Done
            }
            Request::BookGet { table, key } => Response::BookValue(state.book.get(&(table, key)).cloned()),
            Request::BookPut { table, key, value, .. } => {
                match value {
                    Some(value) => state.book.insert((table, key), value),
                    None => state.book.remove(&(table, key)),
                };
                Response::Done
            }
            Request::BookScan { table, after, limit } => {
                let entries = state
                    .book
                    .iter()
                    .filter(|((of, key), _)| *of == table && after.as_ref().is_none_or(|after| key > after));
                let page = entries.map(|((_, key), value)| (key.clone(), value.clone()));
                Response::BookEntries(page.take(limit as usize).collect())
            }
            other => panic!("the tests' velod does not know {other:?}"),
        };
        Ok((response, Vec::new()))
    }
}

impl Link for Fake {
    fn ask(&self, request: Request, descriptors: Vec<OwnedFd>) -> BoxFuture<'_, Result<Answer, VelodError>> {
        Box::pin(async move {
            match request {
                Request::Call { node, payload, timeout_ms } => {
                    self.call(node, payload, timeout_ms).await.map(|response| (response, Vec::new()))
                }
                request => {
                    let velod = self.clone();
                    let asked = tokio::task::spawn_blocking(move || velod.answer(request, descriptors));
                    asked.await.expect("no panic")
                }
            }
        })
    }

    fn watch(&self, job: JobId, _: u32) -> BoxFuture<'_, Result<mpsc::Receiver<JobStatus>, VelodError>> {
        Box::pin(async move {
            let status = lock(&self.state).jobs.get(&job).cloned();
            let status = status.ok_or_else(|| refused(ErrorCode::NotFound, "no such job"))?;
            let (statuses, receiver) = mpsc::channel(2);
            let done = JobStatus { state: JobState::Complete, ..status.clone() };
            statuses.send(status).await.expect("room");
            statuses.send(done).await.expect("room");
            Ok(receiver)
        })
    }

    fn serve(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Incoming>, VelodError>> {
        Box::pin(async move {
            let (calls, receiver) = mpsc::channel(64);
            lock(&self.net.serving).insert(self.node, calls);
            Ok(receiver)
        })
    }
}
