//! Names: signed, versioned records that every member holds, with one writer each. No clock, no socket: time and keys are arguments.
//!
//! The node that creates a name writes it; the others hand their changes to it ([`Step::Forward`]) and answer reads themselves.
//! Records merge by a total order (see `record.rs`), so that members converge whatever way and however often records reach them.
//!
//! **Numbers.** A life and a version may not exceed the time in ms (plus [`CLOCK_SKEW_MS`]): no honest name changes faster than once per ms, however
//! long a cluster was cut in two, and no record leaves so little room above it that nothing can win against it any more.
//!
//! **Whom a name belongs to.** Only records of members are believed, but the order does not ask who held a name before: a member that missed a
//! deletion, or the revocation of a writer, would refuse what all others hold, and they would differ for ever. So an insider can make itself the
//! writer of a name; it is visible (the displaced writer warns and counts it), gains nothing that asking the writer would not have given it, and
//! ends with its revocation: then any member may take the name over.
//!
//! **Deleted names.** A deletion is a record as well (a tombstone), which wins against what it deleted. Tombstones do not count against [`MAX_REFS`];
//! one that is older than [`TOMBSTONE_LIFE_MS`] leaves every node but its writer's ([`Refs::forgettable`]) and the comparison of names. Should a member
//! that was away for longer bring the name back, its writer's tombstone wins against it at their next exchange. A name that is created anew begins at
//! a life that no tombstone older than that has (`first_life`), so that a tombstone deletes nothing that came after it was forgotten.

mod name;
mod record;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use velo_object::{NodeId, ObjectId};

pub use name::{MAX_NAME_BYTES, NameError, RefName};
pub use record::{CheckedRef, HISTORY, RefRecord, Value};

use crate::signed::{Signed, Signer};

/// The most names in a cluster that mean something.
pub const MAX_REFS: usize = 100_000;
/// The most deleted names that a node remembers; beyond that the oldest are forgotten.
const MAX_TOMBSTONES: usize = 100_000;
/// How long all members remember that a name was deleted: 90 days.
pub const TOMBSTONE_LIFE_MS: u64 = 90 * 24 * 3600 * 1000;
/// How far the clocks of two members may differ: a day.
pub const CLOCK_SKEW_MS: u64 = 24 * 3600 * 1000;

/// The life of a name that nobody knows: the same for all who create it in one span of [`TOMBSTONE_LIFE_MS`], more than in any span before.
fn first_life(now_ms: u64) -> u64 {
    (now_ms - now_ms % TOMBSTONE_LIFE_MS).max(1)
}

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
    /// Its numbers are used up.
    #[error("`{0}` has no versions left: use another name")]
    Spent(String),
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
    /// Whether the name means something.
    fn is_live(&self) -> bool {
        self.current.id().is_some()
    }

    /// Whether it was deleted so long ago that members need not remember it.
    fn is_forgotten(&self, now_ms: u64) -> bool {
        !self.is_live() && self.current.value().written_ms.saturating_add(TOMBSTONE_LIFE_MS) < now_ms
    }

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
    /// Nothing: there is no room for another name.
    Full,
}

