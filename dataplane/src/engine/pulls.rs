//! Jobs from their beginning to their end, and the blobs that they miss.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;

use velo_object::{BlobId, NodeId, ObjectKind};
use velo_socket::{Error, ErrorCode, JobId, JobState};
use velo_store::StageKind;
use velo_swarm::{BlobSpec, Known};

use super::core::Engine;
use super::handle::PullRequest;
use super::job::Job;
use super::task::{Done, Named, Opened, Task};
use super::want::{Later, Stage, Want};
use crate::metrics::add;
use crate::target::Target;

/// Blobs that are received at the same time.
const ACTIVE_MAX: usize = 128;
/// Peers that are asked about a blob only because there is a session with them.
pub(super) const ASKED_UNASKED: usize = 32;
/// Ended jobs that are remembered, and for how long.
const ENDED_MAX: usize = 256;
const ENDED_US: u64 = 3_600_000_000;
/// How long nothing must have come, and nobody be left to come, before a job counts as waiting.
const WAITING_US: u64 = 500_000;
/// How long a source that cannot be reached may still turn out to have what all others state at a size that does not fit here.
const REFUSED_US: u64 = 10_000_000;

impl Engine {
    pub(super) fn begin_job(&mut self, now: u64, id: JobId, request: PullRequest) {
        let PullRequest { roots, tables_only, sources, priority, sinks, sizes } = request;
        let mut job = Job::new(id, roots.clone(), self.store.hold(), now);
        job.tables_only = tables_only;
        job.priority = priority;
        self.jobs.insert(id, job);
        self.board_behind = true;
        add(&self.shared.metrics.counters.jobs_started_total, 1);
        self.sinks.extend(sinks.into_iter().map(|(blob, file)| ((id, blob), file)));
        for (at, root) in roots.iter().enumerate() {
            let size = sizes.get(at).copied().flatten();
            self.want(id, root.blob, StageKind::Blob, size, root.kind == ObjectKind::Tree);
        }
        self.add_sources(now, id, sources);
        self.end_if_complete(now, id);
    }

    /// A job misses a blob.
    fn want(&mut self, id: JobId, blob: BlobId, kind: StageKind, size: Option<u64>, table: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.hold.add(blob);
        let sink = self.sinks.remove(&(id, blob));
        let new = !self.wants.contains_key(&blob);
        let serial = self.next_want;
        self.next_want += u64::from(new);
        let want = self.wants.entry(blob).or_insert_with(|| Want::new(serial, kind, size, job.priority));
        if kind == StageKind::Pack {
            want.kind = kind;
        }
        if new {
            want.sink = sink;
        } else if !want.jobs.contains(&id) && (want.sink.is_some() || sink.is_some()) {
            if job.missing.insert(blob) {
                want.later.push(Later { job: id, sink, table });
            }
            return;
        }
        if table && !want.table_of.contains(&id) {
            want.table_of.push(id);
        }
        if job.missing.insert(blob) {
            want.jobs.push(id);
            job.total_bytes += want.size_bytes.unwrap_or(0);
            job.done_bytes += want.done_bytes;
            job.changed = true;
        }
        if new {
            self.queues.entry(Reverse(job.priority)).or_default().push_back(blob);
        } else {
            for node in job.sources.clone() {
                self.ask_about(node, blob);
            }
        }
    }

    /// Opens queued wants while there is room for more.
    pub(super) fn activate(&mut self) {
        while self.active.len() < ACTIVE_MAX {
            let Some(mut queue) = self.queues.first_entry() else { return };
            let Some(blob) = queue.get_mut().pop_front() else {
                queue.remove();
                continue;
            };
            if self.wants.get(&blob).is_none_or(|want| want.stage != Stage::Queued) {
                continue;
            }
            self.active.insert(blob);
            self.open(&blob);
        }
    }

