//! `velo rm`: removes content from this node, and says what and where.

use serde::Serialize;
use serde_json::json;
use velo_control::client::{Holders, RefView};
use velo_object::ObjectId;
use velo_socket::{ClientError, ErrorCode};

use crate::exit::Failure;
use crate::node::Node;
use crate::output;

/// Remove content from this node
///
/// Other nodes keep what they have, names stay, and what other roots on this node need stays.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// Ids (or the first 8 digits of one or more) or names
    #[arg(value_name = "ID|REF", required = true)]
    what: Vec<String>,
}

#[derive(Serialize)]
struct Removed {
    id: String,
    blobs: u64,
    bytes: u64,
    kept_blobs: u64,
    #[serde(skip)]
    asked: bool,
    other_holders: Vec<String>,
    names: Vec<String>,
}

impl Rm {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let mut velod = node.velod()?;
        let control = node.control().ok();
        let own = velod.node().to_hex();
        let mut removed = Vec::new();
        for what in &self.what {
            let id = node.resolve(what)?;
            let text = id.to_string();
            // Asked before it goes; what cannot be learned does not hold up the removal.
            let ask = |path, query| control.as_ref().and_then(|control| control.get(path, query).ok());
            let elsewhere: Option<Vec<Holders>> = ask("/v1/where", &[("id", text.as_str())]);
            let refs: Option<Vec<RefView>> = control.as_ref().and_then(|c| c.get("/v1/refs", &[]).ok());
            let holders = elsewhere.iter().flatten().flat_map(|found| &found.holders);
            let others: Vec<String> = holders
                .filter(|holder| holder.node != own && holder.complete)
                .map(|holder| holder.name.clone())
                .collect();
            let (blobs, bytes, kept_blobs) = match velod.remove(id) {
                Err(ClientError::Velod(error)) if error.code == ErrorCode::NotFound => {
                    return Err(Failure::not_found(absent(&id, &others)));
                }
                done => done?,
            };
            removed.push(Removed {
                blobs,
                bytes,
                kept_blobs,
                asked: elsewhere.is_some(),
                other_holders: others,
                names: refs.into_iter().flatten().filter(|view| view.id == text).map(|v| v.name).collect(),
                id: text,
            });
        }
        node.output.answer(&json!({ "ok": true, "removed": removed }), || {
            removed.iter().map(Removed::text).collect()
        })
    }
}

fn absent(id: &ObjectId, others: &[String]) -> String {
    match others {
        [] => format!("{id} is not on this node"),
        some => format!("{id} is not on this node: it is on {}", some.join(", ")),
    }
}

impl Removed {
    fn text(&self) -> String {
        let (blobs, bytes) = (output::count(self.blobs, "blob"), output::bytes(self.bytes));
        let mut text = format!("removed {} from this node: {blobs}, {bytes} freed\n", self.id);
        if self.kept_blobs > 0 {
            let kept = output::count(self.kept_blobs, "blob");
            text.push_str(&format!("  {kept} stay, because other content here needs them\n"));
        }
        for name in &self.names {
            text.push_str(&format!("  the name {name} still means it (`velo ref rm {name}`)\n"));
        }
        match self.other_holders.as_slice() {
            [] if self.asked => text.push_str("  no other member that answered has all of it\n"),
            [] => text.push_str("  velo-control did not say which other members have it\n"),
            some => text.push_str(&format!("  still complete on: {}\n", some.join(", "))),
        }
        text
    }
}
