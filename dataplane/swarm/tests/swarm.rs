//! Whole swarms in simulation: that all ends, with the right pieces, each fetched once, and only liars charged.

mod sim;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sim::{Conduct, Node, Sim, truth};
use velo_object::PIECE_BYTES;
use velo_swarm::{Accusation, Limits};

const SECOND: u64 = 1_000_000;

fn pullers(count: usize, random: &mut StdRng, rate: u64) -> Vec<Node> {
    (0..count)
        .map(|_| Node {
            up_bytes_per_s: rate,
            down_bytes_per_s: rate,
            latency_us: random.random_range(50..500),
            starts_us: random.random_range(0..300_000),
            ..Node::default()
        })
        .collect()
}

fn seed_node(rate: u64) -> Node {
    Node { seeds: true, up_bytes_per_s: rate, down_bytes_per_s: rate, ..Node::default() }
}

fn egress(sim: &Sim, node: usize) -> f64 {
    sim.sent[node] as f64 / sim.total_bytes() as f64
}

fn swarm(seed: u64, count: usize, pieces: u64, rate: u64) -> Sim {
    let mut random = StdRng::seed_from_u64(seed);
    let mut nodes = vec![seed_node(rate)];
    nodes.extend(pullers(count, &mut random, rate));
    let mut sim = Sim::new(seed, nodes, vec![truth("big", pieces * PIECE_BYTES, true)], &Limits::default());
    let ended = sim.run(3600 * SECOND);
    assert!(ended.is_some(), "seed {seed}: {count} pullers of {pieces} pieces did not end: {}", sim.stuck(1));
    for at in sim.alive_pullers() {
        assert_eq!(sim.counters(at).duplicates, 0, "seed {seed}");
        assert_eq!(sim.counters(at).verified, pieces);
    }
    sim
}

#[test]
fn the_seed_sends_each_piece_about_once() {
    for (count, pieces, rate) in [
        (3, 256, 1 << 30),
        (7, 256, 120 << 20),
        (31, 256, 1 << 30),
        (31, 256, 10 << 20),
        (3, 2000, 1 << 30),
        (15, 2000, 120 << 20),
        (31, 2000, 1 << 30),
    ] {
        let sim = swarm(pieces + count as u64, count, pieces, rate);
        let ideal = sim.total_bytes() as f64 / rate as f64;
        println!(
            "{count:2} pullers, {pieces:4} pieces, {:4} MiB/s: seed egress {:.3}, {:.2} s (ideal {ideal:.2})",
            rate >> 20,
            egress(&sim, 0),
            sim.now as f64 / 1e6,
        );
        assert!(egress(&sim, 0) <= 1.2, "{count} pullers, {pieces} pieces: {}", egress(&sim, 0));
    }
}

#[test]
fn many_small_blobs_leave_the_seed_about_once() {
    for seed in 0..3 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut nodes = vec![seed_node(1 << 30)];
        nodes.extend(pullers(3, &mut random, 1 << 30));
        let sizes = (0..1000).map(|_| random.random_range(1..=PIECE_BYTES)).collect::<Vec<_>>();
        let trusted = seed % 2 == 0;
        let blobs = sizes
            .iter()
            .enumerate()
            .map(|(at, &size)| truth(&format!("small {at}"), size, trusted))
            .collect();
        let mut sim = Sim::new(seed, nodes, blobs, &Limits::default());
        assert!(sim.run(600 * SECOND).is_some(), "seed {seed}: {}", sim.stuck(1));
        println!("1000 small blobs: seed egress {:.3}, {:.2} s", egress(&sim, 0), sim.now as f64 / 1e6);
        assert!(egress(&sim, 0) <= 1.3, "seed {seed}: {}", egress(&sim, 0));
    }
}

/// Everything at random: sizes, rates, known and unknown sizes, holes, and a few nodes that die, stall or lie. Whoever is left
/// ends, nobody fetches a verified piece twice, nobody honest is charged.
#[test]
fn random_swarms_end_and_charge_only_liars() {
    let mut retries = 0;
    for seed in 0..200 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut nodes = vec![seed_node(random.random_range(20 << 20..1 << 30))];
        let count = random.random_range(1..10);
        nodes.extend(pullers(count, &mut random, 200 << 20));
        for node in &mut nodes {
            node.up_bytes_per_s = random.random_range(5 << 20..1 << 30);
            node.latency_us = random.random_range(20..20_000);
            node.distance = if random.random_bool(0.2) { 2 } else { 1 };
        }
        for _ in 0..random.random_range(0..4) {
            let conduct = match random.random_range(0..7) {
                0 => Conduct::BadPieces,
                1 => Conduct::Halved,
                2 => Conduct::BadOutboard,
                3 => Conduct::FalseHoles,
                4 => Conduct::StallsAt(random.random_range(0..SECOND)),
                5 => Conduct::DiesAt(random.random_range(0..SECOND)),
                _ => Conduct::Empty,
            };
            nodes.push(Node { conduct, ..seed_node(1 << 30) });
        }
        if random.random_bool(0.5) {
            // A puller is lost or stops serving as well.
            let when = random.random_range(300_000..SECOND);
            nodes[1].conduct =
                if random.random_bool(0.5) { Conduct::DiesAt(when) } else { Conduct::StallsAt(when) };
        }
        let mut blobs = Vec::new();
        for at in 0..random.random_range(1..6) {
            let size = match random.random_range(0..4) {
                0 => 0,
                1 => random.random_range(1..=PIECE_BYTES),
                _ => random.random_range(1..40 * PIECE_BYTES),
            };
            let mut blob = truth(&format!("blob {seed} {at}"), size, random.random_bool(0.5));
            for index in 0..blob.holes.len() {
                if random.random_bool(0.2) && size > 0 {
                    blob.holes.insert(index);
                }
            }
            blobs.push(blob);
        }
        let mut sim = Sim::new(seed, nodes, blobs, &Limits::default());
        let ended = sim.run(300 * SECOND);
        for at in sim.alive_pullers() {
            assert!(sim.finished_us[at].is_some(), "seed {seed}: node {at} is stuck: {}", sim.stuck(at));
            retries += sim.counters(at).retries;
        }
        assert!(ended.is_some(), "seed {seed}");
        for (accuser, accused, accusation) in &sim.blames {
            let conduct = sim.nodes[*accused].conduct;
            let liar = matches!(
                conduct,
                Conduct::BadPieces | Conduct::Halved | Conduct::BadOutboard | Conduct::FalseHoles
            );
            assert!(liar, "seed {seed}: {accuser} charged {accused} ({conduct:?}) with {accusation:?}");
        }
    }
    assert!(retries > 100, "the simulation has hardly tested anything: {retries} retries");
}

