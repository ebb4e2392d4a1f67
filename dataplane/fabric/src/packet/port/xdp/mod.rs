//! AF_XDP: frames straight between a network device's queues and our memory, while the interface stays the kernel's for all else.
//!
//! An XDP program takes UDP for one address and port; everything else goes its usual way, so that the host keeps its network. The
//! program is attached by a link that the kernel removes with the process, also after `kill -9`.

mod bpf;
mod interface;
mod program;
mod queue;
mod ring;
mod socket;
#[cfg(test)]
mod tests;
mod umem;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use self::bpf::{Link, Program, SocketMap};
use self::interface::Interface;
use self::queue::{Queue, QueueSize};
use self::umem::{CHUNK_BYTES, HEADROOM_BYTES};
use super::PortCounters;
use super::ether::netlink::Netlink;
use super::ether::{FrameArrival, FrameCaps, FrameDeparture, FramePort};
use crate::packet::limits;

const ETHERNET_BYTES: usize = 14;
/// The longest frame that a driver takes in one piece with a program attached: a page without headroom and the kernel's own record.
const ONE_PIECE_MAX_BYTES: usize = 3520;
/// The longest frame that the kernel sends in pieces: 16 chunks (it has room for 17 pieces), and what an IP packet may be.
const FRAME_MAX_BYTES: usize = 16 * CHUNK_BYTES;
/// How long to wait for what a process that was killed has left behind: the kernel clears it away in the background.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_millis(20);

const _: () = assert!(ONE_PIECE_MAX_BYTES <= CHUNK_BYTES - HEADROOM_BYTES);

/// How to make an [`Xdp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XdpOptions {
    /// The interface's name.
    pub interface: String,
    /// The address and port whose datagrams are taken from it: one of its own.
    pub local: SocketAddr,
    /// The VLAN whose frames are meant; they must come with their tags (`ethtool -K … rxvlan off`).
    pub vlan: Option<u16>,
    /// Chunks of 4 KiB to receive into, for each queue; a power of two from 64 to 65536.
    pub receive_chunks: u32,
    /// Frames that may be on their way out at once; likewise.
    pub send_frames: u32,
}

impl XdpOptions {
    /// Room for a few thousand frames.
    pub fn new(interface: impl Into<String>, local: SocketAddr) -> Self {
        Self { interface: interface.into(), local, vlan: None, receive_chunks: 2048, send_frames: 512 }
    }
}

/// How an [`Xdp`] does its work, for the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XdpMode {
    /// Whether the program runs behind the driver instead of in it.
    pub generic: bool,
    /// Whether the device reads and writes our memory itself.
    pub zero_copy: bool,
    /// Whether frames are longer than one page.
    pub fragments: bool,
    /// Whether the memory lies in huge pages.
    pub huge_pages: bool,
    /// How many queues it receives by.
    pub queues: u32,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.generic { "generic" } else { "native" };
        let copies = if self.zero_copy { "zero-copy" } else { "copying" };
        let pages = if self.huge_pages { "huge pages" } else { "ordinary pages" };
        write!(f, "{place}, {copies}, {pages}, queues: {}", self.queues)
    }
}

/// Why there is no [`Xdp`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum XdpError {
    /// There is no such interface, or the kernel does not tell of it.
    #[error("network interface `{interface}`: {error}")]
    Interface {
        /// Its name.
        interface: String,
        /// What the system said.
        error: io::Error,
    },
    /// It has no hardware address.
    #[error("network interface `{interface}` is not an Ethernet interface: use the fabric `udp` on it")]
    NotEthernet {
        /// Its name.
        interface: String,
    },
    /// It is down.
    #[error("network interface `{interface}` is down: `ip link set {interface} up`")]
    Down {
        /// Its name.
        interface: String,
    },
    /// A size is no power of two, or too large.
    #[error("{receive_chunks} chunks and {send_frames} frames: both must be powers of two from 64 to 65536")]
    Size {
        /// Chunks to receive into.
        receive_chunks: u32,
        /// Frames to send from.
        send_frames: u32,
    },
    /// The process may not.
    #[error(
        "{call} is not permitted: AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF (CAP_SYS_ADMIN before Linux 5.8); \
         give them to velod, or run it as root"
    )]
    Privilege {
        /// What was refused.
        call: &'static str,
    },
    /// The memory may not be pinned.
    #[error(
        "{bytes} bytes cannot be pinned: raise `ulimit -l` (LimitMEMLOCK= in systemd), or give CAP_IPC_LOCK"
    )]
    LockedMemory {
        /// How many.
        bytes: usize,
    },
    /// There is no memory.
    #[error("no memory for frames ({bytes} bytes): {error}")]
    Memory {
        /// How much.
        bytes: usize,
        /// What the system said.
        error: io::Error,
    },
    /// Another program is there.
    #[error(
        "network interface `{interface}` already has an XDP program ({program}): only one can be there; \
         stop what put it there, or `ip link set {interface} xdp off`"
    )]
    Occupied {
        /// Its name.
        interface: String,
        /// The program's name and number, as far as they are told.
        program: String,
    },
    /// Another socket has the queue.
    #[error("queue {queue} of network interface `{interface}` already has an AF_XDP socket: stop who has it")]
    QueueInUse {
        /// Its name.
        interface: String,
        /// The queue.
        queue: u32,
    },
    /// The kernel cannot do it.
    #[error("this kernel refuses {call}: {error}; AF_XDP needs Linux 5.9 with CONFIG_XDP_SOCKETS")]
    Unsupported {
        /// What was refused.
        call: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl XdpError {
    fn of_call(call: &'static str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Privilege { call },
            _ => Self::Unsupported { call, error },
        }
    }
}

