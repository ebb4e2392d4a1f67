//! What a member says of itself, signed by its own key.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use velo_object::NodeId;

use crate::signed::{Signed, Statement};

/// The most addresses that a member advertises.
pub const MAX_ADDRESSES: usize = 8;
/// The longest name of a node, a zone, a fabric or a version, in bytes.
const MAX_TEXT_BYTES: usize = 64;
const MAX_FABRICS: usize = 8;
/// The largest record that a datagram of gossip has room for, in bytes.
const MAX_RECORD_BYTES: usize = 900;

/// A member. The signer of the statement is the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The cluster.
    pub cluster: [u8; 32],
    /// Rises with every change; milliseconds since the epoch, but never less than one more than before.
    pub version: u64,
    /// Its name, for people.
    pub name: String,
    /// Where its velod is reached, best first.
    pub addresses: Vec<SocketAddr>,
    /// Where its gossip is reached.
    pub gossip: SocketAddr,
    /// Its zone.
    pub zone: String,
    /// What its store can still take.
    pub free_bytes: u64,
    /// Fabrics that it speaks.
    pub fabrics: Vec<String>,
    /// Its version of Velo.
    pub software: String,
    /// Whether the cluster's authority is there.
    pub authority: bool,
    /// Whether it has left.
    pub left: bool,
}

impl Statement for MemberRecord {
    const DOMAIN: &'static str = "velo/member/1";
}

/// A record whose signature and limits have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedMember {
    /// What it says.
    pub record: MemberRecord,
    /// As it was signed.
    pub signed: Signed,
}

impl CheckedMember {
    /// Checks a record that came from somewhere.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn check(signed: Signed, cluster: &[u8; 32]) -> Result<Self, String> {
        let node = signed.signer;
        let refused = |why: &str| Err(format!("the record of node {}: {why}", node.short()));
        if signed.body_bytes() > MAX_RECORD_BYTES {
            return refused("it is too large");
        }
        let record: MemberRecord = signed.open().map_err(|error| error.to_string())?;
        let plain = |text: &str| text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control);
        let texts = [&record.name, &record.zone, &record.software];
        if record.cluster != *cluster {
            return refused("it is of another cluster");
        }
        if !texts.into_iter().chain(&record.fabrics).all(|text| plain(text)) {
            return refused("a text is too long or has control characters");
        }
        if record.addresses.len() > MAX_ADDRESSES || record.fabrics.len() > MAX_FABRICS {
            return refused("too many addresses or fabrics");
        }
        Ok(Self { record, signed })
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.signed.signer
    }
}
