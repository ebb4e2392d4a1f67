//! CRC32C and CRC-32, which are those of `crc-fast` (carry-less multiplication, VPCLMULQDQ where there is any), and a copy fused
//! with the first.

use crc_fast::{CrcAlgorithm, Digest};

/// Copied and then summed at a time: small enough to be still in the first cache, long enough for the checksum's stride.
const STEP_BYTES: usize = 8192;

/// A CRC32C (Castagnoli; RFC 3720) over bytes that come in parts.
#[derive(Debug, Clone)]
pub struct Crc32c(Digest);

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Over no bytes yet.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes more bytes in.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Takes in the bytes of `src` and copies them to `dst`, in one pass over memory.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn copy(&mut self, dst: &mut [u8], src: &[u8]) {
        assert_eq!(dst.len(), src.len(), "a copy is as long as what it copies");
        for (to, from) in dst.chunks_mut(STEP_BYTES).zip(src.chunks(STEP_BYTES)) {
            to.copy_from_slice(from);
            self.0.update(to);
        }
    }

    /// The checksum of all bytes so far.
    #[inline]
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// The CRC32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// The CRC-32 of `bytes` (that of gzip, zip and Ethernet).
#[inline]
pub fn crc32(bytes: &[u8]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, bytes) as u32
}

/// Copies `src` to `dst` and gives the CRC32C of the bytes, in one pass over memory.
///
/// # Panics
/// If the lengths differ.
#[inline]
pub fn copy_crc32c(dst: &mut [u8], src: &[u8]) -> u32 {
    if src.len() <= STEP_BYTES {
        dst.copy_from_slice(src);
        return crc32c(dst);
    }
    let mut crc = Crc32c::new();
    crc.copy(dst, src);
    crc.finish()
}
