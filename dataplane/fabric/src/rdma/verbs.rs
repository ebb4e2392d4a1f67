//! What the RDMA fabric needs of a device, and nothing else: queue pairs that are connected, messages, READs, loans of memory.
//!
//! A worker has one implementation to itself. Its calls neither block nor, after the first turns, allocate; what a device needs time
//! for (making, connecting and destroying queue pairs, registering memory) happens on other threads.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use crate::pool::Buffer;

/// A queue pair, by the number that its device gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueuePair(pub u32);

/// Memory of a peer that it has lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Where it begins in the peer's address space.
    pub address: u64,
    /// The key that the peer's device asks for.
    pub rkey: u32,
    /// How many bytes.
    pub len: u32,
}

/// How loans are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lending {
    /// Each by itself: a memory window of type 2, bound to the queue pair.
    Windows,
    /// All of a queue pair at once, by destroying it: the peer may read the whole slab meanwhile, which holds nothing but verified pieces.
    Slabs,
}

/// Why a work request brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum WorkError {
    /// The queue pair had failed, or was being destroyed.
    #[error("the queue pair had failed before")]
    Flushed,
    /// The peer's device does not answer.
    #[error("the peer's device does not answer")]
    Unreachable,
    /// The peer's device lets nobody read there: the lease had ended, or the key is wrong.
    #[error("the peer's device refused access: the lease had ended, or the key is wrong")]
    RemoteAccess,
    /// The peer's device failed.
    #[error("the peer's device could not do it")]
    Remote,
    /// This device refused: a bug or a fault of ours.
    #[error("this device refused the work (status {0})")]
    Local(u32),
}

/// What has happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A message has come.
    Received {
        /// Where.
        qp: QueuePair,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// A READ has ended: exactly once for each that [`Verbs::read`] took.
    Read {
        /// Where.
        qp: QueuePair,
        /// Its tag.
        tag: u32,
        /// Where the bytes are.
        buffer: Buffer,
        /// Whether they are.
        result: Result<(), WorkError>,
    },
    /// A loan was taken back: nobody can read that memory by it any more. Exactly once for each that [`Verbs::revoke`] took, unless its
    /// queue pair is [`Gone`](Self::Gone) before.
    Revoked {
        /// Where.
        qp: QueuePair,
        /// Its tag.
        tag: u32,
    },
    /// The queue pair carries nothing any more. It is to be [`retired`](Verbs::retire).
    Failed {
        /// Which.
        qp: QueuePair,
        /// What came first.
        error: WorkError,
    },
    /// A retired queue pair is destroyed. All its READs have been reported, all its loans have ended.
    Gone {
        /// Which.
        qp: QueuePair,
    },
    /// The port is down or the device is gone. Its queue pairs are to be retired all the same.
    DeviceFailed {
        /// What it said.
        error: io::Error,
    },
}

/// One port of a device, for one worker.
pub trait Verbs: Send {
    /// The device's name and port, for logs and the status.
    fn name(&self) -> &str;

    /// How loans are taken back.
    fn lending(&self) -> Lending;

    /// The port's rate, where it is known.
    fn rate_bytes_per_s(&self) -> Option<u64>;

    /// Whether a READ can fill this buffer: its pool is registered.
    fn takes(&self, buffer: &Buffer) -> bool;

    /// Sends a message of at most [`super::limits::MESSAGE_BYTES`]. False where the queue pair has no room now.
    fn send(&mut self, qp: QueuePair, message: &[u8]) -> bool;

    /// Reads a peer's memory into a buffer, from its beginning.
    ///
    /// # Errors
    /// Gives the buffer back where the queue pair has no room now.
    fn read(&mut self, qp: QueuePair, tag: u32, from: Span, to: Buffer) -> Result<(), Buffer>;

    /// Lends the first `len` bytes of a buffer to the peer of a queue pair, until the loan is revoked or the queue pair gone. What is sent
    /// after this call arrives after the loan holds. `None` where the queue pair has no room now.
    fn lend(&mut self, qp: QueuePair, tag: u32, memory: &Buffer, len: u32) -> Option<Span>;

    /// Takes a loan back. With [`Lending::Slabs`], only what the peer has given back. False where the queue pair has no room now.
    fn revoke(&mut self, qp: QueuePair, tag: u32) -> bool;

    /// Hands all that was posted since to the device: one doorbell for each queue pair.
    fn flush(&mut self);

    /// Destroys a queue pair, some time.
    fn retire(&mut self, qp: QueuePair);

    /// Gives what has happened to `each`, a bounded number. Returns how many.
    fn poll(&mut self, each: &mut dyn FnMut(Event<'_>)) -> usize;

    /// Asks that [`descriptor`](Self::descriptor) become readable when something happens from now on: [`poll`](Self::poll) once more for
    /// what has before.
    ///
    /// # Errors
    /// Where the device is gone.
    fn arm(&mut self) -> io::Result<()>;

    /// What to sleep on.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
