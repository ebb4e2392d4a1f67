//! What a kernel needs of a vector of bytes, so that one algorithm serves all levels.
//! Model for the idea: memchr's `vector.rs`.

/// `BYTES` bytes that are loaded, combined and stored at once.
///
/// # Safety
/// Who calls any of these on a type for certain instructions must be compiled for them (be inlined into a function with that
/// `target_feature`) and run on a processor that has them.
pub(crate) unsafe trait Vector: Copy {
    const BYTES: usize;

    /// # Safety
    /// `BYTES` bytes at `from` must be readable; any alignment.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `BYTES` bytes at `to` must be writable; any alignment.
    unsafe fn store(self, to: *mut u8);
    /// Past the caches.
    /// # Safety
    /// `BYTES` bytes at `to` must be writable, and `to` aligned to `BYTES`.
    unsafe fn stream(self, to: *mut u8);
    /// # Safety
    /// The trait's.
    unsafe fn zero() -> Self;
    /// # Safety
    /// The trait's.
    unsafe fn xor(self, other: Self) -> Self;
    /// # Safety
    /// The trait's.
    unsafe fn or(self, other: Self) -> Self;
    /// Whether no bit is set.
    /// # Safety
    /// The trait's.
    unsafe fn is_zero(self) -> bool;
    /// A bit for each byte that is not zero, the first byte's lowest.
    /// # Safety
    /// The trait's.
    unsafe fn nonzero_bytes(self) -> u64;

    /// Sums of 32-bit lanes.
    /// # Safety
    /// The trait's.
    unsafe fn add32(self, other: Self) -> Self;
    /// The lower 16 bits of each 32-bit lane.
    /// # Safety
    /// The trait's.
    unsafe fn even16(self) -> Self;
    /// The upper 16 bits of each 32-bit lane, moved down.
    /// # Safety
    /// The trait's.
    unsafe fn odd16(self) -> Self;
    /// For each 32-bit lane the sum of its four bytes.
    /// # Safety
    /// The trait's.
    unsafe fn sum4(self) -> Self;
    /// For each 32-bit lane, its bytes weighted 4, 3, 2, 1 in their order, and summed.
    /// # Safety
    /// The trait's.
    unsafe fn weigh4(self) -> Self;
    /// Begins to bring the line at `from` into the caches; never faults.
    /// # Safety
    /// The trait's.
    unsafe fn prefetch(from: *const u8);
    /// Orders streamed stores before what follows.
    /// # Safety
    /// The trait's.
    unsafe fn fence();
}

/// Sixteen bytes in plain Rust, of which the compiler makes what it can.
#[derive(Clone, Copy)]
pub(crate) struct Plain([u64; 2]);

impl Plain {
    #[inline(always)]
    fn each32(self, f: impl Fn(u32) -> u32) -> Self {
        Self(self.0.map(|half| u64::from(f(half as u32)) | u64::from(f((half >> 32) as u32)) << 32))
    }
}

// SAFETY: needs no instructions beyond the target's own.
unsafe impl Vector for Plain {
    const BYTES: usize = 16;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller says that 16 bytes are readable; an array of bytes needs no alignment.
        let bytes = unsafe { from.cast::<[[u8; 8]; 2]>().read() };
        Self(bytes.map(u64::from_le_bytes))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller says that 16 bytes are writable; an array of bytes needs no alignment.
        unsafe { to.cast::<[[u8; 8]; 2]>().write(self.0.map(u64::to_le_bytes)) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut u8) {
        // SAFETY: the same.
        unsafe { self.store(to) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0; 2])
    }
    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        Self([self.0[0] ^ other.0[0], self.0[1] ^ other.0[1]])
    }
    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        Self([self.0[0] | other.0[0], self.0[1] | other.0[1]])
    }
    #[inline(always)]
    unsafe fn is_zero(self) -> bool {
        self.0[0] | self.0[1] == 0
    }
    #[inline(always)]
    unsafe fn nonzero_bytes(self) -> u64 {
        let half = |word: u64| {
            word.to_le_bytes()
                .iter()
                .enumerate()
                .fold(0, |bits, (at, &byte)| bits | u64::from(byte != 0) << at)
        };
        half(self.0[0]) | half(self.0[1]) << 8
    }
    #[inline(always)]
    unsafe fn add32(self, other: Self) -> Self {
        let add = |a: u64, b: u64| {
            u64::from((a as u32).wrapping_add(b as u32))
                | u64::from(((a >> 32) as u32).wrapping_add((b >> 32) as u32)) << 32
        };
        Self([add(self.0[0], other.0[0]), add(self.0[1], other.0[1])])
    }
    #[inline(always)]
    unsafe fn even16(self) -> Self {
        self.each32(|lane| lane & 0xffff)
    }
    #[inline(always)]
    unsafe fn odd16(self) -> Self {
        self.each32(|lane| lane >> 16)
    }
    #[inline(always)]
    unsafe fn sum4(self) -> Self {
        self.each32(|lane| lane.to_le_bytes().into_iter().map(u32::from).sum())
    }
    #[inline(always)]
    unsafe fn weigh4(self) -> Self {
        self.each32(|lane| {
            lane.to_le_bytes()
                .into_iter()
                .zip([4, 3, 2, 1])
                .map(|(byte, weight)| u32::from(byte) * weight)
                .sum()
        })
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn fence() {}
}
