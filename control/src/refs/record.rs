//! One state of one name, signed by its writer, and the order that decides between two.

use std::cmp::{Ordering, Reverse};

use serde::{Deserialize, Serialize};
use velo_object::{NodeId, ObjectId};

use super::RefName;
use crate::signed::{Signed, Statement};

/// How many values a name remembers, the present one among them.
pub const HISTORY: usize = 10;

/// The largest record, in bytes: a name of 200 and 10 values are less, and a thousand of them fit into one message.
const MAX_RECORD_BYTES: usize = 1500;

/// A value that a name has or had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// What it meant; none: deleted.
    pub id: Option<ObjectId>,
    /// In which version.
    pub version: u64,
    /// When it was written.
    pub written_ms: u64,
}

/// The state of a name. Its signer is its writer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefRecord {
    /// The cluster, so that a record never passes in another.
    pub cluster: [u8; 32],
    /// The name.
    pub name: RefName,
    /// Rises when a name is created anew: after it was deleted, or after its writer was revoked. At most the time in ms.
    pub life: u64,
    /// When this life began. Of two lives with one number the older wins.
    pub created_ms: u64,
    /// Newest first; never empty, at most [`HISTORY`].
    pub values: Vec<Value>,
}

impl Statement for RefRecord {
    const DOMAIN: &'static str = "velo/ref/1";
}

/// A record whose signature and shape have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedRef {
    /// What it says.
    pub record: RefRecord,
    /// As it was signed.
    pub signed: Signed,
}

impl CheckedRef {
    /// Checks a record that came from somewhere.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn check(signed: Signed, cluster: &[u8; 32]) -> Result<Self, String> {
        if signed.body_bytes() > MAX_RECORD_BYTES {
            return Err("a record of a name that is too long".to_owned());
        }
        let record: RefRecord = signed.open().map_err(|error| error.to_string())?;
        let falling = record.values.windows(2).all(|pair| pair[0].version > pair[1].version);
        if record.cluster != *cluster {
            return Err(format!("the record of `{}` is of another cluster", record.name));
        }
        if record.values.is_empty() || record.values.len() > HISTORY || !falling {
            return Err(format!("the record of `{}` has no good history", record.name));
        }
        Ok(Self { record, signed })
    }

    /// Whether its numbers and times can be those of an honest writer; a record of another node must pass before it is merged.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn check_numbers(&self, now_ms: u64) -> Result<(), String> {
        let most = now_ms.saturating_add(super::CLOCK_SKEW_MS);
        let (record, value) = (&self.record, self.value());
        let numbers = [record.life, record.created_ms, value.version, value.written_ms];
        if numbers.into_iter().any(|number| number > most) {
            return Err(format!(
                "the record of `{}` has a number that no writer can have come to yet (or a clock is off by more than a day)",
                record.name
            ));
        }
        Ok(())
    }

    /// The writer.
    pub fn writer(&self) -> NodeId {
        self.signed.signer
    }

    /// The present value.
    pub fn value(&self) -> &Value {
        &self.record.values[0]
    }

    /// What the name means; none where it was deleted.
    pub fn id(&self) -> Option<ObjectId> {
        self.value().id
    }

    /// Greater wins. A total order, so that all nodes that have seen the same records keep the same one, whatever came first.
    fn rank(&self) -> impl Ord + use<> {
        let record = &self.record;
        (
            record.life,
            Reverse(record.created_ms),
            Reverse(self.writer()),
            self.value().version,
            self.signed.digest(),
        )
    }

    /// Whether this wins against another record of the same name.
    pub fn wins_against(&self, other: &Self) -> bool {
        self.rank().cmp(&other.rank()) == Ordering::Greater
    }

    /// Whether both are states of one creation.
    pub fn same_creation(&self, other: &Self) -> bool {
        let key = |of: &Self| (of.record.life, of.record.created_ms, of.writer());
        key(self) == key(other)
    }

    /// Whether both were created without knowledge of each other.
    pub fn rivals(&self, other: &Self) -> bool {
        self.record.life == other.record.life && !self.same_creation(other)
    }
}
