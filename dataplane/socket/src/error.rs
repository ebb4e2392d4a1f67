//! What can go wrong between a program and velod.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Error, ErrorCode};

/// Why a frame could not be sent or received. The connection is of no use afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The other side has closed the connection (between two frames, where `midway` is false).
    #[error("the other side closed the connection{}", if *.midway { " in the middle of a message" } else { "" })]
    Closed {
        /// Whether a frame had begun.
        midway: bool,
    },
    /// A frame is larger than [`MAX_FRAME_BYTES`](crate::MAX_FRAME_BYTES).
    #[error("a message of {0} bytes is larger than the {max} bytes that are allowed", max = crate::MAX_FRAME_BYTES)]
    TooLarge(usize),
    /// The bytes of a frame are not a message of this version.
    #[error("a message cannot be read: {0}")]
    Malformed(String),
    /// More descriptors than [`MAX_DESCRIPTORS`](crate::MAX_DESCRIPTORS), or where none may be; those that came are closed.
    #[error("a message came with more descriptors than are allowed, or with descriptors in its middle")]
    Descriptors,
    /// The kernel could not hand over all descriptors: this process has too many open.
    #[error("descriptors were lost because too many files are open: raise the limit (`ulimit -n`)")]
    DescriptorsLost,
    /// The other side did not send or take the rest of a frame in time.
    #[error("the other side took longer than {0:?} over one message")]
    Slow(Duration),
    /// What the system said.
    #[error("local socket: {0}")]
    Io(#[from] io::Error),
}

/// Why velod could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("velod is not running: {}; start it with `velo up`", if *.stale { format!("nobody listens on {}", .path.display()) } else { format!("no socket at {}", .path.display()) })]
    NotRunning {
        /// Where it was looked for.
        path: PathBuf,
        /// Whether there is a socket that a former velod left.
        stale: bool,
    },
    /// This user may not use the socket.
    #[error("this user may not use {path}: run as velod's user or join the socket's group")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be connected to.
    #[error("{path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// velod speaks another version.
    #[error(
        "velod speaks version {velod} of the protocol and this program {own}: run the same release of velo"
    )]
    Version {
        /// velod's.
        velod: u32,
        /// Of this program.
        own: u32,
    },
    /// The connection failed.
    #[error("the connection to velod was lost: {0}")]
    Frame(#[from] FrameError),
    /// velod's answer does not belong to the question.
    #[error("velod answered {0} to another question: run the same release of velo")]
    Unexpected(String),
    /// velod could not do it.
    #[error(transparent)]
    Velod(#[from] Error),
}

impl ClientError {
    /// velod's error code, where velod has answered with one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Velod(error) => Some(error.code),
            _ => None,
        }
    }

    /// Whether velod cannot be spoken to (it is not running, or has gone away): trying later may help.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Connect { .. } | Self::Frame(_))
    }
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        let kind = match error.code() {
            Some(ErrorCode::NotFound) => io::ErrorKind::NotFound,
            Some(ErrorCode::TimedOut) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
