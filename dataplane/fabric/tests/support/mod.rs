//! Two fabrics on loopback, a source of blobs, and certificates, for the tests of `tcp`.
#![allow(dead_code)]

use std::collections::HashMap;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath, TlsKeys, prepare_client, prepare_server};
use velo_fabric::{Completion, Fabric, PathId, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

pub const A: NodeId = NodeId::from_bytes([0xaa; 32]);
pub const B: NodeId = NodeId::from_bytes([0xbb; 32]);

/// Bytes that differ everywhere.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Serves blobs from files and outboards from memory, and counts.
#[derive(Default)]
pub struct Source {
    blobs: Mutex<HashMap<BlobId, Stored>>,
    pub sent: AtomicU64,
    pub asked: AtomicU64,
    leases: Arc<()>,
}

/// A file, how much of it is content, and the outboard.
type Stored = (Arc<std::fs::File>, u64, Arc<[u8]>);

impl Source {
    pub fn add(&self, content: &[u8], outboard: &[u8]) -> BlobId {
        let mut file = tempfile::tempfile().unwrap();
        // Not at the beginning of its file, as in a pack.
        file.write_all(&[0x55; 100]).unwrap();
        file.write_all(content).unwrap();
        let id = BlobId::of(content);
        self.blobs.lock().unwrap().insert(id, (Arc::new(file), content.len() as u64, outboard.into()));
        id
    }

    /// Cuts the file of a blob after so many bytes of content.
    pub fn cut(&self, blob: &BlobId, len: u64) {
        self.blobs.lock().unwrap()[blob].0.set_len(100 + len).unwrap();
    }

    /// How many leases are out.
    pub fn leases(&self) -> usize {
        Arc::strong_count(&self.leases) - 1
    }
}

impl Serve for Source {
    fn serve(&self, _peer: NodeId, blob: &BlobId, what: What, range: Range<u64>) -> Result<Served, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let blobs = self.blobs.lock().unwrap();
        let (file, size, outboard) = blobs.get(blob).ok_or(Refusal::NotHere)?;
        let lease = Box::new(self.leases.clone());
        match what {
            What::Blob => {
                let end = range.end.min(*size);
                if range.start >= end {
                    return Err(Refusal::Refused);
                }
                let content = ServedContent::File { file: file.clone(), offset_bytes: 100 + range.start };
                Ok(Served { content, len: (end - range.start) as u32, lease })
            }
            What::Outboard => {
                let end = range.end.min(outboard.len() as u64) as usize;
                let bytes = outboard.get(range.start as usize..end).ok_or(Refusal::NotHere)?;
                Ok(Served {
                    content: ServedContent::Bytes(bytes.to_vec().into()),
                    len: bytes.len() as u32,
                    lease,
                })
            }
        }
    }

    fn sent(&self, _peer: NodeId, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Both ends of a connection over loopback: the dialler's first.
pub fn sockets(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (dialled, listener.accept().unwrap().0)
}

fn credentials() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["b.velo".into()]).unwrap().self_signed(&key).unwrap();
    (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

/// A TLS 1.3 handshake with client authentication over the two sockets; the client's keys first.
pub fn handshake(
    client: &mut TcpStream,
    server: &mut TcpStream,
    suite: rustls::SupportedCipherSuite,
) -> (TlsKeys, TlsKeys) {
    let (certificate, key) = credentials();
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites = vec![suite];
    let provider = Arc::new(provider);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots.clone()),
        provider.clone(),
    )
    .build()
    .unwrap();
    let mut server_config = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.clone()], key.clone_key())
        .unwrap();
    prepare_server(&mut server_config);
    let mut client_config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)
        .unwrap();
    prepare_client(&mut client_config);
    let name = ServerName::try_from("b.velo").unwrap();
    let mut ours =
        rustls::Connection::from(rustls::ClientConnection::new(Arc::new(client_config), name).unwrap());
    let mut theirs =
        rustls::Connection::from(rustls::ServerConnection::new(Arc::new(server_config)).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while theirs.is_handshaking() {
                theirs.complete_io(server).map(|_| ()).unwrap()
            }
        });
        while ours.is_handshaking() {
            ours.complete_io(client).unwrap();
        }
        while ours.wants_write() {
            ours.write_tls(client).unwrap();
        }
    });
    (TlsKeys::take(ours).unwrap(), TlsKeys::take(theirs).unwrap())
}

