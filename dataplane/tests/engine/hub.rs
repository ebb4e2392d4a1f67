//! Nodes of one process that reach each other without sessions: events and messages are handed over directly, data
//! streams are plain TCP over loopback.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use velo_fabric::packet::protocol::seal::PathSecret;
use velo_object::{BlobId, EntryKind, Named, NodeId, ObjectId, ObjectKind, PACKED_FILE_BYTES, TreeBuilder};
use velo_socket::{JobId, JobState, JobStatus};
use velo_store::{Durability, Store, StoreOptions};
use velod::engine::{DataPlane, DataPlaneOptions, EngineHandle, Peers, PullRequest, RunningDataPlane};
use velod::session::{DataStream, PathKeying, PeerMessage, SessionEvent};

/// Where a node's events go.
pub type Events = Arc<dyn Fn(SessionEvent) + Send + Sync>;

#[derive(Default)]
struct State {
    nodes: HashMap<NodeId, Events>,
    sessions: HashSet<(NodeId, NodeId)>,
}

/// All nodes.
#[derive(Clone, Default)]
pub struct Hub {
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn join(&self, node: NodeId, events: Events) {
        self.state.lock().expect("no panic").nodes.insert(node, events);
    }

    /// A node dies: all its sessions go down.
    pub fn leave(&self, node: NodeId) {
        let mut state = self.state.lock().expect("no panic");
        state.nodes.remove(&node);
        let peers: Vec<_> = state.sessions.iter().filter(|(a, _)| *a == node).map(|(_, b)| *b).collect();
        state.sessions.retain(|(a, b)| *a != node && *b != node);
        let events: Vec<_> = peers.iter().filter_map(|peer| state.nodes.get(peer).cloned()).collect();
        drop(state);
        for event in events {
            event(SessionEvent::Down { node, reason: "it is gone".into() });
        }
    }

    fn events(&self, node: &NodeId) -> Option<Events> {
        self.state.lock().expect("no panic").nodes.get(node).cloned()
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7440))
}

/// One node's way to the others.
pub struct HubPeers {
    pub hub: Hub,
    pub node: NodeId,
}

impl Peers for HubPeers {
    fn connect(&self, node: NodeId) {
        let (hub, me) = (self.hub.clone(), self.node);
        std::thread::spawn(move || {
            let Some(own) = hub.events(&me) else { return };
            let Some(other) = hub.events(&node) else {
                return own(SessionEvent::Down { node, reason: "there is no such node".into() });
            };
            // Nobody sends before both know that the session is up.
            let mut state = hub.state.lock().expect("no panic");
            if state.sessions.insert((node, me)) | state.sessions.insert((me, node)) {
                let keying = PathKeying { secret: PathSecret([7; 32]), trusted: false };
                let up = |node, incoming| SessionEvent::Up {
                    node,
                    address: address(),
                    incoming,
                    keying: keying.clone(),
                };
                own(up(node, false));
                other(up(me, true));
            }
        });
    }

    fn send(&self, node: NodeId, message: PeerMessage) {
        let state = self.hub.state.lock().expect("no panic");
        if !state.sessions.contains(&(self.node, node)) {
            return;
        }
        let Some(events) = state.nodes.get(&node).cloned() else { return };
        drop(state);
        events(SessionEvent::Message { node: self.node, message });
    }

    fn open_streams(&self, node: NodeId, count: usize) {
        let (hub, me) = (self.hub.clone(), self.node);
        std::thread::spawn(move || {
            let (Some(own), Some(other)) = (hub.events(&me), hub.events(&node)) else { return };
            for _ in 0..count {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let ours = TcpStream::connect(listener.local_addr().expect("bound")).expect("loopback");
                let (theirs, _) = listener.accept().expect("connected");
                other(SessionEvent::Stream { node: me, stream: DataStream { tcp: theirs, tls: None } });
                own(SessionEvent::Stream { node, stream: DataStream { tcp: ours, tls: None } });
            }
        });
    }
}

/// What the store of a node takes.
pub const CAPACITY_BYTES: u64 = 2 << 30;

/// A whole node but for its sessions.
pub struct Node {
    pub id: NodeId,
    pub store: Store,
    pub hub: Hub,
    running: Option<RunningDataPlane>,
    dir: Arc<TempDir>,
}

pub fn node_id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

impl Node {
    pub fn start(hub: &Hub, number: u8) -> Self {
        Self::start_with(hub, number, |_| {})
    }

    /// One with other options.
    pub fn start_with(hub: &Hub, number: u8, change: impl FnOnce(&mut DataPlaneOptions)) -> Self {
        Self::start_in(hub, number, Arc::new(TempDir::new().expect("a folder")), change)
    }

