//! What control services say to each other: one [`Ask`], one [`Reply`], carried as calls by the sessions of velod.
//!
//! A message is a version byte and `postcard`; velod bounds it at 4 MiB. Who asks is known by the certificate of the session, so nothing here
//! says who it is from; what is to be believed beyond that (records, names, keys, lists) bears its own signature.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use velo_object::{BlobId, IdPrefix, NodeId, ObjectId};

use crate::refs::{Change, RefDigest, RefError, RefName};
use crate::signed::Signed;

/// Version of these messages.
const VERSION: u8 = 2;
/// The largest message, in bytes: what velod carries.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The most ids in one question.
pub const MAX_IDS: usize = 4096;
/// The most trees in one question.
pub const MAX_TREES: usize = 16;
/// The most names in one page of digests.
pub const PAGE_NAMES: usize = 1000;
/// The most records that one message pushes.
pub const MAX_RECORDS: usize = 1000;

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// Anti-entropy: what the caller knows. Answered by [`Reply::Sync`].
    Sync(Box<Knowledge>),
    /// One page of the names that the caller knows, after `after` (all to the end, if `last`). [`Reply::Names`].
    Names {
        /// Begin after this name.
        after: Option<RefName>,
        /// In order.
        page: Vec<RefDigest>,
        /// Whether the caller knows no names after these.
        last: bool,
    },
    /// News. [`Reply::Done`], or [`Reply::Refused`].
    Push(Vec<News>),
    /// A change of a name that the callee writes. [`Reply::Changed`].
    ChangeRef(Change),
    /// What the callee has of these. [`Reply::Have`].
    Have {
        /// Which.
        ids: Vec<BlobId>,
        /// Whether the caller is pulling them now, so that those who pull them too can take it as a source.
        pulling: bool,
    },
    /// Ids that begin so. [`Reply::Ids`].
    Resolve(IdPrefix),
    /// A new certificate for the caller, from the authority. [`Reply::Certificate`].
    Renew {
        /// A signing request with the caller's key, in DER.
        request: Vec<u8>,
    },
    /// How much of these trees the callee has. [`Reply::Trees`].
    Trees(Vec<BlobId>),
}

/// What a node knows, in few bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Knowledge {
    /// The members, and the versions of their records.
    pub members: Vec<(NodeId, u64)>,
    /// Number of the list of revocations.
    pub revoked_serial: u64,
    /// Epoch of the gossip key.
    pub gossip_epoch: Option<u32>,
    /// Hash of all names.
    pub refs: [u8; 32],
}

/// News that bears its own signature.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum News {
    /// A member's record.
    Member(Signed),
    /// The state of a name.
    Ref(Signed),
    /// A list of revocations.
    Revoked(Signed),
    /// A gossip key.
    GossipKey(Signed),
}

/// What the callee has of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Its size, if known.
    pub size_bytes: Option<u64>,
    /// Whether all of it is there.
    pub complete: bool,
    /// How many pieces are there.
    pub pieces: u64,
    /// Whether a job is getting it.
    pub pulling: bool,
    /// Where a job is getting it and the callee may read it from the origin: how many bytes of it have been read so far.
    pub origin_bytes: Option<u64>,
}

/// How much of a tree is somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeHolding {
    /// The packs and large files that it names and that are complete.
    pub complete: u64,
    /// All that it names.
    pub total: u64,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// What the caller lacks; whether the callee lacks something; whether names differ.
    Sync {
        /// What the caller lacks.
        news: Vec<News>,
        /// Members of which the caller knows newer records: it should push them.
        want_members: bool,
        /// The callee's number of the list of revocations.
        revoked_serial: u64,
        /// The callee's epoch.
        gossip_epoch: Option<u32>,
        /// The callee's hash of all names.
        refs: [u8; 32],
    },
    /// Records that the caller lacks, and names that the callee wants.
    Names {
        /// To be merged.
        records: Vec<Signed>,
        /// To be pushed.
        want: Vec<RefName>,
    },
    /// Done: all news that was pushed is known to the callee now, and kept.
    Done,
    /// The new record, or why there is none.
    Changed(Result<Signed, RefError>),
    /// One for each id.
    Have(Vec<Option<Holding>>),
    /// The ids that begin so; a kind where it is known.
    Ids(Vec<(BlobId, Option<ObjectId>)>),
    /// A certificate in DER.
    Certificate(Vec<u8>),
    /// One for each tree; none where its table is not there.
    Trees(Vec<Option<TreeHolding>>),
    /// News that was pushed and that the callee did not believe or could not keep: which by number, and why. All other news was taken.
    Refused(Vec<(u32, String)>),
}

/// Why a message is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It speaks another version.
    #[error("it speaks version {0} of the control protocol, this node speaks {VERSION}")]
    Version(u8),
    /// It cannot be read, or exceeds a limit.
    #[error("a message that cannot be read or is too long")]
    Format,
}

/// Writes a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![VERSION]).expect("plain data")
}

/// Reads a message.
///
/// # Errors
/// [`MessageError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match bytes {
        _ if bytes.len() > MAX_MESSAGE_BYTES => Err(MessageError::Format),
        [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            _ => Err(MessageError::Format),
        },
        [version, ..] => Err(MessageError::Version(*version)),
        [] => Err(MessageError::Format),
    }
}

impl Ask {
    /// Whether it keeps the limits.
    pub fn within_limits(&self) -> bool {
        match self {
            Self::Sync(knowledge) => knowledge.members.len() <= crate::membership::MAX_MEMBERS,
            Self::Names { page, .. } => page.len() <= PAGE_NAMES,
            Self::Push(news) => news.len() <= MAX_RECORDS,
            Self::Have { ids, .. } => ids.len() <= MAX_IDS,
            Self::Renew { request } => request.len() <= 16 << 10,
            Self::Trees(ids) => ids.len() <= MAX_TREES,
            Self::ChangeRef(_) | Self::Resolve(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_another_version_or_with_more_behind_are_refused() {
        let ask = Ask::Have { ids: vec![BlobId::of(b"x")], pulling: true };
        let bytes = encode(&ask);
        assert!(matches!(decode::<Ask>(&bytes), Ok(Ask::Have { pulling: true, .. })));
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            bytes
        };
        assert_eq!(decode::<Ask>(&with(0, 1)).err(), Some(MessageError::Version(1)));
        assert_eq!(decode::<Ask>(&with(1, 99)).err(), Some(MessageError::Format));
        assert_eq!(decode::<Ask>(&[bytes.clone(), vec![0]].concat()).err(), Some(MessageError::Format));
        assert_eq!(decode::<Ask>(&[]).err(), Some(MessageError::Format));
        for cut in 1..bytes.len() {
            assert!(decode::<Ask>(&bytes[..cut]).is_err());
        }
        // A length that promises more than there is allocates nothing of that size.
        assert_eq!(
            decode::<Ask>(&[VERSION, 2, 0xff, 0xff, 0xff, 0xff, 0x7f]).err(),
            Some(MessageError::Format)
        );
        assert!(!Ask::Have { ids: vec![BlobId::of(b"x"); MAX_IDS + 1], pulling: false }.within_limits());
    }
}
