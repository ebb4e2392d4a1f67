//! Content that peers read from each other's memory, over whatever RDMA device this host has: soft-RoCE in a guest (`tests/guest/rdma`).
//! Skipped aloud where there is none.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use velo_fabric::rdma::device::addresses;
use velo_tests::content::{random_file, same_file};
use velo_tests::rdma::{get, put, ready, settings, warm_up};
use velo_tests::{Cluster, Node, Settings, skip, wait_until};

const MIB: u64 = 1 << 20;

/// Content that a provider sent over a fabric.
fn sent(node: &Node, fabric: &str) -> u64 {
    node.counter(&format!("fabric_sent_bytes_total{{fabric=\"{fabric}\"}}"))
}

/// Content that a reader received over a fabric.
fn received(node: &Node, fabric: &str) -> u64 {
    node.counter(&format!("fabric_received_bytes_total{{fabric=\"{fabric}\"}}"))
}

/// Content that a reader received by one device.
fn received_by(node: &Node, device: &str) -> u64 {
    node.counter(&format!("fabric_port_received_bytes_total{{fabric=\"rdma\",port=\"{device}:1\"}}"))
}

/// What the kernel has counted of the devices' packets. None where they do not say.
fn packets() -> Option<u64> {
    let devices: std::collections::BTreeSet<_> =
        addresses().into_iter().map(|address| address.place.device).collect();
    let of = |device: &String| {
        let counter = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/sent_pkts");
        fs::read_to_string(counter).ok()?.trim().parse::<u64>().ok()
    };
    devices.iter().map(of).sum()
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
    let provider = &cluster.nodes[0];
    // What the store gave to streams, what went over sockets, and what devices fetched.
    let counted = || {
        let on_sockets = provider.counter("fabric_wire_sent_bytes_total{fabric=\"tcp\"}");
        [sent(provider, "tcp"), on_sockets, sent(provider, "rdma"), packets().unwrap_or(0)]
    };
    let (before, begun) = (counted(), Instant::now());
    get(&cluster.nodes[1], &id, &dest);
    let seconds = begun.elapsed().as_secs_f64();
    assert!(same_file(&source, &dest));
    let after = counted();
    let [by_tcp, on_sockets, by_rdma, packets] = std::array::from_fn(|at| after[at] - before[at]);
    println!(
        "256 MiB in {seconds:.1} s; the provider sent {by_rdma} bytes by RDMA, {by_tcp} by TCP, {packets} packets"
    );
    assert_eq!((by_tcp, on_sockets), (0, 0), "{}", provider.log_tail());
    assert!(by_rdma >= 256 * MIB);
    // The kernel's own word for it: the longest packet has 4 KiB of content.
    let soft = addresses().iter().all(|address| address.place.device.starts_with("rxe"));
    assert!(!soft || packets >= 256 * MIB / 4096, "the devices sent {packets} packets");
    let said = cluster.nodes[1].ok(&["status"]);
    println!("{said}");
    assert!(said.contains("over rdma") && said.contains("registered in"), "{said}");
    assert!(said.contains("% of its rate") && said.contains("% of what rdma has received"), "{said}");
    // Each device has its share.
    let devices: std::collections::BTreeSet<_> =
        addresses().into_iter().map(|address| address.place.device).collect();
    for device in &devices {
        let share = received_by(&cluster.nodes[1], device);
        println!("{share} bytes by {device}");
        assert!(share > 256 * MIB / 4 / devices.len() as u64, "{device} carried {share} bytes");
        let best =
            format!("fabric_port_best_received_bytes_per_second{{fabric=\"rdma\",port=\"{device}:1\"}}");
        assert!(cluster.nodes[1].counter(&best) > 0, "{device} has no rate");
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
    let count = |node: usize| cluster.nodes[node].counter("pieces_verified_total");
    let (before, by_rdma) = (count(2), sent(&cluster.nodes[0], "rdma"));
    let mut pull = cluster.nodes[2].command(&["get", "--no-keep", &id, dest.to_str().expect("UTF-8")]);
    let mut pull = pull.spawn().expect("velo runs");
    wait_until("some has come", || count(2) > before + 4 && sent(&cluster.nodes[0], "rdma") > by_rdma + MIB);
    let (here, from_other) = (count(2) - before, content_sent(&cluster.nodes[1]));
    assert!(here < 48 && pull.try_wait().expect("it runs").is_none(), "{here} of 64 are here already");
    cluster.nodes[0].kill();
    assert!(pull.wait().expect("it ends").success(), "{}", cluster.nodes[2].log_tail());
    assert!(same_file(&source, &dest));
    let rest = content_sent(&cluster.nodes[1]) - from_other;
    assert!(rest >= MIB, "the other sent {rest} bytes of what was missing");
}

/// Content that a provider sent over whatever fabric.
fn content_sent(node: &Node) -> u64 {
    node.counter("fabric_sent_bytes_total")
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

/// What a cluster's reader and provider had counted in the middle of a transfer.
struct Middle {
    by_tcp: u64,
    by_device: Vec<(String, u64)>,
}

/// Takes so many devices away in the middle of a transfer, which completes all the same.
fn with_devices_removed(count: impl FnOnce(usize) -> usize, check: impl FnOnce(&Cluster, &Middle)) {
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
    let (before, by_rdma) = (reader.counter("pieces_verified_total"), received(reader, "rdma"));
    let by_tcp = received(reader, "tcp");
    let mut pull = reader.command(&["get", "--no-keep", &id, dest.to_str().expect("UTF-8")]);
    let mut pull = pull.spawn().expect("velo runs");
    wait_until("some has come", || reader.counter("pieces_verified_total") > before + 8);
    let here = reader.counter("pieces_verified_total") - before;
    let middle = Middle {
        by_tcp: received(reader, "tcp"),
        by_device: devices.0.iter().map(|(name, _)| (name.clone(), received_by(reader, name))).collect(),
    };
    // It is the middle: some has come by RDMA and by nothing else, and much is missing.
    assert!(here < 72 && pull.try_wait().expect("it runs").is_none(), "{here} of 96 are here already");
    assert!(
        received(reader, "rdma") >= by_rdma + 8 * MIB && middle.by_tcp == by_tcp,
        "RDMA did not carry it"
    );
    devices.remove(count(devices.0.len()));
    assert!(pull.wait().expect("it ends").success(), "{}", reader.log_tail());
    assert!(same_file(&source, &dest));
    println!("{}", reader.ok(&["status"]));
    check(&cluster, &middle);
}

#[test]
fn removed_with_all_its_devices_everything_goes_on_over_tcp() {
    with_devices_removed(
        |all| all,
        |cluster, middle| {
            let by_tcp = received(&cluster.nodes[1], "tcp") - middle.by_tcp;
            assert!(by_tcp >= 8 * MIB, "{by_tcp} bytes came by TCP after that");
            let fallbacks = cluster.nodes[1].counter("fabric_fallbacks_total");
            let said = cluster.nodes[1].ok(&["status"]);
            assert!(fallbacks > 0 && said.contains("over tcp") && said.contains("rdma at rxe"), "{said}");
            assert!(said.contains("of no use now"), "{said}");
        },
    );
}

#[test]
fn removed_while_nothing_moves_a_device_is_let_go_of_and_used_again_when_it_is_back() {
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
    assert!(sent(&cluster.nodes[0], "tcp") >= 8 * MIB);
    drop(devices);
    for node in &cluster.nodes {
        wait_until("the node has them again", || node.ok(&["status"]).contains("is back and is used again"));
    }
    warm_up(&cluster, 1, 0);
    let (node, before) = (&cluster.nodes[1], received(&cluster.nodes[1], "rdma"));
    random_file(&source, 8, 8 * MIB);
    get(node, &put(&cluster.nodes[0], &source), &dest);
    assert!(same_file(&source, &dest));
    assert!(received(node, "rdma") >= before + 8 * MIB, "{}", node.ok(&["status"]));
}

#[test]
fn removed_with_one_of_its_devices_another_carries_on() {
    with_devices_removed(
        |all| all - 1,
        |cluster, middle| {
            let reader = &cluster.nodes[1];
            let said = reader.ok(&["status"]);
            assert!(said.contains("rdma at rxe0 port 1 has failed"), "{said}");
            let (left, before) = middle.by_device.last().expect("one is left");
            let since = received_by(reader, left) - before;
            assert!(since >= 8 * MIB, "{left} carried {since} bytes after that");
            assert!(reader.counter("fabric_paths_lost_total") > 0, "it was not counted");
        },
    );
}

fn set_link(interface: &str, state: &str) {
    let status = Command::new("ip").args(["link", "set", interface, state]).status();
    assert!(status.expect("iproute2 has it").success(), "{interface} {state}");
}

/// Sets all links up again.
struct Links(Vec<String>);

impl Drop for Links {
    fn drop(&mut self) {
        self.0.iter().for_each(|link| set_link(link, "up"));
    }
}

#[test]
fn a_link_that_goes_down_and_up_is_used_again() {
    if !ready() {
        return;
    }
    let Some(devices) = Removable::all() else {
        return skip("links of RDMA devices: there is none that could be set down");
    };
    let cluster = Cluster::start_with(2, &settings(""));
    let (reader, (device, link)) = (&cluster.nodes[1], devices.0.last().expect("one"));
    let _up = Links(devices.0.iter().map(|(_, link)| link.clone()).collect());
    warm_up(&cluster, 1, 0);
    // Reads until it comes by this device, or has come so often.
    let (small, copy) = (cluster.path("more"), cluster.path("copy"));
    let more = |seed| {
        random_file(&small, seed, 4 * MIB);
        get(reader, &put(&cluster.nodes[0], &small), &copy);
        assert!(same_file(&small, &copy));
    };
    set_link(link, "down");
    let failed = format!("rdma at {device} port 1 has failed");
    wait_until("it is told", || reader.ok(&["status"]).contains(&failed));
    let (by_it, by_rdma) = (received_by(reader, device), received(reader, "rdma"));
    more(1);
    assert_eq!(received_by(reader, device), by_it, "the link is down");
    assert!(devices.0.len() == 1 || received(reader, "rdma") > by_rdma, "the other does not carry on");
    set_link(link, "up");
    for node in &cluster.nodes {
        let back = format!("rdma at {device} port 1 is back");
        wait_until("the port is used again", || node.ok(&["status"]).contains(&back));
    }
    let mut seed = 10;
    wait_until("it carries again", || {
        seed += 1;
        more(seed);
        received_by(reader, device) > by_it
    });
    println!("{}", reader.ok(&["status"]));
}

#[test]
fn where_the_network_is_not_trusted_rdma_is_off_and_the_node_says_so() {
    if !ready() {
        return;
    }
    let extra = "[fabric.rdma]\ntrusted = false\n".to_owned();
    let cluster = Cluster::start_with(2, &Settings { extra, ..settings("") });
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 6, 8 * MIB);
    get(&cluster.nodes[1], &put(&cluster.nodes[0], &source), &dest);
    assert!(same_file(&source, &dest));
    for node in &cluster.nodes {
        let said = node.ok(&["status"]);
        assert!(
            said.contains("the fabric rdma is off: nothing is encrypted on the network of rxe0"),
            "{said}"
        );
        assert!(said.contains("set `fabric.rdma.trusted = true`"), "{said}");
        assert_eq!(node.counter("fabric_paths_opened_total{fabric=\"rdma\"}"), 0);
    }
    // The same counters as where nothing goes by TCP.
    assert_eq!(sent(&cluster.nodes[0], "rdma"), 0);
    assert!(sent(&cluster.nodes[0], "tcp") >= 8 * MIB);
    assert!(cluster.nodes[0].counter("fabric_wire_sent_bytes_total{fabric=\"tcp\"}") >= 8 * MIB);
}

#[test]
fn where_the_plugin_is_missing_the_node_says_so() {
    if !ready() {
        return;
    }
    let cluster = Cluster::start_with(2, &settings("plugin = \"/nowhere/libvelo_fabric_rdma.so\"\n"));
    let said = cluster.nodes[1].ok(&["status"]);
    assert!(
        said.contains("the fabric rdma is off") && said.contains("/nowhere/libvelo_fabric_rdma.so"),
        "{said}"
    );
    let (source, dest) = (cluster.path("source"), cluster.path("dest"));
    random_file(&source, 7, 2 * MIB);
    get(&cluster.nodes[1], &put(&cluster.nodes[0], &source), &dest);
    assert!(same_file(&source, &dest));
}

#[test]
fn where_too_little_may_be_locked_the_node_says_how_much_it_needs() {
    if !ready() {
        return;
    }
    if !["prlimit", "setpriv"].into_iter().all(velo_tests::has_program) {
        return skip("RDMA under a limit of locked memory: util-linux is missing");
    }
    let mut cluster = Cluster::start_with(1, &settings(""));
    let node = &mut cluster.nodes[0];
    let ports = node.ok(&["status"]).matches("MiB registered").count() as u64;
    let registered = node.counter("fabric_port_registered_bytes");
    assert!(ports > 0 && registered > 0);
    node.stop();
    // Enough for the first pool and not for what comes after it. The capability would lift the limit.
    let limit = registered / ports / 2;
    let limit = format!("--memlock={limit}:{limit}");
    let caps = ["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
    node.wrapped(&["prlimit", &limit, "setpriv", caps[0], caps[1]]);
    node.up(&[]);
    let said = node.ok(&["status"]);
    let named = said.split("raise RLIMIT_MEMLOCK to ").nth(1).and_then(|rest| rest.split(' ').next());
    let named: u64 = named.and_then(|kib| kib.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    println!("{named} KiB are named, for {} KiB of pools", registered >> 10);
    assert!(named << 10 > registered, "not even the pools of all devices: {said}");
    assert_eq!(node.counter("fabric_port_registered_bytes"), 0);
    // What it names is enough.
    node.stop();
    let limit = format!("--memlock={0}:{0}", named << 10);
    node.wrapped(&["prlimit", &limit, "setpriv", caps[0], caps[1]]);
    node.up(&[]);
    assert_eq!(node.counter("fabric_port_registered_bytes"), registered, "{}", node.ok(&["status"]));
}
