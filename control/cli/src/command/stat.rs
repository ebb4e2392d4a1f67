//! `velo stat`: what is known of an id or a name.

use serde_json::json;
use velo_control::client::{Holder, Holders};
use velo_object::{BlobId, ObjectId, ObjectKind, Tree};
use velo_socket::BlobStat;

use crate::exit::Failure;
use crate::get;
use crate::node::Node;
use crate::output;

/// Show what is known of an id or a name, here and elsewhere
#[derive(Debug, clap::Args)]
pub struct Stat {
    /// An id (or the first 8 digits of one or more) or a name
    #[arg(value_name = "ID|REF")]
    what: String,
}

struct Known {
    id: ObjectId,
    here: Option<BlobStat>,
    complete: bool,
    pinned: bool,
    tree: Option<Tree<Vec<u8>>>,
    /// None where control does not run.
    elsewhere: Option<Vec<Holders>>,
}

impl Stat {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let known = Known::find(node, &self.what)?;
        let origin = known.elsewhere.iter().flatten().find_map(|found| found.origin);
        if known.here.is_none()
            && known.elsewhere.is_some()
            && known.holders().next().is_none()
            && origin != Some(true)
        {
            return Err(Failure::not_found(format!("no member of the cluster has {}", known.id)));
        }
        let answer = json!({
            "ok": true,
            "id": known.id.to_string(),
            "here": known.here.as_ref().map(|stat| json!({
                "complete": known.complete,
                "pinned": known.pinned,
                "size_bytes": stat.size_bytes,
                "stored_bytes": stat.stored_bytes,
                "pieces": stat.have.count(),
                "pieces_total": stat.have.len(),
            })),
            "tree": known.tree.as_ref().map(|tree| json!({
                "entries": tree.len(),
                "bytes": tree.total_bytes(),
                "packs": tree.packs().len(),
                "blobs": tree.blobs().count(),
            })),
            "holders": known.holders().collect::<Vec<_>>(),
            "origin": origin,
        });
        node.output.answer(&answer, || known.text())
    }
}

impl Known {
    fn find(node: &Node, what: &str) -> anyhow::Result<Self> {
        let id = node.resolve(what)?;
        let mut velod = node.velod()?;
        let here = velod.stat_one(id.blob)?;
        let whole = here.as_ref().is_some_and(|stat| stat.complete);
        let pinned = velod.pins()?.contains(&id) || here.as_ref().is_some_and(|stat| stat.pinned);
        let (mut tree, mut complete) = (None, whole);
        if id.kind == ObjectKind::Tree && whole {
            let table = get::table(&mut velod, id)?;
            let blobs: Vec<BlobId> = table.packs().chain(table.blobs()).map(|named| named.blob).collect();
            for some in blobs.chunks(4096) {
                let stats = velod.stat(some.to_vec())?;
                complete &= stats.iter().all(|stat| stat.as_ref().is_some_and(|stat| stat.complete));
            }
            tree = Some(table);
        }
        // Without control there is still what is here.
        let ask = |control: crate::control::Control| control.get("/v1/where", &[("id", &id.to_string())]);
        let elsewhere = node.control().and_then(ask);
        if let Err(error) = &elsewhere {
            node.output.warn(format!("{error:#}; nothing is known of other nodes"));
        }
        let elsewhere = elsewhere.ok();
        Ok(Self { id, here, complete, pinned, tree, elsewhere })
    }

    fn holders(&self) -> impl Iterator<Item = &Holder> {
        self.elsewhere.iter().flatten().flat_map(|found| &found.holders)
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.id);
        match &self.here {
            None => text.push_str("  not on this node\n"),
            Some(stat) => {
                let state = if self.complete { "complete" } else { "incomplete" };
                let pin = if self.pinned { ", pinned" } else { "" };
                let table = if self.id.kind == ObjectKind::Tree { "its table has " } else { "" };
                let size = stat.size_bytes.map_or("unknown size".into(), output::bytes);
                text.push_str(&format!("  here: {state}{pin}; {table}{size}"));
                if !stat.complete {
                    text.push_str(&format!(", {} of {} pieces", stat.have.count(), stat.have.len()));
                }
                text.push('\n');
            }
        }
        if let Some(tree) = &self.tree {
            text.push_str(&format!(
                "  tree: {}, {}; {}, {}\n",
                match tree.len() {
                    1 => "1 entry".to_owned(),
                    some => format!("{some} entries"),
                },
                output::bytes(tree.total_bytes()),
                output::count(tree.packs().len() as u64, "pack"),
                output::count(tree.blobs().count() as u64, "large file"),
            ));
        }
        for holder in self.holders() {
            let some = match (self.id.kind, holder.blobs_complete, holder.blobs_total) {
                (ObjectKind::Tree, Some(complete), Some(total)) => format!("{complete} of {total} blobs"),
                (ObjectKind::Tree, ..) => "only its table".to_owned(),
                (ObjectKind::Blob, ..) => output::count(holder.pieces, "piece"),
            };
            let state = match (holder.complete, holder.pulling) {
                (true, _) => "complete".to_owned(),
                (false, true) => format!("{some}, arriving"),
                (false, false) => some,
            };
            text.push_str(&format!(
                "  {} ({}, {}): {state}\n",
                holder.name,
                short(&holder.node),
                holder.zone
            ));
        }
        text
    }
}

/// The first 12 digits of a node's id.
pub fn short(node: &str) -> &str {
    node.get(..12).unwrap_or(node)
}
