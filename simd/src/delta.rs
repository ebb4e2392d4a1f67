//! XOR deltas: what differs between two buffers of one length, and which 64-byte lines of it.

use crate::vector::Vector;

/// Bytes in a line, the grain of a line bitmap. A word of the bitmap covers 64 lines: one 4 KiB page.
pub(crate) const LINE_BYTES: usize = 64;
pub(crate) const PAGE_BYTES: usize = 4096;
/// How far ahead of a load its line is asked for, in streams larger than the caches.
const AHEAD_BYTES: usize = 1024;
/// The same where two streams are only read.
const AHEAD_OF_SCAN_BYTES: usize = 512;

/// `dst = a ^ b` for `len` bytes; `dst` may be `a`, but must not overlap `a` or `b` in another way.
///
/// # Safety
/// `a` and `b` readable, `dst` writable for `len` bytes; and the trait's.
#[inline(always)]
unsafe fn xor_raw<V: Vector>(dst: *mut u8, a: *const u8, b: *const u8, len: usize) {
    // SAFETY: all accesses are below `len`, by the conditions of the loops.
    unsafe {
        if len < V::BYTES {
            for at in 0..len {
                dst.add(at).write(a.add(at).read() ^ b.add(at).read());
            }
            return;
        }
        // The last vector is computed first, from what is there before `dst` is written, and stored last.
        let end = len - V::BYTES;
        let last = V::load(a.add(end)).xor(V::load(b.add(end)));
        let mut at = 0;
        while at + 4 * V::BYTES <= len {
            let x0 = V::load(a.add(at)).xor(V::load(b.add(at)));
            let x1 = V::load(a.add(at + V::BYTES)).xor(V::load(b.add(at + V::BYTES)));
            let x2 = V::load(a.add(at + 2 * V::BYTES)).xor(V::load(b.add(at + 2 * V::BYTES)));
            let x3 = V::load(a.add(at + 3 * V::BYTES)).xor(V::load(b.add(at + 3 * V::BYTES)));
            x0.store(dst.add(at));
            x1.store(dst.add(at + V::BYTES));
            x2.store(dst.add(at + 2 * V::BYTES));
            x3.store(dst.add(at + 3 * V::BYTES));
            at += 4 * V::BYTES;
        }
        while at < end {
            V::load(a.add(at)).xor(V::load(b.add(at))).store(dst.add(at));
            at += V::BYTES;
        }
        last.store(dst.add(end));
    }
}

/// The XOR of one line as stored by `put`, and whether it is not zero.
///
/// # Safety
/// A line at `a` and `b` must be readable; `put` gets offsets below a line; and the trait's.
#[inline(always)]
unsafe fn line<V: Vector>(a: *const u8, b: *const u8, mut put: impl FnMut(usize, V)) -> bool {
    // SAFETY: all accesses are within the line.
    unsafe {
        let mut any = V::zero();
        let mut at = 0;
        while at < LINE_BYTES {
            let x = V::load(a.add(at)).xor(V::load(b.add(at)));
            put(at, x);
            any = any.or(x);
            at += V::BYTES;
        }
        !any.is_zero()
    }
}

/// Walks over whole lines in pages and writes a bitmap word for each page; `put` gets (offset, vector).
///
/// # Safety
/// `len` bytes at `a` and `b` readable, `words` long enough, and the trait's.
#[inline(always)]
unsafe fn lines_raw<V: Vector>(
    a: *const u8,
    b: *const u8,
    len: usize,
    words: &mut [u64],
    ahead: bool,
    mut put: impl FnMut(usize, V),
) {
    for (page, word) in words.iter_mut().enumerate() {
        let start = page * PAGE_BYTES;
        let lines = (len - start).min(PAGE_BYTES) / LINE_BYTES;
        let mut bits = 0;
        for index in 0..lines {
            let at = start + index * LINE_BYTES;
            // SAFETY: the line ends at or before `len`; a prefetch may point anywhere.
            let set = unsafe {
                if ahead {
                    V::prefetch(a.wrapping_add(at + AHEAD_BYTES));
                    V::prefetch(b.wrapping_add(at + AHEAD_BYTES));
                }
                line::<V>(a.add(at), b.add(at), |within, x| put(at + within, x))
            };
            bits |= u64::from(set) << index;
        }
        *word = bits;
    }
}

/// The whole lines of `len`, and what is left.
fn split(len: usize) -> (usize, usize) {
    (len / LINE_BYTES * LINE_BYTES, len % LINE_BYTES)
}

/// `dst = a ^ b`; all of one length.
#[inline(always)]
pub(crate) unsafe fn xor_into<V: Vector>(dst: &mut [u8], a: &[u8], b: &[u8]) {
    // SAFETY: three slices of one length (checked by the public function); `dst` is borrowed mutably, so it overlaps none.
    unsafe { xor_raw::<V>(dst.as_mut_ptr(), a.as_ptr(), b.as_ptr(), dst.len()) }
}

