//! The list of revoked nodes: signed by the authority, numbered, and kept in `identity/revoked` of every member.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use velo_config::Paths;
use velo_object::NodeId;

use super::{AuthorityError, files};
use crate::signed::{Signed, Statement};

/// The most nodes in a list.
const MOST_REVOKED: usize = 10_000;

/// A node that may not take part any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Which.
    pub node: NodeId,
    /// Since when.
    pub at_ms: u64,
}

/// All revoked nodes of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationList {
    /// The cluster.
    pub cluster: [u8; 32],
    /// Rises with every revocation; a list with a higher number replaces one with a lower.
    pub serial: u64,
    /// In order of their ids.
    pub revoked: Vec<Revoked>,
}

impl Statement for RevocationList {
    const DOMAIN: &'static str = "velo/revoked/1";
}

/// What this node knows of revocations.
#[derive(Debug, Clone)]
pub struct Revocations {
    cluster: [u8; 32],
    authority: NodeId,
    serial: u64,
    revoked: BTreeMap<NodeId, u64>,
    signed: Option<Signed>,
}

impl Revocations {
    /// None yet.
    pub fn new(cluster: [u8; 32], authority: NodeId) -> Self {
        Self { cluster, authority, serial: 0, revoked: BTreeMap::new(), signed: None }
    }

    /// What `identity/revoked` says. A file that does not verify is an error: going on without it would let a revoked node in.
    ///
    /// # Errors
    /// [`AuthorityError::Io`], [`AuthorityError::Malformed`].
    pub fn load(files: &Paths, cluster: [u8; 32], authority: NodeId) -> Result<Self, AuthorityError> {
        let mut revocations = Self::new(cluster, authority);
        let path = files.revoked();
        if path.exists() {
            let malformed = |why: &str| AuthorityError::Malformed {
                what: path.display().to_string(),
                why: why.to_owned(),
            };
            let signed =
                postcard::from_bytes(&files::read(&path)?).map_err(|_| malformed("it cannot be read"))?;
            if !revocations.merge(&signed) && revocations.serial == 0 {
                return Err(malformed("it is not signed by this cluster's authority"));
            }
        }
        Ok(revocations)
    }

    /// Writes `identity/revoked`.
    ///
    /// # Errors
    /// [`AuthorityError::Io`].
    pub fn store(&self, files: &Paths) -> Result<(), AuthorityError> {
        match &self.signed {
            Some(signed) => {
                files::replace(&files.revoked(), &postcard::to_stdvec(signed).expect("plain data"), 0o644)
            }
            None => Ok(()),
        }
    }

    /// The number of the list; 0 where none was ever signed.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether a node is revoked.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.revoked.contains_key(node)
    }

    /// The revoked nodes.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.revoked.keys().copied().collect()
    }

    /// The list as the authority signed it.
    pub fn signed(&self) -> Option<&Signed> {
        self.signed.as_ref()
    }

    /// Takes a list over if it is a newer one of this cluster's authority. Whether it was.
    pub fn merge(&mut self, signed: &Signed) -> bool {
        let Ok(list) = signed.open_by::<RevocationList>(self.authority) else { return false };
        if list.cluster != self.cluster || list.serial <= self.serial || list.revoked.len() > MOST_REVOKED {
            return false;
        }
        self.serial = list.serial;
        self.revoked = list.revoked.iter().map(|revoked| (revoked.node, revoked.at_ms)).collect();
        self.signed = Some(signed.clone());
        true
    }

    /// Whether a list says nothing that is not known here: it is this very list, or an earlier one of the authority whose nodes are all revoked
    /// here too.
    pub fn covers(&self, signed: &Signed) -> bool {
        let Ok(list) = signed.open_by::<RevocationList>(self.authority) else { return false };
        list.cluster == self.cluster
            && list.serial <= self.serial
            && list.revoked.iter().all(|revoked| self.contains(&revoked.node))
    }

    /// The list with one more node; the authority signs it.
    ///
    /// # Errors
    /// [`AuthorityError::Refused`] where the list is full.
    pub fn with(&self, node: NodeId, now_ms: u64) -> Result<RevocationList, AuthorityError> {
        let mut revoked = self.revoked.clone();
        revoked.entry(node).or_insert(now_ms);
        if revoked.len() > MOST_REVOKED {
            return Err(AuthorityError::Refused(format!(
                "{MOST_REVOKED} nodes are revoked already: begin a new cluster"
            )));
        }
        let revoked = revoked.into_iter().map(|(node, at_ms)| Revoked { node, at_ms }).collect();
        let serial = self.serial.checked_add(1).ok_or_else(|| {
            AuthorityError::Refused("the lists of revocations have no numbers left".to_owned())
        })?;
        Ok(RevocationList { cluster: self.cluster, serial, revoked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signed::tests::signer;

    #[test]
    fn only_newer_lists_of_the_authority_count() {
        let (authority, other) = (signer(), signer());
        let dir = tempfile::tempdir().expect("a directory");
        let files = Paths::new(dir.path().to_owned());
        std::fs::create_dir(files.identity_dir()).expect("a folder");
        let mut known = Revocations::load(&files, [1; 32], authority.public()).expect("none yet");
        let [a, b] = [1, 2].map(|n| NodeId::from_bytes([n; 32]));
        let first = authority.sign(&known.with(a, 5).expect("room"));
        assert!(!known.merge(&other.sign(&known.with(a, 5).expect("room"))), "another signer");
        assert!(known.merge(&first) && !known.merge(&first));
        let second = authority.sign(&known.with(b, 6).expect("room"));
        assert!(known.merge(&second) && !known.merge(&first), "an older one");
        assert_eq!((known.serial(), known.nodes()), (2, vec![a, b]));
        known.store(&files).expect("written");
        let again = Revocations::load(&files, [1; 32], authority.public()).expect("read");
        assert!(again.contains(&a) && again.contains(&b) && again.serial() == 2);
        assert!(Revocations::load(&files, [2; 32], authority.public()).is_err(), "another cluster");
        assert!(Revocations::load(&files, [1; 32], other.public()).is_err(), "another authority");
    }
}
