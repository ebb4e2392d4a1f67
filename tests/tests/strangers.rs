//! Who has no valid certificate gets nothing: the bytes that a stranger is sent are counted.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use velo_tests::{Cluster, Node, wait_until};

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

/// Connects as whoever `identity` is (nobody without one), says what a peer might say, and counts the application bytes that
/// come before the node hangs up.
fn bytes_for_a_stranger(node: &Node, alpn: &[u8], identity: Option<&Path>) -> usize {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Careless));
    let mut config = match identity {
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
    let mut tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut tcp = TcpStream::connect(node.listen().expect("it listens")).expect("it accepts");
    tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
    let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
    // The handshake, then a burst of plausible bytes; either may fail, as it should.
    let _ = stream.write_all(&[0u8; 256]);
    let _ = stream.flush();
    let mut counted = 0;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return counted,
            Ok(some) => counted += some,
        }
    }
}

fn put_something(cluster: &Cluster) -> String {
    let path = cluster.path("secret");
    fs::write(&path, vec![7; 300_000]).expect("a file");
    cluster.nodes[0].json(&["put", path.to_str().expect("UTF-8")])["id"].as_str().expect("an id").to_owned()
}

#[test]
fn without_a_certificate_of_this_cluster_nothing_comes() {
    let cluster = Cluster::start(1);
    put_something(&cluster);
    let foreign = Cluster::start(1);
    let foreign_identity = foreign.nodes[0].dir.join("data/identity");
    for alpn in [&b"velo-session/1"[..], b"velo-data/1"] {
        assert_eq!(bytes_for_a_stranger(&cluster.nodes[0], alpn, None), 0, "no certificate");
        assert_eq!(
            bytes_for_a_stranger(&cluster.nodes[0], alpn, Some(&foreign_identity)),
            0,
            "another cluster's"
        );
    }
    // Plain streams need a session's key, also where the network is trusted.
    let mut tcp = TcpStream::connect(cluster.nodes[0].listen().expect("it listens")).expect("it accepts");
    tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
    let _ = tcp.write_all(b"VELO\x01\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    let mut got = Vec::new();
    let _ = tcp.read_to_end(&mut got);
    assert!(got.is_empty(), "{} bytes for a forged preamble", got.len());
}

#[test]
fn a_revoked_node_gets_nothing_and_loses_its_sessions() {
    let cluster = Cluster::start(3);
    let id = put_something(&cluster);
    let dest = cluster.path("before");
    cluster.nodes[2].ok(&["get", &id, dest.to_str().expect("UTF-8")]);
    let revoked = cluster.nodes[2].id();
    cluster.nodes[0].ok(&["cluster", "revoke", &revoked]);
    let identity = cluster.nodes[2].dir.join("data/identity");
    for node in &cluster.nodes[..2] {
        wait_until("the revocation is known and its session closed", || {
            let status = node.socket().status().expect("velod answers");
            status.sessions.iter().all(|session| session.node.to_hex() != revoked)
        });
        for alpn in [&b"velo-session/1"[..], b"velo-data/1"] {
            assert_eq!(bytes_for_a_stranger(node, alpn, Some(&identity)), 0, "a revoked certificate");
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
    let mut child = cluster.nodes[2]
        .command(&["get", &later, dest.to_str().expect("UTF-8")])
        .spawn()
        .expect("velo starts");
    std::thread::sleep(Duration::from_secs(3));
    let _ = child.kill();
    let _ = child.wait();
    assert!(!dest.exists(), "a revoked node got content");
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
