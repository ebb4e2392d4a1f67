//! All members as this node knows them: their newest records, and whether they answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use velo_object::NodeId;
use velo_socket::Member;

use super::CheckedMember;
use crate::signed::Signed;

/// The most members.
pub const MAX_MEMBERS: usize = 10_000;

/// Whether a member answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Liveness {
    /// Gossip has not heard of it since this node began.
    Unknown,
    /// It answers.
    Alive,
    /// It does not answer any more.
    Down,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RosterEntry {
    /// Its newest record.
    pub member: CheckedMember,
    /// Whether it answers.
    pub liveness: Liveness,
}

impl RosterEntry {
    /// `alive`, `left`, `down` or `unknown`.
    pub fn state(&self) -> &'static str {
        match self.liveness {
            _ if self.member.record.left => "left",
            Liveness::Alive => "alive",
            Liveness::Down => "down",
            Liveness::Unknown => "unknown",
        }
    }
}

/// All members.
#[derive(Debug, Default)]
pub struct Roster {
    entries: BTreeMap<NodeId, RosterEntry>,
    /// Heard before the record came.
    early: BTreeMap<NodeId, Liveness>,
}

impl Roster {
    /// Takes a record over if it is newer than what is known. Whether it was.
    pub fn merge(&mut self, member: &CheckedMember) -> bool {
        let node = member.node();
        let full = self.entries.len() >= MAX_MEMBERS;
        match self.entries.get_mut(&node) {
            Some(entry) if entry.member.record.version >= member.record.version => false,
            Some(entry) => {
                entry.member = member.clone();
                true
            }
            None if full => false,
            None => {
                let liveness = self.early.remove(&node).unwrap_or(Liveness::Unknown);
                self.entries.insert(node, RosterEntry { member: member.clone(), liveness });
                true
            }
        }
    }

    /// What failure detection says. Whether it is news.
    pub fn set_liveness(&mut self, node: NodeId, liveness: Liveness) -> bool {
        match self.entries.get_mut(&node) {
            Some(entry) => std::mem::replace(&mut entry.liveness, liveness) != liveness,
            None => {
                if self.early.len() < MAX_MEMBERS {
                    self.early.insert(node, liveness);
                }
                false
            }
        }
    }

    /// Forgets a member.
    pub fn remove(&mut self, node: &NodeId) -> bool {
        self.early.remove(node);
        self.entries.remove(node).is_some()
    }

