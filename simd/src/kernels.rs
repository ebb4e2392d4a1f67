//! The safe face of the kernels: one value for each level, and the one that this process has chosen.

use std::sync::OnceLock;

use crate::delta::{LINE_BYTES, PAGE_BYTES};
use crate::level::{Level, LevelError, level};
use crate::table::{self, Table};

/// From this size on a target is written past the caches: the three buffers of a delta do not fit into them.
const STREAM_BYTES: usize = 4 << 20;

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

    /// Whether a target of so many bytes is better written past the caches.
    pub(crate) fn passes_caches(len: usize) -> bool {
        len >= STREAM_BYTES
    }

    /// `dst = src`, in the processor's own vectors; with stores that pass the caches, or not. The string instructions that a libc copies
    /// with are several times slower on some processors, where the two stand at near places of a page.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn copy(&self, dst: &mut [u8], src: &[u8], past_caches: bool) {
        assert_eq!(dst.len(), src.len(), "a copy is as long as what it copies");
        let copy = if past_caches { self.table.copy_stream } else { self.table.copy_into };
        // SAFETY: `at` has seen to it that the processor has this level; the lengths are equal.
        unsafe { copy(dst, src) }
    }

    /// `dst = a ^ b`. Where they are larger than the caches, `dst` is written past them.
    ///
    /// # Panics
    /// If the three lengths are not equal.
    #[inline]
    pub fn xor_into(&self, dst: &mut [u8], a: &[u8], b: &[u8]) {
        assert!(dst.len() == a.len() && a.len() == b.len(), "buffers of a delta have one length");
        // SAFETY: `at` has seen to it that the processor has this level; the lengths are equal.
        unsafe {
            if Self::passes_caches(dst.len()) {
                (self.table.xor_stream)(dst, a, b);
            } else {
                (self.table.xor_into)(dst, a, b);
            }
        }
    }

    /// `dst ^= b`: makes a delta in place of the new content, and applies one to the old.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn xor_in_place(&self, dst: &mut [u8], b: &[u8]) {
        assert_eq!(dst.len(), b.len(), "buffers of a delta have one length");
        // SAFETY: as in `xor_into`.
        unsafe { (self.table.xor_in_place)(dst, b) }
    }

    /// [`Kernels::xor_into`], and sets in `lines` the bit of every 64-byte line in which `a` and `b` differ (the first line's is the
    /// lowest of the first word), and clears the others. A word stands for one 4 KiB page: the page is the same if it is 0.
    ///
    /// # Panics
    /// If the three lengths are not equal, or `lines` has not exactly [`line_words`] words.
    #[inline]
    pub fn xor_into_lines(&self, dst: &mut [u8], a: &[u8], b: &[u8], lines: &mut [u64]) {
        assert!(dst.len() == a.len() && a.len() == b.len(), "buffers of a delta have one length");
        assert_eq!(lines.len(), line_words(a.len()), "a bitmap of lines has a word for each 4 KiB");
        let aligned = dst.as_ptr().addr().is_multiple_of(LINE_BYTES);
        // SAFETY: as in `xor_into`; the bitmap is long enough; a streamed `dst` is aligned.
        unsafe {
            if Self::passes_caches(dst.len()) && aligned {
                (self.table.xor_stream_lines)(dst, a, b, lines);
            } else {
                (self.table.xor_into_lines)(dst, a, b, lines);
            }
        }
    }

    /// [`Kernels::xor_in_place`], and the bitmap of the lines in which `dst` and `b` differed: those that are not zero afterwards.
    ///
    /// # Panics
    /// If the lengths differ, or `lines` has not exactly [`line_words`] words.
    #[inline]
    pub fn xor_in_place_lines(&self, dst: &mut [u8], b: &[u8], lines: &mut [u64]) {
        assert_eq!(dst.len(), b.len(), "buffers of a delta have one length");
        assert_eq!(lines.len(), line_words(b.len()), "a bitmap of lines has a word for each 4 KiB");
        // SAFETY: as in `xor_into_lines`.
        unsafe { (self.table.xor_in_place_lines)(dst, b, lines) }
    }

    /// The bitmap of [`Kernels::xor_into_lines`] alone: nothing is written but `lines`.
    ///
    /// # Panics
    /// If the lengths differ, or `lines` has not exactly [`line_words`] words.
    #[inline]
    pub fn differing_lines(&self, a: &[u8], b: &[u8], lines: &mut [u64]) {
        assert_eq!(a.len(), b.len(), "buffers to compare have one length");
        assert_eq!(lines.len(), line_words(a.len()), "a bitmap of lines has a word for each 4 KiB");
        // SAFETY: as in `xor_into_lines`.
        unsafe { (self.table.differing_lines)(a, b, lines) }
    }

    /// Sets in `pages` the bit of every 4 KiB page in which `a` and `b` differ, and clears the others. Gives their number. Of a page that
    /// differs, only what stands before its first difference is read.
    ///
    /// # Panics
    /// If the lengths differ, or `pages` has not exactly [`page_words`] words.
    #[inline]
    pub fn differing_pages(&self, a: &[u8], b: &[u8], pages: &mut [u64]) -> usize {
        assert_eq!(a.len(), b.len(), "buffers to compare have one length");
        assert_eq!(pages.len(), page_words(a.len()), "a bitmap of pages has a word for each 256 KiB");
        // SAFETY: as in `xor_into_lines`.
        unsafe { (self.table.differing_pages)(a, b, pages) }
    }

    /// Goes on with an Adler-32 (RFC 1950) from `state`, which is 1 at the beginning.
    #[inline]
    pub fn adler32(&self, state: u32, bytes: &[u8]) -> u32 {
        // SAFETY: as in `leading_zeros`.
        unsafe { (self.table.adler32)(state, bytes) }
    }

    /// Goes on with a Fletcher-32 over little-endian 16-bit words from `state`, which is 0 at the beginning. A last odd byte counts as a
    /// word with a zero upper byte, so only the last part may have an odd length.
    #[inline]
    pub fn fletcher32(&self, state: u32, bytes: &[u8]) -> u32 {
        // SAFETY: as in `leading_zeros`.
        unsafe { (self.table.fletcher32)(state, bytes) }
    }
}

