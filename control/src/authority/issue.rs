//! Issuing certificates: the authority's key, and what stands in the certificates that it signs.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use velo_config::Paths;
use velo_object::NodeId;

use super::AuthorityError;
use super::files;
use crate::signed::Signer;

/// How long a node's certificate is good.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the authority's own certificate is good.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Certificates begin this much before they are issued: clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(600);

/// The authority of a cluster, on the node that has its key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    signer: Signer,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    cluster: [u8; 32],
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("cluster", &hex::encode(self.cluster)).finish_non_exhaustive()
    }
}

/// The name in a node's certificate: `<first 32 hex>.<last 32 hex>.velo`, since a label has at most 63 letters.
pub fn certificate_name(node: &NodeId) -> String {
    let digits = node.to_hex();
    format!("{}.{}.velo", &digits[..32], &digits[32..])
}

/// The cluster that a certificate of an authority stands for: the BLAKE3 hash of its SubjectPublicKeyInfo, in DER.
///
/// # Errors
/// [`AuthorityError::Malformed`].
pub fn cluster_of(authority_certificate: &[u8]) -> Result<[u8; 32], AuthorityError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(authority_certificate)
        .map_err(|error| malformed("the authority's certificate", error))?;
    Ok(*blake3::hash(certificate.tbs_certificate.subject_pki.raw).as_bytes())
}

fn malformed(what: &str, why: impl ToString) -> AuthorityError {
    AuthorityError::Malformed { what: what.to_owned(), why: why.to_string() }
}

fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| malformed("the system's randomness", error))?;
    bytes[0] &= 0x7f; // a positive number
    Ok(SerialNumber::from_slice(&bytes))
}

/// The ed25519 key in a SubjectPublicKeyInfo.
fn node_of(key: &impl PublicKeyData) -> Result<NodeId, AuthorityError> {
    let raw: Result<[u8; 32], _> = key.der_bytes().try_into();
    match raw {
        Ok(bytes) if *key.algorithm() == rcgen::PKCS_ED25519 => Ok(NodeId::from_bytes(bytes)),
        _ => Err(malformed("the request for a certificate", "its key is not ed25519")),
    }
}

impl Authority {
    /// Makes a new authority: gives its key (PEM) and certificate (PEM).
    pub(crate) fn generate(name: &str) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| malformed("a new key", e))?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        let name = if name.is_empty() { "velo" } else { name };
        params.distinguished_name.push(DnType::CommonName, format!("{name} cluster authority"));
        params.serial_number = Some(serial()?);
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + AUTHORITY_LIFETIME);
        let certificate =
            params.self_signed(&key).map_err(|e| malformed("the authority's certificate", e))?;
        Ok((key.serialize_pem(), certificate.pem()))
    }

    /// The authority in a data directory.
    ///
    /// # Errors
    /// [`AuthorityError::Absent`] where there is none, [`AuthorityError::Io`], [`AuthorityError::Malformed`].
    pub fn open(data_dir: &Path) -> Result<Self, AuthorityError> {
        let files = Paths::new(data_dir.to_owned());
        if !files.authority_key().exists() {
            return Err(AuthorityError::Absent(data_dir.to_owned()));
        }
        let text = |path: &Path| {
            String::from_utf8(files::read(path)?).map_err(|e| malformed(&path.display().to_string(), e))
        };
        Self::from_pem(&text(&files.authority_key())?, &text(&files.authority_certificate())?)
    }

    /// The authority with this key and certificate.
    pub(crate) fn from_pem(key_pem: &str, certificate_pem: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key_pem).map_err(|e| malformed("the authority's key", e))?;
        let signer = Signer::from_pem(key_pem.as_bytes()).map_err(|e| malformed("the authority's key", e))?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| malformed("the authority's certificate", e))?;
        if public_key(&certificate)? != signer.public() {
            return Err(malformed("the authority's certificate", "it belongs to another key"));
        }
        let cluster = cluster_of(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| malformed("the authority's certificate", e))?;
        Ok(Self { issuer, signer, certificate_pem: certificate_pem.to_owned(), certificate, cluster })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> [u8; 32] {
        self.cluster
    }

    /// Signs statements that all members believe (revocations, gossip keys).
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Its certificate, in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its certificate, in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Certifies a key of this machine.
    pub(crate) fn certify(&self, key: &KeyPair, lifetime: Duration) -> Result<String, AuthorityError> {
        Ok(self.sign(key, lifetime)?.1.pem())
    }

    /// Certifies the key of a signing request, of which nothing but the key is used; the request proves that its sender has the
    /// secret key. Gives the node and its certificate in DER.
    ///
    /// # Errors
    /// [`AuthorityError::Malformed`].
    pub fn issue(
        &self,
        request: &[u8],
        lifetime: Duration,
    ) -> Result<(NodeId, CertificateDer<'static>), AuthorityError> {
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|e| malformed("the request for a certificate", e))?;
        let (node, certificate) = self.sign(&request.public_key, lifetime)?;
        Ok((node, certificate.der().clone()))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<(NodeId, rcgen::Certificate), AuthorityError> {
        let node = node_of(key)?;
        let mut params = CertificateParams::new(vec![certificate_name(&node)])
            .map_err(|e| malformed("the node's certificate", e))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, node.short());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial()?);
        params.use_authority_key_identifier_extension = true;
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now - CLOCK_SKEW, now + lifetime);
        let certificate =
            params.signed_by(key, &self.issuer).map_err(|e| malformed("the node's certificate", e))?;
        Ok((node, certificate))
    }
}

/// The ed25519 key that a certificate speaks of.
pub(crate) fn public_key(certificate: &[u8]) -> Result<NodeId, AuthorityError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| malformed("a certificate", e))?;
    let key = &certificate.tbs_certificate.subject_pki;
    let raw: Result<[u8; 32], _> = key.subject_public_key.data.as_ref().try_into();
    match raw {
        Ok(bytes) if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => Ok(NodeId::from_bytes(bytes)),
        _ => Err(malformed("a certificate", "its key is not ed25519")),
    }
}

/// Makes a signing request for a key (PEM).
pub(crate) fn request(key_pem: &str) -> Result<Vec<u8>, AuthorityError> {
    let key = KeyPair::from_pem(key_pem).map_err(|e| malformed("the node's key", e))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|e| malformed("a signing request", e))?;
    Ok(request.der().to_vec())
}

/// Whether a certificate bears the signature of an authority's certificate (both in DER).
pub(crate) fn signed_by(certificate: &[u8], authority: &[u8]) -> bool {
    use ring::signature::{ED25519, UnparsedPublicKey};
    let Ok((_, authority)) = x509_parser::parse_x509_certificate(authority) else { return false };
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let key = authority.tbs_certificate.subject_pki.subject_public_key.data.as_ref();
    let signature = parsed.signature_value.data.as_ref();
    UnparsedPublicKey::new(&ED25519, key).verify(parsed.tbs_certificate.as_ref(), signature).is_ok()
}

/// A certificate in PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}
