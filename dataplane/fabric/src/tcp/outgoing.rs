//! What a path has to send: frames of its own, and the answers to the peer's reads, one at a time and in order.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use rustix::io::Errno;
use velo_object::NodeId;

use super::READS_PER_PATH;
use super::frame::{Frame, Reason, Request};
use crate::{FabricCounters, ProtocolError, Refusal, Serve, Served, ServedContent};

/// Frames are gathered up to about this many bytes before they are sent.
const HEAD_BYTES: usize = 4 << 10;
/// No more reads are posted while this much waits to be sent; a peer that answers what it has not been asked yet could
/// make it grow otherwise.
const CONTROL_BYTES: usize = 16 << 10;

/// An answer that is being sent.
struct Answer {
    served: Served,
    sent: u32,
}

/// What is to be sent next.
pub(super) enum Next<'a> {
    /// These bytes; payload follows at once where the flag says so.
    Frames(&'a [u8], bool),
    /// Payload: a range of what [`Served`] gives.
    Payload(&'a Served, Range<u32>),
    Nothing,
}

pub(super) struct Outgoing {
    /// Frames that are being sent, and how much of them has been.
    head: Vec<u8>,
    head_sent: usize,
    /// Frames that follow when the answer that is being sent is complete.
    control: Vec<u8>,
    requests: VecDeque<Request>,
    answer: Option<Answer>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        let mut control = Vec::with_capacity(256);
        Frame::Greeting.encode(&mut control);
        Self { head: Vec::new(), head_sent: 0, control, requests: VecDeque::new(), answer: None }
    }

    /// Adds a frame that is not an answer.
    pub(super) fn push(&mut self, frame: &Frame) {
        frame.encode(&mut self.control);
    }

    /// Whether there is room for another read of ours.
    pub(super) fn has_room(&self) -> bool {
        self.control.len() < CONTROL_BYTES
    }

    /// Takes in a read of the peer's.
    pub(super) fn request(&mut self, request: Request) -> Result<(), ProtocolError> {
        if self.requests.len() >= READS_PER_PATH {
            return Err(ProtocolError::TooManyReads { limit: READS_PER_PATH });
        }
        self.requests.push_back(request);
        Ok(())
    }

    /// The peer does not want this read any more. It is still answered, in its turn.
    pub(super) fn cancelled(&mut self, tag: u64) {
        if let Some(request) = self.requests.iter_mut().find(|request| request.tag == tag) {
            request.cancelled = true;
        }
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty() && self.control.is_empty() && self.answer.is_none() && self.requests.is_empty()
    }

    /// What is to be sent next, at most `limit` bytes of payload.
    pub(super) fn next(
        &mut self,
        limit: usize,
        peer: NodeId,
        serve: &dyn Serve,
        counters: &mut FabricCounters,
    ) -> Next<'_> {
        if self.head.is_empty() && self.answer.is_none() {
            std::mem::swap(&mut self.head, &mut self.control);
            self.serve(peer, serve, counters);
        }
        if !self.head.is_empty() {
            return Next::Frames(&self.head[self.head_sent..], self.answer.is_some());
        }
        match &self.answer {
            Some(Answer { served, sent }) => {
                let end = sent.saturating_add(u32::try_from(limit).unwrap_or(u32::MAX)).min(served.len);
                Next::Payload(served, *sent..end)
            }
            None => Next::Nothing,
        }
    }

    /// Takes note that `count` bytes of what [`next`](Self::next) gave are on their way. Returns whether that ended an
    /// answer.
    pub(super) fn sent(&mut self, count: usize) -> bool {
        if !self.head.is_empty() {
            self.head_sent += count;
            if self.head_sent == self.head.len() {
                self.head.clear();
                self.head_sent = 0;
            }
            return false;
        }
        let Some(answer) = &mut self.answer else { return false };
        answer.sent += count as u32;
        let complete = answer.sent == answer.served.len;
        if complete {
            self.answer = None;
        }
        complete
    }

    /// Turns requests into frames until one is answered with bytes.
    fn serve(&mut self, peer: NodeId, serve: &dyn Serve, counters: &mut FabricCounters) {
        while self.head.len() < HEAD_BYTES && self.answer.is_none() {
            let Some(request) = self.requests.pop_front() else { return };
            let Request { tag, len, offset_bytes, .. } = request;
            let range = offset_bytes..offset_bytes + u64::from(len);
            let answer = if request.cancelled {
                Err(Reason::Cancelled)
            } else {
                serve.serve(peer, &request.blob, request.what, range).map_err(|refusal| match refusal {
                    Refusal::NotHere => Reason::NotHere,
                    Refusal::Refused => Reason::Refused,
                })
            };
            match answer {
                Ok(served) if (1..=len).contains(&served.len) && holds(&served) => {
                    Frame::Data { tag, len: served.len }.encode(&mut self.head);
                    self.answer = Some(Answer { served, sent: 0 });
                }
                // It gave nothing, or more than was asked: either way nothing that can be sent.
                Ok(_) => {
                    counters.reads_refused += 1;
                    Frame::Refuse { tag, reason: Reason::NotHere }.encode(&mut self.head);
                }
                Err(reason) => {
                    counters.reads_refused += 1;
                    Frame::Refuse { tag, reason }.encode(&mut self.head);
                }
            }
        }
    }
}

fn holds(served: &Served) -> bool {
    match &served.content {
        ServedContent::File { .. } => true,
        ServedContent::Bytes(bytes) => bytes.len() >= served.len as usize,
    }
}

/// Copies served bytes from `from` on into all of `out`.
pub(super) fn copy_served(served: &Served, from: u32, out: &mut [u8]) -> io::Result<()> {
    match &served.content {
        ServedContent::Bytes(bytes) => {
            let from = from as usize;
            let source = bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(source);
            Ok(())
        }
        ServedContent::File { file, offset_bytes } => {
            let mut filled = 0;
            while filled < out.len() {
                let at = offset_bytes + u64::from(from) + filled as u64;
                match rustix::io::pread(file, &mut out[filled..], at) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }
    }
}
