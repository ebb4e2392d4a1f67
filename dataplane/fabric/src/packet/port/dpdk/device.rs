//! Devices by name: what an operator writes, and what EAL is told.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::DpdkError;

/// Which end of a memif a process is. The server makes the socket, and must be there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Makes the socket.
    Server,
    /// Connects to it; the memory is the client's.
    Client,
}

/// A device for DPDK. Written as in the examples at each kind, and read by [`FromStr`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// A network card that is bound to vfio-pci: `0000:17:00.0`.
    Pci {
        /// Domain, bus, device, function.
        address: String,
    },
    /// Shared memory between two processes: `memif:server:/run/velo/memif` or `memif:client:/run/velo/memif`, and `memif:zero-copy:…`
    /// for a client whose mempool the server reads and writes. For processes of one host that end together: where one end goes while
    /// the other polls, DPDK 22.11 unmaps what is polled from another thread, and the process that stays may crash.
    Memif {
        /// Which end this is.
        role: Role,
        /// The socket.
        socket: PathBuf,
        /// Whether the client's mbufs lie in the shared memory. A client's only.
        zero_copy: bool,
    },
    /// A kernel interface by packet sockets: `af_packet:eth0`.
    AfPacket {
        /// The interface.
        interface: String,
    },
    /// A kernel interface by AF_XDP: `af_xdp:eth0`.
    AfXdp {
        /// The interface.
        interface: String,
    },
    /// The driver's end of a virtio device whose other end is a vhost socket: `virtio_user:/run/vhost.sock`.
    VirtioUser {
        /// The socket.
        socket: PathBuf,
    },
    /// The device's end: `vhost:/run/vhost.sock`. Makes the socket.
    Vhost {
        /// The socket.
        socket: PathBuf,
    },
    /// An interface that the kernel gets: `tap:velo0`.
    Tap {
        /// Its name.
        interface: String,
    },
    /// Any other virtual device in DPDK's own words: `net_ring0` or `net_memif0,role=client,…`.
    Virtual {
        /// Its name and arguments.
        words: String,
    },
}

impl Device {
    /// Whether its ring pushes back, so that nothing is lost.
    pub fn lossless(&self) -> bool {
        match self {
            Self::Memif { .. } | Self::VirtioUser { .. } | Self::Vhost { .. } => true,
            Self::Virtual { words } => {
                ["net_memif", "net_virtio_user", "net_vhost"].iter().any(|driver| words.starts_with(driver))
            }
            _ => false,
        }
    }

    /// Whether it needs every mempool in one file, which its peer maps.
    pub(super) fn single_file(&self) -> bool {
        match self {
            Self::VirtioUser { .. } | Self::Memif { zero_copy: true, .. } => true,
            Self::Virtual { words } => {
                words.starts_with("net_virtio_user") || words.contains("zero-copy=yes")
            }
            _ => false,
        }
    }

    /// Whether it does not work without huge pages: it moves nothing, and says nothing.
    pub(super) fn needs_huge_pages(&self) -> bool {
        match self {
            Self::Pci { .. } | Self::VirtioUser { .. } | Self::AfXdp { .. } => true,
            Self::Virtual { words } => {
                ["net_virtio_user", "net_af_xdp"].iter().any(|driver| words.starts_with(driver))
            }
            _ => false,
        }
    }

    /// The socket that this end makes.
    pub(super) fn makes_socket(&self) -> Option<&PathBuf> {
        match self {
            Self::Memif { role: Role::Server, socket, .. } | Self::Vhost { socket } => Some(socket),
            _ => None,
        }
    }

    /// The kernel interface that is there before DPDK starts.
    pub(super) fn interface(&self) -> Option<&str> {
        match self {
            Self::AfPacket { interface } | Self::AfXdp { interface } => Some(interface),
            _ => None,
        }
    }

    /// The name under which DPDK knows it, where it is number `index` of the configuration.
    pub(super) fn dpdk_name(&self, index: usize) -> String {
        match self {
            Self::Pci { address } => address.clone(),
            Self::Memif { .. } => format!("net_memif{index}"),
            Self::AfPacket { .. } => format!("net_af_packet{index}"),
            Self::AfXdp { .. } => format!("net_af_xdp{index}"),
            Self::VirtioUser { .. } => format!("net_virtio_user{index}"),
            Self::Vhost { .. } => format!("net_vhost{index}"),
            Self::Tap { .. } => format!("net_tap{index}"),
            Self::Virtual { words } => words.split(',').next().unwrap_or_default().into(),
        }
    }

    /// The room that an mbuf must have.
    pub(super) fn room_bytes(&self, sizes: &Sizes) -> u32 {
        match self {
            // A slot of the kernel's ring, with its header; what fits there must fit an mbuf.
            Self::AfPacket { .. } => (sizes.frame_max_bytes + 128).next_power_of_two().clamp(2_048, 32_768),
            Self::Memif { .. } => sizes.frame_max_bytes,
            // What drivers take for granted.
            _ => sizes.frame_max_bytes.max(2_048),
        }
    }

