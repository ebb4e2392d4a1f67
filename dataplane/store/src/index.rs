//! The index: which complete blobs are here and where. Rebuilt from the files after an unclean start.
//!
//! Database `files`: 32 bytes id → [`FileRecord`] (25 bytes, little-endian). Database `packed`: 32 bytes id →
//! [`Place`]s (40 bytes), one for each pack that has the content.

use std::path::Path;

use heed::types::Bytes;
use heed::{Database, DatabaseFlags, RoTxn, RwTxn};
use velo_object::{BlobId, PackEntry};

use crate::StoreError;
use crate::dir::FileKind;
use crate::lmdb::{self, Environment, Flush};

/// Addresses, not memory: what the index may grow to.
const MAP_BYTES: usize = 16 << 30;

type Table = Database<Bytes, Bytes>;

/// A complete blob or pack in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileRecord {
    pub kind: FileKind,
    pub size_bytes: u64,
    /// What it takes on disk.
    pub stored_bytes: u64,
    /// When it was used last, by the store's own clock.
    pub used: u64,
}

impl FileRecord {
    fn encode(&self) -> [u8; 25] {
        let mut bytes = [0; 25];
        bytes[0] = u8::from(self.kind == FileKind::Pack);
        bytes[1..9].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[17..25].copy_from_slice(&self.used.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 25] = bytes.try_into().ok()?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let kind = if bytes[0] == 1 { FileKind::Pack } else { FileKind::Loose };
        Some(Self { kind, size_bytes: number(1), stored_bytes: number(9), used: number(17) })
    }
}

/// Where in a pack a small content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub pack: BlobId,
    pub offset_bytes: u32,
    pub len: u32,
}

impl Place {
    fn encode(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[..32].copy_from_slice(self.pack.as_bytes());
        bytes[32..36].copy_from_slice(&self.offset_bytes.to_le_bytes());
        bytes[36..].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 40] = bytes.try_into().ok()?;
        Some(Self {
            pack: BlobId::from_bytes(bytes[..32].try_into().expect("32 bytes")),
            offset_bytes: u32::from_le_bytes(bytes[32..36].try_into().expect("4 bytes")),
            len: u32::from_le_bytes(bytes[36..].try_into().expect("4 bytes")),
        })
    }
}

/// A complete file and, if it is a pack, what lies in it.
#[derive(Debug, Clone)]
pub(crate) struct Indexed {
    pub id: BlobId,
    pub record: FileRecord,
    pub contents: Vec<PackEntry>,
}

#[derive(Debug)]
pub(crate) struct Index {
    env: Environment,
    files: Table,
    packed: Table,
}

fn failed(error: heed::Error) -> StoreError {
    StoreError::Database { name: "index", error }
}

fn id_of(key: &[u8]) -> Option<BlobId> {
    Some(BlobId::from_bytes(key.try_into().ok()?))
}

