//! The frames of a data stream, byte by byte as `tcp`'s module doc gives them.

use velo_object::BlobId;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::pool::BUFFER_BYTES;
use crate::{ProtocolError, What};

/// The version of these frames.
pub(super) const VERSION: u8 = 1;
/// The most bytes of one DATA frame, and of one READ.
pub(super) const MAX_READ_BYTES: u32 = BUFFER_BYTES as u32;

pub(super) const HEADER_BYTES: usize = size_of::<Header>();
pub(super) const READ_BYTES: usize = HEADER_BYTES + size_of::<ReadBody>();

const MAGIC: u64 = u64::from_le_bytes(*b"VELODATA");

const GREETING: u8 = 1;
const READ: u8 = 2;
const DATA: u8 = 3;
const REFUSE: u8 = 4;
const CANCEL: u8 = 5;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    kind: u8,
    detail: u8,
    zero: U16,
    len: U32,
    tag: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReadBody {
    blob: [u8; 32],
    offset_bytes: U64,
}

/// Why a peer refuses a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    NotHere,
    Refused,
    Cancelled,
}

/// A peer's read, waiting to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub tag: u64,
    pub blob: BlobId,
    pub what: What,
    pub offset_bytes: u64,
    pub len: u32,
    pub cancelled: bool,
}

/// A frame, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Greeting,
    Read(Request),
    Data { tag: u64, len: u32 },
    Refuse { tag: u64, reason: Reason },
    Cancel { tag: u64 },
}

/// How long the frame is whose first [`HEADER_BYTES`] are `head`; payload does not count.
pub(super) fn frame_bytes(head: &[u8]) -> usize {
    if head.first() == Some(&READ) { READ_BYTES } else { HEADER_BYTES }
}

impl Frame {
    /// Reads the frame that `bytes`, as long as [`frame_bytes`] says, are.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let bad = |frame, field| Err(ProtocolError::Field { frame, field });
        let Ok((header, rest)) = Header::ref_from_prefix(bytes) else { return bad("short", "length") };
        let (tag, len, detail) = (header.tag.get(), header.len.get(), header.detail);
        let name = match header.kind {
            GREETING => "greeting",
            READ => "read",
            DATA => "data",
            REFUSE => "refuse",
            CANCEL => "cancel",
            kind => return Err(ProtocolError::Kind(kind)),
        };
        if header.kind == GREETING {
            // The magic comes first: of another version nothing else is known.
            return match (tag, detail) {
                (MAGIC, VERSION) if header.zero.get() == 0 && len == 0 => Ok(Self::Greeting),
                (MAGIC, VERSION) => bad(name, "length"),
                (MAGIC, version) => Err(ProtocolError::Version(version.into())),
                _ => Err(ProtocolError::NoGreeting),
            };
        }
        if header.zero.get() != 0 {
            return bad(name, "zero");
        }
        let has_length = matches!(header.kind, READ | DATA);
        if has_length != (1..=MAX_READ_BYTES).contains(&len) || (!has_length && len != 0) {
            return bad(name, "length");
        }
        match (header.kind, detail) {
            (READ, 0 | 1) => {
                let Ok((body, _)) = ReadBody::ref_from_prefix(rest) else { return bad(name, "length") };
                let offset_bytes = body.offset_bytes.get();
                if offset_bytes.checked_add(len.into()).is_none() {
                    return bad(name, "offset");
                }
                let what = if detail == 0 { What::Blob } else { What::Outboard };
                let blob = BlobId::from_bytes(body.blob);
                Ok(Self::Read(Request { tag, blob, what, offset_bytes, len, cancelled: false }))
            }
            (DATA, 0) => Ok(Self::Data { tag, len }),
            (REFUSE, 0) => Ok(Self::Refuse { tag, reason: Reason::NotHere }),
            (REFUSE, 1) => Ok(Self::Refuse { tag, reason: Reason::Refused }),
            (REFUSE, 2) => Ok(Self::Refuse { tag, reason: Reason::Cancelled }),
            (CANCEL, 0) => Ok(Self::Cancel { tag }),
            _ => bad(name, "detail"),
        }
    }

    /// Adds the frame to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, detail, len, tag) = match self {
            Self::Greeting => (GREETING, VERSION, 0, MAGIC),
            Self::Read(read) => (READ, u8::from(read.what == What::Outboard), read.len, read.tag),
            Self::Data { tag, len } => (DATA, 0, *len, *tag),
            Self::Refuse { tag, reason } => {
                let detail = match reason {
                    Reason::NotHere => 0,
                    Reason::Refused => 1,
                    Reason::Cancelled => 2,
                };
                (REFUSE, detail, 0, *tag)
            }
            Self::Cancel { tag } => (CANCEL, 0, 0, *tag),
        };
        let header = Header { kind, detail, zero: U16::ZERO, len: len.into(), tag: tag.into() };
        out.extend_from_slice(header.as_bytes());
        if let Self::Read(read) = self {
            let body = ReadBody { blob: *read.blob.as_bytes(), offset_bytes: read.offset_bytes.into() };
            out.extend_from_slice(body.as_bytes());
        }
    }
}
