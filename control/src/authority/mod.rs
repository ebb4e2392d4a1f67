//! The cluster's own authority: its key, the certificates that it issues, the tokens that let nodes join, and revocations.
//!
//! It exists only where `velo cluster init` ran, in `authority/` of the data directory; other nodes hold its certificate alone.

use std::path::{Path, PathBuf};

use velo_object::NodeId;

/// Why the authority could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// `init` or `import` would overwrite something.
    #[error("{0} is there already: this node belongs to a cluster; choose another data directory")]
    Exists(PathBuf),
    /// There is no authority here.
    #[error("no authority in {0}: run this on the node where `velo cluster init` ran")]
    Absent(PathBuf),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or a message is not what it should be.
    #[error("{what} cannot be used: {why}")]
    Malformed {
        /// What.
        what: String,
        /// Why not.
        why: String,
    },
    /// The passphrase is wrong, or the backup was changed.
    #[error("the backup does not open: the passphrase is wrong or the file was changed")]
    Passphrase,
    /// The caller may not join (or renew).
    #[error("{0}")]
    Refused(String),
}

/// A new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// The cluster's id: 64 hexadecimal digits, the BLAKE3 hash of the authority's public key.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
}

/// Makes a cluster: its authority's key and certificate, and this node's key and certificate. Overwrites nothing.
///
/// # Errors
/// [`AuthorityError::Exists`] where the data directory belongs to a cluster already; [`AuthorityError::Io`].
pub fn init(data_dir: &Path, name: &str) -> Result<Initialised, AuthorityError> {
    let _ = (data_dir, name);
    todo!()
}

/// An encrypted backup of the authority's key and certificate.
///
/// # Errors
/// [`AuthorityError::Absent`], [`AuthorityError::Io`].
pub fn export(data_dir: &Path, passphrase: &str) -> Result<Vec<u8>, AuthorityError> {
    let _ = (data_dir, passphrase);
    todo!()
}

/// Brings a backup back, onto a node of the same cluster (or one that is in none yet, which becomes a member). Gives the cluster's id.
///
/// # Errors
/// [`AuthorityError::Passphrase`], [`AuthorityError::Exists`], [`AuthorityError::Malformed`], [`AuthorityError::Io`].
pub fn import(data_dir: &Path, backup: &[u8], passphrase: &str) -> Result<Initialised, AuthorityError> {
    let _ = (data_dir, backup, passphrase);
    todo!()
}
