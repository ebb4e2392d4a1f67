//! The way changes while a transfer is under way.

use std::net::SocketAddr;
use std::time::Duration;

use velo_fabric::packet::protocol::Timestamp;
use velo_fabric::packet::scenario::{Outcome, Transfer, World};

const RATE: u64 = 125_000_000;
const MS: u64 = 1_000_000;

/// A transfer that would take half a second, in which `change` is called after a tenth; and the largest datagram at the end.
fn changed(
    transfer: &Transfer,
    change: impl FnOnce(&mut World, [usize; 2]),
) -> (Outcome, usize, [velo_fabric::packet::protocol::EndpointCounters; 2]) {
    let mut world = World::new(transfer.seed, transfer.datagram_max_bytes);
    let [down, up, there, back] = [&transfer.down, &transfer.up, &transfer.sender, &transfer.sender]
        .map(|link| world.network.add_link(link.clone()));
    let receiver = world.add_station(up, down, transfer, None);
    let sender = world.add_station(there, back, transfer, None);
    let path = world.connect(receiver, sender, transfer);
    world.fetch(receiver, sender, transfer.bytes, transfer.reads);
    world.run_until(100 * MS);
    assert!((1 << 20..transfer.bytes).contains(&world.fetched()[0]), "it is under way");
    change(&mut world, [receiver, sender]);
    world.run(transfer.limit);
    let datagram = world.endpoint(receiver).path_info(path).map_or(0, |info| info.datagram_bytes);
    let counters = [receiver, sender].map(|station| world.endpoint(station).counters());
    (world.outcome(receiver, down), datagram, counters)
}

fn transfer() -> Transfer {
    let mut transfer = Transfer::new(21, 64 << 20, RATE, Duration::from_millis(2)).losing(0.005);
    transfer.datagram_max_bytes = 8_972;
    transfer
}

fn complete(outcome: &Outcome, transfer: &Transfer) {
    assert!(outcome.complete && outcome.bytes == transfer.bytes, "{outcome:?}");
}

#[test]
fn either_end_may_move_to_another_address() {
    for sealed in [false, true] {
        for mover in 0..2 {
            let transfer = if sealed { transfer().sealed() } else { transfer() };
            let address: SocketAddr = ([192, 0, 2, 9], 999).into();
            let (outcome, _, counters) = changed(&transfer, |world, stations| {
                let host = world.host(stations[mover]);
                world.network.readdress(host, address);
            });
            complete(&outcome, &transfer);
            assert_eq!(counters[1 - mover].moves, 1, "sealed {sealed}, {mover} moved: {counters:?}");
            assert!(outcome.elapsed < Duration::from_secs(3), "{:?}", outcome.elapsed);
        }
    }
}

#[test]
fn a_way_that_carries_less_than_before_is_noticed() {
    let transfer = transfer();
    let (outcome, datagram, counters) = changed(&transfer, |world, _| {
        for link in world.links() {
            world.network.link_mut(link).datagram_max_bytes = 1_400;
        }
    });
    complete(&outcome, &transfer);
    assert_eq!(counters[0].black_holes, 1);
    assert!((1_232..=1_400).contains(&datagram), "{datagram}");
}

#[test]
fn a_way_that_carries_nothing_for_a_while_goes_on() {
    let transfer = transfer();
    let (outcome, _, counters) = changed(&transfer, |world, _| {
        let now = world.now();
        for link in world.links() {
            let blackout = Timestamp(now)..Timestamp(now + 1_500 * MS);
            world.network.link_mut(link).blackout = Some(blackout);
        }
    });
    complete(&outcome, &transfer);
    assert_eq!((counters[0].fabric.stalls, counters[0].black_holes), (0, 0));
    assert!(outcome.elapsed < Duration::from_millis(3_500), "{:?}", outcome.elapsed);
}

#[test]
fn a_way_that_carries_nothing_any_more_is_a_typed_error() {
    let transfer = transfer();
    let (outcome, _, counters) = changed(&transfer, |world, _| {
        for link in world.links() {
            world.network.link_mut(link).loss = 1.0;
        }
    });
    assert!(!outcome.complete && outcome.wrong.is_none());
    let error = outcome.error.expect("the path is closed");
    assert!(error.contains("sent nothing for 5000 ms") || error.contains("stalled"), "{error}");
    assert_eq!((counters[0].fabric.stalls, counters[0].fabric.paths_closed), (1, 1));
}

#[test]
fn a_way_that_becomes_ten_times_slower_is_not_flooded() {
    let mut transfer = transfer();
    transfer.bytes = 32 << 20;
    let (outcome, ..) = changed(&transfer, |world, _| {
        for link in world.links() {
            world.network.link_mut(link).rate_bytes_per_s = RATE / 10;
        }
    });
    complete(&outcome, &transfer);
    // Three tenths of what is sent at most are thrown away.
    assert!(outcome.payload_bytes_sent < transfer.bytes / 10 * 13, "{outcome:?}");
}
