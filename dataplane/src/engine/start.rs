//! [`DataPlane`]: workers, verifiers, tasks and the engine, made and connected.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use velo_config::{Fabric, Pin, Poll};
use velo_fabric::packet::protocol::EndpointOptions;
use velo_fabric::pool::Pool;
use velo_fabric::ring::{Sleeper, ring};
use velo_fabric::supply::Threads;
use velo_fabric::tcp::{Tcp, TcpOptions};
use velo_object::{NodeId, PIECE_BYTES};
use velo_store::Store;
use velo_swarm::{Limits, Planner};

use super::core::{Engine, Settings, VerifierPort, WorkerPort};
use super::fatal::{EndsProcess, EndsWith};
use super::handle::{EngineHandle, Shared};
use super::packets::PacketFabric;
use super::pairs::RdmaFabric;
use super::peers::Peers;
use super::ports::{PortParts, RdmaPort};
use super::task::TaskQueue;
use crate::carrier::{Carrier, Renewed};
use crate::fabrics::{self, FabricChoice};
use crate::metrics::Metrics;
use crate::numbers::{PortFacts, WorkerNumbers};
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
/// The part that all workers of TCP together have for encrypted bytes that peers have not taken.
const SEND_SHARE: u64 = 8;
/// The part that all workers besides those of TCP together have for what peers ask for, and the part for the state of their paths.
const SERVE_SHARE: u64 = 8;
const PATHS_SHARE: u64 = 16;
/// Memory of one packet path.
const PATH_BYTES: usize = 64 << 10;
/// The least that one of them has for what peers ask for.
const SERVE_MIN_BYTES: u64 = 4 * PIECE_BYTES;
/// Threads that make and destroy queue pairs, which is not to hold up what the store does.
const PAIR_TASKS: usize = 2;
/// Threads that read what peers ask of one of them, where there are cores for them.
const READERS: usize = 2;

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
    /// What moves pieces, best first.
    pub fabrics: FabricChoice,
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
            fabrics: FabricChoice::from_config(config),
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
        let planned = plan_workers(&options, worker_count, &cores, (&serve, &pool), &metrics)?;
        let Planned { carriers, packets, rdma, tcp_rank } = planned;
        let near: Vec<_> = carriers.iter().map(|worker| worker.numa).collect();
        let pins = topology::plan(options.pin, &near, &cores);
        if let Err(why) = &pins {
            tracing::info!("{why}");
        }
        let spin = cores.len() >= 2 * (carriers.len() + 1);
        let mut worker_ports = Vec::new();
        for (at, PlannedWorker { fabric, words, port, .. }) in carriers.into_iter().enumerate() {
            let own = Sleeper::new()?;
            let (commands, obeyed) = ring(RING, own.waker());
            let (events, heard) = ring(RING, sleeper.waker());
            let mut to_verifiers = Vec::new();
            for verifier in &mut verifiers {
                let (push, pop) = ring(buffers + 64, verifier.sleeper.waker());
                verifier.inputs.push(pop);
                to_verifiers.push(push);
            }
            let numbers = Arc::new(WorkerNumbers::new(&*fabric, words, port));
            metrics.workers.write().unwrap_or_else(PoisonError::into_inner).push(numbers.clone());
            let worker = Worker {
                at,
                fabric,
                commands: obeyed,
                events,
                verifiers: to_verifiers,
                sleeper: own,
                poll: options.poll,
                spin,
                numbers,
            };
            let core = pins.as_ref().ok().map(|pins| pins[at]);
            worker_ports.push(WorkerPort { commands, late: VecDeque::new(), events: heard });
            let (metrics, poll) = (metrics.clone(), options.poll);
            threads.push(Builder::new().name(format!("velod-worker-{at}")).spawn(move || {
                let _end = EndsProcess;
                let line = pinned(core, &metrics);
                let poll = if poll == Poll::Busy { "busy" } else { "adaptive" };
                let _ = worker.numbers.runs.set(format!("{line}, poll {poll}"));
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
        let pair_tasks = TaskQueue::start(if rdma.is_some() { PAIR_TASKS } else { 0 }, &store, &shared)?;
        let handle = EngineHandle::new(shared.clone());
        let engine = Engine {
            settings: Settings { streams_per_peer: streams },
            planner: Planner::new(options.node, limits, u64::from_le_bytes(seed)),
            shared,
            sessions,
            pool,
            store,
            tasks,
            pair_tasks,
            workers: worker_ports,
            tcp_workers: worker_count,
            packets,
            rdma,
            tcp_rank,
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
            packet_paths: 0,
            packet_paths_max: packet_paths_max(&options),
            path_serial: 0,
            next_offer: 0,
            next_session: 0,
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

/// A worker to be.
struct PlannedWorker {
    fabric: Box<dyn Carrier>,
    /// The NUMA node of its device.
    numa: Option<usize>,
    /// Its name in the status.
    words: String,
    port: Option<PortFacts>,
}

/// The workers, those of TCP first, and the fabrics that the others drive.
struct Planned {
    carriers: Vec<PlannedWorker>,
    packets: Vec<PacketFabric>,
    rdma: Option<RdmaFabric>,
    tcp_rank: u8,
}

fn plan_workers(
    options: &DataPlaneOptions,
    tcp_workers: usize,
    cores: &[Core],
    (serve, pool): (&Arc<StoreServe>, &Pool),
    metrics: &Metrics,
) -> anyhow::Result<Planned> {
    let mut carriers: Vec<PlannedWorker> = Vec::new();
    let mut tcp = TcpOptions { stall_timeout: options.stall_timeout, ..TcpOptions::default() };
    let send_share = options.memory_bytes / SEND_SHARE / tcp_workers as u64;
    tcp.send_memory_bytes = tcp.send_memory_bytes.min(send_share as usize);
    for at in 0..tcp_workers {
        let fabric = Box::new(Tcp::new(tcp, serve.clone())?);
        carriers.push(PlannedWorker { fabric, numa: None, words: format!("tcp {at}"), port: None });
    }
    let choice = &options.fabrics;
    let opened = fabrics::open(choice, cores.len(), |note| metrics.note(note));
    let packet_workers: usize = opened.packets.iter().map(|fabric| fabric.ports.len()).sum();
    let rdma_workers = opened.rdma.as_ref().map_or(0, |rdma| rdma.ports.len());
    let serve_share = options.memory_bytes / SERVE_SHARE / (packet_workers + rdma_workers).max(1) as u64;
    let serve_share = serve_share.max(SERVE_MIN_BYTES);
    let readers = if cores.len() < 4 { 1 } else { READERS };
    let mut packets = Vec::new();
    for fabric in opened.packets {
        let (kind, count) = (fabric.kind, fabric.ports.len());
        let mut ends = Vec::new();
        for (at, port) in fabric.ports.into_iter().enumerate() {
            let mut seed = [0; 8];
            getrandom::fill(&mut seed).map_err(|error| io::Error::other(error.to_string()))?;
            let endpoint = EndpointOptions {
                stall_timeout: options.stall_timeout,
                line_rate_bytes_per_s: choice.line_rate_bytes_per_s,
                line_shares: count as u32,
                seed: u64::from_le_bytes(seed),
                ..EndpointOptions::default()
            };
            let carrier = topology::near(port.numa, cores, || -> anyhow::Result<_> {
                let pool = Pool::new(serve_share)?;
                let supply = Threads::new(Arc::new(EndsWith(serve.clone())), pool, readers)?;
                Ok((port.make)(Box::new(supply), endpoint)?)
            })?;
            ends.push((carriers.len(), port.address));
            let words = format!("{} {at} {}", kind.fabric(), port.words);
            carriers.push(PlannedWorker { fabric: carrier, numa: port.numa, words, port: None });
        }
        let (rank, datagram_max_bytes) = (fabric.rank, fabric.datagram_max_bytes);
        packets.push(PacketFabric { kind, rank, ends, datagram_max_bytes, next_end: 0, failed: 0 });
    }
    let shares = (serve_share, readers);
    let parts =
        PortParts::new(options, (serve, pool), shares, cores, rdma_workers, packet_paths_max(options));
    let mut rdma = RdmaFabric { rank: 0, ports: Vec::new(), parts: Arc::new(parts) };
    for port in opened.rdma.into_iter().flat_map(|opened| {
        rdma.rank = opened.rank;
        opened.ports
    }) {
        let (place, numa) = (port.device.place().clone(), port.numa);
        match rdma.parts.make(port) {
            Ok(made) => {
                let (port, Renewed { carrier: fabric, words, facts }) = RdmaPort::new(carriers.len(), made);
                rdma.ports.push(port);
                carriers.push(PlannedWorker { fabric, numa, words, port: Some(facts) });
            }
            Err(error) => metrics.note(format!("the fabric rdma does without {place}: {error}")),
        }
    }
    let rdma = Some(rdma).filter(|rdma| !rdma.ports.is_empty());
    let tcp_rank = choice.order.iter().position(|fabric| *fabric == Fabric::Tcp);
    Ok(Planned { carriers, packets, rdma, tcp_rank: tcp_rank.unwrap_or(choice.order.len()) as u8 })
}

/// How many paths besides streams there may be.
fn packet_paths_max(options: &DataPlaneOptions) -> usize {
    (options.memory_bytes / PATHS_SHARE) as usize / PATH_BYTES
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
