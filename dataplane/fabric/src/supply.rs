//! Where the bytes come from that peers ask for: [`Threads`] read them from the store beside the worker, [`Inline`] takes
//! what is in memory.

#![forbid(unsafe_code)]

use std::any::Any;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use velo_object::{BlobId, NodeId};

use crate::pool::{Buffer, Pool};
use crate::ring::{Consumer, Producer, Sleeper, ring};
use crate::{PathId, Refusal, Serve, Served, ServedContent, What};

/// Reads of peers that may wait for their bytes, over all paths of a worker; more are refused.
pub const ASKS_MAX: usize = 4_096;

/// Names a range that a peer wants to be supplied with, until it is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServeId {
    /// The path that it was asked on.
    pub path: PathId,
    /// Which of the peer's slots.
    pub slot: u16,
    /// The number of the read in that slot.
    pub read: u32,
}

/// A range that a peer wants: answer with [`Answer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Its name.
    pub id: ServeId,
    /// Who asks.
    pub peer: NodeId,
    /// Which blob.
    pub blob: BlobId,
    /// Content or outboard.
    pub what: What,
    /// Where the range begins.
    pub offset_bytes: u64,
    /// How long it is: 1 to [`crate::pool::BUFFER_BYTES`].
    pub len: u32,
}

/// The answer to an [`Ask`].
pub struct Answer {
    /// Which.
    pub id: ServeId,
    /// The bytes, or why there are none.
    pub result: Result<Loaded, Refusal>,
}

/// Bytes to be sent.
pub struct Loaded {
    /// Where they are: shared memory or a buffer of a pool, from its beginning.
    pub bytes: LoadedBytes,
    /// How many: 1 to what was asked.
    pub len: u32,
    /// Dropped with it: keeps the bytes from being evicted.
    pub lease: Box<dyn Any + Send>,
}

/// Where bytes to be sent lie.
pub enum LoadedBytes {
    /// In a buffer.
    Buffer(Buffer),
    /// In memory that is shared.
    Shared(Bytes),
}

/// Gives a worker the bytes that its peers ask for. Its calls neither block nor, after the first turns, allocate.
pub trait Supply: Send {
    /// Takes a question, which [`poll`](Self::poll) answers some time.
    ///
    /// # Errors
    /// Gives it back where too many wait: it is to be refused.
    fn ask(&mut self, ask: Ask) -> Result<(), Ask>;

    /// Gives the answers that are there to `each`. Returns how many.
    fn poll(&mut self, each: &mut dyn FnMut(Answer)) -> usize;

    /// What was asked is not wanted any more. It may still be answered.
    fn release(&mut self, id: ServeId);

    /// `bytes` of content were sent to `peer`.
    fn sent(&mut self, peer: NodeId, bytes: u64);

    /// Asks that [`descriptor`](Self::descriptor) become readable when there are answers, until the next poll. False
    /// where there are some already.
    fn arm(&mut self) -> bool {
        true
    }

    /// What to sleep on; `None` where answers are always there at once.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Answers at once, with what [`Serve`] has in memory; what lies in a file is refused.
pub struct Inline {
    serve: Arc<dyn Serve>,
    answers: VecDeque<Answer>,
}

impl Inline {
    /// A supply from the memory of `serve`.
    pub fn new(serve: Arc<dyn Serve>) -> Self {
        Self { serve, answers: VecDeque::with_capacity(ASKS_MAX) }
    }
}

impl Supply for Inline {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        if self.answers.len() == ASKS_MAX {
            return Err(ask);
        }
        self.answers.push_back(Answer { id: ask.id, result: load(&*self.serve, &ask, None, false) });
        Ok(())
    }

    fn poll(&mut self, each: &mut dyn FnMut(Answer)) -> usize {
        let count = self.answers.len();
        self.answers.drain(..).for_each(each);
        count
    }

    fn release(&mut self, id: ServeId) {
        self.answers.retain(|answer| answer.id != id);
    }

    fn sent(&mut self, peer: NodeId, bytes: u64) {
        self.serve.sent(peer, bytes);
    }
}

/// Reads on threads of its own, into buffers of a pool: a read of a file may wait for a disk.
pub struct Threads {
    serve: Arc<dyn Serve>,
    pool: Pool,
    /// What waits for a buffer or a thread.
    waiting: VecDeque<Ask>,
    /// The slots of each path whose reads have had a buffer and are not released. No path has more than its share, so that a reader that
    /// stops takes nothing from the others.
    held: HashMap<PathId, u64>,
    lanes: Vec<Lane>,
    sleeper: Sleeper,
}

