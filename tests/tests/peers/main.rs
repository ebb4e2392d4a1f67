//! Peers that are written here: they have certificates of the cluster and speak its protocols, and read more at once
//! than a node would, or lie.

mod liar;
mod peer;
mod reader;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use velo_object::{BlobId, NodeId, ObjectId, ObjectKind};
use velo_socket::JobState;
use velo_tests::content::{random_file, same_file};
use velo_tests::local::{job as job_status, pull};
use velo_tests::{Cluster, Node, Settings, full, wait_until};

use liar::Liar;
use peer::Peer;
use reader::{Over, read_and_discard};

fn put(node: &Node, path: &Path) -> ObjectId {
    let path = path.to_str().expect("a path in UTF-8");
    node.json(&["put", path])["id"].as_str().expect("an id").parse().expect("an id")
}

fn node_id(node: &Node) -> NodeId {
    node.id().parse().expect("a node id")
}

/// What of a process is its own memory: RssAnon and HugetlbPages, in bytes.
fn own_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("velod runs");
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says it");
        line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
    };
    (kib("RssAnon") + kib("HugetlbPages")) << 10
}

const CLIENTS: usize = 8;

/// The most memory that velod has while clients read `bytes` each.
fn most_memory_while_serving(over: Over, trusted: bool, bytes: u64, bound_mib: u64) -> u64 {
    let settings = Settings {
        trusted,
        extra: format!("[dataplane]\nmemory = \"{bound_mib}MiB\"\n"),
        ..Settings::default()
    };
    let cluster = Cluster::start_with(1, &settings);
    let node = &cluster.nodes[0];
    let source = cluster.path("source");
    random_file(&source, 31, bytes);
    let id = put(node, &source);
    fs::remove_file(source).expect("the store has it now");
    let pid = node.velod_pid();
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(own_memory(pid));
                std::thread::sleep(Duration::from_millis(10));
            }
            most
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut peer = Peer::new(&cluster, trusted);
                    let source = peer.connect(node);
                    read_and_discard(&peer, source, id.blob, over)
                })
            })
            .collect();
        let read: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        done.store(true, Ordering::Relaxed);
        for verified_bytes in read {
            assert_eq!(verified_bytes.expect("a client"), bytes);
        }
        sampler.join().expect("velod lives")
    });
    assert_eq!(node.velod_pid(), pid, "velod died and came back");
    most
}

#[test]
fn memory_of_a_serving_velod_stays_under_its_bound() {
    // Small enough that one buffer for each read that the clients have outstanding would break the lower bound.
    let (bytes, bound_mib) = if full() { (4 << 30, 512) } else { (512 << 20, 64) };
    for (over, trusted) in [(Over::Tcp, false), (Over::Tcp, true), (Over::Udp, false), (Over::Udp, true)] {
        let name = format!("{over:?}, {}", if trusted { "plain" } else { "sealed" });
        let most = most_memory_while_serving(over, trusted, bytes, bound_mib);
        let (most_mib, size_mib) = (most as f64 / (1 << 20) as f64, bytes >> 20);
        println!(
            "{name}: {CLIENTS} clients read {size_mib} MiB each: at most {most_mib:.1} MiB of {bound_mib} MiB"
        );
        assert!(most > 1 << 20, "{name}: {most} bytes cannot be all of it");
        assert!(most < bound_mib << 20, "{name}: {most_mib:.1} MiB, and the bound is {bound_mib} MiB");
    }
}

#[test]
fn a_provider_of_half_an_outboard_is_refused_and_no_honest_peer_is_blamed() {
    let cluster = Cluster::start(2);
    let (honest, victim) = (&cluster.nodes[0], &cluster.nodes[1]);
    // First nobody else has it, so that the false outboard is the one that is taken; then both have it.
    for (seed, together) in [(41, false), (42, true)] {
        let source = cluster.path(&format!("source-{seed}"));
        random_file(&source, seed, 16 << 20);
        let content = fs::read(&source).expect("just written");
        let id = ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(&content) };
        let liar = Liar::start(&cluster, victim, content);
        let mut socket = victim.socket();
        wait_until("the victim has a session with the liar", || {
            let status = socket.status().expect("velod answers");
            status.sessions.iter().any(|session| session.node == liar.id)
        });
        let job = if together {
            assert_eq!(put(honest, &source), id);
            pull(&mut socket, id, vec![liar.id, node_id(honest)]).expect("a job")
        } else {
            let job = pull(&mut socket, id, vec![liar.id]).expect("a job");
            wait_until("the false outboard is noticed", || victim.counter("outboards_bad_total") > 0);
            assert_ne!(job_status(&mut socket, job).state, JobState::Complete);
            assert_eq!(put(honest, &source), id);
            socket.add_sources(job, vec![node_id(honest)]).expect("another source");
            job
        };
        wait_until("the job ends", || {
            !matches!(job_status(&mut socket, job).state, JobState::Running | JobState::Waiting)
        });
        let status = job_status(&mut socket, job);
        assert_eq!(status.state, JobState::Complete, "{status:?}");
        assert_eq!((status.bad_pieces, status.total_bytes), (0, 16 << 20), "{status:?}");

        let status = socket.status().expect("velod answers");
        let blames = |node: &NodeId| status.notes.iter().any(|note| note.contains(&node.short()));
        assert!(together || blames(&liar.id), "the liar is not named: {:?}", status.notes);
        assert!(!blames(&node_id(honest)), "an honest peer is blamed: {:?}", status.notes);
        assert!(status.sessions.iter().all(|session| session.bad_pieces == 0), "{:?}", status.sessions);
        let dest = cluster.path(&format!("dest-{seed}"));
        victim.ok(&["get", &id.to_string(), dest.to_str().expect("a path in UTF-8")]);
        assert!(same_file(&source, &dest));
    }
    assert_eq!(victim.counter("pieces_bad_total"), 0);
}
