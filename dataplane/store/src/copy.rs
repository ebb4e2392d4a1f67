//! One pass over a file on all cores: read a piece, hash it at its offset, write it, while it is in the cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use velo_object::{
    BlobId, Outboard, OutboardBuilder, PIECE_BYTES, PageBuffer, Pieces, chaining_value, hole_chaining_value,
};

use crate::extents::{data_ranges, write_sparse};

/// A copied and hashed content.
#[derive(Debug)]
pub(crate) struct Hashed {
    pub id: BlobId,
    /// For more than one piece.
    pub outboard: Option<Outboard>,
}

/// Why copying ended.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The source ended early.
    Short,
    Read(io::Error),
    Write(io::Error),
}

/// Buffers of one piece each, warm from their last use.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<PageBuffer>>);

impl Buffers {
    pub fn take(&self) -> PageBuffer {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| PageBuffer::new(PIECE_BYTES as usize))
    }

    pub fn put(&self, buffer: PageBuffer) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < 64 {
            spare.push(buffer);
        }
    }
}

/// Whether a piece has data, is known to be a hole, or is both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Density {
    Hole,
    Sparse,
    Dense,
}

struct Layout {
    pieces: Pieces,
    /// None: dense throughout.
    density: Option<Vec<Density>>,
}

impl Layout {
    fn of(file: &File, size_bytes: u64) -> io::Result<Self> {
        let pieces = Pieces::new(size_bytes);
        let ranges = data_ranges(file, size_bytes)?;
        if ranges.len() == 1 && ranges[0] == (0..size_bytes) {
            return Ok(Self { pieces, density: None });
        }
        let mut density = vec![Density::Hole; pieces.count() as usize];
        for range in ranges {
            for index in pieces.covering(range.clone()) {
                let piece = pieces.range(index);
                let whole = range.start <= piece.start && range.end >= piece.end;
                density[index as usize] = if whole { Density::Dense } else { Density::Sparse };
            }
        }
        Ok(Self { pieces, density: Some(density) })
    }

    fn density(&self, index: u64) -> Density {
        self.density.as_ref().map_or(Density::Dense, |density| density[index as usize])
    }
}

/// Copies `source` (of `size_bytes`) to `target`, an empty file, and hashes it. Zeros become holes.
///
/// `written` is told of bytes that were written, and may give back an error to stop.
pub(crate) fn copy_and_hash(
    source: &File,
    target: &File,
    size_bytes: u64,
    threads: usize,
    buffers: &Buffers,
    written: &(dyn Fn(u64) + Sync),
) -> Result<Hashed, CopyError> {
    if size_bytes <= PIECE_BYTES {
        let mut buffer = buffers.take();
        let bytes = &mut buffer[..size_bytes as usize];
        read_whole(source, bytes, 0)?;
        let id = BlobId::of(bytes);
        target.set_len(size_bytes).and_then(|()| write_sparse(target, bytes, 0)).map_err(CopyError::Write)?;
        written(size_bytes);
        buffers.put(buffer);
        return Ok(Hashed { id, outboard: None });
    }
    target.set_len(size_bytes).map_err(CopyError::Write)?;
    let layout = Layout::of(source, size_bytes).map_err(CopyError::Read)?;
    let pass = |buffer: &mut [u8], index: u64| -> Result<[u8; 32], CopyError> {
        let range = layout.pieces.range(index);
        let len = range.end - range.start;
        let density = layout.density(index);
        if density == Density::Hole {
            return Ok(hole_chaining_value(index, len));
        }
        let bytes = &mut buffer[..len as usize];
        read_whole(source, bytes, range.start)?;
        if velo_simd::is_zero(bytes) {
            return Ok(hole_chaining_value(index, len));
        }
        let value = chaining_value(index, bytes);
        match density {
            Density::Dense => target.write_all_at(bytes, range.start),
            _ => write_sparse(target, bytes, range.start),
        }
        .map_err(CopyError::Write)?;
        written(len);
        Ok(value)
    };
    let values = on_all_cores(layout.pieces.count(), threads, buffers, &pass)?;
    let mut builder = OutboardBuilder::new(size_bytes);
    values.into_iter().for_each(|(index, value)| builder.set(index, value));
    let outboard = builder.finish();
    Ok(Hashed { id: outboard.id(), outboard: Some(outboard) })
}

/// What is done for one index, with a buffer of one piece.
pub(crate) type Job<'a, T, E> = dyn Fn(&mut [u8], u64) -> Result<T, E> + Sync + 'a;

/// Does `job` for every index below `count`, on up to `threads` threads, each with a buffer of its own. Ends at the
/// first error.
pub(crate) fn on_all_cores<T: Send, E: Send>(
    count: u64,
    threads: usize,
    buffers: &Buffers,
    job: &Job<'_, T, E>,
) -> Result<Vec<(u64, T)>, E> {
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let work = || {
        let mut buffer = buffers.take();
        let mut done = Vec::new();
        let mut result = Ok(());
        while !failed.load(Relaxed) {
            let index = next.fetch_add(1, Relaxed);
            if index >= count {
                break;
            }
            match job(&mut buffer, index) {
                Ok(value) => done.push((index, value)),
                Err(error) => {
                    failed.store(true, Relaxed);
                    result = Err(error);
                    break;
                }
            }
        }
        buffers.put(buffer);
        result.map(|()| done)
    };
    let others = (threads as u64).min(count / 2).saturating_sub(1);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..others).map(|_| scope.spawn(work)).collect();
        let mut all = work()?;
        for other in others {
            match other.join() {
                Ok(done) => all.extend(done?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

fn read_whole(source: &File, bytes: &mut [u8], offset_bytes: u64) -> Result<(), CopyError> {
    source.read_exact_at(bytes, offset_bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => CopyError::Short,
        _ => CopyError::Read(error),
    })
}
