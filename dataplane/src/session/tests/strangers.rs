//! Who must get nothing gets nothing: the bytes that they are sent are counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use rustls::{ClientConfig, ClientConnection};
use velo_object::NodeId;

use super::authority::{Authority, key, node_of};
use super::{Node, connected, eventually};
use crate::identity::{DATA_ALPN, SESSION_ALPN, crypto_provider, server_name};
use crate::session::wire::{Frame, Hello, VERSION};

/// Trusts whatever server there is: a stranger is not choosy.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client with this certificate, or with none.
pub(super) fn client(alpn: &[u8], who: Option<(&Authority, &KeyPair, i64, i64)>) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match who {
        Some((authority, key, begun_s, ends_s)) => {
            let (chain, key) = authority.chain(key, begun_s, ends_s);
            builder.with_client_auth_cert(chain, key.into()).expect("a key")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

pub(super) fn dial(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

/// Goes through the handshake, says `say`, and counts the application bytes that come until the connection ends.
fn application_bytes(address: SocketAddr, config: Arc<ClientConfig>, say: &[u8]) -> usize {
    let mut tcp = dial(address);
    let node = node_of(&key());
    let mut tls = ClientConnection::new(config, server_name(&node)).expect("a client");
    let _ = tls.writer().write_all(say);
    let mut received = 0;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(15), "it is not let go");
        while tls.wants_write() {
            if tls.write_tls(&mut tcp).is_err() {
                break;
            }
        }
        let ended = match tls.read_tls(&mut tcp) {
            Ok(0) | Err(_) => true,
            Ok(_) => tls.process_new_packets().is_err(),
        };
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = tls.reader().read(&mut buffer) {
            received += count;
        }
        if ended {
            return received;
        }
    }
}

fn hello(authority: &Authority, node: NodeId, version: u32) -> Vec<u8> {
    let hello =
        Hello { version, cluster: authority.cluster(), node, boot: 1, listen: Vec::new(), trusted: true };
    let hello = Frame::Hello(hello).encode().expect("small");
    let ping = Frame::Ping.encode().expect("small");
    [hello, ping].concat()
}

#[test]
fn strangers_are_sent_not_one_byte() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let target = Node::new(&authority);
    let (known, stranger, revoked) = (key(), key(), key());
    target.sessions.set_revoked(vec![node_of(&revoked)]);
    type Case<'a> = (&'a str, Option<(&'a Authority, &'a KeyPair, i64, i64)>, NodeId);
    let cases: [Case<'_>; 5] = [
        ("no certificate", None, node_of(&stranger)),
        ("another cluster", Some((&foreign, &stranger, 60, 3600)), node_of(&stranger)),
        ("expired", Some((&authority, &stranger, 60, -10)), node_of(&stranger)),
        ("not yet good", Some((&authority, &stranger, -600, 3600)), node_of(&stranger)),
        ("revoked", Some((&authority, &revoked, 60, 3600)), node_of(&revoked)),
    ];
    for (what, who, node) in cases {
        for alpn in [SESSION_ALPN, DATA_ALPN] {
            let bytes =
                application_bytes(target.address(), client(alpn, who), &hello(&authority, node, VERSION));
            assert_eq!(bytes, 0, "{what}");
        }
    }
    assert!(target.sessions.status().is_empty());
    assert!(target.quiet_for(Duration::from_millis(50)), "nothing was told to the engine");

    // The same client with a good certificate does get bytes: the count counts.
    let who = Some((&authority, &known, 60, 3600));
    let say = hello(&authority, node_of(&known), VERSION + 1);
    assert!(application_bytes(target.address(), client(SESSION_ALPN, who), &say) > 0);
    // But no data stream without a session.
    assert_eq!(application_bytes(target.address(), client(DATA_ALPN, who), b"x"), 0);
    // And no protocol that is not Velo's.
    assert_eq!(application_bytes(target.address(), client(b"h2", who), b"x"), 0);
}

#[test]
fn what_is_not_tls_is_sent_nothing_at_all() {
    let authority = Authority::new();
    let target = Node::with(&authority, key(), 3600, |options| options.trusted = true);
    let preamble =
        velo_fabric::tcp::plain::Preamble { node: target.node, session: [0; 16], stream: 0, nonce: [1; 16] };
    let forged = preamble.encode(&[0; 32]);
    let cases: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &forged, &[b'V'; 112], &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]];
    for say in cases {
        let mut stream = dial(target.address());
        stream.write_all(say).expect("sent");
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        // A TLS alert is the only thing that bytes which look like TLS may get.
        assert!(received.is_empty() || (say[0] == 0x16 && received[0] == 21), "{received:?}");
    }
}

