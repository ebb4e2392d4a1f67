//! `velo ref`: names for ids.

use serde_json::json;
use velo_control::client::{RefPut, RefView};

use super::stat::short;
use crate::control::path_of;
use crate::node::Node;
use crate::output;

/// Names for ids
#[derive(Debug, clap::Subcommand)]
pub enum Refs {
    /// List all names
    Ls {
        /// Only those that begin so
        prefix: Option<String>,
    },
    /// Show what a name has meant
    Log {
        /// The name
        name: String,
    },
    /// Let a name mean an id
    Set {
        /// The name
        name: String,
        /// The id (or the first 8 digits of one or more) or another name
        #[arg(value_name = "ID|REF")]
        what: String,
        /// Only if the name has this version now; 0: only if it is not there
        #[arg(long, value_name = "VERSION")]
        expect: Option<u64>,
    },
    /// Remove a name; the content stays
    Rm {
        /// The name
        name: String,
        /// Only if the name has this version now
        #[arg(long, value_name = "VERSION")]
        expect: Option<u64>,
    },
}

impl Refs {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let control = node.control()?;
        match self {
            Self::Ls { prefix } => {
                let mut refs: Vec<RefView> = control.get("/v1/refs", &[])?;
                if let Some(prefix) = prefix {
                    refs.retain(|view| view.name.starts_with(&prefix));
                }
                node.output.answer(&json!({ "ok": true, "refs": refs }), || list(&refs))
            }
            Self::Log { name } => {
                let view: RefView = control.get(&at(&name), &[])?;
                node.output.answer(&json!({ "ok": true, "ref": view }), || history(&view))
            }
            Self::Set { name, what, expect } => {
                let id = node.resolve(&what)?.to_string();
                let view: RefView = control.put(&at(&name), &RefPut { id, expect })?;
                node.output.answer(&json!({ "ok": true, "ref": view }), || {
                    format!("{} means {} (version {})", view.name, view.id, view.version)
                })
            }
            Self::Rm { name, expect } => {
                let expect = expect.map_or_else(String::new, |version| format!("?expect={version}"));
                let view: RefView = control.delete(&format!("{}{expect}", at(&name)))?;
                node.output.answer(&json!({ "ok": true, "removed": view }), || {
                    format!("removed the name {}; its content {} stays where it is", view.name, view.id)
                })
            }
        }
    }
}

fn list(refs: &[RefView]) -> String {
    if refs.is_empty() {
        return "no names: `velo put --name` and `velo ref set` make them".into();
    }
    let row = |view: &RefView| {
        let (version, date) = (view.version.to_string(), output::date(view.updated_ms));
        vec![view.name.clone(), view.id.clone(), version, date, writer(view).to_owned()]
    };
    let rows: Vec<Vec<String>> = refs.iter().map(row).collect();
    output::table(&["name", "id", "version", "written (UTC)", "by"], &[2], &rows)
}

fn history(view: &RefView) -> String {
    let mut text = format!("{} is written by {}\n", view.name, writer(view));
    for past in &view.history {
        let date = output::date(past.updated_ms);
        text.push_str(&format!("{:>6}  {date}  {}\n", past.version, past.id));
    }
    if let Some(lost) = &view.lost_to_this {
        let (writer, date) = (short(&lost.writer), output::date(lost.created_ms));
        let id = &lost.id;
        text.push_str(&format!(
            "another creation of this name was younger and lost: {id} by {writer} on {date}\n"
        ));
    }
    text
}

fn at(name: &str) -> String {
    format!("/v1/refs/{}", path_of(name))
}

fn writer(view: &RefView) -> &str {
    if view.writer_name.is_empty() { short(&view.writer) } else { &view.writer_name }
}
