//! [`TreeBuilder`]: from entries in any order to the one table that says them.

use super::path::{check_path, is_under, path_order, path_text};
use super::{
    ENTRY_BYTES, EntryKind, HEADER_BYTES, MAGIC, MAX_ENTRIES, MAX_NAMES_BYTES, Named, PACK_BYTES, Tree,
    TreeError, VERSION,
};
use crate::BlobId;

/// Collects the entries of a directory, in any order.
///
/// Contents go into the packs in the order of the tree, so whoever makes the packs sorts the paths by
/// [`path_order`] first; the builder checks that the packs fit.
#[derive(Debug, Clone, Default)]
pub struct TreeBuilder {
    entries: Vec<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    path: Box<[u8]>,
    kind: EntryKind,
    blob: BlobId,
    size_bytes: u64,
    mtime_ns: u64,
}

impl TreeBuilder {
    /// With no entry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, an executable or a link (whose content is its target). `mtime_ns` is 0 unless the user asked for
    /// times.
    ///
    /// # Errors
    /// [`TreeError::Path`]; everything else is found by [`TreeBuilder::finish`].
    ///
    /// # Panics
    /// If `kind` is a directory.
    pub fn content(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        content: Named,
        mtime_ns: u64,
    ) -> Result<(), TreeError> {
        assert!(kind != EntryKind::Directory, "a directory has no content");
        self.push(path, kind, content, mtime_ns)
    }

    /// Adds a directory. It may have entries: then it is implied by them and `mtime_ns` is forgotten.
    ///
    /// # Errors
    /// [`TreeError::Path`].
    pub fn directory(&mut self, path: &[u8], mtime_ns: u64) -> Result<(), TreeError> {
        let nothing = Named { blob: BlobId::from_bytes([0; 32]), size_bytes: 0 };
        self.push(path, EntryKind::Directory, nothing, mtime_ns)
    }

    fn push(&mut self, path: &[u8], kind: EntryKind, content: Named, mtime_ns: u64) -> Result<(), TreeError> {
        check_path(path).map_err(|why| TreeError::path(path, why))?;
        let Named { blob, size_bytes } = content;
        self.entries.push(Pending { path: path.into(), kind, blob, size_bytes, mtime_ns });
        Ok(())
    }

    /// The table. `packs` are those that a [`PackBuilder`](crate::PackBuilder) made of the small contents in the
    /// order of the tree.
    ///
    /// # Errors
    /// [`TreeError`]: a path twice, a path under a file, contents or packs that do not fit, too much of anything.
    pub fn finish(mut self, packs: &[Named]) -> Result<Tree<Vec<u8>>, TreeError> {
        self.entries.sort_unstable_by(|a, b| path_order(&a.path, &b.path));
        self.drop_implied_directories()?;
        Tree::parse(self.encode(packs)?)
    }

    /// A directory with entries is none itself. What lies under a path follows it at once.
    fn drop_implied_directories(&mut self) -> Result<(), TreeError> {
        if let Some(pair) = self.entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
            return Err(TreeError::Duplicate(path_text(&pair[0].path)));
        }
        let implied: Vec<bool> = (0..self.entries.len())
            .map(|index| {
                let next = self.entries.get(index + 1);
                self.entries[index].kind == EntryKind::Directory
                    && next.is_some_and(|next| is_under(&next.path, &self.entries[index].path))
            })
            .collect();
        let mut implied = implied.into_iter();
        self.entries.retain(|_| implied.next() == Some(false));
        Ok(())
    }

    fn encode(&self, packs: &[Named]) -> Result<Vec<u8>, TreeError> {
        let count = self.entries.len() as u64;
        if count > MAX_ENTRIES {
            return Err(TreeError::TooManyEntries(count));
        }
        let names: u64 = self.entries.iter().map(|entry| entry.path.len() as u64).sum();
        if names > MAX_NAMES_BYTES {
            return Err(TreeError::TooManyNames(names));
        }
        let total = self.entries.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.size_bytes));
        let total = total.ok_or(TreeError::Total { stated: u64::MAX })?;

        let room = HEADER_BYTES + (ENTRY_BYTES + 4) * self.entries.len() + names as usize + 12;
        let mut table = Vec::with_capacity(room + PACK_BYTES * packs.len());
        table.extend_from_slice(&MAGIC);
        table.push(VERSION);
        table.extend_from_slice(&(count as u32).to_le_bytes());
        table.extend_from_slice(&(packs.len() as u32).to_le_bytes());
        table.extend_from_slice(&(names as u32).to_le_bytes());
        table.extend_from_slice(&total.to_le_bytes());
        table.extend_from_slice(&[0; 8]);
        for entry in &self.entries {
            table.extend_from_slice(entry.blob.as_bytes());
            table.extend_from_slice(&entry.size_bytes.to_le_bytes());
            table.extend_from_slice(&entry.mtime_ns.to_le_bytes());
            table.extend_from_slice(&entry.kind.mode().to_le_bytes());
            table.extend_from_slice(&entry.kind.flags().to_le_bytes());
            table.extend_from_slice(&[0; 2]);
        }
        let mut offset = 0u32;
        table.extend_from_slice(&offset.to_le_bytes());
        for entry in &self.entries {
            offset += entry.path.len() as u32;
            table.extend_from_slice(&offset.to_le_bytes());
        }
        self.entries.iter().for_each(|entry| table.extend_from_slice(&entry.path));
        table.resize(table.len().next_multiple_of(8), 0);
        for pack in packs {
            table.extend_from_slice(pack.blob.as_bytes());
            table.extend_from_slice(&pack.size_bytes.to_le_bytes());
        }
        Ok(table)
    }
}
