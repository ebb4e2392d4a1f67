//! The hashes of a blob's pieces, and what a change of a few pieces costs.

use std::hint::black_box;
use std::thread;

use velo_object::{BlobId, Outboard, OutboardBuilder, PIECE_BYTES, chaining_value};

use super::{Call, Effort, gb_per_s};
use crate::report::{Bars, Report};

pub(super) fn measure(report: &mut Report, effort: Effort, quick: bool) -> anyhow::Result<()> {
    if report.wants("chaining values of pieces") {
        pieces(report, effort);
    }
    if report.wants("merging chaining values") {
        for (name, count) in [("1 GiB", 1u64 << 10), ("2 TiB", 1 << 21)] {
            if quick && count > 1 << 10 {
                continue;
            }
            merge(report, effort, name, count)?;
        }
    }
    if report.wants("BLAKE3 of small inputs") {
        small_inputs(report, effort);
    }
    Ok(())
}

fn pieces(report: &mut Report, effort: Effort) {
    const COUNT: u64 = 64;
    let content: Vec<u8> = (0..COUNT * PIECE_BYTES).map(|at| ((at * 31) >> 7) as u8).collect();
    let all: Vec<&[u8]> = content.chunks(PIECE_BYTES as usize).collect();
    let hash = |first: usize, pieces: &[&[u8]]| {
        for (at, piece) in pieces.iter().enumerate() {
            black_box(chaining_value((first + at) as u64, piece));
        }
    };
    let half = all.len() / 2;
    let taken = effort.race(&mut [
        ("one thread", Box::new(|| hash(0, &all)) as Box<dyn FnMut()>),
        (
            "two threads",
            Box::new(|| {
                thread::scope(|scope| {
                    scope.spawn(|| hash(half, &all[half..]));
                    hash(0, &all[..half]);
                });
            }),
        ),
    ]);
    let [one, two] = [taken[0], taken[1]].map(|seconds| gb_per_s(content.len(), seconds));
    report.ratio(
        "chaining values of pieces, two threads",
        (two, "GB/s"),
        format!("one thread {one:.2} GB/s"),
        two / one,
        Bars { floor: None, goal: Some(2.0) },
    );
}

/// A blob of `count` pieces of which one changed: its hash is new, and all values are merged again.
fn merge(report: &mut Report, effort: Effort, name: &str, count: u64) -> anyhow::Result<()> {
    let size_bytes = count * PIECE_BYTES;
    let build = || {
        let mut builder = OutboardBuilder::new(size_bytes);
        for index in 0..count {
            let mut value = [0x5a; 32];
            value[..8].copy_from_slice(&index.to_le_bytes());
            builder.set(index, value);
        }
        builder.finish()
    };
    let outboard = build();
    let (id, values): (BlobId, Vec<[u8; 32]>) = (outboard.id(), outboard.values().to_vec());
    anyhow::ensure!(Outboard::from_values(id, size_bytes, values.clone()).is_ok(), "values give their id");
    let piece = vec![3u8; PIECE_BYTES as usize];
    let mut calls: Vec<Call<'_>> = vec![
        ("merge", Box::new(|| drop(black_box(Outboard::from_values(id, size_bytes, values.clone()))))),
        (
            "one piece",
            Box::new(|| {
                black_box(chaining_value(0, &piece));
            }),
        ),
    ];
    let taken = effort.race(&mut calls);
    report.ratio(
        &format!("merging chaining values of {name}"),
        (taken[0] * 1e3, "ms"),
        format!("hashing one changed piece {:.3} ms", taken[1] * 1e3),
        taken[1] / taken[0],
        Bars { floor: None, goal: None },
    );
    Ok(())
}

/// What packs of small files need: many inputs of 4 KiB, in the lanes of one vector, beside each by itself.
fn small_inputs(report: &mut Report, effort: Effort) {
    let content = vec![9u8; 1 << 20];
    let inputs: Vec<&[u8]> = content.chunks(4096).collect();
    let taken = effort.race(&mut [
        (
            "together",
            Box::new(|| {
                black_box(BlobId::of_many(black_box(&inputs)));
            }) as Box<dyn FnMut()>,
        ),
        (
            "alone",
            Box::new(|| {
                inputs.iter().for_each(|input| {
                    black_box(blake3::hash(input));
                });
            }),
        ),
        (
            "one",
            Box::new(|| {
                black_box(blake3::hash(&content));
            }),
        ),
    ]);
    let [together, alone, one] =
        [taken[0], taken[1], taken[2]].map(|seconds| gb_per_s(content.len(), seconds));
    for (name, speed) in [("each by itself", alone), ("together", together)] {
        report.ratio(
            &format!("BLAKE3 of inputs of 4 KiB, {name}"),
            (speed, "GB/s"),
            format!("one input of 1 MiB {one:.2} GB/s"),
            speed / one,
            Bars { floor: None, goal: (name == "together").then_some(0.8) },
        );
    }
}
