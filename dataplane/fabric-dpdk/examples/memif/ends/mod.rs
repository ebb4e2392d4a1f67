//! Two processes joined by a memif, one that supplies and one that takes: this program again, in the role that its first argument
//! says. The bare port loop, the packet fabric's throughput and its latency are measured by the one that takes.

pub mod fabric;
pub mod raw;

use std::env;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::dpdk::{Dpdk, DpdkError, DpdkOptions, DpdkPort, HugePages};

/// The first argument of a program that is one of the ends.
pub const ROLE: &str = "memif-end";
/// How long both ends may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);
/// Not measured: caches and rings fill.
pub const WARM_UP: Duration = Duration::from_millis(200);
/// Bytes of the region that data come from, and of the one that they go to: far more than any cache holds.
pub const REGION_BYTES: usize = 256 << 20;

/// What the two ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Frames without a protocol, as they come.
    RawUntouched,
    /// Frames without a protocol, filled from a cold region and emptied into another.
    RawCopied,
    /// Reads of 1 MiB from region to region, not sealed.
    Trusted,
    /// The same, sealed with AES-128-GCM.
    Sealed,
    /// Reads of 64 bytes, one after the other.
    Latency,
}

/// Each with its name.
pub const WORKS: [(Work, &str); 5] = [
    (Work::RawUntouched, "raw"),
    (Work::RawCopied, "raw, copied"),
    (Work::Trusted, "trusted"),
    (Work::Sealed, "sealed"),
    (Work::Latency, "latency"),
];

impl Work {
    /// Its name.
    pub fn name(self) -> &'static str {
        WORKS.iter().find(|(work, _)| *work == self).map_or("", |(_, name)| name)
    }
}

/// How a measurement is set up.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// What is done.
    pub work: Work,
    /// The largest frame, headers included.
    pub frame_bytes: usize,
    /// Whether the client's memory is shared as it is, which saves a copy on its side.
    pub zero_copy: bool,
    /// Whether the end that takes is the memif's client.
    pub taker_is_client: bool,
    /// Descriptors of each ring; 0 for what the port chooses.
    pub descriptors: usize,
    /// How long it is measured.
    pub time: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figure {
    /// Bytes of frames (raw) or of content (fabric).
    pub bytes: u64,
    /// Frames, datagrams or reads.
    pub count: u64,
    /// How long it took.
    pub seconds: f64,
    /// Of latency: the median in nanoseconds.
    pub median_ns: f64,
    /// Of latency: the 99th of 100, in nanoseconds.
    pub p99_ns: f64,
}

impl Figure {
    /// Gigabits per second.
    pub fn gbit_per_s(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.seconds
    }
}

/// Why DPDK cannot be measured here, if it cannot.
pub fn missing() -> Option<DpdkError> {
    Dpdk::probe(None).err()
}

/// Measures with two processes of this program.
///
/// # Errors
/// Where one of them does not start or ends badly.
pub fn measure(setup: Setup) -> io::Result<Figure> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("memif");
    let spawn = |taker: bool| -> io::Result<End> {
        let kind = match (taker == setup.taker_is_client, setup.zero_copy) {
            (false, _) => "server",
            (true, false) => "client",
            (true, true) => "zero-copy",
        };
        let mut command = Command::new(env::current_exe()?);
        command.args([ROLE, if taker { "take" } else { "supply" }, setup.work.name()]);
        command.arg(format!("memif:{kind}:{}", socket.display()));
        let numbers = [setup.frame_bytes, setup.descriptors, setup.time.as_millis() as usize];
        command.args(numbers.map(|number| number.to_string()));
        command.stdin(Stdio::null()).stdout(if taker { Stdio::piped() } else { Stdio::null() });
        Ok(End(command.spawn()?))
    };
    let mut server = spawn(!setup.taker_is_client)?;
    let began = Instant::now();
    while !socket.exists() {
        if began.elapsed() > PATIENCE || server.0.try_wait()?.is_some() {
            return Err(io::Error::other("the memif's server does not start"));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let mut client = spawn(setup.taker_is_client)?;
    let (taker, supplier) =
        if setup.taker_is_client { (&mut client, &mut server) } else { (&mut server, &mut client) };
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
    let [frame_bytes, descriptors, ms] = numbers[..] else { panic!("{arguments:?}") };
    let (work, _) = WORKS.into_iter().find(|(_, name)| name == work).expect("something to do");
    let (taker, time) = (end == "take", Duration::from_millis(ms as u64));
    let mut options = DpdkOptions {
        frame_max_bytes: Some(frame_bytes.max(1_514)),
        descriptors: (descriptors > 0).then_some(descriptors),
        huge_pages: HugePages::Auto,
        ..DpdkOptions::default()
    };
    options.devices.push(device.parse().expect("a device"));
    let port = Dpdk::start(options).and_then(|dpdk| dpdk.open(0));
    let port = port.unwrap_or_else(|error| panic!("{error}")).remove(0);
    pin(usize::from(taker));
    wait_for_link(&port);
    let figure = match (work, taker) {
        (Work::RawUntouched | Work::RawCopied, false) => {
            raw::supply(port, frame_bytes, work == Work::RawCopied)
        }
        (Work::RawUntouched | Work::RawCopied, true) => raw::take(port, work == Work::RawCopied, time),
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
