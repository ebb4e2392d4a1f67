//! Packed deltas: the zero runs of an XOR delta counted, the rest as it is, and LZ4 over that where it pays.
//!
//! | part | what |
//! |---|---|
//! | 1 byte | 1: runs; 2: runs compressed by LZ4 (block format) |
//! | varint | length of the delta |
//! | varint | only where LZ4 is used: length of the runs |
//! | rest | the runs |
//!
//! Runs: (varint: zero bytes; varint: literal bytes; the literal bytes), again and again until the delta's length is reached. The last
//! zeros stand alone, without the second number. Varints are LEB128, as short as possible.
//! After QEMU's XBZRLE (`docs/migration/xbzrle.txt`), with LZ4 behind it.

use crate::kernels::kernels;

/// The longest delta that is packed or unpacked, in bytes.
pub const MAX_DELTA_BYTES: usize = 1 << 30;

const RUNS: u8 = 1;
const LZ4: u8 = 2;
/// Zeros that are worth two numbers of their own.
const WORTH: usize = 4;
/// Runs shorter than this are not compressed.
const LZ4_FROM: usize = 64;
/// How many parts of long runs are tried, and of how many bytes.
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 1024;

/// Why bytes are not a packed delta that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// They do not follow the format, or end too early or too late.
    #[error("not a packed delta: {0}")]
    Format(&'static str),
    /// It declares more than the caller allows.
    #[error("a packed delta declares {declared} bytes where at most {most} are allowed")]
    TooLong {
        /// What it declares.
        declared: u64,
        /// What is allowed.
        most: usize,
    },
    /// It is one for content of another length.
    #[error("a delta of {delta} bytes does not fit content of {content} bytes")]
    Length {
        /// The delta's.
        delta: usize,
        /// The content's.
        content: usize,
    },
}

/// Packs a delta (an XOR of two buffers): a few bytes for one that is all zero, and hardly more than it has (16 and one for each
/// MiB) for one without zeros.
///
/// # Panics
/// If it is longer than [`MAX_DELTA_BYTES`].
pub fn pack(delta: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    Packer::default().pack(delta, &mut packed);
    packed
}

/// Packs many deltas one after the other, in memory that it keeps.
#[derive(Debug, Default)]
pub struct Packer {
    compressed: Vec<u8>,
}

impl Packer {
    /// Appends to `to` what [`pack`] gives for `delta`.
    ///
    /// # Panics
    /// If it is longer than [`MAX_DELTA_BYTES`].
    pub fn pack(&mut self, delta: &[u8], to: &mut Vec<u8>) {
        assert!(delta.len() <= MAX_DELTA_BYTES, "a delta to pack has at most {MAX_DELTA_BYTES} bytes");
        let start = to.len();
        to.push(RUNS);
        put(to, delta.len());
        let head = to.len();
        encode_runs(delta, to);
        let runs = &to[head..];
        if runs.len() < LZ4_FROM || !may_compress(runs) {
            return;
        }
        let most = lz4_flex::block::get_maximum_output_size(runs.len());
        if self.compressed.len() < most {
            self.compressed.resize(most, 0);
        }
        let len = runs.len();
        if let Ok(compressed) = lz4_flex::block::compress_into(runs, &mut self.compressed)
            && compressed < len - len / 16
        {
            to.truncate(start);
            to.push(LZ4);
            put(to, delta.len());
            put(to, len);
            to.extend_from_slice(&self.compressed[..compressed]);
        }
    }
}

/// Whether LZ4 may pay, by parts of what it would compress: whole pages of new content are often compressed already, or encrypted, and
/// to try all of that costs more than everything else here.
fn may_compress(runs: &[u8]) -> bool {
    if runs.len() <= 2 * SAMPLES * SAMPLE_BYTES {
        return true;
    }
    let mut room = [0; lz4_flex::block::get_maximum_output_size(SAMPLE_BYTES)];
    let step = runs.len() / SAMPLES;
    runs.chunks_exact(step).any(|part| {
        let sample = &part[(step - SAMPLE_BYTES) / 2..][..SAMPLE_BYTES];
        lz4_flex::block::compress_into(sample, &mut room)
            .is_ok_and(|len| len < SAMPLE_BYTES - SAMPLE_BYTES / 16)
    })
}

/// The length of the delta that `packed` declares, for who wants to decide before unpacking. Nothing else is checked.
///
/// # Errors
/// [`PackError::Format`].
pub fn packed_len(packed: &[u8]) -> Result<u64, PackError> {
    Header::parse(packed).map(|header| header.delta)
}

/// The delta that [`pack`] was given. Allocates no more than `most` bytes for it, and as much for what LZ4 hides.
///
/// # Errors
/// [`PackError::Format`] or [`PackError::TooLong`], before anything is allocated where it declares too much.
pub fn unpack(packed: &[u8], most: usize) -> Result<Vec<u8>, PackError> {
    let header = Header::parse(packed)?;
    let len = header.len_within(most)?;
    let mut delta = Vec::new();
    header.with_runs(len, |runs| {
        check_runs(runs, len)?;
        delta.resize(len, 0);
        for_each_literal(runs, len, |at, literal| delta[at..at + literal.len()].copy_from_slice(literal))
    })?;
    Ok(delta)
}

