//! Content that peers read from each other's memory, over whatever RDMA device this host has: soft-RoCE in a guest (`tests/guest/rdma`).
//! Skipped aloud where there is none.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::Value;
use velo_fabric::rdma::device::addresses;
use velo_tests::content::{random_file, same_file};
use velo_tests::rdma::{ready, settings};
use velo_tests::{Cluster, Node, PATIENCE, skip, wait_until};

const MIB: u64 = 1 << 20;

fn put(node: &Node, path: &Path) -> String {
    node.json(&["put", path.to_str().expect("UTF-8")])["id"].as_str().expect("an id").to_owned()
}

fn get(node: &Node, id: &str, dest: &Path) {
    node.ok(&["get", "--no-keep", id, dest.to_str().expect("UTF-8")]);
}

/// Content that a provider sent over a fabric.
fn sent(node: &Node, fabric: &str) -> u64 {
    node.counter(&format!("fabric_sent_bytes_total{{fabric=\"{fabric}\"}}"))
}

/// Reads small things until RDMA carries what is read from `provider`: in an emulated machine its proof takes longer than streams wait.
fn warm_up(cluster: &Cluster, reader: usize, provider: usize) {
    let (small, begun) = (cluster.path("small"), Instant::now());
    let id = cluster.nodes[provider].id();
    let node = &cluster.nodes[reader];
    for seed in 100.. {
        random_file(&small, seed, MIB);
        let root = put(&cluster.nodes[provider], &small);
        get(node, &root, &cluster.path("copy"));
        let peers: Value = node.json(&["peers"]);
        let peers = peers["peers"].as_array().cloned().unwrap_or_default();
        if peers.iter().any(|peer| peer["node"] == id.as_str() && peer["fabric"] == "rdma") {
            return;
        }
        let (status, log) = (|| node.ok(&["status"]), || cluster.nodes[provider].log_tail());
        assert!(
            begun.elapsed() < PATIENCE,
            "RDMA carries nothing:\n{}\n{}\n{}",
            status(),
            node.log_tail(),
            log()
        );
    }
}

#[test]
fn content_is_read_from_the_providers_memory_and_nothing_goes_by_tcp() {
    if !ready() {
        return;
    }
    let cluster = Cluster::start_with(2, &settings(""));
    warm_up(&cluster, 1, 0);
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 1, 256 * MIB);
    let id = put(&cluster.nodes[0], &source);
    let (by_tcp, by_rdma) = (sent(&cluster.nodes[0], "tcp"), sent(&cluster.nodes[0], "rdma"));
    let begun = Instant::now();
    get(&cluster.nodes[1], &id, &dest);
    let seconds = begun.elapsed().as_secs_f64();
    assert!(same_file(&source, &dest));
    let (by_tcp, by_rdma) =
        (sent(&cluster.nodes[0], "tcp") - by_tcp, sent(&cluster.nodes[0], "rdma") - by_rdma);
    println!("256 MiB in {seconds:.1} s; the provider sent {by_rdma} bytes by RDMA, {by_tcp} by TCP");
    assert_eq!(by_tcp, 0, "{}", cluster.nodes[0].log_tail());
    assert!(by_rdma >= 256 * MIB);
    let said = cluster.nodes[1].ok(&["status"]);
    println!("{said}");
    assert!(said.contains("over rdma") && said.contains("registered in"), "{said}");
    // Each device has its share.
    let devices: std::collections::BTreeSet<_> =
        addresses().into_iter().map(|address| address.place.device).collect();
    for device in &devices {
        let name = format!("fabric_port_received_bytes_total{{fabric=\"rdma\",port=\"{device}:1\"}}");
        let share = cluster.nodes[1].counter(&name);
        println!("{share} bytes by {device}");
        assert!(share > 256 * MIB / 4 / devices.len() as u64, "{device} carried {share} bytes");
    }
}

#[test]
fn a_killed_provider_is_replaced_by_another() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start_with(3, &settings(""));
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 2, 64 * MIB);
    let id = put(&cluster.nodes[0], &source);
    assert_eq!(put(&cluster.nodes[1], &source), id);
    warm_up(&cluster, 2, 0);
    let before = cluster.nodes[2].counter("pieces_verified_total");
    let mut pull = cluster.nodes[2].command(&["get", "--no-keep", &id, dest.to_str().expect("UTF-8")]);
    let mut pull = pull.spawn().expect("velo runs");
    let reader = &cluster.nodes[2];
    wait_until("some has come", || reader.counter("pieces_verified_total") > before + 4);
    cluster.nodes[0].kill();
    assert!(pull.wait().expect("it ends").success(), "{}", cluster.nodes[2].log_tail());
    assert!(same_file(&source, &dest));
}

