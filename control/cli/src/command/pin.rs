//! `velo pin` and `velo unpin`: whether content may be evicted here.

use serde_json::json;

use crate::get;
use crate::interrupt::Interrupt;
use crate::job::{self, Limits};
use crate::node::Node;
use crate::progress::Progress;

/// Keep content on this node whatever room is needed; fetches it first where it is not here
#[derive(Debug, clap::Args)]
pub struct Pin {
    /// An id (or the first 8 digits of one or more) or a name
    #[arg(value_name = "ID|REF")]
    what: String,
}

/// Let content go when room is needed
#[derive(Debug, clap::Args)]
pub struct Unpin {
    /// An id (or the first 8 digits of one or more) or a name
    #[arg(value_name = "ID|REF")]
    what: String,
}

impl Pin {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let id = node.resolve(&self.what)?;
        let mut velod = node.velod()?;
        // A job for what is here already ends at once.
        if node.control().is_ok() {
            let mut progress = Progress::begin(&node.output, "getting", 0);
            let limits = Limits { interrupt: &Interrupt::catch()?, patience: job::PATIENCE };
            get::fetch(node, &[id], false, limits, &mut progress)?;
        }
        velod.pin(id, true)?;
        node.output.answer(&json!({ "ok": true, "id": id.to_string(), "pinned": true }), || {
            format!("{id} stays on this node until `velo unpin`")
        })
    }
}

impl Unpin {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let id = node.resolve(&self.what)?;
        node.velod()?.pin(id, false)?;
        node.output.answer(&json!({ "ok": true, "id": id.to_string(), "pinned": false }), || {
            format!("{id} may go when room is needed")
        })
    }
}
