//! The control plane of Velo: who is in the cluster, what names mean, who has what, and the HTTP that people and programs use.
//!
//! velo-control moves no content: it speaks to velod over its local socket, and with the control services of other nodes by
//! calls that velod carries over its sessions. What decides (refs, membership records, tokens) has neither socket nor clock.
#![forbid(unsafe_code)]

mod address;
mod admission;
mod answer;
pub mod authority;
pub mod client;
mod directory;
mod feed;
mod http;
pub mod identity;
pub mod membership;
mod metrics;
mod names;
mod node;
mod origin;
mod pull;
pub mod refs;
mod rpc;
mod run;
pub mod signed;
mod sync;
#[cfg(test)]
mod tests;
mod velod;

pub use run::run;

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
