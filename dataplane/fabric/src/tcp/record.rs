//! TLS 1.3 records (RFC 8446, section 5), sealed and opened in place with the keys that the handshake left.
//!
//! A record is a header of 5 bytes (type 23, version 0x0303, length), the ciphertext of content and one byte of inner
//! type, and a tag of 16 bytes. Both sides change keys after [`RECORDS_PER_KEY`] records at the latest, by the KeyUpdate
//! message of TLS. The traffic secret stays inside rustls, so the keys of the next generations come from an exporter
//! secret of the direction instead; the derivation is RFC 8446's (section 7.2), starting from that secret.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use rustls::ConnectionTrafficSecrets;

use super::tls::{DirectionKeys, TlsError};
use crate::ProtocolError;

pub(super) const HEADER_BYTES: usize = 5;
pub(super) const TAG_BYTES: usize = 16;
/// The most content of one record.
pub(super) const CONTENT_BYTES: usize = 1 << 14;
/// What a record adds to its content.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// The most bytes of a record after its header.
pub(super) const MAX_BODY_BYTES: usize = CONTENT_BYTES + 256;

/// Far below the 2^24.5 full records that AES-GCM allows under one key: 128 GiB.
pub(super) const RECORDS_PER_KEY: u64 = 1 << 23;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];
/// Sent before a stream is closed: level warning, close_notify.
pub(super) const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// The keys of one direction.
struct Generation {
    algorithm: &'static aead::Algorithm,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    /// What the next generation is derived from.
    update_secret: [u8; 32],
}

impl Generation {
    fn new(keys: &DirectionKeys) -> Result<Self, TlsError> {
        let (algorithm, key, iv) = match &keys.secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(TlsError::Suite),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| TlsError::Suite)?;
        let iv = iv.as_ref().try_into().map_err(|_| TlsError::Suite)?;
        let (sequence, update_secret) = (keys.sequence, keys.update_secret);
        Ok(Self { algorithm, key: LessSafeKey::new(key), iv, sequence, update_secret })
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn update(&mut self) {
        let mut secret = [0; 32];
        expand_label(&self.update_secret, b"traffic upd", &mut secret);
        self.update_secret = secret;
        let mut key = [0; 32];
        let key = &mut key[..self.algorithm.key_len()];
        expand_label(&secret, b"key", key);
        expand_label(&secret, b"iv", &mut self.iv);
        let key = UnboundKey::new(self.algorithm, key).expect("the key is as long as the algorithm says");
        self.key = LessSafeKey::new(key);
        self.sequence = 0;
    }
}

/// HKDF-Expand-Label of RFC 8446, section 7.1, with SHA-256 and no context.
fn expand_label(secret: &[u8; 32], label: &[u8], out: &mut [u8]) {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [6 + label.len() as u8];
    let info: [&[u8]; 5] = [&length, &label_length, b"tls13 ", label, &[0]];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret)
        .expand(&info, Length(out.len()))
        .and_then(|okm| okm.fill(out))
        .expect("a few bytes are within what HKDF gives");
}

/// Seals what is sent.
pub(super) struct Sealer {
    generation: Generation,
}

impl Sealer {
    pub(super) fn new(keys: &DirectionKeys) -> Result<Self, TlsError> {
        Ok(Self { generation: Generation::new(keys)? })
    }

    /// Seals the `len` bytes of content that stand in `record` after room for the header, with room for
    /// [`OVERHEAD_BYTES`] in all. Returns the record's length.
    pub(super) fn seal(&mut self, record: &mut [u8], len: usize) -> usize {
        self.seal_as(APPLICATION_DATA, record, len)
    }

    /// Seals an alert into `record`.
    pub(super) fn seal_alert(&mut self, record: &mut [u8], alert: [u8; 2]) -> usize {
        record[HEADER_BYTES..HEADER_BYTES + 2].copy_from_slice(&alert);
        self.seal_as(ALERT, record, 2)
    }

    /// A KeyUpdate where it is time for one, before the next record. Returns its length, or 0.
    pub(super) fn key_update(&mut self, record: &mut [u8]) -> usize {
        if self.generation.sequence < RECORDS_PER_KEY {
            return 0;
        }
        record[HEADER_BYTES..HEADER_BYTES + KEY_UPDATE.len()].copy_from_slice(&KEY_UPDATE);
        let len = self.seal_as(HANDSHAKE, record, KEY_UPDATE.len());
        self.generation.update();
        len
    }

