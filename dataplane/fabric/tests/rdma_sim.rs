//! The RDMA fabric over fake devices in virtual time: whatever they do, every read ends once, with the right bytes or an error, and
//! memory that is lent is used for nothing else.
//!
//! Every run follows from its seed. `VELO_SEED=N` runs one alone and prints what came of it; `VELO_FULL=1` runs ten thousand instead of
//! one thousand, `VELO_SEEDS=N` runs N.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use velo_fabric::pool::Pool;
use velo_fabric::rdma::fake::{Fake, Faults, Network};
use velo_fabric::rdma::verbs::Lending;
use velo_fabric::rdma::{AddPathError, NewPath, Rdma, RdmaCounters, RdmaOptions};
use velo_fabric::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId, Supply};
use velo_fabric::{Completion, Fabric, PathId, Read, ReadError, Refusal, What};
use velo_object::{BlobId, NodeId};

const MS: u64 = 1_000_000;
/// What a read asks for at most.
const PIECE: u32 = 1_500;
const BLOB: BlobId = BlobId::from_bytes([7; 32]);
/// The stall timeout, and the longest that a run may take.
const STALL: Duration = Duration::from_millis(500);
const LIMIT_NS: u64 = 60_000 * MS;

struct Lot(u64);

impl Lot {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 17
    }

    fn below(&mut self, of: u64) -> u64 {
        self.next() % of
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// What a place of the blob contains.
fn content(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Loads into the buffers of a pool that may be smaller than what is asked for, and looks whether they are lent.
struct Shelf {
    pool: Pool,
    network: Network,
    now: Arc<AtomicU64>,
    waiting: VecDeque<(u64, Ask)>,
    load_ns: u64,
    refuse_one_in: u64,
    lot: Lot,
    sent: u64,
    /// Shelves and fabrics hold what is named here.
    loading: Vec<ServeId>,
    found: Arc<AtomicU64>,
}

impl Supply for Shelf {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        if self.lot.below(50) == 0 {
            return Err(ask);
        }
        self.waiting.push_back((self.now.load(Ordering::Relaxed) + self.load_ns, ask));
        Ok(())
    }

    fn poll(&mut self, each: &mut dyn FnMut(Answer)) -> usize {
        let now = self.now.load(Ordering::Relaxed);
        let mut count = 0;
        while let Some((at, ask)) = self.waiting.front().copied()
            && at <= now
        {
            let result = if self.refuse_one_in > 0 && self.lot.below(self.refuse_one_in) == 0 {
                Err(Refusal::NotHere)
            } else {
                let Some(mut buffer) = self.pool.take() else { break };
                if self.network.lent().contains(&(buffer.as_ref().as_ptr() as usize)) {
                    self.found.fetch_add(1, Ordering::Relaxed);
                }
                buffer.set_len(ask.len as usize);
                for (i, byte) in buffer.as_mut().iter_mut().enumerate() {
                    *byte = content(ask.offset_bytes + i as u64);
                }
                Ok(Loaded { bytes: LoadedBytes::Buffer(buffer), len: ask.len, lease: Box::new(()) })
            };
            self.waiting.pop_front();
            self.loading.push(ask.id);
            count += 1;
            each(Answer { id: ask.id, result });
        }
        count
    }

    fn release(&mut self, id: ServeId) {
        self.waiting.retain(|(_, ask)| ask.id != id);
        self.loading.retain(|loading| *loading != id);
    }

    fn sent(&mut self, _: NodeId, bytes: u64) {
        self.sent += bytes;
    }
}

/// A node: a fabric, what it wants, and what it got.
struct Node {
    fabric: Rdma<Fake>,
    /// Where the bytes go.
    pool: Pool,
    paths: Vec<PathId>,
    wanted: VecDeque<u64>,
    /// Piece by tag.
    outstanding: BTreeMap<(PathId, u64), u64>,
    done: BTreeMap<u64, u32>,
    /// Pieces that came by another way, as no path was left or too many tries failed.
    elsewhere: u64,
    /// No path will be opened any more.
    elsewhere_now: bool,
    tries: BTreeMap<u64, u32>,
    next_tag: u64,
    cancel_one_in: u64,
    closed: usize,
}

#[derive(Debug, Default)]
struct Outcome {
    over_rdma: u64,
    elsewhere: u64,
    counters: Vec<RdmaCounters>,
}

impl Node {
    fn post(&mut self, lot: &mut Lot) {
        while let Some(piece) = self.wanted.front().copied() {
            let tries = self.tries.get(&piece).copied().unwrap_or(0);
            if (self.paths.is_empty() && self.elsewhere_now) || tries > 5 {
                self.wanted.pop_front();
                self.elsewhere += 1;
                assert_eq!(self.done.insert(piece, 0), None, "piece {piece} is there twice");
                continue;
            }
            if self.paths.is_empty() {
                return;
            }
            let path = lot.pick(&self.paths);
            let Some(mut buffer) = self.pool.take() else { return };
            buffer.as_mut().fill(0xee);
            self.next_tag += 1;
            let tag = self.next_tag;
            let len = 1 + (piece as u32 * 131) % PIECE;
            let offset_bytes = piece * u64::from(PIECE);
            let read = Read { tag, blob: BLOB, what: What::Blob, offset_bytes, len, buffer };
            if self.fabric.post_read(path, read).is_err() {
                return;
            }
            self.wanted.pop_front();
            self.outstanding.insert((path, tag), piece);
            if self.cancel_one_in > 0 && lot.below(self.cancel_one_in) == 0 {
                self.fabric.cancel(path, tag);
            }
        }
    }

    fn take(&mut self, completion: Completion) -> Result<(), String> {
        match completion {
            Completion::Read { path, tag, buffer, result } => {
                let piece = self.outstanding.remove(&(path, tag));
                let piece = piece.ok_or_else(|| format!("read {tag} of path {path} ended twice"))?;
                match result {
                    Ok(len) => {
                        let expected = 1 + (piece as u32 * 131) % PIECE;
                        let right = buffer
                            .as_ref()
                            .iter()
                            .enumerate()
                            .all(|(i, byte)| *byte == content(piece * u64::from(PIECE) + i as u64));
                        if len != expected || buffer.as_ref().len() != len as usize || !right {
                            return Err(format!("piece {piece} is not what was lent"));
                        }
                        if self.done.insert(piece, len).is_some() {
                            return Err(format!("piece {piece} is there twice"));
                        }
                    }
                    Err(error) => {
                        if error != ReadError::Cancelled {
                            *self.tries.entry(piece).or_default() += 1;
                        }
                        self.wanted.push_back(piece);
                    }
                }
            }
            Completion::PathClosed { path, .. } => {
                if self.outstanding.keys().any(|(of, _)| *of == path) {
                    return Err(format!("path {path} closed before its reads"));
                }
                self.paths.retain(|of| *of != path);
                self.closed += 1;
            }
            Completion::PathProven { .. } => {}
        }
        Ok(())
    }

    fn is_done(&self, pieces: u64) -> bool {
        self.done.len() as u64 == pieces
    }
}

fn run(seed: u64) -> Result<Outcome, String> {
    let mut lot = Lot(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let trip_ns = lot.pick(&[2_000, 20_000, MS]);
    let network = Network::new(seed, trip_ns);
    let now = Arc::new(AtomicU64::new(0));
    let found = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let quiet = lot.below(4) == 0;
    let mut pools = Vec::new();
    let mut nodes: Vec<Node> = (0..2)
        .map(|i| {
            let moment = |lot: &mut Lot| (!quiet && lot.below(6) == 0).then(|| lot.below(100 * trip_ns));
            let share = |lot: &mut Lot, most: f64| {
                if quiet || lot.below(2) == 0 { 0.0 } else { most * lot.below(1_000) as f64 / 1e3 }
            };
            let faults = Faults {
                fail: share(&mut lot, 0.002),
                lose_completion: share(&mut lot, 0.01),
                lose_revoked: share(&mut lot, 0.01),
                slow: share(&mut lot, 0.02),
                device_gone_ns: moment(&mut lot),
                cut_ns: moment(&mut lot),
            };
            let lending = lot.pick(&[Lending::Windows, Lending::Slabs]);
            let served = Pool::new(lot.pick(&[1, 2, 5, 40]) << 20).expect("memory");
            let shelf = Shelf {
                pool: served.clone(),
                network: network.clone(),
                now: now.clone(),
                waiting: VecDeque::new(),
                load_ns: lot.pick(&[0, 10_000, 5 * MS]),
                refuse_one_in: lot.pick(&[0, 0, 10]),
                lot: Lot(seed ^ i),
                sent: 0,
                loading: Vec::new(),
                found: found.clone(),
            };
            let options = RdmaOptions {
                stall_timeout: STALL,
                lease: Duration::from_nanos(lot.pick(&[trip_ns * 4, trip_ns * 40, 100 * MS]).max(MS)),
                lent_max_bytes: lot.pick(&[1, 4, 64]) << 20,
            };
            let pool = Pool::new(48 << 20).expect("memory");
            pools.extend([served, pool.clone()]);
            let fabric =
                Rdma::new(network.device(lending, faults), Box::new(shelf), options).expect("descriptors");
            Node {
                fabric,
                pool,
                paths: Vec::new(),
                wanted: VecDeque::new(),
                outstanding: BTreeMap::new(),
                done: BTreeMap::new(),
                elsewhere: 0,
                elsewhere_now: false,
                tries: BTreeMap::new(),
                next_tag: 0,
                cancel_one_in: if quiet { 0 } else { lot.pick(&[0, 20]) },
                closed: 0,
            }
        })
        .collect();
    let (at_once, most) = (1 + lot.below(3), 1 + lot.below(20));
    let mut opened = 0;
    let pieces = [lot.below(200), lot.below(200)];
    for (node, pieces) in nodes.iter_mut().zip(pieces) {
        node.wanted = (0..pieces).collect();
    }
    let mut at = 0;
    let mut completions = Vec::new();
    loop {
        network.advance(at);
        now.store(at, Ordering::Relaxed);
        // Where a path has closed at either end, both close it and open another.
        let [a, b] = &mut nodes[..] else { unreachable!("two nodes") };
        for path in 1..=opened {
            match (a.paths.contains(&path), b.paths.contains(&path)) {
                (true, false) => a.fabric.close(path),
                (false, true) => b.fabric.close(path),
                _ => {}
            }
        }
        while opened < most && a.paths.len().max(b.paths.len()) < at_once as usize {
            opened += 1;
            let (to_b, to_a) = network.connect(a.fabric.verbs(), b.fabric.verbs());
            for (node, qp, peer) in [(&mut *a, to_b, 2), (&mut *b, to_a, 1)] {
                let (peer, begins) = (NodeId::from_bytes([peer; 32]), peer == 1);
                let path = NewPath { id: opened, peer, qp, begins };
                let moment = begun + Duration::from_nanos(at);
                match node.fabric.add_path(moment, path) {
                    Ok(()) => node.paths.push(opened),
                    Err(error) => {
                        assert_eq!(error, AddPathError::DeviceFailed);
                        node.closed += 1;
                    }
                }
            }
        }
        for node in &mut nodes {
            node.elsewhere_now = opened >= most;
            node.post(&mut lot);
            loop {
                let did = node.fabric.poll(begun + Duration::from_nanos(at), &mut completions);
                for completion in completions.drain(..) {
                    node.take(completion)?;
                }
                node.post(&mut lot);
                if did == 0 {
                    break;
                }
            }
            // What was posted last goes out, too.
            node.fabric.poll(begun + Duration::from_nanos(at), &mut completions);
            for completion in completions.drain(..) {
                node.take(completion)?;
            }
        }
        if found.load(Ordering::Relaxed) > 0 {
            return Err("memory that was lent was used".to_owned());
        }
        if nodes.iter().zip(pieces).all(|(node, pieces)| node.is_done(pieces)) {
            break;
        }
        if at > LIMIT_NS {
            let missing =
                nodes.iter().map(|node| (node.wanted.len(), node.outstanding.len(), node.paths.len()));
            return Err(format!("not done: {:?}", missing.collect::<Vec<_>>()));
        }
        let deadlines = nodes.iter().filter_map(|node| node.fabric.next_deadline());
        let deadline =
            deadlines.map(|deadline| deadline.saturating_duration_since(begun).as_nanos() as u64).min();
        let next = [network.next_event(), deadline].into_iter().flatten().min().unwrap_or(u64::MAX);
        // What a shelf loads is there some time, too.
        at = next.max(at + 1).min(at + MS);
    }
    // Closing gives everything back, whatever was lent.
    for node in &mut nodes {
        for path in 1..=opened {
            node.fabric.close(path);
        }
    }
    for _ in 0..10_000 {
        if nodes.iter().all(|node| node.fabric.paths() == 0) {
            break;
        }
        at += trip_ns;
        network.advance(at);
        for node in &mut nodes {
            node.fabric.poll(begun + Duration::from_nanos(at), &mut completions);
            for completion in completions.drain(..) {
                node.take(completion)?;
            }
        }
    }
    for node in &nodes {
        if node.fabric.paths() > 0 || node.closed as u64 != opened {
            return Err(format!("{} paths are left, {} closed", node.fabric.paths(), node.closed));
        }
    }
    let outcome = Outcome {
        over_rdma: nodes.iter().map(|node| node.done.len() as u64 - node.elsewhere).sum(),
        elsewhere: nodes.iter().map(|node| node.elsewhere).sum(),
        counters: nodes.iter().map(|node| node.fabric.rdma_counters()).collect(),
    };
    if !network.lent().is_empty() {
        return Err("memory is lent on closed paths".to_owned());
    }
    drop(nodes);
    match pools.iter().map(|pool| pool.counters().in_use).sum::<u64>() {
        0 => {}
        left => return Err(format!("{left} buffers are lost")),
    }
    if quiet && outcome.counters.iter().any(|counters| counters.fabric.protocol_errors > 0) {
        return Err(format!("the protocol was broken: {outcome:#?}"));
    }
    Ok(outcome)
}

#[test]
fn every_read_ends_once_with_the_right_bytes_or_an_error() {
    let asked = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = asked("VELO_SEED") {
        println!("{:#?}", run(seed));
        return;
    }
    let full = std::env::var_os("VELO_FULL").is_some();
    let seeds = asked("VELO_SEEDS").unwrap_or(if full { 10_000 } else { 1_000 });
    let next = AtomicU64::new(0);
    let row = || {
        let (mut faults, mut sums) = (Vec::new(), [0u64; 6]);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (faults, sums);
            }
            match run(seed) {
                Err(fault) => faults.push(format!("VELO_SEED={seed}: {fault}")),
                Ok(outcome) => {
                    let count = |of: fn(&RdmaCounters) -> u64| outcome.counters.iter().map(of).sum::<u64>();
                    for (sum, more) in sums.iter_mut().zip([
                        outcome.over_rdma,
                        outcome.elsewhere,
                        count(|counters| counters.leases_expired),
                        count(|counters| counters.leases_ran_out),
                        count(|counters| counters.fabric.stalls),
                        count(|counters| counters.fabric.reads_failed),
                    ]) {
                        *sum += more;
                    }
                }
            }
        }
    };
    let (mut faults, mut sums) = row_pair(row);
    faults.sort();
    let [over_rdma, elsewhere, expired, ran_out, stalls, failed] = &mut sums;
    println!(
        "{seeds} seeds: {over_rdma} pieces by RDMA, {elsewhere} elsewhere; {failed} reads failed, {expired} leases expired, {ran_out} ran \
         out, {stalls} paths stalled"
    );
    assert!(faults.is_empty(), "{} of {seeds}: {:#?}", faults.len(), &faults[..faults.len().min(10)]);
    assert!(*over_rdma > *elsewhere && *elsewhere > 0 && *expired > 0 && *ran_out > 0 && *stalls > 0);
}

type Sums = (Vec<String>, [u64; 6]);

/// The same work on two threads.
fn row_pair(row: impl Fn() -> Sums + Sync) -> Sums {
    std::thread::scope(|scope| {
        let other = scope.spawn(&row);
        let (mut faults, mut sums) = row();
        let (more, others) = other.join().expect("a run panicked");
        faults.extend(more);
        sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        (faults, sums)
    })
}
