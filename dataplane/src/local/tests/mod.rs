//! The local socket of a whole velod (but its signals and its main), asked by a real client.

mod cluster;
mod content;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::{Client, ErrorCode, Member};
use velo_store::{Durability, Store, StoreOptions};

use super::LocalSocket;
use crate::engine::{DataPlane, DataPlaneOptions, RunningDataPlane};
use crate::session::tests::authority::{self, Authority};
use crate::session::{SessionOptions, Sessions};

/// A velod in this process.
pub(super) struct Velod {
    pub(super) node: NodeId,
    pub(super) sessions: Sessions,
    pub(super) store: Store,
    local: Option<LocalSocket>,
    plane: Option<RunningDataPlane>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Velod {
    pub(super) fn new(authority: &Authority) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = Paths::new(dir.path().to_owned());
        let node = authority.write(dir.path(), &authority::key(), 3600);
        let options = StoreOptions {
            durability: Durability::Process,
            threads: 1,
            ..StoreOptions::new(paths.store_dir())
        };
        let (store, _) = Store::open(options).expect("a store");
        let mut options = DataPlaneOptions::new(node);
        options.workers = Some(1);
        options.verifiers = Some(1);
        options.memory_bytes = 64 << 20;
        let plane = DataPlane::new(options, store.clone()).expect("a data plane");
        let events = plane.handle();
        let options = SessionOptions {
            paths: paths.clone(),
            listen: vec!["127.0.0.1:0".parse().expect("an address")],
            advertise: Vec::new(),
            trusted: false,
            max_sessions: 16,
            zone: "test".to_owned(),
        };
        let sessions = Sessions::start(options, move |event| events.session_event(event)).expect("sessions");
        let plane = plane.start(Box::new(sessions.clone())).expect("threads");
        std::fs::create_dir(paths.run_dir()).expect("a folder");
        let socket = paths.socket();
        let local = LocalSocket::start(&socket, store.clone(), sessions.clone(), plane.handle().clone());
        let local = Some(local.expect("a socket"));
        Self { node, sessions, store, local, plane: Some(plane), socket, _dir: dir }
    }

    pub(super) fn client(&self) -> Client {
        Client::connect_as(&self.socket, "test").expect("a connection")
    }

    pub(super) fn member(&self) -> Member {
        Member {
            node: self.node,
            name: "test".to_owned(),
            addresses: self.sessions.listen_addresses(),
            zone: "test".to_owned(),
        }
    }
}

impl Drop for Velod {
    fn drop(&mut self) {
        drop(self.local.take());
        drop(self.plane.take());
        self.sessions.stop();
        let _ = self.store.close();
    }
}

pub(super) fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(content).expect("written");
    file
}

/// Bytes that do not repeat soon.
pub(super) fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

pub(super) fn code<T: std::fmt::Debug>(result: Result<T, velo_socket::ClientError>) -> ErrorCode {
    let error = result.expect_err("an error");
    error.code().unwrap_or_else(|| panic!("velod's own words, not {error}"))
}

pub(super) const SOON: Duration = Duration::from_secs(30);
