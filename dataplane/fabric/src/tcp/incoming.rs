//! What arrives on a path: turns bytes, cut anywhere, into frames, and puts payload into the buffers of the reads that
//! asked for it. No socket and no clock; nothing a peer sends makes it panic or allocate.

use std::collections::VecDeque;

use super::frame::{Frame, HEADER_BYTES, READ_BYTES, Reason, Request, frame_bytes};
use crate::pool::Buffer;
use crate::{ProtocolError, ReadError};

/// What has arrived.
#[derive(Debug)]
pub(super) enum Event {
    /// The peer asks for a range.
    Request(Request),
    /// The peer does not want it any more.
    Cancel { tag: u64 },
    /// A read of ours has ended.
    Done { tag: u64, buffer: Buffer, result: Result<u32, ReadError> },
}

/// A read that was asked and not answered.
#[derive(Debug)]
struct Outstanding {
    tag: u64,
    len: u32,
    /// Taken when the read is cancelled; then the answer is thrown away.
    buffer: Option<Buffer>,
}

/// A DATA frame that is arriving.
#[derive(Debug)]
struct Payload {
    tag: u64,
    /// `None` where the read was cancelled.
    buffer: Option<Buffer>,
    len: usize,
    filled: usize,
}

#[derive(Debug)]
pub(super) struct Incoming {
    head: [u8; READ_BYTES],
    head_filled: usize,
    greeted: bool,
    payload: Option<Payload>,
    outstanding: VecDeque<Outstanding>,
}

impl Incoming {
    pub(super) fn new(reads: usize) -> Self {
        Self {
            head: [0; READ_BYTES],
            head_filled: 0,
            greeted: false,
            payload: None,
            outstanding: VecDeque::with_capacity(reads),
        }
    }

    /// Whether the peer's greeting has come.
    pub(super) fn greeted(&self) -> bool {
        self.greeted
    }

    /// Reads that the peer has not answered to their end, cancelled ones included.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.len() + usize::from(self.payload.is_some())
    }

    /// Whether a read with this tag is outstanding.
    pub(super) fn has_tag(&self, tag: u64) -> bool {
        self.outstanding.iter().any(|read| read.tag == tag)
            || self.payload.as_ref().is_some_and(|payload| payload.tag == tag)
    }

    /// Expects an answer of at most `len` bytes.
    pub(super) fn expect(&mut self, tag: u64, len: u32, buffer: Buffer) {
        self.outstanding.push_back(Outstanding { tag, len, buffer: Some(buffer) });
    }

    /// Gives the buffer of a read back, if it is outstanding; what still arrives for it is thrown away.
    /// The flag says whether the answer has not begun, so that telling the peer may save it work.
    pub(super) fn cancel(&mut self, tag: u64) -> Option<(Buffer, bool)> {
        if let Some(payload) = self.payload.as_mut().filter(|payload| payload.tag == tag) {
            return payload.buffer.take().map(|buffer| (buffer, false));
        }
        let read = self.outstanding.iter_mut().find(|read| read.tag == tag)?;
        read.buffer.take().map(|buffer| (buffer, true))
    }

    /// Gives up: all the reads with their buffers.
    pub(super) fn take_reads(&mut self) -> impl Iterator<Item = (u64, Buffer)> {
        let arriving = self.payload.take().map(|payload| (payload.tag, payload.buffer));
        let waiting = self.outstanding.drain(..).map(|read| (read.tag, read.buffer));
        arriving.into_iter().chain(waiting).filter_map(|(tag, buffer)| Some((tag, buffer?)))
    }

    /// Where the next bytes of payload go, and how many are missing; `None` between payloads. An empty slice with bytes
    /// missing stands for a cancelled read, whose bytes are thrown away.
    pub(super) fn payload(&mut self) -> Option<(&mut [u8], usize)> {
        let payload = self.payload.as_mut()?;
        let missing = payload.len - payload.filled;
        let space = match &mut payload.buffer {
            Some(buffer) => &mut buffer.as_mut()[payload.filled..payload.len],
            None => &mut [],
        };
        Some((space, missing))
    }

    /// How many bytes are missing of the frame that is arriving, as far as is known.
    pub(super) fn missing_of_head(&self) -> usize {
        if self.head_filled < HEADER_BYTES {
            HEADER_BYTES - self.head_filled
        } else {
            frame_bytes(&self.head) - self.head_filled
        }
    }

    /// Takes note that `count` bytes, at most what is missing, were put where [`payload`](Self::payload) said.
    pub(super) fn filled(&mut self, count: usize) -> Option<Event> {
        let payload = self.payload.as_mut()?;
        payload.filled += count;
        debug_assert!(payload.filled <= payload.len);
        if payload.filled < payload.len {
            return None;
        }
        let Payload { tag, buffer, len, .. } = self.payload.take()?;
        let mut buffer = buffer?;
        buffer.set_len(len);
        Some(Event::Done { tag, buffer, result: Ok(len as u32) })
    }

    /// Takes in `bytes`, which arrived in this order.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(Event) -> Result<(), ProtocolError>,
    ) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            if let Some((space, missing)) = self.payload() {
                let count = missing.min(bytes.len());
                if !space.is_empty() {
                    space[..count].copy_from_slice(&bytes[..count]);
                }
                bytes = &bytes[count..];
                if let Some(event) = self.filled(count) {
                    on_event(event)?;
                }
                continue;
            }
            let count = self.missing_of_head().min(bytes.len());
            self.head[self.head_filled..self.head_filled + count].copy_from_slice(&bytes[..count]);
            self.head_filled += count;
            bytes = &bytes[count..];
            if self.head_filled >= HEADER_BYTES && self.missing_of_head() == 0 {
                let frame = Frame::decode(&self.head[..self.head_filled])?;
                self.head_filled = 0;
                if let Some(event) = self.frame(frame)? {
                    on_event(event)?;
                }
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame) -> Result<Option<Event>, ProtocolError> {
        match frame {
            Frame::Greeting if self.greeted => Err(ProtocolError::SecondGreeting),
            Frame::Greeting => {
                self.greeted = true;
                Ok(None)
            }
            _ if !self.greeted => Err(ProtocolError::NoGreeting),
            Frame::Read(request) => Ok(Some(Event::Request(request))),
            Frame::Cancel { tag } => Ok(Some(Event::Cancel { tag })),
            Frame::Data { tag, len } => {
                let Outstanding { len: asked, buffer, .. } = self.answered(tag)?;
                if len > asked {
                    // Its buffer goes back with the others when the path is closed.
                    self.outstanding.push_back(Outstanding { tag, len: asked, buffer });
                    return Err(ProtocolError::TooLong { tag, len, asked });
                }
                self.payload = Some(Payload { tag, buffer, len: len as usize, filled: 0 });
                Ok(None)
            }
            Frame::Refuse { tag, reason } => {
                let read = self.answered(tag)?;
                let error = match reason {
                    Reason::NotHere => ReadError::NotHere,
                    // Nobody refuses as cancelled what was not cancelled; to us it is a refusal.
                    Reason::Refused | Reason::Cancelled => ReadError::Refused,
                };
                Ok(read.buffer.map(|buffer| Event::Done { tag, buffer, result: Err(error) }))
            }
        }
    }

    fn answered(&mut self, tag: u64) -> Result<Outstanding, ProtocolError> {
        let at = self.outstanding.iter().position(|read| read.tag == tag);
        at.and_then(|at| self.outstanding.remove(at)).ok_or(ProtocolError::Unasked { tag })
    }
}
