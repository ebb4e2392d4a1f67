//! Runs drawn by lot, a row for each share of loss.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use velo_fabric::packet::scenario::{LOSSES, Outcome, Transfer};

fn seeds() -> u64 {
    asked("VELO_SEEDS").unwrap_or(if std::env::var_os("VELO_FULL").is_some() { 1_000 } else { 12 })
}

fn asked<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// What is wrong with an outcome, if anything.
fn fault(outcome: &Outcome, transfer: &Transfer) -> Option<String> {
    if let Some(wrong) = &outcome.wrong {
        return Some(wrong.clone());
    }
    if outcome.complete {
        return (outcome.bytes != transfer.bytes)
            .then(|| format!("{} of {} bytes", outcome.bytes, transfer.bytes));
    }
    // Neither complete nor ended by an error that the protocol reported.
    match &outcome.error {
        Some(error) if !error.starts_with("not done") => None,
        other => Some(format!("{other:?}")),
    }
}

#[test]
fn every_transfer_ends_with_the_right_bytes_or_a_typed_error() {
    if let (Some(seed), Some(loss)) = (asked("VELO_SEED"), asked("VELO_LOSS")) {
        let transfer = Transfer::drawn(seed, loss);
        println!("{transfer:#?}");
        let outcome = transfer.run();
        println!(
            "{outcome:#?}\n{:.3} of the rate",
            outcome.goodput() / transfer.down.rate_bytes_per_s as f64
        );
        assert_eq!(fault(&outcome, &transfer), None);
        return;
    }
    let mut faults = Vec::new();
    for loss in LOSSES {
        let begun = Instant::now();
        let next = AtomicU64::new(0);
        let row = || {
            let mut done = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds() {
                    return done;
                }
                let transfer = Transfer::drawn(seed, loss);
                let outcome = transfer.run();
                done.push((seed, transfer, outcome));
            }
        };
        let done: Vec<_> = std::thread::scope(|scope| {
            let other = scope.spawn(row);
            let mut done = row();
            done.extend(other.join().expect("a run panicked"));
            done
        });
        let complete = done.iter().filter(|(.., outcome)| outcome.complete).count();
        println!(
            "loss {:>4} %: {complete} of {} complete, the others with a typed error; {:.1} s",
            loss * 100.0,
            done.len(),
            begun.elapsed().as_secs_f64()
        );
        for (seed, transfer, outcome) in &done {
            if let Some(error) = &outcome.error {
                println!("  seed {seed}: {error}");
            }
            if let Some(fault) = fault(outcome, transfer) {
                faults.push(format!("VELO_SEED={seed} VELO_LOSS={loss}: {fault}"));
            }
        }
        // An error is allowed where it is typed, but a protocol that gave up would have only those.
        assert!(complete * 100 >= done.len() * 98, "{complete} of {} at {loss}", done.len());
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
