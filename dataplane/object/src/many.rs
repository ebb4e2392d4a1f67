//! The hashes of many small inputs at once.
//!
//! An input of 4 KiB has four chunks of 1 KiB, which is half of the lanes that AVX2 has and a quarter of those of
//! AVX-512. Here the lanes are filled with the chunks that stand at the same place of different inputs, and then with
//! their parents, level by level. Chunks and parents are those of the BLAKE3 paper, sections 2.4 and 2.5.

use blake3::hazmat::HasherExt;
use blake3::platform::Platform;
use blake3::{BLOCK_LEN, CHUNK_LEN, Hasher, IncrementCounter, OUT_LEN};

use crate::id::BlobId;

type Value = [u8; OUT_LEN];

/// Fill the lanes by themselves.
const LARGE_BYTES: usize = 16 * CHUNK_LEN;
/// Inputs whose values are in memory at a time.
const TOGETHER: usize = 64;
/// The initial state of BLAKE3 (that of SHA-256), which is the key where there is none.
const KEY: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;

impl BlobId {
    /// The ids of many contents: what [`BlobId::of`] gives for each, faster where they have 2 to 15 KiB.
    pub fn of_many(inputs: &[&[u8]]) -> Vec<Self> {
        let platform = Platform::detect();
        inputs.chunks(TOGETHER).flat_map(|inputs| together(platform, inputs)).collect()
    }
}

fn together(platform: Platform, inputs: &[&[u8]]) -> Vec<BlobId> {
    // Of each input the values of its chunks, then of their parents; none where it is hashed by itself.
    let mut values: Vec<Vec<Value>> = inputs.iter().map(|input| Vec::with_capacity(room(input))).collect();
    for at in 0..LARGE_BYTES / CHUNK_LEN {
        let (whose, chunks): (Vec<usize>, Vec<&[u8; CHUNK_LEN]>) = inputs
            .iter()
            .enumerate()
            .filter(|(_, input)| room(input) > 0)
            .filter_map(|(whose, input)| Some((whose, input.get(at * CHUNK_LEN..)?.first_chunk()?)))
            .unzip();
        let flags = (0, CHUNK_START, CHUNK_END);
        for (whose, value) in whose.into_iter().zip(hash(platform, &chunks, at as u64, flags)) {
            values[whose].push(value);
        }
    }
    for (input, values) in inputs.iter().zip(&mut values).filter(|(input, _)| room(input) > 0) {
        let rest = &input[values.len() * CHUNK_LEN..];
        if !rest.is_empty() {
            let mut hasher = Hasher::new();
            hasher.set_input_offset((values.len() * CHUNK_LEN) as u64).update(rest);
            values.push(hasher.finalize_non_root());
        }
    }
    while values.iter().any(|values| values.len() > 1) {
        for root in [false, true] {
            merge(platform, &mut values, root);
        }
    }
    let id = |(input, values): (&&[u8], Vec<Value>)| {
        values.first().map_or_else(|| BlobId::of(input), |value| BlobId::from_bytes(*value))
    };
    inputs.iter().zip(values).map(id).collect()
}

/// How many chunks an input has; 0: it is hashed by itself.
fn room(input: &[u8]) -> usize {
    if (CHUNK_LEN + 1..LARGE_BYTES).contains(&input.len()) { input.len().div_ceil(CHUNK_LEN) } else { 0 }
}

/// One level of parents: of the inputs with two values (then it is the root), or of those with more. An odd one stays.
fn merge(platform: Platform, values: &mut [Vec<Value>], root: bool) {
    let of_level = |values: &&mut Vec<Value>| if root { values.len() == 2 } else { values.len() > 2 };
    let blocks: Vec<[u8; BLOCK_LEN]> = values
        .iter_mut()
        .filter(of_level)
        .flat_map(|values| {
            values.as_chunks::<2>().0.iter().map(|pair| *pair.as_flattened().first_chunk().expect("64"))
        })
        .collect();
    let flags = (if root { PARENT | ROOT } else { PARENT }, 0, 0);
    let mut parents = hash(platform, &blocks.iter().collect::<Vec<_>>(), 0, flags).into_iter();
    for values in values.iter_mut().filter(of_level) {
        let odd = values.as_chunks::<2>().1.first().copied();
        let pairs = values.len() / 2;
        values.clear();
        values.extend(parents.by_ref().take(pairs));
        values.extend(odd);
    }
}

/// The values of blocks that stand at the same place; the flags of all, and those of their first and last 64 bytes.
fn hash<const N: usize>(
    platform: Platform,
    inputs: &[&[u8; N]],
    counter: u64,
    (flags, start, end): (u8, u8, u8),
) -> Vec<Value> {
    let mut out = vec![0; inputs.len() * OUT_LEN];
    platform.hash_many(inputs, &KEY, counter, IncrementCounter::No, flags, start, end, &mut out);
    out.as_chunks().0.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_are_what_each_is_alone() {
        let content: Vec<u8> =
            (0..20 << 10).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let around = (0..=20usize).flat_map(|chunks| {
            let at = chunks * CHUNK_LEN;
            [at.saturating_sub(1), at, at + 1, at + 500]
        });
        let lengths: Vec<usize> = around.map(|len| len.min(content.len())).collect();
        for step in 1..5 {
            // In other groups each time.
            let inputs: Vec<&[u8]> = lengths
                .iter()
                .cycle()
                .step_by(step)
                .take(200)
                .map(|len| &content[content.len() - len..])
                .collect();
            let alone: Vec<BlobId> = inputs.iter().map(|input| BlobId::of(input)).collect();
            assert_eq!(BlobId::of_many(&inputs), alone);
        }
        assert!(BlobId::of_many(&[]).is_empty());
    }
}
