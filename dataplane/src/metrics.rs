//! Counters that any thread adds to and [`crate::engine::EngineHandle::report`] reads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use velo_config::Fabric;
use velo_fabric::PathError;
use velo_fabric::pool::Pool;
use velo_object::NodeId;

use crate::carrier::PathHealth;
use crate::engine::{PeerTraffic, Report};
use crate::numbers::{self, WorkerNumbers};

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

/// Why another fabric gave way to streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FallBack {
    /// The peer said nothing of an offer.
    Unanswered,
    /// Nothing has come back on new paths.
    Unproven,
    /// Paths stood still.
    Stalled,
    /// The peer ended them.
    Closed,
    /// The peer broke the protocol.
    Protocol,
    /// A device or socket failed.
    Device,
}

impl FallBack {
    const ALL: [Self; 6] =
        [Self::Unanswered, Self::Unproven, Self::Stalled, Self::Closed, Self::Protocol, Self::Device];

    /// What the end of a path means.
    pub(crate) fn of(error: &PathError) -> Self {
        match error {
            PathError::Peer => Self::Closed,
            PathError::Stalled { .. } | PathError::NotReading { .. } => Self::Stalled,
            PathError::Protocol(_) => Self::Protocol,
            _ => Self::Device,
        }
    }

    /// The label of the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Unproven => "unproven",
            Self::Stalled => "stalled",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Device => "device",
        }
    }

    /// For people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Unanswered => "it does not answer offers",
            Self::Unproven => "nothing has come back",
            Self::Stalled => "nothing comes any more",
            Self::Closed => "it has ended it",
            Self::Protocol => "it broke the protocol",
            Self::Device => "a device or socket of this node has failed",
        }
    }

    /// What to do.
    pub(crate) fn advice(self, fabric: Fabric) -> String {
        match (self, fabric) {
            (Self::Unproven | Self::Stalled, Fabric::Udp) => {
                "let UDP pass between the nodes at the ports of `fabric.udp.listen`".to_owned()
            }
            (Self::Unproven | Self::Stalled, Fabric::Xdp | Fabric::Dpdk | Fabric::Tcp) => {
                format!("look at the link, and at the addresses and ports of `fabric.{fabric}`")
            }
            (Self::Stalled | Self::Unproven | Self::Device, Fabric::Rdma) => {
                "see the log; `ibv_devinfo` shows the state of its ports, `rdma statistic` their errors"
                    .to_owned()
            }
            (Self::Device, _) => format!("see the log, and `fabric.{fabric}`"),
            _ => "run the same release of velo on both nodes".to_owned(),
        }
    }
}

/// The fabrics besides TCP, for counters of each.
const BETTER: [Fabric; 4] = [Fabric::Udp, Fabric::Xdp, Fabric::Dpdk, Fabric::Rdma];

/// Bytes exchanged with one peer, and how.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) bad_pieces: AtomicU64,
    /// One more than the place of a fabric in [`BETTER`]; 0 for streams.
    fabric: AtomicU8,
    rtt_us: AtomicU64,
    loss_ppm: AtomicU64,
}

impl PeerCounters {
    /// Says what carries what is read from the peer.
    pub(crate) fn set_fabric(&self, fabric: Fabric) {
        let place = BETTER.iter().position(|better| *better == fabric).map_or(0, |at| at as u8 + 1);
        self.fabric.store(place, Ordering::Relaxed);
    }

    /// Says how a path to the peer does.
    pub(crate) fn set_health(&self, health: PathHealth) {
        self.rtt_us.store(health.rtt_us, Ordering::Relaxed);
        let sent = health.segments_arrived + health.segments_lost;
        let loss_ppm = (health.segments_lost * 1_000_000).checked_div(sent).unwrap_or(0);
        self.loss_ppm.store(loss_ppm, Ordering::Relaxed);
    }

    fn traffic(&self) -> PeerTraffic {
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let fabric = BETTER.get(usize::from(self.fabric.load(Ordering::Relaxed)).wrapping_sub(1));
        // A device keeps that to itself.
        let packets = fabric.filter(|fabric| **fabric != Fabric::Rdma);
        PeerTraffic {
            received_bytes: get(&self.received_bytes),
            sent_bytes: get(&self.sent_bytes),
            bad_pieces: get(&self.bad_pieces),
            fabric: fabric.copied().unwrap_or(Fabric::Tcp),
            rtt_us: packets.map(|_| get(&self.rtt_us)),
            loss_ppm: packets.map(|_| get(&self.loss_ppm)),
        }
    }
}

fn count(reasons: &Reasons, fabric: Fabric, why: FallBack) {
    let fabric = BETTER.iter().position(|better| *better == fabric);
    let why = FallBack::ALL.iter().position(|reason| *reason == why);
    if let (Some(fabric), Some(why)) = (fabric, why) {
        add(&reasons[fabric][why], 1);
    }
}

/// Counts of each fabric besides TCP, by reason.
type Reasons = [[AtomicU64; FallBack::ALL.len()]; BETTER.len()];

/// All numbers of the process.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) counters: Counters,
    pub(crate) gauges: Gauges,
    pub(crate) planner: Mutex<velo_swarm::Counters>,
    pub(crate) workers: RwLock<Vec<Arc<WorkerNumbers>>>,
    pub(crate) pool: Mutex<Option<Pool>>,
    /// How often each of the others gave way to streams, for each reason.
    fall_backs: Reasons,
    /// How often one path failed and others of its fabric to that peer carried on, likewise.
    paths_lost: Reasons,
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

    /// A fabric gave way to streams.
    pub(crate) fn fell_back(&self, fabric: Fabric, why: FallBack) {
        count(&self.fall_backs, fabric, why);
    }

    /// A path has failed; others of its fabric to that peer carry on.
    pub(crate) fn path_lost(&self, fabric: Fabric, why: FallBack) {
        count(&self.paths_lost, fabric, why);
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
        numbers::sums(&workers, &mut counters);
        for worker in &workers {
            worker.port_numbers(&mut counters, &mut gauges);
        }
        for (what, of_fabrics) in [("fallbacks", &self.fall_backs), ("paths_lost", &self.paths_lost)] {
            for (fabric, reasons) in BETTER.iter().zip(of_fabrics) {
                for (why, count) in FallBack::ALL.iter().zip(reasons) {
                    let labels = format!("{{fabric=\"{fabric}\",reason=\"{}\"}}", why.name());
                    counters.push((format!("fabric_{what}_total{labels}"), count.load(Ordering::Relaxed)));
                }
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
            workers: workers.iter().map(|worker| worker.line(&workers)).collect(),
            notes: self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            peers: peers.iter().map(|(node, peer)| (*node, peer.traffic())).collect(),
        }
    }
}
