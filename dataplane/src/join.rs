//! Joining a cluster: from a token to the identity files of this node. Blocking; used by the CLI before velod starts.
//!
//! The secret leaves only after the server has proven that its certificate comes from the authority whose fingerprint stands in the token. The
//! key is written before the request leaves and used again by a later attempt, so that an answer that was lost costs no second use of
//! the token; the certificate is written last, so that a node that has one has all.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::join::{JOIN_VERSION, JoinRequest, Joined, MAX_JOIN_BYTES, SEEDS_FILE, Token};

use crate::identity::{self, JOIN_ALPN, certificate_facts, cluster_of, server_name};

/// How long one address may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the other side may say nothing: the authority works on it for at most 20 s.
const SILENCE: Duration = Duration::from_secs(30);
/// What stands around an answer.
const ENVELOPE_BYTES: usize = 1024;

/// Why this node did not join.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It is a member already.
    #[error("{} is there: this node belongs to a cluster already", .0.display())]
    Member(PathBuf),
    /// The token has expired.
    #[error("the token has expired: make another with `velo cluster token` (and compare the clocks)")]
    Expired,
    /// Nobody answers there.
    #[error("cannot reach {address}: {error}")]
    Unreachable {
        /// What was given.
        address: String,
        /// Why not.
        error: io::Error,
    },
    /// The other side is not of the cluster that made the token.
    #[error("{address} is not of the cluster that made the token: {error}")]
    Stranger {
        /// What was given.
        address: String,
        /// What TLS says.
        error: String,
    },
    /// The cluster said no.
    #[error("{address}: {why}")]
    Refused {
        /// What was given.
        address: String,
        /// Its words.
        why: String,
    },
    /// The answer is not what it should be.
    #[error("{address} answered what cannot be used: {why}")]
    Answer {
        /// What was given.
        address: String,
        /// Why not.
        why: String,
    },
    /// A file cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A key or a request for a certificate cannot be made.
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
}

/// Joins the cluster that made the token, by any node at `address` (`HOST:PORT`) that has its authority, and writes `identity/`.
/// Gives this node's id.
///
/// # Errors
/// [`JoinError`].
pub fn join(data_dir: &Path, address: &str, token: &Token) -> Result<NodeId, JoinError> {
    let paths = Paths::new(data_dir.to_owned());
    if paths.node_certificate().exists() {
        return Err(JoinError::Member(paths.node_certificate()));
    }
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if token.expires_s <= now_s {
        return Err(JoinError::Expired);
    }
    let key = own_key(&paths)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?.der().to_vec();
    let request = JoinRequest { version: JOIN_VERSION, secret: token.secret, request };
    let joined = ask(address, token, &request)?;
    let answer = |why: &str| JoinError::Answer { address: address.to_owned(), why: why.to_owned() };
    let node = check(&joined, token, &key).map_err(|why| answer(&why))?;
    let members = postcard::to_stdvec(&joined.members).map_err(|_| answer("its list of members"))?;
    write(&paths.identity_dir().join(SEEDS_FILE), &members, 0o644)?;
    write(&paths.ca_certificate(), pem(&joined.authority).as_bytes(), 0o644)?;
    write(&paths.node_certificate(), pem(&joined.certificate).as_bytes(), 0o644)?;
    Ok(node)
}

