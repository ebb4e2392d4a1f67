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
            let title =
                |name| format!("{}, {frame_bytes}, {name}", if zero_copy { "zero-copy" } else { "copying" });
            let works: Vec<_> = works.iter().filter(|(_, name)| title(name).contains(word)).collect();
            let mut figures: Vec<Vec<Figure>> = vec![Vec::new(); works.len()];
            // In turns, as the machine is not always equally quick.
            for _ in 0..rounds {
                for ((work, _), figures) in works.iter().zip(&mut figures) {
                    let taker_is_client = direction == 1;
                    let setup = Setup {
                        work: *work,
                        frame_bytes,
                        zero_copy,
                        taker_is_client,
                        descriptors,
                        time: TIME,
                    };
                    figures.push(ends::measure(setup).expect("two processes"));
                }
            }
            let copied = works.iter().position(|(work, _)| *work == Work::RawCopied);
            let copied: Option<Vec<f64>> =
                copied.map(|at| figures[at].iter().map(Figure::gbit_per_s).collect());
            for ((work, name), figures) in works.iter().zip(figures) {
                print(*work, &title(name), figures, copied.as_deref());
            }
        }
    }
}

/// The median of all rounds, and of each round's ratio to the copying loop in the same round.
fn print(work: Work, title: &str, mut figures: Vec<Figure>, copied: Option<&[f64]>) {
    let mut ratios: Vec<f64> = copied
        .map(|copied| {
            figures.iter().zip(copied).map(|(figure, copied)| figure.gbit_per_s() / copied).collect()
        })
        .unwrap_or_default();
    ratios.sort_by(f64::total_cmp);
    figures.sort_by(|a, b| a.gbit_per_s().total_cmp(&b.gbit_per_s()));
    let median = figures[figures.len() / 2];
    if work == Work::Latency {
        let (median_us, p99_us) = (median.median_ns / 1e3, median.p99_ns / 1e3);
        println!("{title:<36} median {median_us:.2} µs, p99 {p99_us:.2} µs of {} reads", median.count);
        return;
    }
    println!(
        "{title:<36} {:>7.1} Gbit/s  {:>6.2} M/s  (worst {:.1}, best {:.1}), of the copying loop {:.2}",
        median.gbit_per_s(),
        median.count as f64 / median.seconds / 1e6,
        figures[0].gbit_per_s(),
        figures[figures.len() - 1].gbit_per_s(),
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN),
    );
}
