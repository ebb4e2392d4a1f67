//! What arrives on a path: turns bytes, cut anywhere, into frames, and puts payload into the buffers of the reads that
//! asked for it. No socket and no clock; nothing a peer sends makes it panic or allocate.

use std::collections::VecDeque;

use super::READS_PER_PATH;
use super::frame::{Frame, HEADER_BYTES, READ_BYTES, Reason, Request, frame_bytes};
use super::outgoing::Outgoing;
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

/// Feeds arbitrary bytes, in arbitrary parts, to a path with reads outstanding: the body of the fuzz target. The first
/// byte chooses whether they begin with a greeting, each part is led by its length. Must not panic, whatever comes.
#[doc(hidden)]
pub fn fuzz(input: &[u8]) {
    let Ok(pool) = crate::pool::Pool::new(4 * crate::pool::BUFFER_BYTES as u64) else { return };
    let mut incoming = Incoming::new(READS_PER_PATH);
    for (tag, len) in [(0, 1), (1, 100), (2, 1 << 20), (3, 70)] {
        let Some(buffer) = pool.take() else { return };
        incoming.expect(tag, len, buffer);
    }
    incoming.cancel(3);
    let mut outgoing = Outgoing::new();
    let (mut left, mut ended) = (input, 0);
    if let Some((flag, rest)) = left.split_first() {
        left = rest;
        if flag & 1 == 0 {
            let mut greeting = Vec::new();
            Frame::Greeting.encode(&mut greeting);
            assert_eq!(incoming.feed(&greeting, |_| Ok(())), Ok(()));
        }
    }
    while let Some((len, rest)) = left.split_first() {
        let (part, rest) = rest.split_at(rest.len().min(1 + usize::from(*len)));
        left = rest;
        let fed = incoming.feed(part, |event| match event {
            Event::Request(request) => {
                assert!(request.offset_bytes.checked_add(request.len.into()).is_some());
                outgoing.request(request)
            }
            Event::Cancel { tag } => {
                outgoing.cancelled(tag);
                Ok(())
            }
            Event::Done { tag, buffer, result } => {
                assert!(tag < 3, "cancelled, or never asked");
                assert!(result.is_err() || result == Ok(buffer.len() as u32));
                ended += 1;
                Ok(())
            }
        });
        if fed.is_err() {
            break;
        }
    }
    let unanswered = incoming.take_reads().count();
    assert_eq!(ended + unanswered, 3, "each read that was not cancelled ends once");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pool::Pool;
    use crate::{What, pool::BUFFER_BYTES};
    use velo_object::BlobId;

    fn frame() -> impl Strategy<Value = Frame> {
        let read = (any::<u64>(), any::<[u8; 32]>(), any::<bool>(), any::<u32>(), 1..=1u32 << 20);
        prop_oneof![
            read.prop_map(|(tag, blob, content, offset, len)| Frame::Read(Request {
                tag,
                blob: BlobId::from_bytes(blob),
                what: if content { What::Blob } else { What::Outboard },
                offset_bytes: offset.into(),
                len,
                cancelled: false,
            })),
            any::<u64>().prop_map(|tag| Frame::Cancel { tag }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec(frame(), 0..20),
            payload in prop::collection::vec(any::<u8>(), 1..5000),
            cuts in prop::collection::vec(1..700usize, 1..50),
        ) {
            let pool = Pool::new(3 * BUFFER_BYTES as u64).unwrap();
            let mut incoming = Incoming::new(4);
            incoming.expect(7, 5000, pool.take().unwrap());
            incoming.expect(8, 5000, pool.take().unwrap());
            incoming.expect(9, 5000, pool.take().unwrap());
            prop_assert!(incoming.cancel(8).is_some());
            let mut bytes = Vec::new();
            Frame::Greeting.encode(&mut bytes);
            let len = payload.len() as u32;
            for tag in [8, 7] {
                Frame::Data { tag, len }.encode(&mut bytes);
                bytes.extend_from_slice(&payload);
                frames.iter().for_each(|frame| frame.encode(&mut bytes));
            }
            Frame::Refuse { tag: 9, reason: Reason::Refused }.encode(&mut bytes);
            let (mut got, mut done, mut rest, mut cut) = (Vec::new(), Vec::new(), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, after) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                rest = after;
                let fed = incoming.feed(part, |event| {
                    match event {
                        Event::Request(request) => got.push(Frame::Read(request)),
                        Event::Cancel { tag } => got.push(Frame::Cancel { tag }),
                        Event::Done { tag, buffer, result } => done.push((tag, buffer, result)),
                    }
                    Ok(())
                });
                prop_assert_eq!(fed, Ok(()));
            }
            prop_assert_eq!(got, [frames.clone(), frames].concat());
            prop_assert_eq!(done.len(), 2);
            prop_assert_eq!((done[0].0, done[0].2), (7, Ok(len)));
            prop_assert_eq!(done[0].1.as_ref(), &payload[..]);
            prop_assert_eq!((done[1].0, done[1].2), (9, Err(ReadError::Refused)));
            prop_assert_eq!(incoming.outstanding(), 0);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(input in prop::collection::vec(any::<u8>(), 0..3000)) {
            fuzz(&input);
        }

        #[test]
        fn almost_frames_do_no_harm(
            parts in prop::collection::vec((1..6u8, 0..3u8, any::<u8>(), 0..4u64), 0..40),
            len in 0..200u32,
        ) {
            let mut input = vec![0];
            for (kind, detail, cut, tag) in parts {
                let mut frame = vec![kind, detail, 0, 0];
                frame.extend_from_slice(&len.to_le_bytes());
                frame.extend_from_slice(&tag.to_le_bytes());
                frame.resize(frame.len() + usize::from(cut), 1);
                for part in frame.chunks(usize::from(cut) + 1) {
                    input.push((part.len() - 1) as u8);
                    input.extend_from_slice(part);
                }
            }
            fuzz(&input);
        }
    }

    #[test]
    fn the_frames_are_fixed() {
        let mut bytes = Vec::new();
        Frame::Greeting.encode(&mut bytes);
        assert_eq!(bytes, b"\x01\x01\0\0\0\0\0\0VELODATA");
        bytes.clear();
        let request = Request {
            tag: 0x0102,
            blob: BlobId::from_bytes([0xab; 32]),
            what: What::Outboard,
            offset_bytes: 0x0304,
            len: 0x10_0000,
            cancelled: false,
        };
        Frame::Read(request).encode(&mut bytes);
        let head = b"\x02\x01\0\0\0\0\x10\0\x02\x01\0\0\0\0\0\0";
        assert_eq!(bytes, [&head[..], &[0xab; 32], b"\x04\x03\0\0\0\0\0\0"].concat());
        bytes.clear();
        Frame::Data { tag: 1, len: 0x0203 }.encode(&mut bytes);
        Frame::Refuse { tag: 2, reason: Reason::Cancelled }.encode(&mut bytes);
        Frame::Cancel { tag: 3 }.encode(&mut bytes);
        let expected = [
            &b"\x03\0\0\0\x03\x02\0\0\x01\0\0\0\0\0\0\0"[..],
            b"\x04\x02\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            b"\x05\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0",
        ];
        assert_eq!(bytes, expected.concat());
    }
}
