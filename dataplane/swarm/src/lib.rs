//! The planner of transfers: who has which pieces, how fast they are, and what to read next from whom.
//!
//! Sans-IO: [`Planner`] takes events (`handle_*`) with the time in microseconds of any monotonic clock and gives
//! out [`Action`]s; it opens no socket, reads no clock, and the same events with the same seed give the same actions.
//! One thread owns it.
//!
//! # Who calls what, when
//!
//! 1. [`Planner::add_source`] when a node can be read from (a session is up and streams to it are open or will be);
//!    [`Planner::remove_source`] when it cannot any more. Its outstanding reads go elsewhere by themselves.
//! 2. [`Planner::add_blob`] for each blob that is wanted. A node that holds it, or is pulling it too, says so by a message:
//!    [`Planner::handle_have`] with all it has, then [`Planner::handle_have_more`] for what it gets, or
//!    [`Planner::handle_have_not`]. Whoever pulls the same blob must be announced too, with an empty set if it has nothing yet:
//!    that is how concurrent pullers come to divide the pieces among them.
//! 3. After each batch of events call [`Planner::poll`] until it gives `None`; call it again at [`Planner::next_deadline`].
//! 4. Each tag ends in exactly one of these calls:
//!    - `ReadOutboard`: [`Planner::handle_outboard`] (decoded and checked by the caller), [`Planner::handle_bad_outboard`]
//!      (it does not decode or has another root) or [`Planner::handle_failed`].
//!    - `ReadPiece`: [`Planner::handle_piece_read`] when its bytes are in the buffer; where that says [`Arrival::Check`],
//!      then [`Planner::handle_verified`] when the piece is stored, or [`Planner::handle_bad_piece`] when it does not verify. Or
//!      [`Planner::handle_failed`].
//!    - `TryHole`: [`Planner::handle_verified`], or [`Planner::handle_bad_piece`] where the piece is no hole.
//!
//!    After [`Action::Cancel`], and after `remove_source` or `remove_blob`, a tag is dead: what is reported for it is ignored.
#![forbid(unsafe_code)]

mod action;
mod bits;
mod blob;
mod events;
mod flight;
mod holders;
mod pick;
mod planner;
mod rendezvous;
mod slab;
mod source;
mod tick;

pub use action::{
    Accusation, Action, Arrival, Blame, BlobSpec, Counters, DropReason, Failure, Have, Known, Limits,
    Progress, SourceInfo, SourceStatus, Tag,
};
pub use planner::Planner;
