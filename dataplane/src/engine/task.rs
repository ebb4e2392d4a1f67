//! What the engine has done on threads that may block: asking and changing the store, reading tables, making queue pairs.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use velo_fabric::rdma::device::{Place, Plugin};
use velo_object::{BlobId, NodeId, Outboard, PIECE_BYTES, PageBuffer, PieceSet};
use velo_socket::{Error, ErrorCode, JobId};
use velo_store::{Have, StageKind, Staging, Store, StoreError};

use super::handle::Shared;
use super::inbox::Input;
use super::pairs::{PairTask, PairsDone};
use super::ports::{PortDone, PortParts};
use crate::error::store_error;
use crate::target::Target;

/// Have-maps that are told in one go.
const HAVES_PER_ANSWER: usize = 256;

/// Blobs that are committed in one go.
const COMMITS_AT_ONCE: usize = 256;

/// Larger ones are committed each by itself: flushing them takes long, and nobody is to wait for it who need not.
const COMMITTED_TOGETHER_BYTES: u64 = 8 << 20;

/// Something to be done.
#[derive(Debug)]
pub(super) enum Task {
    /// What is here of a blob.
    Open { serial: u64, blob: BlobId, kind: StageKind, trusted_bytes: Option<u64>, sink: Option<File> },
    /// Check an outboard and stage the blob under it.
    Outboard { tag: u64, outboard: SentOutboard },
    /// Make blobs durable and visible.
    Commit(Vec<Arrived>),
    /// Have the contents of a pack found that is here as any blob.
    Pack { serial: u64, blob: BlobId },
    /// Read a tree's table.
    Table { blob: BlobId, jobs: Vec<JobId> },
    /// What is here of blobs that a peer is interested in.
    Haves { node: NodeId, blobs: Vec<BlobId> },
    /// Make, connect or destroy queue pairs.
    Pairs(PairTask),
    /// Open a port that had failed, if it is up.
    Renew { port: usize, plugin: Plugin, place: Place, parts: Arc<PortParts> },
}

/// A blob whose pieces are all here.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) serial: u64,
    pub(super) blob: BlobId,
    pub(super) staging: Arc<Staging>,
}

/// An outboard as a peer sent it, and what it must say.
#[derive(Debug)]
pub(super) struct SentOutboard {
    pub(super) blob: BlobId,
    pub(super) bytes: Vec<u8>,
    pub(super) size_bytes: u64,
    pub(super) trusted_bytes: Option<u64>,
    pub(super) kind: StageKind,
    pub(super) sink: Option<File>,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Opened { serial: u64, blob: BlobId, opened: Result<Opened, Error> },
    Outboard { tag: u64, blob: BlobId, result: Result<Arc<Target>, OutboardFault> },
    Committed { serial: u64, blob: BlobId, result: Result<(), Error> },
    Table { jobs: Vec<JobId>, result: Result<Vec<Named>, Error> },
    Haves { node: NodeId, haves: Vec<(BlobId, Option<HaveMap>)> },
    Pairs(PairsDone),
    Port(PortDone),
}

/// What is here of a blob.
#[derive(Debug)]
pub(crate) enum Opened {
    /// All.
    Complete { size_bytes: u64 },
    /// Some, under a confirmed outboard.
    Partial { target: Arc<Target>, staging: Arc<Staging> },
    /// Nothing. The target is there where the blob has only one piece.
    Nothing { target: Option<Arc<Target>> },
}

/// Why there is no target for an outboard.
#[derive(Debug)]
pub(crate) enum OutboardFault {
    /// It is none, of another blob, or states another size.
    Bad,
    /// The store does not take the blob.
    Store(Error),
}

/// What a tree names.
#[derive(Debug)]
pub(crate) struct Named {
    pub(super) blob: BlobId,
    pub(super) size_bytes: u64,
    pub(super) kind: StageKind,
}

