//! `velo verify`: hashes everything in this node's store again.

use std::time::Instant;

use serde_json::json;

use crate::exit::{INTEGRITY, Said};
use crate::interrupt::Interrupt;
use crate::job;
use crate::node::Node;
use crate::output;
use crate::progress::Progress;

/// Hash everything in this node's store again; quarantine what is damaged (exit status 5)
#[derive(Debug, clap::Args)]
pub struct Verify {}

impl Verify {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let begun = Instant::now();
        let interrupt = Interrupt::catch()?;
        let mut progress = Progress::begin(&node.output, "verifying", 0);
        let (blobs, bytes, damaged) = job::verify(&node.paths().socket(), &interrupt, |bytes, total| {
            progress.total(total);
            progress.set(bytes, "");
        })?;
        drop(progress);
        let damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
        let seconds = begun.elapsed().as_secs_f64();
        let answer = json!({
            "ok": damaged.is_empty(), "blobs": blobs, "bytes": bytes, "seconds": seconds, "damaged": damaged,
        });
        node.output.answer(&answer, || {
            let (blobs, bytes) = (output::count(blobs, "blob"), output::bytes(bytes));
            let mut text = format!("{blobs}, {bytes} in {}: ", output::seconds(seconds));
            if damaged.is_empty() {
                text.push_str("all as their ids say");
            } else {
                text.push_str("DAMAGED, now in quarantine:\n");
                damaged.iter().for_each(|id| text.push_str(&format!("  {id}\n")));
                text.push_str("`velo get` brings them back from nodes that have them whole");
            }
            text
        })?;
        if damaged.is_empty() { Ok(()) } else { Err(Said(INTEGRITY).into()) }
    }
}