/// `dst ^= b`; both of one length.
#[inline(always)]
pub(crate) unsafe fn xor_in_place<V: Vector>(dst: &mut [u8], b: &[u8]) {
    let to = dst.as_mut_ptr();
    // SAFETY: two slices of one length (checked by the public function); source and target are the same, which is allowed.
    unsafe { xor_raw::<V>(to, to, b.as_ptr(), b.len()) }
}

/// As [`xor_into`], with stores that pass the caches: for targets that do not fit into them.
#[inline(always)]
pub(crate) unsafe fn xor_stream<V: Vector>(dst: &mut [u8], a: &[u8], b: &[u8]) {
    let lead = dst.as_ptr().align_offset(LINE_BYTES).min(dst.len());
    let (whole, rest) = split(dst.len() - lead);
    let (pd, pa, pb) = (dst.as_mut_ptr(), a.as_ptr(), b.as_ptr());
    // SAFETY: three slices of one length (checked by the public function); `pd + lead` is aligned to a line, which is a multiple of
    // every vector.
    unsafe {
        xor_raw::<V>(pd, pa, pb, lead);
        let mut at = lead;
        while at < lead + whole {
            V::prefetch(pa.wrapping_add(at + AHEAD_BYTES));
            V::prefetch(pb.wrapping_add(at + AHEAD_BYTES));
            line::<V>(pa.add(at), pb.add(at), |within, x| x.stream(pd.add(at + within)));
            at += LINE_BYTES;
        }
        V::fence();
        xor_raw::<V>(pd.add(at), pa.add(at), pb.add(at), rest);
    }
}

/// `dst = src`, in the processor's own vectors: where the two stand at near places of a page, the string instructions that a libc
/// copies with are many times slower on some processors.
#[inline(always)]
pub(crate) unsafe fn copy_into<V: Vector>(dst: &mut [u8], src: &[u8]) {
    let (to, from) = (dst.as_mut_ptr(), src.as_ptr());
    let mut at = 0;
    // SAFETY: two slices of one length (checked by the public function); all accesses are below it, by the condition of the loop.
    unsafe {
        while at + 4 * V::BYTES <= dst.len() {
            let x0 = V::load(from.add(at));
            let x1 = V::load(from.add(at + V::BYTES));
            let x2 = V::load(from.add(at + 2 * V::BYTES));
            let x3 = V::load(from.add(at + 3 * V::BYTES));
            x0.store(to.add(at));
            x1.store(to.add(at + V::BYTES));
            x2.store(to.add(at + 2 * V::BYTES));
            x3.store(to.add(at + 3 * V::BYTES));
            at += 4 * V::BYTES;
        }
    }
    dst[at..].copy_from_slice(&src[at..]);
}

/// `dst = src`, with stores that pass the caches; the source is expected to be in them.
#[inline(always)]
pub(crate) unsafe fn copy_stream<V: Vector>(dst: &mut [u8], src: &[u8]) {
    let lead = dst.as_ptr().align_offset(LINE_BYTES).min(dst.len());
    let (whole, _) = split(dst.len() - lead);
    let (to, from) = (dst.as_mut_ptr(), src.as_ptr());
    let mut at = lead;
    // SAFETY: two slices of one length (checked by the public function); `to + lead` is aligned to a line, which is a multiple of every
    // vector.
    unsafe {
        while at < lead + whole {
            V::load(from.add(at)).stream(to.add(at));
            at += V::BYTES;
        }
        V::fence();
    }
    dst[..lead].copy_from_slice(&src[..lead]);
    dst[at..].copy_from_slice(&src[at..]);
}

/// The bit of the last, short line, which is line `bit`; nothing where it is empty.
#[inline(always)]
unsafe fn last_line<V: Vector>(a: &[u8], b: &[u8], bit: usize, words: &mut [u64]) {
    if !a.is_empty() {
        // SAFETY: both slices have one length; the caller has the instructions.
        let same = unsafe { crate::scan::first_difference::<V>(a, b) } == a.len();
        let before = if bit.is_multiple_of(64) { 0 } else { words[bit / 64] };
        words[bit / 64] = before | u64::from(!same) << (bit % 64);
    }
}

/// Sets the bit of every 64-byte line in which `a` and `b` differ, and clears the others.
#[inline(always)]
pub(crate) unsafe fn differing_lines<V: Vector>(a: &[u8], b: &[u8], words: &mut [u64]) {
    let (whole, _) = split(a.len());
    let full = &mut words[..whole.div_ceil(PAGE_BYTES)];
    // SAFETY: slices of one length, and enough words (checked by the public function).
    unsafe {
        lines_raw::<V>(a.as_ptr(), b.as_ptr(), whole, full, true, |_, _| {});
        last_line::<V>(&a[whole..], &b[whole..], whole / LINE_BYTES, words);
    }
}

