//! The cluster's own authority: its key, the certificates that it issues, the tokens that let nodes join, and revocations.
//!
//! It exists only where `velo cluster init` ran, in `authority/` of the data directory; other nodes hold its certificate alone.

use std::fs;
use std::path::{Path, PathBuf};

use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::Member;
use velo_socket::join::SEEDS_FILE;

mod backup;
mod files;
mod issue;
mod revocation;
mod tokens;

pub(crate) use files::{read, replace};
pub use issue::{Authority, CERTIFICATE_LIFETIME, certificate_name, cluster_of};
pub(crate) use issue::{pem, public_key, request, signed_by};
pub use revocation::{RevocationList, Revocations, Revoked};
pub use tokens::Tokens;

/// In `authority/`: it came from a backup.
const RESTORED: &str = "restored";
/// From 1970 to the beginning of 2026.
const SECONDS_TO_2026: u64 = 1_767_225_600;

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

/// A cluster that begins here, or an authority that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// The cluster's id: 64 hexadecimal digits, the BLAKE3 hash of the authority's public key.
    pub cluster: String,
    /// This node.
    pub node: NodeId,
}

/// Makes a cluster: its authority's key and certificate (which bears `name`), and this node's key and certificate. Overwrites nothing;
/// an `init` that was interrupted is finished by the next one.
///
/// # Errors
/// [`AuthorityError::Exists`] where the data directory belongs to a cluster already; [`AuthorityError::Io`].
pub fn init(data_dir: &Path, name: &str) -> Result<Initialised, AuthorityError> {
    let files = Paths::new(data_dir.to_owned());
    if files.node_certificate().exists() {
        return Err(AuthorityError::Exists(files.identity_dir()));
    }
    if !files.authority_key().exists() {
        let (key, certificate) = Authority::generate(name)?;
        write_authority(&files, &key, &certificate)?;
    }
    let authority = Authority::open(data_dir)?;
    Ok(Initialised { cluster: hex::encode(authority.cluster()), node: own_identity(&files, &authority)? })
}

/// Writes `authority/`; its key comes last, since it says that the rest is there.
fn write_authority(files: &Paths, key: &str, certificate: &str) -> Result<(), AuthorityError> {
    files::private_folder(&files.authority_dir())?;
    files::replace(&files.authority_certificate(), certificate.as_bytes(), 0o644)?;
    files::replace(&files.authority_key(), key.as_bytes(), 0o600)
}

/// Gives this machine a key and a certificate of its own authority; the certificate comes last.
fn own_identity(files: &Paths, authority: &Authority) -> Result<NodeId, AuthorityError> {
    files::private_folder(&files.identity_dir())?;
    let key = if files.node_key().exists() {
        let pem = String::from_utf8_lossy(&files::read(&files.node_key())?).into_owned();
        rcgen::KeyPair::from_pem(&pem)
    } else {
        rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)
    };
    let key = key.map_err(|error| AuthorityError::Malformed {
        what: files.node_key().display().to_string(),
        why: error.to_string(),
    })?;
    let certificate = authority.certify(&key, CERTIFICATE_LIFETIME)?;
    files::replace(&files.node_key(), key.serialize_pem().as_bytes(), 0o600)?;
    files::replace(&files.ca_certificate(), authority.certificate_pem().as_bytes(), 0o644)?;
    files::replace(&files.node_certificate(), certificate.as_bytes(), 0o644)?;
    let bytes: [u8; 32] = key.public_key_raw().try_into().map_err(|_| AuthorityError::Malformed {
        what: files.node_key().display().to_string(),
        why: "not an ed25519 key".to_owned(),
    })?;
    Ok(NodeId::from_bytes(bytes))
}

/// An encrypted backup of the authority: its key, its certificate, its tokens, its last list of revocations, and the members that a machine
/// which is new to the cluster can ask.
///
/// # Errors
/// [`AuthorityError::Absent`], [`AuthorityError::Io`].
pub fn export(data_dir: &Path, passphrase: &str, members: Vec<Member>) -> Result<Vec<u8>, AuthorityError> {
    let files = Paths::new(data_dir.to_owned());
    Authority::open(data_dir)?;
    let text =
        |path: PathBuf| Ok::<_, AuthorityError>(String::from_utf8_lossy(&files::read(&path)?).into_owned());
    let optional = |path: PathBuf| if path.exists() { files::read(&path).map(Some) } else { Ok(None) };
    let contents = backup::Contents {
        key: text(files.authority_key())?,
        certificate: text(files.authority_certificate())?,
        tokens: optional(files.authority_tokens())?,
        revoked: optional(files.revoked())?,
        members,
    };
    backup::seal(&contents, passphrase)
}

/// Brings a backup back, onto a node of the same cluster (or one that is in none yet, which becomes a member).
///
/// # Errors
/// [`AuthorityError::Passphrase`], [`AuthorityError::Exists`], [`AuthorityError::Malformed`], [`AuthorityError::Io`].
pub fn import(data_dir: &Path, backup: &[u8], passphrase: &str) -> Result<Initialised, AuthorityError> {
    let files = Paths::new(data_dir.to_owned());
    if files.authority_key().exists() {
        return Err(AuthorityError::Exists(files.authority_dir()));
    }
    let contents = backup::open(backup, passphrase)?;
    let authority = Authority::from_pem(&contents.key, &contents.certificate)?;
    let member = files.node_certificate().exists();
    if member && crate::identity::Identity::load(data_dir)?.cluster != authority.cluster() {
        return Err(AuthorityError::Exists(files.identity_dir()));
    }
    files::private_folder(&files.authority_dir())?;
    if let Some(tokens) = &contents.tokens {
        files::replace(&files.authority_tokens(), tokens, 0o600)?;
    }
    files::replace(&files.authority_dir().join(RESTORED), b"", 0o644)?;
    write_authority(&files, &contents.key, &contents.certificate)?;
    let node = if member {
        crate::identity::Identity::load(data_dir)?.node
    } else {
        files::private_folder(&files.identity_dir())?;
        let members = postcard::to_stdvec(&contents.members).expect("plain data");
        files::replace(&files.identity_dir().join(SEEDS_FILE), &members, 0o644)?;
        own_identity(&files, &authority)?
    };
    if let Some(revoked) = &contents.revoked
        && fs::metadata(files.revoked()).is_err()
    {
        files::replace(&files.revoked(), revoked, 0o644)?;
    }
    Ok(Initialised { cluster: hex::encode(authority.cluster()), node })
}

