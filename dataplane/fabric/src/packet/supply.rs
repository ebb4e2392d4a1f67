//! Where the bytes come from that peers ask for: [`Threads`] read them from the store beside the worker, [`Inline`] takes
//! what is in memory.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use velo_object::NodeId;

use super::limits::ASKS_MAX;
use super::protocol::{Answer, Ask, Loaded, LoadedBytes, ServeId};
use crate::pool::{Buffer, Pool};
use crate::ring::{Consumer, Producer, Sleeper, ring};
use crate::{Refusal, Serve, Served, ServedContent};

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
        self.answers.push_back(Answer { id: ask.id, result: load(&*self.serve, &ask, None) });
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
        let sleeper = Sleeper::new()?;
        let mut lanes = Vec::new();
        for i in 0..threads.max(1) {
            let own = Sleeper::new()?;
            let (jobs, their_jobs) = ring(JOBS_PER_LANE, own.waker());
            let (their_answers, answers) = ring(JOBS_PER_LANE, sleeper.waker());
            let serve = serve.clone();
            let thread = thread::Builder::new()
                .name(format!("velo-read-{i}"))
                .spawn(move || read(&*serve, their_jobs, their_answers, &own))?;
            lanes.push(Lane { jobs: Some(jobs), answers, busy: 0, thread: Some(thread) });
        }
        Ok(Self { serve, pool, waiting: VecDeque::with_capacity(ASKS_MAX), lanes, sleeper })
    }

    /// Hands on what waits, as long as there are buffers and threads for it.
    fn hand_on(&mut self) {
        while let Some(&ask) = self.waiting.front() {
            let Some(lane) = self.lanes.iter_mut().min_by_key(|lane| lane.busy) else { return };
            if lane.busy == JOBS_PER_LANE {
                return;
            }
            let Some(buffer) = self.pool.take() else { return };
            let Some(jobs) = &mut lane.jobs else { return };
            // There is room: no more than the ring holds are before the thread.
            if jobs.push(Job { ask, buffer }).is_ok() {
                lane.busy += 1;
            }
            self.waiting.pop_front();
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
        self.waiting.retain(|ask| ask.id != id);
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
fn read(serve: &dyn Serve, mut jobs: Consumer<Job>, mut answers: Producer<Answer>, sleeper: &Sleeper) {
    loop {
        while let Some(Job { ask, buffer }) = jobs.pop() {
            let answer = Answer { id: ask.id, result: load(serve, &ask, Some(buffer)) };
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

fn load(serve: &dyn Serve, ask: &Ask, buffer: Option<Buffer>) -> Result<Loaded, Refusal> {
    let end = ask.offset_bytes.checked_add(ask.len.into()).ok_or(Refusal::NotHere)?;
    let Served { content, len, lease } = serve.serve(ask.peer, &ask.blob, ask.what, ask.offset_bytes..end)?;
    if !(1..=ask.len).contains(&len) {
        return Err(Refusal::Refused);
    }
    let bytes = match content {
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
