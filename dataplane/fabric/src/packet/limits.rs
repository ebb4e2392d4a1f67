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
/// The window of a path before anything is known of it.
pub const WINDOW_FIRST_BYTES: u64 = 64 << 10;
/// The most that a path's window begins with where the line rate and the round trip say that more fits.
pub const WINDOW_FIRST_MAX_BYTES: u64 = 1 << 20;
/// What a packet costs on an Ethernet besides its datagram's payload: UDP, IPv6, Ethernet with preamble and gap, and our own header.
pub const WIRE_OVERHEAD_BYTES: u64 = 8 + 40 + 38 + DATA_OVERHEAD_BYTES as u64;
/// How much of the line rate is granted; the rest is for control frames and for what comes again.
pub const LINE_SHARE_PERCENT: u64 = 98;
/// How long the line rate may be granted at once after a pause.
pub const PACER_BURST_NS: u64 = 50_000;
/// Grants of one path that wait for their turn, and so the memory of a path that a peer can fill.
pub const GRANTS_PER_PATH: usize = 1_024;
/// Grants of one slot that wait for their turn.
pub const GRANTS_PER_SLOT: usize = 256;
/// Paths of one endpoint.
pub const PATHS: usize = 4_096;
/// Events that wait to be polled before reads of peers are left to be asked again.
pub const EVENTS: usize = 4 * READS_PER_PATH;
/// Bytes that one path sends before the next has its turn.
pub const TURN_BYTES: usize = 64 << 10;
/// How far behind a packet may come before it is taken for lost, at least and at most.
pub const REORDERING_PACKETS: std::ops::RangeInclusive<u32> = 3..=1_024;
/// How much longer than the slowest response of late a tail timer waits.
pub const TAIL_SLACK_NS: u64 = 300_000;
/// The same on a port that loses nothing, where only a peer that restarts a read makes it useful.
pub const TAIL_SLACK_LOSSLESS_NS: u64 = 100_000_000;
/// The longest that a tail timer waits, however often it has fired.
pub const TAIL_MAX_NS: u64 = 250_000_000;
/// How often it fires before the supplier is taken to have forgotten the read.
pub const TAILS_UNTIL_FORGOTTEN: u32 = 4;
/// The time before a first answer is asked for again, and its doublings' limit.
pub const PROBE_FIRST_NS: u64 = 50_000_000;
/// See [`PROBE_FIRST_NS`].
pub const PROBE_MAX_NS: u64 = 1_000_000_000;
/// How often a size is tried before it is taken for too large.
pub const PROBE_TRIES: u32 = 4;
/// When a path whose size is below what both ports carry is probed anew.
pub const PROBE_AGAIN_NS: u64 = 300_000_000_000;
/// Answers to probes that wait to be sent.
pub const PROBED_WAITING: usize = 8;
/// How long a supplier hears nothing from the reader of what it holds before it asks for a sign.
pub const PING_AFTER_NS: u64 = 250_000_000;
/// How long a supplier keeps what nobody asks for.
pub const SERVE_IDLE_NS: u64 = 30_000_000_000;
/// How long a reader grants nothing of a read before it says again that it wants it.
pub const READ_AGAIN_NS: u64 = SERVE_IDLE_NS / 4;
/// How often a closed path tells the peer.
pub const CLOSE_TELLS: u32 = 3;

// A packet that may still come is let in by the replay window.
const _: () = assert!(*REORDERING_PACKETS.end() as u64 <= REPLAY_WINDOW_PACKETS / 2);
const _: () = assert!(GRANTS_PER_PATH < u16::MAX as usize && GRANTS_PER_SLOT <= GRANTS_PER_PATH);
// Every segment of a full window can be granted in whole masks.
const _: () = assert!(WINDOW_MAX_BYTES / (SEGMENT_MIN_BYTES as u64 * 64) <= GRANTS_PER_PATH as u64);
const _: () = assert!(GRANTS_PER_SLOT >= SEGMENTS_PER_READ / 64);
const _: () =
    assert!(WINDOW_FIRST_BYTES <= WINDOW_FIRST_MAX_BYTES && WINDOW_FIRST_MAX_BYTES <= WINDOW_MAX_BYTES);
const _: () = assert!(TAIL_SLACK_LOSSLESS_NS <= TAIL_MAX_NS && PROBE_FIRST_NS <= PROBE_MAX_NS);
const _: () = assert!(PING_AFTER_NS < SERVE_IDLE_NS && EVENTS >= READS_PER_PATH);
/// Neighbours that a port keeps the hardware addresses of.
pub const NEIGHBOURS: usize = 1_024;
/// Queues of an interface that one AF_XDP port serves: more than that many cores have, no device spreads flows over.
pub const XDP_QUEUES: u32 = 256;

const _: () = assert!(SEGMENT_MAX_BYTES <= u16::MAX as usize);
const _: () = assert!(KEY_UPDATE_PACKETS.is_power_of_two() && KEY_UPDATE_PACKETS <= 1 << 23);
// The two keys that a receiver holds besides the newest cover every packet that the window lets in.
const _: () = assert!(REPLAY_WINDOW_PACKETS >= 1_024 && REPLAY_WINDOW_PACKETS < KEY_UPDATE_PACKETS);
const _: () = assert!(DATAGRAM_MIN_BYTES >= SEGMENT_MIN_BYTES + DATA_OVERHEAD_BYTES);
const _: () = assert!(SEGMENTS_PER_READ <= 1 << 10 && SEGMENTS_PER_READ.is_multiple_of(64));
const _: () = assert!(crate::supply::ASKS_MAX >= READS_PER_PATH);