    /// Has the store asked what is here of a wanted blob.
    fn open(&mut self, blob: &BlobId) {
        let Some(want) = self.wants.get_mut(blob) else { return };
        want.stage = Stage::Opening;
        let sink = want.sink.as_ref().and_then(|sink| sink.try_clone().ok());
        self.tasks.push(Task::Open {
            serial: want.serial,
            blob: *blob,
            kind: want.kind,
            trusted_bytes: want.trusted_bytes,
            sink,
        });
    }

    pub(super) fn task_done(&mut self, now: u64, done: Done) {
        match done {
            Done::Opened { serial, blob, opened } => self.opened(now, serial, blob, opened),
            Done::Outboard { tag, blob, result } => self.outboard_done(now, tag, blob, result),
            Done::Committed { serial, blob, result } => {
                if self.wants.get(&blob).is_none_or(|want| want.serial != serial) {
                    return;
                }
                match result {
                    Ok(()) => self.all_here(now, blob),
                    Err(error) => self.fail_want(now, blob, error),
                }
            }
            Done::Table { jobs, result } => self.table_read(now, jobs, result),
            Done::Haves { node, haves } => self.haves_found(node, haves),
            Done::Pairs(done) => self.pairs_done(now, done),
            Done::Port(done) => self.port_done(now, done),
        }
    }

    /// A blob is received under an outboard from now on; some pieces of it may be there.
    pub(super) fn resume(&mut self, now: u64, blob: BlobId, target: &Target) {
        let Some(staging) = target.staging() else { return };
        let have = staging.have();
        add(&self.shared.metrics.counters.pieces_resumed_total, have.count());
        let pieces = velo_object::Pieces::new(staging.size_bytes());
        self.account(now, blob, None, have.iter().map(|index| pieces.len(index)).sum());
        for index in have.iter() {
            self.planner.handle_verified(now, &blob, index);
        }
    }

    fn opened(&mut self, now: u64, serial: u64, blob: BlobId, opened: Result<Opened, Error>) {
        let opening = |want: &&mut Want| want.serial == serial && want.stage == Stage::Opening;
        let Some(want) = self.wants.get_mut(&blob).filter(opening) else { return };
        let mut spec = BlobSpec { blob, known: Known::Nothing, have: None, priority: want.priority };
        match opened {
            Err(error) => return self.fail_want(now, blob, error),
            Ok(Opened::Complete { size_bytes }) => {
                self.set_size(blob, size_bytes);
                return self.all_here(now, blob);
            }
            Ok(Opened::Partial { target, staging }) => {
                // Pieces that an earlier job left on their way may still come in until now.
                let (size_bytes, have) = (staging.size_bytes(), staging.have());
                add(&self.shared.metrics.counters.pieces_resumed_total, have.count());
                let pieces = velo_object::Pieces::new(size_bytes);
                let bytes: u64 = have.iter().map(|index| pieces.len(index)).sum();
                want.target = Some(target);
                spec.known = Known::Outboard(size_bytes);
                spec.have = Some(have);
                self.set_size(blob, size_bytes);
                self.account(now, blob, None, bytes);
            }
            // It was stored just now, before anybody could be told.
            Ok(Opened::Nothing { .. }) if want.sink.is_some() && self.store.has(&blob).unwrap_or(false) => {
                return self.open(&blob);
            }
            Ok(Opened::Nothing { target }) => {
                want.target.clone_from(&target);
                want.whole = target;
                if let Some(size_bytes) = want.trusted_bytes {
                    spec.known = Known::Size(size_bytes);
                }
            }
        }
        if let Some(want) = self.wants.get_mut(&blob) {
            want.stage = Stage::Active;
        }
        if !self.planner.add_blob(now, spec) {
            let message = "too many blobs are being received: try again when other jobs have ended".into();
            return self.fail_want(now, blob, Error { code: ErrorCode::Limit, message });
        }
        for node in self.sources_of(&blob) {
            self.ask_about(node, blob);
        }
        self.announce(&blob);
    }

