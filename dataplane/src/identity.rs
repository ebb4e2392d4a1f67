//! Who this node is and whom it believes: key, certificate and authority from disk, TLS configurations, and the revoked nodes.
//!
//! Certificates are checked by rustls' own WebPki verifiers against the cluster's authority alone; what is added here is that a revoked node
//! fails at the handshake, and that nothing outlives a handshake: no tickets, no resumption, no early data.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring as provider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;
use velo_config::Paths;
use velo_object::NodeId;

/// ALPN of a session.
pub const SESSION_ALPN: &[u8] = b"velo-session/1";
/// ALPN of a data stream.
pub const DATA_ALPN: &[u8] = b"velo-data/1";
/// ALPN of a connection that asks to join.
pub const JOIN_ALPN: &[u8] = b"velo-join/1";

/// The largest file of an identity, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// Why the identity of this node cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The node belongs to no cluster.
    #[error("{} is not there: this node belongs to no cluster; run `velo cluster init`, or `velo up --join HOST:PORT --token T`", .0.display())]
    Absent(PathBuf),
    /// A file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} cannot be used: {why}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

/// The nodes that may not take part any more. Clones share one set.
#[derive(Debug, Clone, Default)]
pub struct RevokedNodes(Arc<ArcSwap<HashSet<NodeId>>>);

impl RevokedNodes {
    /// Replaces the set.
    pub fn set(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.0.store(Arc::new(nodes.into_iter().collect()));
    }

    /// Whether a node is revoked.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.0.load().contains(node)
    }

    /// The set as it is now.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.0.load().iter().copied().collect()
    }
}

/// What a certificate says that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is: its ed25519 key.
    pub node: NodeId,
    /// When it ends.
    pub expires: SystemTime,
}

/// Reads the key and the end of a certificate (DER); none where its key is not ed25519.
pub fn certificate_facts(der: &[u8]) -> Option<CertificateFacts> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let key = &certificate.tbs_certificate.subject_pki;
    if key.algorithm.algorithm.to_id_string() != "1.3.101.112" {
        return None;
    }
    let node = NodeId::from_bytes(key.subject_public_key.data.as_ref().try_into().ok()?);
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Some(CertificateFacts { node, expires: UNIX_EPOCH + Duration::from_secs(seconds) })
}

/// The cluster that an authority's certificate (DER) stands for: BLAKE3 of its SubjectPublicKeyInfo.
pub fn cluster_of(authority: &[u8]) -> Option<[u8; 32]> {
    let (_, certificate) = x509_parser::parse_x509_certificate(authority).ok()?;
    Some(*velo_object::BlobId::of(certificate.tbs_certificate.subject_pki.raw).as_bytes())
}

/// The name in a node's certificate, by which TLS checks whom we dialled.
pub fn server_name(node: &NodeId) -> ServerName<'static> {
    let digits = node.to_hex();
    let name = format!("{}.{}.velo", &digits[..32], &digits[32..]);
    ServerName::try_from(name).expect("hexadecimal digits make a DNS name")
}

/// Ciphers of Velo: TLS 1.3 by ring, AES-128-GCM first.
pub(crate) fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..provider::default_provider()
    })
}

/// The identity of a node, with the TLS configurations that follow from it.
pub struct Identity {
    node: NodeId,
    cluster: [u8; 32],
    expires: SystemTime,
    revoked: RevokedNodes,
    session_server: Arc<ServerConfig>,
    data_server: Arc<ServerConfig>,
    join_server: Arc<ServerConfig>,
    session_client: Arc<ClientConfig>,
    data_client: Arc<ClientConfig>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => IdentityError::Absent(path.to_owned()),
        _ => IdentityError::Io { path: path.to_owned(), error },
    };
    if std::fs::metadata(path).map_err(io)?.len() > FILE_BYTES {
        return Err(malformed(path, "it is larger than any such file"));
    }
    std::fs::read(path).map_err(io)
}

fn malformed(path: &Path, why: impl ToString) -> IdentityError {
    IdentityError::Malformed { path: path.to_owned(), why: why.to_string() }
}

