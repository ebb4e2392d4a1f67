//! Two nodes in network namespaces of their own, with a virtual Ethernet between them: packets past the kernel, and packets that stop
//! coming through in the middle of a transfer.

use std::process::Command;

use velo_tests::content::{random_file, same_file};
use velo_tests::namespaces::{DEVICE, Link, link_or_skip};
use velo_tests::{Cluster, Settings, skip, wait_until};

/// Puts a file of `bytes` on the first node; its id.
fn put(cluster: &Cluster, bytes: u64) -> String {
    let source = cluster.path("source");
    random_file(&source, 1, bytes);
    let put = cluster.nodes[0].json(&["put", source.to_str().expect("UTF-8")]);
    put["id"].as_str().expect("an id").to_owned()
}

#[test]
fn content_goes_past_the_kernel() {
    let what = "velod over xdp";
    let Some(link) = link_or_skip(9_000, what) else { return };
    for trusted in [true, false] {
        let extra = format!("[fabric.xdp]\ninterface = \"{DEVICE}\"\n");
        let settings = Settings { fabric: Some("xdp"), trusted, extra, ..Settings::default() };
        let cluster = Cluster::at_ends(&link, &settings);
        let said = cluster.nodes[1].ok(&["status"]);
        if !said.contains("xdp 0 at 10.77.0.2:7510") {
            let lines: Vec<_> = said.lines().filter(|line| line.contains("xdp")).collect();
            assert!(!lines.is_empty(), "the status says nothing of xdp:\n{said}");
            return skip(&format!("{what}: {}", lines.join("; ")));
        }
        let id = put(&cluster, 64 << 20);
        // Content that arrives before packets have been proven comes over TCP: once more until some has not.
        wait_until("content comes over xdp", || {
            let dest = cluster.path("dest");
            cluster.nodes[1].ok(&["get", "--no-keep", &id, dest.to_str().expect("UTF-8")]);
            assert!(same_file(&cluster.path("source"), &dest));
            std::fs::remove_file(&dest).expect("it was there");
            cluster.nodes[1].counter("fabric_received_bytes_total{fabric=\"xdp\"}") > 0
        });
        cluster.assert_carried_by("xdp");
    }
}

/// Lets UDP through no more at the receiver's end, or again.
fn block(link: &Link, blocked: bool) -> bool {
    let nft = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", link.b.name(), "nft"]).args(arguments);
        command.output().is_ok_and(|output| output.status.success())
    };
    if !blocked {
        return nft(&["delete", "table", "inet", "velo"]);
    }
    nft(&["add", "table", "inet", "velo"])
        && nft(&["add", "chain", "inet", "velo", "in", "{ type filter hook input priority 0; }"])
        && nft(&["add", "rule", "inet", "velo", "in", "udp", "sport", "7442-7505", "drop"])
}

#[test]
fn a_transfer_goes_on_when_packets_stop_coming_through() {
    let what = "packets that are blocked in mid-transfer";
    let Some(link) = link_or_skip(1_500, what) else { return };
    if !block(&link, true) || !block(&link, false) {
        return skip(&format!("{what}: nftables are missing"));
    }
    let slow = ["netns", "exec", link.a.name(), "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf"];
    let rate = ["rate", "400mbit", "burst", "256kb", "latency", "20ms"];
    if !Command::new("ip").args(slow).args(rate).status().is_ok_and(|status| status.success()) {
        return skip(&format!("{what}: `tc … tbf` is missing"));
    }
    let cluster = Cluster::at_ends(&link, &Settings { fabric: Some("udp"), ..Settings::default() });
    let (id, node) = (put(&cluster, 256 << 20), &cluster.nodes[1]);
    let dest = cluster.path("dest");
    let came = |fabric: &str| node.counter(&format!("fabric_received_bytes_total{{fabric=\"{fabric}\"}}"));
    let mut get = node.command(&["get", &id, dest.to_str().expect("UTF-8")]).spawn().expect("velo starts");
    wait_until("packets carry it", || came("udp") > 32 << 20);
    assert!(block(&link, true));
    let before = came("tcp");
    assert!(get.wait().expect("it is ours").success(), "{}", node.log_tail());
    assert!(same_file(&cluster.path("source"), &dest));
    let rest = came("tcp") - before;
    assert!(rest > 32 << 20, "{rest} bytes came over TCP: {}", node.log_tail());
    assert!(node.counter("fabric_fallbacks_total") > 0);
    let said = node.ok(&["status"]);
    assert!(said.contains("udp to node"), "the operator is told: {said}");
    assert!(block(&link, false));
}
