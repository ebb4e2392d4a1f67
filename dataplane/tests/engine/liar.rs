//! A node that serves one blob and is slow or false in one way: its own fabric, no store.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_fabric::{Fabric, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId, Outboard, OutboardBuilder, PIECE_BYTES, PieceSet, Pieces, chaining_value};
use velod::engine::Peers;
use velod::session::{PeerMessage, SessionEvent};

use crate::hub::{Hub, HubPeers, node_id};

/// What is wrong with it.
pub enum Lie {
    /// It serves a piece only every so often.
    Slow(Duration),
    /// It refuses all after so many pieces.
    Few(u32),
    /// It serves other bytes.
    Content(Vec<u8>),
    /// It says the blob has half its size, with an outboard of every two values merged.
    HalfOutboard,
    /// It says the blob is 1024 times as large, with an outboard of the values of chunks of 1 KiB.
    ChunksOutboard,
    /// It says the blob has so many bytes.
    Size(u64),
}

pub struct Liar {
    pub id: NodeId,
    hub: Hub,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct LiarServe {
    blob: BlobId,
    content: Vec<u8>,
    outboard: Vec<u8>,
    pause: Option<Duration>,
    next: Mutex<Instant>,
    left: AtomicU32,
}

impl Serve for LiarServe {
    fn serve(&self, _: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
        if *blob != self.blob {
            return Err(Refusal::NotHere);
        }
        let from = match what {
            What::Blob => &self.content,
            What::Outboard => &self.outboard,
        };
        let end = (range.end as usize).min(from.len());
        let bytes =
            from.get(range.start as usize..end).filter(|bytes| !bytes.is_empty()).ok_or(Refusal::NotHere)?;
        if what == What::Blob
            && self
                .left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_err()
        {
            return Err(Refusal::Refused);
        }
        if let (Some(pause), What::Blob) = (self.pause, what) {
            let mut next = self.next.lock().expect("no panic");
            let now = Instant::now();
            if now < *next {
                // A long pause is a stall: nothing at all comes.
                std::thread::sleep((*next - now).min(Duration::from_secs(2)));
            }
            *next = Instant::now() + pause;
        }
        let len = bytes.len() as u32;
        Ok(Served { content: ServedContent::Bytes(bytes.to_vec().into()), len, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

fn outboard_of(content: &[u8]) -> Outboard {
    let pieces = Pieces::new(content.len() as u64);
    let mut builder = OutboardBuilder::new(content.len() as u64);
    for index in 0..pieces.count() {
        let range = pieces.range(index);
        builder.set(index, chaining_value(index, &content[range.start as usize..range.end as usize]));
    }
    builder.finish()
}

/// The outboard of half the size whose values are those of every two pieces: it merges to the same root.
fn half(outboard: &Outboard) -> Outboard {
    use blake3::hazmat::{Mode, merge_subtrees_non_root};
    let values = outboard.values().chunks_exact(2);
    let merged = values.map(|pair| merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash)).collect();
    Outboard::from_values(outboard.id(), outboard.size_bytes() / 2, merged).expect("it merges to the root")
}

/// The outboard of 1024 times the size whose values are those of the chunks of 1 KiB: it merges to the same root.
fn chunks(id: BlobId, content: &[u8]) -> Outboard {
    use blake3::hazmat::HasherExt;
    let value = |(at, chunk): (usize, &[u8])| {
        blake3::Hasher::new().set_input_offset(at as u64 * 1024).update(chunk).finalize_non_root()
    };
    let values = content.chunks(1024).enumerate().map(value).collect();
    Outboard::from_values(id, content.len() as u64 * 1024, values).expect("it merges to the root")
}

impl Liar {
    pub fn start(hub: &Hub, number: u8, content: &[u8], lie: Lie) -> Self {
        let id = node_id(number);
        let mut outboard = outboard_of(content);
        let blob = outboard.id();
        let mut content = content.to_vec();
        let mut pause = None;
        let mut left = AtomicU32::new(u32::MAX);
        match &lie {
            Lie::Few(pieces) => left = AtomicU32::new(*pieces),
            Lie::Slow(every) => pause = Some(*every),
            Lie::Content(bent) => content.clone_from(bent),
            Lie::HalfOutboard => outboard = half(&outboard),
            Lie::ChunksOutboard => outboard = chunks(blob, &content),
            Lie::Size(_) => {}
        }
        let size_bytes = if let Lie::Size(stated) = lie { stated } else { outboard.size_bytes() };
        let next = Mutex::new(Instant::now());
        let serve = LiarServe { blob, content, outboard: outboard.encode(), pause, next, left };
        let (events, inbox) = mpsc::channel();
        hub.join(id, Arc::new(move |event| drop(events.send(event))));
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, peers) = (stop.clone(), HubPeers { hub: hub.clone(), node: id });
        let thread = std::thread::spawn(move || {
            let mut fabric = Tcp::new(TcpOptions::default(), Arc::new(serve)).expect("descriptors");
            let mut completions = Vec::new();
            let mut path = 0;
            while !stopped.load(Ordering::Relaxed) {
                for event in inbox.try_iter() {
                    match event {
                        SessionEvent::Stream { node, stream } => {
                            path += 1;
                            let path = TcpPath { id: path, peer: node, stream: stream.tcp, tls: stream.tls };
                            fabric.add_path(path).expect("a good stream");
                        }
                        SessionEvent::Message { node, message: PeerMessage::Interest { blobs } } => {
                            for asked in blobs {
                                let message = if asked == blob {
                                    let count = size_bytes.div_ceil(PIECE_BYTES);
                                    let (have, holes) = (PieceSet::full(count), PieceSet::new(count));
                                    PeerMessage::Have { blob, size_bytes: Some(size_bytes), have, holes }
                                } else {
                                    PeerMessage::HaveNot { blob: asked }
                                };
                                peers.send(node, message);
                            }
                        }
                        _ => {}
                    }
                }
                if fabric.poll(Instant::now(), &mut completions) == 0 {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        });
        Self { id, hub: hub.clone(), stop, thread: Some(thread) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.hub.leave(self.id);
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
