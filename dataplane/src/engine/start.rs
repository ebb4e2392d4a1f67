//! [`DataPlane`]: workers, verifiers, tasks and the engine, made and connected.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use velo_config::{Pin, Poll};
use velo_fabric::pool::Pool;
use velo_fabric::ring::{Sleeper, ring};
use velo_fabric::tcp::{READS_PER_PATH, Tcp, TcpOptions};
use velo_object::{NodeId, PIECE_BYTES};
use velo_store::Store;
use velo_swarm::{Limits, Planner};

use super::core::{Engine, Settings, VerifierPort, WorkerPort};
use super::fatal::EndsProcess;
use super::handle::{EngineHandle, Shared};
use super::peers::Peers;
use super::task::TaskQueue;
use crate::metrics::{Metrics, WorkerNumbers};
use crate::serve::StoreServe;
use crate::topology::{self, Core};
use crate::verify::Verifier;
use crate::worker::Worker;

/// Commands and events of one worker that wait at most.
const RING: usize = 4096;
/// The most memory for buffers: more helps no transfer.
const POOL_MAX_BYTES: u64 = 4 << 30;
/// The part of the configured memory that buffers get. The rest is for what TLS has to send, for have-maps, outboards
/// and the store's index.
const POOL_SHARE: u64 = 2;
/// The part that all workers together have for encrypted bytes that peers have not taken.
const SEND_SHARE: u64 = 4;

/// What a [`DataPlane`] is made with.
#[derive(Debug, Clone)]
pub struct DataPlaneOptions {
    /// This node.
    pub node: NodeId,
    /// Worker threads; none for what suits the machine.
    pub workers: Option<usize>,
    /// Verifier threads; none for what suits the machine.
    pub verifiers: Option<usize>,
    /// What idle workers do.
    pub poll: Poll,
    /// Whether workers are pinned.
    pub pin: Pin,
    /// The bound on this process's own memory.
    pub memory_bytes: u64,
    /// Data streams to one peer.
    pub streams_per_peer: usize,
    /// A peer that sends nothing for this long with reads outstanding is dropped.
    pub stall_timeout: Duration,
}

impl DataPlaneOptions {
    /// What the default configuration says, for `node`.
    pub fn new(node: NodeId) -> Self {
        let config = velo_config::Config::default();
        Self::from_config(&config, node)
    }

    /// What `config` says, for `node`.
    pub fn from_config(config: &velo_config::Config, node: NodeId) -> Self {
        Self {
            node,
            workers: config.dataplane.workers.fixed(),
            verifiers: config.dataplane.verify_threads.fixed(),
            poll: config.dataplane.poll,
            pin: config.dataplane.pin,
            memory_bytes: config.dataplane.memory.0,
            streams_per_peer: config.net.streams_per_peer.into(),
            stall_timeout: Duration::from_millis(config.net.stall_timeout_ms),
        }
    }
}

/// The threads that move bytes. Made in two steps: the handle is needed to make the sessions that the engine needs.
pub struct DataPlane {
    options: DataPlaneOptions,
    store: Store,
    shared: Arc<Shared>,
    sleeper: Sleeper,
    threads: Vec<JoinHandle<()>>,
}

