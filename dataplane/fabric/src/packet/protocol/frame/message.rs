//! The messages of CONTROL frames. A body is checked as a whole before its first message is looked at; then nothing can fail.

use velo_object::BlobId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::limits::{READS_PER_PATH, SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES, SEGMENTS_PER_READ};
use crate::pool::BUFFER_BYTES;
use crate::{ProtocolError, Refusal, What};

const READ: u8 = 1;
const CREDIT: u8 = 2;
const END: u8 = 3;
const REFUSE: u8 = 4;
const CLOSE: u8 = 5;
const PING: u8 = 6;
const PONG: u8 = 7;
const READY: u8 = 8;

/// The longest message.
pub const MESSAGE_MAX_BYTES: usize = size_of::<ReadBytes>();

/// A message. The layouts, all with the type in byte 0:
///
/// | type | bytes | fields |
/// |---|---|---|
/// | 1 READ | 56 | 1 what (0 content, 1 outboard), 2..4 slot, 4..8 read, 8..40 blob, 40..48 offset, 48..52 len, 52..54 segment_bytes, 54..56 zero |
/// | 2 CREDIT | 28 | 1 zero, 2..4 slot, 4..8 read, 8..12 number, 12..16 stamp, 16..18 first, 18..20 zero, 20..28 mask |
/// | 3 END | 8 | 1 zero, 2..4 slot, 4..8 read |
/// | 4 REFUSE | 8 | 1 why (0 not here, 1 refused), 2..4 slot, 4..8 read |
/// | 5 CLOSE | 8 | 1 why (0 done, 1 stalled, 2 protocol, 3 source), 2..8 zero |
/// | 6 PING | 8 | 1..4 zero, 4..8 stamp |
/// | 7 PONG | 8 | 1..4 zero, 4..8 stamp |
/// | 8 READY | 8 | 1 zero, 2..4 slot, 4..8 read |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The reader wants a range; it comes as it grants credit.
    Read(ReadRequest),
    /// The reader grants segments of a read.
    Credit(Credit),
    /// The reader has all of a read, or wants no more of it.
    End {
        /// The slot.
        slot: u16,
        /// The number of the read in it.
        read: u32,
    },
    /// The supplier does not serve a read.
    Refuse {
        /// The slot.
        slot: u16,
        /// The number of the read in it.
        read: u32,
        /// Why.
        why: Refusal,
    },
    /// The sender closes the path.
    Close {
        /// Why.
        why: CloseReason,
    },
    /// Is to be answered by a PONG with the same stamp.
    Ping {
        /// Of the sender's clock.
        stamp: u32,
    },
    /// The answer to a PING.
    Pong {
        /// That of the PING.
        stamp: u32,
    },
    /// The supplier has the bytes of a read, and nothing that it may send of it.
    Ready {
        /// The slot.
        slot: u16,
        /// The number of the read in it.
        read: u32,
    },
}

/// What a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// Below [`READS_PER_PATH`].
    pub slot: u16,
    /// The number of the read in its slot.
    pub read: u32,
    /// Which blob.
    pub blob: BlobId,
    /// Content or outboard.
    pub what: What,
    /// Where the range begins.
    pub offset_bytes: u64,
    /// How long it is: 1 to [`BUFFER_BYTES`].
    pub len: u32,
    /// The payload of every DATA frame but the last: [`SEGMENT_MIN_BYTES`] to [`SEGMENT_MAX_BYTES`].
    pub segment_bytes: u16,
}

/// Segments that the supplier may send, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// The slot.
    pub slot: u16,
    /// The number of the read in it.
    pub read: u32,
    /// The number of this grant: DATA name it.
    pub number: u32,
    /// The reader's clock, in microseconds: DATA echo it.
    pub stamp: u32,
    /// Bit i of the mask means segment first + i.
    pub first: u16,
    /// Which; not empty, and no bit beyond [`SEGMENTS_PER_READ`].
    pub mask: u64,
}

/// Why a path is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// It is not needed any more.
    Done,
    /// The receiver of this message stalled.
    Stalled,
    /// The receiver of this message broke the protocol.
    Protocol,
    /// The sender of this message cannot read what it promised.
    Source,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReadBytes {
    kind: u8,
    what: u8,
    slot: U16,
    read: U32,
    blob: [u8; 32],
    offset_bytes: U64,
    len: U32,
    segment_bytes: U16,
    zero: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CreditBytes {
    kind: u8,
    zero: u8,
    slot: U16,
    read: U32,
    number: U32,
    stamp: U32,
    first: U16,
    zero2: U16,
    mask: U64,
}

/// All others.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ShortBytes {
    kind: u8,
    detail: u8,
    slot: U16,
    word: U32,
}

