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

const _: () = assert!(DATAGRAM_MIN_BYTES >= SEGMENT_MIN_BYTES + DATA_OVERHEAD_BYTES);
const _: () = assert!(SEGMENTS_PER_READ <= 1 << 10 && SEGMENTS_PER_READ.is_multiple_of(64));
