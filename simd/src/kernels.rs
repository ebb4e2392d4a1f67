//! The safe face of the kernels: one value for each level, and the one that this process has chosen.

use std::sync::OnceLock;

use crate::level::{Level, LevelError, level};
use crate::table::{self, Table};

/// The kernels of one level. Copying it is free; most callers use the functions of the same names at the crate's root, which
/// use the level of [`level`](crate::level()).
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    level: Level,
    table: &'static Table,
}

/// The kernels of the level that this process has chosen.
///
/// # Panics
/// If `VELO_SIMD` names a level that cannot be used; a program learns that without a panic from [`level`](crate::level()).
#[inline]
pub fn kernels() -> Kernels {
    static CHOSEN: OnceLock<Kernels> = OnceLock::new();
    *CHOSEN.get_or_init(|| match level().and_then(Kernels::at) {
        Ok(kernels) => kernels,
        Err(error) => panic!("{error}"),
    })
}

impl Kernels {
    /// The kernels of `level`, for tests and comparisons.
    ///
    /// # Errors
    /// [`LevelError::Lacking`] where this processor does not have it.
    pub fn at(level: Level) -> Result<Self, LevelError> {
        let best = Level::best();
        if level > best {
            return Err(LevelError::Lacking { asked: level, best });
        }
        let table = match level {
            Level::Scalar => &table::scalar::TABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Sse => &table::sse::TABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => &table::avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => &table::avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Level::Sse | Level::Avx2 | Level::Avx512 => &table::scalar::TABLE,
        };
        Ok(Self { level, table })
    }

    /// Their level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether all bytes are zero; true for none. Stops at the first that is not.
    #[inline]
    pub fn is_zero(&self, bytes: &[u8]) -> bool {
        self.leading_zeros(bytes) == bytes.len()
    }

    /// How many zero bytes stand at the front of `bytes`.
    #[inline]
    pub fn leading_zeros(&self, bytes: &[u8]) -> usize {
        // SAFETY: `at` has seen to it that the processor has this level; the kernel takes any slice.
        unsafe { (self.table.leading_zeros)(bytes) }
    }

    /// The first index from which on at least `run` zero bytes follow each other; where there is none, the index from which on only
    /// zeros follow, which is `bytes.len()` if the last byte is not zero. 0 for a `run` of 0.
    #[inline]
    pub fn find_zero_run(&self, bytes: &[u8], run: usize) -> usize {
        if run == 0 {
            return 0;
        }
        // SAFETY: as in `leading_zeros`.
        unsafe { (self.table.find_zero_run)(bytes, run) }
    }

    /// The first index at which `a` and `b` differ.
    ///
    /// # Panics
    /// If their lengths differ.
    #[inline]
    pub fn first_difference(&self, a: &[u8], b: &[u8]) -> Option<usize> {
        assert_eq!(a.len(), b.len(), "buffers to compare have one length");
        // SAFETY: as in `leading_zeros`; the lengths are equal.
        let index = unsafe { (self.table.first_difference)(a, b) };
        (index < a.len()).then_some(index)
    }

    /// The last index at which `a` and `b` differ.
    ///
    /// # Panics
    /// If their lengths differ.
    #[inline]
    pub fn last_difference(&self, a: &[u8], b: &[u8]) -> Option<usize> {
        assert_eq!(a.len(), b.len(), "buffers to compare have one length");
        // SAFETY: as in `leading_zeros`; the lengths are equal.
        unsafe { (self.table.end_of_differences)(a, b) }.checked_sub(1)
    }
}

/// Whether all bytes are zero; true for none. Stops at the first that is not.
#[inline]
pub fn is_zero(bytes: &[u8]) -> bool {
    kernels().is_zero(bytes)
}
