//! Pins, removal and eviction: what stays and what may go.
//!
//! A pin is of a root. It protects the files of all that the root names, as one unit: a tree's table, its packs and
//! its blobs. Pins are in the book; what they protect is worked out at the start and kept in memory.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;

use velo_object::{BlobId, ObjectId, ObjectKind};

use crate::index::{FileRecord, Indexed};
use crate::store::{Inner, Store, lock};
use crate::{Removed, StoreError};

const TABLE: &str = "store.pins";
/// The most that eviction frees beyond what is needed now.
const SLACK_BYTES: u64 = 64 << 20;

/// The pinned roots and what they protect.
#[derive(Debug, Default)]
pub(crate) struct PinSet {
    named: HashMap<ObjectId, Vec<BlobId>>,
    counts: HashMap<BlobId, u32>,
    /// Roots that are not here yet: what they name is not known.
    open: HashSet<ObjectId>,
}

impl PinSet {
    /// Whether a pin keeps this file.
    pub fn protects(&self, file: &BlobId) -> bool {
        self.counts.contains_key(file)
    }

    fn insert(&mut self, root: ObjectId, named: Named) -> Changed {
        let mut more = Vec::new();
        for id in &named.files {
            let count = self.counts.entry(*id).or_default();
            *count += 1;
            if *count == 1 {
                more.push(*id);
            }
        }
        // Added first, so that what is named before and after does not change.
        let less = self.drop_named(&root);
        self.named.insert(root, named.files);
        if !named.known {
            self.open.insert(root);
        }
        Changed { more, less }
    }

    /// None where it was not pinned.
    fn remove(&mut self, root: &ObjectId) -> Option<Changed> {
        self.named.contains_key(root).then(|| Changed { more: Vec::new(), less: self.drop_named(root) })
    }

    fn drop_named(&mut self, root: &ObjectId) -> Vec<BlobId> {
        self.open.remove(root);
        let mut less = Vec::new();
        for id in self.named.remove(root).unwrap_or_default() {
            if let Some(count) = self.counts.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&id);
                    less.push(id);
                }
            }
        }
        less
    }
}

/// Files whose protection changed.
#[derive(Debug, Default)]
struct Changed {
    /// Protected now and not before.
    more: Vec<BlobId>,
    /// The other way round.
    less: Vec<BlobId>,
}

/// The files that a root names.
struct Named {
    files: Vec<BlobId>,
    /// Whether that is all: the root is here.
    known: bool,
}

fn key(root: &ObjectId) -> Vec<u8> {
    root.to_string().into_bytes()
}

impl Store {
    /// Pins a root, here or not: what it names is kept once it is here.
    ///
    /// # Errors
    /// [`StoreError::Tree`] where a tree is here and no valid table; [`StoreError::Closed`], [`StoreError::Database`],
    /// [`StoreError::Io`].
    pub fn pin(&self, root: ObjectId) -> Result<(), StoreError> {
        let _changing = lock(&self.0.changing);
        self.0.writable()?;
        if root.kind == ObjectKind::Tree && self.0.locate(&root.blob)?.is_some() {
            self.0.tree(&root.blob)?;
        }
        self.0.pin(root)
    }

    /// Takes a pin away: what no other pin names is cache from now on. False where there was none.
    ///
    /// # Errors
    /// [`StoreError::Closed`], [`StoreError::Database`].
    pub fn unpin(&self, root: ObjectId) -> Result<bool, StoreError> {
        let _changing = lock(&self.0.changing);
        self.0.writable()?;
        self.0.unpin(root)
    }

    /// The pinned roots, in order.
    ///
    /// # Errors
    /// None today.
    pub fn pins(&self) -> Result<Vec<ObjectId>, StoreError> {
        let mut roots: Vec<ObjectId> = lock(&self.0.pins).named.keys().copied().collect();
        roots.sort_unstable();
        Ok(roots)
    }

