//! Two nodes whose packets never meet the kernel: shared memory between two processes, as DPDK's memif.

use velo_fabric::packet::port::dpdk::Dpdk;
use velo_tests::content::{random_file, same_file};
use velo_tests::{Cluster, Settings, skip};

fn settings(role: &str, socket: &str, host: u8) -> Settings {
    let extra = format!(
        "[fabric.dpdk]\ndevice = \"memif:{role}:{socket}\"\naddress = \"10.77.0.{host}/24\"\n\
         [dataplane]\nmemory = \"128MiB\"\n"
    );
    Settings { fabric: Some("dpdk"), extra, ..Settings::default() }
}

#[test]
fn content_goes_over_shared_memory() {
    if let Err(why) = Dpdk::probe(None) {
        return skip(&format!("velod over DPDK: {why}"));
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let socket = scratch.path().join("memif");
    let socket = socket.to_str().expect("UTF-8");
    let mut cluster = Cluster::start_with(1, &settings("server", socket, 1));
    cluster.join(&settings("client", socket, 2));
    cluster.wait_for_members();
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 1, 64 << 20);
    let id = cluster.nodes[0].json(&["put", source.to_str().expect("UTF-8")])["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    cluster.nodes[1].ok(&["get", &id, dest.to_str().expect("UTF-8")]);
    assert!(same_file(&source, &dest));
    cluster.assert_carried_by("dpdk");
    let said = cluster.nodes[1].ok(&["status"]);
    assert!(said.contains("dpdk 0 at 10.77.0.2:"), "{said}");
}
