//! Who has no valid certificate gets nothing: the bytes that a stranger is sent are counted.
//!
//! A stranger says what a member would say, and each test first counts what a member is sent for the very same words: more than nothing.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use velo_fabric::tcp::plain::{PREAMBLE_BYTES, Preamble};
use velo_object::NodeId;
use velo_tests::{Cluster, Node, PATIENCE, Settings, wait_until};
use velod::identity::{DATA_ALPN, SESSION_ALPN, certificate_facts, cluster_of};

/// A stranger does not care whom he talks to.
#[derive(Debug)]
struct Careless;

impl ServerCertVerifier for Careless {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Who somebody claims to be: a folder with a certificate and a key, or nobody.
#[derive(Clone, Copy)]
struct Claim<'a>(Option<&'a Path>);

impl Claim<'_> {
    fn node(self) -> NodeId {
        let Some(dir) = self.0 else { return NodeId::from_bytes([7; 32]) };
        let der = CertificateDer::from_pem_file(dir.join("node.crt")).expect("a certificate");
        certificate_facts(&der).expect("of an ed25519 key").node
    }

    fn client(self, alpn: &[u8]) -> ClientConnection {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Careless));
        let mut config = match self.0 {
            None => config.with_no_client_auth(),
            Some(dir) => {
                let chain = CertificateDer::pem_file_iter(dir.join("node.crt"))
                    .expect("a certificate")
                    .collect::<Result<_, _>>();
                let key = PrivateKeyDer::from_pem_file(dir.join("node.key")).expect("a key");
                config.with_client_auth_cert(chain.expect("a chain"), key).expect("they fit")
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from("stranger.velo").expect("a name");
        ClientConnection::new(Arc::new(config), name).expect("a client")
    }
}

/// The hello of a session, byte by byte (`dataplane/src/session/wire.rs`): its length, the number of the message, the version of the protocol,
/// the cluster, the node, a boot of 1, no addresses, and no trust in the network.
fn hello(cluster: [u8; 32], node: NodeId) -> Vec<u8> {
    let body = [&[0, 3][..], &cluster, node.as_bytes(), &[1, 0, 0]].concat();
    [&(body.len() as u32).to_le_bytes()[..], &body].concat()
}

/// Connects to a node, says hello to its cluster, and counts the application bytes that come: up to the first ones, or until the node hangs up.
fn bytes_sent_to(node: &Node, alpn: &[u8], claim: Claim<'_>) -> usize {
    let authority = CertificateDer::from_pem_file(identity(node).join("ca.crt")).expect("the authority");
    let hello = hello(cluster_of(&authority).expect("a cluster"), claim.node());
    let mut tls = claim.client(alpn);
    let mut tcp = TcpStream::connect(node.listen().expect("it listens")).expect("it accepts");
    tcp.set_read_timeout(Some(PATIENCE)).expect("a deadline");
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    // The handshake, then the words; either may fail, as it should.
    let _ = stream.write_all(&hello);
    let _ = stream.flush();
    match stream.read(&mut [0; 4096]) {
        Ok(count) => count,
        Err(error) => {
            assert!(
                !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                "a stranger is not let go"
            );
            0
        }
    }
}

fn identity(node: &Node) -> PathBuf {
    node.dir.join("data/identity")
}

fn put_something(cluster: &Cluster) -> String {
    let path = cluster.path("secret");
    fs::write(&path, vec![7; 300_000]).expect("a file");
    cluster.nodes[0].json(&["put", path.to_str().expect("UTF-8")])["id"].as_str().expect("an id").to_owned()
}

#[test]
fn without_a_certificate_of_this_cluster_nothing_comes() {
    let cluster = Cluster::start(2);
    put_something(&cluster);
    let target = &cluster.nodes[0];
    let (member, foreign) = (identity(&cluster.nodes[1]), Cluster::start(1));
    let foreign = identity(&foreign.nodes[0]);
    let answered = bytes_sent_to(target, SESSION_ALPN, Claim(Some(&member)));
    assert!(answered > 0, "a member gets an answer: the count counts");
    for alpn in [SESSION_ALPN, DATA_ALPN] {
        assert_eq!(bytes_sent_to(target, alpn, Claim(None)), 0, "no certificate");
        assert_eq!(bytes_sent_to(target, alpn, Claim(Some(&foreign))), 0, "another cluster's");
    }
    let answered = bytes_sent_to(target, SESSION_ALPN, Claim(Some(&member)));
    assert!(answered > 0, "a member still gets one");
}

