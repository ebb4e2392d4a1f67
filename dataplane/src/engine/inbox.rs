//! The engine's many-to-one queue: jobs, session events and ended tasks, bounded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use velo_fabric::ring::Waker;
use velo_object::{BlobId, NodeId};
use velo_socket::JobId;

use super::handle::PullRequest;
use super::task::Done;
use crate::session::SessionEvent;

/// How many inputs wait at most; whoever brings more waits too.
const CAPACITY: usize = 1024;

/// What the engine is told by threads that have no ring to it.
#[derive(Debug)]
pub(crate) enum Input {
    /// A new job.
    Pull(JobId, Box<PullRequest>),
    /// More sources for one.
    AddSources(JobId, Vec<NodeId>),
    /// End it.
    Cancel(JobId),
    /// The store has all of a blob that did not come from a peer.
    Stored(BlobId, u64),
    /// From the sessions.
    Session(Box<SessionEvent>),
    /// A task on a blocking thread has ended.
    Done(Box<Done>),
    /// End the engine.
    Stop,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: ArrayQueue<Input>,
    waker: Waker,
    closed: AtomicBool,
}

impl Inbox {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { queue: ArrayQueue::new(CAPACITY), waker, closed: AtomicBool::new(false) }
    }

    /// Puts an input in, waiting for room. False where the engine has ended.
    pub(crate) fn push(&self, mut input: Input) -> bool {
        loop {
            if self.closed.load(Ordering::Acquire) {
                return false;
            }
            match self.queue.push(input) {
                Ok(()) => {
                    self.waker.wake();
                    return true;
                }
                Err(back) => input = back,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn pop(&self) -> Option<Input> {
        self.queue.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// No more inputs; those who wait for room give up.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        while self.queue.pop().is_some() {}
    }
}
