//! What one worker publishes: the line that the status shows of it, its fabric's counters, and of a port what it has reached.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use velo_fabric::FabricCounters;

use crate::carrier::Carrier;

/// A rate is that of at least so long, and of at most so long: a pause is no rate.
const WINDOW_US: u64 = 200_000;
const PAUSE_US: u64 = 2_000_000;

/// What is known of a port that one worker has to itself and that has a name.
#[derive(Debug, Clone)]
pub(crate) struct PortFacts {
    /// As it stands in the metrics.
    pub(crate) name: String,
    pub(crate) rate_bytes_per_s: Option<u64>,
    /// Memory that is registered with its device, and how long that took.
    pub(crate) registered_bytes: u64,
    pub(crate) registered_us: u64,
}

/// The best rate that a counter has grown by.
#[derive(Debug, Default)]
struct Meter {
    /// When it was looked at last, from the worker's first moment on, and what the counter was.
    looked_us: AtomicU64,
    bytes: AtomicU64,
    best_bytes_per_s: AtomicU64,
}

impl Meter {
    fn look(&self, now_us: u64, bytes: u64) {
        let took_us = now_us.saturating_sub(self.looked_us.load(Relaxed));
        if took_us < WINDOW_US {
            return;
        }
        if took_us < PAUSE_US {
            let rate = (bytes - self.bytes.load(Relaxed).min(bytes)) * 1_000_000 / took_us;
            self.best_bytes_per_s.fetch_max(rate, Relaxed);
        }
        self.looked_us.store(now_us, Relaxed);
        self.bytes.store(bytes, Relaxed);
    }
}

/// A worker's port, as it is now.
#[derive(Debug)]
struct Port {
    facts: PortFacts,
    /// Why it is of no use just now.
    failed: Option<String>,
}

/// What one worker publishes: its line and its fabric's counters.
#[derive(Debug)]
pub(crate) struct WorkerNumbers {
    /// What it drives, and where it runs.
    words: Mutex<String>,
    pub(crate) runs: OnceLock<String>,
    port: Mutex<Option<Port>>,
    fabric: &'static str,
    names: Vec<&'static str>,
    values: Vec<AtomicU64>,
    /// What its fabrics before this one had counted.
    before: Vec<AtomicU64>,
    began: Instant,
    received: Meter,
    sent: Meter,
}

impl WorkerNumbers {
    pub(crate) fn new(carrier: &dyn Carrier, words: String, port: Option<PortFacts>) -> Self {
        let mut names: Vec<_> = FabricCounters::default().named().map(|(name, _)| published(name)).collect();
        carrier.own_counters(&mut |name, _| names.push(name));
        let zeros = || names.iter().map(|_| AtomicU64::new(0)).collect();
        let (values, before) = (zeros(), zeros());
        Self {
            words: Mutex::new(words),
            runs: OnceLock::new(),
            port: Mutex::new(port.map(|facts| Port { facts, failed: None })),
            fabric: carrier.name(),
            names,
            values,
            before,
            began: Instant::now(),
            received: Meter::default(),
            sent: Meter::default(),
        }
    }

    /// Copies the fabric's counters out; the only writer is the worker.
    pub(crate) fn publish(&self, carrier: &dyn Carrier, now: Instant) {
        let mut slots = self.values.iter().zip(&self.before);
        let mut store = |_: &'static str, value| {
            if let Some((slot, before)) = slots.next() {
                slot.store(before.load(Relaxed) + value, Relaxed);
            }
        };
        carrier.counters().named().for_each(|(name, value)| store(name, value));
        carrier.own_counters(&mut store);
        let now_us = now.saturating_duration_since(self.began).as_micros() as u64;
        self.received.look(now_us, self.value("received_bytes"));
        self.sent.look(now_us, self.value("sent_bytes"));
    }

    /// The worker's device is of no use.
    pub(crate) fn failed(&self, why: &str) {
        if let Some(port) = &mut *self.port.lock().unwrap_or_else(PoisonError::into_inner) {
            port.failed = Some(why.to_owned());
        }
    }

    /// The worker has another fabric of the same kind, which counts from nothing.
    pub(crate) fn renewed(&self, words: String, facts: PortFacts) {
        for (value, before) in self.values.iter().zip(&self.before) {
            before.store(value.load(Relaxed), Relaxed);
        }
        *self.words.lock().unwrap_or_else(PoisonError::into_inner) = words;
        *self.port.lock().unwrap_or_else(PoisonError::into_inner) = Some(Port { facts, failed: None });
    }

    fn value(&self, name: &str) -> u64 {
        let at = self.names.iter().position(|own| *own == name);
        at.map_or(0, |at| self.values[at].load(Relaxed))
    }

    /// What the status says of it: also, of a port, what it has reached of its rate, and its share of what its fabric has moved.
    pub(crate) fn line(&self, all: &[Arc<Self>]) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut line = format!("{words}: {}", self.runs.get().map_or("starting", String::as_str));
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(port) = &*port else { return line };
        let rate = port.facts.rate_bytes_per_s;
        for (what, name, meter) in
            [("received", "received_bytes", &self.received), ("sent", "sent_bytes", &self.sent)]
        {
            let (own, best) = (self.value(name), meter.best_bytes_per_s.load(Relaxed));
            let whole: u64 =
                all.iter().filter(|other| other.fabric == self.fabric).map(|other| other.value(name)).sum();
            if own == 0 {
                continue;
            }
            let share = own as f64 * 100.0 / whole.max(own) as f64;
            line += &format!("; {what} up to {:.2} Gbit/s", best as f64 * 8.0 / 1e9);
            if let Some(rate) = rate.filter(|rate| *rate > 0) {
                line += &format!(" ({:.1} % of its rate)", best as f64 * 100.0 / rate as f64);
            }
            line += &format!(", {share:.0} % of what {} has {what}", self.fabric);
        }
        if let Some(why) = &port.failed {
            line += &format!("; of no use now: {why}");
        }
        line
    }

    /// Of a port its own counters and what is known of it.
    pub(crate) fn port_numbers(&self, counters: &mut Vec<(String, u64)>, gauges: &mut Vec<(String, u64)>) {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Port { facts, failed }) = &*port else { return };
        let labels = format!("{{fabric=\"{}\",port=\"{}\"}}", self.fabric, facts.name);
        for name in ["received_bytes", "sent_bytes"] {
            counters.push((format!("fabric_port_{name}_total{labels}"), self.value(name)));
        }
        let best = |meter: &Meter| Some(meter.best_bytes_per_s.load(Relaxed));
        for (name, value) in [
            ("rate_bytes_per_second", facts.rate_bytes_per_s),
            ("best_received_bytes_per_second", best(&self.received)),
            ("best_sent_bytes_per_second", best(&self.sent)),
            ("registered_bytes", Some(facts.registered_bytes)),
            ("registration_microseconds", Some(facts.registered_us)),
            ("usable", Some(u64::from(failed.is_none()))),
        ] {
            gauges.extend(value.map(|value| (format!("fabric_port_{name}{labels}"), value)));
        }
    }
}

