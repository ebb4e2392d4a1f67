//! The internet checksum (RFC 1071): the sum of 16-bit words in ones' complement.

/// A sum so far. It is kept in the machine's byte order and turned over at the end, which RFC 1071 (2.B) allows.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::packet::port) struct Sum(u64);

impl Sum {
    /// Adds bytes that begin at an even place in what is summed; an odd number of them only at the end.
    pub(in crate::packet::port) fn add(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        // Four bytes at a time into eight: no carry is lost below 2^32 words.
        let sum: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Self(fold(self.0) + fold(sum) + u64::from(u32::from_ne_bytes(last)))
    }

    /// Adds one word in host order.
    pub(in crate::packet::port) fn add_word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// The sum: all ones where what was summed holds a right checksum.
    pub(in crate::packet::port) fn folded(self) -> u16 {
        u16::from_be(fold(fold(self.0)) as u16)
    }

    /// What to write into the checksum's field.
    pub(in crate::packet::port) fn checksum(self) -> u16 {
        !self.folded()
    }

    /// As [`checksum`](Self::checksum) for UDP, where zero means that there is none.
    pub(in crate::packet::port) fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => 0xffff,
            sum => sum,
        }
    }
}

/// Into 17 bits at first, and into 16 when done twice.
fn fold(sum: u64) -> u64 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum >> 16) + (sum & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As RFC 1071 writes it, byte for byte.
    pub(super) fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc() {
        let sum = Sum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    #[test]
    fn a_checksum_of_udp_is_never_zero() {
        assert_eq!(Sum::default().add(&[0xff, 0xff]).udp_checksum(), 0xffff);
        assert_eq!(Sum::default().add(&[0xff, 0xfe]).udp_checksum(), 1);
    }

    #[test]
    fn the_largest_sum_loses_no_carry() {
        let ones = vec![0xff; 65_535];
        assert_eq!(Sum::default().add(&ones).folded(), naive(&ones));
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_naive_one(bytes in prop::collection::vec(any::<u8>(), 0..3000), cut in 0usize..3000, word: u16) {
            let cut = cut.min(bytes.len()) & !1;
            let sum = Sum::default().add(&bytes[..cut]).add(&bytes[cut..]);
            prop_assert_eq!(sum.folded(), naive(&bytes));
            let even = &bytes[..bytes.len() & !1];
            let with_word = [even, &word.to_be_bytes()].concat();
            prop_assert_eq!(Sum::default().add(even).add_word(word).folded(), naive(&with_word));
        }

        #[test]
        fn what_it_completes_sums_to_ones(mut bytes in prop::collection::vec(any::<u8>(), 2..2000)) {
            bytes[..2].fill(0);
            let checksum = Sum::default().add(&bytes).checksum();
            bytes[..2].copy_from_slice(&checksum.to_be_bytes());
            prop_assert_eq!(Sum::default().add(&bytes).folded(), 0xffff);
        }
    }
}
