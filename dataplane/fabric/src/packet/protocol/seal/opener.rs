//! Opens what arrives.

use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

use super::Guard;
use super::keys::{Generation, Trusted};
use super::replay::Replay;
use crate::ProtocolError;
use crate::packet::limits::{DATA_OVERHEAD_BYTES, FORGERIES_MAX, KEY_UPDATE_PACKETS};
use crate::packet::protocol::frame::{
    DATA_HEADER_BYTES, Data, HEADER_BYTES, HEADER_CRC_BYTES, Header, Kind, Messages, PlainBytes, Reject,
    TAG_BYTES,
};

/// Why a datagram brings nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// It is not from the peer, or damaged, or a repetition: count it and forget it.
    #[error("rejected: {0}")]
    Rejected(#[from] Reject),
    /// The peer made it, and made it wrong: close the path.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// What shows that the peer made a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The tag of an AEAD, or a MAC.
    Strong,
    /// Only the token of the path: whoever has seen a packet of it can make more.
    Token,
}

/// A frame of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The number of its packet.
    pub number: u64,
    /// Whether no later packet has come before it.
    pub newest: bool,
    /// How sure it is that the peer made it.
    pub proof: Proof,
    /// What it says.
    pub frame: Frame<'a>,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Part of what a read brings.
    Data(Data, Payload<'a>),
    /// Messages.
    Control(Messages<'a>),
    /// Is to be answered by a PROBED with the same nonce and length.
    Probe {
        /// Its nonce.
        nonce: u64,
    },
    /// The answer to a PROBE.
    Probed {
        /// That of the PROBE.
        nonce: u64,
    },
}

/// The payload of a DATA frame; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::len_without_is_empty, reason = "it never is")]
pub struct Payload<'a> {
    bytes: &'a [u8],
    crc: Option<u32>,
}

impl Payload<'_> {
    /// How many bytes it is long.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Copies it to `to`, and checks it on the way where that was not done yet.
    ///
    /// # Errors
    /// [`Reject::Forged`] where it was damaged on its way; `to` is then garbage.
    ///
    /// # Panics
    /// If `to` is not as long as it.
    pub fn copy_to(&self, to: &mut [u8]) -> Result<(), Reject> {
        match self.crc {
            None => to.copy_from_slice(self.bytes),
            Some(crc) if velo_simd::copy_crc32c(to, self.bytes) == crc => {}
            Some(_) => return Err(Reject::Forged),
        }
        Ok(())
    }
}

/// The three keys that packets may come with: of those sent before the last update, of those since, and of those after the next.
struct Ring {
    previous: Option<Generation>,
    current: Generation,
    next: Generation,
}

impl Ring {
    fn new(current: Generation) -> Self {
        Self { previous: None, next: current.next(), current }
    }

    fn get(&self, index: u64) -> Option<&Generation> {
        [Some(&self.current), Some(&self.next), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|generation| generation.index() == index)
    }

    /// The peer has updated its key.
    fn update(&mut self) {
        let next = self.next.next();
        let current = std::mem::replace(&mut self.next, next);
        self.previous = Some(std::mem::replace(&mut self.current, current));
    }
}

enum Receives {
    Sealed(Box<Ring>),
    Trusted(Trusted),
}

/// Opens the frames of one direction of a path, each once.
pub struct Opener {
    path: u32,
    guard: Receives,
    replay: Replay,
    forgeries: u64,
}

impl Opener {
    pub(super) fn new(path: u32, guard: Guard) -> Self {
        let guard = match guard {
            Guard::Sealed(generation) => Receives::Sealed(Box::new(Ring::new(*generation))),
            Guard::Trusted(trusted) => Receives::Trusted(trusted),
        };
        Self { path, guard, replay: Replay::default(), forgeries: 0 }
    }

    /// The path whose frames it opens: our number of it.
    pub fn path(&self) -> u32 {
        self.path
    }

    /// The highest number of a packet so far; 0 before the first.
    pub fn newest(&self) -> u64 {
        self.replay.newest()
    }

    #[cfg(test)]
    pub(super) fn set_forgeries(&mut self, forgeries: u64) {
        self.forgeries = forgeries;
    }