#[test]
fn leases_that_are_too_short_cost_time_and_no_byte() {
    if !ready() {
        return;
    }
    let cluster = Cluster::start_with(2, &settings("lease_ms = 100\n"));
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 3, 48 * MIB);
    let id = put(&cluster.nodes[0], &source);
    warm_up(&cluster, 1, 0);
    get(&cluster.nodes[1], &id, &dest);
    assert!(same_file(&source, &dest));
    let ran_out = cluster.nodes[1].counter("fabric_leases_ran_out_total");
    let expired = cluster.nodes[0].counter("fabric_leases_expired_total");
    println!("{ran_out} leases ran out, {expired} were taken back");
    // An emulated device needs longer than that for what is asked of it at once.
    assert!(ran_out + expired > 0 || std::env::var_os("VELO_RDMA_REQUIRED").is_none());
}

#[test]
fn without_a_device_a_node_starts_and_says_so() {
    if !addresses().is_empty() {
        return;
    }
    let cluster = Cluster::start_with(1, &settings(""));
    let said = cluster.nodes[0].ok(&["status"]);
    assert!(said.contains("the fabric rdma is off: this host has no RDMA device"), "{said}");
}

/// Devices that can be taken away and made again, with their interfaces.
struct Removable(Vec<(String, String)>);

impl Removable {
    fn all() -> Option<Self> {
        let mut devices: Vec<_> = addresses()
            .into_iter()
            .filter(|address| address.place.device.starts_with("rxe"))
            .filter_map(|address| Some((address.place.device, address.interface?)))
            .collect();
        devices.sort();
        devices.dedup();
        (!devices.is_empty()).then_some(Self(devices))
    }

    fn link(arguments: &[&str]) {
        let status = Command::new("rdma").arg("link").args(arguments).status().expect("iproute2 has it");
        assert!(status.success(), "rdma link {arguments:?}");
    }

    fn remove(&self, count: usize) {
        for (device, _) in &self.0[..count] {
            Self::link(&["del", device]);
        }
    }
}

impl Drop for Removable {
    fn drop(&mut self) {
        for (device, interface) in &self.0 {
            if !Path::new("/sys/class/infiniband").join(device).exists() {
                Self::link(&["add", device, "type", "rxe", "netdev", interface]);
            }
        }
    }
}

/// Takes so many devices away in the middle of a transfer, which completes all the same.
fn with_devices_removed(count: impl FnOnce(usize) -> usize, check: impl FnOnce(&Cluster)) {
    if !ready() {
        return;
    }
    let Some(devices) = Removable::all() else {
        return skip("removal of RDMA devices: there is none that could be made again");
    };
    let cluster = Cluster::start_with(2, &settings(""));
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 4, 96 * MIB);
    let id = put(&cluster.nodes[0], &source);
    warm_up(&cluster, 1, 0);
    let reader = &cluster.nodes[1];
    let before = reader.counter("pieces_verified_total");
    let mut pull = reader.command(&["get", "--no-keep", &id, dest.to_str().expect("UTF-8")]);
    let mut pull = pull.spawn().expect("velo runs");
    wait_until("some has come", || reader.counter("pieces_verified_total") > before + 8);
    devices.remove(count(devices.0.len()));
    assert!(pull.wait().expect("it ends").success(), "{}", reader.log_tail());
    assert!(same_file(&source, &dest));
    println!("{}", reader.ok(&["status"]));
    check(&cluster);
}

#[test]
fn removed_with_all_its_devices_everything_goes_on_over_tcp() {
    with_devices_removed(
        |all| all,
        |cluster| {
            assert!(sent(&cluster.nodes[0], "tcp") > 0 && sent(&cluster.nodes[0], "rdma") > 0);
            let fallbacks = cluster.nodes[1].counter("fabric_fallbacks_total");
            let said = cluster.nodes[1].ok(&["status"]);
            assert!(fallbacks > 0 && said.contains("over tcp") && said.contains("rdma at rxe"), "{said}");
        },
    );
}

#[test]
fn removed_while_nothing_moves_a_device_is_let_go_of() {
    if !ready() {
        return;
    }
    let Some(devices) = Removable::all() else {
        return skip("removal of RDMA devices: there is none that could be made again");
    };
    let cluster = Cluster::start_with(2, &settings(""));
    // It waits until nobody has the device open any more.
    devices.remove(devices.0.len());
    let node = &cluster.nodes[1];
    wait_until("the node says so", || node.ok(&["status"]).contains("0 of its ports are left"));
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 5, 8 * MIB);
    get(node, &put(&cluster.nodes[0], &source), &dest);
    assert!(same_file(&source, &dest));
    assert_eq!(sent(&cluster.nodes[0], "rdma"), 0);
}

#[test]
fn removed_with_one_of_its_devices_another_carries_on() {
    with_devices_removed(
        |all| all - 1,
        |cluster| {
            let said = cluster.nodes[1].ok(&["status"]);
            assert!(said.contains("rdma at rxe0 port 1 has failed"), "{said}");
        },
    );
}
