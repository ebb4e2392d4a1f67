//! Several engines in one process, with their stores, workers and verifiers, over loopback.

mod hub;
mod liar;
mod packets;

use std::time::Duration;

use hub::{Hub, Node, content, node_id};
use liar::{Liar, Lie};
use velo_fabric::packet::protocol::seal::PathSecret;
use velo_object::{BlobId, ObjectId, ObjectKind};
use velo_socket::{ErrorCode, JobState};
use velod::session::{DataStream, PathKeying, SessionEvent};

const MIB: usize = 1 << 20;

#[test]
fn blobs_of_all_sizes_around_piece_boundaries() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let sizes =
        [0, 1, 1023, 1024, 1025, 131_072, 131_073, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 1, 9 * MIB + 17];
    let blobs: Vec<_> = sizes.iter().map(|&size| (content(size as u64, size), size)).collect();
    let roots: Vec<_> =
        blobs.iter().map(|(content, _)| ObjectId { kind: ObjectKind::Blob, blob: a.put(content) }).collect();
    let status = b.complete(b.pull(&roots, &[a.id]));
    let total: usize = sizes.iter().sum();
    assert_eq!((status.done_bytes, status.total_bytes), (total as u64, total as u64));
    assert_eq!(status.received_bytes, total as u64);
    assert!(status.missing.is_empty());
    for ((content, _), root) in blobs.iter().zip(&roots) {
        assert_eq!(&b.read(&root.blob), content);
    }
    assert_eq!(b.counter("pieces_refetched_total"), 0);
    assert_eq!(b.counter("pieces_bad_total"), 0);

    // What is here already costs nothing.
    let before = a.sent();
    let status = b.complete(b.pull(&roots, &[a.id]));
    assert_eq!((status.received_bytes, status.done_bytes), (0, total as u64));
    assert_eq!(a.sent(), before);
}

#[test]
fn holes_are_not_sent() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let mut sparse = vec![0; 12 * MIB + 5];
    sparse[5 * MIB + 3..5 * MIB + 4000].copy_from_slice(&content(5, 3997));
    let blob = a.put(&sparse);
    let holes = a.store.have(&blob).expect("asked").expect("here").holes.count();
    let status = b.complete(b.pull_blob(blob, &[a.id]));
    assert_eq!(b.read(&blob), sparse);
    assert_eq!(b.counter("pieces_holes_total"), holes);
    assert!(status.received_bytes <= (13 - holes) * MIB as u64);
}

fn files(count: usize) -> Vec<(String, Vec<u8>)> {
    let size = |at: usize| match at % 10 {
        0 => 3 * MIB + at,
        1 => 0,
        2 => 200_000 + at,
        _ => 3000 + 17 * at,
    };
    (0..count).map(|at| (format!("folder/{at:05}"), content(at as u64 + 1, size(at)))).collect()
}

#[test]
fn a_tree_brings_packs_and_large_blobs() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let files = files(60);
    let root = a.put_tree(&files);
    let status = b.complete(b.pull(&[root], &[a.id]));
    assert_eq!(status.total_bytes, status.done_bytes);
    for (_, content) in &files {
        assert_eq!(&b.read(&BlobId::of(content)), content);
    }
    b.store.tree(&root.blob).expect("the table is here too");
    assert_eq!(b.counter("pieces_refetched_total"), 0);
}

#[test]
fn a_pack_that_came_as_any_blob_is_a_pack_for_its_tree() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let files = files(60);
    let root = a.put_tree(&files);
    let packs: Vec<_> = a.store.tree(&root.blob).expect("put").packs().map(|pack| pack.blob).collect();
    for pack in &packs {
        b.complete(b.pull_blob(*pack, &[a.id]));
    }
    assert!(!b.store.has_pack(&packs[0]).expect("index"));
    b.complete(b.pull(&[root], &[a.id]));
    for (_, content) in &files {
        assert_eq!(&b.read(&BlobId::of(content)), content);
    }
    assert_eq!(b.counter("pieces_refetched_total"), 0);
    // The same where it stands there when the tree is put.
    let c = Node::start(&hub, 3);
    for pack in &packs {
        c.put(&a.read(pack));
    }
    assert_eq!(c.put_tree(&files), root);
    for (_, content) in &files {
        assert_eq!(&c.read(&BlobId::of(content)), content);
    }
}

