//! Raw frames between two processes over the devices that need no hardware: every byte arrives, in both directions.
mod support;

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use support::namespace::{in_namespace, may_make_namespaces, veth};
use support::{
    HugePagesHeld, Peer, dpdk_is_here, echo, port, role, skip, spawn, spawn_by, wait_for, wait_for_link,
};
use velo_fabric::packet::port::dpdk::{DpdkPort, HugePages, Steering};
use velo_fabric::packet::port::ether::FramePort;

/// The user `nobody`.
const NOBODY: u32 = 65_534;

/// Both ends over a socket: `devices` are the one that makes it and the one that connects, to which the path is added.
fn over_socket(start: impl Fn(&[&str]) -> Peer, devices: [&str; 2], sizes: &[usize], huge_pages: HugePages) {
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    let huge_pages = format!("{huge_pages:?}");
    let socket = |dir: &Path| dir.join("socket").display().to_string();
    for size in &sizes {
        let dir = tempfile::tempdir().expect("a folder can be made");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("a folder of ours");
        let device = |kind: &str| format!("{kind}:{}", socket(dir.path()));
        let mut server = start(&["echo", &device(devices[0]), size, &huge_pages]);
        if !wait_for(Path::new(&socket(dir.path())), &mut server) {
            return;
        }
        let mut client = start(&["ask", &device(devices[1]), size, &huge_pages, &server.number()]);
        if !client.ends_well() {
            return;
        }
        server.was_ended();
    }
}

/// One end. Frames of 64 bytes, and of the size that is tested.
fn one_end(role: &[String]) {
    let [kind, device, size, huge_pages, other @ ..] = role else { panic!("{role:?}") };
    let size: usize = size.parse().expect("a number");
    let huge_pages = match huge_pages.as_str() {
        "No" => HugePages::No,
        "Yes" => HugePages::Yes,
        _ => HugePages::Auto,
    };
    let mut port = port(device, size.max(1_514), huge_pages);
    wait_for_link(&port);
    if kind == "echo" {
        echo::echo(&mut port);
    }
    let again = echo::ask(&mut port, size, if size > 20_000 { 300 } else { 3_000 });
    assert!(again == 0 || !port.caps().lossless, "{again} frames were lost on the way");
    let (counters, statistics) = (port.counters(), port.device().statistics());
    assert!(counters.rx_datagrams <= statistics.rx_frames, "{counters:?} {statistics:?}");
    assert_eq!(counters.rx_dropped + counters.tx_dropped, 0, "{counters:?}");
    assert_eq!(counters.calls, 0);
    support::end(&other[0]);
}

/// Both ends in a network namespace that `prepare` fills with interfaces: the first is there before the second starts.
fn in_a_namespace(
    test: &str,
    devices: [&str; 2],
    sizes: &[usize],
    huge_pages: HugePages,
    prepare: impl Fn(usize),
) {
    let huge_pages = format!("{huge_pages:?}");
    match role().as_deref() {
        Some([kind, size]) if kind == "namespace" => {
            prepare(size.parse().expect("a number"));
            let mut first = spawn(test, &["echo", devices[0], size, &huge_pages]);
            let both = wait_for_interface(devices[0], &mut first)
                && spawn(test, &["ask", devices[1], size, &huge_pages, &first.number()]).ends_well();
            if both {
                first.was_ended();
            }
        }
        Some(role) => one_end(role),
        None if dpdk_is_here(&format!("frames over {}", devices[0])) && may_make_namespaces(test) => {
            for size in sizes {
                in_namespace(test, &["namespace", &size.to_string()]).ends_well();
            }
        }
        None => {}
    }
}

fn wait_for_interface(device: &str, maker: &mut Peer) -> bool {
    let interface = device.rsplit(':').next().expect("an interface");
    support::wait_until(&format!("{interface} in the namespace"), maker, || {
        support::namespace::ip(&["link", "show", interface]).is_ok()
    })
}

#[test]
fn memif() {
    if let Some(role) = role() {
        return one_end(&role);
    }
    if dpdk_is_here("frames over memif") {
        over_socket(
            |role| spawn("memif", role),
            ["memif:server", "memif:client"],
            &[64, 1_500, 9_000, 64_000],
            HugePages::No,
        );
    }
}

