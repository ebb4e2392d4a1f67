//! [`Verified`]: bytes that match the id they are to be stored under. The only thing that a store accepts.

use crate::outboard::{chaining_value, hole_chaining_value};
use crate::piece::{PIECE_BYTES, Pieces};
use crate::{BlobId, Outboard};

/// What a piece is checked against.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// A blob of one piece: its id is its check, and binds its size.
    Whole(BlobId),
    /// A piece of a larger blob.
    Piece(&'a Outboard, u64),
}

/// A piece that is not what its id says. Carries the buffer back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("piece {index} of {blob} does not match its hash")]
pub struct Mismatch {
    /// The blob it was said to belong to.
    pub blob: BlobId,
    /// The piece.
    pub index: u64,
}

/// What a verified piece holds.
#[derive(Debug)]
pub enum Content<B> {
    /// Its bytes, at the front of this buffer.
    Bytes(B),
    /// Nothing but zeros, which nobody stores or sends.
    Hole,
}

/// One piece whose bytes have been checked. While it exists nobody can write the buffer: it gives out only `&[u8]`.
#[derive(Debug)]
pub struct Verified<B> {
    blob: BlobId,
    size_bytes: Option<u64>,
    index: u64,
    len: usize,
    content: Content<B>,
}

impl<B: AsRef<[u8]>> Verified<B> {
    /// Hashes the first `len` bytes of `buffer` and compares.
    ///
    /// # Errors
    /// [`Mismatch`] and the buffer, where the length or the hash is another.
    pub fn check(buffer: B, len: usize, expected: Expected<'_>) -> Result<Self, (B, Mismatch)> {
        let (blob, index, size_bytes) = expected.coordinates(len as u64);
        let matches = match (expected, buffer.as_ref().get(..len)) {
            (_, None) => false,
            (Expected::Whole(id), Some(bytes)) => len as u64 <= PIECE_BYTES && BlobId::of(bytes) == id,
            (Expected::Piece(outboard, index), Some(bytes)) => {
                index < outboard.pieces().count()
                    && len as u64 == outboard.pieces().len(index)
                    && chaining_value(index, bytes) == outboard.values()[index as usize]
            }
        };
        if matches {
            Ok(Self { blob, size_bytes, index, len, content: Content::Bytes(buffer) })
        } else {
            Err((buffer, Mismatch { blob, index }))
        }
    }
}

impl<B> Verified<B> {
    /// Checks that a piece is all zeros, `len` of them, without having its bytes.
    ///
    /// # Errors
    /// [`Mismatch`] where it is not.
    pub fn check_hole(len: usize, expected: Expected<'_>) -> Result<Self, Mismatch> {
        let (blob, index, size_bytes) = expected.coordinates(len as u64);
        let matches = match expected {
            Expected::Whole(id) => {
                len as u64 <= PIECE_BYTES && BlobId::of(&vec![0; len.min(PIECE_BYTES as usize)]) == id
            }
            Expected::Piece(outboard, index) => {
                index < outboard.pieces().count()
                    && len as u64 == outboard.pieces().len(index)
                    && hole_chaining_value(index, len as u64) == outboard.values()[index as usize]
            }
        };
        if matches {
            Ok(Self { blob, size_bytes, index, len, content: Content::Hole })
        } else {
            Err(Mismatch { blob, index })
        }
    }

    /// The blob.
    pub fn blob(&self) -> BlobId {
        self.blob
    }

    /// The piece's index.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Where in the blob it begins.
    pub fn offset_bytes(&self) -> u64 {
        self.index * PIECE_BYTES
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes: the only piece of the empty blob.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The size of the whole blob, if this piece proves it: it is the only one or the last.
    pub fn proves_size_bytes(&self) -> Option<u64> {
        self.size_bytes
    }

    /// Whether it is a hole.
    pub fn is_hole(&self) -> bool {
        matches!(self.content, Content::Hole)
    }

    /// Gives the buffer back, to be used again.
    pub fn into_content(self) -> Content<B> {
        self.content
    }
}

impl<B: AsRef<[u8]>> Verified<B> {
    /// The bytes; none where it is a hole.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Bytes(buffer) => Some(&buffer.as_ref()[..self.len]),
            Content::Hole => None,
        }
    }
}

impl Expected<'_> {
    fn coordinates(&self, len: u64) -> (BlobId, u64, Option<u64>) {
        match self {
            Self::Whole(id) => (*id, 0, Some(len)),
            Self::Piece(outboard, index) => {
                let pieces: Pieces = outboard.pieces();
                (outboard.id(), *index, (*index == pieces.last()).then_some(outboard.size_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OutboardBuilder;

    #[test]
    fn only_the_right_bytes_at_the_right_place_pass() {
        let content: Vec<u8> = (0..2 * PIECE_BYTES as usize + 7).map(|i| (i / 3) as u8).collect();
        let pieces = Pieces::new(content.len() as u64);
        let mut builder = OutboardBuilder::new(content.len() as u64);
        let part = |index| {
            let range = pieces.range(index);
            content[range.start as usize..range.end as usize].to_vec()
        };
        (0..pieces.count()).for_each(|index| builder.set(index, chaining_value(index, &part(index))));
        let outboard = builder.finish();

        let last = Verified::check(part(2), 7, Expected::Piece(&outboard, 2)).expect("the right bytes");
        assert_eq!(last.proves_size_bytes(), Some(content.len() as u64));
        assert!(
            Verified::check(part(0), part(0).len(), Expected::Piece(&outboard, 1)).is_err(),
            "wrong place"
        );
        assert!(Verified::check(part(2), 6, Expected::Piece(&outboard, 2)).is_err(), "short");
        assert!(
            Verified::check(part(2), 8, Expected::Piece(&outboard, 2)).is_err(),
            "longer than its buffer"
        );
        assert!(Verified::check(part(2), 7, Expected::Piece(&outboard, 3)).is_err(), "no such piece");
        assert!(Verified::<Vec<u8>>::check_hole(7, Expected::Piece(&outboard, 2)).is_err(), "not a hole");
    }

    #[test]
    fn whole_blobs_of_every_small_length() {
        for len in [0usize, 1, 1023, 1024, 1025, PIECE_BYTES as usize] {
            let content = vec![7u8; len];
            let id = BlobId::of(&content);
            let verified = Verified::check(content, len, Expected::Whole(id)).expect("its own hash");
            assert_eq!(verified.proves_size_bytes(), Some(len as u64));
        }
        let zeros = BlobId::of(&[0; 5000]);
        assert!(Verified::<Vec<u8>>::check_hole(5000, Expected::Whole(zeros)).expect("zeros").is_hole());
        assert!(Verified::<Vec<u8>>::check_hole(5001, Expected::Whole(zeros)).is_err());
    }
}
