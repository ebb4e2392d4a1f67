//! The packet protocol in the simulated network.

use std::time::Duration;

use velo_fabric::packet::scenario::Transfer;

#[test]
fn a_clean_way_is_filled() {
    for (rate, rtt) in [(125_000_000, 20_000), (12_500_000_000, 50), (1_250_000, 100)] {
        let outcome = Transfer::new(1, 16 << 20, rate, Duration::from_micros(rtt)).run();
        println!(
            "{rate} B/s {rtt} us: {:.3} of the rate in {:?}: {outcome:?}",
            outcome.goodput() / rate as f64,
            outcome.elapsed
        );
        assert!(outcome.complete);
    }
}
