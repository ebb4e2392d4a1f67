//! Senders that have not everything at hand: fewer buffers than reads, and bytes that take their time.

use std::time::Duration;

use velo_fabric::packet::scenario::Transfer;

#[test]
fn a_sender_with_few_buffers_is_read_at_its_pace() {
    for (buffers, load_ms) in [(1, 0), (1, 5), (2, 5), (16, 5), (16, 100)] {
        for (loss, seed) in [(0.0, 1), (0.01, 2), (0.05, 3), (0.1, 4)] {
            let mut transfer = Transfer::new(seed, 64 << 20, 125_000_000, Duration::from_millis(1));
            transfer = transfer.losing(loss);
            (transfer.buffers, transfer.load) = (buffers, Duration::from_millis(load_ms));
            let outcome = transfer.run();
            assert!(outcome.complete, "{buffers} buffers, {load_ms} ms, loss {loss}: {outcome:#?}");
            // What the line allows, and what the buffers do where each is used once in the time that it takes to fill and to send it.
            let rate = 125e6;
            let piece = f64::from(1 << 20);
            let filled = buffers as f64 * piece / (load_ms as f64 * 1e-3 + piece / rate);
            let share = outcome.goodput() / f64::min(rate, filled);
            println!("{buffers:>2} buffers, {load_ms:>3} ms, loss {loss:>4}: {share:.2} of what can be");
            // One buffer is empty while the end of its read travels, or is lost.
            let least = if buffers > 2 { 0.6 } else { 0.05 };
            assert!(share > least, "{buffers} buffers, {load_ms} ms, loss {loss}: {share:.2} of what can be");
        }
    }
}

#[test]
fn a_read_whose_turn_is_long_in_coming_is_not_forgotten() {
    // Sixty-four pieces at once take over fifty seconds: longer than a supplier keeps what it hears nothing of.
    let mut transfer = Transfer::new(5, 64 << 20, 1_250_000, Duration::from_millis(20));
    transfer.datagram_max_bytes = 65_487;
    for loss in [0.0, 0.01] {
        let outcome = transfer.clone().losing(loss).run();
        assert!(outcome.complete, "loss {loss}: {outcome:#?}");
        let share = outcome.goodput() / 1.25e6;
        println!("loss {loss:>4}: {share:.2} of the rate, {} tails", outcome.receiver.tail_timeouts);
        assert!(share > 0.7, "loss {loss}: {share:.2} of the rate");
    }
}