#[test]
fn rdma_tells_no_stranger_a_key_of_memory() {
    if !velo_tests::rdma::ready() {
        return;
    }
    let settings = velo_tests::rdma::settings("");
    let cluster = Cluster::start_with(2, &settings);
    let (target, paths) = (&cluster.nodes[0], "fabric_paths_opened_total{fabric=\"rdma\"}");
    // Keys travel in grants alone, over queue pairs, and those are offered within a session.
    let granted = || target.counter("fabric_leases_granted_total{fabric=\"rdma\"}");
    let (member, foreign) = (identity(&cluster.nodes[1]), Cluster::start_with(1, &settings));
    let foreign = identity(&foreign.nodes[0]);
    let strangers = || {
        for alpn in [SESSION_ALPN, DATA_ALPN] {
            assert_eq!(bytes_sent_to(target, alpn, Claim(None)), 0, "no certificate");
            assert_eq!(bytes_sent_to(target, alpn, Claim(Some(&foreign))), 0, "another cluster's");
        }
    };
    strangers();
    assert_eq!((target.counter(paths), granted()), (0, 0), "a queue pair was made");
    velo_tests::rdma::warm_up(&cluster, 1, 0);
    let file = cluster.path("more");
    velo_tests::content::random_file(&file, 1, 4 << 20);
    let id = velo_tests::rdma::put(target, &file);
    velo_tests::rdma::get(&cluster.nodes[1], &id, &cluster.path("dest"));
    assert!(target.counter(paths) > 0 && granted() > 0, "the member has no grant");
    let read = cluster.nodes[1].counter("fabric_received_bytes_total{fabric=\"rdma\"}");
    assert!(read > 0, "the member has read nothing by its grants");
    // Nor while queue pairs and grants are there. The count counts: for the same words a member gets an answer.
    let before = granted();
    strangers();
    assert_eq!(granted(), before, "a stranger got a grant");
    assert!(bytes_sent_to(target, SESSION_ALPN, Claim(Some(&member))) > 0);
}

#[test]
fn plain_streams_need_the_key_of_a_session_also_where_the_network_is_trusted() {
    for trusted in [false, true] {
        let cluster = Cluster::start_with(2, &Settings { trusted, ..Settings::default() });
        put_something(&cluster);
        let member = Claim(Some(&identity(&cluster.nodes[1]))).node();
        let preamble = Preamble { node: member, session: [1; 16], stream: 0, nonce: [2; 16] };
        let mut torn = preamble.encode(&[0; 32]).to_vec();
        torn.truncate(PREAMBLE_BYTES - 1);
        for words in
            [&preamble.encode(&[0; 32])[..], &[b'V'; PREAMBLE_BYTES], &torn, b"GET / HTTP/1.1\r\n\r\n"]
        {
            let listen = cluster.nodes[0].listen().expect("it listens");
            let mut tcp = TcpStream::connect(listen).expect("it accepts");
            tcp.set_read_timeout(Some(PATIENCE)).expect("a deadline");
            let _ = tcp.write_all(words);
            let mut got = Vec::new();
            if let Err(error) = tcp.read_to_end(&mut got) {
                assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is not let go");
            }
            assert!(got.is_empty(), "{} bytes for {words:?}", got.len());
        }
    }
}

#[test]
fn a_revoked_node_gets_nothing_and_loses_its_sessions() {
    let cluster = Cluster::start(3);
    let id = put_something(&cluster);
    let dest = cluster.path("before");
    cluster.nodes[2].ok(&["get", &id, dest.to_str().expect("UTF-8")]);
    let revoked = cluster.nodes[2].id();
    let identity = identity(&cluster.nodes[2]);
    for node in &cluster.nodes[..2] {
        let answered = bytes_sent_to(node, SESSION_ALPN, Claim(Some(&identity)));
        assert!(answered > 0, "before it is revoked it gets an answer");
    }
    cluster.nodes[0].ok(&["cluster", "revoke", &revoked]);
    for node in &cluster.nodes[..2] {
        wait_until("the revocation is known and its session closed", || {
            let status = node.socket().status().expect("velod answers");
            status.sessions.iter().all(|session| session.node.to_hex() != revoked)
        });
        for alpn in [SESSION_ALPN, DATA_ALPN] {
            assert_eq!(bytes_sent_to(node, alpn, Claim(Some(&identity))), 0, "a revoked certificate");
        }
        wait_until("it is no member any more", || {
            let peers = node.json(&["peers"]);
            peers["peers"].as_array().is_some_and(|peers| {
                peers.iter().all(|peer| peer["node"] != revoked.as_str() || peer["state"] != "alive")
            })
        });
    }
    // New content does not reach it.
    let path = cluster.path("later");
    fs::write(&path, vec![9; 200_000]).expect("a file");
    let later = cluster.nodes[0].json(&["put", path.to_str().expect("UTF-8")])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let dest = cluster.path("after");
    let refused = cluster.nodes[2].run(&["get", "--wait", "3s", &later, dest.to_str().expect("UTF-8")]);
    assert!(!refused.status.success(), "a revoked node got content");
    assert!(!dest.exists(), "a revoked node got content");
}