impl DataPlane {
    /// Makes the handle; nothing runs yet, and what is asked waits.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new(options: DataPlaneOptions, store: Store) -> io::Result<Self> {
        let sleeper = Sleeper::new()?;
        let shared = Arc::new(Shared::new(options.node, sleeper.waker(), Arc::new(Metrics::default())));
        Ok(Self { options, store, shared, sleeper, threads: Vec::new() })
    }

    /// Speaks to the engine.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle::new(self.shared.clone())
    }

    /// Starts all threads.
    ///
    /// # Errors
    /// Where the system gives no memory, descriptors or threads.
    pub fn start(self, sessions: Box<dyn Peers>) -> anyhow::Result<RunningDataPlane> {
        let Self { options, store, shared, sleeper, mut threads } = self;
        let metrics = shared.metrics.clone();
        let cores = topology::cores();
        let worker_count = options.workers.unwrap_or_else(|| topology::auto_workers(cores.len())).max(1);
        let verifier_count = options.verifiers.unwrap_or(cores.len().min(8)).max(1);
        let pool = Pool::new((options.memory_bytes / POOL_SHARE).clamp(8 * PIECE_BYTES, POOL_MAX_BYTES))?;
        let buffers = pool.capacity();
        *metrics.pool.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool.clone());
        let pins = topology::plan(options.pin, worker_count, &cores);
        if let Err(why) = &pins {
            tracing::info!("{why}");
        }

        let mut verifier_ports = Vec::new();
        let mut verifiers: Vec<_> = Vec::new();
        for _ in 0..verifier_count {
            let own = Sleeper::new()?;
            let (checks, input) = ring(buffers + 64, own.waker());
            let (verdicts, heard) = ring(RING, sleeper.waker());
            verifier_ports.push(VerifierPort { checks, late: VecDeque::new(), verdicts: heard });
            verifiers.push(Verifier { inputs: vec![input], verdicts, sleeper: own });
        }
        let serve = Arc::new(StoreServe { store: store.clone(), metrics: metrics.clone() });
        let mut worker_ports = Vec::new();
        for at in 0..worker_count {
            let own = Sleeper::new()?;
            let (commands, obeyed) = ring(RING, own.waker());
            let (events, heard) = ring(RING, sleeper.waker());
            let mut to_verifiers = Vec::new();
            for verifier in &mut verifiers {
                let (push, pop) = ring(buffers + 64, verifier.sleeper.waker());
                verifier.inputs.push(pop);
                to_verifiers.push(push);
            }
            let mut tcp = TcpOptions { stall_timeout: options.stall_timeout, ..TcpOptions::default() };
            let send_share = options.memory_bytes / SEND_SHARE / worker_count as u64;
            tcp.send_memory_bytes = tcp.send_memory_bytes.min(send_share as usize);
            let numbers = Arc::new(WorkerNumbers::new("tcp"));
            metrics.workers.write().unwrap_or_else(PoisonError::into_inner).push(numbers.clone());
            let worker = Worker {
                fabric: Tcp::new(tcp, serve.clone())?,
                commands: obeyed,
                events,
                verifiers: to_verifiers,
                sleeper: own,
                poll: options.poll,
                spin: cores.len() >= 2 * (worker_count + 1),
                numbers,
            };
            let core = pins.as_ref().ok().map(|pins| pins[at]);
            worker_ports.push(WorkerPort { commands, late: VecDeque::new(), events: heard });
            let (metrics, poll) = (metrics.clone(), options.poll);
            threads.push(Builder::new().name(format!("velod-worker-{at}")).spawn(move || {
                let _end = EndsProcess;
                let line = pinned(core, &metrics);
                *worker.numbers.line.lock().unwrap_or_else(PoisonError::into_inner) = format!(
                    "tcp {at}: {line}, poll {}",
                    if poll == Poll::Busy { "busy" } else { "adaptive" }
                );
                if let Err(error) = worker.run() {
                    metrics.note(format!("worker {at} has ended: {error}; restart velod"));
                }
            })?);
        }
        for (at, verifier) in verifiers.into_iter().enumerate() {
            let metrics = metrics.clone();
            threads.push(Builder::new().name(format!("velod-verify-{at}")).spawn(move || {
                let _end = EndsProcess;
                if let Err(error) = verifier.run() {
                    metrics.note(format!("verifier {at} has ended: {error}; restart velod"));
                }
            })?);
        }

        let streams = options.streams_per_peer.min(2 * worker_count).max(1);
        let limits = Limits { bytes_in_flight: buffers as u64 * PIECE_BYTES, ..Limits::default() };
        let mut seed = [0; 8];
        getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
        let tasks = TaskQueue::start(cores.len().clamp(2, 4), &store, &shared)?;
        let handle = EngineHandle::new(shared.clone());
        let engine = Engine {
            settings: Settings { streams_per_peer: streams, reads_per_path: READS_PER_PATH as u32 },
            planner: Planner::new(options.node, limits, u64::from_le_bytes(seed)),
            shared,
            sessions,
            pool,
            store,
            tasks,
            workers: worker_ports,
            verifiers: verifier_ports,
            sleeper,
            epoch: Instant::now(),
            jobs: BTreeMap::new(),
            ended: VecDeque::new(),
            wants: HashMap::new(),
            sinks: HashMap::new(),
            queues: BTreeMap::new(),
            active: HashSet::new(),
            peers: HashMap::new(),
            interested: HashMap::new(),
            held: Vec::new(),
            with_news: HashSet::new(),
            asks: HashMap::new(),
            queued_peers: HashSet::new(),
            to_tell: HashSet::new(),
            paths: HashMap::new(),
            next_path: 1,
            next_want: 1,
            next_news: 0,
            next_board: 0,
            next_tick: 0,
            board_behind: false,
        };
        threads.push(Builder::new().name("velod-engine".into()).spawn(move || {
            let _end = EndsProcess;
            engine.run()
        })?);
        Ok(RunningDataPlane { handle, threads })
    }
}

fn pinned(core: Option<Core>, metrics: &Metrics) -> String {
    let Some(core) = core else { return "not pinned".into() };
    match topology::pin_this_thread(core) {
        Ok(()) => format!("core {}, NUMA node {}", core.cpu, core.numa),
        Err(why) => {
            metrics.note(why);
            "not pinned".into()
        }
    }
}

/// A data plane that runs; ends on drop.
#[derive(Debug)]
pub struct RunningDataPlane {
    handle: EngineHandle,
    threads: Vec<JoinHandle<()>>,
}

impl RunningDataPlane {
    /// Speaks to the engine.
    pub fn handle(&self) -> &EngineHandle {
        &self.handle
    }
}

impl Drop for RunningDataPlane {
    /// Stops all threads and waits for them.
    fn drop(&mut self) {
        self.handle.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
