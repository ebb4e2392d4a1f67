//! Exit statuses, and which one an error deserves.

use std::fmt;

use velo_control::authority::AuthorityError;
use velo_socket::{ClientError, ErrorCode};

/// Done.
pub const DONE: u8 = 0;
/// It failed.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const USAGE: u8 = 2;
/// No such id, name, node or file.
pub const NOT_FOUND: u8 = 3;
/// The node does not run, or a peer cannot be reached.
pub const UNREACHABLE: u8 = 4;
/// Content is not what its id says.
pub const INTEGRITY: u8 = 5;
/// Interrupted by a signal.
pub const INTERRUPTED: u8 = 130;

/// An error with the status that it ends the program with.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    message: String,
}

impl Failure {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> anyhow::Error {
        Self { status: USAGE, message: message.into() }.into()
    }
    /// Something that was named is not there.
    pub fn not_found(message: impl Into<String>) -> anyhow::Error {
        Self { status: NOT_FOUND, message: message.into() }.into()
    }
    /// The node or a peer cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> anyhow::Error {
        Self { status: UNREACHABLE, message: message.into() }.into()
    }
    /// Damaged content.
    pub fn integrity(message: impl Into<String>) -> anyhow::Error {
        Self { status: INTEGRITY, message: message.into() }.into()
    }
    /// The user interrupted it.
    pub fn interrupted() -> anyhow::Error {
        Self { status: INTERRUPTED, message: "interrupted: the same command again goes on".into() }.into()
    }
    /// An error of a daemon or of control, by the name that HTTP gives to its kind.
    pub fn named(code: &str, message: impl Into<String>) -> anyhow::Error {
        let status = match code {
            "not_found" => NOT_FOUND,
            "ambiguous" | "invalid" => USAGE,
            "unreachable" | "timed_out" | "unavailable" => UNREACHABLE,
            "mismatch" => INTEGRITY,
            _ => FAILED,
        };
        Self { status, message: message.into() }.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The answer was given already and says that it failed: only the status is left to give.
#[derive(Debug)]
pub struct Said(pub u8);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit status {}", self.0)
    }
}

impl std::error::Error for Said {}

/// Whether the user knows already.
pub fn was_said(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Said>().is_some()
}

/// The status for `error`.
pub fn status(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return failure.status;
        }
        if let Some(Said(status)) = cause.downcast_ref() {
            return *status;
        }
        if let Some(error) = cause.downcast_ref::<velo_socket::Error>() {
            return of_code(error.code);
        }
        match cause.downcast_ref::<ClientError>() {
            Some(ClientError::Velod(error)) => return of_code(error.code),
            Some(error) if error.is_disconnected() => return UNREACHABLE,
            _ => {}
        }
        if matches!(cause.downcast_ref(), Some(velod::JoinError::Unreachable { .. })) {
            return UNREACHABLE;
        }
        if cause.is::<velo_object::TreeError>() {
            return INTEGRITY;
        }
        if cause.is::<velo_config::ConfigError>() || cause.is::<velo_object::IdError>() {
            return USAGE;
        }
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if io == Some(std::io::ErrorKind::NotFound) {
            return NOT_FOUND;
        }
        if matches!(cause.downcast_ref(), Some(AuthorityError::Absent(_))) {
            return NOT_FOUND;
        }
    }
    FAILED
}

fn of_code(code: ErrorCode) -> u8 {
    match code {
        ErrorCode::NotFound => NOT_FOUND,
        ErrorCode::Ambiguous | ErrorCode::Invalid => USAGE,
        ErrorCode::Unreachable | ErrorCode::TimedOut => UNREACHABLE,
        ErrorCode::Mismatch => INTEGRITY,
        _ => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_status_survives_its_context() {
        let wrapped = Err::<(), _>(Failure::not_found("no such name")).context("while getting");
        assert_eq!(status(&wrapped.unwrap_err()), NOT_FOUND);
        let socket = velo_socket::Error { code: ErrorCode::Mismatch, message: "damaged".into() };
        assert_eq!(status(&anyhow::Error::from(socket).context("x")), INTEGRITY);
        assert_eq!(status(&anyhow::anyhow!("anything")), FAILED);
    }
}
