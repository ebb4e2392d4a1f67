//! The preamble of a plain data stream: who opens it, for which session, proven by a MAC under a key of that session.
//!
//! ```text
//!  0  4  magic, `VELO`
//!  4  1  version, 1
//!  5  3  zero
//!  8 32  the node that opens the stream
//! 40 16  session id
//! 56  8  stream number, little-endian; rises within a session
//! 64 16  nonce, random
//! 80 32  MAC: BLAKE3 of bytes 0..80 keyed with the session's stream key
//! ```

use std::ops::Range;

use velo_object::NodeId;

/// How long the preamble is.
pub const PREAMBLE_BYTES: usize = 112;

const MAGIC: Range<usize> = 0..4;
const VERSION: usize = 4;
const NODE: Range<usize> = 8..40;
const SESSION: Range<usize> = 40..56;
const STREAM: Range<usize> = 56..64;
const NONCE: Range<usize> = 64..80;
const MAC: Range<usize> = 80..PREAMBLE_BYTES;

/// Why a preamble is not accepted. Nothing is answered to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PreambleError {
    /// Not the magic.
    #[error("not the preamble of a data stream")]
    Magic,
    /// Another version.
    #[error("data stream of version {0}: run the same release of velo on both nodes")]
    Version(u8),
    /// The MAC is wrong.
    #[error("a data stream with a wrong MAC")]
    Mac,
    /// Its number has been seen, or is too old to know.
    #[error("data stream {0} was opened before")]
    Replayed(u64),
}

/// What a preamble says. Unproven until [`check`](Self::check).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The node that opens the stream.
    pub node: NodeId,
    /// The session it belongs to.
    pub session: [u8; 16],
    /// Its number within the session.
    pub stream: u64,
    /// Random.
    pub nonce: [u8; 16],
}

impl Preamble {
    /// Its bytes, with the MAC under `key`.
    pub fn encode(&self, key: &[u8; 32]) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[MAGIC].copy_from_slice(b"VELO");
        bytes[VERSION] = 1;
        bytes[NODE].copy_from_slice(self.node.as_bytes());
        bytes[SESSION].copy_from_slice(&self.session);
        bytes[STREAM].copy_from_slice(&self.stream.to_le_bytes());
        bytes[NONCE].copy_from_slice(&self.nonce);
        let mac = blake3::keyed_hash(key, &bytes[..MAC.start]);
        bytes[MAC].copy_from_slice(mac.as_bytes());
        bytes
    }

    /// Reads the fields, so that the session's key can be found; proves nothing.
    ///
    /// # Errors
    /// [`PreambleError::Magic`] and [`PreambleError::Version`].
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, PreambleError> {
        if &bytes[MAGIC] != b"VELO" {
            return Err(PreambleError::Magic);
        }
        if bytes[VERSION] != 1 {
            return Err(PreambleError::Version(bytes[VERSION]));
        }
        Ok(Self {
            node: NodeId::from_bytes(field(bytes, NODE)),
            session: field(bytes, SESSION),
            stream: u64::from_le_bytes(field(bytes, STREAM)),
            nonce: field(bytes, NONCE),
        })
    }

    /// Checks the MAC in constant time, then that the number was not seen in this session.
    ///
    /// # Errors
    /// All of [`PreambleError`].
    pub fn check(
        bytes: &[u8; PREAMBLE_BYTES],
        key: &[u8; 32],
        seen: &mut StreamNumbers,
    ) -> Result<Self, PreambleError> {
        let preamble = Self::decode(bytes)?;
        // The comparison of two `blake3::Hash` takes the same time wherever they differ.
        if blake3::keyed_hash(key, &bytes[..MAC.start]) != blake3::Hash::from_bytes(field(bytes, MAC)) {
            return Err(PreambleError::Mac);
        }
        if !seen.admit(preamble.stream) {
            return Err(PreambleError::Replayed(preamble.stream));
        }
        Ok(preamble)
    }
}

fn field<const N: usize>(bytes: &[u8; PREAMBLE_BYTES], range: Range<usize>) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[range]);
    field
}

/// The stream numbers that a session has seen: a window of the last 64, older ones are refused.
#[derive(Debug, Clone, Default)]
pub struct StreamNumbers {
    /// One more than the highest; 0 before the first.
    next: u64,
    /// Bit i: number `next - 1 - i` was seen.
    window: u64,
}

impl StreamNumbers {
    /// Takes a number in, once: false where it was seen, is too old to know, or is 2^64 - 1.
    pub fn admit(&mut self, number: u64) -> bool {
        let Some(after) = number.checked_add(1) else { return false };
        if after > self.next {
            let shift = after - self.next;
            self.window = if shift < 64 { self.window << shift } else { 0 } | 1;
            self.next = after;
            return true;
        }
        let bit = self.next - after;
        if bit >= 64 || self.window & (1 << bit) != 0 {
            return false;
        }
        self.window |= 1 << bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(stream: u64) -> Preamble {
        Preamble { node: NodeId::from_bytes([7; 32]), session: [8; 16], stream, nonce: [9; 16] }
    }

    #[test]
    fn round_trip_and_replay() {
        let key = [1; 32];
        let mut seen = StreamNumbers::default();
        let bytes = preamble(5).encode(&key);
        assert_eq!(Preamble::decode(&bytes), Ok(preamble(5)));
        assert_eq!(Preamble::check(&bytes, &key, &mut seen), Ok(preamble(5)));
        assert_eq!(Preamble::check(&bytes, &key, &mut seen), Err(PreambleError::Replayed(5)));
    }

    #[test]
    fn the_format_is_fixed() {
        let bytes = preamble(0x0102).encode(&[1; 32]);
        assert_eq!(bytes[..8], *b"VELO\x01\0\0\0");
        assert_eq!(bytes[8..40], [7; 32]);
        assert_eq!(bytes[40..56], [8; 16]);
        assert_eq!(bytes[56..64], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[64..80], [9; 16]);
        assert_eq!(bytes[80..], *blake3::keyed_hash(&[1; 32], &bytes[..80]).as_bytes());
    }

    #[test]
    fn every_changed_bit_is_noticed_and_leaves_the_number_usable() {
        let key = [1; 32];
        let mut seen = StreamNumbers::default();
        let good = preamble(0).encode(&key);
        for bit in 0..PREAMBLE_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Preamble::check(&bad, &key, &mut seen).is_err(), "bit {bit}");
        }
        assert_eq!(Preamble::check(&good, &[2; 32], &mut seen), Err(PreambleError::Mac));
        assert!(Preamble::check(&good, &key, &mut seen).is_ok());
    }

    #[test]
    fn numbers_may_come_a_little_out_of_order() {
        let mut seen = StreamNumbers::default();
        let admitted: Vec<bool> =
            [3, 1, 3, 2, 1, 100, 3, 36, 37, 99, 100, u64::MAX].map(|n| seen.admit(n)).to_vec();
        assert_eq!(admitted, [true, true, false, true, false, true, false, false, true, true, false, false]);
    }
}
