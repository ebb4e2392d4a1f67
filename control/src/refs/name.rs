//! Names of refs: `models/llama-3:prod`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 200;

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a name: {why}")]
pub struct NameError {
    name: String,
    why: &'static str,
}

/// A valid name: parts of `a-z A-Z 0-9 . _ -` between slashes, each beginning with a letter or a digit, and at most one `:tag` at the end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

impl RefName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> Self {
        name.0
    }
}

impl TryFrom<String> for RefName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        match fault(&name) {
            None => Ok(Self(name)),
            Some(why) => Err(NameError { name: name.chars().take(MAX_NAME_BYTES).collect(), why }),
        }
    }
}

impl FromStr for RefName {
    type Err = NameError;
    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::try_from(name.to_owned())
    }
}

fn fault(name: &str) -> Option<&'static str> {
    let part = |part: &str| {
        let mut bytes = part.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let (path, tag) = match name.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (name, None),
    };
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Some("it must have 1 to 200 bytes");
    }
    if !path.split('/').all(part) || !tag.is_none_or(part) {
        return Some(
            "write parts of letters, digits, `.`, `_` and `-`, with `/` between and one `:tag` at the end",
        );
    }
    // Whatever reads as an id, or as the beginning of one, must mean that id.
    if matches!(path, "blob" | "tree") && tag.is_some() {
        return Some("`blob:` and `tree:` begin ids");
    }
    if name.len() >= 8 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Some(
            "it reads as the beginning of an id: put something before it that is no hexadecimal digit",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_pass_and_names_that_do_not() {
        for good in ["a", "models/llama-3:prod", "x.y/z_9/A:v1.2-rc", "deadbee", "cafe/deadbeef", "0123456g"]
        {
            assert!(good.parse::<RefName>().is_ok(), "{good}");
        }
        let long = "a".repeat(201);
        for bad in [
            "",
            "/a",
            "a/",
            "a//b",
            "a:",
            ":a",
            "a:b:c",
            "a:b/c",
            "..",
            "a/../b",
            ".a",
            "-a",
            "a b",
            "a\n",
            "ä",
            "a\0b",
            "blob:abc",
            "tree:x",
            "deadbeef",
            "DEADBEEF00",
            "a\\b",
            "a?b",
            &long,
        ] {
            assert!(bad.parse::<RefName>().is_err(), "{bad:?}");
        }
        let bytes = postcard::to_stdvec("../x").expect("a string");
        assert!(postcard::from_bytes::<RefName>(&bytes).is_err(), "checked when it is read, too");
    }
}
