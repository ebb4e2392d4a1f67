//! The network in virtual time does what its links say, exactly where that is exact, and the same again from the same seed.

use velo_fabric::packet::port::sim::{Host, Link, LinkId, Network, Reordering, SimClock, SimPort};
use velo_fabric::packet::port::{Ecn, Port};
use velo_fabric::packet::protocol::Timestamp;

use crate::{address, write};

const MS: u64 = 1_000_000;

/// Two hosts; what the first sends goes through `link`, and then through one that only takes its time.
fn network(seed: u64, link: Link) -> (Network, LinkId, Host, Host) {
    let mut network = Network::new(seed, 9_000);
    let up = network.add_link(link);
    let fast = network.add_link(Link::new(1 << 50, 0));
    let a = network.add_host(address(1), up, fast);
    let b = network.add_host(address(2), fast, fast);
    (network, up, a, b)
}

/// Sends datagrams of `len` bytes that begin with their number, all at once or as soon as there is room.
fn send(
    network: &mut Network,
    from: Host,
    count: u32,
    len: usize,
    patient: bool,
) -> Vec<(u64, u32, Vec<u8>)> {
    let mut arrived = Vec::new();
    for number in 0..count {
        let now = if patient { network.room_at(from).max(network.now()) } else { network.now() };
        collect(network, now, &mut arrived);
        let mut bytes = vec![0x55; len];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        assert!(network.send(now, from, |space| write(space, address(2), &bytes)));
    }
    collect(network, Timestamp(u64::MAX / 2_000), &mut arrived);
    assert_eq!(network.in_flight(), 0);
    arrived
}

fn collect(network: &mut Network, until: Timestamp, arrived: &mut Vec<(u64, u32, Vec<u8>)>) {
    while let Some(delivery) = network.poll(until) {
        let datagram = delivery.arrival.datagram.to_vec();
        arrived.push((delivery.at.0, u32::from_le_bytes(datagram[..4].try_into().unwrap()), datagram));
    }
}

