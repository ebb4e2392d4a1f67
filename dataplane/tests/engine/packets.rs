//! Packets carry what is read where they come through, and streams where they do not: also when that changes in mid-transfer.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use velo_config::Fabric;
use velo_object::NodeId;
use velo_socket::JobState;
use velod::engine::PeerTraffic;
use velod::session::SessionEvent;

use crate::MIB;
use crate::hub::{Hub, Node, content};

/// Content bytes that came over a fabric.
fn received(node: &Node, fabric: &str) -> u64 {
    node.counter(&format!("fabric_received_bytes_total{{fabric=\"{fabric}\"}}"))
}

fn fallbacks(node: &Node, why: &str) -> u64 {
    node.counter(&format!("fabric_fallbacks_total{{fabric=\"udp\",reason=\"{why}\"}}"))
}

fn traffic(node: &Node, peer: NodeId) -> PeerTraffic {
    let report = node.handle().report();
    report.peers.iter().find(|(found, _)| *found == peer).map(|(_, traffic)| *traffic).expect("a peer")
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Two nodes that only reach each other's UDP port through this, which can be cut.
struct Wire {
    cut: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    ends: [UdpSocket; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    fn new() -> Self {
        let end = || UdpSocket::bind("127.0.0.1:0").expect("a port");
        Self { cut: Arc::default(), stop: Arc::default(), ends: [end(), end()], threads: Vec::new() }
    }

    /// A node whose packets come and go here.
    fn node(&self, hub: &Hub, number: usize) -> Node {
        let end = self.ends[number].local_addr().expect("bound");
        Node::start_with(hub, number as u8 + 1, |options| options.fabrics.settings.udp.advertise = Some(end))
    }

    /// Begins to pass on what comes.
    fn connect(&mut self, nodes: [&Node; 2]) {
        for (from, node) in nodes.into_iter().enumerate() {
            let worker = || {
                let lines = node.handle().report().workers;
                lines.iter().find_map(|line| line.strip_prefix("udp 0 at ").map(str::to_owned))
            };
            eventually("a worker says where it listens", || worker().is_some());
            let line = worker().expect("just found");
            let to: SocketAddr =
                line.split(':').take(2).collect::<Vec<_>>().join(":").parse().expect("an address");
            let clone = |end: &UdpSocket| end.try_clone().expect("a descriptor");
            let (input, output) = (clone(&self.ends[from]), clone(&self.ends[1 - from]));
            let (cut, stop) = (self.cut.clone(), self.stop.clone());
            input.set_read_timeout(Some(Duration::from_millis(20))).expect("set");
            self.threads.push(std::thread::spawn(move || {
                let mut datagram = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, _)) = input.recv_from(&mut datagram)
                        && !cut.load(Ordering::Relaxed)
                    {
                        let _ = output.send_to(&datagram[..len], to);
                    }
                }
            }));
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[test]
fn packets_carry_what_is_read_in_both_directions() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let (first, second) = (content(1, 24 * MIB), content(2, 24 * MIB));
    let (first_id, second_id) = (a.put(&first), b.put(&second));
    b.complete(b.pull_blob(first_id, &[a.id]));
    a.complete(a.pull_blob(second_id, &[b.id]));
    assert!(b.read(&first_id) == first && a.read(&second_id) == second);
    for (node, peer) in [(&a, &b), (&b, &a)] {
        let (udp, tcp) = (received(node, "udp"), received(node, "tcp"));
        assert!(udp > 0 && udp + tcp >= 24 * MIB as u64, "{udp} over UDP, {tcp} over TCP");
        assert_eq!(traffic(node, peer.id).fabric, Fabric::Udp);
        eventually("the round trip is told", || traffic(node, peer.id).rtt_us.is_some_and(|us| us > 0));
    }
    assert_eq!(received(&a, "tcp"), 0, "the paths were there already");
}

#[test]
fn the_end_of_a_session_ends_its_paths() {
    let hub = Hub::default();
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    let id = a.put(&content(1, 4 * MIB));
    b.complete(b.pull_blob(id, &[a.id]));
    let (opened, closed) =
        ("fabric_paths_opened_total{fabric=\"udp\"}", "fabric_paths_closed_total{fabric=\"udp\"}");
    eventually("packets come through", || traffic(&a, b.id).fabric == Fabric::Udp);
    assert_eq!((a.counter(opened), a.counter(closed)), (1, 0));
    // As it is told of a peer that is revoked.
    a.handle().session_event(SessionEvent::Down { node: b.id, reason: "it is revoked".into() });
    eventually("the path is closed on one side", || a.counter(closed) == 1);
    eventually("and on the other", || b.counter(closed) == 1);
    assert_eq!((traffic(&a, b.id).fabric, traffic(&b, a.id).fabric), (Fabric::Tcp, Fabric::Tcp));
    assert!(a.handle().report().notes.is_empty(), "nothing has failed: {:?}", a.handle().report().notes);
}

#[test]
fn streams_are_used_where_a_node_prefers_them() {
    let hub = Hub::default();
    let streams = |options: &mut velod::engine::DataPlaneOptions| options.fabrics.order = vec![Fabric::Tcp];
    let (a, b) = (Node::start(&hub, 1), Node::start_with(&hub, 2, streams));
    let content = content(1, 4 * MIB);
    let id = a.put(&content);
    b.complete(b.pull_blob(id, &[a.id]));
    assert_eq!(traffic(&b, a.id).fabric, Fabric::Tcp);
    assert!(received(&b, "tcp") >= 4 * MIB as u64);
    // One that only serves over packets, and one that would read over them.
    let both = |options: &mut velod::engine::DataPlaneOptions| {
        options.fabrics.order = vec![Fabric::Tcp, Fabric::Udp];
    };
    let c = Node::start_with(&hub, 3, both);
    c.complete(c.pull_blob(id, &[a.id]));
    assert_eq!((traffic(&c, a.id).fabric, received(&c, "udp")), (Fabric::Tcp, 0));
    let other = self::content(2, 4 * MIB);
    let id = c.put(&other);
    a.complete(a.pull_blob(id, &[c.id]));
    assert_eq!(traffic(&a, c.id).fabric, Fabric::Udp);
}

#[test]
fn what_cannot_be_proven_is_not_used() {
    let hub = Hub::default();
    let mut wire = Wire::new();
    wire.cut.store(true, Ordering::Relaxed);
    let (a, b) = (wire.node(&hub, 0), wire.node(&hub, 1));
    wire.connect([&a, &b]);
    let id = a.put(&content(1, 8 * MIB));
    b.complete(b.pull_blob(id, &[a.id]));
    assert_eq!((traffic(&b, a.id).fabric, received(&b, "udp")), (Fabric::Tcp, 0));
    // An attempt that nothing is read for any more is ended and counted all the same.
    eventually("the attempt ends", || fallbacks(&b, "unproven") == 1);
    let notes = b.handle().report().notes;
    assert!(notes.iter().any(|note| note.contains("udp to node") && note.contains("TCP")), "{notes:?}");
}

#[test]
fn packets_that_cease_give_way_to_streams_and_come_back() {
    let hub = Hub::default();
    let mut wire = Wire::new();
    let (a, b) = (wire.node(&hub, 0), wire.node(&hub, 1));
    wire.connect([&a, &b]);
    let bytes = content(1, 160 * MIB);
    let id = a.put(&bytes);
    let job = b.pull_blob(id, &[a.id]);
    b.wait_for(job, |_| received(&b, "udp") > 4 * MIB as u64);
    wire.cut.store(true, Ordering::Relaxed);
    let status = b.complete(job);
    assert_eq!((status.state, status.bad_pieces), (JobState::Complete, 0));
    assert!(b.read(&id) == bytes);
    assert_eq!(traffic(&b, a.id).fabric, Fabric::Tcp);
    assert!(received(&b, "tcp") > 0 && fallbacks(&b, "stalled") == 1, "{:#?}", b.handle().report());
    let notes = b.handle().report().notes;
    assert_eq!(notes.iter().filter(|note| note.contains("udp to node")).count(), 1, "{notes:?}");

    wire.cut.store(false, Ordering::Relaxed);
    let mut seed = 10;
    eventually("packets come through again", || {
        seed += 1;
        let id = a.put(&content(seed, 4 * MIB));
        b.complete(b.pull_blob(id, &[a.id]));
        traffic(&b, a.id).fabric == Fabric::Udp
    });
}
