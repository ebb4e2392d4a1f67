//! `velo put`: a file or a directory goes into this node's store, where it is pinned.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use velo_control::client::{OriginPut, OriginPutReply, RefPut, RefView, StatusView};
use velo_control::refs::RefName;

use crate::control::{Control, path_of};
use crate::exit::Failure;
use crate::interrupt::Interrupt;
use crate::node::Node;
use crate::output;
use crate::progress::Progress;
use crate::put;

/// Put a file or a directory into this node's store
#[derive(Debug, clap::Args)]
pub struct Put {
    /// The file or directory. Links inside are kept as links and never followed
    path: PathBuf,
    /// Also let this name mean it
    #[arg(long, value_name = "REF")]
    name: Option<String>,
    /// Also store it in the origin (the key origin.url)
    #[arg(long)]
    origin: bool,
    /// Keep modification times; without this, equal directories have equal ids
    #[arg(long)]
    mtime: bool,
}

impl Put {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let begun = Instant::now();
        let interrupt = Interrupt::catch()?;
        let mut velod = node.velod()?;
        // Whoever is needed afterwards is looked for before the work begins.
        let control = if self.name.is_some() || self.origin { Some(node.control()?) } else { None };
        if let Some(name) = &self.name {
            name.parse::<RefName>().map_err(|error| Failure::usage(error.to_string()))?;
        }
        if let (true, Some(control)) = (self.origin, &control)
            && !control.get::<StatusView>("/v1/status", &[])?.origin
        {
            return Err(Failure::usage(
                "no origin is configured: set `origin.url` to file:///… for this node",
            ));
        }
        let mut progress = Progress::begin(&node.output, "putting", 0);
        let done = put::put(&mut velod, &self.path, self.mtime, &interrupt, &mut progress)?;
        let seconds = begun.elapsed().as_secs_f64();

        let (mut origin, mut name) = (None, None);
        if self.origin {
            progress.phase("to origin");
            let put = OriginPut { id: done.id.to_string() };
            origin = Some(to_origin(node.control()?, put, &interrupt)?);
        }
        if let (Some(given), Some(control)) = (&self.name, &control) {
            let put = RefPut { id: done.id.to_string(), expect: None };
            name = Some(control.put::<RefView>(&format!("/v1/refs/{}", path_of(given)), &put)?);
        }
        drop(progress);
        let answer = json!({
            "ok": true,
            "id": done.id.to_string(),
            "files": done.files,
            "links": done.links,
            "bytes": done.bytes,
            "seconds": seconds,
            "name": name.as_ref().map(|view| &view.name),
            "version": name.as_ref().map(|view| view.version),
            "origin": origin,
        });
        let mut note = format!(
            "{}, {} in {}",
            output::count(done.files, "file"),
            output::bytes(done.bytes),
            output::seconds(seconds),
        );
        if let Some(view) = name {
            note.push_str(&format!("; version {} of {}", view.version, view.name));
        }
        if let Some(origin) = origin {
            note.push_str(&format!("; {} written to the origin", output::bytes(origin.bytes)));
        }
        node.output.note(note);
        node.output.answer(&answer, || done.id.to_string())
    }
}

/// Has control copy it to the origin, which ends when this program does.
fn to_origin(control: Control, put: OriginPut, interrupt: &Interrupt) -> anyhow::Result<OriginPutReply> {
    let answer = std::thread::spawn(move || control.post_long("/v1/origin/put", &put));
    while !answer.is_finished() {
        interrupt.check()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
