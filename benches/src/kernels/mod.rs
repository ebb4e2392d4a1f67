//! The area `kernels`: the innermost loops beside memcpy of the same bytes, a read of the same bytes, and the loops that a
//! compiler makes of plain code.
//!
//! What is compared runs in turns: each round runs every contender for some milliseconds, and the medians of the rounds are
//! compared. A "GB/s" is of output for XOR and memcpy, of input for scans and checksums (of one of the two, where there
//! are two).

mod image;
mod merkle;

use std::hint::black_box;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{Duration, Instant};

use rand::{RngCore as _, SeedableRng as _};
use velo_object::PageBuffer;
use velo_simd::{Gear, Kernels};

use crate::report::{Bars, Report};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const LARGEST: usize = 256 * MIB;

/// One of those that are compared: a name, and one call of it.
pub(crate) type Call<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// How long and how often.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    rounds: usize,
    sample: Duration,
}

impl Effort {
    /// The median seconds of one call of each, in their order.
    pub fn race(self, calls: &mut [Call<'_>]) -> Vec<f64> {
        let mut repeat = Vec::new();
        for (_, call) in calls.iter_mut() {
            call();
            let began = Instant::now();
            call();
            let one = began.elapsed().max(Duration::from_nanos(20));
            repeat.push((self.sample.as_nanos() / one.as_nanos()).clamp(1, 1_000_000) as u32);
        }
        let mut taken = vec![Vec::new(); calls.len()];
        for _ in 0..self.rounds {
            for (at, (_, call)) in calls.iter_mut().enumerate() {
                let began = Instant::now();
                (0..repeat[at]).for_each(|_| call());
                taken[at].push(began.elapsed().as_secs_f64() / f64::from(repeat[at]));
            }
        }
        taken.into_iter().map(median).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn gb_per_s(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / 1e9 / seconds
}

/// Measures the whole area.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let effort = if quick {
        Effort { rounds: 3, sample: Duration::from_millis(3) }
    } else {
        Effort { rounds: 11, sample: Duration::from_millis(15) }
    };
    let kernels = velo_simd::kernels();
    report.note(format!("level: {}", kernels.level()));
    let mut buffers = Buffers::new();
    for size in [KIB, 4 * KIB, 64 * KIB, MIB, LARGEST] {
        every_kernel(report, effort, kernels, &mut buffers, size);
    }
    small_calls(report, effort, kernels, &mut buffers);
    against_limits(report, effort, kernels, &mut buffers);
    checksums(report, effort, &mut buffers);
    image::measure(report, effort, kernels, &mut buffers)?;
    drop(buffers);
    merkle::measure(report, effort, quick)
}

/// Three buffers of the largest size; `a` and `b` are equal but for one byte in each 64 KiB.
pub(crate) struct Buffers {
    pub a: PageBuffer,
    pub b: PageBuffer,
    pub out: PageBuffer,
}

impl Buffers {
    fn new() -> Self {
        let (mut a, mut b) = (PageBuffer::new(LARGEST), PageBuffer::new(LARGEST));
        rand::rngs::SmallRng::seed_from_u64(1).fill_bytes(&mut a);
        b.copy_from_slice(&a);
        b.iter_mut().skip(40_000).step_by(64 * KIB).for_each(|byte| *byte ^= 0x55);
        let mut out = PageBuffer::new(LARGEST);
        out.fill(1);
        Self { a, b, out }
    }
}

fn size_name(size: usize) -> String {
    if size >= MIB { format!("{} MiB", size / MIB) } else { format!("{} KiB", size / KIB) }
}

/// Every kernel at one size, as a ratio to memcpy.
fn every_kernel(report: &mut Report, effort: Effort, kernels: Kernels, buffers: &mut Buffers, size: usize) {
    let name = size_name(size);
    if !report.wants(&name) {
        return;
    }
    let (a, b) = (&buffers.a[..size], &buffers.b[..size]);
    let out = std::cell::RefCell::new(&mut buffers.out[..size]);
    let lines = std::cell::RefCell::new(vec![0; velo_simd::line_words(size)]);
    let pages = std::cell::RefCell::new(vec![0; velo_simd::page_words(size)]);
    let mut zeros = PageBuffer::new(size);
    // Written once, or all of it would be one page.
    zeros.fill(1);
    zeros.fill(0);
    let mut calls: Vec<Call<'_>> = vec![
        ("memcpy", Box::new(|| out.borrow_mut().copy_from_slice(black_box(a)))),
        ("XOR", Box::new(|| kernels.xor_into(&mut out.borrow_mut(), black_box(a), b))),
        ("XOR in place", Box::new(|| kernels.xor_in_place(&mut out.borrow_mut(), black_box(b)))),
        (
            "XOR with bitmap of lines",
            Box::new(|| {
                kernels.xor_into_lines(&mut out.borrow_mut(), black_box(a), b, &mut lines.borrow_mut());
            }),
        ),
        (
            "bitmap of differing lines",
            Box::new(|| kernels.differing_lines(black_box(a), b, &mut lines.borrow_mut())),
        ),
        (
            "bitmap of differing pages",
            Box::new(|| {
                black_box(kernels.differing_pages(black_box(a), b, &mut pages.borrow_mut()));
            }),
        ),
        (
            "all zero?",
            Box::new(|| {
                black_box(kernels.is_zero(black_box(&zeros)));
            }),
        ),
        ("copy with CRC32C", {
            Box::new(|| {
                black_box(velo_simd::copy_crc32c(&mut out.borrow_mut(), black_box(a)));
            })
        }),
        (
            "CRC32C",
            Box::new(|| {
                black_box(velo_simd::crc32c(black_box(a)));
            }),
        ),
        (
            "CRC-32",
            Box::new(|| {
                black_box(velo_simd::crc32(black_box(a)));
            }),
        ),
        (
            "Adler-32",
            Box::new(|| {
                black_box(kernels.adler32(1, black_box(a)));
            }),
        ),
        (
            "Fletcher-32",
            Box::new(|| {
                black_box(kernels.fletcher32(0, black_box(a)));
            }),
        ),
        (
            "xxHash32",
            Box::new(|| {
                black_box(velo_simd::xxh32(black_box(a), 0));
            }),
        ),
        (
            "xxHash64",
            Box::new(|| {
                black_box(velo_simd::xxh64(black_box(a), 0));
            }),
        ),
        (
            "XXH3",
            Box::new(|| {
                black_box(velo_simd::xxh3_64(black_box(a)));
            }),
        ),
        (
            // A mask that no state meets, so that all bytes are rolled over.
            "gear hash",
            Box::new(|| {
                black_box(Gear::new().find(black_box(a), u64::MAX));
            }),
        ),
        (
            "BLAKE3",
            Box::new(|| {
                black_box(blake3::hash(black_box(a)));
            }),
        ),
    ];
    let taken = effort.race(&mut calls);
    let memcpy = gb_per_s(size, taken[0]);
    let names: Vec<_> = calls.iter().map(|(name, _)| *name).collect();
    for (kernel, seconds) in names.into_iter().zip(taken) {
        let speed = gb_per_s(size, seconds);
        report.ratio(
            &format!("{kernel}, {name}"),
            (speed, "GB/s"),
            format!("memcpy {memcpy:.1} GB/s"),
            speed / memcpy,
            Bars { floor: None, goal: None },
        );
    }
}

