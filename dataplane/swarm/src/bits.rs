//! A set of piece indexes that finds its next member without walking over empty stretches.
//! Up to 64 pieces it is one word; above that, two levels of summaries stand over the words.

/// A set over `0..len`.
#[derive(Debug, Clone)]
pub(crate) enum Bits {
    Small { len: u8, word: u64 },
    Big(Box<Big>),
}

#[derive(Debug, Clone)]
pub(crate) struct Big {
    len: u64,
    count: u64,
    /// Level 0 has a bit for each index; a bit of level `k + 1` says that a word of level `k` is not zero.
    levels: [Vec<u64>; 3],
}

const fn low(bits: u64) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

impl Bits {
    pub(crate) fn new(len: u64) -> Self {
        Self::from_words(len, &[])
    }

    #[cfg(test)]
    pub(crate) fn full(len: u64) -> Self {
        Self::from_words(len, &vec![u64::MAX; len.div_ceil(64) as usize])
    }

    /// Bits past `len` are cut off; missing words are zero.
    pub(crate) fn from_words(len: u64, words: &[u64]) -> Self {
        if len <= 64 {
            return Self::Small { len: len as u8, word: words.first().copied().unwrap_or(0) & low(len) };
        }
        let mut level0 = vec![0; len.div_ceil(64) as usize];
        let used = words.len().min(level0.len());
        level0[..used].copy_from_slice(&words[..used]);
        if !len.is_multiple_of(64) {
            *level0.last_mut().expect("more than 64 bits") &= low(len % 64);
        }
        let summary = |below: &[u64]| -> Vec<u64> {
            let group = |words: &[u64]| {
                words.iter().enumerate().fold(0, |sum, (at, &word)| sum | u64::from(word != 0) << at)
            };
            below.chunks(64).map(group).collect()
        };
        let count = level0.iter().map(|word| u64::from(word.count_ones())).sum();
        let level1 = summary(&level0);
        let level2 = summary(&level1);
        Self::Big(Box::new(Big { len, count, levels: [level0, level1, level2] }))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Small { len, .. } => u64::from(*len),
            Self::Big(big) => big.len,
        }
    }

    pub(crate) fn count(&self) -> u64 {
        match self {
            Self::Small { word, .. } => u64::from(word.count_ones()),
            Self::Big(big) => big.count,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count() == 0
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count() == self.len()
    }

    pub(crate) fn words(&self) -> &[u64] {
        match self {
            Self::Small { word, .. } => std::slice::from_ref(word),
            Self::Big(big) => &big.levels[0],
        }
    }

    /// Words of memory beyond the struct itself.
    pub(crate) fn heap_words(&self) -> usize {
        match self {
            Self::Small { .. } => 0,
            Self::Big(big) => big.levels.iter().map(Vec::len).sum(),
        }
    }

    pub(crate) fn contains(&self, index: u64) -> bool {
        index < self.len() && self.words()[(index / 64) as usize] >> (index % 64) & 1 == 1
    }

    /// Puts `index` in; false if it was there or is past the end.
    pub(crate) fn insert(&mut self, index: u64) -> bool {
        if index >= self.len() || self.contains(index) {
            return false;
        }
        match self {
            Self::Small { word, .. } => *word |= 1 << index,
            Self::Big(big) => {
                big.count += 1;
                let mut at = index;
                for level in &mut big.levels {
                    level[(at / 64) as usize] |= 1 << (at % 64);
                    at /= 64;
                }
            }
        }
        true
    }

    /// Takes `index` out; false if it was not there.
    pub(crate) fn remove(&mut self, index: u64) -> bool {
        if !self.contains(index) {
            return false;
        }
        match self {
            Self::Small { word, .. } => *word &= !(1 << index),
            Self::Big(big) => {
                big.count -= 1;
                let mut at = index;
                for level in &mut big.levels {
                    let word = &mut level[(at / 64) as usize];
                    *word &= !(1 << (at % 64));
                    if *word != 0 {
                        break;
                    }
                    at /= 64;
                }
            }
        }
        true
    }

    /// The first member at or after `from`.
    pub(crate) fn next(&self, from: u64) -> Option<u64> {
        if from >= self.len() {
            return None;
        }
        match self {
            Self::Small { word, .. } => {
                let rest = word >> from;
                (rest != 0).then(|| from + u64::from(rest.trailing_zeros()))
            }
            Self::Big(big) => big.next(from),
        }
    }

    /// The first member at or after `from`, and else the first of all.
    pub(crate) fn next_around(&self, from: u64) -> Option<u64> {
        self.next(from).or_else(|| self.next(0))
    }

    /// The members of both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let words: Vec<u64> = self.words().iter().zip(other.words()).map(|(a, b)| a & b).collect();
        Self::from_words(self.len(), &words)
    }
}

impl Big {
    fn next(&self, from: u64) -> Option<u64> {
        // Climb until a word has a bit at or after the position, then descend to the lowest bit below it.
        let mut at = from;
        let mut level = 0;
        loop {
            let word = self.levels[level].get((at / 64) as usize).copied().unwrap_or(0) >> (at % 64);
            if word != 0 {
                at += u64::from(word.trailing_zeros());
                break;
            }
            at = at / 64 + 1;
            if level == 2 {
                // Above the last level, walk: it has one word for 2^18 indexes.
                let top = &self.levels[2];
                let start = at as usize;
                let offset = top.get(start..)?.iter().position(|&word| word != 0)?;
                at = (start + offset) as u64 * 64 + u64::from(top[start + offset].trailing_zeros());
                break;
            }
            level += 1;
        }
        while level > 0 {
            level -= 1;
            at = at * 64 + u64::from(self.levels[level][at as usize].trailing_zeros());
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn behaves_as_a_set(len in prop_oneof![1u64..200, 1u64..20_000, 500_000u64..600_000],
                            ops in prop::collection::vec((any::<u64>(), any::<bool>()), 0..200)) {
            let mut bits = Bits::new(len);
            let mut model = BTreeSet::new();
            for (index, insert) in ops {
                let index = index % len;
                if insert {
                    prop_assert_eq!(bits.insert(index), model.insert(index));
                } else {
                    let index = model.range(index..).next().copied().unwrap_or(index);
                    prop_assert_eq!(bits.remove(index), model.remove(&index));
                }
                let from = index.wrapping_mul(31) % (len + 1);
                prop_assert_eq!(bits.next(from), model.range(from..).next().copied());
                prop_assert_eq!(bits.count(), model.len() as u64);
            }
            let same = Bits::from_words(len, bits.words());
            prop_assert_eq!(same.next(0), bits.next(0));
            prop_assert_eq!(same.and(&bits).count(), bits.count());
            prop_assert!(Bits::full(len).is_full() && !Bits::full(len).contains(len));
        }
    }
}
