//! A set of segments of one read: a bit each.

use crate::packet::limits::SEGMENTS_PER_READ;

const WORDS: usize = SEGMENTS_PER_READ / 64;

/// Any of the segments 0 to [`SEGMENTS_PER_READ`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SegmentSet {
    words: [u64; WORDS],
}

impl SegmentSet {
    /// The first `count` segments.
    pub(super) fn first(count: u32) -> Self {
        let mut set = Self::default();
        for (index, word) in set.words.iter_mut().enumerate() {
            *word = match count.saturating_sub(index as u32 * 64) {
                0 => 0,
                bits @ 1..64 => (1 << bits) - 1,
                _ => u64::MAX,
            };
        }
        set
    }

    /// Those of it that are not in `other`.
    pub(super) fn without(mut self, other: &Self) -> Self {
        for (word, other) in self.words.iter_mut().zip(other.words) {
            *word &= !other;
        }
        self
    }

    pub(super) fn contains(&self, segment: u32) -> bool {
        self.words[segment as usize / 64] >> (segment % 64) & 1 == 1
    }

    pub(super) fn insert(&mut self, segment: u32) {
        self.words[segment as usize / 64] |= 1 << (segment % 64);
    }

    pub(super) fn remove(&mut self, segment: u32) {
        self.words[segment as usize / 64] &= !(1 << (segment % 64));
    }

    /// The first segment from `from` on that is in it.
    pub(super) fn next(&self, from: u32) -> Option<u32> {
        let mut index = from as usize / 64;
        let mut word = self.words.get(index)? & u64::MAX << (from % 64);
        loop {
            if word != 0 {
                return Some(index as u32 * 64 + word.trailing_zeros());
            }
            index += 1;
            word = *self.words.get(index)?;
        }
    }

    /// The 64 segments from `first` on, as a mask.
    pub(super) fn mask(&self, first: u32) -> u64 {
        let (index, shift) = (first as usize / 64, first % 64);
        let low = self.words.get(index).map_or(0, |word| word >> shift);
        let high = match shift {
            0 => 0,
            _ => self.words.get(index + 1).map_or(0, |word| word << (64 - shift)),
        };
        low | high
    }

    /// Takes the segments of a mask away.
    pub(super) fn remove_mask(&mut self, first: u32, mask: u64) {
        let (index, shift) = (first as usize / 64, first % 64);
        if let Some(word) = self.words.get_mut(index) {
            *word &= !(mask << shift);
        }
        if shift != 0
            && let Some(word) = self.words.get_mut(index + 1)
        {
            *word &= !(mask >> (64 - shift));
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether all of `range` are in it.
    pub(super) fn contains_all(&self, mut range: std::ops::RangeInclusive<u32>) -> bool {
        range.all(|segment| self.contains(segment))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const ALL: u32 = SEGMENTS_PER_READ as u32;

    proptest! {
        /// It does what an ordered set does.
        #[test]
        fn is_a_set(steps in prop::collection::vec((0u8..4, 0..ALL, any::<u64>()), 1..80)) {
            let (mut set, mut model) = (SegmentSet::default(), BTreeSet::new());
            for (step, segment, mask) in steps {
                let masked = (0..64u32).filter(|i| mask >> i & 1 == 1).map(|i| segment + i).filter(|i| *i < ALL);
                match step {
                    0 => { set.insert(segment); model.insert(segment); }
                    1 => { set.remove(segment); model.remove(&segment); }
                    2 => { set.remove_mask(segment, mask); masked.for_each(|i| { model.remove(&i); }); }
                    _ => { set = SegmentSet::first(segment); model = (0..segment).collect(); }
                }
                prop_assert_eq!(set.len() as usize, model.len());
                prop_assert_eq!(set.contains(segment), model.contains(&segment));
                prop_assert_eq!(set.next(segment), model.range(segment..).next().copied());
                let window = (0..64).filter(|i| model.contains(&(segment + i))).fold(0u64, |mask, i| mask | 1 << i);
                prop_assert_eq!(set.mask(segment), window);
            }
        }
    }
}
