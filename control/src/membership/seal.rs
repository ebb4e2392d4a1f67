//! The keys of gossip, and how a datagram is sealed with them.
//!
//! A datagram, version 1: `b"VG"`, 1, 0, epoch u32, sender 32 bytes, generation u64, counter u64 (little-endian: 56 bytes, all of it associated data),
//! then the sealed bytes and a tag of 16. Each sender seals with a key of its own, derived from the epoch's key, its id and its generation, so that
//! the counter alone makes a nonce. What does not open is dropped without an answer; what was opened once does not open again.

use std::collections::{BTreeMap, HashMap};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use velo_object::NodeId;

use crate::signed::{Signed, Statement};

const HEADER_BYTES: usize = 56;
/// What sealing adds to a datagram, in bytes.
pub const MAX_SEALED_OVERHEAD_BYTES: usize = HEADER_BYTES + 16;
/// How long the key before the current one is still believed.
const GRACE_MS: u64 = 10_000;
/// Senders whose counters are remembered.
const MAX_SENDERS: usize = 16_384;
/// Datagrams of one sender may overtake each other by this many.
const WINDOW: u64 = 128;

/// The key of one epoch, signed by the authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GossipKey {
    /// The cluster.
    pub cluster: [u8; 32],
    /// Rises at every revocation.
    pub epoch: u32,
    /// The list of revocations that whoever has this key must have: so nobody hands it to a node without knowing that it is out.
    pub revoked_serial: u64,
    /// The key.
    pub key: [u8; 32],
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GossipKey(epoch {})", self.epoch)
    }
}

impl Statement for GossipKey {
    const DOMAIN: &'static str = "velo/gossip-key/1";
}

impl GossipKey {
    /// A new key for an epoch.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn generate(cluster: [u8; 32], epoch: u32, revoked_serial: u64) -> Result<Self, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self { cluster, epoch, revoked_serial, key })
    }
}

/// The current key and the one before it.
#[derive(Debug, Default)]
pub struct Keyring {
    current: Option<(GossipKey, Signed)>,
    previous: Option<(GossipKey, u64)>,
}

impl Keyring {
    /// Takes over a key of a later epoch, if the authority signed it and the list of revocations that it asks for is known (`heard`). Whether
    /// it was one.
    pub fn merge(
        &mut self,
        signed: &Signed,
        cluster: &[u8; 32],
        authority: NodeId,
        heard: u64,
        now_ms: u64,
    ) -> bool {
        let Ok(key) = Self::check(signed, cluster, authority, heard) else { return false };
        if self.epoch() >= Some(key.epoch) {
            return false;
        }
        let before = self.current.replace((key, signed.clone()));
        self.previous = before.map(|(key, _)| (key, now_ms + GRACE_MS));
        true
    }

    /// A key of whatever epoch, if the authority signed it and the list of revocations that it asks for is known (`heard`).
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn check(
        signed: &Signed,
        cluster: &[u8; 32],
        authority: NodeId,
        heard: u64,
    ) -> Result<GossipKey, String> {
        let key = signed.open_by::<GossipKey>(authority).map_err(|error| error.to_string())?;
        if key.cluster != *cluster {
            return Err("a gossip key of another cluster".to_owned());
        }
        if key.revoked_serial > heard {
            return Err(format!(
                "a gossip key that goes with list {} of revocations; only list {heard} is known here",
                key.revoked_serial
            ));
        }
        Ok(key)
    }

    /// The current epoch.
    pub fn epoch(&self) -> Option<u32> {
        self.current.as_ref().map(|(key, _)| key.epoch)
    }

    /// The current key as the authority signed it, to be handed to another member.
    pub fn signed(&self) -> Option<&Signed> {
        self.current.as_ref().map(|(_, signed)| signed)
    }

    fn current(&self) -> Option<&GossipKey> {
        self.current.as_ref().map(|(key, _)| key)
    }

    fn by_epoch(&self, epoch: u32, now_ms: u64) -> Option<&GossipKey> {
        let previous = self.previous.as_ref().filter(|(_, until_ms)| now_ms < *until_ms).map(|(key, _)| key);
        [self.current(), previous].into_iter().flatten().find(|key| key.epoch == epoch)
    }
}

/// Why a datagram is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    /// It is no datagram of this version.
    Format,
    /// Its epoch's key is not known, or not believed any more.
    Epoch(u32),
    /// It does not open.
    Seal,
    /// It was opened before, or is too old to know.
    Replay,
    /// It comes from this node.
    Own,
}

