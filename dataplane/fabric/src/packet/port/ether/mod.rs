//! Datagrams in Ethernet frames: the headers, checks and neighbours that every [`FramePort`] needs.

mod frame;

pub use frame::{ChecksumRequest, FrameArrival, FrameCaps, FrameDeparture, FramePort, Mac, Verdict};