/// The counters of each fabric, of all its workers together.
pub(crate) fn sums(workers: &[Arc<WorkerNumbers>], counters: &mut Vec<(String, u64)>) {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for worker in workers {
        for (name, value) in worker.names.iter().zip(&worker.values) {
            *sums.entry((worker.fabric, name)).or_default() += value.load(Relaxed);
        }
    }
    counters.extend(
        sums.into_iter()
            .map(|((fabric, name), sum)| (format!("fabric_{name}_total{{fabric=\"{fabric}\"}}"), sum)),
    );
}

/// The name of a fabric's counter in the metrics.
fn published(name: &'static str) -> &'static str {
    match name {
        "payload_bytes_in" => "received_bytes",
        "payload_bytes_out" => "sent_bytes",
        "bytes_in" => "wire_received_bytes",
        "bytes_out" => "wire_sent_bytes",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use velo_fabric::{Completion, Fabric, PathError, PathId, Read};

    use super::*;
    use crate::carrier::AnyPath;

    /// A fabric that has received and sent so much.
    struct Moved(u64, u64);

    impl Fabric for Moved {
        fn name(&self) -> &'static str {
            "rdma"
        }
        fn post_read(&mut self, _: PathId, read: Read) -> Result<(), Read> {
            Err(read)
        }
        fn cancel(&mut self, _: PathId, _: u64) {}
        fn poll(&mut self, _: Instant, _: &mut Vec<Completion>) -> usize {
            0
        }
        fn close(&mut self, _: PathId) {}
        fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            None
        }
        fn next_deadline(&self) -> Option<Instant> {
            None
        }
        fn counters(&self) -> FabricCounters {
            let mut counters = FabricCounters::default();
            (counters.payload_bytes_in, counters.payload_bytes_out) = (self.0, self.1);
            counters
        }
    }

    impl Carrier for Moved {
        fn take(&mut self, _: AnyPath) -> Result<(), PathError> {
            Err(PathError::Local)
        }
    }

    fn facts(name: &str) -> PortFacts {
        let name = name.to_owned();
        PortFacts { name, rate_bytes_per_s: Some(1_000_000_000), registered_bytes: 1, registered_us: 1 }
    }

    #[test]
    fn a_ports_rate_and_share_are_shown_and_outlive_its_device() {
        let numbers =
            |name| Arc::new(WorkerNumbers::new(&Moved(0, 0), "a port".to_owned(), Some(facts(name))));
        let (one, other) = (numbers("rxe0:1"), numbers("rxe1:1"));
        let all = [one.clone(), other.clone()];
        let at = |ms| one.began.max(other.began) + Duration::from_millis(ms);
        for (ms, bytes) in [(300, 0), (800, 50_000_000), (900, 51_000_000), (1_300, 100_000_000)] {
            one.publish(&Moved(bytes, 0), at(ms));
        }
        other.publish(&Moved(300_000_000, 0), at(1_000));
        let line = one.line(&all);
        assert!(
            line.contains("received up to 0.80 Gbit/s (10.0 % of its rate), 25 % of what rdma"),
            "{line}"
        );
        assert!(!line.contains("sent"), "{line}");
        one.failed("its port is down");
        assert!(one.line(&all).ends_with("of no use now: its port is down"));
        one.renewed("the port again".to_owned(), facts("rxe0:1"));
        // A pause is no rate.
        one.publish(&Moved(7, 0), at(9_000));
        let (mut counters, mut gauges) = (Vec::new(), Vec::new());
        one.port_numbers(&mut counters, &mut gauges);
        let labels = "{fabric=\"rdma\",port=\"rxe0:1\"}";
        assert!(counters.contains(&(format!("fabric_port_received_bytes_total{labels}"), 100_000_007)));
        let best = format!("fabric_port_best_received_bytes_per_second{labels}");
        assert!(
            gauges.iter().any(|(name, value)| *name == best && (99_000_000..=100_100_000).contains(value))
        );
        let line = one.line(&all);
        assert!(line.starts_with("the port again") && !line.contains("of no use"), "{line}");
    }
}