    fn seal_as(&mut self, kind: u8, record: &mut [u8], len: usize) -> usize {
        let body = len + 1 + TAG_BYTES;
        let [high, low] = (body as u16).to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        record[..HEADER_BYTES].copy_from_slice(&header);
        record[HEADER_BYTES + len] = kind;
        let (sealed, tag_room) = record[HEADER_BYTES..HEADER_BYTES + body].split_at_mut(len + 1);
        let nonce = self.generation.next_nonce();
        let tag = self
            .generation
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), sealed)
            .expect("a record is far shorter than what the cipher allows");
        tag_room.copy_from_slice(tag.as_ref());
        HEADER_BYTES + body
    }
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// This many bytes of content, at the front of where it was opened into.
    Data(usize),
    /// Nothing for the stream.
    Nothing,
    /// The peer sends no more.
    Closed,
}

/// Opens what is received.
pub(super) struct Opener {
    generation: Generation,
}

/// The length of the body that a record header announces.
pub(super) fn body_bytes(header: &[u8; HEADER_BYTES]) -> Result<usize, ProtocolError> {
    let [kind, _, _, high, low] = *header;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if kind != APPLICATION_DATA {
        return Err(ProtocolError::Record("its type is not application data"));
    }
    if !(1 + TAG_BYTES..=MAX_BODY_BYTES).contains(&len) {
        return Err(ProtocolError::Record("its length is out of range"));
    }
    Ok(len)
}

impl Opener {
    pub(super) fn new(keys: &DirectionKeys) -> Result<Self, TlsError> {
        Ok(Self { generation: Generation::new(keys)? })
    }

    /// Opens the record body that ends `space` and begins at `from`, and moves its content to the front of `space`.
    pub(super) fn open(
        &mut self,
        header: &[u8; HEADER_BYTES],
        space: &mut [u8],
        from: usize,
    ) -> Result<Opened, ProtocolError> {
        if self.generation.sequence > RECORDS_PER_KEY {
            return Err(ProtocolError::Record("too many under one key"));
        }
        let nonce = self.generation.next_nonce();
        let plain = self
            .generation
            .key
            .open_within(nonce, Aad::from(header), space, from..)
            .map_err(|_| ProtocolError::Record("it does not decrypt"))?;
        let Some(last) = plain.iter().rposition(|&byte| byte != 0) else {
            return Err(ProtocolError::Record("it has no inner type"));
        };
        let (kind, content) = (plain[last], &plain[..last]);
        match kind {
            APPLICATION_DATA if content.len() <= CONTENT_BYTES => Ok(Opened::Data(content.len())),
            APPLICATION_DATA => Err(ProtocolError::Record("its content is too long")),
            HANDSHAKE if content == KEY_UPDATE || content == KEY_UPDATE_REQUESTED => {
                self.generation.update();
                Ok(Opened::Nothing)
            }
            HANDSHAKE => Err(ProtocolError::Record("a handshake message that data streams do not have")),
            ALERT => match *content {
                [_, 0] => Ok(Opened::Closed),
                [_, alert] => Err(ProtocolError::Alert(alert)),
                _ => Err(ProtocolError::Record("an alert of a wrong length")),
            },
            _ => Err(ProtocolError::Record("an inner type that does not exist")),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn keys(sequence: u64) -> DirectionKeys {
        let secrets =
            ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([3; 32]), iv: Iv::from([4; 12]) };
        DirectionKeys { sequence, secrets, update_secret: [5; 32] }
    }

    fn sealed(sealer: &mut Sealer, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; content.len() + OVERHEAD_BYTES];
        record[HEADER_BYTES..HEADER_BYTES + content.len()].copy_from_slice(content);
        assert_eq!(sealer.seal(&mut record, content.len()), record.len());
        record
    }

    fn open(opener: &mut Opener, record: &[u8]) -> Result<(Opened, Vec<u8>), ProtocolError> {
        let header = record.first_chunk().unwrap();
        assert_eq!(body_bytes(header), Ok(record.len() - HEADER_BYTES));
        // With a gap before it, which the content moves over.
        let mut space = [&[0xcc; 7], &record[HEADER_BYTES..]].concat();
        let opened = opener.open(header, &mut space, 7)?;
        let len = if let Opened::Data(len) = opened { len } else { 0 };
        space.truncate(len);
        Ok((opened, space))
    }

