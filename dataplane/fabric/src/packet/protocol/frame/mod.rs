//! The frames of the packet fabric, version 1, byte by byte. One datagram is one frame; all numbers are little-endian; what is called zero
//! must be zero. [`super::seal`] writes and opens them: here is only what stands where.
//!
//! Every frame begins with the same header, in the clear and authenticated:
//!
//! | bytes | field | |
//! |---|---|---|
//! | 0 | version and kind | version (1) in the high nibble; 1 DATA, 2 CONTROL, 3 PROBE, 4 PROBED in the low one |
//! | 1 | flags | bit 0: key phase, bit 1: sealed |
//! | 2..4 | zero | |
//! | 4..8 | path | the number that the **receiver** gave to the path |
//! | 8..16 | number | of this packet on this path in this direction: from 1, never used twice |
//!
//! DATA: a part of what a read asked for.
//!
//! | bytes | field | |
//! |---|---|---|
//! | 16..18 | slot | of the read, 0 to 63 |
//! | 18..20 | segment | its place: the payload begins at segment × segment_bytes of the read |
//! | 20..24 | read | number of the read in its slot |
//! | 24..28 | len | of all that this read brings: what it asked for, less where the source ends earlier |
//! | 28..32 | credit | number of the CREDIT that granted it |
//! | 32..36 | echo | stamp of that CREDIT |
//! | 36..40 | held | microseconds from that CREDIT's arrival to this frame's departure, at most `u32::MAX` |
//! | sealed: 40.. | payload | encrypted, at least one byte; bytes 0..40 are its associated data |
//! | last 16 | tag | |
//! | plain: 40..48 | token | secret of the path and direction |
//! | 48..52 | payload_crc | CRC32C of the payload |
//! | 52..56 | header_crc | CRC32C of bytes 0..52 |
//! | 56.. | payload | at least one byte |
//!
//! CONTROL: 16.. messages back to back (their layouts: [`Message`]), at least one. PROBE and PROBED: 16..24 a nonce, then zeroes up to
//! the size that is probed. All three end with 16 bytes: the tag of the AEAD over them (bytes 0..16 are its associated data) where
//! sealed, otherwise the first 16 bytes of the keyed BLAKE3 hash of everything before.

mod message;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ProtocolError;
use crate::packet::limits::{
    CONTROL_OVERHEAD_BYTES, DATA_OVERHEAD_BYTES, DATAGRAM_MAX_BYTES, READS_PER_PATH, SEGMENTS_PER_READ,
};
use crate::pool::BUFFER_BYTES;

pub use message::{Body, CloseReason, Credit, MESSAGE_MAX_BYTES, Message, Messages, ReadRequest};

/// The version of these frames.
pub const VERSION: u8 = 1;
/// The header that every frame begins with.
pub const HEADER_BYTES: usize = size_of::<HeaderBytes>();
/// The header and the fields of a DATA frame, up to where sealed and plain ones differ.
pub const DATA_HEADER_BYTES: usize = HEADER_BYTES + size_of::<DataBytes>();
/// A tag of an AEAD, or a MAC.
pub const TAG_BYTES: usize = 16;
/// What a plain DATA frame has between its fields and its payload.
pub(super) const PLAIN_BYTES: usize = size_of::<PlainBytes>();
/// The smallest PROBE.
pub const PROBE_MIN_BYTES: usize = CONTROL_OVERHEAD_BYTES + size_of::<U64>();

const _: () = assert!(DATA_OVERHEAD_BYTES == DATA_HEADER_BYTES + TAG_BYTES);
const _: () = assert!(DATA_OVERHEAD_BYTES == DATA_HEADER_BYTES + PLAIN_BYTES);
const _: () = assert!(CONTROL_OVERHEAD_BYTES == HEADER_BYTES + TAG_BYTES);

const PHASE: u8 = 1;
const SEALED: u8 = 2;

/// Why a datagram is thrown away without a trace but a counter: nobody who holds the keys of the path sent it, or sent it like this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reject {
    /// Shorter or longer than any frame of its kind.
    #[error("no frame is that long")]
    Length,
    /// Another version.
    #[error("another version")]
    Version,
    /// No such kind.
    #[error("no such kind")]
    Kind,
    /// A bit that must be zero, or one that does not fit the path.
    #[error("a flag that must not be set, or is not")]
    Flags,
    /// A packet number of 0, or one of a key that is gone or far away.
    #[error("a packet number out of range")]
    Number,
    /// The number of another path.
    #[error("the number of another path")]
    Path,
    /// Not made by who holds the keys, or damaged on its way.
    #[error("forged or damaged")]
    Forged,
    /// It came before, or so long after its time that nobody can tell.
    #[error("replayed or too old")]
    Replayed,
}

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A part of what a read asked for.
    Data = 1,
    /// Messages.
    Control = 2,
    /// Asks whether a datagram of this size comes through.
    Probe = 3,
    /// It does.
    Probed = 4,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HeaderBytes {
    version_kind: u8,
    flags: u8,
    zero: U16,
    path: U32,
    number: U64,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Parity of the key's generation.
    pub phase: bool,
    /// Whether what follows is encrypted.
    pub sealed: bool,
    /// The receiver's number of the path.
    pub path: u32,
    /// The number of the packet.
    pub number: u64,
}

