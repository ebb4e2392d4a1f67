//! `velo ls`: what is in this node's store, or what is in a tree.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};
use velo_control::client::RefView;
use velo_object::tree::path_text;
use velo_object::{EntryKind, ObjectId, ObjectKind, Tree};

use crate::exit::Failure;
use crate::get;
use crate::interrupt::Interrupt;
use crate::job::{self, Limits};
use crate::node::Node;
use crate::output;
use crate::progress::Progress;

/// How many blobs are asked for at once.
const PAGE: u32 = 1000;

/// List what is here, or what is in a tree
///
/// Without an argument: what was put or pinned here, and what is here of what has a name. With a tree: its entries.
#[derive(Debug, clap::Args)]
pub struct Ls {
    /// A tree, by id or name
    #[arg(value_name = "ID|REF")]
    what: Option<String>,
    /// Only what lies under this path of the tree
    #[arg(requires = "what")]
    path: Option<String>,
    /// Every blob in the store, also parts of trees and cache
    #[arg(long, conflicts_with = "what")]
    all: bool,
}

impl Ls {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        match &self.what {
            Some(what) => object(node, what, self.path.as_deref().unwrap_or("")),
            None if self.all => blobs(node),
            None => roots(node),
        }
    }
}

/// A root that is here.
#[derive(Serialize)]
struct Root {
    id: String,
    bytes: Option<u64>,
    entries: u64,
    names: Vec<String>,
    pinned: bool,
}

fn roots(node: &Node) -> anyhow::Result<()> {
    let mut velod = node.velod()?;
    let mut names: BTreeMap<ObjectId, Vec<String>> = BTreeMap::new();
    // Without control there is still what is here.
    match node.control().and_then(|control| control.get::<Vec<RefView>>("/v1/refs", &[])) {
        Ok(refs) => {
            for view in refs {
                names.entry(view.id.parse()?).or_default().push(view.name);
            }
        }
        Err(error) => node.output.warn(format!("{error:#}; names are not shown")),
    }
    let pins = velod.pins()?;
    let mut all: BTreeSet<ObjectId> = names.keys().copied().collect();
    all.extend(&pins);
    let mut items = Vec::new();
    for id in all {
        let pinned = pins.contains(&id);
        let here = velod.stat_one(id.blob)?.filter(|stat| stat.complete);
        if here.is_none() && !pinned {
            continue; // a name for what is elsewhere
        }
        let (mut bytes, mut entries) = (here.and_then(|stat| stat.size_bytes), 1);
        // A tree that is pinned and damaged is still listed.
        if id.kind == ObjectKind::Tree
            && let Ok(table) = get::table(&mut velod, id)
        {
            (bytes, entries) = (Some(table.total_bytes()), table.len() as u64);
        }
        let names = names.remove(&id).unwrap_or_default();
        items.push(Root { id: id.to_string(), bytes, entries, names, pinned });
    }
    node.output.answer(&json!({ "ok": true, "items": items }), || {
        if items.is_empty() {
            return "nothing was put, pinned or named here (`velo ls --all` lists all blobs)".into();
        }
        let row = |root: &Root| {
            let size = root.bytes.map_or("?".into(), output::bytes);
            let state = if root.pinned { "pinned" } else { "cache" };
            vec![root.id.clone(), size, root.entries.to_string(), state.to_owned(), root.names.join(" ")]
        };
        let rows: Vec<Vec<String>> = items.iter().map(row).collect();
        output::table(&["id", "size", "entries", "state", "names"], &[1, 2], &rows)
    })
}

fn blobs(node: &Node) -> anyhow::Result<()> {
    let mut velod = node.velod()?;
    let mut all = Vec::new();
    loop {
        let page = velod.list(all.last().map(|(blob, _)| *blob), PAGE)?;
        let more = page.len() == PAGE as usize;
        all.extend(page);
        if !more {
            break;
        }
    }
    let items: Vec<Value> = all
        .iter()
        .map(|(blob, stat)| {
            json!({
                "id": blob.to_string(),
                "bytes": stat.size_bytes,
                "stored_bytes": stat.stored_bytes,
                "complete": stat.complete,
                "pinned": stat.pinned,
            })
        })
        .collect();
    node.output.answer(&json!({ "ok": true, "items": items }), || {
        let mut rows = Vec::new();
        for (blob, stat) in &all {
            let state = match (stat.complete, stat.pinned) {
                (true, true) => "pinned".to_owned(),
                (true, false) => "cache".to_owned(),
                (false, _) => format!("{} of {} pieces", stat.have.count(), stat.have.len()),
            };
            let size = stat.size_bytes.map_or("?".into(), output::bytes);
            rows.push(vec![blob.to_string(), size, output::bytes(stat.stored_bytes), state]);
        }
        output::table(&["id", "size", "on disk", "state"], &[1, 2], &rows)
    })
}

fn object(node: &Node, what: &str, path: &str) -> anyhow::Result<()> {
    let id = node.resolve(what)?;
    let mut velod = node.velod()?;
    if id.kind == ObjectKind::Blob {
        let size = velod.stat_one(id.blob)?.and_then(|stat| stat.size_bytes);
        let items = [json!({ "path": "", "kind": "blob", "bytes": size, "id": id.to_string() })];
        return node.output.answer(&json!({ "ok": true, "id": id.to_string(), "items": items }), || {
            format!("{id} is a file of {}", size.map_or("unknown size".into(), output::bytes))
        });
    }
    if !velod.stat_one(id.blob)?.is_some_and(|stat| stat.complete) {
        let mut progress = Progress::begin(&node.output, "finding", 0);
        let limits = Limits { interrupt: &Interrupt::catch()?, patience: job::PATIENCE };
        get::fetch(node, &[id], true, limits, &mut progress)?;
    }
    tree(node, id, &get::table(&mut velod, id)?, path.trim_matches('/').as_bytes())
}

fn tree(node: &Node, id: ObjectId, table: &Tree<Vec<u8>>, path: &[u8]) -> anyhow::Result<()> {
    let entries: Vec<_> = match table.find(path) {
        Some(entry) => vec![entry],
        None => table.under(path).map(|index| table.entry(index)).collect(),
    };
    if entries.is_empty() && !path.is_empty() {
        return Err(Failure::not_found(format!("{id} has nothing at `{}`", path_text(path))));
    }
    let mut items = Vec::new();
    if node.output.json {
        for entry in &entries {
            let content = ObjectId { kind: ObjectKind::Blob, blob: entry.blob };
            items.push(json!({
                "path": path_text(entry.path),
                "kind": kind_name(entry.kind),
                "bytes": entry.size_bytes,
                "id": entry.has_content().then(|| content.to_string()),
            }));
        }
    }
    node.output.answer(&json!({ "ok": true, "id": id.to_string(), "items": items }), || {
        let row = |entry: &velo_object::Entry<'_>| {
            vec![output::bytes(entry.size_bytes), kind_name(entry.kind).to_owned(), path_text(entry.path)]
        };
        let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
        output::table(&["size", "kind", "path"], &[0], &rows)
    })
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Executable => "executable",
        EntryKind::Symlink => "symlink",
        EntryKind::Directory => "directory",
    }
}