#[test]
fn packets_of_strangers_are_not_answered() {
    let cluster = Cluster::over("udp", 2);
    let id = put_something(&cluster);
    cluster.nodes[1].ok(&["get", &id, cluster.path("dest").to_str().expect("UTF-8")]);
    cluster.assert_carried_by("udp");
    let target = &cluster.nodes[0];
    let sent = "fabric_tx_datagrams_total{fabric=\"udp\"}";
    assert!(target.counter(sent) > 0, "a member is answered: the count counts");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.set_read_timeout(Some(Duration::from_millis(500))).expect("a deadline");
    let address = target.udp().expect("it listens");
    // Every kind of frame, sealed and not, to paths that there are and that there are not, short, whole and large.
    for kind in 0..16u8 {
        for (flags, path) in [(0, 0x100u32), (2, 0x100), (3, 0x200), (2, 0), (2, u32::MAX)] {
            for length in [0, 1, 15, 16, 17, 32, 56, 64, 512, 1232, 9000] {
                let mut datagram = vec![0x5a; length.max(16)];
                datagram[..4].copy_from_slice(&[1 << 4 | kind, flags, 0, 0]);
                datagram[4..8].copy_from_slice(&path.to_le_bytes());
                datagram[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
                udp.send_to(&datagram[..length], address).expect("a datagram");
            }
        }
    }
    let mut buffer = [0; 2048];
    assert!(udp.recv_from(&mut buffer).is_err(), "a stranger's datagram was answered");
    // And it still serves members.
    let path = cluster.path("more");
    fs::write(&path, vec![3; 2_000_000]).expect("a file");
    let more = target.json(&["put", path.to_str().expect("UTF-8")])["id"].as_str().expect("an id").to_owned();
    let before = target.counter(sent);
    cluster.nodes[1].ok(&["get", &more, cluster.path("more-dest").to_str().expect("UTF-8")]);
    assert!(target.counter(sent) > before, "packets carry no more");
}

#[test]
fn http_wants_its_token_and_gossip_does_not_answer_strangers() {
    let cluster = Cluster::start(1);
    let id = put_something(&cluster);
    let http = cluster.nodes[0].http().expect("it listens");
    let ask = |path: &str, header: &str| {
        let mut tcp = TcpStream::connect(http).expect("it accepts");
        tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
        write!(tcp, "GET {path} HTTP/1.1\r\nHost: {http}\r\n{header}Connection: close\r\n\r\n")
            .expect("a request");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    };
    for path in ["/v1/status", "/v1/peers", "/v1/refs", &format!("/v1/blobs/{id}"), "/metrics"] {
        let refused = ask(path, "");
        assert!(refused.starts_with("HTTP/1.1 401"), "{path}: {refused}");
        let refused = ask(path, "Authorization: Bearer wrong\r\n");
        assert!(refused.starts_with("HTTP/1.1 401"), "{path}: {refused}");
    }
    assert!(ask("/healthz", "").starts_with("HTTP/1.1 200"));
    let token = cluster.nodes[0].token();
    assert!(ask("/v1/status", &format!("Authorization: Bearer {token}\r\n")).starts_with("HTTP/1.1 200"));
    let rebound =
        ask("/v1/status", &format!("Authorization: Bearer {token}\r\nOrigin: http://evil.example\r\n"));
    assert!(rebound.starts_with("HTTP/1.1 403"), "another site's page: {rebound}");

    let gossip: std::net::SocketAddr = {
        let file = fs::read(cluster.nodes[0].dir.join("data/run/control.json")).expect("control runs");
        let value: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
        value["gossip"].as_str().expect("its gossip address").parse().expect("an address")
    };
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    udp.set_read_timeout(Some(Duration::from_millis(500))).expect("a deadline");
    for length in [0usize, 1, 16, 64, 512, 1400] {
        udp.send_to(&vec![0x5a; length], gossip).expect("a datagram");
    }
    let mut buffer = [0; 2048];
    assert!(udp.recv_from(&mut buffer).is_err(), "a stranger's datagram was answered");
}
