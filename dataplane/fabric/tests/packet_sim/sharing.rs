//! Several flows on one link.

use std::time::Duration;

use velo_fabric::packet::scenario::{Link, RenoFlow, Transfer, World, jain};

const RATE: u64 = 1_250_000_000;

#[test]
fn many_senders_to_one_receiver_fill_the_line_and_no_queue() {
    let mut transfer = Transfer::new(3, 8 << 20, RATE, Duration::from_micros(100));
    transfer.senders = 32;
    transfer.reads = 8;
    transfer.paced = true;
    // It is not the queue's end that bounds it.
    transfer.down.queue_bytes = RATE / 1_000;
    let outcome = transfer.run();
    println!(
        "32 senders: {:.3} of the line, queue {} bytes, {} dropped, Jain {:.3}",
        outcome.goodput() / RATE as f64,
        outcome.queue_max_bytes,
        outcome.overflowed,
        outcome.jain()
    );
    assert!(outcome.complete, "{outcome:?}");
    assert!(outcome.goodput() >= 0.9 * RATE as f64);
    assert!(outcome.queue_max_bytes <= RATE / 2_000, "more than half a millisecond of queue");
    assert_eq!((outcome.overflowed, outcome.receiver.segments_lost), (0, 0));
}

/// Two receivers behind one link of `rate`, each with a sender; the second begins `later`.
fn two_flows(seed: u64, rate: u64, rtt: Duration, later: Duration, span: Duration) -> (Vec<f64>, u64) {
    let mut transfer = Transfer::new(seed, 1 << 40, rate, rtt);
    transfer.reads = 16;
    let mut world = World::new(seed, transfer.datagram_max_bytes);
    let shared = world.network.add_link(transfer.down.clone());
    let fast = || Link::new(4 * rate, transfer.sender.delay_ns);
    let mut pairs = Vec::new();
    for flow in 0..2 {
        let [up, there, back] = [(); 3].map(|()| world.network.add_link(fast()));
        let receiver = world.add_station(up, shared, &transfer, None);
        let sender = world.add_station(there, back, &transfer, None);
        if flow == 1 {
            world.run_until(later.as_nanos() as u64);
        }
        world.connect(receiver, sender, &transfer);
        world.fetch(receiver, sender, transfer.bytes, transfer.reads);
        pairs.push(receiver);
    }
    // The first third is for finding the shares.
    let begin = (later + span / 3).as_nanos() as u64;
    world.run_until(begin);
    let before = world.fetched();
    let end = begin + span.as_nanos() as u64;
    world.run_until(end);
    let rates = world
        .fetched()
        .into_iter()
        .zip(before)
        .map(|(now, before)| (now - before) as f64 / span.as_secs_f64());
    (rates.collect(), world.network.counters(shared).queue_max_bytes)
}

#[test]
fn two_flows_share_a_link_equally() {
    let ms = Duration::from_millis;
    for (rate, rtt, span) in [
        (RATE, Duration::from_micros(100), ms(100)),
        (125_000_000, ms(20), ms(6_000)),
        (12_500_000, ms(5), ms(6_000)),
    ] {
        for later in [Duration::ZERO, span / 4] {
            let (rates, queue) = two_flows(11, rate, rtt, later, span);
            let sum: f64 = rates.iter().sum();
            println!(
                "{rate} B/s, {rtt:?}, second after {later:?}: {rates:?}, Jain {:.4}, {:.3} of the link, queue {queue}",
                jain(&rates),
                sum / rate as f64
            );
            assert!(jain(&rates) >= 0.95, "{rates:?}");
            assert!(sum >= 0.8 * rate as f64, "{rates:?}");
        }
    }
}

#[test]
fn a_flow_of_tcp_is_not_starved() {
    let (rate, rtt) = (12_500_000, Duration::from_millis(20));
    let mut transfer = Transfer::new(5, 1 << 40, rate, rtt);
    transfer.reads = 16;
    let mut world = World::new(5, transfer.datagram_max_bytes);
    let shared = world.network.add_link(transfer.down.clone());
    let mut fast = || world.network.add_link(Link::new(4 * rate, transfer.sender.delay_ns));
    let [up, there, back, a, b, c] = [(); 6].map(|()| fast());
    let receiver = world.add_station(up, shared, &transfer, None);
    let sender = world.add_station(there, back, &transfer, None);
    world.connect(receiver, sender, &transfer);
    world.fetch(receiver, sender, transfer.bytes, transfer.reads);
    let flow = RenoFlow { start_ns: 500_000_000, window_max: 2_000.0 };
    let tcp = world.add_reno((a, b), (c, shared), flow);
    world.run_until(20_000_000_000);
    let (ours, theirs) = (world.fetched()[0] as f64 / 20.0, world.reno(tcp));
    println!(
        "ours {:.3} of the link, TCP's {:.3} ({} losses)",
        ours / rate as f64,
        theirs.rate / rate as f64,
        theirs.losses
    );
    assert!(theirs.rate >= 0.25 * rate as f64, "TCP has {:.3} of the link", theirs.rate / rate as f64);
    assert!(ours >= 0.02 * rate as f64, "we are starved: {:.3}", ours / rate as f64);
}
