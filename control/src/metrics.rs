//! Metrics of velo-control, and velod's own ones passed on under `velo_`.

use prometheus::{Encoder as _, IntCounter, IntGauge, Opts, Registry, TextEncoder};
use velo_socket::Status;

/// The counters and gauges of a control plane.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Questions to other control planes.
    pub calls_sent: IntCounter,
    /// Those that got no answer.
    pub calls_failed: IntCounter,
    /// Questions of other control planes.
    pub calls_answered: IntCounter,
    /// Questions that were refused: of revoked nodes, of strangers, or not understood.
    pub calls_refused: IntCounter,
    /// Rounds of anti-entropy.
    pub syncs: IntCounter,
    /// Pulls begun.
    pub pulls: IntCounter,
    /// Bytes read from the origin.
    pub origin_read_bytes: IntCounter,
    /// Bytes written to the origin.
    pub origin_written_bytes: IntCounter,
    /// Creations of names that lost.
    pub ref_conflicts: IntCounter,
    /// HTTP requests.
    pub http_requests: IntCounter,
    /// HTTP requests that were refused for want of a token, or for their Host or Origin.
    pub http_refused: IntCounter,
    /// Nodes that were let in.
    pub joins: IntCounter,
    /// Members that are up.
    pub members: IntGauge,
    /// Names.
    pub refs: IntGauge,
    /// Whether velod answers.
    pub velod_up: IntGauge,
    /// When this node's certificate ends, in seconds since the epoch.
    pub certificate_expiry: IntGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::with_opts(Opts::new(format!("velo_control_{name}"), help));
            let counter = counter.expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(Opts::new(format!("velo_control_{name}"), help));
            let gauge = gauge.expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        Self {
            calls_sent: counter("calls_sent_total", "Questions to other control planes"),
            calls_failed: counter(
                "calls_failed_total",
                "Questions to other control planes without an answer",
            ),
            calls_answered: counter("calls_answered_total", "Questions of other control planes answered"),
            calls_refused: counter("calls_refused_total", "Questions refused"),
            syncs: counter("syncs_total", "Rounds of anti-entropy"),
            pulls: counter("pulls_total", "Pulls begun"),
            origin_read_bytes: counter("origin_read_bytes_total", "Bytes read from the origin"),
            origin_written_bytes: counter("origin_written_bytes_total", "Bytes written to the origin"),
            ref_conflicts: counter(
                "ref_conflicts_total",
                "Creations of a name that lost against an older one",
            ),
            http_requests: counter("http_requests_total", "HTTP requests"),
            http_refused: counter(
                "http_refused_total",
                "HTTP requests refused for their token, Host or Origin",
            ),
            joins: counter("joins_total", "Nodes that were let in"),
            members: gauge("members", "Members that are up"),
            refs: gauge("refs", "Names that are set"),
            velod_up: gauge("velod_up", "Whether velod answers"),
            certificate_expiry: gauge("certificate_expiry_seconds", "When the certificate ends"),
            registry,
        }
    }

    /// Everything in the text format of Prometheus.
    pub fn render(&self, velod: Option<&Status>) -> String {
        let mut bytes = Vec::new();
        // Writing into memory does not fail, and every family has a sample.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut bytes);
        let mut text = String::from_utf8(bytes).unwrap_or_default();
        if let Some(status) = velod {
            passed_on(&mut text, "counter", &status.counters);
            passed_on(&mut text, "gauge", &status.gauges);
        }
        text
    }
}

/// velod's samples: a `# TYPE` line before the first of each family, families kept together.
fn passed_on(text: &mut String, kind: &str, samples: &[(String, u64)]) {
    use std::fmt::Write as _;
    let family = |name: &str| name.split('{').next().unwrap_or(name).to_owned();
    let mut families: std::collections::BTreeMap<String, Vec<(&str, u64)>> = Default::default();
    for (name, value) in samples {
        families.entry(family(name)).or_default().push((name, *value));
    }
    for (family, samples) in families {
        let _ = writeln!(text, "# TYPE velo_{family} {kind}");
        for (name, value) in samples {
            let _ = writeln!(text, "velo_{name} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn velods_samples_stand_in_families() {
        let metrics = Metrics::new();
        metrics.pulls.inc();
        let status = Status {
            counters: vec![
                ("a_total{x=\"1\"}".to_owned(), 1),
                ("b_total".to_owned(), 2),
                ("a_total{x=\"2\"}".to_owned(), 3),
            ],
            gauges: vec![("g".to_owned(), 4)],
            ..Status::default()
        };
        let text = metrics.render(Some(&status));
        assert!(text.contains("velo_control_pulls_total 1\n"));
        let own = "# TYPE velo_a_total counter\nvelo_a_total{x=\"1\"} 1\nvelo_a_total{x=\"2\"} 3\n";
        assert!(text.contains(own), "{text}");
        assert!(
            text.ends_with("# TYPE velo_b_total counter\nvelo_b_total 2\n# TYPE velo_g gauge\nvelo_g 4\n"),
            "{text}"
        );
    }
}