    /// Opens a datagram where it lies. Where that fails, its bytes are garbage.
    ///
    /// # Errors
    /// [`OpenError::Rejected`] where nothing shows that the peer made it; [`OpenError::Protocol`] where the peer did and it is wrong.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let header = Header::parse(datagram)?;
        if header.path != self.path {
            return Err(Reject::Path.into());
        }
        // Past the limit nothing is believed any more: the path stalls, and its users find another.
        if self.forgeries >= FORGERIES_MAX {
            return Err(Reject::Forged.into());
        }
        let authenticated = match &self.guard {
            Receives::Sealed(ring) => unseal(ring, &header, datagram),
            Receives::Trusted(trusted) => verify(trusted, &header, datagram),
        };
        if matches!(authenticated, Err(Reject::Forged)) {
            self.forgeries += 1;
        }
        let Authentic { clear, bytes, crc } = authenticated?;
        let newest = header.number > self.replay.newest();
        if !self.replay.accept(header.number) {
            return Err(Reject::Replayed.into());
        }
        if let Receives::Sealed(ring) = &mut self.guard
            && ring.current.index() < header.number / KEY_UPDATE_PACKETS
        {
            ring.update();
        }
        let proof = if crc.is_some() { Proof::Token } else { Proof::Strong };
        let frame = match header.kind {
            Kind::Data => Frame::Data(Data::parse(clear)?, Payload { bytes, crc }),
            Kind::Control => Frame::Control(Messages::parse(bytes)?),
            Kind::Probe => Frame::Probe { nonce: nonce(bytes)? },
            Kind::Probed => Frame::Probed { nonce: nonce(bytes)? },
        };
        Ok(Opened { number: header.number, newest, proof, frame })
    }
}

/// A frame that the peer has made.
struct Authentic<'a> {
    /// What was never encrypted.
    clear: &'a [u8],
    /// Payload, messages, or nonce and padding.
    bytes: &'a [u8],
    /// What the payload's checksum must be, where it is not checked yet.
    crc: Option<u32>,
}

fn unseal<'a>(ring: &Ring, header: &Header, datagram: &'a mut [u8]) -> Result<Authentic<'a>, Reject> {
    let generation = ring.get(header.number / KEY_UPDATE_PACKETS).ok_or(Reject::Number)?;
    if !header.sealed || header.phase != generation.phase() {
        return Err(Reject::Flags);
    }
    let clear = if header.kind == Kind::Data { DATA_HEADER_BYTES } else { HEADER_BYTES };
    let (clear, bytes) = generation.open(header.number, datagram, clear).ok_or(Reject::Forged)?;
    Ok(Authentic { clear, bytes, crc: None })
}

fn verify<'a>(trusted: &Trusted, header: &Header, datagram: &'a [u8]) -> Result<Authentic<'a>, Reject> {
    if header.sealed || header.phase {
        return Err(Reject::Flags);
    }
    if header.kind != Kind::Data {
        let (clear, rest) = datagram.split_at(HEADER_BYTES);
        let bytes = &rest[..rest.len() - TAG_BYTES];
        return if trusted.verify(datagram) {
            Ok(Authentic { clear, bytes, crc: None })
        } else {
            Err(Reject::Forged)
        };
    }
    let (clear, bytes) = datagram.split_at(DATA_OVERHEAD_BYTES);
    let (plain, _) = PlainBytes::ref_from_prefix(&clear[DATA_HEADER_BYTES..]).map_err(|_| Reject::Length)?;
    if velo_simd::crc32c(&clear[..HEADER_CRC_BYTES]) != plain.header_crc.get()
        || !trusted.is_token(&plain.token)
    {
        return Err(Reject::Forged);
    }
    Ok(Authentic { clear, bytes, crc: Some(plain.payload_crc.get()) })
}

/// The nonce of a PROBE or PROBED, and that nothing but zeroes follows it.
fn nonce(bytes: &[u8]) -> Result<u64, ProtocolError> {
    let bad = |field| ProtocolError::Field { frame: "probe", field };
    let (nonce, padding) = U64::ref_from_prefix(bytes).map_err(|_| bad("length"))?;
    if velo_simd::is_zero(padding) { Ok(nonce.get()) } else { Err(bad("padding")) }
}
