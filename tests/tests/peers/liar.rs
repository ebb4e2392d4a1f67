//! A provider that says a blob has half its size, with an outboard of half the entries that still merges to the id.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::TryRecvError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_fabric::{Fabric, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId, Outboard, OutboardBuilder, PieceSet, Pieces, chaining_value};
use velo_tests::{Cluster, Node};
use velod::session::{PeerMessage, SessionEvent};

use crate::peer::Peer;

struct Lie {
    blob: BlobId,
    content: Vec<u8>,
    outboard: Vec<u8>,
}

impl Serve for Lie {
    fn serve(&self, _: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
        let from = match what {
            _ if *blob != self.blob => return Err(Refusal::NotHere),
            What::Blob => &self.content,
            What::Outboard => &self.outboard,
        };
        let end = (range.end as usize).min(from.len());
        let bytes =
            from.get(range.start as usize..end).filter(|bytes| !bytes.is_empty()).ok_or(Refusal::NotHere)?;
        Ok(Served {
            content: ServedContent::Bytes(bytes.to_vec().into()),
            len: bytes.len() as u32,
            lease: Box::new(()),
        })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

/// The outboard of half the size whose values are those of every two pieces.
fn half(content: &[u8]) -> Outboard {
    use blake3::hazmat::{Mode, merge_subtrees_non_root};
    let pieces = Pieces::new(content.len() as u64);
    let mut builder = OutboardBuilder::new(content.len() as u64);
    for index in 0..pieces.count() {
        let range = pieces.range(index);
        builder.set(index, chaining_value(index, &content[range.start as usize..range.end as usize]));
    }
    let whole = builder.finish();
    let pairs = whole.values().chunks_exact(2);
    let merged = pairs.map(|pair| merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)).collect();
    Outboard::from_values(whole.id(), whole.size_bytes() / 2, merged).expect("it merges to the root")
}

/// The liar, until it is dropped.
pub struct Liar {
    /// Who it is.
    pub id: NodeId,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Joins the cluster, makes a session with `victim`, and lies about a blob of an even number of pieces.
    pub fn start(cluster: &Cluster, victim: &Node, content: Vec<u8>) -> Self {
        let mut peer = Peer::new(cluster, false);
        peer.connect(victim);
        let outboard = half(&content);
        let lie = Lie { blob: outboard.id(), content, outboard: outboard.encode() };
        let (id, stop) = (peer.id, Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || serve(&peer, lie, outboard.size_bytes(), &stopped));
        Self { id, stop, thread: Some(thread) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(peer: &Peer, lie: Lie, size_bytes: u64, stopped: &AtomicBool) {
    let blob = lie.blob;
    let mut fabric = Tcp::new(TcpOptions::default(), Arc::new(lie)).expect("descriptors");
    let mut completions = Vec::new();
    let mut path = 0;
    while !stopped.load(Ordering::Relaxed) {
        match peer.events.try_recv() {
            Ok(SessionEvent::Stream { node, stream }) => {
                path += 1;
                let path = TcpPath { id: path, peer: node, stream: stream.tcp, tls: stream.tls };
                fabric.add_path(path).expect("a good stream");
            }
            Ok(SessionEvent::Message { node, message: PeerMessage::Interest { blobs } }) => {
                let count = Pieces::new(size_bytes).count();
                for asked in blobs {
                    let (have, holes) = (PieceSet::full(count), PieceSet::new(count));
                    let answer = match asked == blob {
                        true => PeerMessage::Have { blob, size_bytes: Some(size_bytes), have, holes },
                        false => PeerMessage::HaveNot { blob: asked },
                    };
                    peer.sessions.send(node, answer);
                }
            }
            Ok(_) => {}
            Err(TryRecvError::Empty) => {
                if fabric.poll(Instant::now(), &mut completions) == 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            Err(TryRecvError::Disconnected) => return,
        }
    }
}
