//! `velo up`: runs this node until it is interrupted.

use anyhow::bail;
use serde_json::json;
use velo_socket::Client;

use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::node::Node;
use crate::supervise::{self, Ready};

/// Run this node: data plane and control plane, until Ctrl-C
#[derive(Debug, clap::Args)]
pub struct Up {
    /// First join the cluster of this node (where its velod listens)
    #[arg(long, value_name = "HOST:PORT", requires = "token")]
    join: Option<String>,
    /// What `velo cluster token` printed
    #[arg(long, env = "VELO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    #[command(flatten)]
    parent: super::daemon::Parent,
}

impl Up {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        self.parent.follow()?;
        if let Some(address) = &self.join {
            if node.paths().node_certificate().exists() {
                node.output.note("this node has joined a cluster already: --join is not needed any more");
            } else {
                let token = self.token.as_deref().unwrap_or_default();
                let token = token.parse().map_err(|error| Failure::usage(format!("--token: {error}")))?;
                join(node, address, &token)?;
            }
        }
        supervise::check_identity(node)?;
        if let Ok(velod) = Client::connect(&node.paths().socket()) {
            let dir = node.data_dir().display();
            bail!(
                "the node in {dir} runs already (velod is process {}): stop it, or choose another data directory",
                velod.pid()
            );
        }
        let interrupt = Interrupt::catch()?;
        supervise::run(node, &interrupt, |ready| announce(node, ready))
    }
}

fn join(node: &Node, address: &str, token: &velo_socket::join::Token) -> anyhow::Result<()> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        return Err(Failure::usage(format!(
            "--join {address}: write HOST:PORT, where that node's velod listens"
        )));
    }
    let joined = velod::join(node.data_dir(), address, token)?;
    node.output.note(format!("joined cluster {} as {}", hex::encode(&token.cluster[..6]), joined.short()));
    Ok(())
}

fn announce(node: &Node, ready: &Ready) -> anyhow::Result<()> {
    let Ready { velod, control } = ready;
    let answer = json!({
        "ok": true,
        "node": velod.node,
        "name": node.config.node_name(),
        "zone": node.config.node.zone,
        "data": velod.listen,
        "gossip": control.gossip,
        "http": control.http,
        "data_dir": node.data_dir(),
        "pids": { "velod": velod.pid, "velo_control": control.pid },
    });
    node.output.answer(&answer, || {
        format!(
            "velo is up: {} ({}) listens on {}, gossip {}, http://{}, data in {}",
            node.config.node_name(),
            super::stat::short(&velod.node),
            velod.listen.join(" "),
            control.gossip,
            control.http,
            node.data_dir().display(),
        )
    })
}
