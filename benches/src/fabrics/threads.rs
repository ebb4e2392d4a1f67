//! What a piece costs between threads: one item through a ring, one buffer from the pool.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::pool::{Pool, PoolOptions};
use velo_fabric::ring::{Sleeper, ring};

use crate::report::Report;

/// Entries of the ring, as velod's have.
const RING: usize = 4096;
/// Items pushed and popped at once.
const BATCH: usize = 64;

/// Both rows.
pub(super) fn measure(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    let items = if quick { 2_000_000 } else { 20_000_000 };
    if report.wants("an item through a ring between two threads") {
        let mut taken = Vec::new();
        for _ in 0..rounds {
            taken.push(through_a_ring(items)?);
        }
        report.at_most(
            "an item through a ring between two threads, in batches",
            super::median(taken),
            "ns",
            50.0,
            10.0,
        );
    }
    if report.wants("a buffer from the pool") {
        let mut taken = Vec::new();
        for _ in 0..rounds {
            taken.push(from_the_pool(items / 10)?);
        }
        report.at_most("a buffer from the pool and back", super::median(taken), "ns", 100.0, 40.0);
    }
    Ok(())
}

/// Nanoseconds for one item of 16 bytes.
fn through_a_ring(items: u64) -> anyhow::Result<f64> {
    let sleeper = Sleeper::new()?;
    let (mut producer, mut consumer) = ring::<[u64; 2]>(RING, sleeper.waker());
    let began = Instant::now();
    let sum = thread::scope(|scope| {
        let consuming = scope.spawn(move || {
            let (mut sum, mut seen, mut popped) = (0u64, 0, Vec::with_capacity(BATCH));
            while seen < items {
                if consumer.pop_batch(&mut popped, BATCH) == 0 {
                    let nothing = || !consumer.is_empty() || consumer.is_abandoned();
                    sleeper.sleep_unless(nothing, &[], Some(Duration::from_millis(100)))?;
                    continue;
                }
                seen += popped.len() as u64;
                sum = popped.drain(..).fold(sum, |sum, item| sum.wrapping_add(item[0]));
            }
            Ok::<_, std::io::Error>(sum)
        });
        let mut batch = Vec::with_capacity(BATCH);
        let mut next = 0;
        while next < items || !batch.is_empty() {
            while batch.len() < BATCH && next < items {
                batch.push([next, next]);
                next += 1;
            }
            if producer.push_batch(&mut batch) == 0 {
                // With fewer cores than threads the other side must get its turn.
                thread::yield_now();
            }
        }
        consuming.join().expect("no panic")
    })?;
    let taken = began.elapsed();
    anyhow::ensure!(sum == items * (items - 1) / 2, "the ring lost an item");
    Ok(taken.as_nanos() as f64 / items as f64)
}

/// Nanoseconds for taking one buffer and giving it back, with 32 of them out.
fn from_the_pool(count: u64) -> anyhow::Result<f64> {
    let pool = Pool::with(PoolOptions { bytes: 64 << 20, huge_pages: true, populate: true })?;
    let held: Vec<_> = std::iter::from_fn(|| pool.take()).take(32).collect();
    let began = Instant::now();
    for _ in 0..count {
        black_box(pool.take());
    }
    let taken = began.elapsed();
    anyhow::ensure!(held.len() == 32 && pool.counters().misses == 0, "the pool ran dry");
    Ok(taken.as_nanos() as f64 / count as f64)
}