#[test]
fn what_comes_another_way_while_it_is_wanted_ends_the_wait() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let files = files(60);
    let root = a.put_tree(&files);
    let named = |tree: &velo_object::Tree<Vec<u8>>| tree.packs().chain(tree.blobs()).collect::<Vec<_>>();
    let rest = named(&a.store.tree(&root.blob).expect("put"));
    assert!(rest.len() > 2);
    // Nobody has it; then it is read from elsewhere: first the table, then packs and large files, as any blobs.
    let job = b.pull(&[root], &[]);
    let sink = tempfile::tempfile().expect("a file");
    let into = b.handle().pull(velod::engine::PullRequest {
        roots: vec![ObjectId { kind: ObjectKind::Blob, blob: rest[rest.len() - 1].blob }],
        sinks: vec![(rest[rest.len() - 1].blob, sink.try_clone().expect("dup"))],
        ..velod::engine::PullRequest::default()
    });
    let into = into.expect("a job");
    b.wait_for(job, |status| status.state == JobState::Waiting);
    b.wait_for(into, |status| status.state == JobState::Waiting);
    for blob in std::iter::once(root.blob).chain(rest.iter().map(|named| named.blob)) {
        let ingested = b.store.ingest_expected(&mut &a.read(&blob)[..], blob).expect("room");
        b.handle().stored(blob, ingested.size_bytes);
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = b.complete(job);
    assert_eq!((status.done_bytes, status.received_bytes), (status.total_bytes, 0));
    for (_, content) in &files {
        assert_eq!(&b.read(&BlobId::of(content)), content);
    }
    b.complete(into);
    assert_eq!(sink.metadata().expect("stat").len(), rest[rest.len() - 1].size_bytes);
}

#[test]
fn only_tables_where_no_more_is_asked_for() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let files = files(12);
    let root = a.put_tree(&files);
    let request = velod::engine::PullRequest {
        roots: vec![root],
        tables_only: true,
        sources: vec![a.id],
        ..velod::engine::PullRequest::default()
    };
    let status = b.complete(b.handle().pull(request).expect("a job"));
    assert!(b.store.has(&root.blob).expect("asked"));
    assert!(!b.store.has(&BlobId::of(&files[0].1)).expect("asked"));
    assert_eq!(status.received_bytes, a.store.stat(&root.blob).expect("asked").expect("here").size_bytes);
}

#[test]
fn a_blob_that_is_no_tree_fails_the_job() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let blob = a.put(&content(3, 300_000));
    let job = b.pull(&[ObjectId { kind: ObjectKind::Tree, blob }], &[a.id]);
    let status = b.wait_for(job, |status| matches!(status.state, JobState::Failed(_)));
    assert!(matches!(status.state, JobState::Failed(error) if error.code == ErrorCode::Mismatch));
}

#[test]
fn a_job_waits_for_a_source_and_goes_on() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let blob = a.put(&content(4, 3 * MIB));
    let job = b.pull_blob(blob, &[node_id(77)]);
    b.wait_for(job, |status| status.state == JobState::Waiting);
    b.handle().add_sources(job, vec![a.id]).expect("it runs");
    b.complete(job);
    b.read(&blob);
    let late = b.handle().add_sources(job, vec![a.id]).expect_err("it has ended");
    assert_eq!(late.code, ErrorCode::NotFound);
}

#[test]
fn a_job_can_be_cancelled_and_another_goes_on_from_there() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(6, 40 * MIB + 9);
    let blob = a.put(&bytes);
    let few = Liar::start(&hub, 9, &bytes, Lie::Few(12));
    let job = b.pull_blob(blob, &[few.id]);
    b.wait_for(job, |status| status.done_bytes > 3 * MIB as u64);
    b.handle().cancel(job).expect("it runs");
    b.wait_for(job, |status| status.state == JobState::Cancelled);
    assert_eq!(b.handle().cancel(job).expect_err("it has ended").code, ErrorCode::NotFound);
    // What has arrived is still being checked and stored: who asks again before that is over may get it twice.
    b.wait_for_gauge("pool_buffers_in_use", 0);
    let status = b.complete(b.pull_blob(blob, &[a.id]));
    assert!(status.received_bytes < bytes.len() as u64 - 2 * MIB as u64, "{status:?}");
    assert!(b.counter("pieces_resumed_total") >= 3);
    assert_eq!(b.counter("pieces_refetched_total"), 0);
    assert_eq!(b.read(&blob), bytes);
}

