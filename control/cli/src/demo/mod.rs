//! `velo demo`: real nodes on this machine, a real directory moved to all of them at once, every byte compared.

mod compare;
mod fleet;
mod source;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::exit::{FAILED, Said};
use crate::interrupt::Interrupt;
use crate::node::Node;
use crate::output::{self, Output};
use compare::{Comparison, compare};
use fleet::Fleet;
use source::{Size, Source, measure};

/// Content bytes that a node's velod has sent.
const SENT: &str = "fabric_sent_bytes_total";

/// Start real nodes on this machine, move a real directory to all of them, compare every byte
///
/// Exit status 1 unless every file on every node is equal to the source.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// What to move [default: lib/rustlib of the Rust toolchain, at most 2 GB of it]
    #[arg(long)]
    path: Option<PathBuf>,
    /// How many nodes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=64))]
    nodes: u16,
    /// Leave the directories and logs behind
    #[arg(long)]
    keep: bool,
}

/// How one node did.
struct Receiver {
    name: String,
    seconds: f64,
    received_bytes: u64,
    sent_bytes: u64,
    comparison: Comparison,
}

/// How all did.
struct Report {
    size: Size,
    put_seconds: f64,
    seconds: f64,
    source_sent_bytes: u64,
    receivers: Vec<Receiver>,
}

impl Demo {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let output = &node.output;
        let interrupt = Interrupt::catch()?;
        let scratch = tempfile::Builder::new().prefix("velo-demo-").tempdir();
        let mut scratch = scratch.context("cannot make a temporary directory (TMPDIR says where)")?;
        scratch.disable_cleanup(self.keep);
        if self.keep {
            output.note(format!("everything stays in {}", scratch.path().display()));
        }
        let result = self.in_scratch(scratch.path(), output, &interrupt);
        if !self.keep {
            // What fails here would fail silently when the value goes.
            let path = scratch.path().to_owned();
            if let Err(error) = scratch.close() {
                output.warn(format!("cannot remove {}: {error}", path.display()));
            }
        }
        // Ctrl-C came to the commands of the demo as well, and ended them with errors of their own.
        interrupt.check()?;
        let (what, report) = result?;
        let ok = report.mismatches() == 0;
        output.answer(&report.json(), || report.text(&what))?;
        if ok { Ok(()) } else { Err(Said(FAILED).into()) }
    }

    fn in_scratch(
        &self,
        scratch: &Path,
        output: &Output,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(String, Report)> {
        let source = Source::choose(self.path.as_deref(), scratch, output, interrupt)?;
        let size = measure(&source.path)?;
        let nodes = usize::from(self.nodes);
        check_space(scratch, size.bytes, nodes)?;
        let (files, bytes) = (output::count(size.files, "file"), output::bytes(size.bytes));
        output.note(format!("moving {}: {files}, {bytes}", source.what));
        output.note(format!("starting {nodes} nodes"));
        let fleet = Fleet::start(nodes, scratch, interrupt)?;

        output.note("putting it on node1");
        let put = fleet.nodes[0].json(["put".as_ref(), source.path.as_os_str()], interrupt)?;
        let id = put["id"].as_str().context("no id in the answer of put")?.to_owned();
        let put_seconds = put["seconds"].as_f64().unwrap_or_default();

        output.note(format!("getting it on the other {} at once", nodes - 1));
        let sent_before: Vec<u64> =
            fleet.nodes.iter().map(|node| node.counter(SENT)).collect::<anyhow::Result<_>>()?;
        let begun = Instant::now();
        let mut gets = Vec::with_capacity(nodes - 1);
        for node in &fleet.nodes[1..] {
            let dest = node.destination();
            gets.push((node, node.command(["get".as_ref(), id.as_ref(), dest.as_os_str()])?));
        }
        let answers = fleet::run_at_once(gets, interrupt)?;
        let seconds = begun.elapsed().as_secs_f64();
        let mut sent = Vec::with_capacity(nodes);
        for (node, before) in fleet.nodes.iter().zip(sent_before) {
            sent.push(node.counter(SENT)?.saturating_sub(before));
        }

        output.note("comparing every byte");
        let mut receivers = Vec::with_capacity(nodes - 1);
        for ((node, answer), sent_bytes) in fleet.nodes[1..].iter().zip(&answers).zip(&sent[1..]) {
            receivers.push(Receiver {
                name: node.name.clone(),
                seconds: answer["seconds"].as_f64().unwrap_or_default(),
                received_bytes: answer["received_bytes"].as_u64().unwrap_or_default(),
                sent_bytes: *sent_bytes,
                comparison: compare(&source.path, &node.destination(), interrupt)?,
            });
        }
        let report = Report { size, put_seconds, seconds, source_sent_bytes: sent[0], receivers };
        Ok((source.what, report))
    }
}

