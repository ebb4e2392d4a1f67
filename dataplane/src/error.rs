//! Errors of the store in the words of the local socket.

use velo_socket::{Error, ErrorCode};
use velo_store::StoreError;

/// What the store says, as the local socket tells it.
pub fn store_error(error: &StoreError) -> Error {
    let code = match error {
        StoreError::NotFound(_) | StoreError::NotHere { .. } | StoreError::Missing { .. } => {
            ErrorCode::NotFound
        }
        StoreError::TimedOut { .. } => ErrorCode::TimedOut,
        StoreError::Full { .. } => ErrorCode::Full,
        StoreError::Mismatch { .. } | StoreError::Pack { .. } | StoreError::Tree { .. } => {
            ErrorCode::Mismatch
        }
        StoreError::Outboard { .. } | StoreError::Damaged(_) => ErrorCode::Mismatch,
        StoreError::Conflict { .. } | StoreError::SizeConflict { .. } | StoreError::SourceChanged { .. } => {
            ErrorCode::Conflict
        }
        StoreError::InUse(_) | StoreError::Locked { .. } => ErrorCode::InUse,
        StoreError::Closed | StoreError::Ended(_) => ErrorCode::Cancelled,
        StoreError::NotAFile
        | StoreError::NotSmall(_)
        | StoreError::Key { .. }
        | StoreError::NoOutboard(_)
        | StoreError::Stranger { .. }
        | StoreError::Incomplete { .. } => ErrorCode::Invalid,
        StoreError::Io { error, .. } if error.raw_os_error() == Some(libc::ENOSPC) => ErrorCode::Full,
        _ => ErrorCode::Io,
    };
    Error { code, message: error.to_string() }
}
