//! What tests over RDMA have in common.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use velo_fabric::rdma::device::{Plugin, addresses};

use crate::content::random_file;
use crate::{Cluster, Node, PATIENCE, Settings, skip};

/// Whether there is a device and the plugin for it; says so where not. A guest that was made for it must have both.
pub fn ready() -> bool {
    let why = match Plugin::open(None) {
        _ if addresses().is_empty() => "this host has no RDMA device".to_owned(),
        Ok(_) => return true,
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("VELO_RDMA_REQUIRED").is_none(), "{why}");
    skip(&format!("velod over RDMA: {why}"));
    false
}

/// Nodes that read each other's memory, with more in `[fabric.rdma]`.
pub fn settings(more: &str) -> Settings {
    let extra = format!("[fabric.rdma]\ntrusted = true\n{more}[dataplane]\nmemory = \"96MiB\"\n");
    Settings { fabric: Some("rdma"), extra, ..Settings::default() }
}

/// Puts a file; its id.
pub fn put(node: &Node, path: &Path) -> String {
    node.json(&["put", path.to_str().expect("UTF-8")])["id"].as_str().expect("an id").to_owned()
}

/// Gets content to where it may be replaced, and keeps it nowhere else.
pub fn get(node: &Node, id: &str, dest: &Path) {
    node.ok(&["get", "--no-keep", id, dest.to_str().expect("UTF-8")]);
}

/// Reads small things until RDMA carries what is read from `provider`: in an emulated machine its proof takes longer than streams wait.
pub fn warm_up(cluster: &Cluster, reader: usize, provider: usize) {
    let (small, begun) = (cluster.path("small"), Instant::now());
    let id = cluster.nodes[provider].id();
    let node = &cluster.nodes[reader];
    for seed in 100.. {
        random_file(&small, seed, 1 << 20);
        let root = put(&cluster.nodes[provider], &small);
        get(node, &root, &cluster.path("copy"));
        let peers: Value = node.json(&["peers"]);
        let peers = peers["peers"].as_array().cloned().unwrap_or_default();
        if peers.iter().any(|peer| peer["node"] == id.as_str() && peer["fabric"] == "rdma") {
            return;
        }
        let (status, log) = (|| node.ok(&["status"]), || cluster.nodes[provider].log_tail());
        assert!(
            begun.elapsed() < PATIENCE,
            "RDMA carries nothing:\n{}\n{}\n{}",
            status(),
            node.log_tail(),
            log()
        );
    }
}