/// What is here of a blob, to be told to a peer.
#[derive(Debug)]
pub(crate) struct HaveMap {
    pub(super) size_bytes: u64,
    pub(super) have: PieceSet,
    pub(super) holes: PieceSet,
}

#[derive(Debug, Default)]
struct Queue {
    tasks: VecDeque<Task>,
    closed: bool,
}

/// The tasks that wait, and the threads that do them. The engine bounds their number: each blob that it receives has at
/// most a few, and each peer's interests come in bounded messages.
#[derive(Debug)]
pub(super) struct TaskQueue {
    queue: Arc<(Mutex<Queue>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

impl TaskQueue {
    /// Starts `threads` threads.
    pub(super) fn start(threads: usize, store: &Store, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let queue: Arc<(Mutex<Queue>, Condvar)> = Arc::default();
        let threads = (0..threads)
            .map(|at| {
                let (queue, store, shared) = (queue.clone(), store.clone(), shared.clone());
                std::thread::Builder::new().name(format!("velod-task-{at}")).spawn(move || {
                    let _end = super::fatal::EndsProcess;
                    while let Some(task) = next(&queue) {
                        let fed =
                            perform(&store, task, &mut |done| shared.inbox.push(Input::Done(Box::new(done))));
                        if !fed {
                            return;
                        }
                    }
                })
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self { queue, threads })
    }

    pub(super) fn push(&self, task: Task) {
        let (queue, waiting) = &*self.queue;
        queue.lock().unwrap_or_else(PoisonError::into_inner).tasks.push_back(task);
        waiting.notify_one();
    }

    /// Ends the threads after what they do now.
    pub(super) fn close(&mut self) {
        let (queue, waiting) = &*self.queue;
        queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        waiting.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn next(queue: &(Mutex<Queue>, Condvar)) -> Option<Task> {
    let (queue, waiting) = queue;
    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if queue.closed {
            return None;
        }
        match queue.tasks.pop_front() {
            Some(Task::Commit(arrived)) => return Some(Task::Commit(gather(arrived, &mut queue.tasks))),
            Some(task) => return Some(task),
            None => {}
        }
        queue = waiting.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Takes other small blobs that wait to be committed: many at once need hardly more flushing than one.
fn gather(mut arrived: Vec<Arrived>, tasks: &mut VecDeque<Task>) -> Vec<Arrived> {
    let small =
        |some: &[Arrived]| some.iter().all(|one| one.staging.size_bytes() <= COMMITTED_TOGETHER_BYTES);
    if !small(&arrived) {
        return arrived;
    }
    for task in std::mem::take(tasks) {
        match task {
            Task::Commit(more) if arrived.len() + more.len() <= COMMITS_AT_ONCE && small(&more) => {
                arrived.extend(more);
            }
            other => tasks.push_back(other),
        }
    }
    arrived
}

/// Does a task. False where the engine has ended.
fn perform(store: &Store, task: Task, tell: &mut dyn FnMut(Done) -> bool) -> bool {
    match task {
        Task::Open { serial, blob, kind, trusted_bytes, sink } => {
            let opened = open(store, blob, kind, trusted_bytes, sink);
            tell(Done::Opened { serial, blob, opened })
        }
        Task::Outboard { tag, outboard } => {
            let blob = outboard.blob;
            let result = under_outboard(store, outboard);
            tell(Done::Outboard { tag, blob, result })
        }
        Task::Commit(arrived) => {
            let stagings: Vec<Arc<Staging>> = arrived.iter().map(|one| one.staging.clone()).collect();
            let results = store.commit_all(&stagings);
            arrived.into_iter().zip(results).all(|(Arrived { serial, blob, .. }, result)| {
                let result = result.map_err(|error| store_error(&error));
                tell(Done::Committed { serial, blob, result })
            })
        }
        Task::Pack { serial, blob } => {
            let indexed = store.index_pack(&blob);
            let here = indexed.and_then(|here| if here { Ok(()) } else { Err(StoreError::NotFound(blob)) });
            tell(Done::Committed { serial, blob, result: here.map_err(|error| store_error(&error)) })
        }
        Task::Pairs(pairs) => super::pairs::perform(pairs).is_none_or(|done| tell(Done::Pairs(done))),
        Task::Renew { port, plugin, place, parts } => {
            tell(Done::Port(super::ports::renew(port, plugin, &place, &parts)))
        }
        Task::Table { blob, jobs } => tell(Done::Table { jobs, result: table(store, blob) }),
        Task::Haves { node, blobs } => {
            for blobs in blobs.chunks(HAVES_PER_ANSWER) {
                let haves = blobs.iter().map(|blob| (*blob, have(store, blob))).collect();
                if !tell(Done::Haves { node, haves }) {
                    return false;
                }
            }
            true
        }
    }
}

fn open(
    store: &Store,
    blob: BlobId,
    kind: StageKind,
    trusted_bytes: Option<u64>,
    sink: Option<File>,
) -> Result<Opened, Error> {
    let of_store = |error| store_error(&error);
    let here = if kind == StageKind::Pack { store.has_file(&blob) } else { store.has(&blob) };
    if here.map_err(of_store)? {
        let size_bytes = match sink {
            Some(sink) => copy_to_sink(store, &blob, &sink)?,
            None => store.stat(&blob).map_err(of_store)?.map_or(0, |stat| stat.size_bytes),
        };
        return Ok(Opened::Complete { size_bytes });
    }
    let sunk = sink.is_some();
    if let Some(staging) = store.staging(&blob).filter(|_| !sunk) {
        let outboard = staging.outboard();
        let have = staging.have();
        if let Some(mut outboard) = outboard {
            let size_bytes = outboard.size_bytes();
            // The last piece proves the size; so does a verified tree.
            if trusted_bytes == Some(size_bytes) || have.contains(outboard.pieces().last()) {
                outboard.confirm();
            }
            if outboard.is_confirmed() {
                let target = Arc::new(Target::pieces(outboard, staging.clone()));
                return Ok(Opened::Partial { target, staging });
            }
            staging.abandon().map_err(of_store)?;
        } else if staging.remaining() == 0 && staging.kind() == kind {
            // An earlier process ended between its only piece and the commit.
            staging.commit().map_err(of_store)?;
            return Ok(Opened::Complete { size_bytes: staging.size_bytes() });
        }
    }
    let one_piece = trusted_bytes.is_some_and(|size_bytes| size_bytes <= PIECE_BYTES);
    let unknown = trusted_bytes.is_none();
    let target = (one_piece || unknown).then(|| Arc::new(Target::whole(store.clone(), blob, kind, sink)));
    Ok(Opened::Nothing { target })
}

/// What is here already goes into a sink by a copy.
fn copy_to_sink(store: &Store, blob: &BlobId, sink: &File) -> Result<u64, Error> {
    let from = store.open_blob(blob, false).map_err(|error| store_error(&error))?;
    let failed = |error: std::io::Error| {
        let message = format!("copying {blob} to its destination: {error}");
        Error {
            code: if error.raw_os_error() == Some(libc::ENOSPC) { ErrorCode::Full } else { ErrorCode::Io },
            message,
        }
    };
    let mut buffer = PageBuffer::new(PIECE_BYTES as usize);
    let mut at = 0;
    while at < from.size_bytes {
        let most = (from.size_bytes - at).min(PIECE_BYTES) as usize;
        from.file.read_exact_at(&mut buffer[..most], from.offset_bytes + at).map_err(failed)?;
        sink.write_all_at(&buffer[..most], at).map_err(failed)?;
        at += most as u64;
    }
    sink.set_len(at).map_err(failed)?;
    Ok(at)
}

/// Checks an outboard that a peer sent and stages the blob under it.
fn under_outboard(store: &Store, outboard: SentOutboard) -> Result<Arc<Target>, OutboardFault> {
    let SentOutboard { blob, bytes, size_bytes, trusted_bytes, kind, sink } = outboard;
    let mut outboard = Outboard::decode(blob, &bytes).map_err(|_| OutboardFault::Bad)?;
    if outboard.size_bytes() != size_bytes {
        return Err(OutboardFault::Bad);
    }
    if trusted_bytes == Some(size_bytes) {
        outboard.confirm();
    }
    let staging = store
        .stage(blob, size_bytes, Some(outboard.clone()), sink, kind)
        .map_err(|error| OutboardFault::Store(store_error(&error)))?;
    Ok(Arc::new(Target::pieces(outboard, staging)))
}

fn table(store: &Store, blob: BlobId) -> Result<Vec<Named>, Error> {
    let tree = store.tree(&blob).map_err(|error| store_error(&error))?;
    let named =
        |named: velo_object::Named, kind| Named { blob: named.blob, size_bytes: named.size_bytes, kind };
    let packs = tree.packs().map(|pack| named(pack, StageKind::Pack));
    Ok(packs.chain(tree.blobs().map(|blob| named(blob, StageKind::Blob))).collect())
}

fn have(store: &Store, blob: &BlobId) -> Option<HaveMap> {
    match store.have(blob) {
        Ok(have) => have.map(|Have { size_bytes, have, holes }| HaveMap { size_bytes, have, holes }),
        Err(error) => {
            tracing::warn!("asked by a peer what is here of {blob}: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use velo_object::{Expected, OutboardBuilder, Pieces, Verified, chaining_value};
    use velo_store::StoreOptions;

    use super::*;

    fn store_in(dir: &tempfile::TempDir) -> Store {
        Store::open(StoreOptions::new(dir.path())).expect("opens").0
    }

    fn opened(store: &Store, blob: BlobId, trusted_bytes: Option<u64>) -> Opened {
        open(store, blob, StageKind::Blob, trusted_bytes, None).expect("the store works")
    }

    #[test]
    fn the_only_piece_of_a_blob_that_was_not_committed_is_not_fetched_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let content = vec![7; 1000];
        let blob = BlobId::of(&content);
        {
            let staging = store_in(&dir).stage(blob, 1000, None, None, StageKind::Blob).expect("room");
            let piece = Verified::check(&content[..], 1000, Expected::Whole(blob)).expect("it is");
            staging.write(&piece).expect("room");
        }
        let store = store_in(&dir);
        assert!(matches!(opened(&store, blob, None), Opened::Complete { size_bytes: 1000 }));
        assert!(store.has(&blob).expect("index"));
    }

    #[test]
    fn a_size_that_a_tree_proved_is_proven_after_a_restart() {
        for trusted in [true, false] {
            let dir = tempfile::tempdir().expect("a directory");
            let content: Vec<u8> = (0..(2 << 20) + 5).map(|at: u32| at as u8).collect();
            let (blob, size_bytes) = (BlobId::of(&content), content.len() as u64);
            let mut builder = OutboardBuilder::new(size_bytes);
            let pieces = Pieces::new(size_bytes);
            let bytes_of =
                |index| &content[pieces.range(index).start as usize..pieces.range(index).end as usize];
            (0..3).for_each(|index| builder.set(index, chaining_value(index, bytes_of(index))));
            let bytes = builder.finish().encode();
            {
                let sent = SentOutboard {
                    blob,
                    bytes,
                    size_bytes,
                    trusted_bytes: trusted.then_some(size_bytes),
                    kind: StageKind::Blob,
                    sink: None,
                };
                let target = under_outboard(&store_in(&dir), sent).expect("room");
                let staging = target.staging().expect("just made");
                let expected = target.expected(0);
                staging
                    .write(&Verified::check(bytes_of(0), 1 << 20, expected).expect("it is"))
                    .expect("room");
            }
            match opened(&store_in(&dir), blob, None) {
                Opened::Partial { staging, .. } => assert!(trusted && staging.has(0)),
                Opened::Nothing { .. } => assert!(!trusted, "what had arrived was thrown away"),
                Opened::Complete { .. } => panic!("two pieces are missing"),
            }
        }
    }
}
