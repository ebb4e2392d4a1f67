//! A client that reads a whole blob, verifies every piece, and throws it away.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_fabric::{Completion, Fabric, PathId, Read, Refusal, Serve, Served, What};
use velo_object::{BlobId, Expected, NodeId, Outboard, Verified};

use crate::peer::Peer;

const STREAMS: u64 = 4;
const READS_PER_STREAM: u64 = 4;

/// Serves nothing.
struct Nothing;

impl Serve for Nothing {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, _: Range<u64>) -> Result<Served, Refusal> {
        Err(Refusal::NotHere)
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

struct Reader {
    fabric: Tcp,
    pool: Pool,
    completions: Vec<Completion>,
    blob: BlobId,
}

/// Reads `blob` from `source`, with which there is a session. Gives how many bytes were verified.
pub fn read_and_discard(peer: &Peer, source: NodeId, blob: BlobId) -> u64 {
    let options = TcpOptions { stall_timeout: Duration::from_secs(60), ..TcpOptions::default() };
    let mut reader = Reader {
        fabric: Tcp::new(options, Arc::new(Nothing)).expect("descriptors"),
        pool: Pool::new(STREAMS * READS_PER_STREAM * BUFFER_BYTES as u64).expect("memory"),
        completions: Vec::new(),
        blob,
    };
    for (id, stream) in (1..).zip(peer.open_streams(source, STREAMS as usize)) {
        let path = TcpPath { id, peer: source, stream: stream.tcp, tls: stream.tls };
        reader.fabric.add_path(path).expect("a good stream");
    }
    let outboard = reader.outboard();
    reader.pieces(&outboard)
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
            Completion::PathProven { path } => panic!("stream {path} needs no proof"),
            Completion::PathClosed { error, .. } => panic!("a stream was closed: {error}"),
        });
        ended.collect()
    }

    fn outboard(&mut self) -> Outboard {
        self.post(1, 0, What::Outboard, 0, BUFFER_BYTES as u32);
        let ended = self.ended();
        Outboard::decode(self.blob, ended[0].2.as_ref()).expect("the outboard of the blob")
    }

    fn pieces(&mut self, outboard: &Outboard) -> u64 {
        let pieces = outboard.pieces();
        let len = |index| (pieces.range(index).end - pieces.range(index).start) as u32;
        let mut indexes = 0..pieces.count();
        for read in 0..STREAMS * READS_PER_STREAM {
            if let Some(index) = indexes.next() {
                self.post(1 + read % STREAMS, index, What::Blob, pieces.range(index).start, len(index));
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
