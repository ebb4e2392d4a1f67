//! The RDMA fabric over a real device, or soft-RoCE: run where there is one (`tests/guest/rdma`), and skipped aloud where there is none.

use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use velo_fabric::pool::{BUFFER_BYTES, Buffer, Pool, PoolOptions};
use velo_fabric::rdma::device::{Address, Completions, Device, Plugin, Prepared, Purpose, addresses};
use velo_fabric::rdma::table::End;
use velo_fabric::rdma::verbs::{Lending, QueuePair, Span, Verbs as _, WorkError};
use velo_fabric::rdma::{NewPath, Rdma, RdmaOptions, verbs::Event};
use velo_fabric::supply::Threads;
use velo_fabric::{Completion, Fabric, PathId, Read, ReadError, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, Expected, NodeId, Verified};

const MIB: usize = 1 << 20;
const BLOB: BlobId = BlobId::from_bytes([7; 32]);
const SIZE: usize = 32 * MIB;
const PATIENCE: Duration = Duration::from_secs(20);

/// The first device and its address, or none and a line that says so.
fn device() -> Option<(Device, Address)> {
    let skip = |why: String| {
        assert!(std::env::var_os("VELO_RDMA_REQUIRED").is_none(), "{why}");
        println!("SKIP: rdma: {why}");
        if let Some(skips) = std::env::var_os("VELO_SKIPS") {
            let skips = File::options().append(true).create(true).open(skips);
            let _ = skips.and_then(|mut skips| writeln!(skips, "SKIP: rdma: {why}"));
        }
    };
    let found = addresses();
    let Some(address) = found.iter().find(|address| address.ip.is_ipv4()).or(found.first()) else {
        skip("this host has no RDMA device".to_owned());
        return None;
    };
    let plugin = match Plugin::open(None) {
        Ok(plugin) => plugin,
        Err(error) => {
            skip(error.to_string());
            return None;
        }
    };
    Some((Device::open(plugin, &address.place).expect("the device opens"), address.clone()))
}