#[test]
fn resumes_after_a_restart_without_fetching_a_piece_twice() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(7, 40 * MIB + 9);
    let blob = a.put(&bytes);
    let few = Liar::start(&hub, 9, &bytes, Lie::Few(12));
    let job = b.pull_blob(blob, &[few.id]);
    b.wait_for(job, |status| status.done_bytes > 5 * MIB as u64);
    let b = b.restart();
    let there = b.store.have(&blob).expect("asked").expect("some is here").have.count();
    assert!((5..=12).contains(&there), "{there}");
    let status = b.complete(b.pull_blob(blob, &[a.id]));
    assert_eq!(b.counter("pieces_received_total"), 41 - there);
    assert_eq!(b.counter("pieces_resumed_total"), there);
    assert_eq!(status.done_bytes, bytes.len() as u64);
    assert_eq!(b.read(&blob), bytes);
}

#[test]
fn a_source_dies_and_another_finishes() {
    let hub = Hub::default();
    let (a, c) = (Node::start(&hub, 1), Node::start(&hub, 3));
    let bytes = content(8, 60 * MIB + 1);
    let blob = a.put(&bytes);
    let dying = Liar::start(&hub, 9, &bytes, Lie::Slow(Duration::from_millis(5)));
    let job = c.pull_blob(blob, &[dying.id, a.id]);
    c.wait_for(job, |status| status.done_bytes > 4 * MIB as u64);
    drop(dying);
    c.complete(job);
    assert_eq!(c.read(&blob), bytes);
    assert_eq!(c.counter("pieces_refetched_total"), 0);
}

#[test]
fn a_source_that_stalls_is_left() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(9, 20 * MIB);
    let blob = a.put(&bytes);
    let stalling = Liar::start(&hub, 9, &bytes, Lie::Slow(Duration::from_secs(3600)));
    let job = b.pull_blob(blob, &[stalling.id, a.id]);
    b.complete(job);
    assert_eq!(b.read(&blob), bytes);
}

#[test]
fn a_flipped_byte_is_rejected_named_counted_and_fetched_elsewhere() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(10, 16 * MIB + 100);
    let blob = a.put(&bytes);
    let mut bent = bytes.clone();
    bent[7 * MIB + 55] ^= 1;
    let liar = Liar::start(&hub, 9, &bytes, Lie::Content(bent));
    let job = b.pull_blob(blob, &[liar.id]);
    b.wait_for(job, |status| status.bad_pieces > 0);
    b.handle().add_sources(job, vec![a.id]).expect("it runs");
    let status = b.complete(job);
    assert_eq!(status.bad_pieces, 1);
    assert_eq!(b.counter("pieces_bad_total"), 1);
    let report = b.handle().report();
    let (_, traffic) = report.peers.iter().find(|(node, _)| *node == liar.id).expect("it is known");
    assert_eq!(traffic.bad_pieces, 1);
    assert!(report.notes.iter().any(|note| note.contains(&liar.id.short())), "{:?}", report.notes);
    assert_eq!(b.read(&blob), bytes);
}

#[test]
fn half_an_outboard_is_refused_and_no_honest_peer_is_blamed() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(11, 16 * MIB);
    let blob = a.put(&bytes);
    let liar = Liar::start(&hub, 9, &bytes, Lie::HalfOutboard);
    let job = b.pull_blob(blob, &[liar.id]);
    std::thread::sleep(Duration::from_millis(300));
    b.handle().add_sources(job, vec![a.id]).expect("it runs");
    let status = b.complete(job);
    assert_eq!(status.bad_pieces, 0, "{status:?}");
    assert_eq!(b.counter("outboards_bad_total"), 1);
    let report = b.handle().report();
    assert!(report.notes.iter().any(|note| note.contains(&liar.id.short())), "{:?}", report.notes);
    assert!(!report.notes.iter().any(|note| note.contains(&a.id.short())), "{:?}", report.notes);
    let honest = report.peers.iter().find(|(node, _)| *node == a.id).expect("it is known");
    assert_eq!(honest.1.bad_pieces, 0);
    assert_eq!(status.total_bytes, bytes.len() as u64);
    assert_eq!(b.read(&blob), bytes);
}

