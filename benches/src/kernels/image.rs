//! The delta of a memory image: which pages differ, their XOR, packed; and what XBZRLE makes of the same pages.

use std::hint::black_box;
use std::thread;

use anyhow::ensure;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use velo_simd::Kernels;

use super::{Buffers, Effort, LARGEST, gb_per_s, read_both};
use crate::report::{Bars, Report};

const PAGE: usize = 4096;
/// What a thread packs at once.
const STEP: usize = 512 * PAGE;
/// What it compares before it goes back for what differs, which is still in the second cache then: a word of the bitmap.
const LOOK: usize = 64 * PAGE;

/// Every twentieth page differs, at random; half of those in fewer than 64 bytes.
fn make_dirty(image: &mut [u8]) {
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    let pages = image.len() / PAGE;
    let dirty = rand::seq::index::sample(&mut random, pages, pages / 20);
    for (at, page) in dirty.into_iter().enumerate() {
        let page = &mut image[page * PAGE..][..PAGE];
        if at % 2 == 0 {
            let len = random.random_range(1..64);
            let begin = random.random_range(0..PAGE - len);
            page[begin..begin + len].iter_mut().for_each(|byte| *byte = !*byte);
        } else {
            random.fill_bytes(page);
        }
    }
}

/// What a thread keeps from one image to the next.
#[derive(Default)]
struct Encoder {
    xor: Vec<u8>,
    numbers: Vec<u16>,
    packer: velo_simd::Packer,
    packed: Vec<u8>,
    out: Vec<u8>,
}

impl Encoder {
    /// The delta of a part: for each step the pages that differ, and their packed XOR.
    fn encode(&mut self, kernels: Kernels, old: &[u8], new: &[u8]) -> &[u8] {
        let Self { xor, numbers, packer, packed, out } = self;
        xor.resize(STEP, 0);
        out.clear();
        for (step, (old, new)) in old.chunks(STEP).zip(new.chunks(STEP)).enumerate() {
            let mut filled = 0;
            numbers.clear();
            for (look, (old, new)) in old.chunks(LOOK).zip(new.chunks(LOOK)).enumerate() {
                let mut pages = [0];
                kernels.differing_pages(old, new, &mut pages);
                while pages[0] != 0 {
                    let page = pages[0].trailing_zeros() as usize;
                    pages[0] &= pages[0] - 1;
                    let range = page * PAGE..old.len().min((page + 1) * PAGE);
                    let len = range.len();
                    kernels.xor_into(&mut xor[filled..filled + len], &old[range.clone()], &new[range]);
                    filled += len;
                    numbers.push((look * LOOK / PAGE + page) as u16);
                }
            }
            if numbers.is_empty() {
                continue;
            }
            out.extend_from_slice(&(step as u32).to_le_bytes());
            out.extend_from_slice(&(numbers.len() as u16).to_le_bytes());
            numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
            packed.clear();
            packer.pack(&xor[..filled], packed);
            out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
            out.extend_from_slice(packed);
        }
        out
    }
}

/// Undoes [`Encoder::encode`], to see that nothing is missing.
fn decode(encoded: &[u8], image: &mut [u8]) -> anyhow::Result<()> {
    let mut rest = encoded;
    let mut take = |len: usize| {
        let (head, tail) = rest.split_at_checked(len)?;
        rest = tail;
        Some(head)
    };
    while let Some(step) = take(4) {
        let step = u32::from_le_bytes(step.try_into()?) as usize;
        let short = || anyhow::anyhow!("a delta ends early");
        let count = u16::from_le_bytes(take(2).ok_or_else(short)?.try_into()?) as usize;
        let numbers = take(2 * count).ok_or_else(short)?;
        let len = u32::from_le_bytes(take(4).ok_or_else(short)?.try_into()?) as usize;
        let xor = velo_simd::unpack(take(len).ok_or_else(short)?, STEP)?;
        for (number, xor) in numbers.chunks(2).zip(xor.chunks(PAGE)) {
            let page = usize::from(u16::from_le_bytes(number.try_into()?));
            velo_simd::xor_in_place(&mut image[step * STEP + page * PAGE..][..xor.len()], xor);
        }
    }
    Ok(())
}

