//! Outboards: the chaining values of a blob's pieces, from which any piece can be verified alone.
//!
//! Format, version 1, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | `VOB1` |
//! | 4..8 | zero |
//! | 8..16 | size of the blob in bytes, more than 1 MiB |
//! | 16.. | 32 bytes for each piece: the BLAKE3 chaining value of that subtree (non-root) |
//!
//! A merge of the values that gives the blob's id proves that every *value* is a node of that tree, but not the
//! size: halving the entries and the size merges to the same root. So an outboard from a stranger is
//! *provisional* until its last piece has verified or the size came from a verified tree.
//! Source: BLAKE3 specification, sections 2.1 and 6.4; `blake3::hazmat`.

use blake3::hazmat::{self, HasherExt, Mode};

use crate::BlobId;
use crate::piece::{PIECE_BYTES, Pieces};

const MAGIC: [u8; 4] = *b"VOB1";
const HEADER_BYTES: usize = 16;
/// The largest blob: 2^46 bytes (64 TiB), far below what BLAKE3 counts, so that sizes never overflow.
pub const MAX_BLOB_BYTES: u64 = 1 << 46;

/// Why bytes are not the outboard of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutboardError {
    /// Not an outboard, or of another version.
    #[error("not an outboard of version 1")]
    Format,
    /// A blob of this size has no outboard, or none this large can be.
    #[error("a blob of {0} bytes has no outboard: the size must be more than 1 MiB and at most 64 TiB")]
    Size(u64),
    /// Another number of chaining values than the size asks for.
    #[error("an outboard for {size_bytes} bytes has {expected} entries, not {found}")]
    Entries {
        /// Size that the outboard states.
        size_bytes: u64,
        /// Entries that such a size has.
        expected: u64,
        /// Entries found.
        found: u64,
    },
    /// The values do not merge to the blob's id.
    #[error("the outboard does not belong to {0}: its entries merge to another root")]
    Root(BlobId),
}

/// The chaining value of one whole piece of a blob of more than one piece.
///
/// `index` is the piece's index; `content` is 1 to [`PIECE_BYTES`] bytes. Needs about 0.2 ms for a full piece.
///
/// # Panics
/// If `content` is empty or longer than a piece.
pub fn chaining_value(index: u64, content: &[u8]) -> [u8; 32] {
    assert!(!content.is_empty() && content.len() as u64 <= PIECE_BYTES, "a piece has 1 byte to 1 MiB");
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index * PIECE_BYTES);
    hasher.update(content);
    hasher.finalize_non_root()
}

/// The chaining value of piece `index` if it is a hole: `len` zero bytes (hashed at its offset).
///
/// # Panics
/// If `len` is zero or more than a piece.
pub fn hole_chaining_value(index: u64, len: u64) -> [u8; 32] {
    static ZEROS: [u8; PIECE_BYTES as usize] = [0; PIECE_BYTES as usize];
    chaining_value(index, &ZEROS[..len as usize])
}

/// The size of a blob and the chaining values of its pieces, which merge to the blob's id.
#[derive(Clone, PartialEq, Eq)]
pub struct Outboard {
    id: BlobId,
    size_bytes: u64,
    values: Vec<[u8; 32]>,
    confirmed: bool,
}

impl std::fmt::Debug for Outboard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outboard")
            .field("id", &self.id)
            .field("size_bytes", &self.size_bytes)
            .field("confirmed", &self.confirmed)
            .finish_non_exhaustive()
    }
}

impl Outboard {
    /// An outboard from chaining values that somebody sent: checked to merge to `id`, and provisional.
    ///
    /// # Errors
    /// [`OutboardError::Size`], [`OutboardError::Entries`] or [`OutboardError::Root`].
    pub fn from_values(id: BlobId, size_bytes: u64, values: Vec<[u8; 32]>) -> Result<Self, OutboardError> {
        if size_bytes <= PIECE_BYTES || size_bytes > MAX_BLOB_BYTES {
            return Err(OutboardError::Size(size_bytes));
        }
        let expected = Pieces::new(size_bytes).count();
        if expected != values.len() as u64 {
            return Err(OutboardError::Entries { size_bytes, expected, found: values.len() as u64 });
        }
        if root(size_bytes, &values) != id {
            return Err(OutboardError::Root(id));
        }
        Ok(Self { id, size_bytes, values, confirmed: false })
    }

    /// Parses what [`Outboard::encode`] made and checks it against `id`. The result is provisional.
    ///
    /// # Errors
    /// [`OutboardError`].
    pub fn decode(id: BlobId, bytes: &[u8]) -> Result<Self, OutboardError> {
        let (header, values) = bytes.split_at_checked(HEADER_BYTES).ok_or(OutboardError::Format)?;
        if header[..4] != MAGIC || header[4..8] != [0; 4] || values.len() % 32 != 0 {
            return Err(OutboardError::Format);
        }
        let size_bytes = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
        let values = values.chunks_exact(32).map(|v| v.try_into().expect("32 bytes")).collect();
        Self::from_values(id, size_bytes, values)
    }