#[derive(Default)]
struct Window {
    generation: u64,
    highest: u64,
    seen: u128,
}

impl Window {
    /// Whether this counter is new; remembers it.
    fn admit(&mut self, generation: u64, counter: u64) -> bool {
        if generation < self.generation {
            return false;
        }
        if generation > self.generation {
            *self = Self { generation, highest: counter, seen: 1 };
            return true;
        }
        if counter > self.highest {
            let ahead = counter - self.highest;
            self.seen = if ahead >= WINDOW { 0 } else { self.seen << ahead };
            self.seen |= 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        let fresh = behind < WINDOW && self.seen >> behind & 1 == 0;
        if fresh {
            self.seen |= 1 << behind;
        }
        fresh
    }
}

/// Seals what this node sends and opens what it receives.
pub struct Sealer {
    node: NodeId,
    generation: u64,
    counter: u64,
    windows: HashMap<NodeId, Window>,
    keys: BTreeMap<(u32, NodeId, u64), LessSafeKey>,
}

fn sender_key(key: &GossipKey, sender: &NodeId, generation: u64) -> LessSafeKey {
    let material = [&key.key[..], sender.as_bytes(), &generation.to_le_bytes()].concat();
    let bytes = blake3::derive_key("velo 2026-11 gossip datagram", &material);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("32 bytes"))
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Sealer {
    /// For a node; `generation` must be higher than at any earlier start.
    pub fn new(node: NodeId, generation: u64) -> Self {
        Self { node, generation, counter: 0, windows: HashMap::new(), keys: BTreeMap::new() }
    }

    /// Seals a datagram with the current key; none where there is no key yet.
    pub fn seal(&mut self, keyring: &Keyring, plain: &[u8]) -> Option<Vec<u8>> {
        let key = keyring.current()?;
        self.counter += 1;
        let mut datagram = Vec::with_capacity(plain.len() + MAX_SEALED_OVERHEAD_BYTES);
        datagram.extend_from_slice(b"VG\x01\x00");
        datagram.extend_from_slice(&key.epoch.to_le_bytes());
        datagram.extend_from_slice(self.node.as_bytes());
        datagram.extend_from_slice(&self.generation.to_le_bytes());
        datagram.extend_from_slice(&self.counter.to_le_bytes());
        let mut sealed = plain.to_vec();
        let nonce = nonce(self.counter);
        self.key(key, self.node, self.generation)
            .seal_in_place_append_tag(nonce, Aad::from(&datagram), &mut sealed)
            .ok()?;
        datagram.extend_from_slice(&sealed);
        Some(datagram)
    }

    /// Opens a datagram: gives its sender and what it says.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        &mut self,
        keyring: &Keyring,
        datagram: &[u8],
        now_ms: u64,
    ) -> Result<(NodeId, Vec<u8>), OpenError> {
        let (header, sealed) = datagram.split_at_checked(HEADER_BYTES).ok_or(OpenError::Format)?;
        if &header[..4] != b"VG\x01\x00" {
            return Err(OpenError::Format);
        }
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        let epoch = u32::from_le_bytes(header[4..8].try_into().expect("4 bytes"));
        let sender = NodeId::from_bytes(header[8..40].try_into().expect("32 bytes"));
        let (generation, counter) = (number(40), number(48));
        if sender == self.node {
            return Err(OpenError::Own);
        }
        let key = keyring.by_epoch(epoch, now_ms).ok_or(OpenError::Epoch(epoch))?;
        // Keys are only kept for senders whose datagrams have opened.
        let known = self.keys.contains_key(&(epoch, sender, generation));
        let fresh = (!known).then(|| sender_key(key, &sender, generation));
        let opener = fresh.as_ref().unwrap_or_else(|| &self.keys[&(epoch, sender, generation)]);
        let mut plain = sealed.to_vec();
        let len = opener
            .open_in_place(nonce(counter), Aad::from(header), &mut plain)
            .map_err(|_| OpenError::Seal)?
            .len();
        plain.truncate(len);
        if self.windows.len() >= MAX_SENDERS && !self.windows.contains_key(&sender) {
            return Err(OpenError::Replay);
        }
        if !self.windows.entry(sender).or_default().admit(generation, counter) {
            return Err(OpenError::Replay);
        }
        if !known {
            self.key(key, sender, generation);
        }
        Ok((sender, plain))
    }

