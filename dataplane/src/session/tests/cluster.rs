//! Nodes that trust each other: messages, streams, calls, and which connection stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_object::{BlobId, PieceSet};
use velo_socket::{Caller, ErrorCode};

use super::authority::{Authority, key};
use super::{LONG, Node, connected, eventually};
use crate::session::{DataStream, PeerMessage, SessionEvent};

fn have(number: u8) -> PeerMessage {
    let mut have = PieceSet::new(7);
    have.insert(3);
    PeerMessage::Have {
        blob: BlobId::of(&[number]),
        size_bytes: Some(7 << 20),
        have,
        holes: PieceSet::new(7),
    }
}

fn stream(node: &Node) -> DataStream {
    node.wait(|event| match event {
        SessionEvent::Stream { stream, .. } => Some(stream),
        _ => None,
    })
}

fn message(node: &Node) -> PeerMessage {
    node.wait(|event| match event {
        SessionEvent::Message { message, .. } => Some(message),
        _ => None,
    })
}

#[test]
fn messages_go_both_ways_in_order() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    connected(&a, &b);
    for number in 0..100 {
        a.sessions.send(b.node, have(number));
        b.sessions.send(a.node, have(number));
    }
    for number in 0..100 {
        assert_eq!(message(&b), have(number));
        assert_eq!(message(&a), have(number));
    }
    a.sessions.connect(b.node);
    assert!(a.quiet_for(Duration::from_millis(100)), "connected already");
    let status = a.sessions.status();
    assert_eq!((status.len(), status[0].node, status[0].plain), (1, b.node, false));
    b.sessions.close(a.node, "enough");
    assert_eq!(b.wait_down(a.node), "enough");
    a.wait_down(b.node);
    assert!(!a.sessions.is_up(&b.node));
}

#[test]
fn data_streams_are_sealed_unless_both_trust_the_network() {
    let authority = Authority::new();
    for (a_trusts, b_trusts) in [(false, false), (true, false), (false, true), (true, true)] {
        let trusting = |trusted| Node::with(&authority, key(), 3600, |options| options.trusted = trusted);
        let (a, b) = (trusting(a_trusts), trusting(b_trusts));
        connected(&a, &b);
        // Also the side that was dialled opens streams: it knows where the other listens.
        for (opener, other) in [(&a, &b), (&b, &a)] {
            opener.sessions.open_streams(other.node, 3);
            for _ in 0..3 {
                let (here, there) = (stream(opener), stream(other));
                assert_eq!(here.tls.is_none(), a_trusts && b_trusts);
                assert_eq!(there.tls.is_none(), a_trusts && b_trusts);
            }
        }
    }
}

#[test]
fn who_cannot_be_dialled_is_asked_to_open_the_streams() {
    let authority = Authority::new();
    let nowhere = "127.0.0.1:1".parse().expect("an address");
    let hidden = Node::with(&authority, key(), 3600, |options| options.advertise = vec![nowhere]);
    let open = Node::new(&authority);
    hidden.sessions.set_members(vec![open.member()]);
    hidden.sessions.connect(open.node);
    open.wait_up(hidden.node);
    open.sessions.open_streams(hidden.node, 2);
    for _ in 0..2 {
        stream(&open);
        stream(&hidden);
    }
}

#[test]
fn calls_are_answered_refused_or_time_out() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    a.sessions.set_members(vec![b.member()]);
    let who = a.node;
    let second = Duration::from_secs(1);
    let unanswered = a.sessions.call(b.node, vec![1], second).expect_err("nobody serves there");
    assert_eq!(unanswered.code, ErrorCode::Denied, "{unanswered}");
    b.sessions.set_call_handler(Some(Arc::new(move |from, payload, reply| {
        assert_eq!(from, Caller::Member(who));
        match payload.first() {
            Some(0) => drop(reply.send(Err("no".to_owned()))),
            // Never answered.
            Some(1) => std::mem::forget(reply),
            _ => drop(reply.send(Ok(payload))),
        }
    })));
    let large: Vec<u8> = (0..4 << 20).map(|at| (at % 251) as u8 | 2).collect();
    assert_eq!(a.sessions.call(b.node, large.clone(), LONG).expect("an answer"), large);
    let refused = a.sessions.call(b.node, vec![0], LONG).expect_err("refused");
    assert_eq!((refused.code, refused.message.as_str()), (ErrorCode::Denied, "no"));
    let begun = Instant::now();
    let late = a.sessions.call(b.node, vec![1], Duration::from_millis(100)).expect_err("never answered");
    assert_eq!(late.code, ErrorCode::TimedOut);
    assert!(begun.elapsed() < LONG);
    let too_large = a.sessions.call(b.node, vec![2; 5 << 20], LONG).expect_err("too large");
    assert_eq!(too_large.code, ErrorCode::Limit);
    assert!(a.sessions.is_up(&b.node), "the session stands");

    let nobody = super::authority::node_of(&key());
    assert_eq!(a.sessions.call(nobody, vec![], LONG).expect_err("unknown").code, ErrorCode::Unreachable);

    a.sessions.set_call_handler(Some(Arc::new(|_, payload, reply| drop(reply.send(Ok(payload))))));
    assert_eq!(a.sessions.call(a.node, vec![9], LONG).expect("to itself"), [9]);

    // A call that waits when the session ends is told.
    std::thread::scope(|scope| {
        let (sessions, node) = (&a.sessions, b.node);
        let waiting = scope.spawn(move || sessions.call(node, vec![1], LONG));
        std::thread::sleep(Duration::from_millis(200));
        b.sessions.close(a.node, "test");
        let ended = waiting.join().expect("no panic").expect_err("ended");
        assert_eq!(ended.code, ErrorCode::Unreachable, "{ended}");
    });
}

