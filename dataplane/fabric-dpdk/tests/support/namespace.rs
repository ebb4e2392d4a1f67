//! A network namespace for a test: it goes with the process that was started in it.

use std::env;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{PATIENCE, Peer, skip, spawn_by};

/// Whether namespaces can be made here; says aloud that `what` is skipped otherwise.
pub fn may_make_namespaces(what: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(["link", "show", "lo"]);
    let made = unshared(&mut command).output();
    let why = match made {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    skip(&format!("{what}: a network namespace, or ip in it: {}", why.trim()));
    false
}

fn unshared(command: &mut Command) -> &mut Command {
    // SAFETY: one system call, which may be made between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

/// This test's executable again in a namespace of its own, in a role. Its children are in it, too.
pub fn in_namespace(test: &str, role: &[&str]) -> Peer {
    let mut command = Command::new(env::current_exe().expect("a test has a path"));
    unshared(&mut command);
    spawn_by(command, test, role)
}

/// `ip` with these words.
pub fn ip(words: &[&str]) -> Result<(), String> {
    match Command::new("ip").args(words).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr))),
        Err(error) => Err(format!("ip: {error}")),
    }
}

/// Moves an interface of this namespace into that of `peer`, which [`take`]s it.
pub fn give(interface: &str, peer: &Peer) {
    ip(&["link", "set", interface, "netns", &peer.0.id().to_string()])
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Waits for an interface that is [given](give) to this namespace.
pub fn take(interface: &str) {
    let began = Instant::now();
    while let Err(error) = ip(&["link", "set", interface, "up"]) {
        assert!(began.elapsed() < PATIENCE, "{error}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Two interfaces joined by a wire.
pub fn veth(one: &str, other: &str, mtu: usize) {
    let made = ip(&["link", "add", one, "mtu", &mtu.to_string(), "type", "veth", "peer", "name", other])
        .and_then(|()| ip(&["link", "set", other, "mtu", &mtu.to_string()]))
        .and_then(|()| ip(&["link", "set", one, "up"]))
        .and_then(|()| ip(&["link", "set", other, "up"]));
    made.unwrap_or_else(|error| panic!("{error}"));
}
