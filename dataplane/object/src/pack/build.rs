//! [`PackBuilder`]: lays contents one after another and says what to write where.

use std::collections::HashSet;

use super::layout::Layout;
use super::{INDEX_ENTRY_BYTES, MAGIC, PACK_TRAILER_BYTES, PACKED_FILE_BYTES, PackEntry, VERSION};
use crate::BlobId;

/// What is to be done with the packs' files.
#[derive(Debug)]
pub enum PackStep<'a> {
    /// Append these bytes to the open pack; begin a pack if none is open.
    Append(&'a [u8]),
    /// The open pack is complete: these are its contents, in order. The next `Append` begins another.
    Close(Vec<PackEntry>),
}

/// Makes the packs of one tree from its small contents, given in the order of the tree.
///
/// Nothing but ids and the index of the open pack is kept in memory: 32 bytes for each content.
#[derive(Debug, Default)]
pub struct PackBuilder {
    laid: HashSet<BlobId>,
    layout: Layout,
    open: Vec<PackEntry>,
}

impl PackBuilder {
    /// With no content.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lays `content`, whose id is `id`, unless it was laid before; `step` is told what to write. Gives whether it was
    /// new.
    ///
    /// # Errors
    /// What `step` returned. The packs are then incomplete: drop the builder.
    ///
    /// # Panics
    /// If the content is longer than [`PACKED_FILE_BYTES`].
    pub fn push<E>(
        &mut self,
        id: BlobId,
        content: &[u8],
        mut step: impl FnMut(PackStep<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        assert!(content.len() as u64 <= PACKED_FILE_BYTES, "too large for a pack: {id}");
        if !self.laid.insert(id) {
            return Ok(false);
        }
        let place = self.layout.place(&id, content.len() as u64);
        if place.ends_before {
            self.close(&mut step)?;
        }
        self.open.push(PackEntry {
            blob: id,
            offset_bytes: place.offset_bytes as u32,
            len: content.len() as u32,
        });
        step(PackStep::Append(content))?;
        if place.ends_after {
            self.close(&mut step)?;
        }
        Ok(true)
    }

    /// Closes the last pack, if one is open.
    ///
    /// # Errors
    /// What `step` returned.
    pub fn finish<E>(mut self, mut step: impl FnMut(PackStep<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.open.is_empty() { Ok(()) } else { self.close(&mut step) }
    }

    fn close<E>(&mut self, step: &mut impl FnMut(PackStep<'_>) -> Result<(), E>) -> Result<(), E> {
        let entries = std::mem::take(&mut self.open);
        step(PackStep::Append(&encode_index(&entries)))?;
        step(PackStep::Close(entries))
    }
}

/// The index and the trailer.
fn encode_index(entries: &[PackEntry]) -> Vec<u8> {
    let room = entries.len() * INDEX_ENTRY_BYTES as usize + PACK_TRAILER_BYTES as usize;
    let mut bytes = Vec::with_capacity(room);
    for entry in entries {
        bytes.extend_from_slice(entry.blob.as_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
    }
    bytes.extend_from_slice(&MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    bytes
}
