//! Sequences of operations on two honest ends and the network between them. Whatever the order: every read ends once, with the right
//! bytes or an error, every question is released, and where the network is good again, what is asked for comes.
#![no_main]

use velo_fabric::packet::port::sim::Reordering;
use velo_fabric::packet::protocol::Timestamp;
use velo_fabric_fuzz::station::PATH;
use velo_fabric_fuzz::world::World;
use velo_fabric_fuzz::{Input, PROTECTIONS};

const MS: u64 = 1_000_000;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let protection = PROTECTIONS[usize::from(input.byte()) % 3];
    let mut world = World::new(input.number(2), protection);
    // Each operation may take thousands of packets.
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        operation(&mut world, &mut input);
    }
    end(&mut world);
});

fn operation(world: &mut World, input: &mut Input<'_>) {
    let how = input.byte();
    let which = usize::from(how >> 7);
    let now = world.now();
    match how & 15 {
        0..=3 => {
            let (offset, len) = (input.number(4), input.number(3) as u32 % (1 << 18) + 1);
            world.stations[which].post(now, offset, len);
        }
        4 => world.stations[which].endpoint.cancel(Timestamp(now), PATH, input.byte().into()),
        5 | 6 => world.stations[which].answer(now, input.byte().into(), input.byte()),
        7 | 8 => {
            while !world.stations[which].asks.is_empty() {
                world.stations[which].answer(now, 0, 0);
            }
        }
        9 => world.readdress(which),
        10 => {
            let link = world.links[which][usize::from(how >> 6 & 1)];
            let link = world.network.link_mut(link);
            let part = |byte: u8| f64::from(byte & 31) / 64.0;
            link.loss = part(input.byte());
            link.duplication = part(input.byte());
            link.corruption = part(input.byte()) / 4.0;
            link.reordering =
                Some(Reordering { probability: part(input.byte()), frames: input.byte().into() });
        }
        11 => {
            let link = world.links[which][usize::from(how >> 6 & 1)];
            let link = world.network.link_mut(link);
            link.datagram_max_bytes = [1_232, 1_300, 1_472, 4_000, 8_972, 9_000][usize::from(input.byte()) % 6];
            link.delay_ns = input.number(2) * 100;
            link.rate_bytes_per_s = 1_000_000 << (input.byte() % 12);
        }
        12 => {
            let link = world.links[which][0];
            let until = now + input.number(1) * 16 * MS;
            world.network.link_mut(link).blackout = Some(Timestamp(now)..Timestamp(until));
        }
        13 if input.byte() & 15 == 0 => world.stations[which].endpoint.close(Timestamp(now), PATH),
        _ => {}
    }
    world.advance(input.number(1) * MS / 4);
}

/// The network becomes good, everything is answered, and all must come to its end; then all is closed, and nothing may be left.
fn end(world: &mut World) {
    for link in world.links.as_flattened() {
        let link = world.network.link_mut(*link);
        (link.loss, link.duplication, link.corruption) = (0.0, 0.0, 0.0);
        (link.reordering, link.blackout) = (None, None);
        (link.datagram_max_bytes, link.delay_ns, link.rate_bytes_per_s) = (9_000, 100_000, 100_000_000);
    }
    for _ in 0..160 {
        world.advance(100 * MS);
        let now = world.now();
        for station in &mut world.stations {
            while !station.asks.is_empty() {
                station.answer(now, 0, 0);
            }
        }
        if world.stations.iter().all(|station| station.outstanding.is_empty()) {
            break;
        }
    }
    for station in &world.stations {
        // One that never heard of the other waits.
        let proven = station.endpoint.path_info(PATH).is_some_and(|path| path.proven);
        assert!(!proven || station.outstanding.is_empty(), "a read neither ends nor stalls");
    }
    let now = Timestamp(world.now());
    for station in &mut world.stations {
        station.endpoint.close(now, PATH);
    }
    world.advance(10_000 * MS);
    for station in &world.stations {
        station.check_end();
    }
}