/// All queues of an interface, as one port: whatever queue the device puts a flow on, it arrives here.
pub struct Xdp {
    // In this order: first no more frames are taken, then those who took them go.
    _link: Link,
    _map: SocketMap,
    queues: Vec<Queue>,
    /// Of all sockets.
    ready: OwnedFd,
    caps: FrameCaps,
    mode: XdpMode,
    /// Where the next burst begins.
    next: usize,
    full: bool,
}

impl Xdp {
    /// Takes what is for [`XdpOptions::local`] from the interface. Tries for two seconds at most to get what a process that was killed
    /// is just leaving.
    ///
    /// # Errors
    /// [`XdpError`].
    pub fn open(options: &XdpOptions) -> Result<Self, XdpError> {
        let XdpOptions { local, vlan, receive_chunks, send_frames, .. } = *options;
        let name = || options.interface.clone();
        let sizes = 64..=65_536;
        if ![receive_chunks, send_frames].iter().all(|size| size.is_power_of_two() && sizes.contains(size)) {
            return Err(XdpError::Size { receive_chunks, send_frames });
        }
        let interface = Interface::find(&options.interface)
            .map_err(|error| XdpError::Interface { interface: name(), error })?;
        let mac = interface.mac.ok_or_else(|| XdpError::NotEthernet { interface: name() })?;
        if !interface.is_up {
            return Err(XdpError::Down { interface: name() });
        }
        let frame_max_bytes = (interface.mtu + ETHERNET_BYTES).min(FRAME_MAX_BYTES);
        let fragments = frame_max_bytes > ONE_PIECE_MAX_BYTES;
        // Only the first sends.
        let size = |queue| {
            let send_frames = if queue == 0 { send_frames } else { 1 };
            QueueSize { receive_chunks, send_frames, frame_max_bytes, fragments }
        };

        let count = interface.queues.min(limits::XDP_QUEUES);
        let mut queues = (0..count).map(|queue| Queue::new(size(queue))).collect::<Result<Vec<_>, _>>()?;
        let map = SocketMap::new(count).map_err(|error| XdpError::of_call("a map of sockets", error))?;
        let verdict = program::Verdict::ToSocket { map: map.descriptor() };
        let program = Program::load(&program::steer(local, vlan, verdict), fragments)
            .map_err(|error| XdpError::of_call("an XDP program", error))?;
        let (link, generic) = attach(&program, options, &interface)?;
        for (i, queue) in queues.iter_mut().enumerate() {
            bind(queue, options, &interface, i as u32, fragments)?;
        }
        let ready = epoll::create(epoll::CreateFlags::CLOEXEC)
            .and_then(|ready| {
                for queue in &queues {
                    epoll::add(&ready, queue, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                }
                Ok(ready)
            })
            .map_err(|error| XdpError::of_call("waiting on sockets", error.into()))?;
        for (i, queue) in queues.iter().enumerate() {
            map.set(i as u32, queue.as_fd()).map_err(|error| XdpError::of_call("a map of sockets", error))?;
        }
        let zero_copy = queues.iter().all(|queue| queue.socket().is_zero_copy().unwrap_or(false));
        let mode = XdpMode {
            generic,
            zero_copy,
            fragments,
            huge_pages: queues.iter().all(Queue::is_huge),
            queues: count,
        };
        let caps = FrameCaps {
            mac,
            frame_max_bytes,
            lossless: false,
            line_rate_bytes_per_s: interface.rate_bytes_per_s,
            wakes: true,
            checksums: false,
            interface: Some(interface.index),
        };
        Ok(Self { _link: link, _map: map, queues, ready, caps, mode, next: 0, full: false })
    }

    /// The addresses of an interface that peers can send to, those of IPv4 first.
    ///
    /// # Errors
    /// [`XdpError::Interface`].
    pub fn addresses(interface: &str) -> Result<Vec<IpAddr>, XdpError> {
        let of = || {
            let mut netlink = Netlink::open()?;
            let index = netlink.link(interface)?.index;
            netlink.addresses(index)
        };
        of().map_err(|error| XdpError::Interface { interface: interface.to_owned(), error })
    }

    /// How it does its work.
    pub fn mode(&self) -> XdpMode {
        self.mode
    }
}

impl FramePort for Xdp {
    fn name(&self) -> &'static str {
        "xdp"
    }

