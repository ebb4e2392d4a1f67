//! A transfer from region to region over the packet fabric on kernel UDP, on loopback: between two threads or between
//! two processes. No hashing, no store: what is measured is the fabric.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointCounters, EndpointOptions, NewPath};
use velo_fabric::packet::supply::Inline;
use velo_fabric::pool::{BUFFER_BYTES, Pool, PoolOptions};
use velo_fabric::{Completion, Fabric, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

/// How long an idle worker spins before it sleeps, as velod's do.
const SPIN: Duration = Duration::from_micros(30);

/// What is to be moved, and how.
#[derive(Debug, Clone, Copy)]
pub struct Transfer {
    /// How much; whole MiB.
    pub bytes: u64,
    /// The size of the region that it comes from, again and again.
    pub region_bytes: u64,
    /// Over how many paths.
    pub paths: u64,
    /// Reads of 1 MiB outstanding on each path.
    pub outstanding: u64,
    /// How frames are protected.
    pub protection: Protection,
    /// The largest datagram.
    pub datagram_max_bytes: usize,
}

/// What it took.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// From the first read to the last completion.
    pub seconds: f64,
    /// Processor seconds of the side that reads.
    pub reader_cpu_s: f64,
    /// Processor seconds of the side that supplies, where it is another thread; otherwise with its start.
    pub supplier_cpu_s: f64,
    /// What the reader's endpoint counted.
    pub counters: EndpointCounters,
}

/// Pieces of a region, all in memory.
struct Region(Vec<Arc<[u8]>>);

impl Region {
    fn new(bytes: u64) -> Arc<Self> {
        let piece = |i: u64| (0..BUFFER_BYTES as u64).map(|at| (at * 31 + i * 7) as u8).collect();
        Arc::new(Self((0..bytes / BUFFER_BYTES as u64).map(piece).collect()))
    }
}

impl Serve for Region {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let piece = &self.0[(range.start / BUFFER_BYTES as u64) as usize % self.0.len()];
        let content = ServedContent::Bytes(piece.clone());
        Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

fn fabric(region: Arc<Region>, seed: u64) -> io::Result<Packet<Udp>> {
    let port =
        Udp::bind((Ipv4Addr::LOCALHOST, 0).into(), &UdpOptions::default()).map_err(io::Error::other)?;
    let options =
        EndpointOptions { stall_timeout: Duration::from_secs(10), seed, ..EndpointOptions::default() };
    Packet::new(port, Box::new(Inline::new(region)), options)
}

fn add_paths(to: &mut Packet<Udp>, remote: SocketAddr, role: Role, transfer: &Transfer) -> io::Result<()> {
    for id in 0..transfer.paths {
        let number = (id as u32) << 8;
        let name = PathName { fabric: "udp", dialler: number, accepter: number };
        let keys = PathKeys::derive(&PathSecret([1; 32]), &name, role, transfer.protection);
        let peer = NodeId::from_bytes([1; 32]);
        let path = NewPath { id, peer, remote, keys, datagram_max_bytes: transfer.datagram_max_bytes };
        to.add_path(path).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Turns of a worker until `until` says so: it spins a little, then sleeps on the fabric's descriptor.
fn work(fabric: &mut Packet<Udp>, mut until: impl FnMut(&mut Packet<Udp>, &mut Vec<Completion>) -> bool) {
    let mut completions = Vec::with_capacity(256);
    let mut idle_since: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let done = fabric.poll(now, &mut completions);
        if until(fabric, &mut completions) {
            return;
        }
        if done > 0 {
            idle_since = None;
            continue;
        }
        if now.duration_since(*idle_since.get_or_insert(now)) < SPIN {
            std::hint::spin_loop();
            continue;
        }
        let until = fabric.next_deadline().map(|at| at.saturating_duration_since(now));
        let until = until.map_or(Duration::from_millis(50), |until| until.min(Duration::from_millis(50)));
        let Some(descriptor) = fabric.descriptor() else { continue };
        let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() }));
    }
}

