//! The ways of moving pieces between nodes, and what each needs to be told.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Count, value};

/// One way of moving pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fabric {
    /// Reads of a peer's memory over InfiniBand or RoCE.
    Rdma,
    /// The packet fabric over a device that DPDK drives.
    Dpdk,
    /// The packet fabric over AF_XDP.
    Xdp,
    /// The packet fabric over UDP sockets of the kernel.
    Udp,
    /// TCP streams, which always work.
    Tcp,
}

impl Fabric {
    /// Its name in the configuration, in metrics and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rdma => "rdma",
            Self::Dpdk => "dpdk",
            Self::Xdp => "xdp",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What each fabric is told.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fabrics {
    /// UDP sockets.
    pub udp: Udp,
    /// AF_XDP.
    pub xdp: Xdp,
    /// DPDK.
    pub dpdk: Dpdk,
    /// RDMA.
    pub rdma: Rdma,
}

/// The packet fabric over UDP sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Udp {
    /// Where the first worker listens (UDP); port 0 for any free one.
    #[serde(deserialize_with = "value::address")]
    pub listen: SocketAddr,
    /// What other nodes are told to send to; none for the listened-on port on the address that a session comes from.
    #[serde(with = "value::optional")]
    pub advertise: Option<SocketAddr>,
    /// Threads that move packets, each with a socket of its own.
    pub workers: Count,
    /// Whether the kernel may be handed many packets as one.
    pub gso: bool,
    /// How long a receive may poll the device, in microseconds.
    pub busy_poll_us: u32,
}

impl Default for Udp {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7442),
            advertise: None,
            workers: Count::Auto,
            gso: true,
            busy_poll_us: 0,
        }
    }
}

/// The packet fabric over AF_XDP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Xdp {
    /// The network interface; empty for none. One worker has all its queues.
    pub interface: String,
    /// The UDP port that is taken from the kernel on that interface.
    pub port: u16,
}

impl Default for Xdp {
    fn default() -> Self {
        Self { interface: String::new(), port: 7510 }
    }
}

/// The packet fabric over a device that DPDK drives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dpdk {
    /// The device in the words of the fabric's port; empty for none.
    pub device: String,
    /// Velo's plugin for DPDK; empty for the usual one.
    pub plugin: PathBuf,
    /// More arguments for the EAL.
    pub eal: Vec<String>,
    /// This node's address on that network, and the network's prefix.
    #[serde(with = "value::optional")]
    pub address: Option<Subnet>,
    /// Who forwards what is not for that network.
    #[serde(with = "value::optional")]
    pub gateway: Option<IpAddr>,
    /// The first UDP port.
    pub port: u16,
    /// Queues of the device, each with a worker.
    pub queues: Count,
}

impl Default for Dpdk {
    fn default() -> Self {
        Self {
            device: String::new(),
            plugin: PathBuf::new(),
            eal: Vec::new(),
            address: None,
            gateway: None,
            port: 7520,
            queues: Count::Auto,
        }
    }
}

/// Reads of a peer's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rdma {
    /// Whether the network of the devices is declared trusted: nothing is encrypted on it, and without this the fabric is off.
    pub trusted: bool,
    /// Devices, or ports of devices; none named for all that there are.
    pub devices: Vec<String>,
    /// Velo's plugin for RDMA; empty for the usual one.
    pub plugin: PathBuf,
    /// How long a peer may keep the memory that is lent to it for one read.
    pub lease_ms: u64,
    /// The most memory that is lent at once to one peer over one port.
    pub lent_per_peer: Bytes,
}

impl Default for Rdma {
    fn default() -> Self {
        Self {
            trusted: false,
            devices: Vec::new(),
            plugin: PathBuf::new(),
            lease_ms: 10_000,
            lent_per_peer: Bytes(32 << 20),
        }
    }
}

/// An address within its network, written `192.0.2.1/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet {
    /// The address.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub prefix_bits: u8,
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(address, prefix_bits)| {
            let subnet = Self { address: address.parse().ok()?, prefix_bits: prefix_bits.parse().ok()? };
            (subnet.prefix_bits <= if subnet.address.is_ipv4() { 32 } else { 128 }).then_some(subnet)
        });
        parsed.ok_or_else(|| format!("`{text}` is not an address with a prefix, such as `192.0.2.1/24`"))
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}
