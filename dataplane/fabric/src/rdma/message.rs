//! The messages of a queue pair. It is reliable and in order, so each comes once; a message that is none closes the path.
//!
//! Little endian; the type is in byte 0. Lengths are exact.
//!
//! | type | bytes | fields |
//! |---|---|---|
//! | 1 HELLO | 8 | 1 version, 2..8 zero |
//! | 2 WELCOME | 8 | 1..8 zero |
//! | 3 ASK | 56 | 1 what (0 content, 1 outboard), 2..4 slot, 4..8 read, 8..40 blob, 40..48 offset, 48..52 len, 52..56 zero |
//! | 4 GRANT | 40 | 1 zero, 2..4 slot, 4..8 read, 8..16 address, 16..20 rkey, 20..24 len, 24..28 lease (ms), 28..32 held (µs), 32..40 epoch |
//! | 5 REFUSE | 8 | 1 why (0 not here, 1 refused), 2..4 slot, 4..8 read |
//! | 6 END | 8 | 1 zero, 2..4 slot, 4..8 read |

#![forbid(unsafe_code)]

use velo_object::BlobId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::{MESSAGE_BYTES, READS_PER_PATH};
use super::verbs::Span;
use crate::pool::BUFFER_BYTES;
use crate::{ProtocolError, Refusal, What};

/// The version of the messages.
pub const VERSION: u8 = 1;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const ASK: u8 = 3;
const GRANT: u8 = 4;
const REFUSE: u8 = 5;
const END: u8 = 6;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// The first of each side.
    Hello,
    /// The answer to it: the path works in both directions.
    Welcome,
    /// The reader wants a range.
    Ask(AskMessage),
    /// The provider lends it.
    Grant(Grant),
    /// The provider does not.
    Refuse {
        /// The slot.
        slot: u16,
        /// The number of the read in it.
        read: u32,
        /// Why.
        why: Refusal,
    },
    /// The reader is done with a read, whatever came of it: the loan is given back.
    End {
        /// The slot.
        slot: u16,
        /// The number of the read in it.
        read: u32,
    },
}

/// What a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskMessage {
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
}