/// A thread and its rings.
struct Lane {
    jobs: Option<Producer<Job>>,
    answers: Consumer<Answer>,
    /// Jobs that are not answered yet.
    busy: usize,
    thread: Option<JoinHandle<()>>,
}

struct Job {
    ask: Ask,
    buffer: Buffer,
}

/// Jobs that one thread may have before it.
const JOBS_PER_LANE: usize = 64;

impl Threads {
    /// A supply with `threads` threads, at least one. Nobody else may take from `pool`: each of its buffers holds one read
    /// of a peer, and what is asked beyond that waits until one comes back.
    ///
    /// # Errors
    /// Where the system gives no thread or descriptor.
    pub fn new(serve: Arc<dyn Serve>, pool: Pool, threads: usize) -> io::Result<Self> {
        Self::start(serve, pool, threads, false)
    }

    /// The same, of which every answer lies in a buffer, also what is in memory already: for who can lend nothing else.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn into_buffers(serve: Arc<dyn Serve>, pool: Pool, threads: usize) -> io::Result<Self> {
        Self::start(serve, pool, threads, true)
    }

    fn start(serve: Arc<dyn Serve>, pool: Pool, threads: usize, copies: bool) -> io::Result<Self> {
        let sleeper = Sleeper::new()?;
        let mut lanes = Vec::new();
        for i in 0..threads.max(1) {
            let own = Sleeper::new()?;
            let (jobs, their_jobs) = ring(JOBS_PER_LANE, own.waker());
            let (their_answers, answers) = ring(JOBS_PER_LANE, sleeper.waker());
            let serve = serve.clone();
            let thread = thread::Builder::new()
                .name(format!("velo-read-{i}"))
                .spawn(move || read(&*serve, their_jobs, their_answers, &own, copies))?;
            lanes.push(Lane { jobs: Some(jobs), answers, busy: 0, thread: Some(thread) });
        }
        let waiting = VecDeque::with_capacity(ASKS_MAX);
        Ok(Self { serve, pool, waiting, held: HashMap::with_capacity(ASKS_MAX), lanes, sleeper })
    }

    /// Hands on what waits, as long as there are buffers and threads for it.
    fn hand_on(&mut self) {
        while !self.waiting.is_empty() {
            let Some(lane) = self.lanes.iter_mut().min_by_key(|lane| lane.busy) else { return };
            if lane.busy == JOBS_PER_LANE {
                return;
            }
            let Some(buffer) = self.pool.take() else { return };
            // One share stays free for whoever comes next.
            let share = (self.pool.capacity() / (self.held.len() + 1)).max(1);
            let may = |ask: &Ask| {
                self.held.get(&ask.id.path).is_none_or(|held| (held.count_ones() as usize) < share)
            };
            let Some(at) = self.waiting.iter().position(may) else { return };
            let (Some(jobs), Some(ask)) = (&mut lane.jobs, self.waiting.remove(at)) else { return };
            *self.held.entry(ask.id.path).or_default() |= 1 << ask.id.slot;
            // There is room: no more than the ring holds are before the thread.
            if jobs.push(Job { ask, buffer }).is_ok() {
                lane.busy += 1;
            }
        }
    }
}