impl Header {
    /// Reads the header of a datagram, and checks it and the datagram's length. Nothing is authenticated yet: good for finding the path.
    ///
    /// # Errors
    /// A [`Reject`].
    pub fn parse(datagram: &[u8]) -> Result<Self, Reject> {
        let (bytes, _) = HeaderBytes::ref_from_prefix(datagram).map_err(|_| Reject::Length)?;
        if bytes.version_kind >> 4 != VERSION {
            return Err(Reject::Version);
        }
        let (kind, least) = match bytes.version_kind & 15 {
            1 => (Kind::Data, DATA_OVERHEAD_BYTES + 1),
            2 => (Kind::Control, CONTROL_OVERHEAD_BYTES + 1),
            3 => (Kind::Probe, PROBE_MIN_BYTES),
            4 => (Kind::Probed, PROBE_MIN_BYTES),
            _ => return Err(Reject::Kind),
        };
        if bytes.flags & !(PHASE | SEALED) != 0 || bytes.zero != U16::ZERO {
            return Err(Reject::Flags);
        }
        if bytes.number == U64::ZERO {
            return Err(Reject::Number);
        }
        if !(least..=DATAGRAM_MAX_BYTES).contains(&datagram.len()) {
            return Err(Reject::Length);
        }
        Ok(Self {
            kind,
            phase: bytes.flags & PHASE != 0,
            sealed: bytes.flags & SEALED != 0,
            path: bytes.path.get(),
            number: bytes.number.get(),
        })
    }

    /// Writes it to the beginning of `space`, which is long enough.
    pub(super) fn emit(&self, space: &mut [u8]) {
        let flags = if self.phase { PHASE } else { 0 } | if self.sealed { SEALED } else { 0 };
        let bytes = HeaderBytes {
            version_kind: VERSION << 4 | self.kind as u8,
            flags,
            zero: U16::ZERO,
            path: self.path.into(),
            number: self.number.into(),
        };
        space[..HEADER_BYTES].copy_from_slice(bytes.as_bytes());
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DataBytes {
    slot: U16,
    segment: U16,
    read: U32,
    len: U32,
    credit: U32,
    echo: U32,
    held: U32,
}

/// The fields of a DATA frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// The slot of the read: below [`READS_PER_PATH`].
    pub slot: u16,
    /// Which part: below [`SEGMENTS_PER_READ`].
    pub segment: u16,
    /// The number of the read in its slot.
    pub read: u32,
    /// How many bytes the read brings in all: 1 to [`BUFFER_BYTES`].
    pub len: u32,
    /// The number of the CREDIT that granted it.
    pub credit: u32,
    /// The stamp of that CREDIT.
    pub echo: u32,
    /// Microseconds from that CREDIT's arrival to this frame's departure; `u32::MAX` for that and more.
    pub held: u32,
}

impl Data {
    /// Reads and checks the fields of an authenticated DATA frame.
    pub(super) fn parse(frame: &[u8]) -> Result<Self, ProtocolError> {
        let bad = |field| ProtocolError::Field { frame: "data", field };
        let (bytes, _) = DataBytes::ref_from_prefix(&frame[HEADER_BYTES..]).map_err(|_| bad("length"))?;
        let data = Self {
            slot: bytes.slot.get(),
            segment: bytes.segment.get(),
            read: bytes.read.get(),
            len: bytes.len.get(),
            credit: bytes.credit.get(),
            echo: bytes.echo.get(),
            held: bytes.held.get(),
        };
        match data.bad_field() {
            Some(field) => Err(bad(field)),
            None => Ok(data),
        }
    }

    fn bad_field(&self) -> Option<&'static str> {
        if usize::from(self.slot) >= READS_PER_PATH {
            Some("slot")
        } else if usize::from(self.segment) >= SEGMENTS_PER_READ {
            Some("segment")
        } else if self.len == 0 || self.len as usize > BUFFER_BYTES {
            Some("len")
        } else {
            None
        }
    }

    pub(super) fn emit(&self, frame: &mut [u8]) {
        let bytes = DataBytes {
            slot: self.slot.into(),
            segment: self.segment.into(),
            read: self.read.into(),
            len: self.len.into(),
            credit: self.credit.into(),
            echo: self.echo.into(),
            held: self.held.into(),
        };
        frame[HEADER_BYTES..DATA_HEADER_BYTES].copy_from_slice(bytes.as_bytes());
    }
}

/// What protects a plain DATA frame.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PlainBytes {
    pub token: [u8; 8],
    pub payload_crc: U32,
    pub header_crc: U32,
}

/// What [`PlainBytes::header_crc`] is over.
pub(super) const HEADER_CRC_BYTES: usize = DATA_OVERHEAD_BYTES - size_of::<U32>();
