//! The packet fabric between two processes over DPDK: the right bytes, without loss and with 5 % of it in each direction, with and
//! without seal.
mod support;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use support::namespace::{give, in_namespace, may_make_namespaces, take, veth};
use support::transfer::one_end;
use support::{PATIENCE, Peer, dpdk_is_here, role, spawn, wait_for};

/// The reader ends well, and the server when the reader ends it.
fn finish(mut server: Peer, mut reader: Peer) {
    assert!(reader.ends_well());
    server.was_ended();
}

#[test]
fn memif() {
    if let Some(role) = role() {
        return one_end(&role);
    }
    if !dpdk_is_here("the packet fabric over memif") {
        return;
    }
    for (frame, loss, protection) in [
        ("1514", "0", "trusted"),
        ("1514", "5", "sealed"),
        ("9014", "0", "sealed"),
        ("9014", "5", "trusted"),
        ("65407", "0", "trusted"),
        ("65407", "5", "sealed"),
    ] {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let socket = dir.path().join("socket").display().to_string();
        let mut server =
            spawn("memif", &["serve", &format!("memif:server:{socket}"), frame, loss, protection]);
        assert!(wait_for(Path::new(&socket), &mut server));
        let device = format!("memif:zero-copy:{socket}");
        let reader = spawn("memif", &["read", &device, frame, loss, protection, &server.number()]);
        finish(server, reader);
    }
}

#[test]
fn veth_between_namespaces() {
    const TEST: &str = "veth_between_namespaces";
    match role().as_deref() {
        Some([kind, loss]) if kind == "namespace" => {
            veth("velo0", "velo1", 1_500);
            let server = spawn(TEST, &["serve", "af_packet:velo0", "1514", loss, "sealed"]);
            let reads = ["read", "af_packet:velo1", "1514", loss, "sealed", &server.number()];
            let reader = in_namespace(TEST, &reads);
            // It has a namespace of its own when it executes its own program.
            let other = |id: u32| std::fs::read_link(format!("/proc/{id}/ns/net")).ok();
            let began = Instant::now();
            while other(reader.0.id()) == other(std::process::id()) {
                assert!(began.elapsed() < PATIENCE, "no namespace");
                thread::sleep(Duration::from_millis(5));
            }
            give("velo1", &reader);
            finish(server, reader);
        }
        Some(role) => {
            if role[0] == "read" {
                take("velo1");
            }
            one_end(role);
        }
        None if dpdk_is_here("the packet fabric over af_packet") && may_make_namespaces(TEST) => {
            for loss in ["0", "5"] {
                assert!(in_namespace(TEST, &["namespace", loss]).ends_well());
            }
        }
        None => {}
    }
}