/// Connects two queue pairs of a device.
fn join(address: &Address, ours: &Prepared, theirs: &Prepared) {
    for (one, other) in [(ours, theirs), (theirs, ours)] {
        let end = End { gid: address.gid, ..*other.end() };
        one.connect(address.gid_index, &end).expect("it connects");
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let (mut state, mut noise) = (seed | 1, vec![0; len]);
    for word in noise.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    noise
}

/// Serves one blob from a file.
struct Source {
    file: Arc<File>,
    sent: AtomicU64,
}

impl Source {
    fn new(content: &[u8]) -> Arc<Self> {
        let mut file = tempfile::tempfile().expect("a file can be made");
        file.write_all(content).expect("there is room");
        Arc::new(Self { file: Arc::new(file), sent: AtomicU64::new(0) })
    }
}

impl Serve for Source {
    fn serve(&self, _: NodeId, blob: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        if *blob != BLOB || range.end > SIZE as u64 {
            return Err(Refusal::NotHere);
        }
        let content = ServedContent::File { file: self.file.clone(), offset_bytes: range.start };
        Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A reader and a provider on one device, with a path between them.
struct Two {
    reader: Rdma<Completions>,
    provider: Rdma<Completions>,
    pool: Pool,
    source: Arc<Source>,
    content: Vec<u8>,
    done: Vec<Completion>,
    theirs: Vec<Completion>,
}

const PATH: PathId = 5;

fn two((device, address): &(Device, Address), options: RdmaOptions) -> Two {
    let content = noise(1, SIZE);
    let source = Source::new(&content);
    let pool = Pool::new(24 << 20).expect("memory");
    let filled = device.register(&pool, Purpose::Filled).expect("it registers");
    println!("registered {} MiB in {} regions in {:?}", filled.bytes >> 20, filled.regions, filled.took);
    let lent = Pool::new(24 << 20).expect("memory");
    device.register(&lent, Purpose::Lent).expect("it registers");
    let supply = |pool: &Pool| Threads::into_buffers(source.clone(), pool.clone(), 1).expect("a thread");
    let fabric = |pool: &Pool| {
        let completions = device.completions(8).expect("a completion queue");
        Rdma::new(completions, Box::new(supply(pool)), options).expect("descriptors")
    };
    let other = Pool::new(MIB as u64).expect("memory");
    device.register(&other, Purpose::Lent).expect("it registers");
    // Each takes the regions that there are when it is made.
    let (mut reader, mut provider) = (fabric(&other), fabric(&lent));
    let prepare = |fabric: &Rdma<Completions>, sequence| {
        device.prepare(fabric.verbs().queue(), sequence).expect("a queue pair")
    };
    let (ours, theirs) = (prepare(&reader, 0x12_3456), prepare(&provider, 0x65_4321));
    join(address, &ours, &theirs);
    for (fabric, prepared, peer) in [(&mut reader, ours, 2), (&mut provider, theirs, 1)] {
        let Some(qp) = fabric.verbs_mut().adopt(prepared) else { panic!("its number is new") };
        let (peer, begins) = (NodeId::from_bytes([peer; 32]), peer == 1);
        let path = NewPath { id: PATH, peer, qp, begins };
        fabric.add_path(Instant::now(), path).expect("the first path");
    }
    Two { reader, provider, pool, source, content, done: Vec::new(), theirs: Vec::new() }
}

impl Two {
    fn drive(&mut self, mut until: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !until(self) {
            let now = Instant::now();
            assert!(
                now < end,
                "nothing came of it: {:?} {:?}",
                self.reader.rdma_counters(),
                self.provider.rdma_counters()
            );
            let did = self.reader.poll(now, &mut self.done) + self.provider.poll(now, &mut self.theirs);
            if did == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn post(&mut self, piece: u64) {
        let buffer = self.pool.take().expect("a buffer");
        let (offset_bytes, len) = (piece * MIB as u64, BUFFER_BYTES as u32);
        let read = Read { tag: piece, blob: BLOB, what: What::Blob, offset_bytes, len, buffer };
        assert!(self.reader.post_read(PATH, read).is_ok());
    }

    fn closed(&mut self) -> bool {
        let closed =
            |done: &[Completion]| done.iter().any(|done| matches!(done, Completion::PathClosed { .. }));
        closed(&self.done)
    }
}

#[test]
fn pieces_come_by_reads_of_memory_that_was_lent() {
    let Some(device) = device() else { return };
    let (of, rate) = (&device.0, device.0.rate_bytes_per_s());
    println!(
        "{}, lending by {:?}, {rate:?} B/s, room for {} pairs",
        of.place(),
        of.lending(),
        of.pairs_max()
    );
    let mut two = two(&device, RdmaOptions::default());
    two.drive(|two| two.done.iter().any(|done| matches!(done, Completion::PathProven { .. })));
    two.done.clear();
    let begun = Instant::now();
    let (pieces, mut next, mut right) = ((SIZE / MIB) as u64, 0, 0);
    while next < 16 {
        two.post(next);
        next += 1;
    }
    two.drive(|two| {
        for done in std::mem::take(&mut two.done) {
            let Completion::Read { tag, buffer, result, .. } = done else { panic!("{done:?}") };
            assert_eq!(
                result,
                Ok(BUFFER_BYTES as u32),
                "piece {tag}: {:?} {:?}",
                two.reader.rdma_counters(),
                two.provider.rdma_counters()
            );
            let from = tag as usize * MIB;
            assert!(buffer.as_ref() == &two.content[from..from + MIB], "piece {tag}");
            drop(buffer);
            right += 1;
            if next < pieces {
                two.post(next);
                next += 1;
            }
        }
        right == pieces
    });
    let seconds = begun.elapsed().as_secs_f64();
    println!("{} MiB in {seconds:.2} s: {:.1} MiB/s", SIZE / MIB, (SIZE / MIB) as f64 / seconds);
    // What was read last is given back before long.
    two.drive(|two| two.provider.rdma_counters().leases_revoked == pieces);
    let counters = two.provider.rdma_counters();
    assert_eq!((counters.leases_granted, counters.leases_expired), (pieces, 0));
    assert_eq!(two.source.sent.load(Ordering::Relaxed), SIZE as u64);
}

#[test]
fn a_read_of_what_is_not_there_is_refused_and_costs_nothing_else() {
    let Some(device) = device() else { return };
    let mut two = two(&device, RdmaOptions::default());
    two.post(SIZE as u64);
    two.post(3);
    two.drive(|two| two.done.iter().filter(|done| matches!(done, Completion::Read { .. })).count() == 2);
    let mut results: Vec<_> = two
        .done
        .drain(..)
        .filter_map(|done| match done {
            Completion::Read { tag, result, .. } => Some((tag, result)),
            _ => None,
        })
        .collect();
    results.sort_by_key(|(tag, _)| *tag);
    assert_eq!(results, [(3, Ok(BUFFER_BYTES as u32)), (SIZE as u64, Err(ReadError::NotHere))]);
}

/// Two ends of a connection, on completion queues of their own.
struct Ends {
    reader: Completions,
    of_reader: QueuePair,
    owner: Completions,
    of_owner: QueuePair,
}

impl Ends {
    fn new(device: &Device, address: &Address) -> Self {
        let queue = || device.completions(2).expect("a queue");
        let (mut reader, mut owner) = (queue(), queue());
        let ours = device.prepare(reader.queue(), 1).expect("a pair");
        let theirs = device.prepare(owner.queue(), 2).expect("a pair");
        join(address, &ours, &theirs);
        let (Some(of_reader), Some(of_owner)) = (reader.adopt(ours), owner.adopt(theirs)) else {
            panic!("new numbers")
        };
        Self { reader, of_reader, owner, of_owner }
    }

    /// Lends all of a buffer.
    fn lend(&mut self, memory: &Buffer) -> Span {
        let len = memory.len() as u32;
        let span = self.owner.lend(self.of_owner, 0, memory, len).expect("there is room");
        self.owner.flush();
        span
    }

    fn take_back(&mut self) {
        assert!(self.owner.revoke(self.of_owner, 0));
        self.owner.flush();
        let (end, mut revoked) = (Instant::now() + PATIENCE, false);
        while !revoked {
            assert!(Instant::now() < end, "it is not taken back");
            self.owner.poll(&mut |event| revoked |= matches!(event, Event::Revoked { tag: 0, .. }));
        }
    }

    /// What became of a READ into a buffer of marks.
    fn read(&mut self, pool: &Pool, span: Span) -> (Buffer, Result<(), WorkError>) {
        let mut buffer = pool.take().expect("a buffer");
        buffer.as_mut().fill(0xee);
        self.reader.read(self.of_reader, 0, span, buffer).expect("there is room");
        self.reader.flush();
        let (end, mut ended) = (Instant::now() + PATIENCE, None);
        while ended.is_none() {
            assert!(Instant::now() < end, "the READ does not end");
            self.reader.poll(&mut |event| {
                if let Event::Read { buffer, result, .. } = event {
                    ended = Some((buffer, result));
                }
            });
            self.owner.poll(&mut |_| ());
        }
        ended.expect("it ended")
    }

    fn end(mut self) {
        self.reader.retire(self.of_reader);
        self.owner.retire(self.of_owner);
    }
}

/// Memory to read into, and memory that is lent.
fn two_pools(device: &Device) -> (Pool, Pool) {
    let (pool, lent) = (Pool::new(4 << 20).expect("memory"), Pool::new(4 << 20).expect("memory"));
    device.register(&pool, Purpose::Filled).expect("it registers");
    device.register(&lent, Purpose::Lent).expect("it registers");
    (pool, lent)
}

#[test]
fn the_right_key_reads_and_a_wrong_one_or_a_loan_that_was_taken_back_reads_nothing() {
    let Some((device, address)) = device() else { return };
    let (pool, lent) = two_pools(&device);
    for wrong in ["key", "address", "taken back"] {
        if wrong == "taken back" && device.lending() == Lending::Slabs {
            continue;
        }
        let mut ends = Ends::new(&device, &address);
        let mut secret = lent.take().expect("a buffer");
        secret.as_mut().fill(0x5a);
        secret.set_len(4096);
        let mut span = ends.lend(&secret);
        let (right, result) = ends.read(&pool, span);
        assert_eq!(result, Ok(()), "{wrong}: before that it can be read");
        assert!(right.as_ref()[..4096].iter().all(|byte| *byte == 0x5a));
        match wrong {
            "key" => span.rkey ^= 0x55,
            // Beyond the region: soft-RoCE does not look at the bounds of a window.
            "address" => span.address = 4096,
            _ => ends.take_back(),
        }
        let (buffer, result) = ends.read(&pool, span);
        assert_eq!(result, Err(WorkError::RemoteAccess), "{wrong}");
        assert!(buffer.as_ref()[..4096].iter().all(|byte| *byte == 0xee), "{wrong}: something was read");
        ends.end();
    }
}

/// Memory that is free, in bytes.
fn available_bytes() -> u64 {
    let facts = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = facts.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

/// Free huge pages, as many as were there before when it goes.
struct HugePages(String);

impl HugePages {
    const COUNT: &str = "/proc/sys/vm/nr_hugepages";

    fn for_bytes(bytes: u64) -> Self {
        let before = std::fs::read_to_string(Self::COUNT).unwrap_or_default();
        // Where this is not root's machine it gets none.
        let _ = std::fs::write(Self::COUNT, (bytes >> 21).to_string());
        Self(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::COUNT, self.0.trim());
    }
}

#[test]
fn half_of_the_memory_is_registered_in_slices_and_every_slice_can_be_read_into() {
    let Some((device, address)) = device() else { return };
    const GIB: u64 = 1 << 30;
    let bytes = (available_bytes() / 2).clamp(64 << 20, 64 * GIB) & !((2 << 20) - 1);
    let _pages = HugePages::for_bytes(bytes);
    let pool = Pool::with(PoolOptions { bytes, huge_pages: true, populate: true }).expect("memory");
    let registered = device.register(&pool, Purpose::Filled).expect("it registers");
    let lent = Pool::new(4 << 20).expect("memory");
    device.register(&lent, Purpose::Lent).expect("it registers");
    println!(
        "{} MiB on {} pages in {} slices: {:.1} ms for each GiB",
        registered.bytes >> 20,
        if pool.is_huge() { "huge" } else { "small" },
        registered.regions,
        registered.took.as_secs_f64() * 1e3 * GIB as f64 / registered.bytes as f64
    );
    assert_eq!((registered.bytes, registered.regions as u64), (bytes, bytes.div_ceil(GIB)));
    let mut ends = Ends::new(&device, &address);
    let mut source = lent.take().expect("a buffer");
    let content = noise(9, MIB);
    source.as_mut().copy_from_slice(&content);
    let span = ends.lend(&source);
    // The buffer that was given back last is taken first: so the first of each slice is read into, and the last of all.
    let mut all: Vec<_> = std::iter::from_fn(|| pool.take().map(Some)).collect();
    let last = all.len() - 1;
    for at in (0..last).step_by(1024).chain([last]) {
        drop(all[at].take());
        let (read, result) = ends.read(&pool, span);
        assert!(result.is_ok() && read.as_ref() == content, "buffer {at}: {result:?}");
        all[at] = Some(read);
    }
    ends.end();
}

#[test]
fn memory_that_changes_under_a_read_does_not_pass_its_check() {
    let Some((device, address)) = device() else { return };
    let (pool, lent) = two_pools(&device);
    let mut ends = Ends::new(&device, &address);
    let content = noise(3, MIB);
    let blob = BlobId::of(&content);
    let mut memory = lent.take().expect("a buffer");
    memory.as_mut().copy_from_slice(&content);
    let span = ends.lend(&memory);
    let check = |bytes: &[u8]| Verified::check(bytes.to_vec(), MIB, Expected::Whole(blob)).is_ok();
    let (buffer, result) = ends.read(&pool, span);
    assert!(result.is_ok() && check(buffer.as_ref()), "as it was lent");
    drop(buffer);
    // A provider that breaks its word: it writes to what it has lent. To the device that is as good as anything.
    memory.as_mut()[MIB / 2] ^= 1;
    let (buffer, result) = ends.read(&pool, span);
    assert_eq!(result, Ok(()), "the device sees nothing wrong");
    assert!(
        buffer.as_ref()[..MIB / 2] == content[..MIB / 2] && !check(buffer.as_ref()),
        "a changed piece passed"
    );
    ends.end();
}

#[test]
fn a_peer_that_is_gone_ends_the_path_and_everything_comes_back() {
    let Some(device) = device() else { return };
    let options = RdmaOptions { stall_timeout: Duration::from_secs(3), ..RdmaOptions::default() };
    let mut two = two(&device, options);
    two.drive(|two| two.done.iter().any(|done| matches!(done, Completion::PathProven { .. })));
    two.provider.close(PATH);
    for piece in 0..8 {
        two.post(piece);
    }
    two.drive(Two::closed);
    let failed =
        two.done.iter().filter(|done| matches!(done, Completion::Read { result: Err(_), .. })).count();
    assert_eq!(failed, 8);
    two.drive(|two| two.provider.paths() == 0 && two.reader.paths() == 0);
    two.done.clear();
    assert_eq!(two.pool.counters().in_use, 0);
}

#[test]
fn who_keeps_a_loan_for_too_long_loses_it() {
    let Some(device) = device() else { return };
    let lending = device.0.lending();
    let options = RdmaOptions { lease: Duration::from_millis(300), ..RdmaOptions::default() };
    let mut two = two(&device, options);
    two.drive(|two| two.done.iter().any(|done| matches!(done, Completion::PathProven { .. })));
    two.post(1);
    let end = Instant::now() + PATIENCE;
    while two.provider.rdma_counters().leases_expired == 0 {
        assert!(Instant::now() < end, "nothing expires");
        // Once it has its loan the reader takes no turns any more.
        if two.provider.rdma_counters().leases_granted == 0 {
            two.reader.poll(Instant::now(), &mut two.done);
        }
        two.provider.poll(Instant::now(), &mut two.theirs);
        std::thread::sleep(Duration::from_micros(100));
    }
    if lending == Lending::Windows {
        two.drive(|two| two.provider.rdma_counters().leases_revoked > 0);
    }
    // The reader asks again, or its path ends: either way its read does.
    two.drive(|two| two.done.iter().any(|done| matches!(done, Completion::Read { .. })));
}