impl Index {
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let env = lmdb::open("index", path, MAP_BYTES, Flush::OnClose)?;
        let mut txn = env.write_txn().map_err(failed)?;
        let files = env.create_database(&mut txn, Some("files")).map_err(failed)?;
        let packed = env
            .database_options()
            .types::<Bytes, Bytes>()
            .flags(DatabaseFlags::DUP_SORT | DatabaseFlags::DUP_FIXED)
            .name("packed")
            .create(&mut txn)
            .map_err(failed)?;
        txn.commit().map_err(failed)?;
        Ok(Self { env, files, packed })
    }

    fn read<T>(
        &self,
        job: impl FnOnce(&RoTxn<'_, heed::WithoutTls>) -> heed::Result<T>,
    ) -> Result<T, StoreError> {
        let txn = self.env.read_txn().map_err(failed)?;
        job(&txn).map_err(failed)
    }

    fn write(&self, job: impl FnOnce(&mut RwTxn<'_>) -> heed::Result<()>) -> Result<(), StoreError> {
        let mut txn = self.env.write_txn().map_err(failed)?;
        job(&mut txn).and_then(|()| txn.commit()).map_err(failed)
    }

    /// The file that is this blob.
    pub fn file(&self, id: &BlobId) -> Result<Option<FileRecord>, StoreError> {
        self.read(|txn| Ok(self.files.get(txn, id.as_bytes())?.and_then(FileRecord::decode)))
    }

    /// A pack that has this small content.
    pub fn place(&self, id: &BlobId) -> Result<Option<Place>, StoreError> {
        self.read(|txn| Ok(self.packed.get(txn, id.as_bytes())?.and_then(Place::decode)))
    }

    /// All files with ids after `after`, at most `limit`.
    pub fn files(
        &self,
        after: Option<&BlobId>,
        limit: usize,
    ) -> Result<Vec<(BlobId, FileRecord)>, StoreError> {
        use std::ops::Bound;
        self.read(|txn| {
            let lower: Bound<&[u8]> =
                after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.as_bytes().as_slice()));
            let mut found = Vec::new();
            for entry in self.files.range(txn, &(lower, Bound::Unbounded))?.take(limit) {
                let (key, value) = entry?;
                found.extend(id_of(key).zip(FileRecord::decode(value)));
            }
            Ok(found)
        })
    }

    /// Ids from `first` on for which `matches` holds, files and small contents, at most `limit`.
    pub fn resolve(
        &self,
        first: &BlobId,
        limit: usize,
        matches: impl Fn(&BlobId) -> bool,
    ) -> Result<Vec<BlobId>, StoreError> {
        use std::ops::Bound;
        self.read(|txn| {
            let range = (Bound::Included(first.as_bytes().as_slice()), Bound::<&[u8]>::Unbounded);
            let mut found = Vec::new();
            for table in [&self.files, &self.packed] {
                let mut from_table = 0;
                for entry in table.range(txn, &range)? {
                    let Some(id) = id_of(entry?.0).filter(&matches) else { break };
                    if found.last() != Some(&id) {
                        found.push(id);
                        from_table += 1;
                    }
                    if from_table == limit {
                        break;
                    }
                }
            }
            found.sort_unstable();
            found.dedup();
            found.truncate(limit);
            Ok(found)
        })
    }

    /// How many small contents lie in packs (one in two packs counts twice).
    pub fn packed_len(&self) -> Result<u64, StoreError> {
        self.read(|txn| self.packed.len(txn))
    }

    /// Adds files, all at once.
    pub fn add(&self, added: &[Indexed]) -> Result<(), StoreError> {
        self.write(|txn| {
            for Indexed { id, record, contents } in added {
                self.files.put(txn, id.as_bytes(), &record.encode())?;
                for entry in contents {
                    let place = Place { pack: *id, offset_bytes: entry.offset_bytes, len: entry.len };
                    self.packed.put(txn, entry.blob.as_bytes(), &place.encode())?;
                }
            }
            Ok(())
        })
    }

    /// Forgets files, all at once. `contents`: of those that are packs.
    pub fn remove(&self, removed: &[Indexed]) -> Result<(), StoreError> {
        self.write(|txn| {
            for Indexed { id, contents, .. } in removed {
                self.files.delete(txn, id.as_bytes())?;
                for entry in contents {
                    let place = Place { pack: *id, offset_bytes: entry.offset_bytes, len: entry.len };
                    self.packed.delete_one_duplicate(txn, entry.blob.as_bytes(), &place.encode())?;
                }
            }
            Ok(())
        })
    }

    /// Forgets a pack whose contents cannot be read any more: looks at every place.
    pub fn remove_unreadable(&self, id: &BlobId) -> Result<u64, StoreError> {
        let mut lost = 0;
        self.write(|txn| {
            self.files.delete(txn, id.as_bytes())?;
            let mut places = Vec::new();
            for entry in self.packed.iter(txn)? {
                let (key, value) = entry?;
                if Place::decode(value).is_some_and(|place| place.pack == *id) {
                    places.push((key.to_vec(), value.to_vec()));
                }
            }
            lost = places.len() as u64;
            for (key, value) in places {
                self.packed.delete_one_duplicate(txn, &key, &value)?;
            }
            Ok(())
        })?;
        Ok(lost)
    }

    /// Writes down when files were used last.
    pub fn touch(&self, used: &[(BlobId, u64)]) -> Result<(), StoreError> {
        self.write(|txn| {
            for (id, used) in used {
                if let Some(record) = self.files.get(txn, id.as_bytes())?.and_then(FileRecord::decode) {
                    self.files.put(txn, id.as_bytes(), &FileRecord { used: *used, ..record }.encode())?;
                }
            }
            Ok(())
        })
    }

    /// Replaces everything.
    pub fn replace(&self, all: &[Indexed]) -> Result<(), StoreError> {
        self.write(|txn| {
            self.files.clear(txn)?;
            self.packed.clear(txn)
        })?;
        self.add(all)
    }

    /// Flushes it to disk.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.env.force_sync().map_err(failed)
    }
}
