//! Who this node is: its key, its certificate and the cluster that issued it.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use velo_config::Paths;
use velo_object::NodeId;

use crate::authority::{self, AuthorityError};
use crate::signed::Signer;

/// This node's identity, as it stands in `identity/`.
#[derive(Debug)]
pub struct Identity {
    /// The node: its public key.
    pub node: NodeId,
    /// Signs what this node says.
    pub signer: Signer,
    /// The cluster.
    pub cluster: [u8; 32],
    /// The key of the cluster's authority.
    pub authority: NodeId,
    /// The authority's certificate, in DER.
    pub authority_certificate: Vec<u8>,
    /// When the certificate began.
    pub begins_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, AuthorityError> {
    CertificateDer::from_pem_slice(&crate::authority::read(path)?).map_err(|error| malformed(path, error))
}

fn malformed(path: &Path, why: impl ToString) -> AuthorityError {
    AuthorityError::Malformed { what: path.display().to_string(), why: why.to_string() }
}

/// When a certificate (DER) begins and ends.
pub(crate) fn validity_ms(path: &Path, der: &[u8]) -> Result<(u64, u64), AuthorityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|error| malformed(path, error))?;
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    let validity = parsed.validity();
    Ok((ms(validity.not_before.timestamp()), ms(validity.not_after.timestamp())))
}

impl Identity {
    /// Reads it.
    ///
    /// # Errors
    /// [`AuthorityError::Io`], or [`AuthorityError::Malformed`] where key and certificate do not belong together.
    pub fn load(data_dir: &Path) -> Result<Self, AuthorityError> {
        let files = Paths::new(data_dir.to_owned());
        let (key_path, path) = (files.node_key(), files.node_certificate());
        let signer =
            Signer::from_pem(&crate::authority::read(&key_path)?).map_err(|e| malformed(&key_path, e))?;
        let own = certificate(&path)?;
        let node = signer.public();
        if authority::public_key(&own)? != node {
            return Err(malformed(&path, "it belongs to another key than node.key"));
        }
        let authority_certificate = certificate(&files.ca_certificate())?;
        let (begins_ms, expires_ms) = validity_ms(&path, &own)?;
        Ok(Self {
            node,
            signer,
            cluster: authority::cluster_of(&authority_certificate)?,
            authority: authority::public_key(&authority_certificate)?,
            authority_certificate: authority_certificate.to_vec(),
            begins_ms,
            expires_ms,
        })
    }

    /// When the certificate is to be renewed: at two thirds of its life.
    pub fn renew_at_ms(&self) -> u64 {
        self.begins_ms + self.expires_ms.saturating_sub(self.begins_ms) / 3 * 2
    }
}
