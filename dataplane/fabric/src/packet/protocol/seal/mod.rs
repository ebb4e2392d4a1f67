//! What makes frames and opens them: the keys of one path. Nothing that [`Opener::open`] returns was made by anybody but the peer (in
//! trusted mode: by anybody who has not seen the path's token), and nothing comes out of it twice.
//!
//! No call allocates or blocks.

mod keys;
mod opener;
mod replay;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::frame::{
    Body, DATA_HEADER_BYTES, Data, HEADER_BYTES, HEADER_CRC_BYTES, Header, Kind, PROBE_MIN_BYTES, PlainBytes,
    TAG_BYTES,
};
use crate::packet::limits::{
    CONTROL_OVERHEAD_BYTES, DATA_OVERHEAD_BYTES, DATAGRAM_MAX_BYTES, KEY_UPDATE_PACKETS,
};
use keys::{Generation, Trusted};

pub use keys::{Cipher, PathName, PathSecret, Protection, Role};
pub use opener::{Frame, OpenError, Opened, Opener, Payload, Proof};

/// Both directions of a path.
pub struct PathKeys {
    /// Makes what we send.
    pub sealer: Sealer,
    /// Opens what we receive.
    pub opener: Opener,
}

impl PathKeys {
    /// The keys of the path `name` for the side that `role` says. Both sides must give the same secret, name and protection.
    pub fn derive(secret: &PathSecret, name: &PathName<'_>, role: Role, protection: Protection) -> Self {
        let (sends, receives) = keys::derive(secret, name, role, protection);
        let (local, remote) = match role {
            Role::Dialler => (name.dialler, name.accepter),
            Role::Accepter => (name.accepter, name.dialler),
        };
        Self { sealer: Sealer::new(remote, sends), opener: Opener::new(local, receives) }
    }

    /// Our number of the path.
    pub fn number(&self) -> u32 {
        self.opener.path()
    }

    /// The peer's number of the path.
    pub fn remote_number(&self) -> u32 {
        self.sealer.path
    }
}

impl std::fmt::Debug for PathKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PathKeys({} to {})", self.number(), self.remote_number())
    }
}

/// The keys of one direction.
enum Guard {
    Sealed(Box<Generation>),
    Trusted(Trusted),
}

/// Makes the frames of one direction of a path, and counts them.
pub struct Sealer {
    path: u32,
    /// The number of the last packet.
    number: u64,
    guard: Guard,
}

impl Sealer {
    fn new(path: u32, guard: Guard) -> Self {
        Self { path, number: 0, guard }
    }

    /// The number of the last packet; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether payloads are encrypted.
    pub fn is_sealed(&self) -> bool {
        matches!(self.guard, Guard::Sealed(_))
    }

    /// Writes a DATA frame to the beginning of `space` and returns its length: the payload's and [`DATA_OVERHEAD_BYTES`]. `None`, and no
    /// number used, where the payload is empty or `space` too short.
    pub fn data(&mut self, space: &mut [u8], data: &Data, payload: &[u8]) -> Option<usize> {
        let len = DATA_OVERHEAD_BYTES + payload.len();
        if payload.is_empty() || len > DATAGRAM_MAX_BYTES || len > space.len() {
            return None;
        }
        let frame = &mut space[..len];
        self.begin(Kind::Data, frame)?;
        data.emit(frame);
        match &self.guard {
            Guard::Sealed(generation) => {
                let end = len - TAG_BYTES;
                frame[DATA_HEADER_BYTES..end].copy_from_slice(payload);
                generation.seal(self.number, frame, DATA_HEADER_BYTES);
            }
            Guard::Trusted(trusted) => {
                let (head, to) = frame.split_at_mut(DATA_OVERHEAD_BYTES);
                let payload_crc = velo_simd::copy_crc32c(to, payload);
                let mut plain = PlainBytes {
                    token: trusted.token,
                    payload_crc: payload_crc.into(),
                    header_crc: U32::ZERO,
                };
                head[DATA_HEADER_BYTES..].copy_from_slice(plain.as_bytes());
                plain.header_crc = velo_simd::crc32c(&head[..HEADER_CRC_BYTES]).into();
                head[HEADER_CRC_BYTES..].copy_from_slice(plain.header_crc.as_bytes());
            }
        }
        Some(len)
    }

    /// Writes a CONTROL frame with the messages that `fill` pushes to the beginning of `space` and returns its length. `None`, and no
    /// number used, where it pushes none.
    pub fn control(&mut self, space: &mut [u8], fill: impl FnOnce(&mut Body<'_>)) -> Option<usize> {
        let most = space.len().min(DATAGRAM_MAX_BYTES);
        let mut body = Body::new(space.get_mut(HEADER_BYTES..most.saturating_sub(TAG_BYTES))?);
        fill(&mut body);
        if body.is_empty() {
            return None;
        }
        let len = CONTROL_OVERHEAD_BYTES + body.len();
        self.finish(Kind::Control, &mut space[..len])
    }

    /// Writes a PROBE of `len` bytes, from [`PROBE_MIN_BYTES`] to the length of `space`, to the beginning of `space`. `None`, and no number
    /// used, for any other length.
    pub fn probe(&mut self, space: &mut [u8], nonce: u64, len: usize) -> Option<usize> {
        self.nonce(Kind::Probe, space, nonce, len)
    }

    /// Writes a PROBED as [`probe`](Self::probe) does a PROBE.
    pub fn probed(&mut self, space: &mut [u8], nonce: u64, len: usize) -> Option<usize> {
        self.nonce(Kind::Probed, space, nonce, len)
    }

    fn nonce(&mut self, kind: Kind, space: &mut [u8], nonce: u64, len: usize) -> Option<usize> {
        if !(PROBE_MIN_BYTES..=DATAGRAM_MAX_BYTES).contains(&len) {
            return None;
        }
        let frame = space.get_mut(..len)?;
        frame[HEADER_BYTES..].fill(0);
        frame[HEADER_BYTES..][..size_of::<U64>()].copy_from_slice(&nonce.to_le_bytes());
        self.finish(kind, frame)
    }

    /// Gives the frame its number and its header. `None` after the last number.
    fn begin(&mut self, kind: Kind, frame: &mut [u8]) -> Option<()> {
        let number = self.number.checked_add(1)?;
        let mut phase = false;
        if let Guard::Sealed(generation) = &mut self.guard {
            if generation.index() != number / KEY_UPDATE_PACKETS {
                **generation = generation.next();
            }
            phase = generation.phase();
        }
        self.number = number;
        Header { kind, phase, sealed: self.is_sealed(), path: self.path, number }.emit(frame);
        Some(())
    }

    /// Gives the frame its header and its tag or MAC.
    fn finish(&mut self, kind: Kind, frame: &mut [u8]) -> Option<usize> {
        self.begin(kind, frame)?;
        match &self.guard {
            Guard::Sealed(generation) => generation.seal(self.number, frame, HEADER_BYTES),
            Guard::Trusted(trusted) => {
                let (bytes, mac) = frame.split_at_mut(frame.len() - TAG_BYTES);
                mac.copy_from_slice(&trusted.mac(bytes));
            }
        }
        Some(frame.len())
    }
}

#[cfg(test)]
mod tests;
