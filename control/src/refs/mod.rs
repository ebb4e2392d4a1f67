//! Names: signed, versioned records that every member holds, with one writer each. No clock, no socket: time and keys are arguments.
//!
//! The node that creates a name writes it; the others hand their changes to it ([`Step::Forward`]) and answer reads themselves.
//! Records merge by a total order (see `record.rs`), so that members converge whatever way and however often records reach them.

mod name;
mod record;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use velo_object::{NodeId, ObjectId};

pub use name::{MAX_NAME_BYTES, NameError, RefName};
pub use record::{CheckedRef, HISTORY, RefRecord, Value};

use crate::signed::{Signed, Signer};

/// The most names in a cluster.
pub const MAX_REFS: usize = 100_000;

/// A change that somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which name.
    pub name: RefName,
    /// What it is to mean; none: it is to be deleted.
    pub id: Option<ObjectId>,
    /// The version that must stand there, 0 for none; none: any.
    pub expect: Option<u64>,
}

/// Why a change is not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum RefError {
    /// Another version stands there.
    #[error("`{name}` is at version {found}, not {expected}: read it again and decide anew")]
    Conflict {
        /// The name.
        name: String,
        /// What stands there; 0 for none.
        found: u64,
        /// What the caller expected.
        expected: u64,
    },
    /// There is no such name.
    #[error("there is no name `{0}`: `velo ref ls` lists them")]
    Absent(String),
    /// There are too many.
    #[error("the cluster has {MAX_REFS} names, and no more: delete some")]
    Full,
    /// The writer said no, or could not be reached.
    #[error("`{name}` is written by node {writer}, which did not answer: {why}")]
    Writer {
        /// The name.
        name: String,
        /// Its writer.
        writer: String,
        /// What happened.
        why: String,
    },
}

/// What follows from a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The new record: store it, then [`Refs::merge`] it and send it to all.
    Write(Box<CheckedRef>),
    /// Another node writes this name: ask it.
    Forward(NodeId),
}

/// A creation that lost against another of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// What it meant.
    pub id: Option<ObjectId>,
    /// Who wrote it.
    pub writer: NodeId,
    /// When it was created.
    pub created_ms: u64,
}

/// What a node holds of one name, and keeps in the book.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The record that won.
    pub current: CheckedRef,
    /// The last creation that lost against it.
    pub lost: Option<Lost>,
}

/// [`Held`] as it stands in the book.
#[derive(Serialize, Deserialize)]
struct Stored {
    signed: Signed,
    lost: Option<Lost>,
}

impl Held {
    /// For the book.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored { signed: self.current.signed.clone(), lost: self.lost.clone() };
        postcard::to_stdvec(&stored).expect("plain data")
    }

    /// From the book.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(bytes: &[u8], cluster: &[u8; 32]) -> Result<Self, String> {
        let stored: Stored = postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        Ok(Self { current: CheckedRef::check(stored.signed, cluster)?, lost: stored.lost })
    }
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// Nothing: it was known, or what is known wins.
    Known,
    /// It stands now.
    New,
    /// Two creations met; the older one stands, this one lost.
    Lost(Lost),
}

/// All names, as this node knows them.
#[derive(Debug)]
pub struct Refs {
    cluster: [u8; 32],
    held: BTreeMap<RefName, Held>,
}

/// A name's record in few bytes, to compare what two nodes know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefDigest {
    /// The name.
    pub name: RefName,
    /// The first bytes of the record's hash.
    pub digest: [u8; 16],
}

impl Refs {
    /// None yet.
    pub fn new(cluster: [u8; 32]) -> Self {
        Self { cluster, held: BTreeMap::new() }
    }

    /// Puts back what the book kept.
    pub fn restore(&mut self, held: Held) {
        self.held.insert(held.current.record.name.clone(), held);
    }

    /// What is known of a name, deleted or not.
    pub fn get(&self, name: &RefName) -> Option<&Held> {
        self.held.get(name)
    }

    /// A name that means something.
    pub fn live(&self, name: &RefName) -> Option<&Held> {
        self.get(name).filter(|held| held.current.id().is_some())
    }

    /// All names that mean something, in order.
    pub fn iter_live(&self) -> impl Iterator<Item = &Held> {
        self.held.values().filter(|held| held.current.id().is_some())
    }