impl Identity {
    /// Reads `identity/`, the list of revoked nodes among it. Nodes in `revoked` before stay there.
    ///
    /// # Errors
    /// [`IdentityError`]; also where the list of revoked nodes is there and cannot be believed, since going on would let them in.
    pub fn load(paths: &Paths, revoked: &RevokedNodes) -> Result<Self, IdentityError> {
        let (key_path, own_path, ca_path) =
            (paths.node_key(), paths.node_certificate(), paths.ca_certificate());
        let key = read(&key_path)?;
        let certificate = |path: &Path| {
            CertificateDer::from_pem_slice(&read(path)?).map_err(|error| malformed(path, error))
        };
        let own = certificate(&own_path)?;
        let authority = certificate(&ca_path)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| malformed(&key_path, error))?;
        let facts = certificate_facts(&own)
            .ok_or_else(|| malformed(&own_path, "it is no certificate of an ed25519 key"))?;
        let listed = read_revoked(&paths.revoked(), &authority)?;
        if !listed.is_empty() {
            revoked.set(revoked.nodes().into_iter().chain(listed));
        }
        Self::new(facts, own, key, &authority, revoked.clone()).map_err(|why| malformed(&own_path, why))
    }

    fn new(
        facts: CertificateFacts,
        own: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        authority: &CertificateDer<'static>,
        revoked: RevokedNodes,
    ) -> Result<Self, String> {
        let text = |error: &dyn fmt::Display| error.to_string();
        let crypto = crypto_provider();
        let cluster = cluster_of(authority).ok_or("the authority's certificate cannot be read")?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone()).map_err(|e| text(&e))?;
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), crypto.clone())
            .build()
            .map_err(|e| text(&e))?;
        let clients = Arc::new(NotRevoked { inner: clients, revoked: revoked.clone() });
        let servers = WebPkiServerVerifier::builder_with_provider(roots, crypto.clone())
            .build()
            .map_err(|e| text(&e))?;
        let servers = Arc::new(NotRevoked { inner: servers, revoked: revoked.clone() });
        let chain = vec![own, authority.clone()];
        let server = |alpn: &[u8], mutual: bool| -> Result<ServerConfig, rustls::Error> {
            let builder = ServerConfig::builder_with_provider(crypto.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?;
            let builder = if mutual {
                builder.with_client_cert_verifier(clients.clone())
            } else {
                builder.with_no_client_auth()
            };
            let mut config = builder.with_single_cert(chain.clone(), key.clone_key())?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            Ok(config)
        };
        let client = |alpn: &[u8]| -> Result<ClientConfig, rustls::Error> {
            let mut config = ClientConfig::builder_with_provider(crypto.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(servers.clone())
                .with_client_auth_cert(chain.clone(), key.clone_key())?;
            config.alpn_protocols = vec![alpn.to_vec()];
            config.resumption = Resumption::disabled();
            Ok(config)
        };
        let configs = (|| {
            let (mut data_server, mut data_client) = (server(DATA_ALPN, true)?, client(DATA_ALPN)?);
            velo_fabric::tcp::prepare_server(&mut data_server);
            velo_fabric::tcp::prepare_client(&mut data_client);
            Ok::<_, rustls::Error>(Self {
                node: facts.node,
                cluster,
                expires: facts.expires,
                revoked,
                session_server: Arc::new(server(SESSION_ALPN, true)?),
                data_server: Arc::new(data_server),
                join_server: Arc::new(server(JOIN_ALPN, false)?),
                session_client: Arc::new(client(SESSION_ALPN)?),
                data_client: Arc::new(data_client),
            })
        })();
        configs.map_err(|e| text(&e))
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The cluster's id.
    pub fn cluster(&self) -> [u8; 32] {
        self.cluster
    }

    /// When this node's certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The nodes that are refused at every handshake.
    pub fn revoked(&self) -> &RevokedNodes {
        &self.revoked
    }

    pub(crate) fn session_server(&self) -> Arc<ServerConfig> {
        self.session_server.clone()
    }
    pub(crate) fn data_server(&self) -> Arc<ServerConfig> {
        self.data_server.clone()
    }
    pub(crate) fn join_server(&self) -> Arc<ServerConfig> {
        self.join_server.clone()
    }
    pub(crate) fn session_client(&self) -> Arc<ClientConfig> {
        self.session_client.clone()
    }
    pub(crate) fn data_client(&self) -> Arc<ClientConfig> {
        self.data_client.clone()
    }
}

/// `identity/revoked` as velo-control writes it: a signed statement (see velo-control's `signed` module).
#[derive(Deserialize)]
struct SignedList {
    signer: NodeId,
    body: Vec<u8>,
    signature: Vec<u8>,
}

#[derive(Deserialize)]
struct RevocationList {
    cluster: [u8; 32],
    _serial: u64,
    revoked: Vec<(NodeId, u64)>,
}

fn read_revoked(path: &Path, authority: &[u8]) -> Result<Vec<NodeId>, IdentityError> {
    let bytes = match read(path) {
        Ok(bytes) => bytes,
        Err(IdentityError::Absent(_)) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    parse_revoked(&bytes, authority).ok_or_else(|| {
        malformed(path, "it is not a list of revoked nodes signed by this cluster's authority")
    })
}

fn parse_revoked(bytes: &[u8], authority: &[u8]) -> Option<Vec<NodeId>> {
    let signed: SignedList = postcard::from_bytes(bytes).ok()?;
    let key = certificate_facts(authority)?.node;
    if signed.signer != key {
        return None;
    }
    let message = [b"velo/revoked/1\0", &signed.body[..]].concat();
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key.as_bytes())
        .verify(&message, &signed.signature)
        .ok()?;
    let list: RevocationList = postcard::from_bytes(&signed.body).ok()?;
    (list.cluster == cluster_of(authority)?).then(|| list.revoked.into_iter().map(|(node, _)| node).collect())
}

/// WebPki's verdict, and then that the node is not revoked.
#[derive(Debug)]
struct NotRevoked<V: ?Sized> {
    revoked: RevokedNodes,
    inner: Arc<V>,
}

impl<V: ?Sized> NotRevoked<V> {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let facts = certificate_facts(certificate).ok_or(CertificateError::BadEncoding)?;
        if self.revoked.contains(&facts.node) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for NotRevoked<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for NotRevoked<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A stranger need not learn the authority's name.
        &[]
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
