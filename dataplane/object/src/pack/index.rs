//! Reading packs: the index from the end of the pack, checked, and the contents that it names.

use std::ops::Range;

use super::layout::Layout;
use super::{
    INDEX_ENTRY_BYTES, MAGIC, MAX_PACK_BYTES, PACK_TRAILER_BYTES, PACKED_FILE_BYTES, PackEntry, VERSION,
};
use crate::BlobId;

/// Why bytes are not a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// It does not end as a pack does.
    #[error("not a pack")]
    Magic,
    /// A pack of a version that this program does not know.
    #[error("a pack of version {:?}; this program reads version '1': upgrade it", char::from(*.0))]
    Version(u8),
    /// More bytes than a pack may have, or too few.
    #[error("{0} bytes are no pack: {MAX_PACK_BYTES} is the limit")]
    Size(u64),
    /// No content, or more than have room.
    #[error("a pack of {size_bytes} bytes cannot have {count} contents")]
    Count {
        /// What the trailer states.
        count: u32,
        /// Bytes of the pack.
        size_bytes: u64,
    },
    /// The index has another length than the trailer asks for.
    #[error("the index has {found} bytes, not {expected}")]
    Index {
        /// What the trailer asks for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// A content that is too long for a pack.
    #[error("{blob} has {len} bytes in the pack's index; {PACKED_FILE_BYTES} is the limit")]
    Content {
        /// Which content.
        blob: BlobId,
        /// Its stated length.
        len: u32,
    },
    /// The lengths do not add up to what lies before the index.
    #[error("the contents of the pack have {found} bytes by its index, but {expected} by its size")]
    Sum {
        /// Bytes before the index.
        expected: u64,
        /// Sum of the lengths.
        found: u64,
    },
    /// A content stands in the pack twice.
    #[error("{0} stands in the pack twice")]
    Duplicate(BlobId),
    /// A pack must end after (or before) this content, but this one does not.
    #[error("the pack goes on where another must begin, at {0}")]
    Boundary(BlobId),
    /// A content is not what its id says.
    #[error("the pack has other bytes than {0} at its place: fetch the pack again")]
    Mismatch(BlobId),
}

/// The checked index of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackIndex {
    entries: Vec<PackEntry>,
}

impl PackIndex {
    /// Where in a pack of `size_bytes` the index lies (without the trailer), by the last [`PACK_TRAILER_BYTES`] of it.
    ///
    /// # Errors
    /// [`PackError::Magic`], [`PackError::Version`], [`PackError::Size`] or [`PackError::Count`].
    pub fn range(
        size_bytes: u64,
        trailer: &[u8; PACK_TRAILER_BYTES as usize],
    ) -> Result<Range<u64>, PackError> {
        if !(PACK_TRAILER_BYTES..=MAX_PACK_BYTES).contains(&size_bytes) {
            return Err(PackError::Size(size_bytes));
        }
        let [magic @ .., version, a, b, c, d] = *trailer;
        if magic != MAGIC {
            return Err(PackError::Magic);
        }
        if version != VERSION {
            return Err(PackError::Version(version));
        }
        let count = u32::from_le_bytes([a, b, c, d]);
        let end = size_bytes - PACK_TRAILER_BYTES;
        match end.checked_sub(u64::from(count) * INDEX_ENTRY_BYTES) {
            Some(start) if count > 0 => Ok(start..end),
            _ => Err(PackError::Count { count, size_bytes }),
        }
    }

    /// Checks the bytes at [`PackIndex::range`] of a pack of `size_bytes`.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn parse(size_bytes: u64, range: Range<u64>, index: &[u8]) -> Result<Self, PackError> {
        let (expected, found) = (range.end.saturating_sub(range.start), index.len() as u64);
        let framed = range.end.checked_add(PACK_TRAILER_BYTES) == Some(size_bytes);
        if found != expected || found == 0 || !found.is_multiple_of(INDEX_ENTRY_BYTES) || !framed {
            return Err(PackError::Index { expected, found });
        }
        if size_bytes > MAX_PACK_BYTES {
            return Err(PackError::Size(size_bytes));
        }
        let mut entries = Vec::with_capacity(index.len() / INDEX_ENTRY_BYTES as usize);
        let mut layout = Layout::default();
        let mut offset_bytes = 0u64;
        let mut ended = false;
        for record in index.chunks_exact(INDEX_ENTRY_BYTES as usize) {
            let blob = BlobId::from_bytes(record[..32].try_into().expect("32 bytes"));
            let len = u32::from_le_bytes(record[32..].try_into().expect("4 bytes"));
            if u64::from(len) > PACKED_FILE_BYTES {
                return Err(PackError::Content { blob, len });
            }
            let place = layout.place(&blob, u64::from(len));
            if ended || place.ends_before {
                return Err(PackError::Boundary(blob));
            }
            ended = place.ends_after;
            entries.push(PackEntry { blob, offset_bytes: offset_bytes as u32, len });
            offset_bytes += u64::from(len);
        }
        if offset_bytes != range.start {
            return Err(PackError::Sum { expected: range.start, found: offset_bytes });
        }
        match first_duplicate(&entries) {
            Some(blob) => Err(PackError::Duplicate(blob)),
            None => Ok(Self { entries }),
        }
    }

    /// The contents, in order; each begins where the one before it ends.
    pub fn entries(&self) -> &[PackEntry] {
        &self.entries
    }

    /// Gives the contents away.
    pub fn into_entries(self) -> Vec<PackEntry> {
        self.entries
    }
}

/// Sorts instead of hashing into a table: the ids are the sender's choice.
fn first_duplicate(entries: &[PackEntry]) -> Option<BlobId> {
    let mut ids: Vec<&BlobId> = entries.iter().map(|entry| &entry.blob).collect();
    ids.sort_unstable();
    ids.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| *pair[0])
}

/// A whole pack: its bytes (a slice, a vector, a mapping, which must not change while this exists) and its index.
#[derive(Debug, Clone)]
pub struct PackReader<B> {
    bytes: B,
    index: PackIndex,
}

impl<B: AsRef<[u8]>> PackReader<B> {
    /// Checks the index of a whole pack. The contents are checked by [`PackReader::verify`] or [`PackReader::content`].
    ///
    /// # Errors
    /// [`PackError`].
    pub fn parse(bytes: B) -> Result<Self, PackError> {
        let all = bytes.as_ref();
        let size_bytes = all.len() as u64;
        let trailer = all.last_chunk().ok_or(PackError::Size(size_bytes))?;
        let range = PackIndex::range(size_bytes, trailer)?;
        let index = &all[range.start as usize..range.end as usize];
        let index = PackIndex::parse(size_bytes, range, index)?;
        Ok(Self { bytes, index })
    }

    /// Its contents.
    pub fn index(&self) -> &PackIndex {
        &self.index
    }

    /// The bytes of one of the contents, hashed now.
    ///
    /// # Errors
    /// [`PackError::Mismatch`].
    ///
    /// # Panics
    /// If `entry` is not one of this pack's.
    pub fn content(&self, entry: &PackEntry) -> Result<&[u8], PackError> {
        let start = entry.offset_bytes as usize;
        let content = &self.bytes.as_ref()[start..start + entry.len as usize];
        if BlobId::of(content) == entry.blob { Ok(content) } else { Err(PackError::Mismatch(entry.blob)) }
    }

    /// Hashes all contents.
    ///
    /// # Errors
    /// [`PackError::Mismatch`] for the first that is not what its id says.
    pub fn verify(&self) -> Result<(), PackError> {
        self.index.entries.iter().try_for_each(|entry| self.content(entry).map(drop))
    }
}