    /// Its arguments to EAL.
    pub(super) fn arguments(&self, index: usize, sizes: &Sizes) -> [String; 2] {
        let name = self.dpdk_name(index);
        let queues = sizes.queues;
        let kind = match self {
            Self::Pci { address } => return ["-a".into(), address.clone()],
            Self::Virtual { words } => return ["--vdev".into(), words.clone()],
            Self::Memif { role, socket, zero_copy } => {
                let role = if *role == Role::Server { "server" } else { "client" };
                let zero_copy = if *zero_copy { ",zero-copy=yes" } else { "" };
                format!(
                    "role={role},socket={},socket-abstract=no,bsize={},rsize={}{zero_copy}",
                    socket.display(),
                    memif_slot_bytes(sizes.frame_max_bytes),
                    sizes.descriptors.ilog2(),
                )
            }
            Self::AfPacket { interface } => {
                // A block holds whole frames, and is whole pages.
                let (frame, count) = (self.room_bytes(sizes), sizes.descriptors);
                let block = frame.max(4_096);
                format!(
                    "iface={interface},qpairs={queues},qdisc_bypass=1,blocksz={block},framesz={frame},framecnt={count}"
                )
            }
            Self::AfXdp { interface } => format!("iface={interface},queue_count={queues},busy_budget=0"),
            Self::VirtioUser { socket } => {
                format!("path={},queues={queues},queue_size={}", socket.display(), sizes.descriptors)
            }
            Self::Vhost { socket } => format!("iface={},queues={queues}", socket.display()),
            Self::Tap { interface } => format!("iface={interface}"),
        };
        ["--vdev".into(), format!("{name},{kind}")]
    }
}

/// What devices are sized by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) queues: u32,
    pub(super) frame_max_bytes: u32,
    /// A power of two.
    pub(super) descriptors: u32,
}

/// Bytes of one slot of a memif's ring: an odd number of cache lines, so that the first lines of all slots do not fall into one set.
pub(super) fn memif_slot_bytes(frame_max_bytes: u32) -> u32 {
    (frame_max_bytes.div_ceil(64) | 1) * 64
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci { address } => f.write_str(address),
            Self::Memif { role: Role::Server, socket, .. } => write!(f, "memif:server:{}", socket.display()),
            Self::Memif { socket, zero_copy: true, .. } => write!(f, "memif:zero-copy:{}", socket.display()),
            Self::Memif { socket, .. } => write!(f, "memif:client:{}", socket.display()),
            Self::AfPacket { interface } => write!(f, "af_packet:{interface}"),
            Self::AfXdp { interface } => write!(f, "af_xdp:{interface}"),
            Self::VirtioUser { socket } => write!(f, "virtio_user:{}", socket.display()),
            Self::Vhost { socket } => write!(f, "vhost:{}", socket.display()),
            Self::Tap { interface } => write!(f, "tap:{interface}"),
            Self::Virtual { words } => f.write_str(words),
        }
    }
}

impl FromStr for Device {
    type Err = DpdkError;

    fn from_str(text: &str) -> Result<Self, DpdkError> {
        let wrong = || {
            DpdkError::Option {
            option: "a device",
            value: text.into(),
            range: "a PCI address such as 0000:17:00.0, memif:server:SOCKET, memif:client:SOCKET, memif:zero-copy:SOCKET, \
                    af_packet:INTERFACE, af_xdp:INTERFACE, virtio_user:SOCKET, vhost:SOCKET, tap:INTERFACE, or DPDK's own words \
                    for a virtual device, such as net_ring0"
                .into(),
        }
        };
        if text.starts_with("net_") && !text.contains([' ', '\0', '\n']) {
            return Ok(Self::Virtual { words: text.into() });
        }
        // EAL takes commas for its own.
        if text.is_empty() || text.contains([',', ' ', '\0', '\n']) {
            return Err(wrong());
        }
        if is_pci_address(text) {
            return Ok(Self::Pci { address: text.into() });
        }
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(wrong)?;
        Ok(match kind {
            "memif" => {
                let (role, socket) =
                    rest.split_once(':').filter(|(_, path)| !path.is_empty()).ok_or_else(wrong)?;
                let (role, zero_copy) = match role {
                    "server" => (Role::Server, false),
                    "client" => (Role::Client, false),
                    "zero-copy" => (Role::Client, true),
                    _ => return Err(wrong()),
                };
                Self::Memif { role, socket: socket.into(), zero_copy }
            }
            "af_packet" => Self::AfPacket { interface: rest.into() },
            "af_xdp" => Self::AfXdp { interface: rest.into() },
            "virtio_user" => Self::VirtioUser { socket: rest.into() },
            "vhost" => Self::Vhost { socket: rest.into() },
            "tap" => Self::Tap { interface: rest.into() },
            _ => return Err(wrong()),
        })
    }
}

/// `dddd:bb:dd.f`, in hexadecimal digits.
fn is_pci_address(text: &str) -> bool {
    let shape = "xxxx:xx:xx.x";
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(got, want)| match want {
            b'x' => got.is_ascii_hexdigit(),
            _ => got == want,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "0000:17:00.0",
            "memif:server:/run/m",
            "memif:client:/run/m",
            "memif:zero-copy:/run/m",
            "af_packet:veth0",
            "af_xdp:veth0",
            "virtio_user:/run/v",
            "vhost:/run/v",
            "tap:velo0",
            "net_memif0,role=client,socket=/run/m",
        ] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_has_no_sense_is_refused() {
        for text in
            ["", "eth0", "memif:/run/m", "memif:server:", "tap:", "tap:a,b", "0000:17:00", "memif:peer:/m"]
        {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("af_packet:INTERFACE"), "{error}");
        }
    }

    #[test]
    fn slots_do_not_share_a_cache_set() {
        for frame in [60, 1514, 9014, 64_000, 65_407] {
            let slot = memif_slot_bytes(frame);
            assert!(slot >= frame && slot % 128 == 64, "{slot}");
        }
    }
}