/// Words of a bitmap of 64-byte lines over `len` bytes: one for each 4 KiB.
pub const fn line_words(len: usize) -> usize {
    len.div_ceil(PAGE_BYTES)
}

/// Words of a bitmap of 4 KiB pages over `len` bytes: one for each 256 KiB.
pub const fn page_words(len: usize) -> usize {
    len.div_ceil(64 * PAGE_BYTES)
}

macro_rules! chosen {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            $(#[$doc])*
            #[inline]
            pub fn $name($($arg: $type),*) $(-> $result)? {
                kernels().$name($($arg),*)
            }
        )*
    };
}

chosen! {
    /// [`Kernels::is_zero`] at the chosen level.
    fn is_zero(bytes: &[u8]) -> bool;
    /// [`Kernels::leading_zeros`] at the chosen level.
    fn leading_zeros(bytes: &[u8]) -> usize;
    /// [`Kernels::find_zero_run`] at the chosen level.
    fn find_zero_run(bytes: &[u8], run: usize) -> usize;
    /// [`Kernels::first_difference`] at the chosen level.
    fn first_difference(a: &[u8], b: &[u8]) -> Option<usize>;
    /// [`Kernels::last_difference`] at the chosen level.
    fn last_difference(a: &[u8], b: &[u8]) -> Option<usize>;
    /// [`Kernels::xor_into`] at the chosen level.
    fn xor_into(dst: &mut [u8], a: &[u8], b: &[u8]);
    /// [`Kernels::xor_in_place`] at the chosen level.
    fn xor_in_place(dst: &mut [u8], b: &[u8]);
    /// [`Kernels::xor_into_lines`] at the chosen level.
    fn xor_into_lines(dst: &mut [u8], a: &[u8], b: &[u8], lines: &mut [u64]);
    /// [`Kernels::xor_in_place_lines`] at the chosen level.
    fn xor_in_place_lines(dst: &mut [u8], b: &[u8], lines: &mut [u64]);
    /// [`Kernels::differing_lines`] at the chosen level.
    fn differing_lines(a: &[u8], b: &[u8], lines: &mut [u64]);
    /// [`Kernels::differing_pages`] at the chosen level.
    fn differing_pages(a: &[u8], b: &[u8], pages: &mut [u64]) -> usize;
    /// [`Kernels::adler32`] at the chosen level.
    fn adler32(state: u32, bytes: &[u8]) -> u32;
    /// [`Kernels::fletcher32`] at the chosen level.
    fn fletcher32(state: u32, bytes: &[u8]) -> u32;
}
