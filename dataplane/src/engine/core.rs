//! The engine's thread: what it owns, and the turn of its loop.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::ring::{Consumer, Producer, Sleeper};
use velo_fabric::{PathId, pool::Pool};
use velo_object::{BlobId, NodeId};
use velo_socket::JobId;
use velo_store::Store;
use velo_swarm::Planner;

use super::exchange::HeldHave;
use super::handle::Shared;
use super::inbox::Input;
use super::job::Job;
use super::packets::PacketFabric;
use super::pairs::RdmaFabric;
use super::peers::{PathPlace, PeerMap, Peers};
use super::task::TaskQueue;
use super::want::{Ask, AskTag, Want};
use crate::verify::{Check, Verdict};
use crate::worker::{Command, WorkerEvent};

/// Inputs of one kind taken in one turn.
const TURN: usize = 512;
/// How often what has come is told to those who are interested.
const NEWS_US: u64 = 20_000;
/// How often the board is written while a job goes on.
const BOARD_US: u64 = 20_000;
/// How often sessions, waiting jobs and old jobs are looked after.
const TICK_US: u64 = 100_000;

/// A worker as the engine sees it.
pub(super) struct WorkerPort {
    pub(super) commands: Producer<Command>,
    /// Commands that found no room.
    pub(super) late: VecDeque<Command>,
    pub(super) events: Consumer<WorkerEvent>,
}

impl WorkerPort {
    pub(super) fn send(&mut self, command: Command) {
        if !self.late.is_empty() {
            self.late.push_back(command);
        } else if let Err(command) = self.commands.push(command) {
            self.late.push_back(command);
        }
    }

    fn flush(&mut self) {
        while let Some(command) = self.late.pop_front() {
            if let Err(command) = self.commands.push(command) {
                self.late.push_front(command);
                return;
            }
        }
    }
}

/// A verifier as the engine sees it.
pub(super) struct VerifierPort {
    pub(super) checks: Producer<Check>,
    pub(super) late: VecDeque<Check>,
    pub(super) verdicts: Consumer<Verdict>,
}

impl VerifierPort {
    pub(super) fn send(&mut self, check: Check) {
        self.late.push_back(check);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(check) = self.late.pop_front() {
            if let Err(check) = self.checks.push(check) {
                self.late.push_front(check);
                return;
            }
        }
    }
}

/// What stays the same while the engine runs.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) streams_per_peer: usize,
}

/// The engine.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Settings,
    pub(super) sessions: Box<dyn Peers>,
    pub(super) planner: Planner,
    pub(super) pool: Pool,
    pub(super) store: Store,
    pub(super) tasks: TaskQueue,
    /// For queue pairs alone.
    pub(super) pair_tasks: TaskQueue,
    /// Those of TCP first.
    pub(super) workers: Vec<WorkerPort>,
    pub(super) tcp_workers: usize,
    /// The other fabrics that this node has, and where TCP stands among them in the order of preference.
    pub(super) packets: Vec<PacketFabric>,
    pub(super) rdma: Option<RdmaFabric>,
    pub(super) tcp_rank: u8,
    pub(super) verifiers: Vec<VerifierPort>,
    pub(super) sleeper: Sleeper,
    pub(super) epoch: Instant,

    pub(super) jobs: BTreeMap<JobId, Job>,
    /// Ended jobs, oldest first.
    pub(super) ended: VecDeque<JobId>,
    pub(super) wants: HashMap<BlobId, Want>,
    /// Where blobs go that a job has not come to miss yet.
    pub(super) sinks: HashMap<(JobId, BlobId), std::fs::File>,
    /// Queued wants by falling priority.
    pub(super) queues: BTreeMap<std::cmp::Reverse<u8>, VecDeque<BlobId>>,
    /// Wants that are opening, active or committing.
    pub(super) active: HashSet<BlobId>,
    pub(super) peers: PeerMap,
    /// Who is interested in a blob.
    pub(super) interested: HashMap<BlobId, HashSet<NodeId>>,
    /// What peers have that the planner does not know yet.
    pub(super) held: Vec<HeldHave>,
    /// Active wants with news.
    pub(super) with_news: HashSet<BlobId>,
    pub(super) asks: HashMap<AskTag, Ask>,
    /// Peers with reads that wait for a path or a buffer.
    pub(super) queued_peers: HashSet<NodeId>,
    /// Peers with messages to be sent.
    pub(super) to_tell: HashSet<NodeId>,
    pub(super) paths: HashMap<PathId, PathPlace>,
    pub(super) next_path: PathId,
    /// Paths that are no streams, and the most that there may be.
    pub(super) packet_paths: usize,
    pub(super) packet_paths_max: usize,
    /// The serial number of the last packet path.
    pub(super) path_serial: u64,
    pub(super) next_offer: u32,
    pub(super) next_session: u64,
    pub(super) next_want: u64,

    pub(super) next_news: u64,
    pub(super) next_board: u64,
    pub(super) next_tick: u64,
    pub(super) board_behind: bool,
}

