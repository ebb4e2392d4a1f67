//! Every limit of the packet fabric, and how they depend on each other: a bad combination does not compile.

use crate::pool::BUFFER_BYTES;

/// Reads that may be outstanding on a path, in each direction. Part of the protocol: a read has one of so many slots.
pub const READS_PER_PATH: usize = 64;
/// The largest datagram of any port, without the headers of IP and UDP.
pub const DATAGRAM_MAX_BYTES: usize = 65_487;
/// The smallest datagram that every path must carry: IPv6's least MTU without the headers of IP and UDP.
pub const DATAGRAM_MIN_BYTES: usize = 1_232;
/// Bytes of a DATA frame that are not payload, at most (sealed or not).
pub const DATA_OVERHEAD_BYTES: usize = 56;
/// The least payload of a DATA frame but the last of a read.
pub const SEGMENT_MIN_BYTES: usize = 1_024;
/// Segments that a read may have.
pub const SEGMENTS_PER_READ: usize = BUFFER_BYTES.div_ceil(SEGMENT_MIN_BYTES);

/// Bytes of a CONTROL, PROBE or PROBED frame that are no message: header and tag or MAC.
pub const CONTROL_OVERHEAD_BYTES: usize = 32;
/// The largest payload of a DATA frame.
pub const SEGMENT_MAX_BYTES: usize = DATAGRAM_MAX_BYTES - DATA_OVERHEAD_BYTES;
/// Packets sealed with one key. Below 2^23, the limit for AES-GCM (RFC 9001, B.1.1); a power of two, so that generations are cheap to tell.
pub const KEY_UPDATE_PACKETS: u64 = 1 << 22;
/// Forgeries that one path's receiver refuses before it trusts its key no more: the limit for ChaCha20-Poly1305 (RFC 9001, 6.6).
pub const FORGERIES_MAX: u64 = 1 << 36;
/// How far a packet may come behind the newest one of its path.
pub const REPLAY_WINDOW_PACKETS: u64 = 4_032;

/// Granted bytes of a path that may be on their way at once, at most.
pub const WINDOW_MAX_BYTES: u64 = (READS_PER_PATH * BUFFER_BYTES) as u64;
/// Reads of peers that may wait for their bytes to be loaded, over all paths of a worker; more are refused.
pub const ASKS_MAX: usize = 4_096;

const _: () = assert!(SEGMENT_MAX_BYTES <= u16::MAX as usize);
const _: () = assert!(KEY_UPDATE_PACKETS.is_power_of_two() && KEY_UPDATE_PACKETS <= 1 << 23);
// The two keys that a receiver holds besides the newest cover every packet that the window lets in.
const _: () = assert!(REPLAY_WINDOW_PACKETS >= 1_024 && REPLAY_WINDOW_PACKETS < KEY_UPDATE_PACKETS);
const _: () = assert!(DATAGRAM_MIN_BYTES >= SEGMENT_MIN_BYTES + DATA_OVERHEAD_BYTES);
const _: () = assert!(SEGMENTS_PER_READ <= 1 << 10 && SEGMENTS_PER_READ.is_multiple_of(64));
const _: () = assert!(ASKS_MAX >= READS_PER_PATH);
/// Neighbours that a port keeps the hardware addresses of.
pub const NEIGHBOURS: usize = 1_024;
