//! What tests over RDMA have in common.

use velo_fabric::rdma::device::{Plugin, addresses};

use crate::{Settings, skip};

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
