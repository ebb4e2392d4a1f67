//! Control planes that meet over a network in memory: what one node alone cannot show.

mod cluster;
mod content;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use velo_config::Paths;
use velo_object::NodeId;
use velo_socket::join::{JOIN_VERSION, JoinRequest, Joined};

use crate::authority;
use crate::identity::Identity;
use crate::node::{Control, Setup};
use crate::origin::Origin;
use crate::velod::Velod;
use crate::velod::fake::{Fake, Net};

/// A node of a test.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) velod: Fake,
    pub(crate) control: Arc<Control>,
}

impl Node {
    pub(crate) fn id(&self) -> NodeId {
        self.velod.node
    }

    /// Its control plane begins anew, with the same disk and velod.
    pub(crate) async fn restart(&mut self) {
        let setup = Setup { seeds: Vec::new(), ..self.control.setup.clone() };
        self.control = begin(setup, &self.velod, None).await;
    }
}

fn setup(dir: &TempDir, name: &str, port: u16) -> Setup {
    Setup {
        data_dir: dir.path().to_owned(),
        name: name.to_owned(),
        zone: "z".to_owned(),
        addresses: vec![([127, 0, 0, 1], port).into()],
        gossip: ([127, 0, 0, 1], port).into(),
        reach: None,
        fabrics: vec!["tcp".to_owned()],
        seeds: Vec::new(),
    }
}

async fn begin(setup: Setup, velod: &Fake, origin: Option<Origin>) -> Arc<Control> {
    let control = Control::open(setup, Velod::new(velod.clone()), origin).await.expect("started");
    control.publish(false, true).await;
    tokio::spawn(Arc::clone(&control).serve_loop());
    // Until it serves.
    tokio::time::sleep(Duration::from_millis(20)).await;
    control
}

/// Asks the first node to let this directory in, as a newcomer does.
pub(crate) async fn join(first: &Arc<Control>, dir: &TempDir, secret: [u8; 16]) -> Result<Joined, String> {
    let files = Paths::new(dir.path().to_owned());
    std::fs::create_dir_all(files.identity_dir()).expect("a folder");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key").serialize_pem();
    std::fs::write(files.node_key(), &key).expect("written");
    let request = authority::request(&key).expect("a request");
    let request = JoinRequest { version: JOIN_VERSION, secret, request };
    let payload = postcard::to_stdvec(&request).expect("plain data");
    let reply = first.answer_stranger(([127, 0, 0, 1], 9).into(), &payload).await?;
    let joined: Joined = postcard::from_bytes(&reply).expect("an answer");
    std::fs::write(files.node_certificate(), authority::pem(&joined.certificate)).expect("written");
    std::fs::write(files.ca_certificate(), authority::pem(&joined.authority)).expect("written");
    Ok(joined)
}

/// A cluster of `count` nodes that have met.
pub(crate) async fn cluster(count: u16, origin: Option<&Path>) -> (Vec<Node>, Arc<Net>) {
    cluster_where(count, |_| origin).await
}

/// The same, where not every node knows the origin.
pub(crate) async fn cluster_where<'a>(
    count: u16,
    origin: impl Fn(u16) -> Option<&'a Path>,
) -> (Vec<Node>, Arc<Net>) {
    let net = Arc::new(Net::default());
    let open = |node| {
        origin(node).map(|path| Origin::open(&format!("file://{}", path.display())).expect("a folder"))
    };
    let dir = tempfile::tempdir().expect("a directory");
    let node = authority::init(dir.path(), "test").expect("a cluster").node;
    let velod = Fake::new(node, &net);
    let control = begin(setup(&dir, "n0", 7000), &velod, open(0)).await;
    let mut nodes = vec![Node { dir, velod, control }];
    for n in 1..count {
        let dir = tempfile::tempdir().expect("a directory");
        let token = nodes[0].control.make_token(1, Duration::from_secs(60)).expect("a token");
        let joined = join(&nodes[0].control, &dir, token.secret).await.expect("let in");
        let velod = Fake::new(Identity::load(dir.path()).expect("an identity").node, &net);
        let setup = Setup { seeds: joined.members, ..setup(&dir, &format!("n{n}"), 7000 + n) };
        let control = begin(setup, &velod, open(n)).await;
        nodes.push(Node { dir, velod, control });
    }
    for _ in 0..2 {
        for node in &nodes[1..] {
            node.control.sync_with(nodes[0].id()).await.expect("synced");
        }
    }
    (nodes, net)
}

/// Waits until something holds, for 5 s at most.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 5 s");
}
