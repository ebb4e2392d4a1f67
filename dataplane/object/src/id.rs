//! Names: 32-byte BLAKE3 hashes of content, and the public keys that name nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The kind before the colon is none of `blob`, `tree`.
    #[error("`{0}` is no kind of object: write `blob:` or `tree:` and hexadecimal digits")]
    Kind(String),
    /// Something else than hexadecimal digits.
    #[error("`{0}` is not an id: it must be hexadecimal digits")]
    Digits(String),
    /// Not 64 digits where a whole id is needed.
    #[error("`{text}` has {digits} hexadecimal digits; an id has 64")]
    Length {
        /// What was given.
        text: String,
        /// How many digits it has.
        digits: usize,
    },
    /// A prefix with fewer than 8 digits.
    #[error("`{0}` is too short: give at least 8 hexadecimal digits of the id")]
    ShortPrefix(String),
}

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The name that these 32 bytes are.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// 64 lower-case hexadecimal digits.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }

            /// Parses exactly 64 hexadecimal digits.
            ///
            /// # Errors
            /// [`IdError::Digits`] or [`IdError::Length`].
            pub fn from_hex(text: &str) -> Result<Self, IdError> {
                if !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(IdError::Digits(text.to_owned()));
                }
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| IdError::Length { text: text.to_owned(), digits: text.len() })?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}…)", stringify!($name), &self.to_hex()[..12])
            }
        }
    };
}

bytes32! {
    /// The name of a byte string: its BLAKE3 hash. Written `blob:<64 hex>`.
    BlobId
}
bytes32! {
    /// The name of a node: its ed25519 public key.
    NodeId
}

impl BlobId {
    /// The id of `content`, hashed on this thread.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blob:{}", self.to_hex())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_hex())
    }
}

impl FromStr for NodeId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::from_hex(text)
    }
}

impl NodeId {
    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        self.to_hex()[..12].to_owned()
    }
}

/// What the bytes behind an id mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// Any byte string.
    Blob,
    /// The table of a directory.
    Tree,
}

impl ObjectKind {
    /// `blob` or `tree`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Tree => "tree",
        }
    }

    fn parse(text: &str) -> Result<Self, IdError> {
        match text {
            "blob" => Ok(Self::Blob),
            "tree" => Ok(Self::Tree),
            _ => Err(IdError::Kind(text.to_owned())),
        }
    }
}

/// An id with its kind: `blob:<64 hex>` or `tree:<64 hex>`. A tree is a blob whose bytes are a tree table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// What the bytes mean.
    pub kind: ObjectKind,
    /// The BLAKE3 hash of the bytes.
    pub blob: BlobId,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.blob.to_hex())
    }
}

impl FromStr for ObjectId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (kind, digits) = match text.split_once(':') {
            Some((kind, digits)) => (ObjectKind::parse(kind)?, digits),
            None => (ObjectKind::Blob, text),
        };
        Ok(Self { kind, blob: BlobId::from_hex(digits)? })
    }
}

/// The first 8 to 64 digits of an id, as a person types it, with or without a kind before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdPrefix {
    /// The kind, where one was given.
    pub kind: Option<ObjectKind>,
    digits: String,
}

impl IdPrefix {
    /// The lower-case digits.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// Whether `id` begins with these digits.
    pub fn matches(&self, id: &BlobId) -> bool {
        id.to_hex().starts_with(&self.digits)
    }

    /// The smallest id with this prefix: where a scan in order of ids begins.
    pub fn first(&self) -> BlobId {
        let padded = format!("{:0<64}", self.digits);
        BlobId::from_hex(&padded).expect("only hexadecimal digits, 64 of them")
    }

    /// The whole id, where all 64 digits were given.
    pub fn whole(&self) -> Option<BlobId> {
        BlobId::from_hex(&self.digits).ok()
    }
}

impl FromStr for IdPrefix {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (kind, digits) = match text.split_once(':') {
            Some((kind, digits)) => (Some(ObjectKind::parse(kind)?), digits),
            None => (None, text),
        };
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(IdError::Digits(text.to_owned()));
        }
        match digits.len() {
            0..=7 => Err(IdError::ShortPrefix(text.to_owned())),
            8..=64 => Ok(Self { kind, digits: digits.to_ascii_lowercase() }),
            digits => Err(IdError::Length { text: text.to_owned(), digits }),
        }
    }
}
