//! Which members a node takes in: foca itself would remember every name that anybody tells it.
//!
//! Whoever has the key of gossip may send names of members that do not exist. A name that is only heard of, and whose record (which its node
//! has signed) has not come, takes one of few places; a node that speaks itself takes one of others. So invented names cannot crowd out
//! those that are real, and all of them together are bounded.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Incarnation, Member, PostcardCodec, State};
use velo_object::NodeId;

use super::MAX_MEMBERS;
use super::machine::Peer;

/// The most members whose record has not come yet: of those that were only heard of, and of those that have spoken themselves.
pub(super) const MAX_UNPROVEN: usize = 1024;

/// Who is known, and whose record is.
pub(super) struct Admission {
    me: Peer,
    /// Who sealed the datagram that is being read.
    sender: NodeId,
    known: HashSet<NodeId>,
    /// Of all nodes, known or not, those whose record has come.
    proven: HashSet<NodeId>,
    /// Of those without a record, who has spoken itself.
    spoken: HashSet<NodeId>,
    /// How many of the others there are.
    hearsay: usize,
    refused: u64,
}

impl Admission {
    pub fn new(me: Peer) -> Self {
        let sender = me.node;
        Self {
            me,
            sender,
            known: HashSet::new(),
            proven: HashSet::new(),
            spoken: HashSet::new(),
            hearsay: 0,
            refused: 0,
        }
    }

    /// The datagram that is read next was sealed by `sender`.
    pub fn begin(&mut self, sender: NodeId) {
        self.sender = sender;
    }

    /// This node has a new name.
    pub fn renamed(&mut self, me: Peer) {
        self.me = me;
    }

    /// The record of `node` has come.
    pub fn prove(&mut self, node: NodeId) {
        if self.proven.len() >= MAX_MEMBERS || !self.proven.insert(node) {
            return;
        }
        if !self.spoken.remove(&node) && self.known.contains(&node) {
            self.hearsay -= 1;
        }
    }

    /// Those that foca still knows.
    pub fn recount(&mut self, members: impl Iterator<Item = NodeId>) {
        self.known = members.collect();
        self.spoken.retain(|node| self.known.contains(node));
        let (proven, spoken) = (&self.proven, &self.spoken);
        self.hearsay =
            self.known.iter().filter(|node| !proven.contains(node) && !spoken.contains(node)).count();
    }

    pub fn unproven(&self) -> usize {
        self.hearsay + self.spoken.len()
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether a member may be remembered of which somebody speaks.
    fn admit(&mut self, node: NodeId) -> bool {
        if node == self.me.node || self.known.contains(&node) {
            return true;
        }
        let proven = self.proven.contains(&node);
        if self.known.len() >= MAX_MEMBERS || !proven && self.hearsay >= MAX_UNPROVEN {
            self.refused += 1;
            return false;
        }
        self.known.insert(node);
        self.hearsay += usize::from(!proven);
        true
    }

    /// Whether a member may be remembered that speaks itself.
    fn admit_sender(&mut self, node: NodeId) -> bool {
        let proven = self.proven.contains(&node);
        if proven || self.spoken.contains(&node) {
            return self.admit(node);
        }
        let known = self.known.contains(&node);
        if self.spoken.len() >= MAX_UNPROVEN || !known && self.known.len() >= MAX_MEMBERS {
            return self.admit(node);
        }
        self.hearsay -= usize::from(known);
        self.known.insert(node);
        self.spoken.insert(node);
        true
    }
}

/// Why a datagram is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unread {
    #[error(transparent)]
    Format(#[from] postcard::Error),
    #[error("it is not from {}, whose name it bears", .0.short())]
    Sender(NodeId),
    #[error("there is no room for another member, {}", .0.short())]
    Full(NodeId),
}

/// foca's format, which only lets admitted members through.
pub(super) struct Admitting {
    codec: PostcardCodec,
    admission: Arc<Mutex<Admission>>,
}

impl Admitting {
    pub fn new(admission: Arc<Mutex<Admission>>) -> Self {
        Self { codec: PostcardCodec, admission }
    }
}

impl Codec<Peer> for Admitting {
    type Error = Unread;

    fn encode_header(&mut self, header: &Header<Peer>, buf: impl BufMut) -> Result<(), Unread> {
        Ok(self.codec.encode_header(header, buf)?)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Peer>, Unread> {
        let header: Header<Peer> = self.codec.decode_header(buf)?;
        let mut admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        let node = header.src.node;
        if node != admission.sender {
            return Err(Unread::Sender(node));
        }
        if admission.admit_sender(node) { Ok(header) } else { Err(Unread::Full(node)) }
    }

    fn encode_member(&mut self, member: &Member<Peer>, buf: impl BufMut) -> Result<(), Unread> {
        Ok(self.codec.encode_member(member, buf)?)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Peer>, Unread> {
        let member: Member<Peer> = self.codec.decode_member(buf)?;
        let mut admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        if admission.admit(member.id().node) {
            return Ok(member);
        }
        // In its place, what changes nothing: that this node is alive.
        Ok(Member::new(admission.me.clone(), Incarnation::default(), State::Alive))
    }
}
