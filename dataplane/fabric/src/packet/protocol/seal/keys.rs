//! Keys by HKDF-SHA256 (RFC 5869) from the secret that the session exports, and what each of them does to one frame.
//!
//! The secret of a direction is the expansion of the session's with: `velo packet 1`, the lengths of protection, direction and fabric (8
//! bytes each), the dialler's and the accepter's number of the path (4 bytes each), and the three texts themselves; numbers are
//! little-endian. The expansions of a direction's secret with `velo packet key`, `… iv`, `… mac` and `… token` are what their names say;
//! that with `… update` is the secret of the next generation.

use ring::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use subtle::ConstantTimeEq;

use super::Guard;
use crate::packet::protocol::frame::TAG_BYTES;

/// The secret of a path, known to its two ends: exported from their session.
#[derive(Clone)]
pub struct PathSecret(pub [u8; 32]);

impl std::fmt::Debug for PathSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PathSecret(…)")
    }
}

/// What tells a path from all others with the same secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathName<'a> {
    /// The name of the fabric.
    pub fabric: &'a str,
    /// The number that the side which dialled gave it.
    pub dialler: u32,
    /// The number that the other side gave it.
    pub accepter: u32,
}

/// Which side of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one that dialled.
    Dialler,
    /// The other.
    Accepter,
}

/// How the frames of a path are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Encrypted and authenticated.
    Sealed(Cipher),
    /// For networks where nobody listens: messages have a MAC, data a token and checksums, nothing is secret.
    Trusted,
}

/// An AEAD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-128-GCM: where the processor has instructions for it.
    Aes128Gcm,
    /// ChaCha20-Poly1305 (RFC 8439): elsewhere.
    ChaCha20Poly1305,
}

/// The guards of what is sent and of what is received.
pub(super) fn derive(
    secret: &PathSecret,
    name: &PathName<'_>,
    role: Role,
    protection: Protection,
) -> (Guard, Guard) {
    let root = Prk::new_less_safe(HKDF_SHA256, &secret.0);
    let direction = |from: Role| {
        let label: &[u8] = match from {
            Role::Dialler => b"from dialler",
            Role::Accepter => b"from accepter",
        };
        let kind: &[u8] = match protection {
            Protection::Sealed(Cipher::Aes128Gcm) => b"aes-128-gcm",
            Protection::Sealed(Cipher::ChaCha20Poly1305) => b"chacha20-poly1305",
            Protection::Trusted => b"trusted",
        };
        let info = Info {
            label: [kind, label],
            numbers: [name.dialler, name.accepter],
            fabric: name.fabric.as_bytes(),
        };
        let secret = info.expand(&root);
        match protection {
            Protection::Sealed(cipher) => Guard::Sealed(Box::new(Generation::new(cipher, 0, secret))),
            Protection::Trusted => Guard::Trusted(Trusted::new(&secret)),
        }
    };
    match role {
        Role::Dialler => (direction(Role::Dialler), direction(Role::Accepter)),
        Role::Accepter => (direction(Role::Accepter), direction(Role::Dialler)),
    }
}

/// The info of the first expansion. Every part has its length before it, so that no two infos are the same bytes.
struct Info<'a> {
    label: [&'a [u8]; 2],
    numbers: [u32; 2],
    fabric: &'a [u8],
}

impl Info<'_> {
    fn expand(&self, root: &Prk) -> Prk {
        let [kind, direction] = self.label;
        let lengths = [kind.len(), direction.len(), self.fabric.len()].map(|len| (len as u64).to_le_bytes());
        let numbers = self.numbers.map(u32::to_le_bytes);
        let parts =
            [b"velo packet 1", lengths.as_flattened(), numbers.as_flattened(), kind, direction, self.fabric];
        let mut secret = [0; 32];
        fill(root, &parts, &mut secret);
        Prk::new_less_safe(HKDF_SHA256, &secret)
    }
}

/// Any length that HKDF can give.
struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

