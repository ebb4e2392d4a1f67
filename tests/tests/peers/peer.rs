//! A peer in the test's own process: a certificate of the cluster, a session, data streams, and no daemon.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use tempfile::TempDir;
use velo_config::Paths;
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, Role};
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::supply::Inline;
use velo_fabric::{Completion, Fabric, Serve};
use velo_object::NodeId;
use velo_socket::Member;
use velo_tests::{Cluster, Node, PATIENCE};
use velod::identity::server_name;
use velod::session::paths::{
    AcceptedFabric, OfferedFabric, OfferedPackets, PacketKind, PathEnd, PathMessage, PathOffer,
    PathProtection,
};
use velod::session::{DataStream, PathKeying, PeerMessage, SessionEvent, SessionOptions, Sessions};

/// A peer.
pub struct Peer {
    /// Who it is.
    pub id: NodeId,
    /// Its sessions.
    pub sessions: Sessions,
    /// What happens on them.
    pub events: Receiver<SessionEvent>,
    keying: Option<PathKeying>,
    _identity: TempDir,
}

impl Peer {
    /// A peer with a certificate that the cluster's authority signed for a new key.
    pub fn new(cluster: &Cluster, trusted: bool) -> Self {
        let authority = Paths::new(cluster.nodes[0].dir.join("data"));
        let text = |path| fs::read_to_string(path).expect("the first node has the authority");
        let ca = text(authority.authority_certificate());
        let ca_key = KeyPair::from_pem(&text(authority.authority_key())).expect("a key");
        let issuer = Issuer::from_ca_cert_pem(&ca, ca_key).expect("an authority");

        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let id = NodeId::from_bytes(key.public_key_raw().try_into().expect("an ed25519 key"));
        let name = server_name(&id).to_str().into_owned();
        let mut params = CertificateParams::new(vec![name]).expect("a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).expect("signed");

        let identity = tempfile::tempdir().expect("a folder");
        let paths = Paths::new(identity.path().to_owned());
        fs::create_dir_all(paths.identity_dir()).expect("a folder");
        fs::write(paths.node_key(), key.serialize_pem()).expect("written");
        fs::write(paths.node_certificate(), certificate.pem()).expect("written");
        fs::write(paths.ca_certificate(), ca).expect("written");

        let options = SessionOptions {
            paths,
            listen: vec!["127.0.0.1:0".parse().expect("an address")],
            advertise: Vec::new(),
            trusted,
            max_sessions: 16,
            zone: "default".to_owned(),
        };
        let (sender, events) = channel();
        let sessions = Sessions::start(options, move |event| drop(sender.send(event))).expect("sessions");
        Self { id, sessions, events, keying: None, _identity: identity }
    }

    /// Makes a session with a node. Gives the node's id.
    pub fn connect(&mut self, node: &Node) -> NodeId {
        let id: NodeId = node.id().parse().expect("a node id");
        let addresses = vec![node.listen().expect("it listens")];
        let member = Member { node: id, name: String::new(), addresses, zone: "default".to_owned() };
        self.sessions.set_members(vec![member]);
        self.sessions.connect(id);
        loop {
            match self.events.recv_timeout(PATIENCE).expect("an event") {
                SessionEvent::Up { node, keying, .. } if node == id => {
                    self.keying = Some(keying);
                    return id;
                }
                SessionEvent::Down { reason, .. } => panic!("no session: {reason}"),
                _ => {}
            }
        }
    }

    /// Opens data streams to a node with a session.
    pub fn open_streams(&self, node: NodeId, count: usize) -> Vec<DataStream> {
        self.sessions.open_streams(node, count);
        let mut streams = Vec::new();
        while streams.len() < count {
            match self.events.recv_timeout(Duration::from_secs(30)).expect("a stream") {
                SessionEvent::Stream { stream, .. } => streams.push(stream),
                SessionEvent::Down { reason, .. } => panic!("the session ended: {reason}"),
                _ => {}
            }
        }
        streams
    }
}

impl Peer {
    /// Offers a node with a session, which this peer dialled, one path for packets over UDP, and waits until it is proven. Its number is 1.
    pub fn open_packets(&self, node: NodeId, serve: Arc<dyn Serve>) -> Packet<Udp> {
        let port =
            Udp::bind("127.0.0.1:0".parse().expect("an address"), &UdpOptions::default()).expect("a port");
        let (keying, own) = (self.keying.as_ref().expect("a session"), 0x100);
        let protection = if keying.trusted { PathProtection::Trusted } else { PathProtection::Aes128Gcm };
        let udp = OfferedPackets {
            kind: PacketKind::Udp,
            datagram_max_bytes: port.caps().datagram_max_bytes as u32,
            protections: vec![protection, PathProtection::ChaCha20Poly1305],
            ends: vec![PathEnd { number: own, address: port.local() }],
        };
        let offer = PathMessage::Offer(PathOffer { offer: 1, fabrics: vec![OfferedFabric::Packets(udp)] });
        self.sessions.send(node, PeerMessage::Paths(offer));
        let accept = loop {
            match self.events.recv_timeout(PATIENCE).expect("an answer") {
                SessionEvent::Message {
                    message: PeerMessage::Paths(PathMessage::Accept(accept)), ..
                } => {
                    break accept;
                }
                SessionEvent::Message { message: PeerMessage::Paths(other), .. } => panic!("{other:?}"),
                SessionEvent::Down { reason, .. } => panic!("the session ended: {reason}"),
                _ => {}
            }
        };
        let AcceptedFabric::Packets(accept) = accept.fabric else { panic!("UDP was offered, no other") };
        let name = PathName { fabric: "udp", dialler: own, accepter: accept.ends[0].number };
        let path = NewPath {
            id: 1,
            peer: node,
            remote: accept.ends[0].address,
            keys: PathKeys::derive(&keying.secret, &name, Role::Dialler, accept.protection.into()),
            datagram_max_bytes: accept.datagram_max_bytes as usize,
        };
        let options =
            EndpointOptions { stall_timeout: Duration::from_secs(60), ..EndpointOptions::default() };
        let mut fabric = Packet::new(port, Box::new(Inline::new(serve)), options).expect("descriptors");
        fabric.add_path(path).expect("a good path");
        let (began, mut completions) = (Instant::now(), Vec::new());
        while !completions.iter().any(|completion| matches!(completion, Completion::PathProven { path: 1 })) {
            assert!(began.elapsed() < PATIENCE, "no packet came back: {completions:?}");
            if fabric.poll(Instant::now(), &mut completions) == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        fabric
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.sessions.stop();
    }
}
