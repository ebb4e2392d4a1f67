//! Where a node keeps its identity and the authority its key, and how files are replaced without ever being half-written.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::AuthorityError;

/// Paths below a data directory.
#[derive(Debug, Clone)]
pub struct Files(PathBuf);

impl Files {
    /// Below this data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self(data_dir.to_owned())
    }
    /// `identity/`.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }
    /// `identity/node.key`.
    pub fn node_key(&self) -> PathBuf {
        self.identity().join("node.key")
    }
    /// `identity/node.crt`.
    pub fn node_certificate(&self) -> PathBuf {
        self.identity().join("node.crt")
    }
    /// `identity/ca.crt`.
    pub fn cluster_certificate(&self) -> PathBuf {
        self.identity().join("ca.crt")
    }
    /// `identity/revoked`.
    pub fn revoked(&self) -> PathBuf {
        self.identity().join("revoked")
    }
    /// `authority/`.
    pub fn authority(&self) -> PathBuf {
        self.0.join("authority")
    }
    /// `authority/ca.key`.
    pub fn authority_key(&self) -> PathBuf {
        self.authority().join("ca.key")
    }
    /// `authority/ca.crt`.
    pub fn authority_certificate(&self) -> PathBuf {
        self.authority().join("ca.crt")
    }
    /// `authority/tokens.json`.
    pub fn tokens(&self) -> PathBuf {
        self.authority().join("tokens.json")
    }
    /// `run/`.
    pub fn run(&self) -> PathBuf {
        self.0.join("run")
    }
}

/// Reads a file of at most 1 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    let error = |source| AuthorityError::Io { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(error)?.len();
    if bytes > 1 << 20 {
        return Err(AuthorityError::Malformed {
            what: path.display().to_string(),
            why: format!("it has {bytes} bytes"),
        });
    }
    fs::read(path).map_err(error)
}

/// Replaces a file: written beside it, synced, renamed, and the rename synced.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let error = |source| AuthorityError::Io { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&beside);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // The mode above is masked by the umask.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&beside);
        error(source)
    })
}

/// Makes a folder that only its owner may enter, if it is not there.
pub(crate) fn private_folder(path: &Path) -> Result<(), AuthorityError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| AuthorityError::Io { path: path.to_owned(), source })
}