/// The store of every node and the copy of every receiver must fit.
fn check_space(scratch: &Path, bytes: u64, nodes: usize) -> anyhow::Result<()> {
    let stat = rustix::fs::statvfs(scratch)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = bytes.saturating_mul(2 * nodes as u64 - 1).saturating_add(256 << 20);
    if needed > free {
        bail!(
            "the demo needs {} in {}, and {} are free: set TMPDIR to a larger place, or move less with --path or \
             fewer --nodes",
            output::bytes(needed),
            scratch.display(),
            output::bytes(free),
        );
    }
    Ok(())
}

impl Report {
    fn mismatches(&self) -> u64 {
        self.receivers.iter().map(|receiver| receiver.comparison.mismatches).sum()
    }

    /// Content bytes a second of all receivers together.
    fn gb_per_s(&self) -> f64 {
        let bytes = self.size.bytes * self.receivers.len() as u64;
        bytes as f64 / self.seconds / 1e9
    }

    /// How many times the source's bytes left the first node.
    fn source_egress_ratio(&self) -> f64 {
        self.source_sent_bytes as f64 / self.size.bytes.max(1) as f64
    }

    fn json(&self) -> Value {
        let per_node: Vec<Value> = self
            .receivers
            .iter()
            .map(|receiver| {
                json!({
                    "node": receiver.name,
                    "seconds": receiver.seconds,
                    "gb_per_s": self.size.bytes as f64 / receiver.seconds / 1e9,
                    "files": receiver.comparison.files,
                    "bytes": receiver.comparison.bytes,
                    "received_bytes": receiver.received_bytes,
                    "sent_bytes": receiver.sent_bytes,
                    "mismatches": receiver.comparison.mismatches,
                    "differences": receiver.comparison.named,
                })
            })
            .collect();
        json!({
            "ok": self.mismatches() == 0,
            "nodes": self.receivers.len() + 1,
            "files": self.size.files,
            "bytes": self.size.bytes,
            "put_seconds": self.put_seconds,
            "seconds": self.seconds,
            "gb_per_s": self.gb_per_s(),
            "source_sent_bytes": self.source_sent_bytes,
            "source_egress_ratio": self.source_egress_ratio(),
            "mismatches": self.mismatches(),
            "per_node": per_node,
        })
    }

    fn text(&self, what: &str) -> String {
        let rate = |seconds: f64| format!("{:.2}", self.size.bytes as f64 / seconds.max(1e-9) / 1e9);
        let mut rows = vec![vec![
            "node1".to_owned(),
            output::bytes(self.size.bytes),
            output::seconds(self.put_seconds),
            rate(self.put_seconds),
            output::bytes(self.source_sent_bytes),
            "the source (put)".to_owned(),
        ]];
        for receiver in &self.receivers {
            rows.push(vec![
                receiver.name.clone(),
                output::bytes(receiver.comparison.bytes),
                output::seconds(receiver.seconds),
                rate(receiver.seconds),
                output::bytes(receiver.sent_bytes),
                match receiver.comparison.mismatches {
                    0 => format!("{} equal", output::count(receiver.comparison.files, "file")),
                    some => format!("{some} DIFFER"),
                },
            ]);
        }
        let headings = ["node", "bytes", "time", "GB/s", "sent to others", "result"];
        let mut text = format!("{what}\n\n{}\n", output::table(&headings, &[1, 2, 3, 4], &rows));
        text.push_str(&format!(
            "{} receivers together: {} in {}, {:.2} GB/s; the source's bytes left it {:.2} times\n",
            self.receivers.len(),
            output::bytes(self.size.bytes * self.receivers.len() as u64),
            output::seconds(self.seconds),
            self.gb_per_s(),
            self.source_egress_ratio(),
        ));
        for difference in self.receivers.iter().flat_map(|receiver| &receiver.comparison.named) {
            text.push_str(&format!("DIFFERS {difference}\n"));
        }
        text
    }
}
