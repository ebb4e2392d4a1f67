//! The encrypted backup of an authority.
//!
//! Format, version 1: `VELOBAK1`, then little-endian u32 each memory (KiB), passes and lanes of Argon2id, 16 bytes of salt, 12 bytes of nonce,
//! then ChaCha20-Poly1305 of the contents (postcard) with all that stands before as associated data.
//! Source: RFC 9106 (Argon2), second recommended setting: 64 MiB, 3 passes.

use argon2::{Algorithm, Argon2, Params, Version};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use velo_socket::Member;

use super::AuthorityError;

const MAGIC: &[u8; 8] = b"VELOBAK1";
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;
const HEADER_BYTES: usize = 8 + 12 + 16 + 12;
/// What a backup may ask of the machine that reads it.
const MOST_MEMORY_KIB: u32 = 1 << 20;

/// What is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Contents {
    pub(super) key: String,
    pub(super) certificate: String,
    pub(super) tokens: Option<Vec<u8>>,
    pub(super) revoked: Option<Vec<u8>>,
    /// Whom a machine that is new to the cluster can ask.
    pub(super) members: Vec<Member>,
}

fn malformed(why: &str) -> AuthorityError {
    AuthorityError::Malformed { what: "the backup".to_owned(), why: why.to_owned() }
}

fn key(header: &[u8], passphrase: &str) -> Result<LessSafeKey, AuthorityError> {
    let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let (memory, passes, lanes) = (number(8), number(12), number(16));
    if memory > MOST_MEMORY_KIB || passes > 64 || lanes > 16 {
        return Err(malformed("it asks for more memory or time than any backup of Velo"));
    }
    let params = Params::new(memory, passes, lanes, Some(32)).map_err(|e| malformed(&e.to_string()))?;
    let mut bytes = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), &header[20..36], &mut bytes)
        .map_err(|e| malformed(&e.to_string()))?;
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("32 bytes")))
}

pub(super) fn seal(contents: &Contents, passphrase: &str) -> Result<Vec<u8>, AuthorityError> {
    if passphrase.is_empty() {
        return Err(malformed("the passphrase is empty"));
    }
    let mut header = MAGIC.to_vec();
    [MEMORY_KIB, PASSES, LANES].iter().for_each(|number| header.extend_from_slice(&number.to_le_bytes()));
    let mut random = [0; 28];
    getrandom::fill(&mut random).map_err(|e| malformed(&e.to_string()))?;
    header.extend_from_slice(&random);
    let mut sealed = postcard::to_stdvec(contents).expect("plain data");
    key(&header, passphrase)?
        .seal_in_place_append_tag(nonce(&header), Aad::from(&header), &mut sealed)
        .map_err(|_| malformed("it could not be sealed"))?;
    Ok([header, sealed].concat())
}

pub(super) fn open(backup: &[u8], passphrase: &str) -> Result<Contents, AuthorityError> {
    let (header, sealed) =
        backup.split_at_checked(HEADER_BYTES).ok_or_else(|| malformed("it is too short"))?;
    if &header[..8] != MAGIC {
        return Err(malformed("it is no backup of Velo, or of another version"));
    }
    let mut sealed = sealed.to_vec();
    let opened = key(header, passphrase)?
        .open_in_place(nonce(header), Aad::from(header), &mut sealed)
        .map_err(|_| AuthorityError::Passphrase)?;
    postcard::from_bytes(opened).map_err(|_| malformed("its contents cannot be read"))
}

fn nonce(header: &[u8]) -> Nonce {
    Nonce::try_assume_unique_for_key(&header[36..48]).expect("12 bytes")
}
