//! Region to region: one side serves a region of memory, the other reads all of it into buffers, over one fabric. No hashing, no store;
//! both regions are larger than the caches, so that what is sent and where it goes is cold.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use velo_fabric::pool::{BUFFER_BYTES, Buffer, Pool, PoolOptions};
use velo_fabric::{Bytes, Completion, Fabric, PathId, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

/// Pieces of each region.
const PIECES: usize = 256;
/// Reads outstanding on a path.
const WINDOW: usize = 16;
/// How long a side spins before it sleeps, and the longest sleep.
const SPIN: Duration = Duration::from_micros(200);
const SLEEP_MAX: Duration = Duration::from_millis(50);
/// Nothing arrives for so long: the measurement has failed.
const STALL: Duration = Duration::from_secs(10);

/// The blob that a region stands for.
pub(super) const REGION: BlobId = BlobId::from_bytes([0x5e; 32]);

/// So many pieces, in huge pages where the host has them, all of them touched. The bare loops of ports take the same.
pub(super) fn memory(pieces: usize) -> PoolOptions {
    PoolOptions { bytes: (pieces * BUFFER_BYTES) as u64, huge_pages: true, populate: true }
}

/// Memory that is walked over, so that what it gives is cold.
pub(super) struct Cold {
    pieces: Vec<Buffer>,
    piece: usize,
    at: usize,
}

impl Cold {
    pub(super) fn new() -> anyhow::Result<Self> {
        let pool = Pool::with(memory(PIECES))?;
        let mut pieces: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        for (number, piece) in pieces.iter_mut().enumerate() {
            piece.as_mut().fill(number as u8);
        }
        Ok(Self { pieces, piece: 0, at: 0 })
    }

    /// The next `len` bytes, which no piece may be shorter than.
    pub(super) fn next(&mut self, len: usize) -> &mut [u8] {
        if self.at + len > BUFFER_BYTES {
            (self.piece, self.at) = ((self.piece + 1) % self.pieces.len(), 0);
        }
        let at = self.at;
        self.at += len.next_multiple_of(64);
        &mut self.pieces[self.piece].as_mut()[at..at + len]
    }
}

/// The side that serves: [`PIECES`] pieces of 1 MiB that differ, again and again.
pub(super) struct Region(Vec<Bytes>);

impl Region {
    /// Fills it: buffers of a pool, as what velod sends comes from.
    pub(super) fn new() -> Self {
        let pool = Pool::with(memory(PIECES)).expect("memory");
        let piece = |number: usize| {
            let mut buffer = pool.take().expect("one for each piece");
            for (at, word) in buffer.as_mut().chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&word_at(number, at).to_le_bytes());
            }
            Bytes::from_owner(buffer)
        };
        Self((0..PIECES).map(piece).collect())
    }
}

