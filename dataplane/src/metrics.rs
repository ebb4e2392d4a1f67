//! Counters that any thread adds to and [`crate::engine::EngineHandle::report`] reads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use velo_fabric::FabricCounters;
use velo_fabric::pool::Pool;
use velo_object::NodeId;

use crate::engine::{PeerTraffic, Report};

macro_rules! numbers {
    ($name:ident: $($(#[$doc:meta])* $field:ident,)*) => {
        /// Numbers of the whole process, by their metric's name.
        #[derive(Debug, Default)]
        pub(crate) struct $name {
            $($(#[$doc])* pub(crate) $field: AtomicU64,)*
        }

        impl $name {
            fn named(&self) -> Vec<(String, u64)> {
                vec![$((stringify!($field).to_owned(), self.$field.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

numbers! { Counters:
    /// Pieces whose bytes came from a peer.
    pieces_received_total,
    /// Pieces that matched their hash, holes included.
    pieces_verified_total,
    /// Pieces that did not.
    pieces_bad_total,
    /// Verified pieces that came though they were here already.
    pieces_refetched_total,
    /// Pieces that an earlier run had left and that were not asked for again.
    pieces_resumed_total,
    /// Pieces found to be holes and never sent.
    pieces_holes_total,
    /// Outboards that were false or could not be proven.
    outboards_bad_total,
    /// Bytes written to the store after they were verified.
    stored_bytes_total,
    /// Blobs that became complete by a pull.
    blobs_completed_total,
    /// Jobs begun.
    jobs_started_total,
    /// Jobs that brought all.
    jobs_completed_total,
    /// Jobs that could not go on.
    jobs_failed_total,
    /// Reads that ended without bytes.
    reads_failed_total,
    /// Reads of peers that were refused or not there.
    serve_refused_total,
    /// Messages from peers that were over a limit and dropped.
    peer_limit_total,
}

numbers! { Gauges:
    /// Jobs that go on.
    jobs_running,
    /// Blobs that jobs still miss.
    blobs_missing,
    /// Blobs that are being received now.
    blobs_active,
    /// Reads outstanding.
    reads_in_flight,
    /// Peers that can be read from.
    sources,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Bytes exchanged with one peer.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) bad_pieces: AtomicU64,
}

/// What one worker publishes: its line and its fabric's counters.
#[derive(Debug)]
pub(crate) struct WorkerNumbers {
    pub(crate) line: Mutex<String>,
    fabric: &'static str,
    values: Vec<AtomicU64>,
}

impl WorkerNumbers {
    pub(crate) fn new(fabric: &'static str) -> Self {
        let values = FabricCounters::default().named().map(|_| AtomicU64::new(0)).collect();
        Self { line: Mutex::default(), fabric, values }
    }

    /// Copies the fabric's counters out; the only writer is the worker.
    pub(crate) fn publish(&self, counters: &FabricCounters) {
        for ((_, value), slot) in counters.named().zip(&self.values) {
            slot.store(value, Ordering::Relaxed);
        }
    }
}

/// All numbers of the process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) counters: Counters,
    pub(crate) gauges: Gauges,
    pub(crate) planner: Mutex<velo_swarm::Counters>,
    pub(crate) workers: RwLock<Vec<Arc<WorkerNumbers>>>,
    pub(crate) pool: Mutex<Option<Pool>>,
    notes: Mutex<Vec<String>>,
    peers: RwLock<HashMap<NodeId, Arc<PeerCounters>>>,
}

/// Peers whose numbers are remembered.
const PEERS_MAX: usize = 8192;
const NOTES_MAX: usize = 64;

impl Metrics {
    /// The counters of a peer, made where there are none yet.
    pub(crate) fn peer(&self, node: &NodeId) -> Arc<PeerCounters> {
        if let Some(peer) = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(node) {
            return peer.clone();
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS_MAX && !peers.contains_key(node) {
            return Arc::default();
        }
        peers.entry(*node).or_default().clone()
    }

    /// Something that the operator should know; said once.
    pub(crate) fn note(&self, note: impl Into<String>) {
        let note = note.into();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.contains(&note) {
            return;
        }
        tracing::warn!("{note}");
        if notes.len() == NOTES_MAX {
            notes.remove(0);
        }
        notes.push(note);
    }

    /// All of it, for [`velo_socket::Status`].
    pub(crate) fn report(&self) -> Report {
        let mut counters = self.counters.named();
        let mut gauges = self.gauges.named();
        let workers = self.workers.read().unwrap_or_else(PoisonError::into_inner).clone();
        let names: Vec<_> = FabricCounters::default().named().map(|(name, _)| name).collect();
        let fabrics: std::collections::BTreeSet<_> = workers.iter().map(|w| w.fabric).collect();
        for fabric in fabrics {
            for (at, name) in names.iter().enumerate() {
                let of_fabric = workers.iter().filter(|worker| worker.fabric == fabric);
                let sum = of_fabric.map(|worker| worker.values[at].load(Ordering::Relaxed)).sum();
                let name = match *name {
                    "payload_bytes_in" => "received_bytes",
                    "payload_bytes_out" => "sent_bytes",
                    "bytes_in" => "wire_received_bytes",
                    "bytes_out" => "wire_sent_bytes",
                    other => other,
                };
                counters.push((format!("fabric_{name}_total{{fabric=\"{fabric}\"}}"), sum));
            }
        }
        let planner = *self.planner.lock().unwrap_or_else(PoisonError::into_inner);
        counters.extend(
            [
                ("swarm_duplicates_total", planner.duplicates),
                ("swarm_duplicate_bytes_total", planner.duplicate_bytes),
                ("swarm_retries_total", planner.retries),
                ("swarm_end_game_total", planner.end_game),
                ("swarm_accusations_total", planner.accusations),
                ("swarm_stalls_total", planner.stalls),
                ("swarm_impatient_total", planner.impatient),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        if let Some(pool) = &*self.pool.lock().unwrap_or_else(PoisonError::into_inner) {
            let pool = pool.counters();
            gauges.push(("pool_buffers".into(), pool.capacity));
            gauges.push(("pool_buffers_in_use".into(), pool.in_use));
            counters.push(("pool_misses_total".into(), pool.misses));
        }
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        Report {
            counters,
            gauges,
            workers: workers
                .iter()
                .map(|worker| worker.line.lock().unwrap_or_else(PoisonError::into_inner).clone())
                .collect(),
            notes: self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            peers: peers
                .iter()
                .map(|(node, peer)| {
                    let traffic = PeerTraffic {
                        received_bytes: peer.received_bytes.load(Ordering::Relaxed),
                        sent_bytes: peer.sent_bytes.load(Ordering::Relaxed),
                        bad_pieces: peer.bad_pieces.load(Ordering::Relaxed),
                    };
                    (*node, traffic)
                })
                .collect(),
        }
    }
}
