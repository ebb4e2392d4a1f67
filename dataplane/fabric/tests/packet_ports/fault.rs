//! A port with faults, around a network without any.

use std::time::{Duration, Instant};

use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::fault::{Fault, FaultCounters, Faults};
use velo_fabric::packet::port::sim::{Link, Network, SimClock, SimPort};

use crate::{address, write};

const COUNT: u32 = 5_000;

/// Two ports with nothing between them.
fn wire() -> (SimPort, SimPort) {
    let mut network = Network::new(1, 1_500);
    let links: Vec<_> = (0..4).map(|_| network.add_link(Link::new(1 << 50, 0))).collect();
    network.add_host(address(1), links[0], links[1]);
    network.add_host(address(2), links[2], links[3]);
    let mut ports = SimPort::all(network, SimClock::Real(Instant::now()));
    let b = ports.pop().unwrap();
    (ports.pop().unwrap(), b)
}

/// Sends [`COUNT`] numbered datagrams from `a` to `b` and returns what arrived.
fn run(a: &mut impl Port, b: &mut impl Port) -> Vec<(u32, Vec<u8>)> {
    let (mut next, mut arrived) = (0u32, Vec::new());
    let start = Instant::now();
    let mut quiet_since = None;
    loop {
        let mut work = a
            .tx_burst(&mut |space| {
                if next == COUNT {
                    return None;
                }
                let mut bytes = [0xaa; 200];
                bytes[..4].copy_from_slice(&next.to_le_bytes());
                next += 1;
                write(space, address(2), &bytes)
            })
            .unwrap();
        work += b
            .rx_burst(&mut |arrival| {
                assert_eq!(arrival.from, address(1));
                let datagram = arrival.datagram.to_vec();
                arrived.push((u32::from_le_bytes(datagram[..4].try_into().unwrap()), datagram));
                // As a receiver does that decrypts in place.
                arrival.datagram.fill(0);
            })
            .unwrap();
        // Nothing is held any more when both could sleep.
        if work > 0 || !a.arm().unwrap() || !b.arm().unwrap() {
            quiet_since = None;
        } else if quiet_since.get_or_insert(Instant::now()).elapsed() > Duration::from_millis(5) {
            return arrived;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it never rests");
    }
}

/// Runs with faults on the sending side or the receiving one.
fn with_faults(faults: Faults, sending: bool) -> (Vec<(u32, Vec<u8>)>, FaultCounters) {
    let (mut a, mut b) = wire();
    if sending {
        let mut a = Fault::new(a, 11, faults, Faults::default());
        (run(&mut a, &mut b), a.faults().0)
    } else {
        let mut b = Fault::new(b, 11, Faults::default(), faults);
        (run(&mut a, &mut b), b.faults().1)
    }
}

fn flipped_bits((number, bytes): &(u32, Vec<u8>)) -> u32 {
    let good = number.to_le_bytes().into_iter().chain([0xaa; 196]);
    bytes.iter().zip(good).map(|(a, b)| (a ^ b).count_ones()).sum()
}

#[test]
fn without_faults_everything_arrives_in_order() {
    for sending in [true, false] {
        let (arrived, counters) = with_faults(Faults::default(), sending);
        assert!(arrived.iter().map(|(number, _)| *number).eq(0..COUNT));
        assert!(arrived.iter().all(|datagram| flipped_bits(datagram) == 0));
        assert_eq!(counters, FaultCounters::default());
    }
}

#[test]
fn each_fault_strikes_as_often_as_it_should() {
    for sending in [true, false] {
        let (arrived, lost) = with_faults(Faults { loss: 0.05, ..Faults::default() }, sending);
        assert!((190..310).contains(&lost.lost), "{lost:?}");
        assert_eq!(arrived.len() as u64, u64::from(COUNT) - lost.lost);

        let (arrived, twice) = with_faults(Faults { duplication: 0.5, ..Faults::default() }, sending);
        assert!((2_350..2_650).contains(&twice.duplicated), "{twice:?}");
        assert_eq!(arrived.len() as u64, u64::from(COUNT) + twice.duplicated);
        assert!(arrived.iter().all(|datagram| flipped_bits(datagram) == 0));

        let (arrived, damaged) = with_faults(Faults { corruption: 0.01, ..Faults::default() }, sending);
        assert!((20..90).contains(&damaged.corrupted), "{damaged:?}");
        let seen = arrived.iter().filter(|datagram| datagram.1[4..].iter().any(|byte| *byte != 0xaa)).count();
        assert!(
            seen as u64 > damaged.corrupted / 2 && seen as u64 <= damaged.corrupted,
            "{seen} of {damaged:?}"
        );
    }
}

#[test]
fn no_more_overtake_a_datagram_than_may_and_none_stays_behind() {
    for sending in [true, false] {
        let faults = Faults { reordering: 0.2, reordering_frames: 16, ..Faults::default() };
        let (arrived, counters) = with_faults(faults, sending);
        assert!((850..1_150).contains(&counters.reordered), "{counters:?}");
        let mut numbers: Vec<_> = arrived.iter().map(|(number, _)| *number).collect();
        let out_of_place = numbers.iter().zip(0..).filter(|(number, place)| *number != place).count();
        assert!(out_of_place > 1_000, "{out_of_place}");
        let overtaken =
            |place: usize| numbers[..place].iter().filter(|other| **other > numbers[place]).count();
        let most = (0..numbers.len()).map(overtaken).max().unwrap_or_default();
        // One that comes through late lets another pass that was held as long.
        assert!((8..=32).contains(&most), "{most}");
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..COUNT));
    }
}

#[test]
fn in_a_blackout_nothing_comes_through_in_either_direction() {
    for sending in [true, false] {
        let (a, b) = wire();
        let (mut a, mut b) = (
            Fault::new(a, 1, Faults::default(), Faults::default()),
            Fault::new(b, 2, Faults::default(), Faults::default()),
        );
        let switch = if sending { a.blackout() } else { b.blackout() };
        switch.set(true);
        assert!(run(&mut a, &mut b).is_empty());
        let counters = if sending { a.faults().0 } else { b.faults().1 };
        assert_eq!(counters, FaultCounters { blacked_out: COUNT.into(), ..FaultCounters::default() });
        switch.set(false);
        assert_eq!(run(&mut a, &mut b).len(), COUNT as usize);
    }
}
