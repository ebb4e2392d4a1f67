//! A client that reads a whole blob, verifies every piece, and throws it away.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_fabric::{Completion, Fabric, PathId, Read, Refusal, Serve, Served, What};
use velo_object::{BlobId, Expected, NodeId, Outboard, Verified};

use crate::peer::Peer;

const PATHS: u64 = 4;
const READS_PER_PATH: u64 = 4;

/// Serves nothing.
struct Nothing;

impl Serve for Nothing {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, _: Range<u64>) -> Result<Served, Refusal> {
        Err(Refusal::NotHere)
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// By streams.
    Tcp,
    /// By packets.
    Udp,
}

struct Reader {
    fabric: Box<dyn Fabric>,
    paths: Vec<PathId>,
    pool: Pool,
    completions: Vec<Completion>,
    blob: BlobId,
}

/// Reads `blob` from `source`, with which there is a session. Gives how many bytes were verified.
pub fn read_and_discard(peer: &Peer, source: NodeId, blob: BlobId, over: Over) -> u64 {
    let (fabric, paths): (Box<dyn Fabric>, _) = match over {
        Over::Tcp => {
            let options = TcpOptions { stall_timeout: Duration::from_secs(60), ..TcpOptions::default() };
            let mut fabric = Tcp::new(options, Arc::new(Nothing)).expect("descriptors");
            for (id, stream) in (1..).zip(peer.open_streams(source, PATHS as usize)) {
                let path = TcpPath { id, peer: source, stream: stream.tcp, tls: stream.tls };
                fabric.add_path(path).expect("a good stream");
            }
            (Box::new(fabric), (1..=PATHS).collect())
        }
        Over::Udp => (Box::new(peer.open_packets(source, Arc::new(Nothing))), vec![1]),
    };
    let reads = PATHS * READS_PER_PATH;
    let pool = Pool::new(reads * BUFFER_BYTES as u64).expect("memory");
    let mut reader = Reader { fabric, paths, pool, completions: Vec::new(), blob };
    let outboard = reader.outboard();
    reader.pieces(&outboard, reads)
}

impl Reader {
    fn post(&mut self, path: PathId, tag: u64, what: What, offset_bytes: u64, len: u32) {
        let buffer = self.pool.take().expect("no more reads than buffers");
        let read = Read { tag, blob: self.blob, what, offset_bytes, len, buffer };
        assert!(self.fabric.post_read(path, read).is_ok(), "path {path} takes no read");
    }

    /// The reads that have ended: path, tag, and what came.
    fn ended(&mut self) -> Vec<(PathId, u64, velo_fabric::pool::Buffer)> {
        while self.completions.is_empty() {
            if self.fabric.poll(Instant::now(), &mut self.completions) == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        let ended = self.completions.drain(..).map(|completion| match completion {
            Completion::Read { path, tag, buffer, result } => {
                result.unwrap_or_else(|error| panic!("read {tag} brought nothing: {error}"));
                (path, tag, buffer)
            }
            Completion::PathProven { path } => panic!("path {path} was proven before"),
            Completion::PathClosed { error, .. } => panic!("a path was closed: {error}"),
        });
        ended.collect()
    }

    fn outboard(&mut self) -> Outboard {
        self.post(1, 0, What::Outboard, 0, BUFFER_BYTES as u32);
        let ended = self.ended();
        Outboard::decode(self.blob, ended[0].2.as_ref()).expect("the outboard of the blob")
    }

    fn pieces(&mut self, outboard: &Outboard, reads: u64) -> u64 {
        let pieces = outboard.pieces();
        let len = |index| (pieces.range(index).end - pieces.range(index).start) as u32;
        let mut indexes = 0..pieces.count();
        for read in 0..reads as usize {
            if let Some(index) = indexes.next() {
                let path = self.paths[read % self.paths.len()];
                self.post(path, index, What::Blob, pieces.range(index).start, len(index));
            }
        }
        let (mut done, mut verified_bytes) = (0, 0);
        while done < pieces.count() {
            for (path, index, buffer) in self.ended() {
                let verified = Verified::check(buffer, len(index) as usize, Expected::Piece(outboard, index))
                    .unwrap_or_else(|(_, mismatch)| panic!("piece {index} is false: {mismatch:?}"));
                done += 1;
                verified_bytes += verified.len() as u64;
                drop(verified);
                if let Some(next) = indexes.next() {
                    self.post(path, next, What::Blob, pieces.range(next).start, len(next));
                }
            }
        }
        verified_bytes
    }
}
