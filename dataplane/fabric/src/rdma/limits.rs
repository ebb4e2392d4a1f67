//! Every limit of the RDMA fabric, and what must hold between them.

use std::time::Duration;

use crate::pool::BUFFER_BYTES;

/// Reads of one path that may be outstanding in each direction: the slots of its queue pair.
pub const READS_PER_PATH: usize = 32;
/// The longest message. Devices take so much inline.
pub const MESSAGE_BYTES: usize = 56;
/// Messages that may be on their way to a queue pair: of each slot an ASK and the END of what it held before as a reader, a GRANT or REFUSE as a
/// provider, and the greetings.
pub const RECEIVES_PER_PATH: usize = 4 * READS_PER_PATH;
/// Work requests that a queue pair has room for: of each slot a READ, two messages as a reader, one as a provider, a bind and an
/// invalidation.
pub const SENDS_PER_PATH: usize = 8 * READS_PER_PATH;
/// One in so many messages reports its end, so that their places in the queue come free.
pub const SIGNALLED_EVERY: usize = 16;
/// Paths of one worker.
pub const PATHS: usize = 1_024;
/// How often a range is asked for again because its lease ran out.
pub const LEASES_PER_READ: u32 = 4;
/// How long a lease lasts unless the configuration says otherwise.
pub const LEASE: Duration = Duration::from_secs(10);
/// The longest that a peer may give.
pub const LEASE_MAX: Duration = Duration::from_secs(600);
/// Of a lease, the reader leaves this part unused: clocks do not run at the same speed.
pub const LEASE_MARGIN_PART: u32 = 16;
/// Regions are registered in slices of at most so many bytes: what a length in a work request can hold.
pub const REGION_MAX_BYTES: usize = 1 << 30;
/// What a queue pair has locked, for the limit to be named that a process needs: places for messages (which may begin and end within a
/// page), and what drivers take for the queues themselves, at most 256 bytes for a work request and 64 for a place or a completion.
pub const PAIR_LOCKED_BYTES: u64 = ((RECEIVES_PER_PATH * MESSAGE_BYTES).next_multiple_of(4096)
    + 4096
    + SENDS_PER_PATH * (256 + 64)
    + RECEIVES_PER_PATH * (64 + 64)) as u64;

const _: () = assert!(READS_PER_PATH <= 64 && SIGNALLED_EVERY <= SENDS_PER_PATH / 4);
const _: () = assert!(REGION_MAX_BYTES < 1 << 32 && REGION_MAX_BYTES.is_multiple_of(BUFFER_BYTES));
const _: () =
    assert!(RECEIVES_PER_PATH >= 3 * READS_PER_PATH + 2 && SENDS_PER_PATH >= 6 * READS_PER_PATH + 2);