/// All names, as this node knows them.
#[derive(Debug)]
pub struct Refs {
    cluster: [u8; 32],
    held: BTreeMap<RefName, Held>,
    /// How many of them mean something.
    live: usize,
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
        Self { cluster, held: BTreeMap::new(), live: 0 }
    }

    /// Puts back what the book kept.
    pub fn restore(&mut self, held: Held) {
        self.live += usize::from(held.is_live());
        let before = self.held.insert(held.current.record.name.clone(), held);
        self.live -= before.map_or(0, |before| usize::from(before.is_live()));
    }

    /// Deleted names that this node need not remember any more: `own` is the writer of those that it does.
    pub fn forgettable(&self, own: NodeId, now_ms: u64) -> Vec<RefName> {
        let mut dead: Vec<&Held> = self.held.values().filter(|held| !held.is_live()).collect();
        dead.sort_by_key(|held| held.current.value().written_ms);
        let beyond = dead.len().saturating_sub(MAX_TOMBSTONES);
        let forgettable = dead
            .iter()
            .enumerate()
            .filter(|(at, held)| *at < beyond || (held.is_forgotten(now_ms) && held.current.writer() != own));
        forgettable.map(|(_, held)| held.current.record.name.clone()).collect()
    }

    /// Forgets a deleted name.
    pub fn forget(&mut self, name: &RefName) {
        if self.held.get(name).is_some_and(|held| !held.is_live()) {
            self.held.remove(name);
        }
    }

    /// Whether more deletions are remembered than there is room for.
    pub fn is_crowded(&self) -> bool {
        self.held.len() - self.live > MAX_TOMBSTONES
    }

    /// What is known of a name, deleted or not.
    pub fn get(&self, name: &RefName) -> Option<&Held> {
        self.held.get(name)
    }

    /// A name that means something.
    pub fn live(&self, name: &RefName) -> Option<&Held> {
        self.get(name).filter(|held| held.is_live())
    }

    /// All names that mean something, in order.
    pub fn iter_live(&self) -> impl Iterator<Item = &Held> {
        self.held.values().filter(|held| held.is_live())
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
        let live = known.filter(|held| held.is_live());
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
        if live.is_none() && self.live >= MAX_REFS {
            return Err(RefError::Full);
        }
        let mut values = known.map(|held| held.current.record.values.clone()).unwrap_or_default();
        let spent = || RefError::Spent(name.to_string());
        let version = values.first().map_or(0, |value| value.version).checked_add(1).ok_or_else(spent)?;
        values.insert(0, Value { id: change.id, version, written_ms: now_ms });
        values.truncate(HISTORY);
        let (life, created_ms) = match known {
            Some(held) if live.is_some() && held.current.writer() == signer.public() => {
                (held.current.record.life, held.current.record.created_ms)
            }
            Some(held) => {
                let next = held.current.record.life.checked_add(1).ok_or_else(spent)?;
                (next.max(first_life(now_ms)), now_ms)
            }
            None => (first_life(now_ms), now_ms),
        };
        let record = RefRecord { cluster: self.cluster, name: name.clone(), life, created_ms, values };
        let signed = signer.sign(&record);
        Ok(Step::Write(Box::new(CheckedRef { record, signed })))
    }

    /// What would stand if this record were merged: the entry for the book, where it would be another than now.
    pub fn preview(&self, new: &CheckedRef, now_ms: u64) -> (Merged, Option<Held>) {
        let lost_of = |lost: &CheckedRef| Lost {
            id: lost.id(),
            writer: lost.writer(),
            created_ms: lost.record.created_ms,
        };
        let known = self.held.get(&new.record.name);
        if new.id().is_some() && self.live >= MAX_REFS && !known.is_some_and(Held::is_live) {
            return (Merged::Full, None);
        }
        let Some(held) = known else {
            let held = Held { current: new.clone(), lost: None };
            if held.is_forgotten(now_ms) || (!held.is_live() && self.is_crowded()) {
                return (Merged::Known, None);
            }
            return (Merged::New, Some(held));
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
    pub fn merge(&mut self, new: &CheckedRef, now_ms: u64) -> (Merged, Option<Held>) {
        let (merged, held) = self.preview(new, now_ms);
        if let Some(held) = &held {
            self.restore(held.clone());
        }
        (merged, held)
    }

    /// One hash over all records but long deleted ones: equal where two nodes know the same.
    pub fn digest(&self, now_ms: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.held.values().filter(|held| !held.is_forgotten(now_ms)).for_each(|held| {
            hasher.update(&held.current.signed.digest());
        });
        *hasher.finalize().as_bytes()
    }

    /// Up to `limit` digests after a name, in order.
    pub fn page(&self, after: Option<&RefName>, limit: usize, now_ms: u64) -> Vec<RefDigest> {
        let held = self.between(after, None).filter(|held| !held.is_forgotten(now_ms));
        held.take(limit).map(digest_of).collect()
    }

    /// Compares a page of another node with what is known here. The page covers all names after `after` up to its last one, or up to the end
    /// where `last` says so. Gives the records that the other should have, and the names that it should send.
    pub fn compare(
        &self,
        after: Option<&RefName>,
        page: &[RefDigest],
        last: bool,
        now_ms: u64,
    ) -> (Vec<Signed>, Vec<RefName>) {
        let theirs: BTreeMap<&RefName, &[u8; 16]> = page.iter().map(|d| (&d.name, &d.digest)).collect();
        let until = if last { None } else { page.last().map(|d| &d.name) };
        let give = self
            .between(after, until)
            .filter(|held| match theirs.get(&held.current.record.name) {
                Some(digest) => **digest != digest_of(held).digest,
                None => !held.is_forgotten(now_ms),
            })
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
