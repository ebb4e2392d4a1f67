//! Where the files of a node lie under its data directory.

use std::path::{Path, PathBuf};

/// The layout of a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    data_dir: PathBuf,
}

macro_rules! files {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        impl Paths {
            $($(#[$doc])* pub fn $name(&self) -> PathBuf { self.data_dir.join($path) })*
        }
    };
}

impl Paths {
    /// The layout under `data_dir`.
    pub fn new(data_dir: PathBuf) -> Self {
        Self { data_dir }
    }

    /// The data directory itself.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

files! {
    /// The node's key and certificates (0700).
    identity_dir = "identity";
    /// The node's ed25519 key, PKCS#8 PEM (0600).
    node_key = "identity/node.key";
    /// The node's certificate, PEM.
    node_certificate = "identity/node.crt";
    /// The certificate of the cluster's authority, PEM.
    ca_certificate = "identity/ca.crt";
    /// The signed list of revoked certificates.
    revoked = "identity/revoked";
    /// The authority, only where `velo cluster init` ran (0700).
    authority_dir = "authority";
    /// The authority's key (0600).
    authority_key = "authority/ca.key";
    /// The authority's certificate.
    authority_certificate = "authority/ca.crt";
    /// Join tokens that were handed out.
    authority_tokens = "authority/tokens.json";
    /// The L1 store.
    store_dir = "store";
    /// What exists while the node runs.
    run_dir = "run";
    /// velod's local socket (0660).
    socket = "run/velod.sock";
    /// `{pid, node, listen:[addr]}`, written when velod is ready.
    velod_ready = "run/velod.json";
    /// `{pid, http, gossip}`, written when velo-control is ready.
    control_ready = "run/control.json";
    /// The bearer token of the HTTP interface (0640).
    http_token = "run/token";
}
