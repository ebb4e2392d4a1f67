//! How late packets come, which is how long one is waited for before it is taken for lost.

use crate::packet::limits::REORDERING_PACKETS;

/// After so many packets the lateness that was seen counts a little less.
const FORGET_PACKETS: u64 = 4_096;

/// The lateness of late, in packets.
#[derive(Debug)]
pub(super) struct Reordering {
    latest: u32,
    /// Added where packets came after they had been taken for lost though they were not late by their numbers: their grants were.
    margin: u32,
    forget_at: u64,
}

impl Default for Reordering {
    fn default() -> Self {
        Self { latest: 0, margin: 0, forget_at: FORGET_PACKETS }
    }
}

impl Reordering {
    /// Packet `number` has arrived when `newest` was the highest number.
    pub(super) fn seen(&mut self, number: u64, newest: u64) {
        if number < newest {
            let late = u32::try_from(newest - number).unwrap_or(u32::MAX);
            self.latest = self.latest.max(late).min(*REORDERING_PACKETS.end());
        } else if number >= self.forget_at {
            self.forget_at = number + FORGET_PACKETS;
            self.latest -= self.latest.div_ceil(8);
            self.margin -= self.margin.div_ceil(4);
        }
    }

    /// Something was taken for lost too soon.
    pub(super) fn too_soon(&mut self) {
        self.margin = (self.margin + 1).min(*REORDERING_PACKETS.end());
    }

    /// So many packets later one is taken for lost.
    pub(super) fn threshold(&self) -> u32 {
        let (least, most) = (*REORDERING_PACKETS.start(), *REORDERING_PACKETS.end());
        (self.latest + self.latest / 8 + self.margin).clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_as_long_as_packets_are_late_and_forgets() {
        let mut reordering = Reordering::default();
        assert_eq!(reordering.threshold(), 3);
        reordering.seen(100, 164);
        assert_eq!(reordering.threshold(), 72);
        for number in 165..40 * FORGET_PACKETS {
            reordering.seen(number, number);
        }
        assert_eq!(reordering.threshold(), 3);
        reordering.seen(1, u64::MAX);
        assert_eq!(reordering.threshold(), *REORDERING_PACKETS.end());
    }
}
