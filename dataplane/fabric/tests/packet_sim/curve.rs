//! Goodput under loss against the same transfer without.

use velo_fabric::packet::scenario::{LOSSES, SETTINGS};

#[test]
fn loss_costs_little_goodput() {
    for setting in SETTINGS {
        let (name, rate) = (setting.name, setting.rate_bytes_per_s);
        let mut clean = 0.0;
        for loss in LOSSES {
            let outcome = setting.transfer(7, loss).run();
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