    /// Those who may have a blob: the sources of the jobs that miss it, who is interested in it too, and some of those with a
    /// session.
    fn sources_of(&self, blob: &BlobId) -> Vec<NodeId> {
        let Some(want) = self.wants.get(blob) else { return Vec::new() };
        let of_jobs = want.jobs.iter().filter_map(|id| self.jobs.get(id)).flat_map(|job| job.sources.iter());
        let interested = self.interested.get(blob).into_iter().flatten();
        let up = self.peers.iter().filter(|(_, peer)| peer.up).map(|(node, _)| node).take(ASKED_UNASKED);
        of_jobs
            .chain(interested)
            .chain(up)
            .copied()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    pub(super) fn add_sources(&mut self, now: u64, id: JobId, sources: Vec<NodeId>) {
        let me = self.shared.node;
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.goes_on()) else { return };
        job.progressed = now;
        let new: Vec<_> =
            sources.into_iter().filter(|node| *node != me && job.sources.insert(*node)).collect();
        let blobs: Vec<_> = self.active.iter().filter(|blob| job.missing.contains(*blob)).copied().collect();
        for node in new {
            self.peer(node).failures = 0;
            for blob in &blobs {
                self.ask_about(node, *blob);
            }
        }
        self.dial(now);
    }

    /// A blob's size became known, or another one than was thought.
    pub(super) fn set_size(&mut self, blob: BlobId, size_bytes: u64) {
        self.resize(blob, Some(size_bytes));
    }

