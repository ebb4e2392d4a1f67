//! What the fuzz targets of the packet fabric share: reading numbers out of the input, and stations that are driven by it.

pub mod station;
pub mod world;

use std::sync::OnceLock;

use velo_fabric::packet::protocol::seal::{Cipher, Protection};
use velo_fabric::pool::{Pool, PoolOptions};

/// Every way to protect a path.
pub const PROTECTIONS: [Protection; 3] = [
    Protection::Trusted,
    Protection::Sealed(Cipher::Aes128Gcm),
    Protection::Sealed(Cipher::ChaCha20Poly1305),
];

/// The buffers of all runs.
pub fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        Pool::with(PoolOptions { bytes: 192 << 20, huge_pages: false, populate: false }).expect("address space")
    })
}

/// The bytes of a blob: a function of where they lie in it.
pub fn content(offset_bytes: u64, len: u32) -> Vec<u8> {
    (offset_bytes..offset_bytes + u64::from(len)).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

/// The input, from its beginning; zeroes when it is used up.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes: `len`, or what is left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// The next number of `bytes` bytes.
    pub fn number(&mut self, bytes: usize) -> u64 {
        self.bytes(bytes).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }
}
