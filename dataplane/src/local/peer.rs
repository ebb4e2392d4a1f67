//! Who is at the other end of the local socket: velod's own user, root, or a member of the socket's group.

use std::os::unix::net::UnixStream;

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;

/// The largest `/proc/PID/status` that is read.
const STATUS_BYTES: usize = 64 << 10;

/// What the kernel says of who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) pid: i32,
    pub(super) uid: u32,
}

/// Checks who connected; `group` is the socket's.
pub(super) fn check(stream: &UnixStream, group: u32) -> Result<Credentials, String> {
    let peer = socket_peercred(stream).map_err(|error| format!("no credentials: {error}"))?;
    let (pid, uid, gid) = (peer.pid.as_raw_pid(), peer.uid.as_raw(), peer.gid.as_raw());
    let others = || supplementary_groups(pid);
    if allowed(uid, gid, others, geteuid().as_raw(), group) {
        Ok(Credentials { pid, uid })
    } else {
        Err(format!("process {pid} of user {uid} is neither of velod's user nor in group {group}"))
    }
}

fn allowed(uid: u32, gid: u32, others: impl FnOnce() -> Vec<u32>, own_uid: u32, group: u32) -> bool {
    uid == 0 || uid == own_uid || gid == group || others().contains(&group)
}

/// The kernel gives only the first group of a peer; the others stand in /proc. (It has already checked them against the socket's mode
/// when the peer connected; this is a second look.)
fn supplementary_groups(pid: i32) -> Vec<u32> {
    let text = std::fs::read(format!("/proc/{pid}/status")).unwrap_or_default();
    groups_in(&text[..text.len().min(STATUS_BYTES)])
}

fn groups_in(status: &[u8]) -> Vec<u32> {
    String::from_utf8_lossy(status)
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .map(|groups| groups.split_whitespace().filter_map(|group| group.parse().ok()).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_root_or_group() {
        let none = Vec::new;
        assert!(allowed(0, 0, none, 1000, 50), "root");
        assert!(allowed(1000, 1000, none, 1000, 50), "velod's user");
        assert!(allowed(1001, 50, none, 1000, 50), "first group");
        assert!(allowed(1001, 1001, || vec![7, 50], 1000, 50), "another group");
        assert!(!allowed(1001, 1001, || vec![7, 51], 1000, 50), "a stranger");
        assert!(!allowed(1001, 0, none, 1000, 50), "root's group is not root");
    }

    #[test]
    fn groups_are_read_from_proc() {
        assert_eq!(groups_in(b"Name:\tx\nGroups:\t4 24 1000 \nNgid:\t0\n"), [4, 24, 1000]);
        assert!(groups_in(b"Name:\tx\n").is_empty());
        let (here, _there) = UnixStream::pair().expect("a pair");
        assert_eq!(check(&here, u32::MAX).expect("ourselves").pid, std::process::id() as i32);
    }
}
