//! The C table between velod and the plugin `velo-fabric-dpdk`: the only thing that crosses the boundary between them. Both sides are
//! built from this file, so that a plugin of another build is recognised by [`ABI`] and [`Table::size`] alone.

use std::ffi::{c_char, c_int, c_void};

/// The name of the plugin's one exported symbol, a `static` [`Table`]. Follows [`ABI`].
pub const SYMBOL: &str = "velo_dpdk_v1";
/// The version of everything in this file. Any change of it is a new version.
pub const ABI: u32 = 1;
/// Frames in one call, at most.
pub const BURST: usize = 64;

/// [`Frame::flags`] of what has arrived: the device found IP's and UDP's checksums right.
pub const ARRIVED_GOOD: u32 = 1;
/// [`Frame::flags`] of what has arrived: the device found a checksum wrong.
pub const ARRIVED_BAD: u32 = 2;
/// [`Frame::flags`] of what departs: fill in UDP's checksum. The lengths of the headers of link and network are in bits 8 and 16.
pub const FILL_CHECKSUM: u32 = 1;
/// [`Frame::flags`] of what departs: with [`FILL_CHECKSUM`]; it is IPv4, whose own checksum is to be filled in, too.
pub const FILL_IPV4: u32 = 2;
/// Where [`Frame::flags`] has the length of Ethernet's header: 8 bits.
pub const LINK_BYTES_SHIFT: u32 = 8;
/// Where [`Frame::flags`] has the length of IP's header: 16 bits.
pub const NETWORK_BYTES_SHIFT: u32 = 16;

/// [`PortAnswer::offloads`]: checksums of what departs are filled in.
pub const OFFLOAD_FILLS: u32 = 1;
/// [`PortAnswer::offloads`]: checksums of what arrives are looked at.
pub const OFFLOAD_CHECKS: u32 = 2;

/// [`PortAnswer::steering`]: one queue, or the device itself pairs its queues with the peer's.
pub const STEERING_NONE: u32 = 0;
/// [`PortAnswer::steering`]: queue k gets UDP's port `udp_port_first` + k by a flow rule.
pub const STEERING_FLOW: u32 = 1;
/// [`PortAnswer::steering`]: queues get flows by a hash of addresses and ports (RSS).
pub const STEERING_HASH: u32 = 2;

/// One frame in one mbuf.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Its first byte.
    pub data: *mut u8,
    /// Its length; of a frame that was lent, the room.
    pub len: u32,
    /// `ARRIVED_…` or `FILL_…`.
    pub flags: u32,
    /// The mbuf.
    pub mbuf: *mut c_void,
}

impl Frame {
    /// No frame.
    pub const NONE: Self = Self { data: std::ptr::null_mut(), len: 0, flags: 0, mbuf: std::ptr::null_mut() };
}

/// A configured and started device. Opaque.
#[repr(C)]
pub struct PortHandle {
    _opaque: [u8; 0],
}

/// One of its queues, in both directions. Opaque; lives as long as the port.
#[repr(C)]
pub struct QueueHandle {
    _opaque: [u8; 0],
}

/// How a device is to be opened.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PortRequest {
    /// Queues in each direction.
    pub queues: u32,
    /// Room of an mbuf.
    pub room_bytes: u32,
    /// What the device's MTU is set to, or the nearest that it has; 0 leaves it.
    pub mtu: u32,
    /// Descriptors of each queue and direction.
    pub descriptors: u32,
    /// Mbufs of each queue.
    pub mbufs: u32,
    /// Port of UDP that queue 0 is to get by a flow rule, queue 1 the next…; 0 for none.
    pub udp_port_first: u32,
    /// Whether checksums may be left to the device.
    pub offload: u32,
}