/// [`xor_into`] and [`differing_lines`] in one pass.
#[inline(always)]
pub(crate) unsafe fn xor_into_lines<V: Vector>(dst: &mut [u8], a: &[u8], b: &[u8], words: &mut [u64]) {
    let (whole, rest) = split(a.len());
    let full = &mut words[..whole.div_ceil(PAGE_BYTES)];
    let to = dst.as_mut_ptr();
    // SAFETY: slices of one length, and enough words (checked by the public function).
    unsafe {
        lines_raw::<V>(a.as_ptr(), b.as_ptr(), whole, full, false, |at, x| x.store(to.add(at)));
        xor_raw::<V>(to.add(whole), a.as_ptr().add(whole), b.as_ptr().add(whole), rest);
        last_line::<V>(&a[whole..], &b[whole..], whole / LINE_BYTES, words);
    }
}

/// [`xor_stream`] and [`differing_lines`] in one pass. Begins `dst` at a line's boundary.
#[inline(always)]
pub(crate) unsafe fn xor_stream_lines<V: Vector>(dst: &mut [u8], a: &[u8], b: &[u8], words: &mut [u64]) {
    let (whole, rest) = split(a.len());
    let full = &mut words[..whole.div_ceil(PAGE_BYTES)];
    let to = dst.as_mut_ptr();
    // SAFETY: slices of one length, enough words and an aligned `dst` (checked by the public function).
    unsafe {
        lines_raw::<V>(a.as_ptr(), b.as_ptr(), whole, full, true, |at, x| x.stream(to.add(at)));
        V::fence();
        xor_raw::<V>(to.add(whole), a.as_ptr().add(whole), b.as_ptr().add(whole), rest);
        last_line::<V>(&a[whole..], &b[whole..], whole / LINE_BYTES, words);
    }
}

/// [`xor_in_place`], and the lines in which `dst` and `b` differed: those that are not zero afterwards.
#[inline(always)]
pub(crate) unsafe fn xor_in_place_lines<V: Vector>(dst: &mut [u8], b: &[u8], words: &mut [u64]) {
    let (whole, _) = split(b.len());
    let full = &mut words[..whole.div_ceil(PAGE_BYTES)];
    let to = dst.as_mut_ptr();
    // SAFETY: slices of one length, and enough words (checked by the public function). Each vector is read before it is written.
    unsafe {
        lines_raw::<V>(to, b.as_ptr(), whole, full, false, |at, x| x.store(to.add(at)));
        last_line::<V>(&dst[whole..], &b[whole..], whole / LINE_BYTES, words);
        xor_in_place::<V>(&mut dst[whole..], &b[whole..]);
    }
}

/// Sets the bit of every 4 KiB page in which `a` and `b` differ, and clears the others; gives their number.
#[inline(always)]
pub(crate) unsafe fn differing_pages<V: Vector>(a: &[u8], b: &[u8], words: &mut [u64]) -> usize {
    let mut count = 0;
    words.fill(0);
    for (page, (one, two)) in a.chunks(PAGE_BYTES).zip(b.chunks(PAGE_BYTES)).enumerate() {
        // SAFETY: chunks of one length.
        let differ = unsafe { page_differs::<V>(one, two) };
        words[page / 64] |= u64::from(differ) << (page % 64);
        count += usize::from(differ);
    }
    count
}

/// # Safety
/// Slices of one length, and the trait's.
#[inline(always)]
unsafe fn page_differs<V: Vector>(a: &[u8], b: &[u8]) -> bool {
    let (pa, pb, len) = (a.as_ptr(), b.as_ptr(), a.len());
    let mut at = 0;
    // SAFETY: all accesses are below `len`, by the condition of the loop.
    unsafe {
        while at + 4 * V::BYTES <= len {
            for line in (at..at + 4 * V::BYTES).step_by(LINE_BYTES) {
                V::prefetch(pa.wrapping_add(line + AHEAD_OF_SCAN_BYTES));
                V::prefetch(pb.wrapping_add(line + AHEAD_OF_SCAN_BYTES));
            }
            let x = |step: usize| {
                V::load(pa.add(at + step * V::BYTES)).xor(V::load(pb.add(at + step * V::BYTES)))
            };
            if !x(0).or(x(1)).or(x(2).or(x(3))).is_zero() {
                return true;
            }
            at += 4 * V::BYTES;
        }
        crate::scan::first_difference::<V>(&a[at..], &b[at..]) < len - at
    }
}