/// Reads it all. The paths are added, and proven before the clock starts.
fn read_all(fabric: &mut Packet<Udp>, transfer: &Transfer) -> Figure {
    let (mut proven, proof) = (0, transfer.paths);
    work(fabric, |_, completions| {
        proven +=
            completions.drain(..).filter(|done| matches!(done, Completion::PathProven { .. })).count() as u64;
        proven == proof
    });
    let outstanding = transfer.paths * transfer.outstanding;
    let bytes = outstanding * BUFFER_BYTES as u64;
    let pool = Pool::with(PoolOptions { bytes, huge_pages: true, populate: true }).expect("memory");
    let pieces = transfer.bytes / BUFFER_BYTES as u64;
    let read = |piece: u64, buffer| Read {
        tag: piece,
        blob: BlobId::from_bytes([0; 32]),
        what: What::Blob,
        offset_bytes: piece * BUFFER_BYTES as u64,
        len: BUFFER_BYTES as u32,
        buffer,
    };
    let (start, cpu) = (Instant::now(), cpu_seconds(ClockId::ThreadCPUTime));
    let (mut next, mut done) = (0, 0);
    while next < outstanding.min(pieces) {
        let buffer = pool.take().expect("as many buffers as reads");
        fabric.post_read(next % transfer.paths, read(next, buffer)).expect("a free slot");
        next += 1;
    }
    work(fabric, |fabric, completions| {
        for completion in completions.drain(..) {
            let Completion::Read { path, mut buffer, result, .. } = completion else {
                panic!("{completion:?}")
            };
            assert_eq!(result, Ok(BUFFER_BYTES as u32));
            done += 1;
            if next < pieces {
                buffer.set_len(BUFFER_BYTES);
                fabric.post_read(path, read(next, buffer)).expect("a free slot");
                next += 1;
            }
        }
        done == pieces
    });
    Figure {
        seconds: start.elapsed().as_secs_f64(),
        reader_cpu_s: cpu_seconds(ClockId::ThreadCPUTime) - cpu,
        supplier_cpu_s: 0.0,
        counters: fabric.endpoint_counters(),
    }
}

fn cpu_seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Between two threads of this process.
///
/// # Errors
/// Where there are no sockets.
pub fn between_threads(transfer: &Transfer) -> io::Result<Figure> {
    let region = Region::new(transfer.region_bytes);
    let (mut reader, mut supplier) = (fabric(Region::new(0), 1)?, fabric(region, 2)?);
    add_paths(&mut reader, supplier.local(), Role::Dialler, transfer)?;
    add_paths(&mut supplier, reader.local(), Role::Accepter, transfer)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let supplying = thread::Builder::new().name("supplier".into()).spawn_scoped(scope, || {
            let cpu = cpu_seconds(ClockId::ThreadCPUTime);
            work(&mut supplier, |_, completions| {
                completions.clear();
                stop.load(Ordering::Relaxed)
            });
            cpu_seconds(ClockId::ThreadCPUTime) - cpu
        })?;
        let mut figure = read_all(&mut reader, transfer);
        stop.store(true, Ordering::Relaxed);
        figure.supplier_cpu_s = supplying.join().expect("the supplying thread");
        Ok(figure)
    })
}

/// Between this process and `supplier`, a command that ends in [`supply`] with the same transfer.
///
/// # Errors
/// Where there are no sockets, or the command does not do that.
pub fn between_processes(transfer: &Transfer, mut supplier: Command) -> io::Result<Figure> {
    let mut child = supplier.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut to_child), Some(from_child)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let mut lines = BufReader::new(from_child).lines();
    let mut line = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let remote = line()?.parse().map_err(io::Error::other)?;
    let mut reader = fabric(Region::new(0), 1)?;
    add_paths(&mut reader, remote, Role::Dialler, transfer)?;
    writeln!(to_child, "{}", reader.local())?;
    let mut figure = read_all(&mut reader, transfer);
    drop(to_child);
    figure.supplier_cpu_s = line()?.parse().map_err(io::Error::other)?;
    child.wait()?;
    Ok(figure)
}

/// The other process: says its address on standard output, hears the reader's on standard input, supplies until that ends,
/// and says how many processor seconds it took.
///
/// # Errors
/// Where there are no sockets.
pub fn supply(transfer: &Transfer) -> io::Result<()> {
    let mut fabric = fabric(Region::new(transfer.region_bytes), 2)?;
    println!("{}", fabric.local());
    let mut remote = String::new();
    io::stdin().read_line(&mut remote)?;
    add_paths(&mut fabric, remote.trim().parse().map_err(io::Error::other)?, Role::Accepter, transfer)?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    thread::spawn(move || {
        let _ = io::stdin().read_line(&mut String::new());
        told.store(true, Ordering::Relaxed);
    });
    let cpu = cpu_seconds(ClockId::ThreadCPUTime);
    work(&mut fabric, |_, completions| {
        completions.clear();
        stop.load(Ordering::Relaxed)
    });
    println!("{}", cpu_seconds(ClockId::ThreadCPUTime) - cpu);
    Ok(())
}
