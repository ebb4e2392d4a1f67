//! Where packets do not come through, streams carry everything, and the node says so.

use std::net::UdpSocket;

use velo_tests::content::{random_file, same_file};
use velo_tests::{Cluster, Settings, wait_until};

#[test]
fn a_closed_udp_port_costs_a_note_and_no_transfer() {
    // Others are told to send there, and nobody ever answers: as behind a firewall that drops.
    let nowhere = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let advertise = nowhere.local_addr().expect("bound");
    let extra = format!("[fabric.udp]\nlisten = \"127.0.0.1:0\"\nadvertise = \"{advertise}\"\n");
    let settings = Settings { fabric: Some("udp"), extra, ..Settings::default() };
    let cluster = Cluster::start_with(2, &settings);
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 1, 64 << 20);
    let id = cluster.nodes[0].json(&["put", source.to_str().expect("UTF-8")])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let node = &cluster.nodes[1];
    node.ok(&["get", &id, dest.to_str().expect("UTF-8")]);
    assert!(same_file(&source, &dest));
    cluster.assert_carried_by("tcp");

    let unproven = "fabric_fallbacks_total{fabric=\"udp\",reason=\"unproven\"}";
    wait_until("the attempt has failed and is counted", || node.counter(unproven) > 0);
    let said = node.ok(&["status"]);
    let provider = cluster.nodes[0].id();
    let note = format!("udp to node {} has failed (nothing has come back)", &provider[..12]);
    assert!(said.contains(&note) && said.contains("over tcp"), "{said}");
    assert!(
        said.lines().any(|line| line.starts_with("worker") && line.contains("udp 0 at 127.0.0.1:")),
        "{said}"
    );
    let peers = node.json(&["peers"]);
    let peers = peers["peers"].as_array().expect("a list");
    let peer = peers.iter().find(|peer| peer["node"] == provider.as_str()).expect("the provider");
    assert_eq!(peer["fabric"], "tcp", "{peer}");
    let mut received = [0; 2048];
    nowhere.set_nonblocking(true).expect("possible");
    assert!(nowhere.recv_from(&mut received).is_ok(), "nobody tried packets");
}

#[test]
fn packets_are_seen_in_the_status() {
    let cluster = Cluster::over("udp", 2);
    let source = cluster.path("source");
    random_file(&source, 1, 32 << 20);
    let id = cluster.nodes[0].json(&["put", source.to_str().expect("UTF-8")])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let node = &cluster.nodes[1];
    node.ok(&["get", &id, cluster.path("dest").to_str().expect("UTF-8")]);
    cluster.assert_carried_by("udp");
    wait_until("the status tells the round trip", || {
        let status = node.json(&["status"]);
        let sessions = status["status"]["sessions"].as_array().cloned().unwrap_or_default();
        sessions.iter().any(|session| session["fabric"] == "udp" && session["rtt_us"].as_u64() > Some(0))
    });
    assert!(node.ok(&["status"]).contains("over udp ("), "{}", node.ok(&["status"]));
    assert!(node.ok(&["peers"]).contains(" udp ("), "{}", node.ok(&["peers"]));
}
