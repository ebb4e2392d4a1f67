//! `velo get`: brings content here and writes what differs to DEST.

use std::path::PathBuf;
use std::time::Duration;

use crate::get;
use crate::interrupt::Interrupt;
use crate::job::{self, Limits};
use crate::node::Node;
use crate::output;
use crate::progress::Progress;

/// Get content by id or name and write it to DEST
///
/// A tree is written into the directory DEST, a blob to the file DEST. Into a directory that is there already only what
/// differs is written; other files in it stay. A file appears under its name only when it is whole. After Ctrl-C the
/// same command goes on where it was.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// An id (or the first 8 digits of one or more) or a name
    #[arg(value_name = "ID|REF")]
    what: String,
    /// Where to write it
    dest: PathBuf,
    /// Make read-only hard links to the store instead of copies, where a file is large and not executable
    #[arg(long, conflicts_with = "no_keep")]
    link: bool,
    /// Receive straight into DEST and keep nothing in the store
    #[arg(long)]
    no_keep: bool,
    /// Begin even if it looks as if it would not fit (it may be sparse)
    #[arg(long)]
    force: bool,
    /// How long to wait for a node that has what is missing, for instance 10min
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
}

impl Get {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let interrupt = Interrupt::catch()?;
        let mut progress = Progress::begin(&node.output, "finding", 0);
        let options = get::Options { link: self.link, no_keep: self.no_keep, force: self.force };
        let limits = Limits { interrupt: &interrupt, patience: self.wait.unwrap_or(job::PATIENCE) };
        let get = get::Get { node, options, limits, progress: &mut progress };
        let done = get.run(&self.what, &self.dest)?;
        drop(progress);
        node.output.answer(&done, || if node.output.quiet { String::new() } else { self.text(&done) })
    }

    fn text(&self, done: &get::Summary) -> String {
        let mut text = format!(
            "{} in {}: {} of {} written, {}",
            self.dest.display(),
            output::seconds(done.seconds),
            done.written_entries,
            done.entries,
            output::bytes(done.written_bytes),
        );
        if done.linked_entries > 0 {
            text.push_str(&format!(", {} linked", done.linked_entries));
        }
        if done.unchanged_entries > 0 {
            text.push_str(&format!(", {} unchanged", done.unchanged_entries));
        }
        let traffic = &done.traffic;
        if traffic.received_bytes > 0 {
            let nodes = output::count(traffic.sources, "node");
            text.push_str(&format!("; {} received from {nodes}", output::bytes(traffic.received_bytes)));
        }
        if traffic.bad_pieces > 0 {
            text.push_str(&format!(", {} refused", output::count(traffic.bad_pieces, "damaged piece")));
        }
        text
    }
}
