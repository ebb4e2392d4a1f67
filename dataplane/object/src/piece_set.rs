//! A set of piece indexes: have-maps, hole maps, what is asked for.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A set over `0..len`, one bit each; 17.5 KiB for the 140,000 pieces of 140 GB, nothing for all or none of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct PieceSet {
    len: u64,
    count: u64,
    /// Empty where the set has no member or all: a few received bytes that say so must not take much memory.
    words: Vec<u64>,
}

/// Why a received set is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a set of {len} pieces came with {words} words, or with bits past its end")]
pub struct PieceSetError {
    len: u64,
    words: usize,
}

/// What stands on the wire: no words at all means "all" or "none".
#[derive(Serialize, Deserialize)]
enum Wire {
    Empty(u64),
    Full(u64),
    Bits(u64, Vec<u64>),
}

impl From<PieceSet> for Wire {
    fn from(set: PieceSet) -> Self {
        if set.is_full() {
            Self::Full(set.len)
        } else if set.count == 0 {
            Self::Empty(set.len)
        } else {
            Self::Bits(set.len, set.words)
        }
    }
}

impl TryFrom<Wire> for PieceSet {
    type Error = PieceSetError;
    fn try_from(wire: Wire) -> Result<Self, PieceSetError> {
        let most = crate::outboard::MAX_BLOB_BYTES / crate::PIECE_BYTES;
        let (len, words) = match wire {
            Wire::Empty(len) | Wire::Full(len) if len > most => return Err(PieceSetError { len, words: 0 }),
            Wire::Empty(len) => return Ok(Self::new(len)),
            Wire::Full(len) => return Ok(Self::full(len)),
            Wire::Bits(len, words) => (len, words),
        };
        let tail = len % 64;
        let past_the_end = tail != 0 && words.last().is_some_and(|word| word >> tail != 0);
        if words.len() as u64 != len.div_ceil(64) || past_the_end {
            return Err(PieceSetError { len, words: words.len() });
        }
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        let mut set = Self { len, count, words };
        set.drop_words_if_uniform();
        Ok(set)
    }
}

impl PieceSet {
    /// No piece of `len`.
    pub fn new(len: u64) -> Self {
        Self { len, count: 0, words: Vec::new() }
    }

    /// All pieces of `len`.
    pub fn full(len: u64) -> Self {
        Self { len, count: len, words: Vec::new() }
    }

    fn is_uniform(&self) -> bool {
        self.count == 0 || self.count == self.len
    }

    fn drop_words_if_uniform(&mut self) {
        if self.is_uniform() {
            self.words = Vec::new();
        }
    }

    fn uniform_words(&self) -> Vec<u64> {
        if self.count == 0 {
            return vec![0; self.len.div_ceil(64) as usize];
        }
        let mut words = vec![u64::MAX; self.len.div_ceil(64) as usize];
        if !self.len.is_multiple_of(64) {
            *words.last_mut().expect("at least one word") = (1 << (self.len % 64)) - 1;
        }
        words
    }

    /// Changes one bit that is known to be the other way.
    fn flip(&mut self, index: u64) {
        if self.is_uniform() {
            self.words = self.uniform_words();
        }
        self.words[(index / 64) as usize] ^= 1 << (index % 64);
    }

    /// How many pieces the blob has.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// How many of them are in the set.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether none is in the set.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether all are in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Whether `index` is in the set; false past the end.
    pub fn contains(&self, index: u64) -> bool {
        index < self.len
            && if self.is_uniform() {
                self.is_full()
            } else {
                self.words[(index / 64) as usize] >> (index % 64) & 1 == 1
            }
    }

    /// Puts `index` in; false if it was there already.
    ///
    /// # Panics
    /// If `index` is past the end.
    pub fn insert(&mut self, index: u64) -> bool {
        assert!(index < self.len, "piece beyond the end of the set");
        if self.contains(index) {
            return false;
        }
        self.flip(index);
        self.count += 1;
        self.drop_words_if_uniform();
        true
    }

    /// Takes `index` out; false if it was not there.
    pub fn remove(&mut self, index: u64) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.flip(index);
        self.count -= 1;
        self.drop_words_if_uniform();
        true
    }

    /// The indexes in the set, rising.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        let all = if self.is_full() { 0..self.len } else { 0..0 };
        let some = self.words.iter().enumerate().flat_map(|(at, &word)| {
            std::iter::successors(Some(word), |w| Some(w & w.wrapping_sub(1)))
                .take_while(|&w| w != 0)
                .map(move |w| at as u64 * 64 + u64::from(w.trailing_zeros()))
        });
        all.chain(some)
    }

    /// Whether every index of `range` is in the set.
    pub fn contains_all(&self, range: std::ops::Range<u64>) -> bool {
        range.into_iter().all(|index| self.contains(index))
    }

    /// The raw words, lowest index in the lowest bit of the first.
    pub fn words(&self) -> Cow<'_, [u64]> {
        if self.is_uniform() { Cow::Owned(self.uniform_words()) } else { Cow::Borrowed(&self.words) }
    }

    /// A set from raw words, for instance from a file.
    ///
    /// # Errors
    /// [`PieceSetError`] where the number of words does not fit, or bits are set past the end.
    pub fn from_words(len: u64, words: Vec<u64>) -> Result<Self, PieceSetError> {
        Self::try_from(Wire::Bits(len, words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_remove_iterate() {
        let mut set = PieceSet::new(130);
        for index in [0, 63, 64, 129] {
            assert!(set.insert(index));
            assert!(!set.insert(index));
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 64, 129]);
        assert!(set.remove(64) && !set.remove(64) && !set.remove(1000));
        assert_eq!(set.count(), 3);
        assert!(!set.contains(130));
        assert_eq!(PieceSet::full(130).iter().count(), 130);
        assert!(PieceSet::full(64).is_full() && PieceSet::full(0).is_full());
    }

    #[test]
    fn sets_with_all_or_none_hold_no_words() {
        for len in [0, 1, 64, 65, 130] {
            let (mut up, mut down) = (PieceSet::new(len), PieceSet::full(len));
            for index in 0..len {
                assert!(up.insert(index) && down.remove(index));
                assert_eq!(up.iter().collect::<Vec<_>>(), (0..=index).collect::<Vec<_>>());
                assert_eq!(down.iter().collect::<Vec<_>>(), (index + 1..len).collect::<Vec<_>>());
                assert_eq!(up.words().len() as u64, len.div_ceil(64));
            }
            assert_eq!((&up, &down), (&PieceSet::full(len), &PieceSet::new(len)));
            assert_eq!((up.words.capacity(), down.words.capacity()), (0, 0));
            assert_eq!(PieceSet::from_words(len, up.words().into_owned()).expect("fits"), up);
        }
        assert_eq!(PieceSet::try_from(Wire::Full(1 << 26)).expect("a blob has so many").words.capacity(), 0);
    }

    #[test]
    fn received_sets_are_checked() {
        assert!(PieceSet::from_words(65, vec![0, 3]).is_err(), "a bit past the end");
        assert!(PieceSet::from_words(65, vec![0]).is_err(), "too few words");
        assert!(PieceSet::try_from(Wire::Full(u64::MAX)).is_err(), "more than any blob has");
        assert_eq!(PieceSet::from_words(65, vec![0, 1]).expect("fits").count(), 1);
    }
}