fn fill(secret: &Prk, info: &[&[u8]], out: &mut [u8]) {
    secret
        .expand(info, Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("HKDF-SHA256 gives up to 8160 bytes, and this is at most 32");
}

/// The key of one direction, for the [`crate::packet::limits::KEY_UPDATE_PACKETS`] packets whose numbers divided by it give its index.
/// So each side knows the key of a packet from its number, and nothing is to be agreed on.
pub(super) struct Generation {
    index: u64,
    cipher: Cipher,
    secret: Prk,
    key: LessSafeKey,
    iv: [u8; 12],
}

impl Generation {
    fn new(cipher: Cipher, index: u64, secret: Prk) -> Self {
        let algorithm = match cipher {
            Cipher::Aes128Gcm => &AES_128_GCM,
            Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        let key = &mut key[..algorithm.key_len()];
        fill(&secret, &[b"velo packet key"], key);
        fill(&secret, &[b"velo packet iv"], &mut iv);
        let key = UnboundKey::new(algorithm, key).expect("the key has the algorithm's length");
        Self { index, cipher, secret, key: LessSafeKey::new(key), iv }
    }

    /// The one after it. From it nobody can compute this one.
    pub(super) fn next(&self) -> Self {
        let mut secret = [0; 32];
        fill(&self.secret, &[b"velo packet update"], &mut secret);
        Self::new(self.cipher, self.index + 1, Prk::new_less_safe(HKDF_SHA256, &secret))
    }

    pub(super) fn index(&self) -> u64 {
        self.index
    }

    pub(super) fn phase(&self) -> bool {
        self.index & 1 == 1
    }

    /// As in TLS 1.3 (RFC 8446, 5.3): the number, big-endian and padded to the left, added to the IV.
    fn nonce(&self, number: u64) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= number;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts what of `frame` is between its first `clear` bytes and the place of the tag, and puts the tag there.
    pub(super) fn seal(&self, number: u64, frame: &mut [u8], clear: usize) {
        let (clear, rest) = frame.split_at_mut(clear);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let sealed = self
            .key
            .seal_in_place_separate_tag(self.nonce(number), Aad::from(&*clear), text)
            .expect("a datagram is shorter than what an AEAD seals at once");
        tag.copy_from_slice(sealed.as_ref());
    }

    /// Decrypts what follows the first `clear` bytes of `frame` where it lies, and gives both. `None` where the tag does not fit: the bytes are then garbage.
    pub(super) fn open<'a>(
        &self,
        number: u64,
        frame: &'a mut [u8],
        clear: usize,
    ) -> Option<(&'a [u8], &'a [u8])> {
        let (clear, rest) = frame.split_at_mut(clear);
        let text = self.key.open_in_place(self.nonce(number), Aad::from(&*clear), rest).ok()?;
        Some((clear, text))
    }
}

/// What protects one direction on a trusted network.
pub(super) struct Trusted {
    key: [u8; 32],
    pub(super) token: [u8; 8],
}

impl Trusted {
    fn new(secret: &Prk) -> Self {
        let mut trusted = Self { key: [0; 32], token: [0; 8] };
        fill(secret, &[b"velo packet mac"], &mut trusted.key);
        fill(secret, &[b"velo packet token"], &mut trusted.token);
        trusted
    }

    pub(super) fn mac(&self, bytes: &[u8]) -> [u8; TAG_BYTES] {
        let mut mac = [0; TAG_BYTES];
        mac.copy_from_slice(&blake3::keyed_hash(&self.key, bytes).as_bytes()[..TAG_BYTES]);
        mac
    }

    /// Whether `frame` ends with the MAC of what is before. Takes the same time for every MAC.
    pub(super) fn verify(&self, frame: &[u8]) -> bool {
        let (bytes, mac) = frame.split_at(frame.len() - TAG_BYTES);
        self.mac(bytes).ct_eq(mac).into()
    }

    /// Whether it is our token. Takes the same time for every token.
    pub(super) fn is_token(&self, token: &[u8; 8]) -> bool {
        self.token.ct_eq(token).into()
    }
}
