//! Two processes joined by a memif, one that supplies and one that takes: this program again, in the role that its first argument
//! says. The bare port loop, the packet fabric's throughput and its latency are measured by the one that takes.

mod fabric;
mod raw;

use std::env;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::dpdk::{Dpdk, DpdkOptions, DpdkPort, HugePages};

use super::{median, median_ratio};
use crate::report::{Bars, Report};

/// The first argument of a program that is one of the ends.
pub const ROLE: &str = "memif-end";
/// How long both ends may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);
/// Not measured: caches and rings fill.
const WARM_UP: Duration = Duration::from_millis(200);
/// What the two ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Frames without a protocol, filled from a cold region and emptied into another.
    Raw,
    /// Reads of 1 MiB from region to region, not sealed.
    Trusted,
    /// The same, sealed with AES-128-GCM.
    Sealed,
    /// Reads of 64 bytes, one after the other.
    Latency,
}

/// Each with its name.
const WORKS: [(Work, &str); 4] =
    [(Work::Raw, "raw"), (Work::Trusted, "trusted"), (Work::Sealed, "sealed"), (Work::Latency, "latency")];

impl Work {
    fn name(self) -> &'static str {
        WORKS.iter().find(|(work, _)| *work == self).map_or("", |(_, name)| name)
    }
}

