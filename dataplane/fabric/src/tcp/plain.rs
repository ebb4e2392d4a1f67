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

use velo_object::NodeId;

/// How long the preamble is.
pub const PREAMBLE_BYTES: usize = 112;

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
        let _ = key;
        todo!()
    }

    /// Reads the fields, so that the session's key can be found; proves nothing.
    ///
    /// # Errors
    /// [`PreambleError::Magic`] and [`PreambleError::Version`].
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, PreambleError> {
        let _ = bytes;
        todo!()
    }

    /// Checks the MAC in constant time, then that the number was not seen in this session.
    ///
    /// # Errors
    /// [`PreambleError::Mac`] and [`PreambleError::Replayed`].
    pub fn check(
        bytes: &[u8; PREAMBLE_BYTES],
        key: &[u8; 32],
        seen: &mut StreamNumbers,
    ) -> Result<Self, PreambleError> {
        let _ = (bytes, key, seen);
        todo!()
    }
}

/// The stream numbers that a session has seen: a window of the last 64, older ones are refused.
#[derive(Debug, Clone, Default)]
pub struct StreamNumbers {
    /// One more than the highest.
    next: u64,
    /// Bit i: number `next - 1 - i` was seen.
    window: u64,
}

impl StreamNumbers {
    /// Takes a number in, once.
    pub fn admit(&mut self, number: u64) -> bool {
        let _ = (number, self.next, self.window);
        todo!()
    }
}
