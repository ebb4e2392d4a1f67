//! The control plane of Velo: who is in the cluster, what names mean, who has what, and the HTTP that people and programs use.
//!
//! velo-control moves no content: it speaks to velod over its local socket, and with the control services of other nodes by
//! calls that velod carries over its sessions. What decides (refs, membership records, tokens) has neither socket nor clock.
#![forbid(unsafe_code)]

pub mod authority;
pub mod client;