#[test]
fn memif_with_a_queue_for_each_worker() {
    const TEST: &str = "memif_with_a_queue_for_each_worker";
    if let Some([kind, device, _, _, other @ ..]) = role().as_deref() {
        let ports = support::ports(device, 2, 1_514, HugePages::No);
        assert_eq!((ports.len(), ports[0].device().steering()), (2, Steering::Paired));
        wait_for_link(&ports[0]);
        // A worker each: what one of the other end sends comes to the same one here.
        let asks = |mut port: DpdkPort| {
            assert_eq!(echo::ask(&mut port, 1_000, 1_000), 0);
            assert_eq!(port.counters().rx_datagrams, 1_000, "its own queue has moved them");
            port
        };
        let ports: Vec<DpdkPort> = thread::scope(|scope| {
            let worker = |mut port| {
                scope.spawn(move || if kind == "echo" { echo::echo(&mut port) } else { asks(port) })
            };
            let workers: Vec<_> = ports.into_iter().map(worker).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker that ends well")).collect()
        });
        support::end(&other[0]);
        drop(ports);
        return;
    }
    if dpdk_is_here("frames over two queues of a memif") {
        over_socket(|role| spawn(TEST, role), ["memif:server", "memif:client"], &[1_000], HugePages::No);
    }
}

#[test]
fn memif_without_copies() {
    if let Some(role) = role() {
        return one_end(&role);
    }
    if dpdk_is_here("frames over memif without copies") {
        let devices = ["memif:server", "memif:zero-copy"];
        over_socket(
            |role| spawn("memif_without_copies", role),
            devices,
            &[64, 1_500, 9_000, 64_000],
            HugePages::No,
        );
    }
}

#[test]
fn memif_without_root() {
    if let Some(role) = role() {
        return one_end(&role);
    }
    // SAFETY: reads a number.
    let root = unsafe { libc::geteuid() } == 0;
    if !root || !dpdk_is_here("frames over memif without root") {
        return; // Without root, all the others show it.
    }
    let executable = env::current_exe().expect("a test has a path");
    let nobody = || {
        let mut command = Command::new(&executable);
        command.uid(NOBODY).gid(NOBODY);
        command
    };
    match nobody().arg("--list").output() {
        Ok(output) if output.status.success() => {
            let start = |role: &[&str]| spawn_by(nobody(), "memif_without_root", role);
            over_socket(start, ["memif:server", "memif:zero-copy"], &[9_000], HugePages::No);
        }
        _ => {
            skip(&format!("frames over memif without root: nobody else may execute {}", executable.display()))
        }
    }
}

#[test]
fn virtio() {
    if let Some(role) = role() {
        return one_end(&role);
    }
    if !dpdk_is_here("frames over virtio_user and vhost") {
        return;
    }
    // A driver's memory must be in huge pages for its vhost end to map it.
    match HugePagesHeld::new(256) {
        Ok(_held) => over_socket(
            |role| spawn("virtio", role),
            ["vhost", "virtio_user"],
            &[64, 1_500, 9_000],
            HugePages::Yes,
        ),
        Err(why) => skip(&format!("frames over virtio_user and vhost: no huge pages: {why}")),
    }
}

#[test]
fn af_packet() {
    in_a_namespace(
        "af_packet",
        ["af_packet:velo0", "af_packet:velo1"],
        &[64, 1_500, 9_000],
        HugePages::No,
        |size| {
            veth("velo0", "velo1", size.max(1_500));
        },
    );
}

#[test]
fn af_xdp() {
    let held = if role().is_none() { HugePagesHeld::new(256).map(Some) } else { Ok(None) };
    match held {
        Ok(_held) => {
            in_a_namespace(
                "af_xdp",
                ["af_xdp:velo0", "af_xdp:velo1"],
                &[64, 1_500],
                HugePages::Yes,
                |size| {
                    veth("velo0", "velo1", size.max(1_500));
                },
            );
        }
        Err(why) => skip(&format!("frames over af_xdp: no huge pages: {why}")),
    }
}

#[test]
fn tap() {
    in_a_namespace("tap", ["tap:velo0", "af_packet:velo0"], &[64, 1_500], HugePages::No, |_| {});
}
