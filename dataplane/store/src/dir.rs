//! The directory of a store: where things lie in it, and the lock that keeps a second process out.
//!
//! | path | what |
//! |---|---|
//! | `LOCK` | locked (`flock`) by the process that has the store; see [`Lock`] |
//! | `blobs/ab/<hex>` | a blob of its own, 0444, sparse where the blob is; `ab` are the first two digits |
//! | `packs/<hex>` | a pack, 0444 |
//! | `….ob` | beside a blob or pack of more than one piece: its outboard (made anew from the bytes where damaged) |
//! | `staging/<hex>.part`, `.map`, `.ob` | a blob that is arriving, its have-map, its outboard |
//! | `staging/put-<n>` | what a put has written and not yet committed |
//! | `quarantine/<hex>` | what was found damaged |
//! | `index/`, `book/` | the two databases |

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use velo_object::BlobId;

use crate::error::At;
use crate::{Durability, StoreError};

/// Where a complete blob lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileKind {
    /// In a file of its own.
    Loose,
    /// It is a pack.
    Pack,
}

/// Which file of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Data,
    Map,
    Outboard,
}

/// The paths in a store's directory.
#[derive(Debug, Clone)]
pub(crate) struct Dir {
    root: PathBuf,
}

impl Dir {
    /// Makes what is missing of the layout.
    pub fn make(root: &Path) -> Result<Self, StoreError> {
        let dir = Self { root: root.to_owned() };
        // The one made last: where it is, all are.
        if dir.folder("blobs").join("ff").is_dir() {
            return Ok(dir);
        }
        let make = |path: PathBuf| match fs::create_dir(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            result => result.at(&path),
        };
        for name in ["packs", "staging", "quarantine", "blobs"] {
            make(dir.folder(name))?;
        }
        for first in 0..=255u8 {
            make(dir.folder("blobs").join(format!("{first:02x}")))?;
        }
        sync_dir(&dir.folder("blobs"))?;
        sync_dir(root)?;
        if let Some(parent) = root.parent() {
            // It may be one that we may write to and not read.
            let _ = sync_dir(parent);
        }
        Ok(dir)
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file of a complete blob or pack.
    pub fn file(&self, id: &BlobId, kind: FileKind) -> PathBuf {
        let hex = id.to_hex();
        match kind {
            FileKind::Loose => self.root.join("blobs").join(&hex[..2]).join(hex),
            FileKind::Pack => self.root.join("packs").join(hex),
        }
    }

    /// The outboard beside it.
    pub fn outboard(&self, id: &BlobId, kind: FileKind) -> PathBuf {
        let mut path = self.file(id, kind).into_os_string();
        path.push(".ob");
        path.into()
    }

    /// A file of a transfer.
    pub fn staged(&self, id: &BlobId, part: Part) -> PathBuf {
        let extension = match part {
            Part::Data => "part",
            Part::Map => "map",
            Part::Outboard => "ob",
        };
        self.root.join("staging").join(format!("{}.{extension}", id.to_hex()))
    }

    /// A file of a put.
    pub fn put(&self, number: u64) -> PathBuf {
        self.root.join("staging").join(format!("put-{number}"))
    }

    pub fn quarantined(&self, id: &BlobId) -> PathBuf {
        self.root.join("quarantine").join(id.to_hex())
    }
}

/// Flushes the names in a directory.
pub(crate) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).at(path)
}

/// Removes a file; that it is gone already is no error.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}

/// The id of the kernel's boot: another one means that the machine went down in between.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "?".into(), |id| id.trim().to_owned())
}

/// How the last process left the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastRun {
    /// It closed the store, and the index was flushed.
    pub clean: bool,
    /// The machine went down since, and commits of that process were not flushed; or they were not all hashed since.
    pub suspect: bool,
}

/// The locked `LOCK` file: four lines, `pid`, boot id, durability, and `open`, `clean` or
/// `suspect`: what was committed before is still being hashed, as it may be damaged.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Locks the directory and says how the last process left it.
    pub fn take(root: &Path, durability: Durability) -> Result<(Self, LastRun), StoreError> {
        // Content is for those who may use the socket, and not for all who have an account here. Above it others may pass: the socket is
        // there.
        if let Some(parent) = root.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(parent).at(parent)?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).at(root)?;
        if fs::metadata(root).at(root)?.permissions().mode() & 0o077 != 0
            && let Err(error) = fs::set_permissions(root, fs::Permissions::from_mode(0o700))
        {
            tracing::warn!(store = %root.display(), %error, "others on this host can read all content: `chmod 700` it");
        }
        let path = root.join("LOCK");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .at(&path)?;
        let mut text = String::new();
        if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error).at(&path);
            }
            let _ = file.read_to_string(&mut text);
            let pid = text.lines().next().unwrap_or("?").to_owned();
            return Err(StoreError::Locked { dir: root.to_owned(), pid });
        }
        let known = file.read_to_string(&mut text).is_ok();
        let fields: Vec<&str> = text.lines().collect();
        let last = match fields.as_slice() {
            [_, boot, durability, state] if known => LastRun {
                clean: *state == "clean",
                suspect: *state == "suspect"
                    || *state != "clean" && *durability == "process" && *boot != boot_id(),
            },
            // What cannot be read says nothing about flushing.
            _ => LastRun { clean: false, suspect: !known || !text.is_empty() },
        };
        if let [_, boot, "process", "open"] = fields.as_slice()
            && durability == Durability::Fsync
            && *boot == boot_id()
        {
            // From now on commits of that process are believed to be durable.
            rustix::fs::syncfs(&file).at(&path)?;
        }
        let lock = Self { file, path };
        // Until all was hashed, a start that is cut off must not hide from the next one that it has to be.
        lock.write(durability, if last.suspect { "suspect" } else { "open" })?;
        Ok((lock, last))
    }

    /// Says that what was suspect has been hashed.
    pub fn mark_open(&self, durability: Durability) -> Result<(), StoreError> {
        self.write(durability, "open")
    }

    /// Says that the store was closed. The index must have been flushed.
    pub fn mark_clean(&self, durability: Durability) -> Result<(), StoreError> {
        self.write(durability, "clean")
    }

    fn write(&self, durability: Durability, state: &str) -> Result<(), StoreError> {
        let durability = match durability {
            Durability::Fsync => "fsync",
            Durability::Process => "process",
        };
        let text = format!("{}\n{}\n{durability}\n{state}\n", std::process::id(), boot_id());
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0)).at(&self.path)?;
        file.write_all(text.as_bytes()).at(&self.path)?;
        file.set_len(text.len() as u64).at(&self.path)?;
        file.sync_all().at(&self.path)
    }
}
