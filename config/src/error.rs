//! What can be wrong with a configuration, and where it stands.

use std::fmt;
use std::path::PathBuf;

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is the default.
    Default,
    /// In a file, on this line (from 1).
    File(PathBuf, usize),
    /// In an environment variable.
    Environment(String),
    /// In a flag.
    Flag,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path, line) => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag => f.write_str("a flag"),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// No such section or key.
    #[error("{place}: unknown key `{key}`; did you mean `{nearest}`?")]
    UnknownKey {
        /// What was written.
        key: String,
        /// The known key that is most like it.
        nearest: String,
        /// Where.
        place: Place,
    },
    /// The value is not of the key's type.
    #[error("{place}: `{key}`: {message}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
        /// Where.
        place: Place,
    },
    /// The value is outside the key's limits.
    #[error("{place}: `{key}` must be {must}, not {is}")]
    Limit {
        /// The key.
        key: &'static str,
        /// What it must be.
        must: String,
        /// What it is.
        is: String,
        /// Where.
        place: Place,
    },
    /// There is no default place for the data.
    #[error("no data directory: set `node.data_dir`, the flag --data-dir, XDG_DATA_HOME or HOME")]
    NoDataDirectory,
}
