//! Sessions between nodes of one process, over loopback.

pub(crate) mod authority;
mod cluster;
mod hostile;
mod joining;
mod strangers;

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rcgen::KeyPair;
use tempfile::TempDir;
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::Member;

use super::{SessionEvent, SessionOptions, Sessions};
use authority::Authority;

/// Longer than anything here takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A node that only has sessions.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) key: KeyPair,
    pub(crate) node: NodeId,
    pub(crate) sessions: Sessions,
    events: Receiver<SessionEvent>,
}

pub(crate) fn options(dir: &TempDir) -> SessionOptions {
    SessionOptions {
        paths: Paths::new(dir.path().to_owned()),
        listen: vec!["127.0.0.1:0".parse().expect("an address")],
        advertise: Vec::new(),
        trusted: false,
        max_sessions: 16,
        zone: "default".to_owned(),
    }
}

impl Node {
    pub(crate) fn new(authority: &Authority) -> Self {
        Self::with(authority, authority::key(), 3600, |_| {})
    }

    pub(crate) fn with(
        authority: &Authority,
        key: KeyPair,
        ends_s: i64,
        change: impl FnOnce(&mut SessionOptions),
    ) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let node = authority.write(dir.path(), &key, ends_s);
        let mut options = options(&dir);
        change(&mut options);
        let (sender, events) = channel();
        let sessions = Sessions::start(options, move |event| drop(sender.send(event))).expect("sessions");
        Self { dir, key, node, sessions, events }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.sessions.listen_addresses()[0]
    }

    pub(crate) fn member(&self) -> Member {
        Member {
            node: self.node,
            name: "test".to_owned(),
            addresses: vec![self.address()],
            zone: "test".to_owned(),
        }
    }

    pub(crate) fn next(&self) -> SessionEvent {
        self.events.recv_timeout(LONG).expect("an event")
    }

    fn quiet_for(&self, time: Duration) -> bool {
        matches!(self.events.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }

    /// The first event of which `pick` makes something.
    pub(crate) fn wait<T>(&self, mut pick: impl FnMut(SessionEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("the event in time");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    }

    pub(crate) fn wait_up(&self, with: NodeId) -> bool {
        self.wait(|event| match event {
            SessionEvent::Up { node, incoming, .. } if node == with => Some(incoming),
            _ => None,
        })
    }

    pub(crate) fn wait_down(&self, with: NodeId) -> String {
        self.wait(|event| match event {
            SessionEvent::Down { node, reason } if node == with => Some(reason),
            _ => None,
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.sessions.stop();
    }
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes two nodes known to each other and connects the first to the second.
pub(crate) fn connected(a: &Node, b: &Node) {
    a.sessions.set_members(vec![a.member(), b.member()]);
    b.sessions.set_members(vec![a.member(), b.member()]);
    a.sessions.connect(b.node);
    assert!(!a.wait_up(b.node));
    assert!(b.wait_up(a.node));
}
