//! Goodput under loss against the same transfer without.

use std::time::Duration;

use velo_fabric::packet::scenario::{LOSSES, Transfer};

/// (name, bytes per second, round trip, bytes, datagram)
const SETTINGS: [(&str, u64, Duration, u64, usize); 3] = [
    ("datacentre", 3_125_000_000, Duration::from_micros(50), 64 << 20, 8_972),
    ("datacentre, 1500", 3_125_000_000, Duration::from_micros(50), 64 << 20, 1_472),
    ("WAN", 125_000_000, Duration::from_millis(40), 256 << 20, 1_472),
];

#[test]
fn loss_costs_little_goodput() {
    for (name, rate, rtt, bytes, datagram) in SETTINGS {
        let mut clean = 0.0;
        for loss in LOSSES {
            let mut transfer = Transfer::new(7, bytes, rate, rtt).losing(loss);
            transfer.datagram_max_bytes = datagram;
            let outcome = transfer.run();
            assert!(outcome.complete, "{name} at {loss}: {outcome:?}");
            let goodput = outcome.goodput();
            if loss == 0.0 {
                clean = goodput;
            }
            let ratio = goodput / clean;
            println!(
                "{name:>16} loss {:>4} %: {:>8.3} Gbit/s, {ratio:.3} of what it is without; {:.3} of the rate; lost {} spurious {} tails {} cuts {}",
                loss * 100.0,
                goodput * 8e-9,
                goodput / rate as f64,
                outcome.receiver.segments_lost,
                outcome.receiver.segments_spurious,
                outcome.receiver.tail_timeouts,
                outcome.receiver.window_cuts,
            );
            let least = match loss {
                _ if loss <= 0.001 => 0.9,
                _ if loss <= 0.01 => 0.75,
                _ => 0.0,
            };
            assert!(ratio >= least, "{name} at {loss}: {ratio:.3}");
        }
    }
}
