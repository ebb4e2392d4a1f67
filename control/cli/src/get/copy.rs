//! Copies a range of one file into another: by shared extents, by the kernel, or through a buffer; holes stay holes.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use velo_object::PageBuffer;

use crate::interrupt::Interrupt;

/// The most bytes between two looks at whether the user interrupted.
const STEP_BYTES: u64 = 16 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// Makes `to` (empty, at its beginning) hold the `size` bytes of `from` at `offset`. `step` sees bytes as they come.
pub fn copy(
    from: &File,
    offset: u64,
    size: u64,
    to: &File,
    interrupt: &Interrupt,
    mut step: impl FnMut(u64),
) -> anyhow::Result<()> {
    if size <= BUFFER_BYTES as u64 {
        let mut buffer = vec![0; size as usize];
        from.read_exact_at(&mut buffer, offset)?;
        to.write_all_at(&buffer, 0)?;
        step(size);
        return Ok(());
    }
    // Sharing extents costs nothing where the file system can.
    if offset == 0 && from.metadata()?.len() == size && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        step(size);
        return Ok(());
    }
    to.set_len(size)?;
    let mut done = 0;
    while done < size {
        let data = next_data(from, offset + done, offset + size)?;
        step(data.start - (offset + done));
        done = data.start - offset;
        let end = data.end - offset;
        while done < end {
            interrupt.check()?;
            let len = (end - done).min(STEP_BYTES);
            copy_data(from, offset + done, to, done, len)?;
            done += len;
            step(len);
        }
    }
    Ok(())
}

/// The next range that is not a hole, between `begin` and `end`; empty and at `end` where there is none.
fn next_data(file: &File, begin: u64, end: u64) -> Result<std::ops::Range<u64>, Errno> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(begin)) {
        Ok(start) => start.min(end),
        Err(Errno::NXIO) => end,
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(begin..end),
        Err(error) => return Err(error),
    };
    if start == end {
        return Ok(end..end);
    }
    let hole = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(end);
    Ok(start..if hole <= start { end } else { hole.min(end) })
}

fn copy_data(from: &File, mut at: u64, to: &File, mut to_at: u64, mut len: u64) -> anyhow::Result<()> {
    while len > 0 {
        match rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), len as usize) {
            Ok(0) => break,
            Ok(copied) => len -= copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = PageBuffer::new(if len == 0 { 0 } else { BUFFER_BYTES });
    while len > 0 {
        let some = buffer.len().min(len as usize);
        from.read_exact_at(&mut buffer[..some], at)?;
        to.write_all_at(&buffer[..some], to_at)?;
        (at, to_at, len) = (at + some as u64, to_at + some as u64, len - some as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn holes_stay_holes_and_ranges_are_exact() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 5 << 20).unwrap();
        from.write_all_at(&[7; 100_000], 40 << 20).unwrap();
        let mut seen = 0;
        let (offset, size) = ((4 << 20) + 1, 50 << 20);
        copy(&from, offset, size, &to, &Interrupt::never(), |bytes| seen += bytes).unwrap();
        assert_eq!(seen, size);
        let mut expected = vec![0; size as usize];
        let mut copied = expected.clone();
        from.read_exact_at(&mut expected, offset).unwrap();
        to.read_exact_at(&mut copied, 0).unwrap();
        assert!(expected == copied);
        assert_eq!(to.metadata().unwrap().len(), size);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20, "the holes were filled");
    }

    #[test]
    fn small_and_empty_contents() {
        let from = tempfile::tempfile().unwrap();
        from.write_all_at(b"0123456789", 0).unwrap();
        for (offset, size) in [(0, 0), (3, 4), (0, 10)] {
            let to = tempfile::tempfile().unwrap();
            copy(&from, offset, size, &to, &Interrupt::never(), |_| {}).unwrap();
            assert_eq!(to.metadata().unwrap().len(), size);
        }
        let to = tempfile::tempfile().unwrap();
        assert!(copy(&from, 5, 6, &to, &Interrupt::never(), |_| {}).is_err(), "beyond the end");
    }
}
