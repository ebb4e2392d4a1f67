//! `velo status`: how this node does.

use serde_json::json;
use velo_control::client::{JobView, StatusView};

use super::stat::short;
use crate::node::Node;
use crate::output;

/// Show how this node does
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Also all counters
    #[arg(long)]
    counters: bool,
}

impl Status {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        let asked = node.control().and_then(|control| Ok((control.get("/v1/status", &[])?, control)));
        let (status, control): (StatusView, _) = asked.map_err(|error| match node.velod() {
            Ok(velod) => {
                error.context(format!("velod runs (process {}), but not all of the node", velod.pid()))
            }
            Err(_) => error,
        })?;
        // A velod that is down has no jobs to tell of.
        let jobs: Vec<JobView> =
            if status.velod_connected { control.get("/v1/jobs", &[])? } else { Vec::new() };
        let answer = json!({ "ok": status.velod_connected, "status": status, "jobs": jobs });
        node.output.answer(&answer, || self.text(node, &status, &jobs))
    }

    fn text(&self, node: &Node, status: &StatusView, jobs: &[JobView]) -> String {
        let value = |name: &str| {
            let all = status.counters.iter().chain(&status.gauges);
            all.filter(|(key, _)| key.split('{').next() == Some(name)).map(|(_, value)| value).sum::<u64>()
        };
        let mut text = format!("node      {} ({})\n", status.name, status.node);
        let authority = if status.authority { ", the authority is here" } else { "" };
        text.push_str(&format!(
            "cluster   {}: {} up, {}{authority}\n",
            short(&status.cluster),
            output::count(status.members, "member"),
            output::count(status.refs, "name"),
        ));
        let up = output::seconds(status.up_ms as f64 / 1000.0);
        text.push_str(&format!("up        {up}, zone {}, velo {}\n", status.zone, status.version));
        text.push_str(&format!("http      http://{}   gossip {}\n", status.http, status.gossip));
        text.push_str(&format!("data      {}\n", node.data_dir().display()));
        if status.origin {
            text.push_str("origin    configured\n");
        }
        text.push_str(&format!("cert      good until {} UTC\n", output::date(status.certificate_expires_ms)));
        if !status.velod_connected {
            text.push_str(
                "velod     does not answer: `velo up` starts it again, or its log says why it cannot\n",
            );
        }
        text.push_str(&format!(
            "traffic   {} received, {} sent; {} bad pieces refused\n",
            output::bytes(value("fabric_received_bytes_total")),
            output::bytes(value("fabric_sent_bytes_total")),
            value("pieces_bad_total"),
        ));
        for session in &status.sessions {
            text.push_str(&format!(
                "session   {} {} over {}{}: {} received, {} sent\n",
                short(&session.node),
                session.address,
                session.fabric,
                output::link(session.rtt_us, session.loss_ppm),
                output::bytes(session.received_bytes),
                output::bytes(session.sent_bytes),
            ));
        }
        for job in jobs.iter().filter(|job| matches!(job.state.as_str(), "running" | "waiting")) {
            text.push_str(&format!(
                "job {:<5} {} {}: {} of {} from {}\n",
                job.job,
                job.state,
                job.roots.join(" "),
                output::bytes(job.done_bytes),
                output::bytes(job.total_bytes),
                output::count(job.sources.len() as u64, "node"),
            ));
        }
        for worker in &status.workers {
            text.push_str(&format!("worker    {worker}\n"));
        }
        for note in &status.notes {
            text.push_str(&format!("note      {note}\n"));
        }
        if self.counters {
            for (name, value) in status.counters.iter().chain(&status.gauges) {
                text.push_str(&format!("{value:>20}  {name}\n"));
            }
        }
        text
    }
}