    /// One member.
    pub fn get(&self, node: &NodeId) -> Option<&RosterEntry> {
        self.entries.get(node)
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &RosterEntry> {
        self.entries.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Those who may answer a call: neither down nor gone, and not `except`.
    pub fn reachable(&self, except: NodeId) -> Vec<NodeId> {
        self.iter()
            .filter(|entry| entry.liveness != Liveness::Down && !entry.member.record.left)
            .map(|entry| entry.member.node())
            .filter(|node| *node != except)
            .collect()
    }

    /// The members other than `me` that gossip does not hear, and where it is (or was) reached; and whether it hears nobody at all.
    fn unheard(&self, me: NodeId) -> (Vec<(NodeId, SocketAddr)>, bool) {
        let others = || self.iter().filter(|entry| entry.member.node() != me);
        let alone = !others().any(|entry| entry.liveness == Liveness::Alive);
        let lost = others()
            .filter(|entry| entry.liveness != Liveness::Alive)
            .map(|entry| (entry.member.node(), entry.member.record.gossip))
            .collect();
        (lost, alone)
    }

    /// What velod is told: everybody. One that is down or has left stays in: it may be only its control plane, while velod goes on.
    pub fn members(&self) -> Vec<Member> {
        self.iter()
            .map(|entry| {
                let record = &entry.member.record;
                Member {
                    node: entry.member.node(),
                    name: record.name.clone(),
                    addresses: record.addresses.clone(),
                    zone: record.zone.clone(),
                }
            })
            .collect()
    }

    /// Who is known in which version, for anti-entropy.
    pub fn versions(&self) -> Vec<(NodeId, u64)> {
        self.iter().map(|entry| (entry.member.node(), entry.member.record.version)).collect()
    }

    /// The records that somebody who knows `theirs` lacks, and whether he knows newer ones.
    pub fn compare(&self, theirs: &[(NodeId, u64)]) -> (Vec<Signed>, bool) {
        let known: BTreeMap<&NodeId, u64> = theirs.iter().map(|(node, version)| (node, *version)).collect();
        let lacks = |entry: &&RosterEntry| {
            known.get(&entry.member.node()).is_none_or(|&version| version < entry.member.record.version)
        };
        let give = self.iter().filter(lacks).map(|entry| entry.member.signed.clone()).collect();
        let newer = theirs
            .iter()
            .any(|(node, version)| self.get(node).is_none_or(|entry| entry.member.record.version < *version));
        (give, newer)
    }

    /// The member that a person means: a whole id, a prefix of 8 digits or more, or a name that only one has.
    pub fn find(&self, text: &str) -> Vec<NodeId> {
        let digits = text.to_ascii_lowercase();
        let prefix = digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        self.iter()
            .filter(|entry| {
                entry.member.record.name == text
                    || prefix && entry.member.node().to_hex().starts_with(&digits)
            })
            .map(|entry| entry.member.node())
            .collect()
    }
}

/// Calls members that gossip has lost: every second while nobody answers, every half minute where only some do not.
#[derive(Debug, Default)]
pub struct Seeker {
    ticks: u32,
}

impl Seeker {
    /// Whom to call now; to be asked once a second.
    pub fn tick(&mut self, roster: &Roster, me: NodeId) -> Vec<(NodeId, SocketAddr)> {
        self.ticks = self.ticks.wrapping_add(1);
        let (lost, alone) = roster.unheard(me);
        if alone || self.ticks.is_multiple_of(30) { lost } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemberRecord;
    use super::*;
    use crate::signed::{Signer, tests::signer};

    fn record(version: u64, left: bool) -> MemberRecord {
        MemberRecord {
            cluster: [0; 32],
            version,
            name: "n".to_owned(),
            addresses: vec!["127.0.0.1:7440".parse().expect("an address")],
            gossip: "127.0.0.1:7440".parse().expect("an address"),
            zone: "z".to_owned(),
            free_bytes: 1,
            fabrics: vec!["tcp".to_owned()],
            software: "0.1.0".to_owned(),
            authority: false,
            left,
        }
    }

    fn checked(signer: &Signer, record: &MemberRecord) -> Result<CheckedMember, String> {
        CheckedMember::check(signer.sign(record), &[0; 32])
    }

    #[test]
    fn only_newer_records_count_and_liveness_may_come_first() {
        let (a, b) = (signer(), signer());
        let mut roster = Roster::default();
        assert!(!roster.set_liveness(a.public(), Liveness::Alive));
        let second = checked(&a, &record(2, false)).expect("good");
        assert!(roster.merge(&second) && !roster.merge(&second));
        assert!(!roster.merge(&checked(&a, &record(1, false)).expect("good")));
        assert_eq!(roster.get(&a.public()).expect("there").state(), "alive");
        assert_eq!(roster.compare(&[(a.public(), 3)]), (vec![], true));
        assert_eq!(roster.compare(&[(a.public(), 1)]), (vec![second.signed.clone()], false));
        assert!(roster.compare(&[(a.public(), 2), (b.public(), 1)]).1, "somebody unknown");

        roster.merge(&checked(&b, &record(1, false)).expect("good"));
        assert_eq!(roster.reachable(a.public()), [b.public()]);
        assert!(roster.set_liveness(b.public(), Liveness::Down));
        assert!(roster.reachable(a.public()).is_empty());
        assert_eq!(roster.members().len(), 2, "velod may still reach one that gossip does not");
        roster.merge(&checked(&b, &record(2, true)).expect("good"));
        assert_eq!((roster.members().len(), roster.get(&b.public()).expect("there").state()), (2, "left"));
        assert_eq!(roster.find("n").len(), 2);
        assert_eq!(roster.find(&a.public().to_hex()[..8]), [a.public()]);
        assert!(roster.find("nobody").is_empty());
    }

    #[test]
    fn records_are_checked() {
        let a = signer();
        let bad = [
            MemberRecord { name: "x".repeat(65), ..record(1, false) },
            MemberRecord { zone: "a\nb".to_owned(), ..record(1, false) },
            MemberRecord { cluster: [1; 32], ..record(1, false) },
            MemberRecord {
                addresses: vec!["127.0.0.1:1".parse().expect("an address"); 9],
                ..record(1, false)
            },
            MemberRecord { fabrics: vec!["x".to_owned(); 9], ..record(1, false) },
        ];
        assert!(bad.iter().all(|record| checked(&a, record).is_err()));
        let mut signed = a.sign(&record(1, false));
        signed.signer = signer().public();
        assert!(CheckedMember::check(signed, &[0; 32]).is_err(), "signed by another");
    }
}
