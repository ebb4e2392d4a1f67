//! The gear rolling hash: a hash of the last 64 bytes, brought up to date with one shift and one addition for each byte.
//! Source: Xia et al., "Ddelta: A Deduplication-Inspired Fast Delta Compression Approach", 2014. Each step needs the one before it, so
//! there is one implementation for all levels.

/// One random number for each byte value: SplitMix64 from 0. Part of every format that takes its boundaries from this hash.
static GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0u64;
    let mut at = 0;
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = x ^ (x >> 31);
        at += 1;
    }
    table
};

/// A rolling hash over the last [`Gear::WINDOW`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gear(u64);

impl Gear {
    /// Bytes that the hash depends on: older ones have been shifted out.
    pub const WINDOW: usize = 64;

    /// Before the first byte.
    pub const fn new() -> Self {
        Self(0)
    }

    /// The hash. Its upper bits depend on all bytes of the window, its lowest only on the last byte.
    pub const fn hash(self) -> u64 {
        self.0
    }

    /// Takes one more byte in and gives the hash.
    #[inline]
    pub fn roll(&mut self, byte: u8) -> u64 {
        self.0 = (self.0 << 1).wrapping_add(GEAR[usize::from(byte)]);
        self.0
    }

    /// A mask of the `bits` highest bits: [`Gear::find`] then stops every 2^`bits` bytes on the average.
    ///
    /// # Panics
    /// If `bits` is not 1 to 63.
    pub const fn mask(bits: u32) -> u64 {
        assert!(bits > 0 && bits < 64, "a mask has 1 to 63 bits");
        u64::MAX << (64 - bits)
    }

    /// Rolls over `bytes` until the hash has no bit of `mask`: gives how many bytes stand before that boundary. `None` if there is no
    /// boundary; then all bytes are taken in, and the next call goes on with what follows them.
    #[inline]
    pub fn find(&mut self, bytes: &[u8], mask: u64) -> Option<usize> {
        let at = bytes.iter().position(|&byte| self.roll(byte) & mask == 0)?;
        Some(at + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_part_of_formats() {
        // The first outputs of SplitMix64 from 0, as published with it.
        assert_eq!(GEAR[..3], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    #[test]
    fn only_the_window_counts() {
        let bytes: Vec<u8> = (0..1000u32).map(|at| (at * at / 7) as u8).collect();
        let mut whole = Gear::new();
        bytes.iter().for_each(|&byte| {
            whole.roll(byte);
        });
        let mut late = Gear::new();
        bytes[1000 - Gear::WINDOW..].iter().for_each(|&byte| {
            late.roll(byte);
        });
        assert_eq!(whole, late);
    }

    #[test]
    fn boundaries_do_not_depend_on_how_the_bytes_come() {
        let bytes: Vec<u8> =
            (0..200_000u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
        let cut = |parts: usize| {
            let (mut gear, mut cuts, mut base) = (Gear::new(), Vec::new(), 0);
            for part in bytes.chunks(parts) {
                let mut from = 0;
                while let Some(len) = gear.find(&part[from..], Gear::mask(10)) {
                    from += len;
                    cuts.push(base + from);
                }
                base += part.len();
            }
            cuts
        };
        let cuts = cut(bytes.len());
        assert!((100..400).contains(&cuts.len()), "{} boundaries in 200,000 bytes", cuts.len());
        assert_eq!(cuts, cut(1));
        assert_eq!(cuts, cut(777));
    }
}
