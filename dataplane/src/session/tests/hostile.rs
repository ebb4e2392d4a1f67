//! Members that break the protocol: they are dropped, and cost nobody anything else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};
use velo_object::NodeId;

use super::Node;
use super::authority::{Authority, key, node_of};
use super::strangers::{client, dial};
use crate::identity::{SESSION_ALPN, server_name};
use crate::session::paths::{PathMessage, PathOffer};
use crate::session::wire::{Frame, Hello, MAX_FRAME_BYTES, VERSION};
use crate::session::{DataStream, PeerMessage, SessionEvent};

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A member that speaks the protocol by hand.
fn begin(authority: &Authority, target: &Node) -> (NodeId, Tls) {
    begin_at(authority, target, Vec::new())
}

/// One that says where it listens.
fn begin_at(authority: &Authority, target: &Node, listen: Vec<SocketAddr>) -> (NodeId, Tls) {
    let key = key();
    let node = node_of(&key);
    let config = client(SESSION_ALPN, Some((authority, &key, 60, 3600)));
    let tls = ClientConnection::new(config, server_name(&target.node)).expect("a client");
    let mut stream = StreamOwned::new(tls, dial(target.address()));
    let hello =
        Hello { version: VERSION, cluster: authority.cluster(), node, boot: 1, listen, trusted: false };
    stream.write_all(&Frame::Hello(hello).encode().expect("small")).expect("sent");
    assert!(matches!(read(&mut stream), Frame::Hello(hello) if hello.node == target.node));
    assert!(target.wait_up(node));
    (node, stream)
}

fn read(stream: &mut Tls) -> Frame {
    let mut len = [0; 4];
    stream.read_exact(&mut len).expect("a frame");
    let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
    stream.read_exact(&mut bytes).expect("a frame");
    postcard::from_bytes(&bytes).expect("a frame")
}

#[test]
fn bad_frames_end_the_session() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let too_large = (MAX_FRAME_BYTES as u32 + 1).to_le_bytes().to_vec();
    let unknown = [&2u32.to_le_bytes()[..], &[99, 0]].concat();
    let trailing =
        [&2u32.to_le_bytes()[..], &postcard::to_stdvec(&Frame::Ping).expect("small"), &[0]].concat();
    let again = Frame::Refuse(crate::session::wire::Refusal::Full).encode().expect("small");
    let paths = |message| Frame::Message(PeerMessage::Paths(message)).encode().expect("small");
    let no_paths = paths(PathMessage::Offer(PathOffer { offer: 1, fabrics: Vec::new() }));
    for bad in [too_large, unknown, trailing, again, no_paths, vec![0; 4]] {
        let (node, mut stream) = begin(&authority, &target);
        stream.write_all(&bad).expect("sent");
        target.wait_down(node);
        assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    }
}

#[test]
fn a_hello_that_does_not_fit_the_certificate_is_refused() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let (mine, other) = (key(), node_of(&key()));
    let good = Hello {
        version: VERSION,
        cluster: authority.cluster(),
        node: node_of(&mine),
        boot: 1,
        listen: Vec::new(),
        trusted: false,
    };
    let bad = [
        Hello { node: other, ..good.clone() },
        Hello { cluster: [0; 32], ..good.clone() },
        Hello { version: VERSION + 1, ..good.clone() },
        Hello { version: VERSION - 1, ..good.clone() },
        Hello { listen: vec!["127.0.0.1:1".parse().expect("an address"); 2000], ..good },
    ];
    for hello in bad {
        let config = client(SESSION_ALPN, Some((&authority, &mine, 60, 3600)));
        let tls = ClientConnection::new(config, server_name(&target.node)).expect("a client");
        let mut stream = StreamOwned::new(tls, dial(target.address()));
        stream.write_all(&Frame::Hello(hello.clone()).encode().expect("small")).expect("sent");
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        // Another version is told so; the others hear nothing.
        assert_eq!(received.is_empty(), hello.version == VERSION);
    }
    assert!(target.quiet_for(Duration::from_millis(50)));
    assert!(target.sessions.status().is_empty());
}

