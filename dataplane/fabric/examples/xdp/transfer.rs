//! A transfer from region to region by the packet fabric over any two ports, one thread a side.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::{Port, PortCounters};
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointCounters, EndpointOptions, NewPath};
use velo_fabric::packet::supply::Inline;
use velo_fabric::pool::{BUFFER_BYTES, Pool, PoolOptions};
use velo_fabric::{Completion, Fabric, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

/// Pieces of the region that is read, again and again: more than the caches hold.
const PIECES: u64 = 256;
/// Reads outstanding.
const WINDOW: u64 = 16;
/// How long an idle side spins before it sleeps, and how long it sleeps at most.
const SPIN: Duration = Duration::from_micros(30);
const NAP: Duration = Duration::from_millis(20);
const PEER: NodeId = NodeId::from_bytes([1; 32]);

struct Region(Vec<Arc<[u8]>>);

impl Serve for Region {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let piece = &self.0[(range.start / BUFFER_BYTES as u64 % PIECES) as usize];
        let content = ServedContent::Bytes(piece.clone());
        Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

/// Moves `bytes`, whole MiB. Gives Gbit/s, what the reader's endpoint counted, and how many datagrams both ports threw away.
///
/// # Errors
/// Where a port fails or the path is closed.
pub fn between<P: Port>(
    reader: P,
    supplier: P,
    protection: Protection,
    bytes: u64,
) -> io::Result<(f64, EndpointCounters, u64)> {
    let piece = |i: u64| (0..BUFFER_BYTES as u64).map(|at| (at * 31 + i * 7) as u8).collect();
    let region = Arc::new(Region((0..PIECES).map(piece).collect()));
    let fabric = |port, seed| {
        let options =
            EndpointOptions { seed, stall_timeout: Duration::from_secs(10), ..EndpointOptions::default() };
        Packet::new(port, Box::new(Inline::new(region.clone())), options)
    };
    let (mut reader, mut supplier) = (fabric(reader, 1)?, fabric(supplier, 2)?);
    let datagram_max_bytes = reader.port().caps().datagram_max_bytes;
    let path = |role, remote: SocketAddr| {
        let name = PathName { fabric: "xdp", dialler: 0x100, accepter: 0x200 };
        let keys = PathKeys::derive(&PathSecret([1; 32]), &name, role, protection);
        NewPath { id: 1, peer: PEER, remote, keys, datagram_max_bytes }
    };
    reader.add_path(path(Role::Dialler, supplier.local())).map_err(io::Error::other)?;
    supplier.add_path(path(Role::Accepter, reader.local())).map_err(io::Error::other)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut completions = Vec::new();
            let mut idle_since = None;
            while !stop.load(Ordering::Relaxed) {
                let done = supplier.poll(Instant::now(), &mut completions);
                completions.clear();
                rest(&supplier, done, &mut idle_since);
            }
        });
        let result = read_all(&mut reader, bytes);
        stop.store(true, Ordering::Relaxed);
        result
    })
    .map(|seconds| {
        let dropped = |counters: PortCounters| counters.rx_dropped + counters.tx_dropped;
        let dropped = dropped(reader.port_counters()) + dropped(supplier.port_counters());
        (bytes as f64 * 8e-9 / seconds, reader.endpoint_counters(), dropped)
    })
}

/// After a turn in which so much was done: spins a little, then sleeps, as velod's workers do.
fn rest(fabric: &impl Fabric, done: usize, idle_since: &mut Option<Instant>) {
    let now = Instant::now();
    if done > 0 {
        *idle_since = None;
    } else if now.duration_since(*idle_since.get_or_insert(now)) < SPIN {
        std::hint::spin_loop();
    } else if let Some(descriptor) = fabric.descriptor() {
        let until = fabric.next_deadline().map_or(NAP, |at| at.saturating_duration_since(now).min(NAP));
        let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() }));
    }
}

fn read_all(fabric: &mut impl Fabric, bytes: u64) -> io::Result<f64> {
    let options = PoolOptions { bytes: PIECES * BUFFER_BYTES as u64, huge_pages: true, populate: true };
    let pool = Pool::with(options).map_err(io::Error::other)?;
    let pieces = bytes / BUFFER_BYTES as u64;
    // The buffer that was filled longest ago is the next, so that none is warm.
    let mut free: std::collections::VecDeque<_> = std::iter::from_fn(|| pool.take()).collect();
    let (mut next, mut done) = (0, 0);
    let mut began = None;
    let (mut completions, mut idle_since) = (Vec::with_capacity(256), None);
    while done < pieces {
        while began.is_some() && next < pieces && next - done < WINDOW {
            let Some(buffer) = free.pop_front() else { break };
            let offset_bytes = next * BUFFER_BYTES as u64;
            let (blob, len) = (BlobId::from_bytes([0; 32]), BUFFER_BYTES as u32);
            let read = Read { tag: next, blob, what: What::Blob, offset_bytes, len, buffer };
            if let Err(read) = fabric.post_read(1, read) {
                free.push_front(read.buffer);
                break;
            }
            next += 1;
        }
        let turn = fabric.poll(Instant::now(), &mut completions);
        rest(fabric, turn, &mut idle_since);
        for completion in completions.drain(..) {
            match completion {
                Completion::Read { tag, buffer, result, .. } => {
                    let wrong = buffer.as_ref()[1] != ((31 + tag % PIECES * 7) as u8);
                    if result != Ok(BUFFER_BYTES as u32) || wrong {
                        return Err(io::Error::other(format!("read {tag}: {result:?}")));
                    }
                    done += 1;
                    free.push_back(buffer);
                }
                Completion::PathProven { .. } => began = Some(Instant::now()),
                other => return Err(io::Error::other(format!("{other:?}"))),
            }
        }
    }
    Ok(began.map_or(0.0, |began| began.elapsed().as_secs_f64()))
}
