//! Reading one file of this host into the store: small ones into memory, others into a file of the put.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use velo_object::{BlobId, PACKED_FILE_BYTES, PIECE_BYTES};

use crate::copy::{CopyError, Hashed, copy_and_hash};
use crate::error::At;
use crate::space::Reservation;
use crate::spool::{Scratch, Spooled};
use crate::store::Inner;
use crate::{Durability, StoreError};

/// Files of at most this many bytes are read side by side, one on each core.
pub(crate) const SIDE_BY_SIDE_BYTES: u64 = 8 << 20;
/// So many of them are read and hashed together, at most.
pub(crate) const TOGETHER: usize = 8;
/// Bytes after which a flush is begun while the rest is still being copied.
const FLUSH_BYTES: u64 = 64 << 20;

/// What was read.
#[derive(Debug)]
pub(crate) enum ReadIn {
    /// It goes to a pack.
    Small(BlobId, Vec<u8>),
    Large(Spooled),
}

/// The size of a regular file.
pub(crate) fn size_of(file: &File) -> Result<u64, StoreError> {
    let metadata = file.metadata().at("the source")?;
    if metadata.is_file() { Ok(metadata.len()) } else { Err(StoreError::NotAFile) }
}

/// Reads a file of `size_bytes` and hashes it, on up to `threads` threads.
pub(crate) fn read_in(
    inner: &Inner,
    file: &File,
    size_bytes: u64,
    threads: usize,
) -> Result<ReadIn, StoreError> {
    let read = if size_bytes <= PACKED_FILE_BYTES {
        read_small(file, size_bytes).map(|content| ReadIn::Small(BlobId::of(&content), content))
    } else {
        read_large(inner, file, size_bytes, threads).map(ReadIn::Large)
    };
    unchanged(file, size_bytes, read)
}

/// As [`read_in`] for each of them, on this thread; the small ones are hashed together.
pub(crate) fn read_all_in(inner: &Inner, files: &[File], sizes: &[u64]) -> Result<Vec<ReadIn>, StoreError> {
    let mut smalls = Vec::new();
    let mut read = Vec::with_capacity(files.len());
    for (file, &size_bytes) in files.iter().zip(sizes) {
        if size_bytes <= PACKED_FILE_BYTES {
            smalls.push(unchanged(file, size_bytes, read_small(file, size_bytes))?);
            read.push(None);
        } else {
            read.push(Some(read_in(inner, file, size_bytes, 1)?));
        }
    }
    let ids = BlobId::of_many(&smalls.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let mut smalls = ids.into_iter().zip(smalls).map(|(id, content)| ReadIn::Small(id, content));
    Ok(read.into_iter().map(|large| large.or_else(|| smalls.next()).expect("one of the two")).collect())
}

/// What was read, if the file is still as long.
fn unchanged<T>(file: &File, size_bytes: u64, read: Result<T, Option<StoreError>>) -> Result<T, StoreError> {
    let after_bytes = size_of(file)?;
    match read {
        Ok(_) if after_bytes != size_bytes => {
            Err(StoreError::SourceChanged { before_bytes: size_bytes, after_bytes })
        }
        // It was short for a moment only.
        Err(None) => Err(StoreError::SourceChanged { before_bytes: size_bytes, after_bytes }),
        Err(Some(error)) => Err(error),
        Ok(read) => Ok(read),
    }
}

/// The error is none where the file ended early.
fn read_small(file: &File, size_bytes: u64) -> Result<Vec<u8>, Option<StoreError>> {
    let mut content = vec![0; size_bytes as usize];
    match file.read_exact_at(&mut content, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(None),
        result => result.at("the source").map(|()| content).map_err(Some),
    }
}

fn read_large(
    inner: &Inner,
    file: &File,
    size_bytes: u64,
    threads: usize,
) -> Result<Spooled, Option<StoreError>> {
    let allocated = file.metadata().at("the source")?.blocks() * 512;
    // Zeros between the blocks of a sparse file may cost a piece more.
    let needed_bytes = size_bytes.min(allocated + PIECE_BYTES);
    let reservation = inner.reserve(needed_bytes)?;
    let (scratch, target) = Scratch::create(inner)?;
    match copy_flushing(inner, file, &target, size_bytes, threads, &reservation) {
        Ok(hashed) => Ok(Spooled { scratch, hashed, size_bytes, reservation }),
        Err(CopyError::Short) => Err(None),
        Err(CopyError::Read(error)) => Err(error).at("the source").map_err(Some),
        Err(CopyError::Write(error)) => Err(Some(inner.space.io(error, scratch.path(), needed_bytes))),
    }
}

/// Copies and hashes; a large file is flushed while the rest of it is still being copied, so that the disk is busy
/// from the beginning.
fn copy_flushing(
    inner: &Inner,
    source: &File,
    target: &File,
    size_bytes: u64,
    threads: usize,
    reservation: &Reservation,
) -> Result<Hashed, CopyError> {
    let copied = AtomicU64::new(0);
    let written = |bytes: u64| {
        copied.fetch_add(bytes, Relaxed);
        reservation.written(bytes);
    };
    let copy = || copy_and_hash(source, target, size_bytes, threads, &inner.buffers, &written);
    if inner.durability == Durability::Process || size_bytes < 2 * FLUSH_BYTES {
        return copy();
    }
    flushing_meanwhile(&copied, &|| target.sync_data(), copy)
}

/// Flushes again and again while `copy` counts in `copied` what it has written.
fn flushing_meanwhile<T>(
    copied: &AtomicU64,
    flush: &(dyn Fn() -> std::io::Result<()> + Sync),
    copy: impl FnOnce() -> Result<T, CopyError>,
) -> Result<T, CopyError> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| -> std::io::Result<()> {
            let mut flushed = 0;
            while !ended.load(Relaxed) {
                let now = copied.load(Relaxed);
                if now - flushed >= FLUSH_BYTES {
                    // The kernel tells of a lost write once: the flush before the commit would not hear of it again.
                    flush()?;
                    flushed = now;
                } else {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
            Ok(())
        });
        let result = copy();
        ended.store(true, Relaxed);
        flusher.thread().unpark();
        match flusher.join() {
            Ok(flushed) => result.and_then(|copied| flushed.map(|()| copied).map_err(CopyError::Write)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_lost_while_copying_is_an_error() {
        let (copied, flushes) = (AtomicU64::new(FLUSH_BYTES), AtomicU64::new(0));
        let lost = || {
            flushes.fetch_add(1, Relaxed);
            Err(std::io::Error::other("lost"))
        };
        let copy = || {
            while flushes.load(Relaxed) == 0 {
                std::thread::yield_now();
            }
            Ok(())
        };
        let result = flushing_meanwhile(&copied, &lost, copy);
        assert!(matches!(result, Err(CopyError::Write(error)) if error.to_string() == "lost"));
        let whole = flushing_meanwhile(&copied, &|| Ok(()), || Ok(1));
        assert!(matches!(whole, Ok(1)));
        let short = flushing_meanwhile::<()>(&copied, &|| Ok(()), || Err(CopyError::Short));
        assert!(matches!(short, Err(CopyError::Short)));
    }
}