impl Engine {
    /// Microseconds since the engine began.
    pub(super) fn now(&self) -> u64 {
        self.epoch.elapsed().as_micros() as u64
    }

    /// Runs until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            if !self.turn() {
                break;
            }
            if self.sleep().is_err() {
                self.shared.metrics.note("the engine cannot wait for its descriptors; it polls");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.shared.inbox.close();
        self.end_all_jobs();
        for worker in &mut self.workers {
            worker.send(Command::Stop);
        }
        for verifier in &mut self.verifiers {
            verifier.send(Check::Stop);
        }
        self.tasks.close();
        self.pair_tasks.close();
    }

    fn sleep(&mut self) -> std::io::Result<()> {
        let now = self.now();
        let mut until = self.next_tick;
        if !self.with_news.is_empty() {
            until = until.min(self.next_news);
        }
        if self.board_behind {
            until = until.min(self.next_board);
        }
        until = self.held.iter().map(|held| held.until).fold(until, u64::min);
        until = self.planner.next_deadline().map_or(until, |at| until.min(at));
        if self.nothing_runs() {
            until = until.max(now + 10 * TICK_US);
        }
        let timeout = Duration::from_micros(until.saturating_sub(now));
        let has_work = || {
            !self.shared.inbox.is_empty()
                || self.workers.iter().any(|worker| !worker.events.is_empty())
                || self.verifiers.iter().any(|verifier| !verifier.verdicts.is_empty())
        };
        self.sleeper.sleep_unless(has_work, &[], Some(timeout))
    }

    fn nothing_runs(&self) -> bool {
        self.wants.is_empty() && self.with_news.is_empty() && !self.board_behind && self.asks.is_empty()
    }

    /// One turn. False where the engine is to stop.
    fn turn(&mut self) -> bool {
        let now = self.now();
        // What a worker said of a piece was said before a verifier could say anything of it: so verdicts are taken first
        // and heard last.
        let mut verdicts = Vec::new();
        for verifier in &mut self.verifiers {
            verifier.verdicts.pop_batch(&mut verdicts, TURN);
        }
        let mut events = Vec::new();
        for worker in &mut self.workers {
            worker.events.pop_batch(&mut events, usize::MAX);
        }
        for event in events {
            self.worker_event(now, event);
        }
        for verdict in verdicts {
            self.verdict(now, verdict);
        }
        for _ in 0..TURN {
            match self.shared.inbox.pop() {
                None => break,
                Some(Input::Pull(job, request)) => self.begin_job(now, job, *request),
                Some(Input::AddSources(job, sources)) => self.add_sources(now, job, sources),
                Some(Input::Cancel(job)) => self.cancel_job(now, job),
                Some(Input::Stored(blob, size_bytes)) => self.stored(now, blob, size_bytes),
                Some(Input::Session(event)) => self.session_event(now, *event),
                Some(Input::Done(done)) => self.task_done(now, *done),
                Some(Input::Stop) => return false,
            }
        }
        self.activate();
        self.tell_interests();
        if !self.held.is_empty() {
            self.release_haves(now);
        }
        self.plan(now);
        self.dispatch(now);
        if now >= self.next_news {
            self.next_news = now + NEWS_US;
            self.tell_news();
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK_US;
            self.tick(now);
        }
        if self.board_behind && now >= self.next_board {
            self.next_board = now + BOARD_US;
            self.write_board(now);
        }
        self.workers.iter_mut().for_each(WorkerPort::flush);
        self.verifiers.iter_mut().for_each(VerifierPort::flush);
        true
    }

    fn tick(&mut self, now: u64) {
        self.dial(now);
        self.look_after_fabrics(now);
        self.fail_pathless(now);
        self.find_waiting_jobs(now);
        self.forget_old_jobs(now);
        let metrics = &self.shared.metrics;
        *metrics.planner.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = self.planner.counters();
        let gauges = &metrics.gauges;
        let set = |gauge: &std::sync::atomic::AtomicU64, value: usize| {
            gauge.store(value as u64, std::sync::atomic::Ordering::Relaxed);
        };
        set(&gauges.jobs_running, self.jobs.values().filter(|job| job.goes_on()).count());
        set(&gauges.blobs_missing, self.wants.len());
        set(&gauges.blobs_active, self.active.len());
        set(&gauges.reads_in_flight, self.asks.len());
        set(&gauges.sources, self.peers.values().filter(|peer| peer.source).count());
    }

    fn write_board(&mut self, now: u64) {
        self.board_behind = false;
        for job in self.jobs.values_mut().filter(|job| job.changed) {
            job.changed = false;
            self.shared.board.post(job.status(now));
        }
    }
}
