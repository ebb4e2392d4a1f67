//! What the guest has been told is done: the host writes it down from the [`Event`]s that the guest reports, and the
//! guest's next life is held to it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One line of the guest's output. A `Try…` is said before the command, the other after its success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The nodes are being started.
    Starting,
    /// Everything that the ledger holds was found; this many roots, of which so many were read back in full.
    Checked {
        /// Roots held to the ledger.
        roots: usize,
        /// Of these, trees written out and compared with their source.
        read_back: usize,
    },
    /// Puts, pulls, refs and removals begin.
    Working,
    /// The content made from `key` is being put on the first node.
    TryPut {
        /// Which content.
        key: u64,
    },
    /// It is there, pinned.
    Put {
        /// Which content.
        key: u64,
        /// Its id.
        id: String,
    },
    /// The second node is getting it.
    TryPull {
        /// Which content.
        key: u64,
    },
    /// It is also on the second node.
    Pulled {
        /// Which content.
        key: u64,
    },
    /// It is pinned on the second node.
    Pinned {
        /// Which content.
        key: u64,
    },
    /// It is being removed from both nodes.
    TryRemove {
        /// Which content.
        key: u64,
    },
    /// It is removed.
    Removed {
        /// Which content.
        key: u64,
    },
    /// A name is being set.
    TryRef {
        /// Which name.
        name: String,
        /// To which id.
        id: String,
    },
    /// A name has this id: it was set, or it was found so after a stop in the middle of setting it.
    Ref {
        /// Which name.
        name: String,
        /// Its id.
        id: String,
    },
}

/// A content that was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its id.
    pub id: String,
    /// Whether the second node has said that it has it.
    pub pulled: bool,
    /// Whether the second node has said that it has pinned it.
    pub pinned: bool,
    /// Whether anything was acknowledged since the last check.
    pub fresh: bool,
}

/// What one name may be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// What it was set to, if that was acknowledged.
    pub acknowledged: Option<String>,
    /// What it was being set to since.
    pub tried: Vec<String>,
}

impl Name {
    /// Whether the name may have this id now (or none).
    pub fn may_be(&self, id: Option<&str>) -> bool {
        self.acknowledged.as_deref() == id || id.is_some_and(|id| self.tried.iter().any(|tried| tried == id))
    }
}

/// All that was acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// What must be there, by key.
    pub contents: BTreeMap<u64, Content>,
    /// What was put or not: no answer came.
    pub unanswered: Option<u64>,
    /// Being removed: may be there or not.
    pub leaving: BTreeMap<u64, String>,
    /// Removed: must not be pinned.
    pub removed: BTreeMap<u64, String>,
    /// The names.
    pub names: BTreeMap<String, Name>,
    /// The next unused key.
    pub next_key: u64,
}

impl Ledger {
    /// Writes an event down.
    pub fn record(&mut self, event: &Event) {
        match event {
            Event::Starting | Event::Working | Event::TryPull { .. } => {}
            Event::Checked { .. } => self.contents.values_mut().for_each(|content| content.fresh = false),
            Event::TryPut { key } => {
                self.unanswered = Some(*key);
                self.next_key = self.next_key.max(key + 1);
            }
            Event::Put { key, id } => {
                self.unanswered = None;
                let content = Content { id: id.clone(), pulled: false, pinned: false, fresh: true };
                self.contents.insert(*key, content);
            }
            Event::Pulled { key } => self.update(*key, |content| content.pulled = true),
            Event::Pinned { key } => self.update(*key, |content| content.pinned = true),
            Event::TryRemove { key } => {
                if let Some(content) = self.contents.remove(key) {
                    self.leaving.insert(*key, content.id);
                }
            }
            Event::Removed { key } => {
                if let Some(id) = self.leaving.remove(key) {
                    self.removed.insert(*key, id);
                }
            }
            Event::TryRef { name, id } => self.names.entry(name.clone()).or_default().tried.push(id.clone()),
            Event::Ref { name, id } => {
                self.names.insert(name.clone(), Name { acknowledged: Some(id.clone()), tried: Vec::new() });
            }
        }
    }

    fn update(&mut self, key: u64, change: impl FnOnce(&mut Content)) {
        if let Some(content) = self.contents.get_mut(&key) {
            content.fresh = true;
            change(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_must_be_there_and_what_was_tried_may_be() {
        let mut ledger = Ledger::default();
        let text = |id: &str| id.to_owned();
        for event in [
            Event::TryPut { key: 0 },
            Event::Put { key: 0, id: text("x") },
            Event::TryPut { key: 1 },
            Event::TryRef { name: text("n"), id: text("x") },
            Event::Pulled { key: 0 },
        ] {
            ledger.record(&event);
        }
        assert!(ledger.contents[&0].pulled && !ledger.contents[&0].pinned);
        assert_eq!((ledger.unanswered, ledger.next_key), (Some(1), 2));
        assert!(ledger.names["n"].may_be(None) && ledger.names["n"].may_be(Some("x")));
        ledger.record(&Event::Ref { name: text("n"), id: text("x") });
        ledger.record(&Event::TryRef { name: text("n"), id: text("y") });
        assert!(!ledger.names["n"].may_be(None) && !ledger.names["n"].may_be(Some("z")));
        assert!(ledger.names["n"].may_be(Some("x")) && ledger.names["n"].may_be(Some("y")));
        ledger.record(&Event::TryRemove { key: 0 });
        assert!(ledger.contents.is_empty() && ledger.removed.is_empty());
        ledger.record(&Event::Removed { key: 0 });
        assert_eq!(ledger.removed[&0], "x");
    }
}