impl Message {
    /// How many bytes it is long.
    pub fn len_bytes(&self) -> usize {
        match self {
            Self::Read(_) => size_of::<ReadBytes>(),
            Self::Credit(_) => size_of::<CreditBytes>(),
            _ => size_of::<ShortBytes>(),
        }
    }

    /// The message that `bytes` begin with, and how long it is.
    fn decode(bytes: &[u8]) -> Result<(Self, usize), ProtocolError> {
        let kind = *bytes.first().ok_or(ProtocolError::Field { frame: "control", field: "length" })?;
        match kind {
            READ => ReadBytes::decode(bytes).map(|message| (message, size_of::<ReadBytes>())),
            CREDIT => CreditBytes::decode(bytes).map(|message| (message, size_of::<CreditBytes>())),
            END..=READY => ShortBytes::decode(bytes).map(|message| (message, size_of::<ShortBytes>())),
            _ => Err(ProtocolError::Kind(kind)),
        }
    }

    /// Writes it to the beginning of `to`, which is as long as it.
    fn encode(&self, to: &mut [u8]) {
        let short = |kind, detail, slot: u16, word: u32| ShortBytes {
            kind,
            detail,
            slot: slot.into(),
            word: word.into(),
        };
        let short = match *self {
            Self::Read(read) => return to.copy_from_slice(ReadBytes::from(read).as_bytes()),
            Self::Credit(credit) => return to.copy_from_slice(CreditBytes::from(credit).as_bytes()),
            Self::End { slot, read } => short(END, 0, slot, read),
            Self::Refuse { slot, read, why } => short(REFUSE, u8::from(why == Refusal::Refused), slot, read),
            Self::Close { why } => short(CLOSE, why as u8, 0, 0),
            Self::Ping { stamp } => short(PING, 0, 0, stamp),
            Self::Pong { stamp } => short(PONG, 0, 0, stamp),
            Self::Ready { slot, read } => short(READY, 0, slot, read),
        };
        to.copy_from_slice(short.as_bytes());
    }
}

impl From<ReadRequest> for ReadBytes {
    fn from(read: ReadRequest) -> Self {
        Self {
            kind: READ,
            what: u8::from(read.what == What::Outboard),
            slot: read.slot.into(),
            read: read.read.into(),
            blob: *read.blob.as_bytes(),
            offset_bytes: read.offset_bytes.into(),
            len: read.len.into(),
            segment_bytes: read.segment_bytes.into(),
            zero: U16::ZERO,
        }
    }
}

impl ReadBytes {
    fn decode(bytes: &[u8]) -> Result<Message, ProtocolError> {
        let bad = |field| ProtocolError::Field { frame: "read", field };
        let (bytes, _) = Self::ref_from_prefix(bytes).map_err(|_| bad("length"))?;
        let what = match bytes.what {
            0 => What::Blob,
            1 => What::Outboard,
            _ => return Err(bad("what")),
        };
        let (len, segment_bytes) = (bytes.len.get(), bytes.segment_bytes.get());
        if usize::from(bytes.slot.get()) >= READS_PER_PATH {
            return Err(bad("slot"));
        }
        if len == 0 || len as usize > BUFFER_BYTES {
            return Err(bad("len"));
        }
        if bytes.offset_bytes.get().checked_add(len.into()).is_none() {
            return Err(bad("offset"));
        }
        if !(SEGMENT_MIN_BYTES..=SEGMENT_MAX_BYTES).contains(&usize::from(segment_bytes)) {
            return Err(bad("segment_bytes"));
        }
        if bytes.zero != U16::ZERO {
            return Err(bad("zero"));
        }
        Ok(Message::Read(ReadRequest {
            slot: bytes.slot.get(),
            read: bytes.read.get(),
            blob: BlobId::from_bytes(bytes.blob),
            what,
            offset_bytes: bytes.offset_bytes.get(),
            len,
            segment_bytes,
        }))
    }
}

