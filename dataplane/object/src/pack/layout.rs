//! Where contents lie and packs end: the canonical function from ids and sizes to packs.

use super::{INDEX_ENTRY_BYTES, MAX_PACK_BYTES, MIN_PACK_BYTES, PACK_TRAILER_BYTES, TARGET_PACK_BYTES};
use crate::BlobId;

/// The packs so far, and the one that is open.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    closed_bytes: Vec<u64>,
    contents_bytes: u64,
    count: u64,
}

/// Where a content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// In which pack.
    pub pack: usize,
    /// Where in that pack.
    pub offset_bytes: u64,
    /// Whether the pack that was open has ended before it.
    pub ends_before: bool,
    /// Whether the pack ends with it.
    pub ends_after: bool,
}

impl Layout {
    /// Lays a content, which must not have been laid before.
    pub fn place(&mut self, id: &BlobId, len: u64) -> Place {
        let weight = len + INDEX_ENTRY_BYTES;
        let ends_before = self.count > 0 && self.pack_bytes() + weight > MAX_PACK_BYTES;
        if ends_before {
            self.close();
        }
        let (pack, offset_bytes) = (self.closed_bytes.len(), self.contents_bytes);
        self.contents_bytes += len;
        self.count += 1;
        let ends_after = is_boundary(id, weight, self.pack_bytes());
        if ends_after {
            self.close();
        }
        Place { pack, offset_bytes, ends_before, ends_after }
    }

    /// The sizes of all packs.
    pub fn finish(mut self) -> Vec<u64> {
        if self.count > 0 {
            self.close();
        }
        self.closed_bytes
    }

    fn pack_bytes(&self) -> u64 {
        self.contents_bytes + self.count * INDEX_ENTRY_BYTES + PACK_TRAILER_BYTES
    }

    fn close(&mut self) {
        self.closed_bytes.push(self.pack_bytes());
        (self.contents_bytes, self.count) = (0, 0);
    }
}

/// Whether a pack that weighs `pack_bytes` with this content in it ends here.
fn is_boundary(id: &BlobId, weight: u64, pack_bytes: u64) -> bool {
    let value = u64::from_le_bytes(id.as_bytes()[24..].try_into().expect("8 bytes"));
    match pack_bytes {
        0..MIN_PACK_BYTES => false,
        MIN_PACK_BYTES..TARGET_PACK_BYTES => value < weight << 38,
        _ => value < weight << 41,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(count: u32) -> Vec<(BlobId, u64)> {
        (0..count)
            .map(|index| {
                let id = BlobId::of(&index.to_le_bytes());
                (id, u64::from(id.as_bytes()[0]) * 256)
            })
            .collect()
    }

    fn lay(contents: &[(BlobId, u64)]) -> Vec<(usize, Vec<BlobId>)> {
        let mut layout = Layout::default();
        let mut packs: Vec<(usize, Vec<BlobId>)> = Vec::new();
        for (id, len) in contents {
            let place = layout.place(id, *len);
            if packs.last().is_none_or(|(pack, _)| *pack != place.pack) {
                packs.push((place.pack, Vec::new()));
            }
            packs.last_mut().expect("one").1.push(*id);
        }
        packs
    }

    #[test]
    fn packs_have_the_promised_sizes() {
        let mut layout = Layout::default();
        let contents = contents(200_000);
        contents.iter().for_each(|(id, len)| {
            layout.place(id, *len);
        });
        let sizes = layout.finish();
        let total: u64 = contents.iter().map(|(_, len)| len + INDEX_ENTRY_BYTES).sum();
        assert_eq!(sizes.iter().sum::<u64>(), total + PACK_TRAILER_BYTES * sizes.len() as u64);
        let (last, whole) = sizes.split_last().expect("some");
        assert!(*last <= MAX_PACK_BYTES);
        assert!(whole.iter().all(|size| (MIN_PACK_BYTES..=MAX_PACK_BYTES).contains(size)), "{sizes:?}");
        let mean = whole.iter().sum::<u64>() / whole.len() as u64;
        assert!((50 << 20..75 << 20).contains(&mean), "mean {mean}");
    }

    #[test]
    fn one_added_file_changes_few_packs() {
        let contents = contents(200_000);
        let before = lay(&contents);
        for at in [0, 1000, 77_777] {
            let mut more = contents.clone();
            more.insert(at, (BlobId::of(b"a new file"), 100_000));
            let after = lay(&more);
            let kept = before.iter().filter(|(_, pack)| after.iter().any(|(_, other)| other == pack)).count();
            assert!(kept + 6 >= before.len(), "only {kept} of {} packs are kept", before.len());
        }
    }

    #[test]
    fn a_pack_never_weighs_more_than_the_limit() {
        // No id that ends in ones is a boundary, so only the limit ends these packs.
        let id = BlobId::from_bytes([0xff; 32]);
        let mut layout = Layout::default();
        (0..2000).for_each(|_| {
            layout.place(&id, super::super::PACKED_FILE_BYTES);
        });
        let sizes = layout.finish();
        assert_eq!(sizes.len(), 3);
        assert!(sizes.iter().all(|size| *size <= MAX_PACK_BYTES));
        assert!(sizes[0] + super::super::PACKED_FILE_BYTES + INDEX_ENTRY_BYTES > MAX_PACK_BYTES);
    }
}
