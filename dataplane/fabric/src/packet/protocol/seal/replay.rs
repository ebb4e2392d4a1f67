//! Which packets have come: a window of bits behind the newest one, as in RFC 6479, which moves by whole words and shifts nothing.

use crate::packet::limits::REPLAY_WINDOW_PACKETS;

const WORDS: usize = 64;

// One word is being filled while the others are remembered.
const _: () = assert!((WORDS as u64 - 1) * 64 == REPLAY_WINDOW_PACKETS);
const _: () = assert!(WORDS.is_power_of_two());

/// Takes every number once, and none that is [`REPLAY_WINDOW_PACKETS`] or more behind the highest.
pub(super) struct Replay {
    newest: u64,
    seen: [u64; WORDS],
}

impl Default for Replay {
    fn default() -> Self {
        // No packet has number 0.
        let mut seen = [0; WORDS];
        seen[0] = 1;
        Self { newest: 0, seen }
    }
}

impl Replay {
    /// The highest number so far.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Whether this number comes for the first time; notes it.
    pub(super) fn accept(&mut self, number: u64) -> bool {
        let (word, newest_word) = (number / 64, self.newest / 64);
        if number > self.newest {
            // What lies between is new: at most all of it.
            let steps = (word - newest_word).min(WORDS as u64);
            for step in 1..=steps {
                self.seen[(newest_word + step) as usize % WORDS] = 0;
            }
            self.newest = number;
        } else if self.newest - number >= REPLAY_WINDOW_PACKETS {
            return false;
        }
        let (word, bit) = (&mut self.seen[word as usize % WORDS], 1 << (number % 64));
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_number_counts_once_and_the_old_ones_never() {
        let mut replay = Replay::default();
        assert!(!replay.accept(0));
        assert!(replay.accept(1) && !replay.accept(1));
        assert!(replay.accept(REPLAY_WINDOW_PACKETS + 1));
        assert!(!replay.accept(1), "it is out of the window");
        assert!(replay.accept(2) && !replay.accept(2));
        assert!(replay.accept(u64::MAX) && !replay.accept(u64::MAX));
        assert!(replay.accept(u64::MAX - REPLAY_WINDOW_PACKETS + 1));
        assert!(!replay.accept(u64::MAX - REPLAY_WINDOW_PACKETS));
        assert_eq!(replay.newest(), u64::MAX);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers_with_a_lower_end(steps in prop::collection::vec((any::<bool>(), 0..6_000u64, 0..6_000u64), 1..400)) {
            let (mut replay, mut seen, mut newest) = (Replay::default(), HashSet::from([0]), 0u64);
            for (ahead, near, far) in steps {
                let number = if ahead { newest + near % 100 * (far % 100) } else { newest.saturating_sub(far) };
                newest = newest.max(number);
                let expected = newest - number < REPLAY_WINDOW_PACKETS && seen.insert(number);
                prop_assert_eq!(replay.accept(number), expected);
                prop_assert_eq!(replay.newest(), newest);
            }
        }
    }
}
