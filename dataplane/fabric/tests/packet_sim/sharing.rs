//! Several flows on one link.

use std::time::Duration;

use velo_fabric::packet::scenario::{INCAST_RATE, TwoFlows, beside_tcp, incast, jain};

#[test]
fn many_senders_to_one_receiver_fill_the_line_and_no_queue() {
    let outcome = incast(3);
    println!(
        "32 senders: {:.3} of the line, queue {} bytes, {} dropped, Jain {:.3}",
        outcome.goodput() / INCAST_RATE as f64,
        outcome.queue_max_bytes,
        outcome.overflowed,
        outcome.jain()
    );
    assert!(outcome.complete, "{outcome:?}");
    assert!(outcome.goodput() >= 0.9 * INCAST_RATE as f64);
    assert!(outcome.queue_max_bytes <= INCAST_RATE / 2_000, "more than half a millisecond of queue");
    assert_eq!((outcome.overflowed, outcome.receiver.segments_lost), (0, 0));
}

#[test]
fn two_flows_share_a_link_equally() {
    let ms = Duration::from_millis;
    for (rate_bytes_per_s, rtt, span) in [
        (1_250_000_000, Duration::from_micros(100), ms(100)),
        (125_000_000, ms(20), ms(6_000)),
        (12_500_000, ms(5), ms(6_000)),
    ] {
        for later in [Duration::ZERO, span / 4] {
            let (rates, queue) = TwoFlows { seed: 11, rate_bytes_per_s, rtt, later, span }.run();
            let sum: f64 = rates.iter().sum();
            println!(
                "{rate_bytes_per_s} B/s, {rtt:?}, second after {later:?}: {rates:?}, Jain {:.4}, {:.3} of the link, queue {queue}",
                jain(&rates),
                sum / rate_bytes_per_s as f64
            );
            assert!(jain(&rates) >= 0.95, "{rates:?}");
            assert!(sum >= 0.8 * rate_bytes_per_s as f64, "{rates:?}");
        }
    }
}

#[test]
fn a_flow_of_tcp_is_not_starved() {
    let rate = 12_500_000;
    let (ours, theirs) = beside_tcp(5, rate, Duration::from_millis(20));
    let (of_link, of_theirs) = (ours / rate as f64, theirs.rate / rate as f64);
    println!("ours {of_link:.3} of the link, TCP's {of_theirs:.3} ({} losses)", theirs.losses);
    assert!(of_theirs >= 0.25, "TCP has {of_theirs:.3} of the link");
    assert!(of_link >= 0.02, "we are starved: {of_link:.3}");
}
