//! `velo peers`: the members of the cluster, as this node sees them.

use serde_json::json;
use velo_control::client::PeerView;

use super::stat::short;
use crate::node::Node;
use crate::output;

/// List the members of the cluster
#[derive(Debug, clap::Args)]
pub struct Peers {}

impl Peers {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let peers: Vec<PeerView> = node.control()?.get("/v1/peers", &[])?;
        node.output.answer(&json!({ "ok": true, "peers": peers }), || {
            let row = |peer: &PeerView| {
                vec![
                    short(&peer.node).to_owned(),
                    if peer.this { format!("{} (this)", peer.name) } else { peer.name.clone() },
                    peer.state.clone(),
                    peer.zone.clone(),
                    peer.addresses.join(" "),
                    peer.fabric.as_ref().map_or("-".to_owned(), |fabric| {
                        format!("{fabric}{}", output::link(peer.rtt_us, peer.loss_ppm))
                    }),
                    if peer.addresses.is_empty() { "-".to_owned() } else { output::bytes(peer.free_bytes) },
                ]
            };
            let rows: Vec<Vec<String>> = peers.iter().map(row).collect();
            output::table(&["node", "name", "state", "zone", "addresses", "fabric", "free"], &[6], &rows)
        })
    }
}