    fn key(&mut self, key: &GossipKey, sender: NodeId, generation: u64) -> &LessSafeKey {
        if self.keys.len() >= 2 * MAX_SENDERS {
            self.keys.clear();
        }
        self.keys
            .entry((key.epoch, sender, generation))
            .or_insert_with(|| sender_key(key, &sender, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signed::{Signer, tests::signer};

    fn keyring(authority: &Signer, epochs: std::ops::RangeInclusive<u32>) -> (Keyring, Vec<Signed>) {
        let mut keyring = Keyring::default();
        let keys = epochs.map(|epoch| {
            authority.sign(&GossipKey { cluster: [0; 32], epoch, revoked_serial: 0, key: [epoch as u8; 32] })
        });
        let keys: Vec<_> = keys.collect();
        keys.iter().for_each(|key| assert!(keyring.merge(key, &[0; 32], authority.public(), 0, 0)));
        (keyring, keys)
    }

    #[test]
    fn opens_once_and_only_unchanged() {
        let authority = signer();
        let (keyring, _) = keyring(&authority, 1..=1);
        let [a, b] = [1, 2].map(|n| NodeId::from_bytes([n; 32]));
        let (mut from, mut to) = (Sealer::new(a, 1), Sealer::new(b, 1));
        let datagram = from.seal(&keyring, b"hello").expect("a key");
        assert_eq!(datagram.len(), 5 + MAX_SEALED_OVERHEAD_BYTES);
        for at in 0..datagram.len() {
            let mut changed = datagram.clone();
            changed[at] ^= 1;
            assert!(to.open(&keyring, &changed, 0).is_err(), "byte {at}");
            assert!(to.open(&keyring, &datagram[..at], 0).is_err(), "cut at {at}");
        }
        assert_eq!(to.open(&keyring, &datagram, 0), Ok((a, b"hello".to_vec())));
        assert_eq!(to.open(&keyring, &datagram, 0), Err(OpenError::Replay));
        assert_eq!(from.open(&keyring, &datagram, 0), Err(OpenError::Own));
        let later: Vec<_> = (0..200).map(|_| from.seal(&keyring, b"x").expect("a key")).collect();
        assert!(to.open(&keyring, &later[150], 0).is_ok());
        assert!(to.open(&keyring, &later[149], 0).is_ok(), "overtaken");
        assert_eq!(to.open(&keyring, &later[0], 0), Err(OpenError::Replay), "too old to know");
        let old = later[199].clone();
        let mut restarted = Sealer::new(a, 2);
        assert!(to.open(&keyring, &restarted.seal(&keyring, b"x").expect("a key"), 0).is_ok());
        assert_eq!(to.open(&keyring, &old, 0), Err(OpenError::Replay), "of an earlier start");
    }

    #[test]
    fn epochs_follow_each_other() {
        let (authority, other) = (signer(), signer());
        let [a, b] = [1, 2].map(|n| NodeId::from_bytes([n; 32]));
        let (old, keys) = keyring(&authority, 1..=1);
        let (mut new, _) = keyring(&authority, 1..=1);
        let (mut from, mut to) = (Sealer::new(a, 1), Sealer::new(b, 1));
        let next = GossipKey { cluster: [0; 32], epoch: 2, revoked_serial: 1, key: [9; 32] };
        assert!(!new.merge(&other.sign(&next), &[0; 32], authority.public(), 1, 100), "another signer");
        assert!(!new.merge(&authority.sign(&next), &[1; 32], authority.public(), 1, 100), "another cluster");
        assert!(
            !new.merge(&authority.sign(&next), &[0; 32], authority.public(), 0, 100),
            "its list is not known"
        );
        assert!(new.merge(&authority.sign(&next), &[0; 32], authority.public(), 1, 100));
        assert!(!new.merge(&keys[0], &[0; 32], authority.public(), 1, 100), "an older one");
        let datagram = from.seal(&old, b"x").expect("a key");
        assert!(to.open(&new, &datagram, 101).is_ok(), "for a short time");
        let datagram = from.seal(&old, b"x").expect("a key");
        assert_eq!(to.open(&new, &datagram, 100 + GRACE_MS), Err(OpenError::Epoch(1)));
        let datagram = from.seal(&new, b"x").expect("a key");
        assert_eq!(to.open(&old, &datagram, 0), Err(OpenError::Epoch(2)));
        assert!(Sealer::new(a, 1).seal(&Keyring::default(), b"x").is_none());
    }
}
