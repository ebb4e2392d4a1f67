//! A transfer from region to region by the packet fabric over any two ports, one thread a side.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
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

/// Moves `bytes`, whole MiB. Gives Gbit/s and what the reader's endpoint counted.
///
/// # Errors
/// Where a port fails or the path is closed.
pub fn between<P: Port>(
    reader: P,
    supplier: P,
    protection: Protection,
    bytes: u64,
) -> io::Result<(f64, EndpointCounters)> {
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
            while !stop.load(Ordering::Relaxed) {
                supplier.poll(Instant::now(), &mut completions);
                completions.clear();
            }
        });
        let result = read_all(&mut reader, bytes);
        stop.store(true, Ordering::Relaxed);
        Ok((bytes as f64 * 8e-9 / result?, reader.endpoint_counters()))
    })
}

fn read_all(fabric: &mut impl Fabric, bytes: u64) -> io::Result<f64> {
    let options = PoolOptions { bytes: PIECES * BUFFER_BYTES as u64, huge_pages: true, populate: true };
    let pool = Pool::with(options).map_err(io::Error::other)?;
    let pieces = bytes / BUFFER_BYTES as u64;
    // The buffer that was filled longest ago is the next, so that none is warm.
    let mut free: std::collections::VecDeque<_> = std::iter::from_fn(|| pool.take()).collect();
    let (mut next, mut done) = (0, 0);
    let mut began = None;
    let mut completions = Vec::with_capacity(256);
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
        fabric.poll(Instant::now(), &mut completions);
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