    /// Gives up files that are cache: what is pinned, held or part of a put stays, and so does what is not here as a file
    /// of its own.
    ///
    /// # Errors
    /// [`StoreError::Closed`], [`StoreError::Database`], [`StoreError::Io`].
    pub fn forget(&self, ids: &[BlobId]) -> Result<Removed, StoreError> {
        let inner = &self.0;
        let _changing = lock(&inner.changing);
        inner.writable()?;
        let mut removed = Removed::default();
        let mut gone = Vec::new();
        for id in ids {
            let Some(record) = inner.index.file(id)? else { continue };
            let indexed = inner.indexed(*id, record);
            let forget = || inner.index.remove(std::slice::from_ref(&indexed));
            if !lock(&inner.pins).protects(id) && inner.files.forget_unless_held(id, forget)? {
                gone.push(indexed);
            } else {
                removed.kept += 1;
            }
        }
        removed.blobs = gone.len() as u64;
        removed.bytes = inner.delete_files(&gone)?;
        Ok(removed)
    }

    /// Removes a root with its pin, and all that it names and no other pinned root does; also what has arrived of a
    /// transfer. Who has a file open may read on.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where it is neither pinned nor here nor arriving; [`StoreError::Database`],
    /// [`StoreError::Io`].
    pub fn remove(&self, root: ObjectId) -> Result<Removed, StoreError> {
        let inner = &self.0;
        let changing = lock(&inner.changing);
        inner.writable()?;
        let named = inner.named(root)?;
        let was_pinned = inner.unpin(root)?;
        let mut removed = Removed::default();
        let mut gone: Vec<Indexed> = Vec::new();
        let mut arriving = Vec::new();
        for id in named.files {
            if lock(&inner.pins).protects(&id) {
                removed.kept += 1;
            } else if let Some(record) = inner.index.file(&id)? {
                let indexed = inner.indexed(id, record);
                let forget = || inner.index.remove(std::slice::from_ref(&indexed));
                if inner.files.forget_unless_held(&id, forget)? {
                    gone.push(indexed);
                } else {
                    removed.kept += 1;
                }
            } else {
                arriving.push(id);
            }
        }
        removed.blobs = gone.len() as u64;
        removed.bytes = inner.delete_files(&gone)?;
        drop(changing);
        let mut abandoned = false;
        for id in arriving {
            if let Some(staging) = self.staging(&id).filter(|staging| !staging.is_sink()) {
                staging.abandon()?;
                abandoned = true;
            }
        }
        if !was_pinned && gone.is_empty() && !abandoned && removed.kept == 0 {
            return Err(StoreError::NotFound(root.blob));
        }
        Ok(removed)
    }
}