#[test]
fn a_preamble_must_come_from_its_session_and_only_once() {
    let authority = Authority::new();
    let trusting = || Node::with(&authority, key(), 3600, |options| options.trusted = true);
    let (a, b) = (trusting(), trusting());
    connected(&a, &b);
    let session = a.sessions.shared.registry.get(&b.node).expect("a session");
    let preamble =
        velo_fabric::tcp::plain::Preamble { node: a.node, session: session.id, stream: 900, nonce: [1; 16] };
    let good = preamble.encode(&session.stream_key);
    let mut wrong_key = session.stream_key;
    wrong_key[0] ^= 1;
    let refused = |bytes: &[u8]| {
        let mut stream = dial(b.address());
        stream.write_all(bytes).expect("sent");
        matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
    };
    assert!(refused(&preamble.encode(&wrong_key)), "another key");
    let other = velo_fabric::tcp::plain::Preamble { session: [7; 16], ..preamble };
    assert!(refused(&other.encode(&session.stream_key)), "another session");
    assert!(b.quiet_for(Duration::from_millis(50)));
    let mut stream = dial(b.address());
    stream.write_all(&good).expect("sent");
    b.wait(|event| matches!(event, crate::session::SessionEvent::Stream { .. }).then_some(()));
    assert!(refused(&good), "replayed");
    assert!(b.quiet_for(Duration::from_millis(50)));
}

#[test]
fn a_server_of_another_cluster_hears_nothing_from_us() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (a, b) = (Node::new(&authority), Node::new(&foreign));
    a.sessions.set_members(vec![b.member()]);
    a.sessions.connect(b.node);
    a.wait_down(b.node);
    assert!(b.quiet_for(Duration::from_millis(50)));
    // Nor does a member that is not the one we dialled.
    let c = Node::new(&authority);
    a.sessions.set_members(vec![velo_socket::Member { addresses: vec![c.address()], ..b.member() }]);
    a.sessions.connect(b.node);
    a.wait_down(b.node);
    assert!(c.quiet_for(Duration::from_millis(50)));
}

#[test]
fn revocation_ends_live_sessions_and_survives_a_restart() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    connected(&a, &b);
    a.sessions.set_revoked(vec![b.node]);
    assert!(a.wait_down(b.node).contains("revoked"));
    b.wait_down(a.node);
    b.sessions.connect(a.node);
    b.wait_down(a.node);
    a.sessions.connect(b.node);
    assert!(a.wait_down(b.node).contains("revoked"));

    // From the signed list on disk, before velo-control has said anything.
    let c = Node::new(&authority);
    let path = velo_config::Paths::new(c.dir.path().to_owned()).revoked();
    std::fs::write(&path, authority.revoke(&[b.node])).expect("written");
    c.sessions.reload_identity().expect("a good list");
    b.sessions.set_members(vec![c.member()]);
    b.sessions.connect(c.node);
    b.wait_down(c.node);
    assert!(c.quiet_for(Duration::from_millis(50)));
    // A list that cannot be believed is an error, not an empty list.
    for bad in [Authority::new().revoke(&[]), b"garbage".to_vec(), Vec::new()] {
        std::fs::write(&path, bad).expect("written");
        assert!(c.sessions.reload_identity().is_err());
    }
}

#[test]
fn a_session_ends_when_the_peers_certificate_does_and_a_new_one_is_taken_up() {
    let authority = Authority::new();
    let a = Node::new(&authority);
    let b = Node::with(&authority, key(), 3, |_| {});
    connected(&a, &b);
    assert!(a.wait_down(b.node).contains("expired"));
    b.wait_down(a.node);
    b.sessions.connect(a.node);
    b.wait_down(a.node);
    authority.write(b.dir.path(), &b.key, 3600);
    b.sessions.reload_identity().expect("renewed");
    b.sessions.connect(a.node);
    b.wait_up(a.node);
    a.wait_up(b.node);
    // Files of another node are not taken up.
    authority.write(b.dir.path(), &key(), 3600);
    assert!(b.sessions.reload_identity().is_err());
    assert!(b.sessions.is_up(&a.node));
}

#[test]
fn too_many_half_open_connections_are_closed_and_slow_ones_too() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let idle: Vec<_> = (0..200).map(|_| dial(target.address())).collect();
    eventually("some are turned away", || {
        target.sessions.counters().crowded.load(std::sync::atomic::Ordering::Relaxed) >= 60
    });
    // They are let go when the handshake has taken too long, and then others get in.
    let begun = Instant::now();
    for mut stream in idle {
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() < Duration::from_secs(9));
    let friend = Node::new(&authority);
    connected(&friend, &target);
}