/// What a call costs at 1 KiB.
fn small_calls(report: &mut Report, effort: Effort, kernels: Kernels, buffers: &mut Buffers) {
    if !report.wants("ns a call, 1 KiB") {
        return;
    }
    let (a, b, out) = (&buffers.a[..KIB], &buffers.b[..KIB], &mut buffers.out[..KIB]);
    let taken = effort.race(&mut [
        ("XOR", Box::new(|| kernels.xor_into(out, black_box(a), b))),
        (
            "CRC32C",
            Box::new(|| {
                black_box(velo_simd::crc32c(black_box(a)));
            }),
        ),
    ]);
    report.at_most("XOR delta, ns a call, 1 KiB", taken[0] * 1e9, "ns", 100.0, 50.0);
    report.at_most("CRC32C, ns a call, 1 KiB", taken[1] * 1e9, "ns", 100.0, 50.0);
}

/// `out = a ^ b` and which lines differ, byte by byte; the fence, no instruction by itself, keeps the compiler from vectorising.
fn byte_wise(out: &mut [u8], a: &[u8], b: &[u8], lines: &mut [u64]) {
    for (word, ((out, a), b)) in
        lines.iter_mut().zip(out.chunks_mut(4096).zip(a.chunks(4096)).zip(b.chunks(4096)))
    {
        *word = 0;
        for (at, ((out, a), b)) in out.iter_mut().zip(a).zip(b).enumerate() {
            let byte = *a ^ *b;
            compiler_fence(Ordering::SeqCst);
            *out = byte;
            if byte != 0 {
                *word |= 1 << (at / 64);
            }
        }
    }
}

/// Two streams in, one out, with what a plain loop over words becomes: the limit of memory for an XOR.
fn three_streams(out: &mut [u8], a: &[u8], b: &[u8]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a.wrapping_add(*b);
    }
}