impl Supply for Threads {
    fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
        if self.waiting.len() == ASKS_MAX {
            return Err(ask);
        }
        self.waiting.push_back(ask);
        self.hand_on();
        Ok(())
    }

    fn poll(&mut self, each: &mut dyn FnMut(Answer)) -> usize {
        self.sleeper.disarm();
        let mut count = 0;
        for lane in &mut self.lanes {
            while lane.busy > 0
                && let Some(answer) = lane.answers.pop()
            {
                lane.busy -= 1;
                count += 1;
                each(answer);
            }
        }
        self.hand_on();
        count
    }

    fn release(&mut self, id: ServeId) {
        if let Some(at) = self.waiting.iter().position(|ask| ask.id == id) {
            self.waiting.remove(at);
        } else if let Entry::Occupied(mut held) = self.held.entry(id.path) {
            *held.get_mut() &= !(1 << id.slot);
            if *held.get() == 0 {
                held.remove();
            }
        }
    }

    fn sent(&mut self, peer: NodeId, bytes: u64) {
        self.serve.sent(peer, bytes);
    }

    fn arm(&mut self) -> bool {
        // A buffer may have come back since the last poll.
        self.hand_on();
        self.sleeper.arm(|| self.lanes.iter().any(|lane| !lane.answers.is_empty()))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sleeper.descriptor())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            lane.jobs = None;
        }
        for thread in self.lanes.iter_mut().filter_map(|lane| lane.thread.take()) {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// What one thread does until the worker is gone.
fn read(
    serve: &dyn Serve,
    mut jobs: Consumer<Job>,
    mut answers: Producer<Answer>,
    sleeper: &Sleeper,
    copies: bool,
) {
    loop {
        while let Some(Job { ask, buffer }) = jobs.pop() {
            let answer = Answer { id: ask.id, result: load(serve, &ask, Some(buffer), copies) };
            // There is room: the worker keeps no more jobs before us than the ring holds.
            if answers.push(answer).is_err() {
                return;
            }
        }
        if jobs.is_abandoned() && jobs.is_empty() {
            return;
        }
        let has_work = || !jobs.is_empty() || jobs.is_abandoned();
        if let Err(error) = sleeper.sleep_unless(has_work, &[], None) {
            tracing::error!(%error, "a thread that reads for peers cannot sleep");
            thread::yield_now();
        }
    }
}

fn load(serve: &dyn Serve, ask: &Ask, buffer: Option<Buffer>, copies: bool) -> Result<Loaded, Refusal> {
    let end = ask.offset_bytes.checked_add(ask.len.into()).ok_or(Refusal::NotHere)?;
    let Served { content, len, lease } = serve.serve(ask.peer, &ask.blob, ask.what, ask.offset_bytes..end)?;
    if !(1..=ask.len).contains(&len) {
        return Err(Refusal::Refused);
    }
    let bytes = match content {
        ServedContent::Bytes(bytes) if bytes.len() >= len as usize && copies => {
            let mut buffer = buffer.ok_or(Refusal::Refused)?;
            buffer.set_len(len as usize);
            buffer.as_mut().copy_from_slice(&bytes[..len as usize]);
            LoadedBytes::Buffer(buffer)
        }
        ServedContent::Bytes(bytes) if bytes.len() >= len as usize => LoadedBytes::Shared(bytes),
        ServedContent::Bytes(_) => return Err(Refusal::Refused),
        ServedContent::File { file, offset_bytes } => {
            let mut buffer = buffer.ok_or(Refusal::Refused)?;
            buffer.set_len(len as usize);
            if let Err(error) = file.read_exact_at(buffer.as_mut(), offset_bytes) {
                tracing::error!(blob = %ask.blob, %error, "cannot read what this node serves: run `velo verify`");
                return Err(Refusal::NotHere);
            }
            LoadedBytes::Buffer(buffer)
        }
    };
    Ok(Loaded { bytes, len, lease })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    /// A blob of 100 bytes in a file, its outboard in memory.
    struct Both {
        file: Arc<File>,
        sent: AtomicU64,
    }

    impl Both {
        fn new() -> Arc<Self> {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 100]).unwrap();
            Arc::new(Self { file: Arc::new(file), sent: AtomicU64::new(0) })
        }
    }

    impl Serve for Both {
        fn serve(&self, _: NodeId, _: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
            let content = match what {
                What::Blob => ServedContent::File { file: self.file.clone(), offset_bytes: range.start },
                What::Outboard => ServedContent::Bytes(vec![8; 100].into()),
            };
            Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
        }

        fn sent(&self, _: NodeId, bytes: u64) {
            self.sent.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn ask(read: u32, what: What, len: u32) -> Ask {
        let id = ServeId { path: 1, slot: 0, read };
        let (peer, blob) = (NodeId::from_bytes([0; 32]), BlobId::of(b""));
        Ask { id, peer, blob, what, offset_bytes: 0, len }
    }

    /// The number of a read, and the first byte and the length of what it brought.
    type Answered = (u32, Result<(u8, u32), Refusal>);

    /// The answers by their reads.
    fn answers(supply: &mut dyn Supply, count: usize) -> Vec<Answered> {
        let mut answers = Vec::new();
        let end = Instant::now() + Duration::from_secs(20);
        let mut over = Vec::new();
        while answers.len() < count && Instant::now() < end {
            supply.poll(&mut |answer| {
                let result = answer.result.map(|loaded| (loaded.bytes.as_ref()[0], loaded.len));
                answers.push((answer.id.read, result));
                over.push(answer.id);
            });
            over.drain(..).for_each(|id| supply.release(id));
        }
        answers.sort_by_key(|answer| answer.0);
        answers
    }

    #[test]
    fn what_lies_in_memory_is_there_at_once_and_files_are_not_for_the_worker() {
        let both = Both::new();
        let mut inline = Inline::new(both.clone());
        inline.ask(ask(1, What::Outboard, 60)).unwrap();
        inline.ask(ask(2, What::Blob, 60)).unwrap();
        inline.ask(ask(3, What::Outboard, 101)).unwrap();
        inline.ask(ask(4, What::Outboard, 60)).unwrap();
        inline.release(ServeId { path: 1, slot: 0, read: 4 });
        let expected = [(1, Ok((8, 60))), (2, Err(Refusal::Refused)), (3, Err(Refusal::Refused))];
        assert_eq!(answers(&mut inline, 3), expected);
        inline.sent(NodeId::from_bytes([0; 32]), 5);
        assert_eq!(both.sent.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn too_many_questions_come_back() {
        let pool = Pool::new(1 << 20).unwrap();
        let hold = pool.take();
        for mut supply in [
            Box::new(Inline::new(Both::new())) as Box<dyn Supply>,
            // Its only buffer is out.
            Box::new(Threads::new(Both::new(), pool.clone(), 1).unwrap()),
        ] {
            for read in 0..ASKS_MAX as u32 {
                supply.ask(ask(read, What::Outboard, 1)).unwrap();
            }
            assert_eq!(supply.ask(ask(77, What::Outboard, 1)), Err(ask(77, What::Outboard, 1)));
        }
        drop(hold);
    }

    #[test]
    fn threads_answer_more_questions_than_they_have_buffers() {
        let pool = Pool::new(2 << 20).unwrap();
        let mut threads = Threads::new(Both::new(), pool.clone(), 3).unwrap();
        for read in 0..200 {
            let what = if read % 2 == 0 { What::Blob } else { What::Outboard };
            threads.ask(ask(read, what, 10)).unwrap();
        }
        // Past the end of the file.
        threads.ask(ask(200, What::Blob, 101)).unwrap();
        let answers = answers(&mut threads, 201);
        assert_eq!(answers.len(), 201);
        for (read, result) in &answers[..200] {
            assert_eq!(*result, Ok((7 + (read % 2) as u8, 10)));
        }
        assert_eq!(answers[200], (200, Err(Refusal::NotHere)));
        drop(threads);
        assert_eq!(pool.counters().in_use, 0);
    }

    #[test]
    fn a_reader_that_stops_leaves_buffers_to_the_others() {
        let mut threads = Threads::new(Both::new(), Pool::new(8 << 20).unwrap(), 1).unwrap();
        let ask = |path, slot| Ask { id: ServeId { path, slot, read: 1 }, ..ask(1, What::Blob, 10) };
        let mut kept = Vec::new();
        let mut answered = |threads: &mut Threads, count: usize| {
            let end = Instant::now() + Duration::from_secs(20);
            let before = kept.len();
            while kept.len() < before + count && Instant::now() < end {
                // What is answered stays with the reader.
                threads.poll(&mut |answer| kept.push((answer.id, answer.result.unwrap())));
            }
            thread::sleep(Duration::from_millis(5));
            threads.poll(&mut |answer| kept.push((answer.id, answer.result.unwrap())));
            kept[before..].iter().map(|(id, _)| (id.path, id.slot)).collect::<Vec<_>>()
        };
        // Half is left for the next, and so on.
        (0..20).for_each(|slot| threads.ask(ask(1, slot)).unwrap());
        assert_eq!(answered(&mut threads, 4), [(1, 0), (1, 1), (1, 2), (1, 3)]);
        (0..20).for_each(|slot| threads.ask(ask(2, slot)).unwrap());
        assert_eq!(answered(&mut threads, 2), [(2, 0), (2, 1)]);
        threads.ask(ask(3, 5)).unwrap();
        assert_eq!(answered(&mut threads, 1), [(3, 5)]);
        threads.release(ServeId { path: 2, slot: 0, read: 1 });
        assert_eq!(answered(&mut threads, 1), [(2, 2)]);
    }

    #[test]
    fn an_armed_worker_is_woken_by_an_answer() {
        let mut threads = Threads::new(Both::new(), Pool::new(1 << 20).unwrap(), 1).unwrap();
        for read in 0..100 {
            assert_eq!(answers(&mut threads, 0), []);
            threads.ask(ask(read, What::Blob, 10)).unwrap();
            if threads.arm() {
                let descriptor = threads.descriptor().unwrap();
                let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
                let timeout = Timespec { tv_sec: 20, tv_nsec: 0 };
                assert_eq!(poll(&mut fds, Some(&timeout)), Ok(1), "nobody woke it");
            }
            let mut count = 0;
            threads.poll(&mut |_| count += 1);
            assert_eq!(count, 1);
            threads.release(ServeId { path: 1, slot: 0, read });
        }
    }
}