impl Inner {
    fn named(&self, root: ObjectId) -> Result<Named, StoreError> {
        let located = self.locate(&root.blob)?;
        let Some(located) = located else {
            return Ok(Named { files: vec![root.blob], known: false });
        };
        let mut files = vec![located.file];
        if root.kind == ObjectKind::Tree {
            match self.tree(&root.blob) {
                Ok(tree) => files.extend(tree.packs().chain(tree.blobs()).map(|named| named.blob)),
                // Nor may a disk that cannot read it keep the store from starting: then nothing would find the damage.
                Err(
                    error @ (StoreError::Tree { .. }
                    | StoreError::Damaged(_)
                    | StoreError::NotFound(_)
                    | StoreError::Io { .. }),
                ) => {
                    tracing::warn!(%root, %error, "what this root names cannot be read");
                    return Ok(Named { files, known: false });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Named { files, known: true })
    }

    /// Pins; the caller holds `changing`.
    pub fn pin(&self, root: ObjectId) -> Result<(), StoreError> {
        let named = self.named(root)?;
        self.book.put_if(TABLE, &key(&root), Some(&[]), None)?;
        let changed = lock(&self.pins).insert(root, named);
        self.count_changed(&changed)
    }

    fn unpin(&self, root: ObjectId) -> Result<bool, StoreError> {
        self.book.put_if(TABLE, &key(&root), None, None)?;
        let changed = lock(&self.pins).remove(&root);
        if let Some(changed) = &changed {
            self.count_changed(changed)?;
        }
        Ok(changed.is_some())
    }

    /// Reads the pins from the book.
    pub fn load_pins(&self) -> Result<(), StoreError> {
        let mut pins = PinSet::default();
        for (key, _) in self.book.scan(TABLE, None, usize::MAX)? {
            match std::str::from_utf8(&key).ok().and_then(|text| text.parse().ok()) {
                Some(root) => drop(pins.insert(root, self.named(root)?)),
                None => tracing::warn!(?key, "not a pin; it is left alone"),
            }
        }
        let protected = Changed { more: pins.counts.keys().copied().collect(), less: Vec::new() };
        *lock(&self.pins) = pins;
        self.space.pinned_bytes.store(0, Relaxed);
        self.count_changed(&protected)
    }

    /// Counts what has come now and is pinned, and works out what a pinned root names that has come.
    pub fn pinned_arrived(&self, added: &[Indexed]) -> Result<(), StoreError> {
        {
            let pins = lock(&self.pins);
            let protected = added.iter().filter(|indexed| pins.protects(&indexed.id));
            let stored: u64 = protected.map(|indexed| indexed.record.stored_bytes).sum();
            self.space.pinned_bytes.fetch_add(stored, Relaxed);
        }
        self.roots_arrived(added)
    }

    /// Works out what a pinned root names that is found now.
    pub fn roots_arrived(&self, added: &[Indexed]) -> Result<(), StoreError> {
        let roots: Vec<ObjectId> = {
            let pins = lock(&self.pins);
            if pins.open.is_empty() {
                return Ok(());
            }
            let packed = added.iter().flat_map(|indexed| &indexed.contents).map(|entry| entry.blob);
            let came: HashSet<BlobId> = added.iter().map(|indexed| indexed.id).chain(packed).collect();
            pins.open.iter().filter(|root| came.contains(&root.blob)).copied().collect()
        };
        for root in roots {
            let named = self.named(root)?;
            let changed = lock(&self.pins).insert(root, named);
            self.count_changed(&changed)?;
        }
        Ok(())
    }

    fn count_changed(&self, changed: &Changed) -> Result<(), StoreError> {
        let sum = |ids: &[BlobId]| -> Result<u64, StoreError> {
            let mut stored = 0;
            for id in ids {
                stored += self.index.file(id)?.map_or(0, |record| record.stored_bytes);
            }
            Ok(stored)
        };
        self.space.pinned_bytes.fetch_add(sum(&changed.more)?, Relaxed);
        self.space.pinned_bytes.fetch_sub(sum(&changed.less)?, Relaxed);
        Ok(())
    }

    /// Makes `bytes` of room, if it can, and a little more: removes what was used longest ago and is neither pinned,
    /// nor being read, nor part of a put.
    pub fn evict(&self, bytes: u64) -> Result<(), StoreError> {
        // To look at all files for every small blob would be dear.
        let slack = self.space.capacity_bytes().map_or(0, |capacity| (capacity / 128).min(SLACK_BYTES));
        let bytes = bytes + slack;
        let _changing = lock(&self.changing);
        let used = self.files.used();
        let mut candidates: Vec<(u64, BlobId, FileRecord)> = {
            let pins = lock(&self.pins);
            let files = self.index.files(None, usize::MAX)?;
            let free = files.into_iter().filter(|(id, _)| !pins.protects(id));
            free.map(|(id, record)| (used.get(&id).copied().unwrap_or(record.used), id, record)).collect()
        };
        candidates.sort_unstable_by_key(|(used, id, _)| (*used, *id));
        let mut freed = 0;
        for (_, id, record) in candidates {
            if freed >= bytes {
                break;
            }
            // Read before: in a pack there is much to be read, and all who use a file wait for what comes then.
            let gone = [self.indexed(id, record)];
            if !self.files.forget_if_idle(&id, || self.index.remove(&gone))? {
                continue;
            }
            freed += self.delete_files(&gone)?;
            self.shared.counts.evicted.fetch_add(1, Relaxed);
            self.shared.counts.evicted_bytes.fetch_add(record.stored_bytes, Relaxed);
        }
        Ok(())
    }
}