#[test]
fn a_stated_size_that_does_not_fit_here_is_no_reason_to_give_up() {
    for lie in [Lie::Size((2 << 40) + 1), Lie::ChunksOutboard] {
        let hub = Hub::default();
        let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
        let bytes = content(12, 4 * MIB);
        let blob = a.put(&bytes);
        // What is here and not pinned is not given up for it.
        let cached = b.put(&content(13, 3 * MIB));
        b.store.unpin(ObjectId { kind: ObjectKind::Blob, blob: cached }).expect("the store works");
        let stated = matches!(lie, Lie::Size(_));
        let liar = Liar::start(&hub, 9, &bytes, lie);
        let unreachable = node_id(77);
        let job = b.pull_blob(blob, &[liar.id, unreachable]);
        b.wait_for(job, |status| status.state == JobState::Waiting);
        b.handle().add_sources(job, vec![a.id]).expect("it runs");
        let status = b.complete(job);
        assert_eq!((status.total_bytes, status.bad_pieces), (bytes.len() as u64, 0));
        assert_eq!(b.read(&blob), bytes);
        assert!(b.store.has(&cached).expect("the store works"));

        if stated {
            // Where nobody says anything else, it is the reason.
            let c = Node::start(&hub, 3);
            hub.leave(a.id);
            hub.leave(b.id);
            let job = c.pull_blob(blob, &[liar.id]);
            let status = c.wait_for(job, |status| matches!(status.state, JobState::Failed(_)));
            let JobState::Failed(error) = status.state else { unreachable!() };
            assert_eq!(error.code, ErrorCode::Limit, "{error:?}");
        }
    }
}

#[test]
fn four_nodes_at_once_feed_each_other() {
    let hub = Hub::default();
    let nodes: Vec<_> = (1..=4).map(|number| Node::start(&hub, number)).collect();
    let ids: Vec<_> = nodes.iter().map(|node| node.id).collect();
    let files = files(100);
    let root = nodes[0].put_tree(&files);
    let jobs: Vec<_> = nodes[1..].iter().map(|node| node.pull(&[root], &ids)).collect();
    let mut total = 0;
    for (node, job) in nodes[1..].iter().zip(jobs) {
        total = node.complete(job).total_bytes;
        for (_, content) in &files {
            assert_eq!(node.read(&BlobId::of(content)).len(), content.len());
        }
        assert_eq!(node.counter("pieces_bad_total"), 0);
    }
    let egress = nodes[0].sent() as f64 / total as f64;
    assert!(egress <= 1.5, "the first node sent {egress} times its content");
}

#[test]
fn a_rude_peer_changes_nothing_for_others() {
    use velo_object::PieceSet;
    use velod::engine::Peers;
    use velod::session::PeerMessage;
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(14, 6 * MIB + 1);
    let blob = a.put(&bytes);
    let rude = hub::HubPeers { hub: hub.clone(), node: node_id(66) };
    hub.join(rude.node, std::sync::Arc::new(|_| {}));
    rude.connect(b.id);
    // It is asked as soon as the job runs; whatever it answers, the other source brings all.
    let job = b.pull_blob(blob, &[rude.node]);
    std::thread::sleep(Duration::from_millis(200));
    let set = |len| PieceSet::full(len);
    let messages = [
        PeerMessage::Have { blob, size_bytes: Some(u64::MAX), have: set(7), holes: set(7) },
        PeerMessage::Have { blob, size_bytes: Some(3), have: set(1), holes: set(0) },
        PeerMessage::Have { blob, size_bytes: None, have: set(1000), holes: set(3) },
        PeerMessage::HaveMore { blob, pieces: vec![(u64::MAX, true), (0, true), (7, false)] },
        PeerMessage::HaveMore { blob: BlobId::of(b"never heard of"), pieces: vec![(1, false)] },
        PeerMessage::HaveNot { blob: BlobId::of(b"never asked for") },
        PeerMessage::Done { blobs: vec![blob, blob] },
        PeerMessage::Interest { blobs: (0..40_000u32).map(|at| BlobId::of(&at.to_le_bytes())).collect() },
    ];
    for message in messages {
        rude.send(b.id, message);
    }
    rude.open_streams(b.id, 100);
    b.handle().add_sources(job, vec![a.id]).expect("it runs");
    let status = b.complete(job);
    assert_eq!((b.read(&blob), status.received_bytes), (bytes, 6 * MIB as u64 + 1));
    assert!(b.counter("peer_limit_total") > 0, "neither interests nor streams were bounded");
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let hub = Hub::default();
    let a = Node::start(&hub, 1);
    let empty = a.handle().pull(velod::engine::PullRequest::default()).expect_err("nothing to get");
    assert_eq!(empty.code, ErrorCode::Invalid);
    assert_eq!(a.handle().cancel(1).expect_err("no such job").code, ErrorCode::NotFound);
    assert!(a.handle().wait_change(1, 0, Duration::from_secs(5)).is_none());
}

