//! Measures DPDK between two processes over a memif: the bare port at several sizes of frames, with data untouched and with cold data
//! copied in and out; the packet fabric on it; and a read of 64 bytes. Compare what one run prints:
//! `cargo build --release -p velo-fabric-dpdk --features libdpdk && cargo run --release -p velo-fabric-dpdk --example memif`,
//! with `-- ROUNDS WORD` for what has the word in its name only.
#![forbid(unsafe_code)]

mod ends;

use std::time::Duration;

use ends::{Figure, Setup, Work};

const TIME: Duration = Duration::from_millis(800);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == ends::ROLE) {
        return ends::run(&arguments[1..]);
    }
    if let Some(why) = ends::missing() {
        println!("SKIP: DPDK over memif: {why}");
        return;
    }
    let rounds = arguments.first().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let word = arguments.get(1).map_or("", String::as_str);
    let number = |at: usize| arguments.get(at).and_then(|number| number.parse().ok()).unwrap_or(0);
    let (descriptors, direction) = (number(2), number(3));
    for zero_copy in [false, true] {
        for frame_bytes in [64, 1_514, 9_014, 64_000] {
            // A fabric needs more than 64 bytes in a frame; the read of 64 bytes is as quick in any.
            let works = match frame_bytes {
                64 => &ends::WORKS[..2],
                1_514 => &ends::WORKS[..],
                _ => &ends::WORKS[..4],
            };
            for (work, name) in works.iter().copied() {
                let title =
                    format!("{}, {frame_bytes}, {name}", if zero_copy { "zero-copy" } else { "copying" });
                if !title.contains(word) {
                    continue;
                }
                let taker_is_client = direction == 1;
                let setup = Setup { work, frame_bytes, zero_copy, taker_is_client, descriptors, time: TIME };
                let mut figures: Vec<Figure> =
                    (0..rounds).map(|_| ends::measure(setup).expect("two processes")).collect();
                figures.sort_by(|a, b| a.gbit_per_s().total_cmp(&b.gbit_per_s()));
                let median = figures[figures.len() / 2];
                match work {
                    Work::Latency => println!(
                        "{title:<36} median {:.2} µs, p99 {:.2} µs of {} reads",
                        median.median_ns / 1e3,
                        median.p99_ns / 1e3,
                        median.count
                    ),
                    _ => println!(
                        "{title:<36} {:>7.1} Gbit/s  {:>6.2} M/s  (worst {:.1}, best {:.1})",
                        median.gbit_per_s(),
                        median.count as f64 / median.seconds / 1e6,
                        figures[0].gbit_per_s(),
                        figures[figures.len() - 1].gbit_per_s()
                    ),
                }
            }
        }
    }
}
