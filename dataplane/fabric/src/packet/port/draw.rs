//! Faults by lot: a small generator whose every draw follows from its seed.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Debug, Clone)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    #[inline]
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True once in a while: with this probability.
    #[inline]
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        // 53 bits, as many as a double has.
        probability > 0.0 && ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// 0 to `end`, without it; `end` is not 0.
    #[inline]
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// Turns one to three bits over.
    pub(super) fn damage(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        // The first flip stands: others may undo each other only.
        let first = self.below(bytes.len() as u64 * 8);
        bytes[(first / 8) as usize] ^= 1 << (first % 8);
        for _ in 0..self.below(3) {
            let bit = self.below(bytes.len() as u64 * 8);
            if bit != first {
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
            }
        }
    }
}