#[test]
fn rate_and_delay_are_kept_to_the_nanosecond() {
    let (mut network, up, a, _) = network(1, Link::new(1_000_000, 5 * MS));
    let arrived = send(&mut network, a, 3, 1_000, false);
    let times: Vec<_> = arrived.iter().map(|(at, number, _)| (*at, *number)).collect();
    // One microsecond per byte, and a nanosecond for each link's rounding.
    assert_eq!(times.iter().map(|(at, _)| (at + MS / 2) / MS).collect::<Vec<_>>(), [6, 7, 8]);
    assert!(times.iter().all(|(at, _)| at % MS < 3));
    assert_eq!(times.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(network.counters(up).passed_bytes, 3_000);
}

#[test]
fn small_frames_at_high_rates_take_their_time_too() {
    // 400 Gbit/s: 64 bytes take 1.28 ns.
    let (mut network, _, a, _) =
        network(1, Link { queue_bytes: u64::MAX, ..Link::new(50_000_000_000, 10_000) });
    let last = send(&mut network, a, 10_000, 64, false).pop().unwrap();
    assert!((last.0 as i64 - 10_000 - 12_800).abs() <= 2, "{} ns", last.0);
}

#[test]
fn a_full_queue_drops_the_tail() {
    let (mut network, up, a, _) = network(1, Link { queue_bytes: 10_000, ..Link::new(1_000_000, 0) });
    let arrived = send(&mut network, a, 50, 1_000, false);
    assert_eq!(arrived.iter().map(|(_, number, _)| *number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    let counters = network.counters(up);
    assert_eq!((counters.passed, counters.overflowed, counters.queue_max_bytes), (10, 40, 10_000));
}

#[test]
fn who_waits_for_room_loses_nothing() {
    let (mut network, up, a, _) = network(1, Link { queue_bytes: 30_000, ..Link::new(1_000_000, 0) });
    assert_eq!(send(&mut network, a, 200, 1_000, true).len(), 200);
    let counters = network.counters(up);
    assert_eq!(counters.overflowed, 0);
    assert!(counters.queue_max_bytes <= 30_000 && counters.queue_max_bytes > 20_000);
}

#[test]
fn the_queue_marks_before_it_drops() {
    let link = Link { queue_bytes: 10_000, mark_bytes: Some(5_000), ..Link::new(1_000_000, 0) };
    let (mut network, up, a, _) = network(1, link);
    for number in 0..10u32 {
        network.send(Timestamp(0), a, |space| write(space, address(2), &[number as u8; 1_000]));
    }
    let mut marks = Vec::new();
    while let Some(delivery) = network.poll(Timestamp(100 * MS)) {
        marks.push(delivery.arrival.ecn == Ecn::Congested);
    }
    assert_eq!(marks, [[false; 5], [true; 5]].concat());
    assert_eq!(network.counters(up).marked, 5);
}

#[test]
fn long_datagrams_and_blackouts_are_silent() {
    let link = Link {
        datagram_max_bytes: 1_472,
        blackout: Some(Timestamp(10 * MS)..Timestamp(20 * MS)),
        ..Link::new(1_000_000_000, 0)
    };
    let (mut network, up, a, _) = network(1, link);
    let mut times = Vec::new();
    for (at, len) in [(0, 1_473), (1, 1_472), (10, 100), (19, 100), (20, 100), (30, 2_000)] {
        while let Some(delivery) = network.poll(Timestamp(at * MS)) {
            times.push(delivery.at.0 / MS);
        }
        network.send(Timestamp(at * MS), a, |space| write(space, address(2), &vec![1; len]));
    }
    assert_eq!(times, [1, 20]);
    let counters = network.counters(up);
    assert_eq!((counters.too_long, counters.blacked_out), (2, 2));
}

#[test]
fn lots_fall_as_often_as_they_should() {
    let faults = Link { loss: 0.1, duplication: 0.5, corruption: 0.01, ..Link::new(1_000_000_000, 0) };
    let (mut network, up, a, _) = network(7, faults);
    let arrived = send(&mut network, a, 20_000, 100, true);
    let counters = network.counters(up);
    assert!((1_800..2_200).contains(&counters.lost), "{counters:?}");
    assert!((8_700..9_300).contains(&counters.duplicated), "{counters:?}");
    assert!((130..230).contains(&counters.corrupted), "{counters:?}");
    assert_eq!(arrived.len() as u64, counters.passed + counters.duplicated);
    let damaged = |(_, number, bytes): &&(u64, u32, Vec<u8>)| {
        let good = number.to_le_bytes().into_iter().chain([0x55; 96]);
        let flipped: u32 = bytes.iter().zip(good).map(|(a, b)| (a ^ b).count_ones()).sum();
        // What was damaged within its number differs by whatever it was.
        assert!(flipped <= 3 || *number >= 20_000, "{flipped} bits");
        flipped > 0
    };
    let damaged = arrived.iter().filter(damaged).count() as u64;
    assert!(damaged > counters.corrupted / 2, "{damaged} of {counters:?}");
}

#[test]
fn no_more_overtake_a_datagram_than_may() {
    let reordering = Some(Reordering { probability: 0.3, frames: 64 });
    let (mut network, up, a, _) = network(3, Link { reordering, ..Link::new(1_000_000_000, 1_000) });
    let arrived = send(&mut network, a, 5_000, 1_000, true);
    assert_eq!(arrived.len(), 5_000);
    let mut most = 0;
    for (place, (_, number, _)) in arrived.iter().enumerate() {
        let before = &arrived[place.saturating_sub(200)..place];
        let overtaken_by = before.iter().filter(|(_, other, _)| other > number).count();
        most = most.max(overtaken_by);
    }
    assert!((30..=64).contains(&most), "{most}");
    assert!((1_300..1_700).contains(&network.counters(up).reordered));
}

#[test]
fn the_same_seed_gives_the_same_network() {
    let run = |seed| {
        let faults = Link {
            loss: 0.05,
            duplication: 0.05,
            corruption: 0.05,
            reordering: Some(Reordering { probability: 0.1, frames: 8 }),
            ..Link::new(10_000_000, MS)
        };
        let (mut network, _, a, _) = network(seed, faults);
        send(&mut network, a, 500, 200, true)
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

/// Two that send to one: they share its down link.
#[test]
fn many_senders_share_the_receivers_link() {
    let mut network = Network::new(1, 1_500);
    let down = network.add_link(Link { queue_bytes: 1 << 30, ..Link::new(1_000_000, 0) });
    let receiver = network.add_host(address(1), down, down);
    let senders: Vec<_> = (2..34)
        .map(|i| {
            let up = network.add_link(Link::new(1_000_000, 0));
            network.add_host(address(i), up, up)
        })
        .collect();
    for from in &senders {
        for _ in 0..10 {
            network.send(Timestamp(0), *from, |space| write(space, address(1), &[0; 1_000]));
        }
    }
    let (mut count, mut last) = (0, 0);
    while let Some(delivery) = network.poll(Timestamp(u64::MAX / 2_000)) {
        assert_eq!(delivery.to, receiver);
        (count, last) = (count + 1, delivery.at.0);
    }
    // The first arrives after a millisecond; then 320 need one each.
    assert_eq!((count, (last + MS / 2) / MS), (320, 321));
}

#[test]
fn what_goes_to_the_old_address_of_a_host_is_lost() {
    let (mut network, _, a, b) = network(1, Link::new(1_000_000, MS));
    network.send(Timestamp(0), a, |space| write(space, address(2), &[1; 100]));
    network.readdress(b, address(9));
    network.send(Timestamp(0), a, |space| write(space, address(2), &[2; 100]));
    network.send(Timestamp(0), a, |space| write(space, address(9), &[3; 100]));
    network.send(Timestamp(0), b, |space| write(space, address(1), &[4; 100]));
    let mut arrived = Vec::new();
    while let Some(delivery) = network.poll(Timestamp(100 * MS)) {
        arrived.push((delivery.to, delivery.arrival.from, delivery.arrival.datagram[0]));
    }
    arrived.sort_by_key(|(.., first)| *first);
    assert_eq!(arrived, [(b, address(1), 3), (a, address(9), 4)]);
    assert_eq!(network.unroutable(), 2);
}

#[test]
fn ports_of_a_virtual_network_wait_for_its_time() {
    let (network, ..) = network(1, Link::new(1_000_000_000, MS));
    let mut ports = SimPort::all(network, SimClock::Virtual);
    let mut b = ports.pop().unwrap();
    let mut a = ports.pop().unwrap();
    assert_eq!((a.local(), b.local(), a.name()), (address(1), address(2), "sim"));
    let mut left = 5u8;
    let sent = a.tx_burst(&mut |space| {
        left = left.checked_sub(1)?;
        write(space, address(2), &[left; 500])
    });
    assert_eq!(sent.unwrap(), 5);
    let mut seen = Vec::new();
    assert_eq!(b.rx_burst(&mut |arrival| seen.push(arrival.datagram[0])).unwrap(), 0);
    assert!(b.arm().unwrap());
    b.advance(Timestamp(2 * MS));
    assert!(!b.arm().unwrap());
    assert_eq!(b.rx_burst(&mut |arrival| seen.push(arrival.datagram[0])).unwrap(), 5);
    assert_eq!(seen, [4, 3, 2, 1, 0]);
    assert_eq!((a.counters().tx_bytes, b.counters().rx_bytes), (2_500, 2_500));
}

#[test]
fn ports_of_a_network_in_real_time_need_nobody_to_move_it() {
    let (network, ..) = network(1, Link::new(1_000_000_000, MS));
    let mut ports = SimPort::all(network, SimClock::Real(std::time::Instant::now()));
    let mut b = ports.pop().unwrap();
    let mut once = Some(());
    ports[0].tx_burst(&mut |space| once.take().and_then(|()| write(space, address(2), &[7; 500]))).unwrap();
    let start = std::time::Instant::now();
    while b.rx_burst(&mut |arrival| assert_eq!(arrival.datagram, [7; 500])).unwrap() == 0 {
        assert!(start.elapsed().as_secs() < 20, "nothing arrived");
        std::thread::yield_now();
    }
}

/// A port pushes back where its link is full, and loses nothing.
#[test]
fn a_port_without_room_takes_nothing() {
    let (network, up, ..) = network(1, Link { queue_bytes: 50_000, ..Link::new(1_000_000, 0) });
    let mut ports = SimPort::all(network, SimClock::Virtual);
    let (mut sent, mut asked) = (0, 0);
    for ms in 0..100 {
        ports[0].advance(Timestamp(ms * MS));
        sent += ports[0]
            .tx_burst(&mut |space| {
                asked += 1;
                write(space, address(2), &[0; 1_000])
            })
            .unwrap();
    }
    assert_eq!(sent, asked);
    assert!(ports[0].counters().tx_full > 50);
    assert_eq!(ports[0].with_network(|network| network.counters(up).overflowed), 0);
}
