//! A peer that holds the keys and does what it likes.

use proptest::prelude::*;
use velo_fabric::packet::scenario::hostile;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("VELO_FULL").is_some() { 20_000 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_sequence_of_operations_breaks_a_promise(input in prop::collection::vec(any::<u8>(), 0..3_000)) {
        hostile(&input);
    }
}