/// What was got.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PortAnswer {
    /// 0, or DPDK's negative error number.
    pub error: i32,
    /// What it came from: an index into [`STAGES`].
    pub stage: u32,
    /// The hardware address.
    pub mac: [u8; 6],
    /// The MTU now.
    pub mtu: u16,
    /// The largest frame by the device's own word.
    pub frame_max_bytes: u32,
    /// `OFFLOAD_…`.
    pub offloads: u32,
    /// `STEERING_…`.
    pub steering: u32,
    /// Descriptors of a receiving queue.
    pub rx_descriptors: u32,
    /// Descriptors of a sending queue.
    pub tx_descriptors: u32,
    /// NUMA node of the device; −1 where it has none.
    pub numa_node: i32,
}

/// The steps of opening a device, by [`PortAnswer::stage`].
pub const STAGES: [&str; 9] = [
    "finding the device",
    "asking what it can do",
    "configuring its queues",
    "making its mempool",
    "setting up a receiving queue",
    "setting up a sending queue",
    "starting it",
    "reading its hardware address",
    "the number of queues",
];

/// A device's link.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkAnswer {
    /// Whether it is up.
    pub up: u32,
    /// Megabits per second; 0 unknown.
    pub megabits_per_s: u32,
}

/// A device's own counters (`rte_eth_stats`), and the plugin's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Statistics {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames thrown away because no descriptor was free.
    pub rx_missed: u64,
    /// Frames that arrived broken.
    pub rx_errors: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
    /// Mbufs that could not be had for what arrived.
    pub rx_no_mbuf: u64,
    /// Frames in several mbufs that could not be joined.
    pub rx_unjoined: u64,
}

/// Gets one piece of EAL's log: level (1 emergency … 8 debug), text, its length.
pub type LogFn = unsafe extern "C" fn(level: u32, text: *const c_char, len: usize);

/// Everything that the plugin does. Functions for queues may be called from any thread, but only one at a time for one queue.
#[repr(C)]
pub struct Table {
    /// [`ABI`].
    pub abi: u32,
    /// The size of this structure.
    pub size: u32,
    /// DPDK's version.
    pub version: unsafe extern "C" fn() -> *const c_char,
    /// Starts EAL with these arguments, once in a process, which it stays for. Returns a negative error number where it fails.
    pub start: unsafe extern "C" fn(argc: c_int, argv: *const *const c_char, log: LogFn) -> c_int,
    /// Configures and starts the device of this name; null where it fails, and `answer` says why.
    pub open:
        unsafe extern "C" fn(*const c_char, *const PortRequest, answer: *mut PortAnswer) -> *mut PortHandle,
    /// Stops and closes a device and frees its mempool; all its mbufs must have been given back.
    pub close: unsafe extern "C" fn(*mut PortHandle),
    /// One queue of it; null past the last.
    pub queue: unsafe extern "C" fn(*mut PortHandle, index: u32) -> *mut QueueHandle,
    /// Its link.
    pub link: unsafe extern "C" fn(*mut PortHandle, *mut LinkAnswer),
    /// Its counters.
    pub statistics: unsafe extern "C" fn(*mut PortHandle, *mut Statistics),
    /// Fills in up to `count` frames that have arrived. They are the caller's until [`free`](Self::free).
    pub rx_burst: unsafe extern "C" fn(*mut QueueHandle, *mut Frame, count: u32) -> u32,
    /// Fills in `count` empty frames, or none. They are the caller's until [`free`](Self::free) or [`tx_burst`](Self::tx_burst).
    pub alloc: unsafe extern "C" fn(*mut QueueHandle, *mut Frame, count: u32) -> u32,
    /// Hands the first so many of `count` frames to the device; the others are still the caller's.
    pub tx_burst: unsafe extern "C" fn(*mut QueueHandle, *mut Frame, count: u32) -> u32,
    /// Gives frames back to their mempool.
    pub free: unsafe extern "C" fn(*mut QueueHandle, *mut Frame, count: u32),
}

const _: () = assert!(size_of::<Frame>() == 24 && size_of::<Table>() == 8 + 11 * 8);