    fn start_in(
        hub: &Hub,
        number: u8,
        dir: Arc<TempDir>,
        change: impl FnOnce(&mut DataPlaneOptions),
    ) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let id = node_id(number);
        let options = StoreOptions {
            durability: Durability::Process,
            capacity_bytes: Some(CAPACITY_BYTES),
            ..StoreOptions::new(dir.path())
        };
        let (store, _) = Store::open(options).expect("a store");
        let mut options = DataPlaneOptions::new(id);
        options.memory_bytes = 64 << 20;
        options.stall_timeout = Duration::from_millis(500);
        options.fabrics.settings.udp.listen = "127.0.0.1:0".parse().expect("an address");
        change(&mut options);
        let plane = DataPlane::new(options, store.clone()).expect("descriptors");
        let handle = plane.handle();
        hub.join(id, Arc::new(move |event| handle.session_event(event)));
        let running = plane.start(Box::new(HubPeers { hub: hub.clone(), node: id })).expect("threads");
        Self { id, store, hub: hub.clone(), running: Some(running), dir }
    }

    /// Stops and starts again on the same folder.
    pub fn restart(mut self) -> Self {
        self.hub.leave(self.id);
        let (hub, number, dir) = (self.hub.clone(), self.id.as_bytes()[0], self.dir.clone());
        self.running = None;
        self.store.close().expect("closed");
        drop(self);
        Self::start_in(&hub, number, dir, |_| {})
    }

    pub fn handle(&self) -> &EngineHandle {
        self.running.as_ref().expect("it runs").handle()
    }

    /// Puts one blob here.
    pub fn put(&self, content: &[u8]) -> BlobId {
        let mut put = self.store.begin_put().expect("begun");
        let file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut &file, content).expect("written");
        let blob = put.file(&file).expect("ingested").blob;
        put.finish_packs().expect("packs");
        put.commit(ObjectId { kind: ObjectKind::Blob, blob }, None).expect("committed");
        blob
    }

    /// Puts a directory here; the paths must be in the order of trees.
    pub fn put_tree(&self, files: &[(String, Vec<u8>)]) -> ObjectId {
        let mut put = self.store.begin_put().expect("begun");
        let mut builder = TreeBuilder::new();
        for (path, content) in files {
            let named = if content.len() as u64 <= PACKED_FILE_BYTES {
                put.small(content).expect("ingested")
            } else {
                let file = tempfile::tempfile().expect("a file");
                std::io::Write::write_all(&mut &file, content).expect("written");
                put.file(&file).expect("ingested")
            };
            let named = Named { blob: named.blob, size_bytes: named.size_bytes };
            builder.content(path.as_bytes(), EntryKind::File, named, 0).expect("a good path");
        }
        let packs = put.finish_packs().expect("packs");
        let packs: Vec<_> =
            packs.iter().map(|pack| Named { blob: pack.blob, size_bytes: pack.size_bytes }).collect();
        let table = builder.finish(&packs).expect("a tree");
        let root = ObjectId { kind: ObjectKind::Tree, blob: table.id() };
        put.commit(root, Some(table.as_bytes())).expect("committed");
        root
    }

    pub fn pull(&self, roots: &[ObjectId], sources: &[NodeId]) -> JobId {
        let request =
            PullRequest { roots: roots.to_vec(), sources: sources.to_vec(), ..PullRequest::default() };
        self.handle().pull(request).expect("a job")
    }

    pub fn pull_blob(&self, blob: BlobId, sources: &[NodeId]) -> JobId {
        self.pull(&[ObjectId { kind: ObjectKind::Blob, blob }], sources)
    }

    /// Waits until the job has come to an end or to this state.
    pub fn wait_for(&self, job: JobId, state: impl Fn(&JobStatus) -> bool) -> JobStatus {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = 0;
        loop {
            let (version, status) =
                self.handle().wait_change(job, seen, Duration::from_millis(200)).expect("a known job");
            if state(&status) {
                return status;
            }
            assert!(
                matches!(status.state, JobState::Running | JobState::Waiting) && Instant::now() < deadline,
                "{status:?} {:#?}",
                self.handle().report()
            );
            seen = version;
        }
    }

    pub fn complete(&self, job: JobId) -> JobStatus {
        self.wait_for(job, |status| status.state == JobState::Complete)
    }

    /// The content of a blob that is here.
    pub fn read(&self, blob: &BlobId) -> Vec<u8> {
        let open = self.store.open_blob(blob, false).expect("it is here");
        assert!(open.complete);
        let mut content = vec![0; open.size_bytes as usize];
        std::os::unix::fs::FileExt::read_exact_at(&open.file, &mut content, open.offset_bytes).expect("read");
        assert_eq!(BlobId::of(&content), *blob);
        content
    }

    pub fn counter(&self, name: &str) -> u64 {
        let report = self.handle().report();
        report.counters.iter().find(|(found, _)| found == name).map(|(_, value)| *value).expect("a counter")
    }

    /// Waits until a gauge has this value.
    pub fn wait_for_gauge(&self, name: &str, value: u64) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let report = self.handle().report();
            let found = report.gauges.iter().find(|(found, _)| found == name).expect("a gauge").1;
            if found == value {
                return;
            }
            assert!(Instant::now() < end, "{name} is {found} and not {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Content bytes that it sent to all.
    pub fn sent(&self) -> u64 {
        self.handle().report().peers.iter().map(|(_, traffic)| traffic.sent_bytes).sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.hub.leave(self.id);
    }
}

/// Bytes that do not repeat, different for each seed.
pub fn content(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content
}