/// XORs a packed delta into `content`. `content` is untouched where this gives an error.
///
/// # Errors
/// [`PackError::Format`], or [`PackError::Length`] where the delta is not as long as `content`.
pub fn apply(packed: &[u8], content: &mut [u8]) -> Result<(), PackError> {
    let header = Header::parse(packed)?;
    let len = header.len_within(MAX_DELTA_BYTES)?;
    if len != content.len() {
        return Err(PackError::Length { delta: len, content: content.len() });
    }
    let kernels = kernels();
    header.with_runs(len, |runs| {
        check_runs(runs, len)?;
        for_each_literal(runs, len, |at, literal| {
            kernels.xor_in_place(&mut content[at..at + literal.len()], literal);
        })
    })
}

/// The most bytes of runs that a delta of `len` bytes can have. The first run costs up to 6 more than it covers; each other one saves four
/// zeros for two numbers, which are longer than that only where the literal has 2 MiB and more.
const fn most_runs(len: usize) -> usize {
    len + 8 + (len >> 20)
}

struct Header<'a> {
    delta: u64,
    /// Where LZ4 is used.
    runs: Option<u64>,
    rest: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(packed: &'a [u8]) -> Result<Self, PackError> {
        let (&form, mut rest) = packed.split_first().ok_or(PackError::Format("it is empty"))?;
        let delta = get(&mut rest)?;
        let runs = match form {
            RUNS => None,
            LZ4 => Some(get(&mut rest)?),
            _ => return Err(PackError::Format("its form is unknown")),
        };
        Ok(Self { delta, runs, rest })
    }

    fn len_within(&self, most: usize) -> Result<usize, PackError> {
        let most = most.min(MAX_DELTA_BYTES);
        let len = usize::try_from(self.delta).ok().filter(|&len| len <= most);
        len.ok_or(PackError::TooLong { declared: self.delta, most })
    }

    fn with_runs(
        &self,
        len: usize,
        mut f: impl FnMut(&[u8]) -> Result<(), PackError>,
    ) -> Result<(), PackError> {
        let Some(declared) = self.runs else { return f(self.rest) };
        let declared = usize::try_from(declared).ok().filter(|&runs| runs <= most_runs(len));
        let declared = declared.ok_or(PackError::Format("its runs are longer than any for its length"))?;
        let mut runs = vec![0; declared];
        match lz4_flex::block::decompress_into(self.rest, &mut runs) {
            Ok(found) if found == declared => f(&runs),
            _ => Err(PackError::Format("its LZ4 block is damaged")),
        }
    }
}

fn encode_runs(delta: &[u8], runs: &mut Vec<u8>) {
    let kernels = kernels();
    let mut at = 0;
    while at < delta.len() {
        let zeros = kernels.leading_zeros(&delta[at..]);
        put(runs, zeros);
        at += zeros;
        if at == delta.len() {
            break;
        }
        let literal = kernels.find_zero_run(&delta[at..], WORTH);
        put(runs, literal);
        runs.extend_from_slice(&delta[at..at + literal]);
        at += literal;
    }
}

fn check_runs(runs: &[u8], len: usize) -> Result<(), PackError> {
    for_each_literal(runs, len, |_, _| {})
}

/// Walks over runs that cover exactly `len` bytes; `f` gets the literals with their places, all of them below `len`.
fn for_each_literal(mut runs: &[u8], len: usize, mut f: impl FnMut(usize, &[u8])) -> Result<(), PackError> {
    const PAST: PackError = PackError::Format("its runs go past its length");
    let mut at = 0;
    while at < len {
        let zeros = usize::try_from(get(&mut runs)?).ok().filter(|&zeros| zeros <= len - at).ok_or(PAST)?;
        at += zeros;
        if at == len {
            break;
        }
        let literal = usize::try_from(get(&mut runs)?).ok().filter(|&more| more <= len - at).ok_or(PAST)?;
        let (bytes, rest) =
            runs.split_at_checked(literal).ok_or(PackError::Format("a literal is cut off"))?;
        if literal == 0 {
            return Err(PackError::Format("a literal is empty"));
        }
        f(at, bytes);
        runs = rest;
        at += literal;
    }
    if runs.is_empty() { Ok(()) } else { Err(PackError::Format("something follows its runs")) }
}

fn put(to: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn get(from: &mut &[u8]) -> Result<u64, PackError> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = from.split_first().ok_or(PackError::Format("a number is cut off"))?;
        *from = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if byte == 0 && shift > 0 {
                Err(PackError::Format("a number is longer than it need be"))
            } else {
                Ok(value)
            };
        }
    }
    Err(PackError::Format("a number is too large"))
}