/// How a measurement is set up.
#[derive(Debug, Clone, Copy)]
struct Setup {
    /// What is done.
    work: Work,
    /// The largest frame, headers included.
    frame_bytes: usize,
    /// Whether the client's memory is shared as it is, which saves a copy on its side.
    zero_copy: bool,
    /// How long it is measured.
    time: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
struct Figure {
    /// Bytes of frames (raw) or of content (fabric).
    bytes: u64,
    /// Frames, datagrams or reads.
    count: u64,
    /// How long it took.
    seconds: f64,
    /// Of latency: the median in nanoseconds.
    median_ns: f64,
    /// Of latency: the 99th of 100, in nanoseconds.
    p99_ns: f64,
}

impl Figure {
    /// Gigabits per second.
    fn gbit_per_s(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.seconds
    }
}

/// The fastest row of several.
#[derive(Clone)]
struct Best {
    rate: f64,
    ratio: f64,
    against: String,
}

impl Best {
    fn replaces(&self, other: &mut Option<Self>) {
        if other.as_ref().is_none_or(|other| self.rate > other.rate) {
            *other = Some(self.clone());
        }
    }
}

/// Builds the plugin where DPDK is installed, and gives its file to this process's children.
fn plugin() -> anyhow::Result<std::path::PathBuf> {
    let found = Command::new("pkg-config").args(["--exists", "libdpdk >= 22.11"]).status();
    anyhow::ensure!(found.is_ok_and(|status| status.success()), "libdpdk-dev is not installed");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--release", "--quiet", "-p", "velo-fabric-dpdk", "--features", "libdpdk"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    anyhow::ensure!(build.status()?.success(), "the plugin for DPDK does not build");
    let plugin = env::current_exe()?.with_file_name("libvelo_fabric_dpdk.so");
    Dpdk::probe(Some(&plugin))?;
    Ok(plugin)
}

/// Throughput beside the bare loop at every size of frames, and how long a small read takes.
pub fn rows(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    if !report.wants("dpdk over memif") {
        return Ok(());
    }
    let plugin = match plugin() {
        Ok(plugin) => plugin,
        Err(missing) => {
            report.note(format!("dpdk over memif is not measured: {missing:#}"));
            return Ok(());
        }
    };
    let time = Duration::from_millis(if quick { 300 } else { 1_000 });
    let (mut best, mut best_of_ethernet) = (None, None);
    for zero_copy in [false, true] {
        let kind = if zero_copy { "zero-copy" } else { "copying" };
        for frame_bytes in [1_514, 9_014, 64_000] {
            let mut rates: [Vec<f64>; 3] = Default::default();
            for _ in 0..rounds {
                for (at, work) in [Work::Raw, Work::Trusted, Work::Sealed].into_iter().enumerate() {
                    let setup = Setup { work, frame_bytes, zero_copy, time };
                    rates[at].push(measure(&plugin, setup)?.gbit_per_s());
                }
            }
            let [raw, trusted, sealed] = rates;
            let against =
                format!("the bare loop, cold data copied in and out, {:.1} Gbit/s", median(raw.clone()));
            for (what, rates) in [("trusted", trusted), ("sealed", sealed)] {
                let ratio = median_ratio(&rates, &raw);
                let rate = median(rates);
                let name = format!("dpdk over memif, {kind}, frames of {frame_bytes}, {what}");
                let none = Bars { floor: None, goal: None };
                report.ratio(&name, (rate, "Gbit/s"), against.clone(), ratio, none);
                let row =
                    Best { rate, ratio, against: format!("{against}, {kind}, frames of {frame_bytes}") };
                if what == "trusted" {
                    row.replaces(&mut best);
                    if frame_bytes == 1_514 {
                        row.replaces(&mut best_of_ethernet);
                    }
                }
            }
        }
    }
    for (which, best, floor) in
        [("frames of 1514", best_of_ethernet, 0.6), ("best size of frames", best, 0.8)]
    {
        let Some(Best { rate, ratio, against }) = best else { continue };
        let bars = Bars { floor: Some(floor), goal: None };
        report.ratio(&format!("dpdk over memif, trusted, {which}"), (rate, "Gbit/s"), against, ratio, bars);
    }
    let latency = Setup { work: Work::Latency, frame_bytes: 1_514, zero_copy: false, time };
    let figures = (0..rounds).map(|_| measure(&plugin, latency)).collect::<io::Result<Vec<_>>>()?;
    for (name, ns) in [
        ("median", median(figures.iter().map(|figure| figure.median_ns).collect())),
        ("p99", median(figures.iter().map(|figure| figure.p99_ns).collect())),
    ] {
        report.stated(&format!("dpdk over memif, a read of 64 bytes, {name}"), ns / 1e3, "µs");
    }
    Ok(())
}

/// Measures with two processes of this program.
///
/// # Errors
/// Where one of them does not start or ends badly.
fn measure(plugin: &std::path::Path, setup: Setup) -> io::Result<Figure> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("memif");
    let spawn = |taker: bool| -> io::Result<End> {
        let kind = match (taker, setup.zero_copy) {
            (true, _) => "server",
            (false, false) => "client",
            (false, true) => "zero-copy",
        };
        let mut command = Command::new(env::current_exe()?);
        command.args([ROLE, if taker { "take" } else { "supply" }, setup.work.name()]);
        command.arg(format!("memif:{kind}:{}", socket.display()));
        command.env("VELO_DPDK_PLUGIN", plugin);
        let numbers = [setup.frame_bytes, setup.time.as_millis() as usize];
        command.args(numbers.map(|number| number.to_string()));
        command.stdin(Stdio::null()).stdout(if taker { Stdio::piped() } else { Stdio::null() });
        Ok(End(command.spawn()?))
    };
    let mut taker = spawn(true)?;
    let began = Instant::now();
    while !socket.exists() {
        if began.elapsed() > PATIENCE || taker.0.try_wait()?.is_some() {
            return Err(io::Error::other("the memif's server does not start"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut supplier = spawn(false)?;
    // The figures come before the taker ends: whoever still polls a memif when its other end goes may crash.
    let mut text = String::new();
    let mut out = taker.0.stdout.take().ok_or_else(|| io::Error::other("it has no output"))?;
    let (mut byte, until) = ([0], Instant::now() + PATIENCE + 2 * setup.time);
    while Instant::now() < until && out.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(char::from(byte[0]));
    }
    let _ = supplier.0.kill();
    let numbers: Vec<f64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [bytes, count, seconds, median_ns, p99_ns] = numbers[..] else {
        return Err(io::Error::other(format!("{setup:?} gave no figures: {text:?}")));
    };
    Ok(Figure { bytes: bytes as u64, count: count as u64, seconds, median_ns, p99_ns })
}

/// One of the processes, ended with the value.
struct End(Child);

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs as one of the ends, with the arguments after [`ROLE`]. The one that supplies is killed when it is needed no more.
///
/// # Panics
/// Where the arguments are not those of [`measure`], or DPDK does not start.
pub fn run(arguments: &[String]) {
    let [end, work, device, numbers @ ..] = arguments else { panic!("{arguments:?}") };
    let numbers: Vec<usize> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let [frame_bytes, ms] = numbers[..] else { panic!("{arguments:?}") };
    let (work, _) = WORKS.into_iter().find(|(_, name)| name == work).expect("something to do");
    let (taker, time) = (end == "take", Duration::from_millis(ms as u64));
    let mut options = DpdkOptions {
        frame_max_bytes: Some(frame_bytes.max(1_514)),
        huge_pages: HugePages::Auto,
        ..DpdkOptions::default()
    };
    options.devices.push(device.parse().expect("a device"));
    let port = Dpdk::start(options).and_then(|dpdk| dpdk.open(0));
    let port = port.unwrap_or_else(|error| panic!("{error}")).remove(0);
    pin(usize::from(taker));
    wait_for_link(&port);
    let figure = match (work, taker) {
        (Work::Raw, false) => raw::supply(port, frame_bytes),
        (Work::Raw, true) => raw::take(port, time),
        (_, false) => fabric::supply(port, work),
        (Work::Latency, true) => fabric::latency(port, time),
        (_, true) => fabric::take(port, work, time),
    };
    let Figure { bytes, count, seconds, median_ns, p99_ns } = figure;
    println!("{bytes} {count} {seconds} {median_ns} {p99_ns}");
    // Until it is killed: see `measure`.
    thread::sleep(PATIENCE);
}

fn wait_for_link(port: &DpdkPort) {
    let began = Instant::now();
    while !port.device().link().up {
        assert!(began.elapsed() < PATIENCE, "no link");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The ends on two CPUs, where there are two.
fn pin(index: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let mut one = CpuSet::new();
    one.set(cpus[index % cpus.len()]);
    let _ = sched_setaffinity(None, &one);
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 1, last)), 7_444)
}