    /// What a change asks for. `writer_revoked` says whether a node may write no more; its names may then be taken over.
    ///
    /// # Errors
    /// [`RefError`].
    pub fn change(
        &self,
        change: &Change,
        signer: &Signer,
        now_ms: u64,
        writer_revoked: impl Fn(&NodeId) -> bool,
    ) -> Result<Step, RefError> {
        let name = &change.name;
        let known = self.get(name);
        let live = known.filter(|held| held.current.id().is_some());
        if let Some(held) = live
            && held.current.writer() != signer.public()
            && !writer_revoked(&held.current.writer())
        {
            return Ok(Step::Forward(held.current.writer()));
        }
        let found = live.map_or(0, |held| held.current.value().version);
        if let Some(expected) = change.expect
            && expected != found
        {
            return Err(RefError::Conflict { name: name.to_string(), found, expected });
        }
        if live.is_none() && change.id.is_none() {
            return Err(RefError::Absent(name.to_string()));
        }
        if known.is_none() && self.held.len() >= MAX_REFS {
            return Err(RefError::Full);
        }
        let mut values = known.map(|held| held.current.record.values.clone()).unwrap_or_default();
        let version = values.first().map_or(0, |value| value.version) + 1;
        values.insert(0, Value { id: change.id, version, written_ms: now_ms });
        values.truncate(HISTORY);
        let (life, created_ms) = match known {
            Some(held) if live.is_some() && held.current.writer() == signer.public() => {
                (held.current.record.life, held.current.record.created_ms)
            }
            Some(held) => (held.current.record.life + 1, now_ms),
            None => (1, now_ms),
        };
        let record = RefRecord { cluster: self.cluster, name: name.clone(), life, created_ms, values };
        let signed = signer.sign(&record);
        Ok(Step::Write(Box::new(CheckedRef { record, signed })))
    }

    /// What would stand if this record were merged: the entry for the book, where it would be another than now.
    pub fn preview(&self, new: &CheckedRef) -> (Merged, Option<Held>) {
        let lost_of = |lost: &CheckedRef| Lost {
            id: lost.id(),
            writer: lost.writer(),
            created_ms: lost.record.created_ms,
        };
        let Some(held) = self.held.get(&new.record.name) else {
            if self.held.len() >= MAX_REFS {
                return (Merged::Known, None);
            }
            return (Merged::New, Some(Held { current: new.clone(), lost: None }));
        };
        let current = &held.current;
        if new.wins_against(current) {
            let lost = if new.rivals(current) {
                Some(lost_of(current))
            } else {
                held.lost.clone().filter(|_| new.same_creation(current))
            };
            let merged = match &lost {
                Some(lost) if new.rivals(current) => Merged::Lost(lost.clone()),
                _ => Merged::New,
            };
            return (merged, Some(Held { current: new.clone(), lost }));
        }
        let lost = lost_of(new);
        if new.rivals(current) && held.lost.as_ref() != Some(&lost) {
            return (Merged::Lost(lost.clone()), Some(Held { current: current.clone(), lost: Some(lost) }));
        }
        (Merged::Known, None)
    }

    /// Merges a record; what stands now, where that changed.
    pub fn merge(&mut self, new: &CheckedRef) -> (Merged, Option<Held>) {
        let (merged, held) = self.preview(new);
        if let Some(held) = &held {
            self.restore(held.clone());
        }
        (merged, held)
    }

    /// One hash over all records: equal where two nodes know the same.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.held.values().for_each(|held| {
            hasher.update(&held.current.signed.digest());
        });
        *hasher.finalize().as_bytes()
    }

    /// Up to `limit` digests after a name, in order.
    pub fn page(&self, after: Option<&RefName>, limit: usize) -> Vec<RefDigest> {
        self.between(after, None).take(limit).map(digest_of).collect()
    }

    /// Compares a page of another node with what is known here. The page covers all names after `after` up to its last one, or up to the end
    /// where `last` says so. Gives the records that the other should have, and the names that it should send.
    pub fn compare(
        &self,
        after: Option<&RefName>,
        page: &[RefDigest],
        last: bool,
    ) -> (Vec<Signed>, Vec<RefName>) {
        let theirs: BTreeMap<&RefName, &[u8; 16]> = page.iter().map(|d| (&d.name, &d.digest)).collect();
        let until = if last { None } else { page.last().map(|d| &d.name) };
        let give = self
            .between(after, until)
            .filter(|held| theirs.get(&held.current.record.name) != Some(&&digest_of(held).digest))
            .map(|held| held.current.signed.clone())
            .collect();
        let want = page
            .iter()
            .filter(|theirs| self.get(&theirs.name).is_none_or(|held| digest_of(held) != **theirs))
            .map(|theirs| theirs.name.clone())
            .collect();
        (give, want)
    }

    fn between<'a>(
        &'a self,
        after: Option<&RefName>,
        until: Option<&RefName>,
    ) -> impl Iterator<Item = &'a Held> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let empty = matches!((after, until), (Some(after), Some(until)) if until <= after);
        let to = until.map_or(Unbounded, Included);
        (!empty).then(|| self.held.range((from, to)).map(|(_, held)| held)).into_iter().flatten()
    }
}

fn digest_of(held: &Held) -> RefDigest {
    let digest = held.current.signed.digest()[..16].try_into().expect("16 of 32 bytes");
    RefDigest { name: held.current.record.name.clone(), digest }
}

#[cfg(test)]
mod tests;