/// Halves of two images, each on a thread with what it keeps.
fn on_two_threads<S: Send>(
    states: &mut [S; 2],
    old: &[u8],
    new: &[u8],
    part: impl Fn(&mut S, &[u8], &[u8]) + Sync,
) {
    let half = old.len() / 2;
    let [first, second] = states;
    let part = &part;
    thread::scope(|scope| {
        scope.spawn(move || part(second, &old[half..], &new[half..]));
        part(first, &old[..half], &new[..half]);
    });
}

/// Bytes that QEMU's XBZRLE (`docs/devel/migration`) makes of a page: lengths of equal and of new bytes as LEB128, and the new
/// bytes; the page itself where that would be longer. Each page costs 8 bytes of address, as in its stream.
fn xbzrle_bytes(old: &[u8], new: &[u8]) -> usize {
    let varint = |value: usize| if value < 128 { 1 } else { 2 };
    let mut bytes = 0;
    let mut at = 0;
    while at < old.len() {
        let equal = old[at..].iter().zip(&new[at..]).take_while(|(old, new)| old == new).count();
        at += equal;
        if at == old.len() {
            break;
        }
        let changed = old[at..].iter().zip(&new[at..]).take_while(|(old, new)| old != new).count();
        at += changed;
        bytes += varint(equal) + varint(changed) + changed;
    }
    8 + bytes.min(old.len())
}

pub(super) fn measure(
    report: &mut Report,
    effort: Effort,
    kernels: Kernels,
    buffers: &mut Buffers,
) -> anyhow::Result<()> {
    if !report.wants("delta of an image of 256 MiB") {
        return Ok(());
    }
    let Buffers { a: old, b: new, .. } = buffers;
    new.copy_from_slice(old);
    make_dirty(new);
    let mut encoders = [Encoder::default(), Encoder::default()];
    let encode = |encoder: &mut Encoder, old: &[u8], new: &[u8]| {
        black_box(encoder.encode(kernels, old, new));
    };
    on_two_threads(&mut encoders, old, new, encode);
    let encoded = encoders.each_ref().map(|encoder| &encoder.out);
    let mut back = old.to_vec();
    let (first, second) = back.split_at_mut(LARGEST / 2);
    decode(encoded[0], first)?;
    decode(encoded[1], second)?;
    ensure!(back == new[..], "the delta does not give the new image");
    drop(back);

    let encoded_bytes: usize = encoded.iter().map(|encoded| encoded.len()).sum();
    let xbzrle: usize = old
        .chunks(PAGE)
        .zip(new.chunks(PAGE))
        .filter(|(old, new)| old != new)
        .map(|(old, new)| xbzrle_bytes(old, new))
        .sum();
    let taken = effort.race(&mut [
        ("encode", Box::new(|| on_two_threads(&mut encoders, old, new, encode)) as Box<dyn FnMut()>),
        (
            "read",
            Box::new(|| {
                on_two_threads(&mut [(), ()], old, new, |(), old, new| {
                    black_box(read_both(old, new));
                });
            }),
        ),
    ]);
    let [speed, limit] = [taken[0], taken[1]].map(|seconds| gb_per_s(LARGEST, seconds));
    // 100 Gbit/s of image, or eight tenths of what can be read at all where that is less.
    let bar = 12.5_f64.min(0.8 * limit);
    report.ratio(
        "delta of an image of 256 MiB, two threads",
        (speed, "GB/s"),
        format!(
            "the bar of {bar:.1} GB/s (12.5, or 0.8 of the read of both images, {limit:.1} GB/s of image)"
        ),
        speed / bar,
        Bars::new(1.0, 1.2),
    );
    report.ratio(
        "delta of an image of 256 MiB, size",
        (encoded_bytes as f64 / 1e6, "MB"),
        format!("XBZRLE {:.2} MB", xbzrle as f64 / 1e6),
        xbzrle as f64 / encoded_bytes as f64,
        Bars::new(1.0 / 1.05, 1.0),
    );
    Ok(())
}