    /// The bytes that [`Outboard::decode`] reads: 16 and 32 for each piece.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::encoded_bytes(self.size_bytes) as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        self.values.iter().for_each(|value| bytes.extend_from_slice(value));
        bytes
    }

    /// How many bytes the outboard of a blob of `size_bytes` has when encoded; 0 where there is none.
    pub const fn encoded_bytes(size_bytes: u64) -> u64 {
        if size_bytes <= PIECE_BYTES { 0 } else { HEADER_BYTES as u64 + 32 * Pieces::new(size_bytes).count() }
    }

    /// The blob that this belongs to.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// The size it states; proven only if [`Outboard::is_confirmed`].
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The geometry it states.
    pub fn pieces(&self) -> Pieces {
        Pieces::new(self.size_bytes)
    }

    /// The chaining values, one for each piece.
    pub fn values(&self) -> &[[u8; 32]] {
        &self.values
    }

    /// Whether the size is proven: by the last piece, or by a verified tree.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Marks the size as proven. Call it when the last piece has verified under this outboard, or when a verified
    /// tree states the same size.
    pub fn confirm(&mut self) {
        self.confirmed = true;
    }
}

/// Collects the chaining values of a blob whose pieces are hashed in any order, by any threads.
#[derive(Debug)]
pub struct OutboardBuilder {
    size_bytes: u64,
    values: Vec<[u8; 32]>,
}

impl OutboardBuilder {
    /// For a blob of `size_bytes`, all values still missing.
    pub fn new(size_bytes: u64) -> Self {
        let count = if size_bytes <= PIECE_BYTES { 0 } else { Pieces::new(size_bytes).count() };
        Self { size_bytes, values: vec![[0; 32]; count as usize] }
    }

    /// Sets the value of piece `index`.
    ///
    /// # Panics
    /// If there is no such piece.
    pub fn set(&mut self, index: u64, value: [u8; 32]) {
        self.values[index as usize] = value;
    }

    /// The finished, confirmed outboard of a blob that the caller has hashed himself.
    ///
    /// # Panics
    /// If the blob has only one piece: its id is its check, see [`BlobId::of`].
    pub fn finish(self) -> Outboard {
        assert!(self.size_bytes > PIECE_BYTES, "a blob of one piece has no outboard");
        let id = root(self.size_bytes, &self.values);
        Outboard { id, size_bytes: self.size_bytes, values: self.values, confirmed: true }
    }
}

fn root(size_bytes: u64, values: &[[u8; 32]]) -> BlobId {
    let (left, right) = halves(size_bytes, values);
    BlobId::from_bytes(*hazmat::merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
}

fn halves(size_bytes: u64, values: &[[u8; 32]]) -> ([u8; 32], [u8; 32]) {
    let left_bytes = hazmat::left_subtree_len(size_bytes);
    let (left, right) = values.split_at((left_bytes / PIECE_BYTES) as usize);
    (subtree(left_bytes, left), subtree(size_bytes - left_bytes, right))
}

fn subtree(size_bytes: u64, values: &[[u8; 32]]) -> [u8; 32] {
    if let [value] = values {
        return *value;
    }
    let (left, right) = halves(size_bytes, values);
    hazmat::merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
        bytes
    }

    fn outboard(content: &[u8]) -> Outboard {
        let pieces = Pieces::new(content.len() as u64);
        let mut builder = OutboardBuilder::new(content.len() as u64);
        for index in 0..pieces.count() {
            let range = pieces.range(index);
            builder.set(index, chaining_value(index, &content[range.start as usize..range.end as usize]));
        }
        builder.finish()
    }

    #[test]
    fn root_equals_the_plain_hash_around_every_boundary() {
        let content = noise(9 * PIECE_BYTES as usize + 2);
        for pieces in 1..=9 {
            for delta in [-1i64, 0, 1, 1023, 1024, 1025] {
                let len = (pieces * PIECE_BYTES as i64 + delta) as usize;
                if len as u64 > PIECE_BYTES && len <= content.len() {
                    assert_eq!(outboard(&content[..len]).id(), BlobId::of(&content[..len]), "{len} bytes");
                }
            }
        }
    }

    #[test]
    fn half_the_entries_and_half_the_size_still_merge_to_the_root() {
        let honest = outboard(&noise(4 * PIECE_BYTES as usize));
        let merged: Vec<_> = honest
            .values()
            .chunks(2)
            .map(|pair| hazmat::merge_subtrees_non_root(&pair[0], &pair[1], Mode::Hash))
            .collect();
        let lie =
            Outboard::from_values(honest.id(), 2 * PIECE_BYTES, merged).expect("the merge gives the root");
        assert!(!lie.is_confirmed(), "a lie about the size must stay provisional");
    }

    #[test]
    fn decode_refuses_what_does_not_fit() {
        let honest = outboard(&noise(3 * PIECE_BYTES as usize + 5));
        let bytes = honest.encode();
        assert_eq!(bytes.len() as u64, Outboard::encoded_bytes(honest.size_bytes()));
        let mut decoded = Outboard::decode(honest.id(), &bytes).expect("what encode made");
        decoded.confirm();
        assert_eq!(decoded, honest);
        assert_eq!(Outboard::decode(honest.id(), &bytes[..bytes.len() - 1]), Err(OutboardError::Format));
        assert!(matches!(
            Outboard::decode(honest.id(), &bytes[..bytes.len() - 32]),
            Err(OutboardError::Entries { .. })
        ));
        let mut flipped = bytes.clone();
        flipped[40] ^= 1;
        assert_eq!(Outboard::decode(honest.id(), &flipped), Err(OutboardError::Root(honest.id())));
    }

    #[test]
    fn holes_hash_like_zeros_at_their_offset() {
        let mut content = noise(3 * PIECE_BYTES as usize);
        content[PIECE_BYTES as usize..2 * PIECE_BYTES as usize].fill(0);
        assert_eq!(outboard(&content).values()[1], hole_chaining_value(1, PIECE_BYTES));
        assert_ne!(hole_chaining_value(1, PIECE_BYTES), hole_chaining_value(2, PIECE_BYTES));
    }
}