/// How the streams of a test are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    Plain,
    Aes128,
    Aes256,
    Chacha,
}

pub const PROTECTIONS: [Protection; 4] =
    [Protection::Plain, Protection::Aes128, Protection::Aes256, Protection::Chacha];

/// Two fabrics; `a` has dialled.
pub struct Pair {
    pub a: Tcp,
    pub b: Tcp,
    pub a_source: Arc<Source>,
    pub b_source: Arc<Source>,
    pub pool: Pool,
    pub protection: Protection,
    pub a_done: Vec<Completion>,
    pub b_done: Vec<Completion>,
}

pub fn options() -> TcpOptions {
    TcpOptions {
        stall_timeout: Duration::from_millis(200),
        send_timeout: Duration::from_millis(400),
        ..TcpOptions::default()
    }
}

impl Pair {
    pub fn new(protection: Protection) -> Self {
        Self::with(protection, options())
    }

    pub fn with(protection: Protection, options: TcpOptions) -> Self {
        let (a_source, b_source) = (Arc::new(Source::default()), Arc::new(Source::default()));
        Self {
            a: Tcp::new(options, a_source.clone()).unwrap(),
            b: Tcp::new(options, b_source.clone()).unwrap(),
            a_source,
            b_source,
            pool: Pool::new(128 << 20).unwrap(),
            protection,
            a_done: Vec::new(),
            b_done: Vec::new(),
        }
    }

    /// One more path between the two, with this number on both sides.
    pub fn connect(&mut self, id: PathId, address: &str) {
        let (mut a, mut b) = sockets(address);
        let (a_keys, b_keys) = protect(self.protection, &mut a, &mut b);
        self.a.add_path(TcpPath { id, peer: B, stream: a, tls: a_keys }).unwrap();
        self.b.add_path(TcpPath { id, peer: A, stream: b, tls: b_keys }).unwrap();
    }

    pub fn read(&self, tag: u64, blob: BlobId, offset_bytes: u64, len: u32) -> Read {
        let mut buffer = self.pool.take().unwrap();
        buffer.as_mut().fill(0xee);
        Read { tag, blob, what: What::Blob, offset_bytes, len, buffer }
    }

    /// Polls both until `until` says so.
    pub fn drive(&mut self, mut until: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !until(self) {
            let now = Instant::now();
            assert!(now < end, "nothing came of it: {:?} {:?}", self.a.counters(), self.b.counters());
            if self.a.poll(now, &mut self.a_done) + self.b.poll(now, &mut self.b_done) == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

pub fn protect(
    protection: Protection,
    a: &mut TcpStream,
    b: &mut TcpStream,
) -> (Option<TlsKeys>, Option<TlsKeys>) {
    use rustls::crypto::ring::cipher_suite as suites;
    let suite = match protection {
        Protection::Plain => return (None, None),
        Protection::Aes128 => suites::TLS13_AES_128_GCM_SHA256,
        Protection::Aes256 => suites::TLS13_AES_256_GCM_SHA384,
        Protection::Chacha => suites::TLS13_CHACHA20_POLY1305_SHA256,
    };
    let (a, b) = handshake(a, b, suite);
    (Some(a), Some(b))
}

/// The read with this tag, as it ended.
pub fn ended(done: &[Completion], wanted: u64) -> Option<(&[u8], Result<u32, velo_fabric::ReadError>)> {
    done.iter().find_map(|completion| match completion {
        Completion::Read { tag, buffer, result, .. } if *tag == wanted => Some((buffer.as_ref(), *result)),
        _ => None,
    })
}

pub fn closed(done: &[Completion]) -> Option<&velo_fabric::PathError> {
    done.iter().find_map(|completion| match completion {
        Completion::PathClosed { error, .. } => Some(error),
        _ => None,
    })
}

pub const MIB: usize = BUFFER_BYTES;