    #[test]
    fn records_open_in_their_order_only() {
        let (mut sealer, mut opener) = (Sealer::new(&keys(9)).unwrap(), Opener::new(&keys(9)).unwrap());
        for len in [1, 15, 16, 17, 1000, CONTENT_BYTES] {
            let content: Vec<u8> = (0..len).map(|i| i as u8).collect();
            assert_eq!(open(&mut opener, &sealed(&mut sealer, &content)), Ok((Opened::Data(len), content)));
        }
        let (first, second) = (sealed(&mut sealer, b"first"), sealed(&mut sealer, b"second"));
        assert!(open(&mut opener, &second).is_err());
        let mut opener = Opener::new(&keys(9 + 6)).unwrap();
        assert!(open(&mut opener, &first).is_ok());
        assert!(open(&mut opener, &first).is_err(), "replayed");
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let record = sealed(&mut Sealer::new(&keys(0)).unwrap(), b"content");
        for at in 0..record.len() {
            let mut bad = record.clone();
            bad[at] ^= 0x40;
            let header = bad.first_chunk().unwrap();
            let opened = Opener::new(&keys(0)).unwrap().open(header, &mut bad[HEADER_BYTES..].to_vec(), 0);
            assert!(opened.is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_change_in_time_and_again() {
        let (mut sealer, mut opener) = (Sealer::new(&keys(0)).unwrap(), Opener::new(&keys(0)).unwrap());
        let mut space = [0; 64];
        let mut seen = Vec::new();
        for _ in 0..3 {
            assert_eq!(sealer.key_update(&mut space), 0, "not yet");
            sealer.generation.sequence = RECORDS_PER_KEY;
            opener.generation.sequence = RECORDS_PER_KEY;
            let len = sealer.key_update(&mut space);
            assert_eq!(open(&mut opener, &space[..len]), Ok((Opened::Nothing, Vec::new())));
            let record = sealed(&mut sealer, b"under the new key");
            assert_eq!(open(&mut opener, &record).unwrap().1, b"under the new key");
            assert!(!seen.contains(&record), "the key did not change");
            seen.push(record);
            // Both begin to count anew.
            assert_eq!((sealer.generation.sequence, opener.generation.sequence), (1, 1));
        }
    }

    #[test]
    fn a_peer_that_does_not_change_its_key_is_refused() {
        let (mut sealer, mut opener) =
            (Sealer::new(&keys(RECORDS_PER_KEY)).unwrap(), Opener::new(&keys(RECORDS_PER_KEY)).unwrap());
        assert!(open(&mut opener, &sealed(&mut sealer, b"the last")).is_ok());
        assert_eq!(
            open(&mut opener, &sealed(&mut sealer, b"one too many")),
            Err(ProtocolError::Record("too many under one key"))
        );
    }

    #[test]
    fn alerts_and_other_types() {
        let (mut sealer, mut opener) = (Sealer::new(&keys(0)).unwrap(), Opener::new(&keys(0)).unwrap());
        let mut space = [0; 64];
        let len = sealer.seal_alert(&mut space, CLOSE_NOTIFY);
        assert_eq!(open(&mut opener, &space[..len]).unwrap().0, Opened::Closed);
        let len = sealer.seal_alert(&mut space, [2, 80]);
        assert_eq!(open(&mut opener, &space[..len]), Err(ProtocolError::Alert(80)));
        for (kind, content) in [(HANDSHAKE, [4, 0]), (0, [0, 0]), (99, [1, 1])] {
            space[HEADER_BYTES..HEADER_BYTES + 2].copy_from_slice(&content);
            let len = sealer.seal_as(kind, &mut space, 2);
            assert!(matches!(open(&mut opener, &space[..len]), Err(ProtocolError::Record(_))), "type {kind}");
        }
        for header in [[22, 3, 3, 0, 40], [23, 3, 3, 0, 16], [23, 3, 3, 0x41, 1], [0; 5], [0xff; 5]] {
            assert!(body_bytes(&header).is_err(), "{header:?}");
        }
    }
}