    fn caps(&self) -> FrameCaps {
        self.caps
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize> {
        let mut frames = 0;
        let count = self.queues.len();
        for i in 0..count {
            frames += self.queues[(self.next + i) % count].receive(each)?;
        }
        self.next = (self.next + 1) % count;
        Ok(frames)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>) -> io::Result<usize> {
        // Always by the same one, which keeps them in order (see `open`).
        let queue = &mut self.queues[0];
        let before = queue.counters.tx_full;
        let frames = queue.send(fill)?;
        self.full = queue.counters.tx_full != before;
        Ok(frames)
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.queues[0].flush()?;
        if self.full {
            // What the device has sent comes back without a sign.
            self.full = !self.queues[0].has_room();
            return Ok(false);
        }
        Ok(!self.queues.iter_mut().any(Queue::has_arrivals))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn counters(&self) -> PortCounters {
        let mut all = PortCounters::default();
        for queue in &self.queues {
            let one = queue.counters;
            all.rx_datagrams += one.rx_datagrams;
            all.rx_bytes += one.rx_bytes;
            all.rx_dropped += one.rx_dropped + queue.socket().dropped();
            all.tx_datagrams += one.tx_datagrams;
            all.tx_bytes += one.tx_bytes;
            all.tx_dropped += one.tx_dropped;
            all.tx_full += one.tx_full;
            all.calls += one.calls;
        }
        all
    }
}

/// Attaches the program in the driver, or behind it where the driver cannot. Says which.
fn attach(program: &Program, options: &XdpOptions, interface: &Interface) -> Result<(Link, bool), XdpError> {
    let began = Instant::now();
    loop {
        let native = Link::attach(program, interface.index, false);
        let busy = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
        let error = match native {
            Ok(link) => return Ok((link, false)),
            Err(error) if busy(&error) => error,
            Err(_) => match Link::attach(program, interface.index, true) {
                Ok(link) => return Ok((link, true)),
                Err(error) => error,
            },
        };
        if !busy(&error) {
            return Err(XdpError::of_call("attaching an XDP program", error));
        }
        if began.elapsed() > PATIENCE {
            let id = Interface::find(&options.interface).ok().and_then(|interface| interface.program);
            let program = match id.map(|id| (id, Program::name_of(id))) {
                Some((id, Some(name))) => format!("`{name}`, id {id}"),
                Some((id, None)) => format!("id {id}"),
                None => "one that is not shown".into(),
            };
            return Err(XdpError::Occupied { interface: options.interface.clone(), program });
        }
        thread::sleep(RETRY_EVERY);
    }
}

fn bind(
    queue: &mut Queue,
    options: &XdpOptions,
    interface: &Interface,
    number: u32,
    fragments: bool,
) -> Result<(), XdpError> {
    let began = Instant::now();
    loop {
        let Err(error) = queue.socket().bind(interface.index, number, fragments) else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::EBUSY) if began.elapsed() > PATIENCE => {
                return Err(XdpError::QueueInUse { interface: options.interface.clone(), queue: number });
            }
            Some(libc::EBUSY) => thread::sleep(RETRY_EVERY),
            Some(libc::ENETDOWN) => return Err(XdpError::Down { interface: options.interface.clone() }),
            _ => return Err(XdpError::of_call("binding an AF_XDP socket", error)),
        }
    }
}
