//! Peers that are written here: they have certificates of the cluster and speak its protocols, and read more at once
//! than a node would.

mod peer;
mod reader;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use velo_object::ObjectId;
use velo_tests::content::random_file;
use velo_tests::{Cluster, Node, Settings, full};

use peer::Peer;
use reader::read_and_discard;

fn put(node: &Node, path: &Path) -> ObjectId {
    let path = path.to_str().expect("a path in UTF-8");
    node.json(&["put", path])["id"].as_str().expect("an id").parse().expect("an id")
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
fn most_memory_while_serving(trusted: bool, bytes: u64, bound_mib: u64) -> u64 {
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
                    let peer = Peer::new(&cluster, trusted);
                    let source = peer.connect(node);
                    read_and_discard(&peer, source, id.blob)
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
    for (trusted, name) in [(false, "TLS"), (true, "plain")] {
        let most = most_memory_while_serving(trusted, bytes, bound_mib);
        let (most_mib, size_mib) = (most as f64 / (1 << 20) as f64, bytes >> 20);
        println!(
            "{name}: {CLIENTS} clients read {size_mib} MiB each: at most {most_mib:.1} MiB of {bound_mib} MiB"
        );
        assert!(most > 1 << 20, "{name}: {most} bytes cannot be all of it");
        assert!(most < bound_mib << 20, "{name}: {most_mib:.1} MiB, and the bound is {bound_mib} MiB");
    }
}
