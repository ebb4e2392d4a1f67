//! CRC32C and CRC-32, and a copy fused with the first. Both are those of crates, whichever is faster: `crc-fast` (carry-less
//! multiplication) for CRC-32, and for CRC32C where the processor has AVX-512 or is no x86; on other x86 the crate `crc32c`, which runs
//! three chains of the processor's own instruction and is half as fast again there. The fused copy does the same itself, for no crate does.

use crc_fast::{CrcAlgorithm, Digest};

use crate::kernels::{Kernels, kernels};
use crate::level::Level;

/// Summed and copied at a time: small enough to be still in the first cache, long enough for the checksum's stride.
const STEP_BYTES: usize = 8192;

/// Up to so many bytes, such as headers have, a single chain is fastest.
#[cfg(target_arch = "x86_64")]
const SHORT_BYTES: usize = 128;

/// A CRC32C (Castagnoli; RFC 3720) over bytes that come in parts.
#[derive(Debug, Clone)]
pub struct Crc32c(State);

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "the state of one checksum, which nobody keeps many of")]
enum State {
    Multiplied(Digest),
    Chained(u32),
}

fn is_chained() -> bool {
    cfg!(target_arch = "x86_64") && kernels().level() < Level::Avx512
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl Crc32c {
    /// Over no bytes yet.
    pub fn new() -> Self {
        Self(if is_chained() {
            State::Chained(0)
        } else {
            State::Multiplied(Digest::new(CrcAlgorithm::Crc32Iscsi))
        })
    }

    /// Takes more bytes in.
    #[inline]
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Multiplied(digest) => digest.update(bytes),
            State::Chained(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
        }
    }

    /// Takes in the bytes of `src` and copies them to `dst`, in one pass over memory. Where they are larger than the caches, `dst` is
    /// written past them.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn copy(&mut self, dst: &mut [u8], src: &[u8]) {
        assert_eq!(dst.len(), src.len(), "a copy is as long as what it copies");
        let kernels = kernels();
        let past_caches = Kernels::passes_caches(dst.len());
        #[cfg(target_arch = "x86_64")]
        if let State::Chained(crc) = &mut self.0
            // Past the caches whole vectors are faster than words.
            && !past_caches
            && kernels.level() > Level::Scalar
            && crate::arch::crc32c::is_available()
        {
            // SAFETY: it is available.
            *crc = unsafe { crate::arch::crc32c::copy(*crc, dst, src) };
            return;
        }
        for (to, from) in dst.chunks_mut(STEP_BYTES).zip(src.chunks(STEP_BYTES)) {
            self.update(from);
            kernels.copy(to, from, past_caches);
        }
    }

    /// The checksum of all bytes so far.
    #[inline]
    pub fn finish(&self) -> u32 {
        match &self.0 {
            State::Multiplied(digest) => digest.finalize() as u32,
            State::Chained(crc) => *crc,
        }
    }
}

/// The CRC32C of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() <= SHORT_BYTES && kernels().level() > Level::Scalar && crate::arch::crc32c::is_available()
    {
        // SAFETY: it is available.
        return unsafe { crate::arch::crc32c::short(0, bytes) };
    }
    if is_chained() {
        crc32c::crc32c(bytes)
    } else {
        crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32
    }
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
    let mut crc = Crc32c::new();
    crc.copy(dst, src);
    crc.finish()
}
