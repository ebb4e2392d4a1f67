//! The typed configuration of Velo: one structure, its defaults and its limits.
//!
//! Values come from the defaults, a TOML file, the environment (`VELO_SECTION_KEY`) and flags; later ones win.
//! An unknown key is an error that says where it stands and names the nearest known one. The commented
//! default file is `velo.toml` beside this crate's manifest, held equal to the types by a test.
#![forbid(unsafe_code)]

mod error;
mod fabric;
mod limits;
mod load;
mod nearest;
mod paths;
mod value;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use error::{ConfigError, Place};
pub use fabric::{Dpdk, Fabric, Fabrics, Rdma, Subnet, Udp, Xdp};
pub use load::default_file;
pub use paths::Paths;
pub use value::{Bytes, Count, Durability, LogFormat, Pin, Poll, Rate};

/// The commented default file.
pub const DEFAULT_FILE: &str = include_str!("../velo.toml");

/// All that can be configured of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node.
    pub node: Node,
    /// Traffic between nodes.
    pub net: Net,
    /// The ways of moving pieces.
    pub fabric: Fabrics,
    /// Membership.
    pub gossip: Gossip,
    /// The local HTTP interface.
    pub http: Http,
    /// The L1 store.
    pub store: Store,
    /// Threads and memory of velod.
    pub dataplane: Dataplane,
    /// Where content comes from that no member has.
    pub origin: Origin,
    /// What the daemons say.
    pub log: Log,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// Where everything of this node lies. Empty in a file means the default place; never empty after [`Config::load`].
    pub data_dir: PathBuf,
    /// What people call it; empty for the host name (see [`Config::node_name`]).
    pub name: String,
    /// The label of its datacentre.
    pub zone: String,
}

impl Default for Node {
    fn default() -> Self {
        Self { data_dir: PathBuf::new(), name: String::new(), zone: "default".into() }
    }
}

/// Traffic between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Net {
    /// Where velod listens (TCP); port 0 for any free one.
    #[serde(deserialize_with = "value::addresses")]
    pub listen: Vec<SocketAddr>,
    /// What other nodes are told to dial; empty for the addresses of this host.
    #[serde(deserialize_with = "value::addresses")]
    pub advertise: Vec<SocketAddr>,
    /// Whether content may travel in the clear.
    pub trusted: bool,
    /// How content is moved, best first. TCP is the last resort also where it is not named; what comes after it is used only with
    /// peers that prefer it.
    pub fabrics: Vec<Fabric>,
    /// The rate at which this node receives at most over the packet fabrics; 0 for that of the device.
    pub line_rate: Rate,
    /// Data streams to one peer.
    pub streams_per_peer: u16,
    /// A peer that sends nothing for this long while reads are outstanding is dropped.
    pub stall_timeout_ms: u64,
    /// The most sessions at once.
    pub max_sessions: u32,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            listen: vec![any(7440)],
            advertise: Vec::new(),
            trusted: false,
            fabrics: vec![Fabric::Rdma, Fabric::Dpdk, Fabric::Xdp, Fabric::Udp, Fabric::Tcp],
            line_rate: Rate(0),
            streams_per_peer: 4,
            stall_timeout_ms: 2000,
            max_sessions: 4096,
        }
    }
}

/// Membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gossip {
    /// Where velo-control listens (UDP); port 0 for any free one.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
    /// What other nodes are told to send to; none for the listened-on port on this host's addresses.
    #[serde(with = "value::optional")]
    pub advertise: Option<SocketAddr>,
}

impl Default for Gossip {
    fn default() -> Self {
        Self { listen: any(7440), advertise: None }
    }
}

/// The local HTTP interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// Where velo-control listens; port 0 for any free one.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7441) }
    }
}

/// The L1 store.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// The most it may take; 0 for what the disk has (see [`Config::capacity_bytes`]).
    pub capacity: Bytes,
    /// What an acknowledged write survives.
    pub durability: Durability,
}

/// Threads and memory of velod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dataplane {
    /// Threads that move pieces.
    pub workers: Count,
    /// What a worker does when there is nothing to do.
    pub poll: Poll,
    /// Whether workers are pinned to cores.
    pub pin: Pin,
    /// The bound on velod's buffers.
    pub memory: Bytes,
    /// Threads that hash and write.
    pub verify_threads: Count,
}

impl Default for Dataplane {
    fn default() -> Self {
        Self {
            workers: Count::Auto,
            poll: Poll::default(),
            pin: Pin::default(),
            memory: Bytes(512 << 20),
            verify_threads: Count::Auto,
        }
    }
}

/// Where content comes from that no member has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Origin {
    /// `file:///…`, or empty for none.
    pub url: String,
}

/// What the daemons say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,velod=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::default() }
    }
}

impl Config {
    /// The files of this node.
    pub fn paths(&self) -> Paths {
        Paths::new(self.node.data_dir.clone())
    }

    /// What people call this node: the configured name, else the host's.
    pub fn node_name(&self) -> String {
        if !self.node.name.is_empty() {
            return self.node.name.clone();
        }
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }

    /// The configured capacity of the store in bytes, or none for what the disk has.
    pub fn capacity_bytes(&self) -> Option<u64> {
        (self.store.capacity.0 != 0).then_some(self.store.capacity.0)
    }

    /// The fabrics that are used, best first: those of `net.fabrics`, and TCP.
    pub fn fabrics(&self) -> Vec<Fabric> {
        let mut fabrics = self.net.fabrics.clone();
        if !fabrics.contains(&Fabric::Tcp) {
            fabrics.push(Fabric::Tcp);
        }
        fabrics
    }

    /// Those of them for which there is what they need: a device, for the ones that name theirs.
    pub fn fabrics_with_device(&self) -> impl Iterator<Item = Fabric> {
        let with_device = |fabric: &Fabric| match fabric {
            Fabric::Dpdk => !self.fabric.dpdk.device.is_empty(),
            Fabric::Xdp => !self.fabric.xdp.interface.is_empty(),
            Fabric::Rdma | Fabric::Udp | Fabric::Tcp => true,
        };
        self.fabrics().into_iter().filter(with_device)
    }

    /// The origin's URL, if there is one.
    pub fn origin_url(&self) -> Option<&str> {
        (!self.origin.url.is_empty()).then_some(self.origin.url.as_str())
    }
}

const fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}
