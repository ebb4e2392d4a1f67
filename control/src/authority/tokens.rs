//! Join tokens: what is kept of them, and how a use is taken.
//!
//! Only a hash of the secret is kept; the secret is 16 random bytes or more, so that the hash needs no salt. A use is on the disk before the
//! certificate leaves; the same node may ask again with the same token (an answer may have been lost) and costs no second use.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use velo_config::Paths;
use velo_object::NodeId;

use super::{AuthorityError, files};

/// Tokens that are good at one time.
const MOST_TOKENS: usize = 10_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    hash: String,
    uses_left: u32,
    expires_ms: u64,
    joined: Vec<String>,
}

/// The tokens of an authority, in `authority/tokens.json`.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    kept: Mutex<Vec<Kept>>,
}

fn hash(secret: &[u8]) -> String {
    hex::encode(blake3::derive_key("velo 2026-11 join token", secret))
}

impl Tokens {
    /// Those of a data directory.
    ///
    /// # Errors
    /// [`AuthorityError::Io`], [`AuthorityError::Malformed`].
    pub fn open(files: &Paths) -> Result<Self, AuthorityError> {
        let path = files.authority_tokens();
        let kept = if path.exists() {
            serde_json::from_slice(&files::read(&path)?).map_err(|error| AuthorityError::Malformed {
                what: path.display().to_string(),
                why: error.to_string(),
            })?
        } else {
            Vec::new()
        };
        Ok(Self { path, kept: Mutex::new(kept) })
    }

    fn write(&self, kept: &[Kept]) -> Result<(), AuthorityError> {
        let text = serde_json::to_vec(kept).expect("plain data");
        if text.len() as u64 > files::MOST_BYTES {
            return Err(AuthorityError::Refused(
                "too many nodes have joined with tokens that are still good: let some expire".to_owned(),
            ));
        }
        files::replace(&self.path, &text, 0o600)
    }

    /// Keeps a new token.
    ///
    /// # Errors
    /// [`AuthorityError::Refused`] where there are too many, or the numbers make no sense; [`AuthorityError::Io`].
    pub fn add(&self, secret: &[u8], uses: u32, expires_ms: u64, now_ms: u64) -> Result<(), AuthorityError> {
        if uses == 0 || expires_ms <= now_ms {
            return Err(AuthorityError::Refused(
                "a token needs one use or more and an expiry to come".to_owned(),
            ));
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next: Vec<Kept> = kept.iter().filter(|token| token.expires_ms > now_ms).cloned().collect();
        if next.len() >= MOST_TOKENS {
            return Err(AuthorityError::Refused(format!(
                "{MOST_TOKENS} tokens are good already: let some expire"
            )));
        }
        next.push(Kept { hash: hash(secret), uses_left: uses, expires_ms, joined: Vec::new() });
        self.write(&next)?;
        *kept = next;
        Ok(())
    }

    /// Takes one use for a node, durably.
    ///
    /// # Errors
    /// [`AuthorityError::Refused`] with the reason; [`AuthorityError::Io`].
    pub fn take(&self, secret: &[u8], node: NodeId, now_ms: u64) -> Result<(), AuthorityError> {
        let refused = |why: &str| {
            Err(AuthorityError::Refused(format!("the token {why}: make another with `velo cluster token`")))
        };
        let (hash, node) = (hash(secret), node.to_hex());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = kept.clone();
        // Hashes are compared, so that the time that it takes tells nothing about a secret.
        let Some(token) = next.iter_mut().find(|token| token.hash == hash) else {
            return refused("is not one of this cluster, or it has expired");
        };
        if token.expires_ms <= now_ms {
            return refused("has expired");
        }
        if token.joined.contains(&node) {
            return Ok(());
        }
        if token.uses_left == 0 {
            return refused("has been used up");
        }
        token.uses_left -= 1;
        token.joined.push(node);
        self.write(&next)?;
        *kept = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_and_expiry_outlive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Paths::new(dir.path().to_owned());
        std::fs::create_dir(files.authority_dir()).expect("a folder");
        let [a, b, c] = [1, 2, 3].map(|n| NodeId::from_bytes([n; 32]));
        let tokens = Tokens::open(&files).expect("none yet");
        tokens.add(b"secret of sixteen", 2, 1000, 0).expect("a token");
        assert!(tokens.add(b"other", 0, 1000, 0).is_err() && tokens.add(b"other", 1, 5, 5).is_err());
        tokens.take(b"secret of sixteen", a, 10).expect("first use");
        tokens.take(b"secret of sixteen", a, 10).expect("the same node again costs nothing");
        let tokens = Tokens::open(&files).expect("from the disk");
        tokens.take(b"secret of sixteen", b, 10).expect("second use");
        let tokens = Tokens::open(&files).expect("from the disk");
        assert!(tokens.take(b"secret of sixteen", c, 10).is_err(), "used up");
        assert!(tokens.take(b"another secret", a, 10).is_err(), "unknown");
        assert!(tokens.take(b"secret of sixteen", a, 1000).is_err(), "expired");
        let text = std::fs::read_to_string(files.authority_tokens()).expect("a file");
        assert!(!text.contains("sixteen") && !text.contains(&hex::encode("secret of sixteen")));
    }

    #[test]
    fn one_use_is_taken_once_by_many() {
        let dir = tempfile::tempdir().expect("a directory");
        let files = Paths::new(dir.path().to_owned());
        std::fs::create_dir(files.authority_dir()).expect("a folder");
        let tokens = Tokens::open(&files).expect("none yet");
        tokens.add(b"secret", 1, 1000, 0).expect("a token");
        let taken = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8u8)
                .map(|n| {
                    scope.spawn({
                        let tokens = &tokens;
                        move || tokens.take(b"secret", NodeId::from_bytes([n; 32]), 10).is_ok()
                    })
                })
                .collect();
            takers.into_iter().map(|taker| taker.join().expect("no panic")).filter(|&ok| ok).count()
        });
        assert_eq!(taken, 1);
    }
}