/// The sum of the words of two buffers: a read of both, vectorised by the compiler.
pub(crate) fn read_both(a: &[u8], b: &[u8]) -> u64 {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let mut sums = [0u64; 16];
    for (a, b) in a.chunks_exact(128).zip(b.chunks_exact(128)) {
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = sum.wrapping_add(word(&a[8 * at..8 * at + 8])).wrapping_add(word(&b[8 * at..8 * at + 8]));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

fn against_limits(report: &mut Report, effort: Effort, kernels: Kernels, buffers: &mut Buffers) {
    for size in [4 * KIB, 64 * KIB] {
        let row = format!("XOR with bitmap against bytes, {}", size_name(size));
        if !report.wants(&row) {
            continue;
        }
        let (a, b) = (&buffers.a[..size], &buffers.b[..size]);
        let out = std::cell::RefCell::new(&mut buffers.out[..size]);
        let lines = std::cell::RefCell::new(vec![0; velo_simd::line_words(size)]);
        let taken = effort.race(&mut [
            (
                "kernel",
                Box::new(|| {
                    kernels.xor_into_lines(&mut out.borrow_mut(), black_box(a), b, &mut lines.borrow_mut());
                }),
            ),
            (
                "bytes",
                Box::new(|| byte_wise(&mut out.borrow_mut(), black_box(a), b, &mut lines.borrow_mut())),
            ),
        ]);
        let [kernel, bytes] = [taken[0], taken[1]].map(|seconds| gb_per_s(size, seconds));
        report.ratio(
            &row,
            (kernel, "GB/s"),
            format!("byte by byte {bytes:.1} GB/s"),
            kernel / bytes,
            Bars::new(5.0, 10.0),
        );
    }
    let (a, b) = (&buffers.a[..], &buffers.b[..]);
    let out = std::cell::RefCell::new(&mut buffers.out[..]);
    if report.wants("XOR with bitmap against memory, 256 MiB") {
        let mut lines = vec![0; velo_simd::line_words(LARGEST)];
        let taken = effort.race(&mut [
            (
                "kernel",
                Box::new(|| kernels.xor_into_lines(&mut out.borrow_mut(), black_box(a), b, &mut lines)),
            ),
            ("three streams", Box::new(|| three_streams(&mut out.borrow_mut(), black_box(a), b))),
        ]);
        let [kernel, limit] = [taken[0], taken[1]].map(|seconds| gb_per_s(LARGEST, seconds));
        report.ratio(
            "XOR with bitmap against memory, 256 MiB",
            (kernel, "GB/s"),
            format!("three streams {limit:.1} GB/s"),
            kernel / limit,
            Bars::new(0.8, 1.0),
        );
    }
    if report.wants("differing pages against memory, 256 MiB") {
        let mut pages = vec![0; velo_simd::page_words(LARGEST)];
        let same = a.to_vec();
        let taken = effort.race(&mut [
            (
                "kernel",
                Box::new(|| {
                    black_box(kernels.differing_pages(black_box(a), &same, &mut pages));
                }),
            ),
            (
                "read",
                Box::new(|| {
                    black_box(read_both(black_box(a), &same));
                }),
            ),
        ]);
        let [kernel, limit] = [taken[0], taken[1]].map(|seconds| gb_per_s(2 * LARGEST, seconds));
        report.ratio(
            "differing pages against memory, 256 MiB",
            (kernel, "GB/s"),
            format!("a read of both {limit:.1} GB/s"),
            kernel / limit,
            Bars::new(0.9, 1.0),
        );
    }
}

fn checksums(report: &mut Report, effort: Effort, buffers: &mut Buffers) {
    if report.wants("CRC32C against crates, 64 KiB") {
        let a = &buffers.a[..64 * KIB];
        let taken = effort.race(&mut [
            (
                "velo",
                Box::new(|| {
                    black_box(velo_simd::crc32c(black_box(a)));
                }),
            ),
            (
                "crc32c",
                Box::new(|| {
                    black_box(crc32c::crc32c(black_box(a)));
                }),
            ),
            (
                "crc-fast",
                Box::new(|| {
                    black_box(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, black_box(a)));
                }),
            ),
        ]);
        let speeds: Vec<_> = taken.into_iter().map(|seconds| gb_per_s(a.len(), seconds)).collect();
        // It is crc-fast: 1 but for the noise of the clock.
        report.ratio(
            "CRC32C against crates, 64 KiB",
            (speeds[0], "GB/s"),
            format!("crc32c {:.1}, crc-fast {:.1} GB/s", speeds[1], speeds[2]),
            speeds[0] / speeds[1].max(speeds[2]),
            Bars::new(0.97, 1.0),
        );
    }
    for (size, most) in [(8 * KIB, 1.2), (64 * MIB, 1.25)] {
        let row = format!("copy with CRC32C, {}, seconds", size_name(size));
        if !report.wants(&row) {
            continue;
        }
        let a = &buffers.a[..size];
        let out = std::cell::RefCell::new(&mut buffers.out[..size]);
        let taken = effort.race(&mut [
            ("both", {
                Box::new(|| {
                    black_box(velo_simd::copy_crc32c(&mut out.borrow_mut(), black_box(a)));
                })
            }),
            ("memcpy", Box::new(|| out.borrow_mut().copy_from_slice(black_box(a)))),
            (
                "CRC",
                Box::new(|| {
                    black_box(velo_simd::crc32c(black_box(a)));
                }),
            ),
        ]);
        // In cache the slower of the two is what it is held against; in memory, the copy.
        let against = if size > MIB { taken[1] } else { taken[1].max(taken[2]) };
        report.ratio(
            &row,
            (taken[0] * 1e6, "µs"),
            format!("memcpy {:.1} µs, CRC32C {:.1} µs", taken[1] * 1e6, taken[2] * 1e6),
            against / taken[0],
            Bars::new(1.0 / most, 1.0),
        );
    }
}
