//! One connection: hello, then request by request.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use velo_object::{BlobId, ObjectId, ObjectKind};
use velo_socket::{
    BlobStat, Connection, Error, ErrorCode, FrameError, JobId, PROTOCOL_VERSION, Request, Response,
    SessionStatus, Status,
};

pub(super) use crate::error::store_error;

use super::peer::Credentials;
use super::put::{Puts, ingested};
use super::{Context, serve, stream};
use crate::engine::{PeerTraffic, PullRequest};

/// How long a caller may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Ids that one prefix may stand for.
const RESOLVED: usize = 16;
/// Entries of one list or scan.
const LISTED: usize = 10_000;
/// Jobs of one connection that are remembered before those that have ended are forgotten.
const SUNK: usize = 256;
/// Ids of one stat.
const STATED: usize = 100_000;

pub(super) fn error(code: ErrorCode, message: impl Into<String>) -> Error {
    Error { code, message: message.into() }
}

/// Answers until the caller goes away or breaks the protocol.
pub(super) fn connection(context: &Context, mut connection: Connection, who: Credentials) {
    let client = match connection.receive_request(Some(HELLO_TIMEOUT)) {
        Ok((Request::Hello { version, client }, _)) => {
            let hello = Response::Hello {
                version: PROTOCOL_VERSION,
                node: context.sessions.node(),
                pid: std::process::id(),
            };
            if connection.send_response(&hello, &[]).is_err() || version != PROTOCOL_VERSION {
                return;
            }
            client
        }
        Ok(_) => {
            let refusal = error(ErrorCode::Invalid, "say hello first: every connection begins with it");
            let _ = connection.send_response(&Response::Error(refusal), &[]);
            return;
        }
        Err(_) => return,
    };
    tracing::debug!(%client, pid = who.pid, uid = who.uid, "local connection");
    let mut puts = Puts::default();
    let mut sunk = Sunk { context, jobs: Vec::new() };
    loop {
        let (request, fds) = match connection.receive_request(None) {
            Ok(received) => received,
            Err(FrameError::Closed { .. }) => return,
            Err(failure) => {
                // Where the next frame begins is not known any more.
                tracing::debug!(%client, error = %failure, "local connection ended");
                let refusal = error(ErrorCode::Invalid, failure.to_string());
                let _ = connection.send_response(&Response::Error(refusal), &[]);
                return;
            }
        };
        context.counters.requests.fetch_add(1, Ordering::Relaxed);
        let sent = match request {
            Request::Serve => return serve::serve(context, connection),
            Request::Watch { job, every_ms } => stream::watch(context, &mut connection, job, every_ms),
            Request::Verify => stream::verify(context, &mut connection),
            request => {
                let answer = answer(context, &connection, &mut puts, &mut sunk, request, fds);
                let (response, file) = answer.unwrap_or_else(|failure| (Response::Error(failure), None));
                send(&mut connection, &response, file.as_ref())
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The jobs of one connection that receive into its caller's files: when he goes away, nobody is left who would give them their names.
struct Sunk<'a> {
    context: &'a Context,
    jobs: Vec<JobId>,
}

impl Sunk<'_> {
    fn add(&mut self, job: JobId) {
        if self.jobs.len() >= SUNK {
            let running = self.context.engine.jobs();
            self.jobs.retain(|job| running.iter().any(|status| status.job == *job));
        }
        self.jobs.push(job);
    }
}

impl Drop for Sunk<'_> {
    fn drop(&mut self) {
        // One that has ended is none that could be cancelled.
        self.jobs.iter().for_each(|job| drop(self.context.engine.cancel(*job)));
    }
}

fn send(connection: &mut Connection, response: &Response, file: Option<&File>) -> Result<(), FrameError> {
    let fd = file.map(AsFd::as_fd);
    match connection.send_response(response, fd.as_slice()) {
        Err(FrameError::TooLarge(bytes)) => {
            let message = format!("the answer would have {bytes} bytes: ask for less at a time");
            connection.send_response(&Response::Error(error(ErrorCode::Limit, message)), &[])
        }
        sent => sent,
    }
}

/// Tells jobs and peers that miss what was put.
fn announce_put(context: &Context, root: ObjectId) {
    if let Ok(Some(stat)) = context.store.stat(&root.blob) {
        context.engine.stored(root.blob, stat.size_bytes);
    }
    if root.kind == ObjectKind::Tree
        && let Ok(tree) = context.store.tree(&root.blob)
    {
        for named in tree.packs().chain(tree.blobs()) {
            context.engine.stored(named.blob, named.size_bytes);
        }
    }
}

type Answer = Result<(Response, Option<File>), Error>;

/// Answers a request that has one answer. Descriptors that no answer uses are closed here.
fn answer(
    context: &Context,
    connection: &Connection,
    puts: &mut Puts,
    sunk: &mut Sunk<'_>,
    request: Request,
    fds: Vec<OwnedFd>,
) -> Answer {
    let store = &context.store;
    let wanted = match &request {
        Request::PutFiles { count, .. } => *count as usize..=*count as usize,
        Request::Pull { sinks, .. } => sinks.len()..=sinks.len(),
        Request::PutCommit { .. } => 0..=1,
        Request::Ingest { .. } => 1..=1,
        _ => 0..=0,
    };
    if !wanted.contains(&fds.len()) {
        let message = format!("{} descriptors came beside a request that takes {}", fds.len(), wanted.end());
        return Err(error(ErrorCode::Invalid, message));
    }
    let response = match request {
        Request::Hello { .. } => return Err(error(ErrorCode::Invalid, "hello was said already")),
        Request::Open { blob, partial } => return open(context, blob, partial),
        Request::Stat(blobs) => Response::Stats(stats(context, &blobs)?),
        Request::List { after, limit } => {
            let list =
                store.list(after.as_ref(), (limit as usize).min(LISTED)).map_err(|e| store_error(&e))?;
            Response::List(list.into_iter().map(|(blob, stat)| (blob, blob_stat(stat))).collect())
        }
        Request::Resolve(prefix) => {
            Response::Ids(store.resolve(&prefix, RESOLVED).map_err(|e| store_error(&e))?)
        }
        Request::PutBegin => Response::Put(puts.begin(store)?),
        Request::PutFiles { put, .. } => Response::Ingested(puts.files(put, fds)?),
        Request::PutSmall { put, contents } => Response::Ingested(puts.small(put, &contents)?),
        Request::PutPacks { put } => Response::Packs(puts.packs(put)?),
        Request::PutCommit { put, root } => {
            puts.commit(put, root, fds.into_iter().next())?;
            announce_put(context, root);
            Response::Done
        }
        Request::Ingest { expected } => {
            let mut from = fds.into_iter().map(File::from);
            let mut file = from.next().ok_or_else(|| error(ErrorCode::Invalid, "no descriptor came"))?;
            let done = store.ingest_expected(&mut file, expected).map_err(|e| store_error(&e))?;
            context.engine.stored(done.blob, done.size_bytes);
            Response::Ingested(vec![ingested(done)])
        }
        Request::Wait { blob, range, timeout_ms } => {
            stream::wait(context, connection, blob, range, timeout_ms)?
        }
        Request::Pull { roots, tables_only, sources, priority, sinks, sizes } => {
            let sinks: Vec<_> = sinks.into_iter().zip(fds.into_iter().map(File::from)).collect();
            let into_sinks = !sinks.is_empty();
            let pull = PullRequest { roots, tables_only, sources, priority, sinks, sizes };
            let job = context.engine.pull(pull)?;
            if into_sinks {
                sunk.add(job);
            }
            Response::Job(job)
        }
        Request::AddSources { job, sources } => {
            context.engine.add_sources(job, sources)?;
            Response::Done
        }
        Request::Cancel { job } => {
            context.engine.cancel(job)?;
            Response::Done
        }
        Request::Jobs => Response::Jobs(context.engine.jobs()),
        Request::Pin { root, pinned } => pin(context, root, pinned)?,
        Request::Pins => Response::Pins(store.pins().map_err(|e| store_error(&e))?),
        Request::Remove { root } => {
            let removed = store.remove(root).map_err(|e| store_error(&e))?;
            Response::Removed { blobs: removed.blobs, bytes: removed.bytes, kept: removed.kept }
        }
        Request::Forget { blobs } => {
            let removed = store.forget(&blobs).map_err(|e| store_error(&e))?;
            Response::Removed { blobs: removed.blobs, bytes: removed.bytes, kept: removed.kept }
        }
        Request::Status => Response::Status(Box::new(status(context))),
        Request::Members(members) => {
            context.sessions.set_members(members);
            Response::Done
        }
        Request::Revoked(nodes) => {
            context.sessions.set_revoked(nodes);
            Response::Done
        }
        Request::ReloadIdentity => {
            let reloaded = context.sessions.reload_identity();
            reloaded.map_err(|failure| error(ErrorCode::Io, failure.to_string()))?;
            Response::Done
        }
        Request::Call { node, payload, timeout_ms } => {
            let timeout = Duration::from_millis(timeout_ms.min(3_600_000));
            Response::Reply(context.sessions.call(node, payload, timeout)?)
        }
        Request::BookGet { table, key } => {
            Response::BookValue(store.book().get(&table, &key).map_err(|e| store_error(&e))?)
        }
        Request::BookPut { table, key, value, expect } => {
            let expect = expect.as_ref().map(|expect| expect.as_deref());
            let put = store.book().put_if(&table, &key, value.as_deref(), expect);
            put.map_err(|e| store_error(&e))?;
            Response::Done
        }
        Request::BookScan { table, after, limit } => {
            let limit = (limit as usize).min(LISTED);
            let entries = store.book().scan(&table, after.as_deref(), limit);
            Response::BookEntries(entries.map_err(|e| store_error(&e))?)
        }
        Request::Answer { .. } => {
            return Err(error(ErrorCode::Invalid, "answers belong on the connection that serves"));
        }
        Request::Serve | Request::Watch { .. } | Request::Verify => {
            return Err(error(ErrorCode::Invalid, "this request is answered elsewhere"));
        }
    };
    Ok((response, None))
}

fn open(context: &Context, blob: BlobId, partial: bool) -> Answer {
    let opened = context.store.open_blob(&blob, partial).map_err(|e| store_error(&e))?;
    let response = Response::Opened {
        offset_bytes: opened.offset_bytes,
        size_bytes: opened.size_bytes,
        complete: opened.complete,
    };
    Ok((response, Some(opened.file)))
}

fn blob_stat(stat: velo_store::BlobStat) -> BlobStat {
    BlobStat {
        size_bytes: Some(stat.size_bytes),
        complete: stat.complete,
        have: stat.have,
        pinned: stat.pinned,
        stored_bytes: stat.stored_bytes,
    }
}

fn stats(context: &Context, blobs: &[BlobId]) -> Result<Vec<Option<BlobStat>>, Error> {
    if blobs.len() > STATED {
        return Err(error(ErrorCode::Limit, format!("at most {STATED} ids at a time")));
    }
    let one = |blob| context.store.stat(blob).map(|stat| stat.map(blob_stat)).map_err(|e| store_error(&e));
    blobs.iter().map(one).collect()
}

fn pin(context: &Context, root: ObjectId, pinned: bool) -> Result<Response, Error> {
    if pinned {
        context.store.pin(root).map_err(|e| store_error(&e))?;
    } else if !context.store.unpin(root).map_err(|e| store_error(&e))? {
        return Err(error(ErrorCode::NotFound, format!("{root} is not pinned here")));
    }
    Ok(Response::Done)
}

fn status(context: &Context) -> Status {
    let report = context.engine.report();
    let (mut counters, mut gauges, mut notes) = (report.counters, report.gauges, report.notes);
    let store = context.store.counters();
    let sessions = context.sessions.counters();
    let local = &context.counters;
    let more = [
        ("store_ingested_bytes_total", store.ingested_bytes),
        ("store_received_pieces_total", store.received_pieces),
        ("store_duplicate_pieces_total", store.duplicate_pieces),
        ("store_committed_total", store.committed),
        ("store_evicted_total", store.evicted),
        ("store_evicted_bytes_total", store.evicted_bytes),
        ("store_quarantined_total", store.quarantined),
        ("store_full_total", store.full),
        ("session_accepted_total", sessions.accepted.load(Ordering::Relaxed)),
        ("session_crowded_total", sessions.crowded.load(Ordering::Relaxed)),
        ("session_refused_total", sessions.refused.load(Ordering::Relaxed)),
        ("session_begun_total", sessions.begun.load(Ordering::Relaxed)),
        ("session_joins_limited_total", sessions.joins_limited.load(Ordering::Relaxed)),
        ("local_connections_total", local.connections.load(Ordering::Relaxed)),
        ("local_denied_total", local.denied.load(Ordering::Relaxed)),
        ("local_requests_total", local.requests.load(Ordering::Relaxed)),
    ];
    counters.extend(more.map(|(name, value)| (name.to_owned(), value)));
    match context.store.usage() {
        Ok(usage) => gauges.extend(
            [
                ("store_capacity_bytes", usage.capacity_bytes.unwrap_or(0)),
                ("store_used_bytes", usage.used_bytes),
                ("store_pinned_bytes", usage.pinned_bytes),
                ("store_staged_bytes", usage.staged_bytes),
                ("store_disk_free_bytes", usage.disk_free_bytes),
                ("store_blobs", usage.blobs),
                ("store_packs", usage.packs),
                ("store_packed", usage.packed),
                ("store_partial", usage.partial),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        ),
        Err(failure) => notes.push(failure.to_string()),
    }
    let up = context.sessions.status();
    gauges.push(("sessions".to_owned(), up.len() as u64));
    let traffic = |node| {
        let found = report.peers.iter().find(|(peer, _)| *peer == node);
        found.map(|(_, traffic)| *traffic).unwrap_or_default()
    };
    let sessions = up.into_iter().map(|session| {
        let PeerTraffic { received_bytes, sent_bytes, bad_pieces, fabric, rtt_us, loss_ppm } =
            traffic(session.node);
        SessionStatus {
            node: session.node,
            address: session.address,
            up_ms: session.up.as_millis() as u64,
            fabric: fabric.to_string(),
            rtt_us,
            loss_ppm,
            received_bytes,
            sent_bytes,
            bad_pieces,
        }
    });
    Status { counters, gauges, sessions: sessions.collect(), workers: report.workers, notes }
}