/// A loan of memory for one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The slot.
    pub slot: u16,
    /// The number of the read in it.
    pub read: u32,
    /// The memory.
    pub span: Span,
    /// How long it is lent, in milliseconds of the provider's clock, from when it was lent.
    pub lease_ms: u32,
    /// How long after the ASK had come that was, in microseconds.
    pub held_us: u32,
    /// Counts the loans of this provider: no two have the same.
    pub epoch: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AskBytes {
    kind: u8,
    what: u8,
    slot: U16,
    read: U32,
    blob: [u8; 32],
    offset_bytes: U64,
    len: U32,
    zero: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct GrantBytes {
    kind: u8,
    zero: u8,
    slot: U16,
    read: U32,
    address: U64,
    rkey: U32,
    len: U32,
    lease_ms: U32,
    held_us: U32,
    epoch: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ShortBytes {
    kind: u8,
    detail: u8,
    slot: U16,
    read: U32,
}

const _: () = assert!(size_of::<AskBytes>() == MESSAGE_BYTES && size_of::<GrantBytes>() == 40);

/// The bytes of a message.
#[derive(Debug, Clone, Copy)]
pub struct Encoded {
    bytes: [u8; MESSAGE_BYTES],
    len: usize,
}

impl AsRef<[u8]> for Encoded {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Message {
    /// Its bytes.
    pub fn encode(&self) -> Encoded {
        let mut encoded = Encoded { bytes: [0; MESSAGE_BYTES], len: 0 };
        let mut put = |bytes: &[u8]| {
            encoded.bytes[..bytes.len()].copy_from_slice(bytes);
            encoded.len = bytes.len();
        };
        let short = |kind, detail, slot: u16, read: u32| ShortBytes {
            kind,
            detail,
            slot: slot.into(),
            read: read.into(),
        };
        match *self {
            Self::Hello => put(short(HELLO, VERSION, 0, 0).as_bytes()),
            Self::Welcome => put(short(WELCOME, 0, 0, 0).as_bytes()),
            Self::Ask(ask) => put(AskBytes {
                kind: ASK,
                what: u8::from(ask.what == What::Outboard),
                slot: ask.slot.into(),
                read: ask.read.into(),
                blob: *ask.blob.as_bytes(),
                offset_bytes: ask.offset_bytes.into(),
                len: ask.len.into(),
                zero: U32::ZERO,
            }
            .as_bytes()),
            Self::Grant(grant) => put(GrantBytes {
                kind: GRANT,
                zero: 0,
                slot: grant.slot.into(),
                read: grant.read.into(),
                address: grant.span.address.into(),
                rkey: grant.span.rkey.into(),
                len: grant.span.len.into(),
                lease_ms: grant.lease_ms.into(),
                held_us: grant.held_us.into(),
                epoch: grant.epoch.into(),
            }
            .as_bytes()),
            Self::Refuse { slot, read, why } => {
                put(short(REFUSE, u8::from(why == Refusal::Refused), slot, read).as_bytes());
            }
            Self::End { slot, read } => put(short(END, 0, slot, read).as_bytes()),
        }
        encoded
    }

    /// The message that these bytes are.
    ///
    /// # Errors
    /// [`ProtocolError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let bad = |field| ProtocolError::Field { frame: "rdma message", field };
        match bytes.first() {
            None => Err(bad("length")),
            Some(&ASK) => {
                let bad = |field| ProtocolError::Field { frame: "ask", field };
                let ask = AskBytes::ref_from_bytes(bytes).map_err(|_| bad("length"))?;
                let what = match ask.what {
                    0 => What::Blob,
                    1 => What::Outboard,
                    _ => return Err(bad("what")),
                };
                let (offset_bytes, len) = (ask.offset_bytes.get(), ask.len.get());
                if usize::from(ask.slot.get()) >= READS_PER_PATH {
                    return Err(bad("slot"));
                }
                if !(1..=BUFFER_BYTES as u32).contains(&len) {
                    return Err(bad("len"));
                }
                if offset_bytes.checked_add(len.into()).is_none() {
                    return Err(bad("offset"));
                }
                if ask.zero != U32::ZERO {
                    return Err(bad("zero"));
                }
                let (slot, read, blob) = (ask.slot.get(), ask.read.get(), BlobId::from_bytes(ask.blob));
                Ok(Self::Ask(AskMessage { slot, read, blob, what, offset_bytes, len }))
            }
            Some(&GRANT) => {
                let bad = |field| ProtocolError::Field { frame: "grant", field };
                let grant = GrantBytes::ref_from_bytes(bytes).map_err(|_| bad("length"))?;
                let (address, rkey, len) = (grant.address.get(), grant.rkey.get(), grant.len.get());
                if usize::from(grant.slot.get()) >= READS_PER_PATH {
                    return Err(bad("slot"));
                }
                if !(1..=BUFFER_BYTES as u32).contains(&len) {
                    return Err(bad("len"));
                }
                if address.checked_add(len.into()).is_none() {
                    return Err(bad("address"));
                }
                if grant.zero != 0 {
                    return Err(bad("zero"));
                }
                Ok(Self::Grant(Grant {
                    slot: grant.slot.get(),
                    read: grant.read.get(),
                    span: Span { address, rkey, len },
                    lease_ms: grant.lease_ms.get(),
                    held_us: grant.held_us.get(),
                    epoch: grant.epoch.get(),
                }))
            }
            Some(&kind @ (HELLO | WELCOME | REFUSE | END)) => {
                let short = ShortBytes::ref_from_bytes(bytes).map_err(|_| bad("length"))?;
                let (slot, read, detail) = (short.slot.get(), short.read.get(), short.detail);
                match kind {
                    HELLO if detail != VERSION => Err(ProtocolError::Version(detail.into())),
                    REFUSE | END if usize::from(slot) >= READS_PER_PATH => Err(bad("slot")),
                    REFUSE if detail > 1 => Err(bad("why")),
                    REFUSE => {
                        let why = if detail == 0 { Refusal::NotHere } else { Refusal::Refused };
                        Ok(Self::Refuse { slot, read, why })
                    }
                    END if detail == 0 => Ok(Self::End { slot, read }),
                    HELLO if (slot, read) == (0, 0) => Ok(Self::Hello),
                    WELCOME if (slot, read, detail) == (0, 0, 0) => Ok(Self::Welcome),
                    _ => Err(bad("zero")),
                }
            }
            Some(&kind) => Err(ProtocolError::Kind(kind)),
        }
    }
}
