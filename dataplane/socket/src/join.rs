//! Joining a cluster: the token that a person carries, and what a newcomer and the authority say to each other.
//!
//! The newcomer dials any address of the authority's velod with the protocol `velo-join/1`, checks that the cluster's certificate
//! that it is shown hashes to the token's cluster before it says a word, sends one [`JoinRequest`] and gets one [`Joined`], or a reason.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Member;

/// Version of the messages.
pub const JOIN_VERSION: u32 = 1;
/// The largest request or answer, in bytes.
pub const MAX_JOIN_BYTES: usize = 64 << 10;
/// The file in `identity/` where a newcomer keeps [`Joined::members`] (postcard), to find the cluster by.
pub const SEEDS_FILE: &str = "seeds";

const PREFIX: &str = "velo1.";

/// Leave to join: `velo1.` and the hexadecimal digits of cluster (32 bytes), secret (16), expiry (u64, little-endian) and the first 4 bytes of
/// the BLAKE3 hash of these, which catches a token that was cut or mistyped.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The cluster: BLAKE3 of the SubjectPublicKeyInfo of its authority.
    pub cluster: [u8; 32],
    /// What the authority knows it by.
    pub secret: [u8; 16],
    /// When it ends, in seconds since the Unix epoch.
    pub expires_s: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(of cluster {}, until {})", &hex::encode(self.cluster)[..12], self.expires_s)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = [&self.cluster[..], &self.secret, &self.expires_s.to_le_bytes()].concat();
        write!(f, "{PREFIX}{}{}", hex::encode(&body), hex::encode(checksum(&body)))
    }
}

/// Why a text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a whole token: copy all of what `velo cluster token` printed, from `velo1.` on")]
pub struct TokenError;

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TokenError)?;
        let bytes = hex::decode(digits).map_err(|_| TokenError)?;
        let (body, check) = bytes.split_at_checked(56).ok_or(TokenError)?;
        if check != checksum(body) {
            return Err(TokenError);
        }
        Ok(Self {
            cluster: body[..32].try_into().map_err(|_| TokenError)?,
            secret: body[32..48].try_into().map_err(|_| TokenError)?,
            expires_s: u64::from_le_bytes(body[48..].try_into().map_err(|_| TokenError)?),
        })
    }
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let hash = blake3::hash(body);
    hash.as_bytes()[..4].try_into().expect("4 of 32 bytes")
}

/// What a newcomer asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// [`JOIN_VERSION`].
    pub version: u32,
    /// From the token.
    pub secret: [u8; 16],
    /// A signing request (PKCS#10, DER) for the newcomer's ed25519 key.
    pub request: Vec<u8>,
}

/// What it gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// Its certificate, in DER.
    pub certificate: Vec<u8>,
    /// The authority's certificate, in DER.
    pub authority: Vec<u8>,
    /// Members to begin with.
    pub members: Vec<Member>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_paper_and_a_changed_one_does_not() {
        let token = Token { cluster: [7; 32], secret: [9; 16], expires_s: 1_800_000_000 };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse::<Token>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&hex::encode(token.secret)));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(changed.parse::<Token>().is_err(), "{changed}");
            assert!(text[..at].parse::<Token>().is_err());
        }
        assert!("".parse::<Token>().is_err() && "velo1.é".parse::<Token>().is_err());
    }
}