#[test]
fn streams_that_a_peer_asks_for_are_bounded() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("possible");
    let (_, mut stream) = begin_at(&authority, &target, vec![listener.local_addr().expect("bound")]);
    for _ in 0..50 {
        stream.write_all(&Frame::OpenStreams(16).encode().expect("small")).expect("sent");
    }
    // Nobody answers their handshakes, so that none of them ends.
    let (began, mut first) = (std::time::Instant::now(), None);
    let mut came = Vec::new();
    // However long the first takes; more than are allowed would come soon after it.
    while first.map_or(began.elapsed() < Duration::from_secs(60), |at: std::time::Instant| {
        at.elapsed() < Duration::from_millis(500)
    }) {
        came.extend(listener.accept().ok());
        if !came.is_empty() && first.is_none() {
            first = Some(std::time::Instant::now());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!((1..=16).contains(&came.len()), "{} connections for one peer", came.len());
}

#[test]
fn a_peer_that_does_not_read_is_dropped() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let (node, _stream) = begin(&authority, &target);
    let session = target.sessions.shared.registry.get(&node).expect("a session");
    // Text, because postcard copies it whole: this must be over before the peer's silence is noticed.
    let reply = Frame::Reply { seq: 0, reply: Err("x".repeat(1 << 20)) };
    let sent = (0..).take_while(|_| session.send(&reply).is_ok()).count();
    assert!((32..200).contains(&sent), "{sent} MiB are taken for a peer that reads nothing");
    session.close("the first reason stands".to_owned());
    assert!(target.wait_down(node).contains("does not read"));
}

#[test]
fn pings_are_answered_and_stray_replies_ignored() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let (node, mut stream) = begin(&authority, &target);
    stream.write_all(&Frame::Reply { seq: 77, reply: Ok(vec![1]) }.encode().expect("small")).expect("sent");
    stream.write_all(&Frame::Ping.encode().expect("small")).expect("sent");
    assert_eq!(read(&mut stream), Frame::Pong);
    // More calls at a time than are served: all are answered.
    target.sessions.set_call_handler(Some(std::sync::Arc::new(|_, _, reply| {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let _ = reply.send(Ok(Vec::new()));
        });
    })));
    for seq in 0..200 {
        stream.write_all(&Frame::Call { seq, payload: vec![] }.encode().expect("small")).expect("sent");
    }
    let (mut served, mut refused) = (0, 0);
    while served + refused < 200 {
        match read(&mut stream) {
            Frame::Reply { reply: Ok(_), .. } => served += 1,
            Frame::Reply { reply: Err(_), .. } => refused += 1,
            Frame::Ping => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(served >= 64 && refused > 0, "{served} served, {refused} refused");
    drop(stream);
    assert!(matches!(target.next(), SessionEvent::Down { node: down, .. } if down == node));
}

#[test]
fn a_data_stream_that_is_ready_after_its_session_is_dropped() {
    let authority = Authority::new();
    let target = Node::new(&authority);
    let (node, stream) = begin(&authority, &target);
    let shared = &target.sessions.shared;
    let session = shared.registry.get(&node).expect("a session");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let pair = || {
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
        (DataStream { tcp: listener.accept().expect("connected").0, tls: None }, far)
    };
    let (near, _far) = pair();
    shared.stream_ready(&session, near).expect("its session is up");
    let given = target.wait(|event| match event {
        SessionEvent::Stream { node, .. } => Some(node),
        _ => None,
    });
    assert_eq!(given, node);
    drop(stream);
    target.wait_down(node);
    let (near, mut far) = pair();
    shared.stream_ready(&session, near).expect_err("its session has ended");
    assert_eq!(far.read(&mut [0; 1]).expect("closed"), 0);
    assert!(target.quiet_for(Duration::from_millis(50)));
}