/// The key of an attempt that was cut short, or a new one.
fn own_key(paths: &Paths) -> Result<rcgen::KeyPair, JoinError> {
    let path = paths.node_key();
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(rcgen::KeyPair::from_pem(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(JoinError::Io { path, error }),
    }
    let dir = paths.identity_dir();
    // Others may pass through the one above it: the socket for those who may use this node is there.
    let make = |path: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    let above = dir.parent().map_or(Ok(()), |parent| make(parent, 0o711));
    let made = above.and_then(|()| make(&dir, 0o700));
    made.map_err(|error| JoinError::Io { path: dir, error })?;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    write(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

/// Writes a file beside its place, syncs it and moves it there.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), JoinError> {
    let beside = path.with_extension("new");
    let written = (|| {
        let _ = fs::remove_file(&beside);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|error| JoinError::Io { path: path.to_owned(), error })
}

/// A certificate as text: RFC 7468.
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes make a line of 64 letters.
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                group.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for at in 0..4 {
                let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
                text.push(if at <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// Checks what was granted as others will check it.
fn check(joined: &Joined, token: &Token, key: &rcgen::KeyPair) -> Result<NodeId, String> {
    let (own, authority) =
        (CertificateDer::from(joined.certificate.clone()), CertificateDer::from(joined.authority.clone()));
    if cluster_of(&authority) != Some(token.cluster) {
        return Err("the authority's certificate is another one".to_owned());
    }
    let facts = certificate_facts(&own).ok_or("its certificate cannot be read")?;
    if facts.node.as_bytes()[..] != *key.public_key_raw() {
        return Err("it certifies another key".to_owned());
    }
    let roots = roots(&authority).map_err(|error| error.to_string())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, identity::crypto_provider());
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    verifier.verify_client_cert(&own, &[], UnixTime::now()).map_err(|error| error.to_string())?;
    Ok(facts.node)
}

fn roots(authority: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone().into_owned())?;
    Ok(Arc::new(roots))
}

fn connect(address: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.take(16).collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_write_timeout(Some(SILENCE))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn ask(address: &str, token: &Token, request: &JoinRequest) -> Result<Joined, JoinError> {
    let unreachable = |error| JoinError::Unreachable { address: address.to_owned(), error };
    let answer = |why: String| JoinError::Answer { address: address.to_owned(), why };
    let stranger = |error: &dyn std::fmt::Display| JoinError::Stranger {
        address: address.to_owned(),
        error: error.to_string(),
    };
    let mut tcp = connect(address).map_err(unreachable)?;
    let name = ServerName::try_from("join.velo").expect("a DNS name");
    let config = client_config(token.cluster).map_err(|error| answer(error.to_string()))?;
    let mut tls = ClientConnection::new(config, name).map_err(|error| answer(error.to_string()))?;
    while tls.is_handshaking() {
        let of_tls = |error: &io::Error| error.get_ref().and_then(|inner| inner.downcast_ref().cloned());
        tls.complete_io(&mut tcp).map_err(|error| match of_tls(&error) {
            Some(rustls::Error::InvalidCertificate(_)) => stranger(&error),
            Some(error) => {
                answer(format!("{error}; give the address on which a velod listens (`net.listen`)"))
            }
            None => unreachable(error),
        })?;
    }
    let mut stream = StreamOwned::new(tls, tcp);
    let bytes = postcard::to_stdvec(request).map_err(|error| answer(error.to_string()))?;
    let replied = (|| {
        stream.write_all(&(bytes.len() as u32).to_le_bytes())?;
        stream.write_all(&bytes)?;
        stream.flush()?;
        let mut len = [0; 4];
        stream.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > MAX_JOIN_BYTES + ENVELOPE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {len} bytes")));
        }
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes)?;
        Ok(bytes)
    })();
    let reply: Result<Vec<u8>, String> = postcard::from_bytes(&replied.map_err(unreachable)?)
        .map_err(|_| answer("it is not in the form of an answer".to_owned()))?;
    let joined = reply.map_err(|why| JoinError::Refused { address: address.to_owned(), why })?;
    postcard::from_bytes(&joined).map_err(|_| answer("it speaks another version".to_owned()))
}

fn client_config(cluster: [u8; 32]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = identity::crypto_provider();
    let verifier = Arc::new(ByFingerprint { cluster, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Believes a server whose chain brings the authority with the token's fingerprint, and whose own certificate that authority has issued.
#[derive(Debug)]
struct ByFingerprint {
    cluster: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ByFingerprint {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority =
            intermediates.iter().find(|certificate| cluster_of(certificate) == Some(self.cluster));
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let facts = certificate_facts(end_entity).ok_or(CertificateError::BadEncoding)?;
        // Whose certificate it is does not matter here, but it must be one of a node, under its own name.
        WebPkiServerVerifier::builder_with_provider(roots(authority)?, self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], &server_name(&facts.node), ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn certificates_as_text_read_back() {
        for len in 0..200u8 {
            let der: Vec<u8> = (0..len).map(|byte| byte.wrapping_mul(37)).collect();
            let back = CertificateDer::from_pem_slice(pem(&der).as_bytes()).expect("well-formed");
            assert_eq!(back.as_ref(), der);
        }
    }

    #[test]
    fn a_token_that_has_expired_or_a_node_that_is_a_member_asks_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let expired = Token { cluster: [1; 32], secret: [2; 16], expires_s: 1 };
        assert!(matches!(join(dir.path(), "127.0.0.1:9", &expired), Err(JoinError::Expired)));
        fs::create_dir(dir.path().join("identity")).expect("made");
        fs::write(dir.path().join("identity/node.crt"), "x").expect("written");
        let good = Token { expires_s: u64::MAX, ..expired };
        assert!(matches!(join(dir.path(), "127.0.0.1:9", &good), Err(JoinError::Member(_))));
    }
}
