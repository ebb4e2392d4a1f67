//! Rendezvous hashing: which of several pullers is to get a piece first. All of them compute the same answer.
//! Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.

use velo_object::{BlobId, NodeId};
use xxhash_rust::xxh3::xxh3_64;

/// The finaliser of SplitMix64.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

pub(crate) fn node_key(node: &NodeId) -> u64 {
    xxh3_64(node.as_bytes())
}

pub(crate) fn blob_key(blob: &BlobId) -> u64 {
    xxh3_64(blob.as_bytes())
}

/// What all pullers' scores for one piece have in common.
pub(crate) const fn piece_key(blob_key: u64, index: u64) -> u64 {
    mix(blob_key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The puller with the highest score gets the piece first.
pub(crate) const fn score(piece_key: u64, node_key: u64) -> u64 {
    mix(piece_key ^ node_key)
}