impl From<Credit> for CreditBytes {
    fn from(credit: Credit) -> Self {
        Self {
            kind: CREDIT,
            zero: 0,
            slot: credit.slot.into(),
            read: credit.read.into(),
            number: credit.number.into(),
            stamp: credit.stamp.into(),
            first: credit.first.into(),
            zero2: U16::ZERO,
            mask: credit.mask.into(),
        }
    }
}

impl CreditBytes {
    fn decode(bytes: &[u8]) -> Result<Message, ProtocolError> {
        let bad = |field| ProtocolError::Field { frame: "credit", field };
        let (bytes, _) = Self::ref_from_prefix(bytes).map_err(|_| bad("length"))?;
        let (first, mask) = (bytes.first.get(), bytes.mask.get());
        if usize::from(bytes.slot.get()) >= READS_PER_PATH {
            return Err(bad("slot"));
        }
        if bytes.zero != 0 || bytes.zero2 != U16::ZERO {
            return Err(bad("zero"));
        }
        if mask == 0 || usize::from(first) + (64 - mask.leading_zeros() as usize) > SEGMENTS_PER_READ {
            return Err(bad("mask"));
        }
        Ok(Message::Credit(Credit {
            slot: bytes.slot.get(),
            read: bytes.read.get(),
            number: bytes.number.get(),
            stamp: bytes.stamp.get(),
            first,
            mask,
        }))
    }
}

impl ShortBytes {
    fn decode(bytes: &[u8]) -> Result<Message, ProtocolError> {
        let bad = |field| ProtocolError::Field { frame: "control", field };
        let (bytes, _) = Self::ref_from_prefix(bytes).map_err(|_| bad("length"))?;
        let (slot, word, detail) = (bytes.slot.get(), bytes.word.get(), bytes.detail);
        match bytes.kind {
            END | REFUSE | READY if usize::from(slot) >= READS_PER_PATH => Err(bad("slot")),
            END if detail == 0 => Ok(Message::End { slot, read: word }),
            REFUSE if detail == 0 => Ok(Message::Refuse { slot, read: word, why: Refusal::NotHere }),
            REFUSE if detail == 1 => Ok(Message::Refuse { slot, read: word, why: Refusal::Refused }),
            CLOSE if slot == 0 && word == 0 => {
                let why = match detail {
                    0 => CloseReason::Done,
                    1 => CloseReason::Stalled,
                    2 => CloseReason::Protocol,
                    3 => CloseReason::Source,
                    _ => return Err(bad("why")),
                };
                Ok(Message::Close { why })
            }
            PING if detail == 0 && slot == 0 => Ok(Message::Ping { stamp: word }),
            PONG if detail == 0 && slot == 0 => Ok(Message::Pong { stamp: word }),
            READY if detail == 0 => Ok(Message::Ready { slot, read: word }),
            REFUSE => Err(bad("why")),
            _ => Err(bad("zero")),
        }
    }
}

/// The messages of a CONTROL frame, all of them checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Checks every message of a body, which has at least one.
    ///
    /// # Errors
    /// [`ProtocolError::Kind`] or [`ProtocolError::Field`].
    pub fn parse(body: &'a [u8]) -> Result<Self, ProtocolError> {
        let mut rest = body;
        loop {
            let (_, len) = Message::decode(rest)?;
            rest = &rest[len..];
            if rest.is_empty() {
                return Ok(Self(body));
            }
        }
    }
}

impl Iterator for Messages<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let (message, len) = Message::decode(self.0).ok()?;
        self.0 = &self.0[len..];
        Some(message)
    }
}

/// Where the messages of a CONTROL frame are written.
#[derive(Debug)]
pub struct Body<'a> {
    space: &'a mut [u8],
    len: usize,
}

impl<'a> Body<'a> {
    /// Writes to `space`.
    pub fn new(space: &'a mut [u8]) -> Self {
        Self { space, len: 0 }
    }

    /// Adds a message; false where it does not fit. It is not checked: a peer that makes a bad one is cut off.
    #[must_use]
    pub fn push(&mut self, message: &Message) -> bool {
        let len = message.len_bytes();
        let Some(to) = self.space.get_mut(self.len..self.len + len) else { return false };
        message.encode(to);
        self.len += len;
        true
    }

    /// How many bytes there are so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many more bytes fit.
    pub fn room(&self) -> usize {
        self.space.len() - self.len
    }
}
