//! Pieces: the aligned 1 MiB ranges in which a blob is verified, scheduled, resumed and accounted.

use std::ops::Range;

/// Bytes in a piece; the last piece of a blob may be shorter. A constant of every format that speaks of pieces.
pub const PIECE_BYTES: u64 = 1 << 20;

/// The pieces of a blob of a given size: arithmetic only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    size_bytes: u64,
}

impl Pieces {
    /// The pieces of a blob of `size_bytes`.
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes }
    }

    /// The size of the blob.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many pieces there are. An empty blob has one, of no bytes, so that "all pieces are there" means
    /// the same for every blob.
    pub const fn count(&self) -> u64 {
        if self.size_bytes == 0 { 1 } else { self.size_bytes.div_ceil(PIECE_BYTES) }
    }

    /// The byte range of piece `index`.
    ///
    /// # Panics
    /// If there is no such piece.
    pub const fn range(&self, index: u64) -> Range<u64> {
        assert!(index < self.count(), "piece beyond the end of the blob");
        let start = index * PIECE_BYTES;
        let end = if self.size_bytes - start < PIECE_BYTES { self.size_bytes } else { start + PIECE_BYTES };
        start..end
    }

    /// The bytes in piece `index`.
    ///
    /// # Panics
    /// If there is no such piece.
    pub const fn len(&self, index: u64) -> u64 {
        let range = self.range(index);
        range.end - range.start
    }

    /// The indexes of the pieces that `bytes` touches; empty where `bytes` is empty or past the end.
    pub fn covering(&self, bytes: Range<u64>) -> Range<u64> {
        let end = bytes.end.min(self.size_bytes);
        if bytes.start >= end {
            return 0..0;
        }
        bytes.start / PIECE_BYTES..end.div_ceil(PIECE_BYTES)
    }

    /// The index of the last piece.
    pub const fn last(&self) -> u64 {
        self.count() - 1
    }
}
