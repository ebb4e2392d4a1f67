//! Where a file has data: holes are found by SEEK_DATA and SEEK_HOLE and by looking at the bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

/// A block of a file system, about: the unit in which zeros inside a piece stay holes.
const BLOCK_BYTES: usize = 64 << 10;

/// The ranges of a file of `size_bytes` that may hold data, rising. One for all of it where the file is dense or the
/// file system cannot tell.
pub(crate) fn data_ranges(file: &File, size_bytes: u64) -> io::Result<Vec<Range<u64>>> {
    if size_bytes == 0 {
        return Ok(Vec::new());
    }
    if file.metadata()?.blocks() * 512 >= size_bytes {
        return Ok(std::iter::once(0..size_bytes).collect());
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size_bytes {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => return Ok(std::iter::once(0..size_bytes).collect()),
            Err(error) => return Err(error.into()),
        };
        if start >= size_bytes {
            break;
        }
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size_bytes);
        if end <= start {
            break;
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}

/// Writes `bytes` at `offset_bytes` into a file that has a hole there: blocks of zeros stay holes.
pub(crate) fn write_sparse(file: &File, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
    let mut run = 0..0;
    for start in (0..bytes.len()).step_by(BLOCK_BYTES) {
        let end = (start + BLOCK_BYTES).min(bytes.len());
        if !velo_simd::is_zero(&bytes[start..end]) {
            run.end = end;
        } else {
            file.write_all_at(&bytes[run.clone()], offset_bytes + run.start as u64)?;
            run = end..end;
        }
    }
    file.write_all_at(&bytes[run.clone()], offset_bytes + run.start as u64)
}

/// Makes a range read as zeros, and frees it where the file system can.
pub(crate) fn punch(file: &File, offset_bytes: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, how, offset_bytes, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(&vec![0; len as usize], offset_bytes),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_stay_holes_and_the_bytes_are_the_same() {
        let file = tempfile::tempfile().expect("a file");
        let mut bytes = vec![0u8; 1 << 20];
        bytes[300_000] = 1;
        *bytes.last_mut().expect("not empty") = 2;
        file.set_len(3 << 20).expect("room");
        write_sparse(&file, &bytes, 1 << 20).expect("room");
        let mut back = vec![9; 1 << 20];
        file.read_exact_at(&mut back, 1 << 20).expect("there");
        assert_eq!(back, bytes);
        let ranges = data_ranges(&file, 3 << 20).expect("seekable");
        let data: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        assert!((1..=2 * BLOCK_BYTES as u64).contains(&data), "{ranges:?}");
        punch(&file, 1 << 20, 1 << 20).expect("punched");
        file.read_exact_at(&mut back, 1 << 20).expect("there");
        assert!(velo_simd::is_zero(&back) && !velo_simd::is_zero(&bytes));
    }
}