/// The epoch of the first gossip key that this authority makes. One that came back from a backup may meet a cluster with later epochs than it
/// knows of; the seconds since 2026 are more than any number of revocations.
pub(crate) fn first_epoch(files: &Paths, serial: u64, now_ms: u64) -> u32 {
    let next = serial.saturating_add(1);
    let first = match files.authority_dir().join(RESTORED).exists() {
        true => next.max((now_ms / 1000).saturating_sub(SECONDS_TO_2026)),
        false => next,
    };
    u32::try_from(first).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn init_makes_a_cluster_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = init(dir.path(), "lab").expect("a cluster");
        let identity = Identity::load(dir.path()).expect("its identity");
        assert_eq!((identity.node, hex::encode(identity.cluster)), (made.node, made.cluster.clone()));
        assert!(identity.expires_ms > crate::now_ms() + 29 * 24 * 3_600_000);
        let mode = |path: PathBuf| {
            use std::os::unix::fs::PermissionsExt;
            fs::metadata(path).expect("a file").permissions().mode() & 0o777
        };
        let files = Paths::new(dir.path().to_owned());
        assert_eq!((mode(files.node_key()), mode(files.authority_key())), (0o600, 0o600));
        assert!(matches!(init(dir.path(), "lab"), Err(AuthorityError::Exists(_))));

        // Interrupted before the node had its certificate: the next one goes on with the same authority.
        fs::remove_file(files.node_certificate()).expect("removed");
        assert_eq!(init(dir.path(), "other").expect("finished"), made);
    }

    #[test]
    fn a_backup_comes_back_only_with_its_passphrase() {
        let (dir, other) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let made = init(dir.path(), "lab").expect("a cluster");
        let backup = export(dir.path(), "correct horse", vec![]).expect("a backup");
        assert!(!backup.windows(11).any(|w| w == b"PRIVATE KEY"), "encrypted");
        assert!(matches!(import(other.path(), &backup, "wrong"), Err(AuthorityError::Passphrase)));
        let mut changed = backup.clone();
        *changed.last_mut().expect("bytes") ^= 1;
        assert!(matches!(import(other.path(), &changed, "correct horse"), Err(AuthorityError::Passphrase)));
        assert!(import(other.path(), b"VELOBAK", "correct horse").is_err());
        let back = import(other.path(), &backup, "correct horse").expect("imported");
        assert_eq!(back.cluster, made.cluster);
        assert_ne!(back.node, made.node, "a node of its own");
        let now_ms = (SECONDS_TO_2026 + 1000) * 1000;
        let epoch = |dir: &Path, serial| first_epoch(&Paths::new(dir.to_owned()), serial, now_ms);
        assert_eq!(
            (epoch(dir.path(), 0), epoch(other.path(), 0), epoch(other.path(), 5000)),
            (1, 1000, 5001)
        );
        assert!(import(other.path(), &backup, "correct horse").is_err(), "overwrites nothing");
        assert!(matches!(export(Path::new("/nonexistent"), "x", vec![]), Err(AuthorityError::Absent(_))));
    }

    #[test]
    fn certificates_bear_the_nodes_name_and_nothing_that_the_request_asks_for() {
        let dir = tempfile::tempdir().expect("a directory");
        init(dir.path(), "lab").expect("a cluster");
        let authority = Authority::open(dir.path()).expect("the authority");
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["evil.example".to_owned()]).expect("params");
        params.is_ca = rcgen::IsCa::NoCa;
        let csr = params.serialize_request(&key).expect("a request");
        let (node, der) = authority.issue(csr.der(), CERTIFICATE_LIFETIME).expect("a certificate");
        assert_eq!(&node.as_bytes()[..], key.public_key_raw());
        assert_eq!(public_key(&der).expect("its key"), node);
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("DER");
        let names = parsed
            .subject_alternative_name()
            .expect("well formed")
            .expect("there")
            .value
            .general_names
            .clone();
        assert_eq!(format!("{names:?}"), format!("[DNSName({:?})]", certificate_name(&node)));
        assert!(!parsed.is_ca());
        let (_, ca) = x509_parser::parse_x509_certificate(authority.certificate()).expect("DER");
        assert_eq!(parsed.issuer(), ca.subject());

        let mut forged = csr.der().to_vec();
        *forged.last_mut().expect("bytes") ^= 1;
        assert!(authority.issue(&forged, CERTIFICATE_LIFETIME).is_err(), "no proof of the key");
        let p256 = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&p256).expect("a request");
        assert!(authority.issue(csr.der(), CERTIFICATE_LIFETIME).is_err(), "another kind of key");
        assert!(authority.issue(b"garbage", CERTIFICATE_LIFETIME).is_err());
    }
}