#[test]
fn a_blob_goes_straight_into_a_sink_and_is_not_kept() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(12, 5 * MIB + 3);
    let blob = a.put(&bytes);
    let small = content(13, 777);
    let small_blob = a.put(&small);
    let files = [tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file")];
    let blobs = [blob, small_blob];
    let sinks = blobs.iter().zip(&files);
    let request = velod::engine::PullRequest {
        roots: blobs.map(|blob| ObjectId { kind: ObjectKind::Blob, blob }).to_vec(),
        sources: vec![a.id],
        sinks: sinks.map(|(blob, file)| (*blob, file.try_clone().expect("dup"))).collect(),
        ..velod::engine::PullRequest::default()
    };
    b.complete(b.handle().pull(request).expect("a job"));
    for (file, bytes) in files.iter().zip([&bytes, &small]) {
        let mut found = vec![0; bytes.len()];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut found, 0).expect("all of it");
        assert_eq!(&found, bytes);
        assert_eq!(file.metadata().expect("stat").len(), bytes.len() as u64);
    }
    assert!(!b.store.has(&blob).expect("asked"));
    assert!(!b.store.has(&small_blob).expect("asked"));
}

#[test]
fn a_sink_that_is_let_go_is_filled_by_the_next_job_without_fetching_a_piece_twice() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let bytes = content(14, 40 * MIB + 9);
    let blob = a.put(&bytes);
    let few = Liar::start(&hub, 9, &bytes, Lie::Few(12));
    let file = tempfile::tempfile().expect("a file");
    let pull = |source: &velo_object::NodeId| {
        let request = velod::engine::PullRequest {
            roots: vec![ObjectId { kind: ObjectKind::Blob, blob }],
            sources: vec![*source],
            sinks: vec![(blob, file.try_clone().expect("dup"))],
            sizes: vec![Some(bytes.len() as u64)],
            ..velod::engine::PullRequest::default()
        };
        b.handle().pull(request).expect("a job")
    };
    let job = pull(&few.id);
    b.wait_for(job, |status| status.done_bytes > 5 * MIB as u64);
    b.handle().cancel(job).expect("it runs");
    b.wait_for(job, |status| status.state == JobState::Cancelled);
    let status = b.complete(pull(&a.id));
    assert!(b.counter("pieces_resumed_total") >= 5);
    assert_eq!(b.counter("pieces_refetched_total"), 0);
    assert!(status.received_bytes < bytes.len() as u64 - 4 * MIB as u64, "{status:?}");
    assert_eq!(status.done_bytes, bytes.len() as u64);
    let mut found = vec![0; bytes.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).expect("all of it");
    assert!(found == bytes);
}

#[test]
fn a_data_stream_of_a_peer_without_a_session_is_closed() {
    let hub = Hub::default();
    let node = Node::start(&hub, 1);
    let peer = node_id(2);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let keying = PathKeying { secret: PathSecret([7; 32]), trusted: false };
    node.handle().session_event(SessionEvent::Up { node: peer, address, incoming: true, keying });
    node.handle().session_event(SessionEvent::Down { node: peer, reason: "it is revoked".into() });
    let mut far = std::net::TcpStream::connect(address).expect("loopback");
    far.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let (tcp, _) = listener.accept().expect("connected");
    node.handle().session_event(SessionEvent::Stream { node: peer, stream: DataStream { tcp, tls: None } });
    assert_eq!(std::io::Read::read(&mut far, &mut [0; 1]).expect("closed"), 0);
}