    pub(super) fn resize(&mut self, blob: BlobId, size_bytes: Option<u64>) {
        let Some(want) = self.wants.get_mut(&blob) else { return };
        let before = std::mem::replace(&mut want.size_bytes, size_bytes).unwrap_or(0);
        for id in &want.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.total_bytes = job.total_bytes - before + size_bytes.unwrap_or(0);
                job.changed = true;
            }
        }
        self.board_behind = true;
    }

    /// Verified bytes have come for a blob, from a peer or from an earlier run.
    pub(super) fn account(&mut self, now: u64, blob: BlobId, node: Option<NodeId>, bytes: u64) {
        let Some(want) = self.wants.get_mut(&blob) else { return };
        want.done_bytes += bytes;
        for id in &want.jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.account(node, bytes, now);
            }
        }
        self.board_behind = true;
    }

    /// All of a blob is here. Where a tree named it as a pack, its contents must be found, too.
    fn all_here(&mut self, now: u64, blob: BlobId) {
        if let Some(want) = self.wants.get_mut(&blob)
            && want.kind == StageKind::Pack
            && want.sink.is_none()
            && !self.store.has_pack(&blob).unwrap_or(false)
        {
            want.stage = Stage::Committing;
            return self.tasks.push(Task::Pack { serial: want.serial, blob });
        }
        self.blob_here(now, blob);
    }

    /// A blob is complete: its jobs miss it no more.
    fn blob_here(&mut self, now: u64, blob: BlobId) {
        self.tell_news();
        let Some(want) = self.wants.remove(&blob) else { return };
        let arrived = want.stage == Stage::Committing;
        add(&self.shared.metrics.counters.blobs_completed_total, u64::from(arrived));
        self.drop_blob(now, blob);
        for id in &want.jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            job.missing.remove(&blob);
            job.done_bytes += want.size_bytes.unwrap_or(0).saturating_sub(want.done_bytes);
            job.changed = true;
        }
        self.board_behind = true;
        let readers: Vec<_> = want
            .table_of
            .iter()
            .filter(|id| self.jobs.get(id).is_some_and(|job| !job.tables_only))
            .copied()
            .collect();
        for id in &readers {
            if let Some(job) = self.jobs.get_mut(id) {
                job.tables_to_read += 1;
            }
        }
        if !readers.is_empty() {
            self.tasks.push(Task::Table { blob, jobs: readers });
        }
        self.want_again(blob, want.kind, want.size_bytes, want.later);
        for id in want.jobs {
            self.end_if_complete(now, id);
        }
    }

    /// Jobs that waited for another's transfer of a blob want it now.
    fn want_again(&mut self, blob: BlobId, kind: StageKind, size: Option<u64>, jobs: Vec<Later>) {
        for Later { job: id, sink, table } in jobs {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.missing.remove(&blob);
            self.sinks.extend(sink.map(|sink| ((id, blob), sink)));
            self.want(id, blob, kind, size, table);
        }
    }

    /// All of a blob came another way than from a peer.
    pub(super) fn stored(&mut self, now: u64, blob: BlobId, size_bytes: u64) {
        for node in self.interested.get(&blob).into_iter().flatten() {
            self.tasks.push(Task::Haves { node: *node, blobs: vec![blob] });
        }
        let Some(want) = self.wants.get(&blob) else { return };
        let found = want.kind == StageKind::Blob || self.store.has_file(&blob).unwrap_or(false);
        // What is being committed ends by itself.
        if want.stage == Stage::Committing || !found {
            return;
        }
        if want.sink.is_none() {
            self.set_size(blob, size_bytes);
            return self.all_here(now, blob);
        }
        if want.stage != Stage::Active {
            // It is found when it is opened.
            return;
        }
        // It is opened once more, which copies it.
        want.target.iter().chain(&want.whole).for_each(|target| target.let_go());
        self.planner.remove_blob(now, &blob);
        self.begin_again(now, blob);
        if let Some(want) = self.wants.get_mut(&blob) {
            (want.target, want.whole) = (None, None);
        }
        self.open(&blob);
    }

    /// Nothing of a blob counts as received any more, and its size is what it was known to be at first.
    pub(super) fn begin_again(&mut self, now: u64, blob: BlobId) {
        let Some(want) = self.wants.get_mut(&blob) else { return };
        want.news.clear();
        let lost = std::mem::take(&mut want.done_bytes);
        let (jobs, trusted_bytes) = (want.jobs.clone(), want.trusted_bytes);
        self.resize(blob, trusted_bytes);
        self.with_news.remove(&blob);
        for id in jobs {
            if let Some(job) = self.jobs.get_mut(&id) {
                job.done_bytes -= lost;
                job.progressed = now;
                job.changed = true;
            }
        }
    }

    /// The planner and the peers hear no more of a blob.
    fn drop_blob(&mut self, now: u64, blob: BlobId) {
        self.active.remove(&blob);
        self.with_news.remove(&blob);
        self.planner.remove_blob(now, &blob);
        for (node, peer) in &mut self.peers {
            peer.to_ask.remove(&blob);
            peer.unanswered.remove(&blob);
            if peer.told.remove(&blob) {
                peer.to_end.insert(blob);
                self.to_tell.insert(*node);
            }
        }
    }

    fn table_read(&mut self, now: u64, jobs: Vec<JobId>, result: Result<Vec<Named>, Error>) {
        for id in &jobs {
            if let Some(job) = self.jobs.get_mut(id) {
                job.tables_to_read -= 1;
            }
        }
        match result {
            Ok(contents) => {
                for id in jobs {
                    if !self.jobs.get(&id).is_some_and(Job::goes_on) {
                        continue;
                    }
                    for Named { blob, size_bytes, kind } in &contents {
                        self.want(id, *blob, *kind, Some(*size_bytes), false);
                    }
                    self.end_if_complete(now, id);
                }
            }
            Err(error) => {
                jobs.into_iter().for_each(|id| self.end_job(now, id, JobState::Failed(error.clone())));
            }
        }
    }

    /// A blob cannot be received: all that miss it fail.
    pub(super) fn fail_want(&mut self, now: u64, blob: BlobId, error: Error) {
        let Some(want) = self.wants.get(&blob) else { return };
        for id in want.jobs.clone() {
            self.end_job(now, id, JobState::Failed(error.clone()));
        }
    }

    pub(super) fn cancel_job(&mut self, now: u64, id: JobId) {
        self.end_job(now, id, JobState::Cancelled);
    }

    fn end_if_complete(&mut self, now: u64, id: JobId) {
        if self.jobs.get(&id).is_some_and(|job| job.goes_on() && job.has_all()) {
            self.end_job(now, id, JobState::Complete);
        }
    }

    fn end_job(&mut self, now: u64, id: JobId, state: JobState) {
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.goes_on()) else { return };
        let counters = &self.shared.metrics.counters;
        match &state {
            JobState::Complete => add(&counters.jobs_completed_total, 1),
            JobState::Failed(error) => {
                add(&counters.jobs_failed_total, 1);
                tracing::warn!(job = id, "the job failed: {error}");
            }
            _ => {}
        }
        job.state = state;
        job.ended = Some(now);
        job.hold.release();
        let missing: Vec<_> = job.missing.iter().copied().collect();
        self.shared.board.post(job.status(now));
        job.changed = false;
        self.shared.running.fetch_sub(1, Ordering::Relaxed);
        self.ended.push_back(id);
        self.sinks.retain(|(job, _), _| *job != id);
        for blob in missing {
            let Some(want) = self.wants.get_mut(&blob) else { continue };
            want.jobs.retain(|job| *job != id);
            want.table_of.retain(|job| *job != id);
            want.later.retain(|later| later.job != id);
            if want.jobs.is_empty()
                && let Some(want) = self.wants.remove(&blob)
            {
                self.drop_blob(now, blob);
                want.target.iter().chain(&want.whole).for_each(|target| target.let_go());
                self.want_again(blob, want.kind, want.trusted_bytes, want.later);
            }
        }
    }

    pub(super) fn end_all_jobs(&mut self) {
        let now = self.now();
        let message = "velod is stopping: what has arrived stays, ask again when it runs".to_owned();
        let error = Error { code: ErrorCode::Cancelled, message };
        let running: Vec<_> = self.jobs.values().filter(|job| job.goes_on()).map(|job| job.id).collect();
        running.into_iter().for_each(|id| self.end_job(now, id, JobState::Failed(error.clone())));
    }

    pub(super) fn forget_old_jobs(&mut self, now: u64) {
        while let Some(id) = self.ended.front().copied() {
            let old = self.jobs.get(&id).and_then(|job| job.ended).is_none_or(|ended| ended + ENDED_US < now);
            if self.ended.len() <= ENDED_MAX && !old {
                return;
            }
            self.ended.pop_front();
            self.jobs.remove(&id);
            self.shared.board.remove(id);
        }
    }

    /// A job waits where nothing of it is on its way, nobody who is reachable has what it misses, and nobody is being asked.
    pub(super) fn find_waiting_jobs(&mut self, now: u64) {
        let mut refused = Vec::new();
        for job in self.jobs.values_mut().filter(|job| job.goes_on()) {
            let blob_goes_on = |blob: &&BlobId| {
                self.wants.get(*blob).is_some_and(|want| want.stage != Stage::Active)
                    || self.planner.progress(blob).is_some_and(|at| at.in_flight > 0 || at.sources > 0)
            };
            let asked = |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.may_answer(now));
            let goes_on = now < job.progressed + WAITING_US
                || job.tables_to_read > 0
                || self
                    .active
                    .iter()
                    .filter(|blob| job.missing.contains(*blob))
                    .any(|blob| blob_goes_on(&blob))
                || job.sources.iter().any(asked);
            let all_up = || job.sources.iter().all(|node| self.peers.get(node).is_some_and(|peer| peer.up));
            let missing = if goes_on { None } else { Some(&job.missing) };
            let error = missing
                .into_iter()
                .flatten()
                .filter_map(|blob| self.wants.get(blob))
                // Where it waits for another's transfer, the room may be elsewhere.
                .filter(|want| want.jobs.contains(&job.id))
                .filter_map(|want| want.refused.as_ref())
                .find(|(since, _)| now > since + REFUSED_US || all_up());
            refused.extend(error.map(|(_, error)| (job.id, error.clone())));
            let state = if goes_on { JobState::Running } else { JobState::Waiting };
            if job.state != state {
                job.state = state;
                job.changed = true;
                self.board_behind = true;
            }
        }
        for (id, error) in refused {
            self.end_job(now, id, JobState::Failed(error));
        }
    }
}