#[test]
fn of_two_simultaneous_dials_the_smaller_ids_wins() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    let (small, large) = if a.node < b.node { (&a, &b) } else { (&b, &a) };
    small.sessions.set_members(vec![large.member()]);
    large.sessions.set_members(vec![small.member()]);
    for round in 0..20u8 {
        std::thread::scope(|scope| {
            let (small, large) = ((&small.sessions, small.node), (&large.sessions, large.node));
            scope.spawn(move || small.0.connect(large.1));
            scope.spawn(move || large.0.connect(small.1));
        });
        // Whoever came first, in the end there is one session, the same on both sides.
        eventually("both up", || small.sessions.is_up(&large.node) && large.sessions.is_up(&small.node));
        eventually("the same connection", || {
            let ids = [small, large].map(|node| {
                node.sessions.shared.registry.all().first().map(|session| (session.id, session.dialled))
            });
            matches!(ids, [Some((x, true)), Some((y, false))] if x == y)
                || matches!(ids, [Some((x, false)), Some((y, true))] if x == y)
        });
        eventually("no dial is left", || {
            [small, large].iter().all(|node| node.sessions.shared.dialling.lock().expect("a lock").is_empty())
        });
        small.sessions.send(large.node, have(round));
        large.sessions.send(small.node, have(round));
        assert_eq!((message(small), message(large)), (have(round), have(round)));
        small.sessions.close(large.node, "next round");
        eventually("both down", || !small.sessions.is_up(&large.node) && !large.sessions.is_up(&small.node));
        small.wait_down(large.node);
        large.wait_down(small.node);
    }
}

#[test]
fn a_dial_that_hangs_keeps_the_other_side_out_for_a_moment_only() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    let (small, large) = if a.node < b.node { (&a, &b) } else { (&b, &a) };
    // The smaller one's dial hangs at addresses that accept and say nothing; the last one is good.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut member = large.member();
    for _ in 0..4 {
        member.addresses.insert(0, silent.local_addr().expect("an address"));
    }
    small.sessions.set_members(vec![member]);
    large.sessions.set_members(vec![small.member()]);
    small.sessions.connect(large.node);
    silent.accept().expect("the smaller one dials");
    large.sessions.connect(small.node);
    assert!(!large.wait_up(small.node), "the larger one's own connection");
    assert!(small.wait_up(large.node));
    eventually("no dial is left", || small.sessions.shared.dialling.lock().expect("a lock").is_empty());
    small.sessions.send(large.node, have(1));
    assert_eq!(message(large), have(1), "and the session is still that one");
    assert!(small.quiet_for(Duration::from_millis(100)));
}

#[test]
fn a_peer_that_starts_anew_replaces_its_old_session() {
    let authority = Authority::new();
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    connected(&a, &b);
    let key = rcgen::KeyPair::from_pem(&b.key.serialize_pem()).expect("the same key");
    // The old process hangs: it neither answers nor closes.
    let again = Node::with(&authority, key, 3600, |_| {});
    again.sessions.set_members(vec![a.member()]);
    again.sessions.connect(a.node);
    again.wait_up(a.node);
    assert!(a.wait_up(b.node), "the new one");
    a.sessions.send(b.node, have(1));
    assert_eq!(message(&again), have(1));
    b.wait_down(a.node);
    assert!(a.sessions.is_up(&b.node));
}

#[test]
fn no_more_sessions_than_configured() {
    let authority = Authority::new();
    let small = Node::with(&authority, key(), 3600, |options| options.max_sessions = 1);
    let (a, b) = (Node::new(&authority), Node::new(&authority));
    for node in [&a, &b] {
        node.sessions.set_members(vec![small.member()]);
    }
    a.sessions.connect(small.node);
    a.wait_up(small.node);
    b.sessions.connect(small.node);
    assert!(b.wait_down(small.node).contains("max_sessions"));
    assert!(a.sessions.is_up(&small.node));
}

#[test]
fn nobody_there() {
    let authority = Authority::new();
    let a = Node::new(&authority);
    let mut gone = Node::new(&authority).member();
    a.sessions.set_members(vec![gone.clone()]);
    a.sessions.connect(gone.node);
    assert!(a.wait_down(gone.node).contains(&gone.addresses[0].to_string()));
    gone.addresses.clear();
    a.sessions.set_members(vec![gone.clone()]);
    a.sessions.connect(gone.node);
    assert!(a.wait_down(gone.node).contains("no address"));
    a.sessions.connect(a.node);
    assert!(a.wait_down(a.node).contains("itself"));
}

#[test]
fn both_families_and_an_address_that_is_taken() {
    let authority = Authority::new();
    let dual = Node::with(&authority, key(), 3600, |options| {
        options.listen = vec!["127.0.0.1:0".parse().expect("v4"), "[::1]:0".parse().expect("v6")];
    });
    let [v4, v6] = dual.sessions.listen_addresses()[..] else { panic!("two addresses") };
    for address in [v4, v6] {
        let node = Node::new(&authority);
        node.sessions.set_members(vec![velo_socket::Member { addresses: vec![address], ..dual.member() }]);
        node.sessions.connect(dual.node);
        node.wait_up(dual.node);
        node.sessions.open_streams(dual.node, 1);
        stream(&node);
    }
    let dir = tempfile::tempdir().expect("a directory");
    authority.write(dir.path(), &key(), 3600);
    let taken = crate::session::SessionOptions { listen: vec![v4], ..super::options(&dir) };
    let error = crate::session::Sessions::start(taken, |_| {}).expect_err("taken");
    assert!(error.to_string().contains("net.listen"), "{error}");
}