/// What stands in a piece.
fn word_at(piece: usize, at: usize) -> u64 {
    (piece as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (at as u64).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

impl Serve for Region {
    fn serve(&self, _: NodeId, blob: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let piece = usize::try_from(range.start / BUFFER_BYTES as u64).map_err(|_| Refusal::NotHere)?;
        if *blob != REGION || !range.start.is_multiple_of(BUFFER_BYTES as u64) {
            return Err(Refusal::NotHere);
        }
        let content = ServedContent::Bytes(self.0[piece % PIECES].clone());
        Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

/// Buffers for a reader, all of them touched, and those that were filled last.
pub(super) struct Target {
    pool: Pool,
    filled: VecDeque<Buffer>,
}

impl Target {
    /// As much memory as a region has, and what is in flight.
    pub(super) fn new() -> anyhow::Result<Self> {
        let pool = Pool::with(memory(PIECES + 4 * WINDOW))?;
        Ok(Self { pool, filled: VecDeque::with_capacity(PIECES + 1) })
    }

    /// Where the buffers come from.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// How often there was no buffer, of how many times that one was asked for.
    pub(super) fn misses(&self) -> (u64, u64) {
        let counters = self.pool.counters();
        (counters.misses, counters.takes + counters.misses)
    }
}

/// Serves until `stop`.
pub(super) fn serve_until(fabric: &mut dyn Fabric, stop: &AtomicBool) {
    let (mut completions, mut idle) = (Vec::new(), Idle::default());
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let work = fabric.poll(now, &mut completions);
        idle.after(fabric, now, work);
        completions.clear();
    }
}

/// What a worker does between turns, as velod's do: it spins a little, then sleeps until its fabric has something.
#[derive(Default)]
struct Idle(Option<Instant>);

impl Idle {
    fn after(&mut self, fabric: &dyn Fabric, now: Instant, work: usize) {
        if work > 0 {
            self.0 = None;
            return;
        }
        if now.duration_since(*self.0.get_or_insert(now)) < SPIN {
            std::hint::spin_loop();
            return;
        }
        // A port that must be polled has none.
        let Some(descriptor) = fabric.descriptor() else { return };
        let until = fabric.next_deadline().map_or(SLEEP_MAX, |at| at.saturating_duration_since(now));
        let until = Timespec { tv_sec: 0, tv_nsec: until.min(SLEEP_MAX).subsec_nanos().into() };
        let _ = poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&until));
    }
}

/// Reads `bytes` over the paths, and says in how many seconds. The last word of every piece is looked at; every byte of the last pieces is
/// compared after the clock has stopped.
pub(super) fn read_all(
    fabric: &mut dyn Fabric,
    paths: &[PathId],
    bytes: u64,
    target: &mut Target,
) -> anyhow::Result<f64> {
    let pieces = bytes / BUFFER_BYTES as u64;
    let (mut next, mut done) = (0u64, 0u64);
    let (mut completions, mut idle) = (Vec::with_capacity(64), Idle::default());
    let mut kept = VecDeque::with_capacity(PIECES + 1);
    let began = Instant::now();
    let mut moved = began;
    while done < pieces {
        while next < pieces && next - done < (WINDOW * paths.len()) as u64 {
            let Some(buffer) = target.pool.take() else { break };
            let read = Read {
                tag: next,
                blob: REGION,
                what: What::Blob,
                offset_bytes: next * BUFFER_BYTES as u64,
                len: BUFFER_BYTES as u32,
                buffer,
            };
            let path = paths[(next % paths.len() as u64) as usize];
            if fabric.post_read(path, read).is_err() {
                break;
            }
            next += 1;
        }
        let now = Instant::now();
        let work = fabric.poll(now, &mut completions);
        idle.after(fabric, now, work);
        for completion in completions.drain(..) {
            match completion {
                Completion::Read { tag, buffer, result, .. } => {
                    ensure!(result == Ok(BUFFER_BYTES as u32), "read {tag}: {result:?}");
                    let last = BUFFER_BYTES / 8 - 1;
                    ensure!(
                        word(buffer.as_ref(), last) == word_at(tag as usize % PIECES, last),
                        "piece {tag} has other bytes"
                    );
                    kept.push_back(tag);
                    target.filled.push_back(buffer);
                    if target.filled.len() > PIECES {
                        // The buffer that was filled longest ago is the next: none is warm.
                        target.filled.pop_front();
                        kept.pop_front();
                    }
                    done += 1;
                    moved = now;
                }
                Completion::PathClosed { error, .. } => bail!("the path was closed: {error}"),
                Completion::PathProven { .. } => {}
            }
        }
        ensure!(
            now.duration_since(moved) < STALL,
            "nothing arrived for {} s, {done} of {pieces}",
            STALL.as_secs()
        );
    }
    let seconds = began.elapsed().as_secs_f64();
    for (tag, buffer) in kept.iter().zip(target.filled.iter().skip(target.filled.len() - kept.len())) {
        let right =
            (0..BUFFER_BYTES / 8).all(|at| word(buffer.as_ref(), at) == word_at(*tag as usize % PIECES, at));
        ensure!(right, "piece {tag} has other bytes");
    }
    Ok(seconds)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[8 * at..8 * at + 8]);
    u64::from_le_bytes(word)
}

/// Both sides in this process, a thread each: `bytes` from `server` to `reader`. Seconds.
pub(super) fn between_threads(
    server: &mut dyn Fabric,
    reader: &mut dyn Fabric,
    paths: &[PathId],
    bytes: u64,
    target: &mut Target,
) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve_until(server, &stop));
        let taken = read_all(reader, paths, bytes, target);
        stop.store(true, Ordering::Relaxed);
        taken
    })
}
