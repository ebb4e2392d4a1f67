//! Joining by a token, against a node whose authority is this test.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use velo_config::Paths;
use velo_socket::Caller;
use velo_socket::join::{JoinRequest, Joined, SEEDS_FILE, Token};

use super::authority::Authority;
use super::{Node, options};
use crate::session::Sessions;
use crate::{JoinError, join};

const SECRET: [u8; 16] = [5; 16];

/// Answers requests to join as velo-control would. Counts them.
fn admit(server: &Node, authority: &Arc<Authority>) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, authority, member) = (asked.clone(), authority.clone(), server.member());
    server.sessions.set_call_handler(Some(Arc::new(move |from, payload, reply| {
        count.fetch_add(1, Ordering::Relaxed);
        assert!(matches!(from, Caller::Stranger(address) if address.ip().is_loopback()));
        let request: JoinRequest = postcard::from_bytes(&payload).expect("a request");
        let answer = if request.secret == SECRET {
            let der = CertificateSigningRequestDer::from(&request.request[..]);
            let csr = CertificateSigningRequestParams::from_der(&der).expect("a signing request");
            let joined = Joined {
                certificate: authority.issue(&csr.public_key, 60, 3600).der().to_vec(),
                authority: authority.certificate.der().to_vec(),
                members: vec![member.clone()],
            };
            Ok(postcard::to_stdvec(&joined).expect("plain data"))
        } else {
            Err("the token is not one of this cluster".to_owned())
        };
        let _ = reply.send(answer);
    })));
    asked
}

#[test]
fn a_token_makes_a_member() {
    let authority = Arc::new(Authority::new());
    let server = Node::new(&authority);
    let asked = admit(&server, &authority);
    let address = server.address().to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let token = Token { cluster: authority.cluster(), secret: SECRET, expires_s: u64::MAX };

    let wrong = Token { secret: [6; 16], ..token.clone() };
    let refused = join(dir.path(), &address, &wrong).expect_err("another secret");
    assert!(refused.to_string().contains("not one of this cluster"), "{refused}");
    let paths = Paths::new(dir.path().to_owned());
    assert!(!paths.node_certificate().exists());
    let key = std::fs::read(paths.node_key()).expect("the key of the first attempt");

    let node = join(dir.path(), &address, &token).expect("joined");
    assert_eq!(std::fs::read(paths.node_key()).expect("a key"), key, "used again");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(paths.node_key()).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let seeds = std::fs::read(paths.identity_dir().join(SEEDS_FILE)).expect("members");
    let seeds: Vec<velo_socket::Member> = postcard::from_bytes(&seeds).expect("members");
    assert_eq!(seeds, [server.member()]);
    assert!(matches!(join(dir.path(), &address, &token), Err(JoinError::Member(_))));
    assert_eq!(asked.load(Ordering::Relaxed), 2);

    // The new identity is good for a session.
    let sessions = Sessions::start(options(&dir), |_| {}).expect("sessions");
    assert_eq!(sessions.node(), node);
    sessions.set_members(seeds);
    sessions.connect(server.node);
    assert!(server.wait_up(node));
    sessions.stop();
}

#[test]
fn another_cluster_never_learns_the_secret() {
    let (authority, foreign) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    let server = Node::new(&foreign);
    let asked = admit(&server, &foreign);
    let dir = tempfile::tempdir().expect("a directory");
    let token = Token { cluster: authority.cluster(), secret: SECRET, expires_s: u64::MAX };
    let error = join(dir.path(), &server.address().to_string(), &token).expect_err("another cluster");
    assert!(matches!(error, JoinError::Stranger { .. }), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);

    // Nor does somebody who shows the right authority's certificate beside one that it has not issued.
    let impostor = Node::new(&foreign);
    let asked = admit(&impostor, &authority);
    let paths = Paths::new(impostor.dir.path().to_owned());
    std::fs::write(paths.ca_certificate(), authority.certificate.pem()).expect("written");
    impostor.sessions.reload_identity().expect("it believes what it likes");
    let error = join(dir.path(), &impostor.address().to_string(), &token).expect_err("an impostor");
    assert!(matches!(error, JoinError::Stranger { .. }), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let nobody = join(dir.path(), "127.0.0.1:1", &token).expect_err("nobody");
    assert!(matches!(nobody, JoinError::Unreachable { .. }), "{nobody}");
}

#[test]
fn joins_are_limited_and_need_velo_control() {
    let authority = Arc::new(Authority::new());
    let server = Node::new(&authority);
    let dir = tempfile::tempdir().expect("a directory");
    let token = Token { cluster: authority.cluster(), secret: [6; 16], expires_s: u64::MAX };
    let address = server.address().to_string();
    let error = join(dir.path(), &address, &token).expect_err("no velo-control");
    assert!(error.to_string().contains("velo-control"), "{error}");
    let asked = admit(&server, &authority);
    let mut limited = 0;
    for _ in 0..60 {
        let error = join(dir.path(), &address, &token).expect_err("refused");
        limited += usize::from(error.to_string().contains("too many"));
    }
    assert!(limited > 0, "{limited}");
    assert_eq!(asked.load(Ordering::Relaxed) + limited, 60);
}
