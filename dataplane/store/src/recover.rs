//! What happens at the start: leftovers go, transfers are found, the index is made anew from the files.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use rustix::io::Errno;
use velo_object::BlobId;

use crate::StoreError;
use crate::dir::{Dir, FileKind, Part, remove_file};
use crate::error::At;
use crate::index::{FileRecord, Indexed};
use crate::publish::pack_index;
use crate::store::{Inner, Store, lock};

/// Removes what puts that were never committed left, and halves of transfers. Gives how many files.
pub(crate) fn sweep(dir: &Dir) -> Result<u64, StoreError> {
    let mut removed = 0;
    let staging = dir.folder("staging");
    for name in names(&staging)? {
        let useful = match name.split_once('.') {
            Some((hex, "part" | "map" | "ob")) => BlobId::from_hex(hex)
                .is_ok_and(|id| dir.staged(&id, Part::Data).exists() && dir.staged(&id, Part::Map).exists()),
            _ => false,
        };
        if !useful {
            let path = staging.join(&name);
            if path.is_file() {
                remove_file(&path)?;
                removed += u64::from(name.starts_with("put-"));
            }
        }
    }
    Ok(removed)
}

/// Ids with data and a have-map in `staging/`.
pub(crate) fn staged_ids(dir: &Dir) -> Result<Vec<BlobId>, StoreError> {
    let names = names(&dir.folder("staging"))?;
    Ok(names.iter().filter_map(|name| BlobId::from_hex(name.strip_suffix(".map")?).ok()).collect())
}

/// Deletes an index that may be damaged, unopened.
pub(crate) fn drop_index(dir: &Dir) -> Result<(), StoreError> {
    let path = dir.folder("index");
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}

/// Whether the content is at fault, not what surrounds it.
fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged(_) | StoreError::Pack { .. } => true,
        StoreError::Io { error, .. } => {
            error.kind() == ErrorKind::UnexpectedEof || error.raw_os_error() == Some(Errno::IO.raw_os_error())
        }
        _ => false,
    }
}

/// The names in a folder that are text; the store makes no others.
fn names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).at(folder)? {
        names.extend(entry.at(folder)?.file_name().into_string().ok());
    }
    Ok(names)
}

impl Store {
    /// Makes the index anew from the files; the book (refs, pins) stays. Files that are not what their name says by
    /// their form go to quarantine; see [`Store::verify`] for their bytes.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Database`].
    pub fn rebuild(&self) -> Result<Vec<BlobId>, StoreError> {
        let _changing = lock(&self.0.changing);
        self.0.writable()?;
        let damaged = self.0.rebuild_index(false)?;
        self.0.load_figures()?;
        self.0.load_pins()?;
        Ok(damaged)
    }
}

impl Inner {
    /// See [`Store::rebuild`]. With `hash`, the bytes are checked too. Gives what went to quarantine.
    pub fn rebuild_index(&self, hash: bool) -> Result<Vec<BlobId>, StoreError> {
        let used = self.files.used();
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        for (kind, folder) in self.folders() {
            for name in names(&folder)? {
                let path = folder.join(&name);
                if let Some(hex) = name.strip_suffix(".ob") {
                    if !folder.join(hex).exists() {
                        remove_file(&path)?;
                    }
                    continue;
                }
                let Ok(id) = BlobId::from_hex(&name) else {
                    tracing::warn!(path = %path.display(), "not a file of the store; it is left alone");
                    continue;
                };
                if kind == FileKind::Loose && self.dir.file(&id, FileKind::Pack).exists() {
                    // It was becoming a pack and has both names still.
                    remove_file(&path)?;
                    remove_file(&self.dir.outboard(&id, kind))?;
                    continue;
                }
                let metadata = fs::metadata(&path).at(&path)?;
                let size_bytes = metadata.len();
                let record = FileRecord {
                    kind,
                    size_bytes,
                    stored_bytes: metadata.blocks() * 512,
                    used: used.get(&id).copied().unwrap_or(0),
                };
                match self.examine(&id, &path, record, hash) {
                    Ok(contents) => found.push(Indexed { id, record, contents }),
                    Err(error) if is_damage(&error) => {
                        tracing::error!(blob = %id, %error, "damaged; it is in quarantine now");
                        self.quarantine(&id, kind)?;
                        damaged.push(id);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.index.replace(&found)?;
        self.index.flush()?;
        Ok(damaged)
    }

    fn examine(
        &self,
        id: &BlobId,
        path: &Path,
        record: FileRecord,
        hash: bool,
    ) -> Result<Vec<velo_object::PackEntry>, StoreError> {
        let file = File::open(path).at(path)?;
        if hash && !self.damaged_pieces(id, &file, record)?.is_empty() {
            return Err(StoreError::Damaged(*id));
        }
        match record.kind {
            FileKind::Pack => pack_index(id, &file, record.size_bytes),
            FileKind::Loose => Ok(Vec::new()),
        }
    }

    fn folders(&self) -> Vec<(FileKind, std::path::PathBuf)> {
        let blobs = self.dir.folder("blobs");
        let mut folders: Vec<_> =
            (0..=255u8).map(|first| (FileKind::Loose, blobs.join(format!("{first:02x}")))).collect();
        folders.push((FileKind::Pack, self.dir.folder("packs")));
        folders
    }

    /// Moves a damaged file out of the way; the index is not told.
    pub fn quarantine(&self, id: &BlobId, kind: FileKind) -> Result<(), StoreError> {
        let path = self.dir.file(id, kind);
        fs::rename(&path, self.dir.quarantined(id)).at(&path)?;
        // Only now: before, somebody could have opened it again.
        self.files.close(id);
        remove_file(&self.dir.outboard(id, kind))?;
        self.shared.counts.quarantined.fetch_add(1, Relaxed);
        Ok(())
    }
}