#[test]
fn a_halved_outboard_is_charged_to_its_sender_alone() {
    let mut charged = 0;
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut nodes = vec![seed_node(1 << 30)];
        // The liar is nearer, so that it is asked first.
        nodes.push(Node { conduct: Conduct::Halved, latency_us: 10, ..seed_node(1 << 30) });
        nodes.extend(pullers(3, &mut random, 1 << 30));
        let mut sim = Sim::new(seed, nodes, vec![truth("big", 64 * PIECE_BYTES, false)], &Limits::default());
        assert!(sim.run(60 * SECOND).is_some(), "seed {seed}: {}", sim.stuck(2));
        assert!(sim.blames.iter().all(|(_, accused, what)| *accused == 1 && *what == Accusation::Outboard));
        assert!(sim.drops.iter().all(|(_, node, _)| *node == 1), "seed {seed}: {:?}", sim.drops);
        charged += sim.blames.len();
    }
    assert!(charged >= 20, "the liar was asked by hardly anybody: {charged}");
}

#[test]
fn dead_and_stalled_peers_do_not_block() {
    for (conduct, limit_s) in [(Conduct::DiesAt(400_000), 6), (Conduct::StallsAt(400_000), 14)] {
        for seed in 0..10 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut nodes = vec![seed_node(200 << 20)];
            nodes.extend(pullers(4, &mut random, 200 << 20));
            nodes[2].conduct = conduct;
            let mut sim =
                Sim::new(seed, nodes, vec![truth("big", 256 * PIECE_BYTES, true)], &Limits::default());
            let ended = sim.run(limit_s * SECOND);
            assert!(ended.is_some(), "{conduct:?}, seed {seed}: {}", sim.stuck(1));
            assert!(sim.blames.is_empty());
        }
    }
}

#[test]
fn a_piece_that_is_bad_comes_from_elsewhere_and_its_sender_is_barred() {
    for seed in 0..10 {
        let nodes = vec![
            seed_node(1 << 30),
            Node { conduct: Conduct::BadPieces, ..seed_node(1 << 30) },
            Node { starts_us: 1, ..Node::default() },
        ];
        let mut sim = Sim::new(seed, nodes, vec![truth("big", 100 * PIECE_BYTES, true)], &Limits::default());
        assert!(sim.run(60 * SECOND).is_some(), "{}", sim.stuck(2));
        assert!(!sim.blames.is_empty() && sim.blames.iter().all(|blame| blame.1 == 1));
        assert_eq!(sim.drops.len(), 1, "barred once and not asked again");
    }
}

#[test]
fn holes_are_never_read() {
    let mut blob = truth("sparse", 500 * PIECE_BYTES, true);
    (0..490).for_each(|index| {
        blob.holes.insert(index);
    });
    let nodes = vec![seed_node(1 << 30), Node { starts_us: 1, ..Node::default() }];
    let mut sim = Sim::new(1, nodes, vec![blob], &Limits::default());
    assert!(sim.run(60 * SECOND).is_some(), "{}", sim.stuck(1));
    assert_eq!(sim.counters(1).holes, 490);
    assert!(sim.sent[0] < 11 * PIECE_BYTES, "{} bytes were sent", sim.sent[0]);
}

#[test]
fn one_copy_crosses_between_zones() {
    let mut random = StdRng::seed_from_u64(9);
    let mut nodes = vec![Node { distance: 2, latency_us: 20_000, ..seed_node(200 << 20) }];
    nodes.extend(pullers(4, &mut random, 1 << 30));
    let mut sim = Sim::new(9, nodes, vec![truth("big", 300 * PIECE_BYTES, true)], &Limits::default());
    assert!(sim.run(60 * SECOND).is_some(), "{}", sim.stuck(1));
    assert!(egress(&sim, 0) <= 1.2, "{}", egress(&sim, 0));
}
