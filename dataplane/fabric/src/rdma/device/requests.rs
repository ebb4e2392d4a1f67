//! The work requests of one queue pair: their names, how many there may be, and what the device holds for them.
#![allow(unsafe_code)]

use super::pair::Prepared;
use crate::pool::Buffer;
use crate::rdma::limits::{MESSAGE_BYTES, READS_PER_PATH, SENDS_PER_PATH, SIGNALLED_EVERY};
use crate::rdma::table::Work;

/// What a work request was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read = 1,
    Send,
    Bind,
    Invalidate,
}

/// A work request's name: kind, tag, and the low half of how many went before it.
fn name(kind: Kind, tag: u32, number: u32) -> u64 {
    (kind as u64) << 56 | u64::from(tag & 0xff_ffff) << 32 | u64::from(number)
}

pub(super) struct Pair {
    /// None while it is being destroyed.
    pub(super) prepared: Option<Prepared>,
    /// The buffers that the device fills.
    pub(super) reads: [Option<Buffer>; READS_PER_PATH],
    /// The keys of what is lent.
    pub(super) lent: [u32; READS_PER_PATH],
    /// Work requests so far, and how many of them have ended for certain.
    posted: u32,
    pub(super) ended: u32,
    unsignalled: usize,
    /// Not yet handed to the device, with the bytes of messages.
    pub(super) pending: Vec<(Work, [u8; MESSAGE_BYTES])>,
    pub(super) failed: bool,
}

// SAFETY: the pointers of its work are to what it owns or what the device owns; nothing of them belongs to a thread.
unsafe impl Send for Pair {}

impl Pair {
    pub(super) fn new(prepared: Prepared) -> Self {
        Self {
            prepared: Some(prepared),
            reads: [const { None }; READS_PER_PATH],
            lent: [0; READS_PER_PATH],
            posted: 0,
            ended: 0,
            unsignalled: 0,
            pending: Vec::with_capacity(SENDS_PER_PATH),
            failed: false,
        }
    }

    pub(super) fn room(&self) -> usize {
        SENDS_PER_PATH.saturating_sub(self.posted.wrapping_sub(self.ended) as usize)
    }

    pub(super) fn push(&mut self, kind: Kind, tag: u32, mut work: Work, message: &[u8]) {
        self.posted = self.posted.wrapping_add(1);
        // READs and what is taken back are waited for.
        self.unsignalled += 1;
        if matches!(kind, Kind::Read | Kind::Invalidate) || self.unsignalled >= SIGNALLED_EVERY {
            work.signalled = 1;
            self.unsignalled = 0;
        }
        work.id = name(kind, tag, self.posted);
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[..message.len()].copy_from_slice(message);
        self.pending.push((work, bytes));
    }
}
