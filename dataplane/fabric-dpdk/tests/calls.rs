//! A busy worker over DPDK makes no system call: `strace` counts those of the thread that reads while thousands of datagrams arrive.
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use support::transfer::{PIECES, one_end};
use support::{dpdk_is_here, role, skip, spawn, spawn_by, wait_for};

/// What a few interrupts of the machine may add: the transfer has a datagram for each KiB and a half.
const CALLS_MAX: u64 = 50;
const DATAGRAMS_MIN: u64 = 2_500;

#[test]
fn a_busy_worker_makes_no_system_calls() {
    const TEST: &str = "a_busy_worker_makes_no_system_calls";
    if let Some(role) = role() {
        return one_end(&role);
    }
    if !dpdk_is_here("system calls of a DPDK worker") {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder can be made");
    let (socket, trace) = (dir.path().join("socket"), dir.path().join("trace"));
    match Command::new("strace").args(["-o", "/dev/null", "true"]).status() {
        Ok(status) if status.success() => {}
        Ok(_) => return skip("system calls of a DPDK worker: strace may not trace"),
        Err(error) => return skip(&format!("system calls of a DPDK worker: strace: {error}")),
    }
    let device = |kind: &str| format!("memif:{kind}:{}", socket.display());
    let mut server = spawn(TEST, &["serve", &device("server"), "1514", "0", "trusted"]);
    assert!(wait_for(Path::new(&socket), &mut server));
    // Each thread in a file of its own; two calls mark where the transfer begins and ends (see `support::transfer`).
    let mut traced = Command::new("strace");
    traced.args(["-ff", "-qq", "-o"]).arg(&trace).arg(std::env::current_exe().expect("a test has a path"));
    let reads = ["read", &device("client"), "1514", "0", "trusted", &server.number()];
    assert!(spawn_by(traced, TEST, &reads).ends_well());
    server.was_ended();
    let calls = between_marks(dir.path());
    println!(
        "{PIECES} pieces in datagrams of 1472 bytes: {} system calls of the worker, {calls:?}",
        sum(&calls)
    );
    let datagrams = PIECES * (1 << 20) / 1_472;
    assert!(datagrams > DATAGRAMS_MIN);
    assert!(sum(&calls) <= CALLS_MAX, "{calls:?} for {datagrams} datagrams");
}

fn sum(calls: &BTreeMap<String, u64>) -> u64 {
    calls.values().sum()
}

/// The calls between the two marks of the thread that makes them.
fn between_marks(dir: &Path) -> BTreeMap<String, u64> {
    const MARK: &str = "getpriority(PRIO_PROCESS, 0)";
    for entry in fs::read_dir(dir).expect("our own").flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let marks: Vec<usize> =
            text.lines().enumerate().filter(|(_, line)| line.starts_with(MARK)).map(|(at, _)| at).collect();
        if let [begin, end] = marks[..] {
            let mut calls = BTreeMap::new();
            for line in text.lines().take(end).skip(begin + 1).filter(|line| !line.starts_with("---")) {
                *calls.entry(line.split('(').next().unwrap_or(line).into()).or_default() += 1;
            }
            return calls;
        }
    }
    panic!("no thread has made both marks");
}
