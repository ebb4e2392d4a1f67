//! The RDMA fabric beside perftest's `ib_read_bw`, on this host's device, or on soft-RoCE in a guest where it has none.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use velo_fabric::pool::{Pool, PoolOptions};
use velo_fabric::rdma::device::{Address, Completions, Device, Plugin, Purpose, addresses};
use velo_fabric::rdma::table::End;
use velo_fabric::rdma::{NewPath, Rdma, RdmaOptions};
use velo_fabric::supply::Threads;
use velo_fabric::{Completion, Fabric as _, PathId};
use velo_object::NodeId;
use velo_tests::Cluster;
use velo_tests::content::random_file;

use super::region::{Region, Target, between_threads};
use crate::report::{Bars, Report};
use crate::tools;

const PATH: PathId = 1;
const MIB: f64 = (1 << 20) as f64;
/// How long everything in the guest may take. Its memory is what the host can spare, within these bounds.
const GUEST_SECONDS: u32 = 1_800;
const GUEST_MIN_BYTES: u64 = 5 << 30;
/// Of the memory that is there so much is left to others, to page caches and to what else is measured.
const SPARED_BYTES: u64 = 2 << 30;
/// What the provider lends from.
const LENT_BYTES: u64 = 48 << 20;
/// Registered at most, where the machine has so much.
const REGISTERED_MAX_BYTES: u64 = 64 << 30;

/// Packages without which nothing can be measured, by a file of each.
const NEEDED: [(&str, &str); 3] = [
    ("/usr/include/infiniband/verbs.h", "libibverbs-dev"),
    ("/usr/include/rdma/rdma_cma.h", "librdmacm-dev"),
    ("ib_read_bw", "perftest"),
];

/// All rows; in a guest where this host has no device.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let is_there = |file: &str| {
        if file.starts_with('/') { Path::new(file).exists() } else { tools::find(file).is_some() }
    };
    let missing: Vec<_> =
        NEEDED.iter().filter(|(file, _)| !is_there(file)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        let why =
            format!("nothing was measured: the Debian packages {} are not installed", missing.join(", "));
        velo_tests::skip(&format!("RDMA: {why}"));
        report.note(why);
        return Ok(());
    }
    build_plugin()?;
    match addresses().into_iter().next() {
        Some(address) => measure_here(report, quick, &address),
        None => in_a_guest(report, quick),
    }
}

/// The plugin beside this program.
fn build_plugin() -> anyhow::Result<()> {
    if beside("libvelo_fabric_rdma.so")?.exists() && !addresses().is_empty() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "-p", "velo-fabric-rdma", "--features", "libibverbs"]);
    let built = build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    ensure!(
        built.success(),
        "the plugin does not build: libibverbs-dev, librdmacm-dev and libclang-dev are needed"
    );
    Ok(())
}

fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(own.parent().context("a program lies in a folder")?.join(name))
}

/// Runs this program again in a guest that has soft-RoCE, and takes its rows.
fn in_a_guest(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut guest = Command::new(root.join("tests/guest/rdma"));
    let available = crate::machine::available_bytes().saturating_sub(SPARED_BYTES);
    let most = REGISTERED_MAX_BYTES + 2 * SPARED_BYTES;
    // A quick run has no time for much memory, which an emulated machine is slow to touch.
    let bytes = if quick { GUEST_MIN_BYTES } else { available.clamp(GUEST_MIN_BYTES, most) };
    let memory = format!("{}M", bytes >> 20);
    guest.args(["--memory", &memory, "--timeout", &GUEST_SECONDS.to_string(), "--"]);
    guest.arg(std::env::current_exe()?).args(["rdma", "--json", "--only", ""]);
    if quick {
        guest.arg("--quick");
    }
    let mut guest = guest.current_dir(&root).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let printed = BufReader::new(guest.stdout.take().context("its output is ours")?);
    let mut rows = 0;
    for line in printed.lines() {
        let line = line?;
        match serde_json::from_str(&line) {
            Ok(row) => {
                report.push(row);
                rows += 1;
            }
            Err(_) => eprintln!("guest: {line}"),
        }
    }
    let status = guest.wait()?;
    if status.code() == Some(77) {
        report.note("nothing was measured: no guest can be run here");
        return Ok(());
    }
    // 1 is a row that misses its bar, which the row says itself.
    ensure!(rows > 0 && matches!(status.code(), Some(0 | 1)), "the guest ended with {status}");
    report.note(
        "This host has no RDMA device: everything was measured on soft-RoCE in an emulated machine. Only ratios mean anything.",
    );
    Ok(())
}

fn measure_here(report: &mut Report, quick: bool, address: &Address) -> anyhow::Result<()> {
    let plugin = Plugin::open(None)?;
    region_to_region(report, quick, plugin, address)?;
    registration(report, plugin, address)?;
    stored(report, quick)
}

/// Two fabrics of one device, with a proven path between them.
fn pair(
    device: &Device,
    address: &Address,
    target: &Target,
) -> anyhow::Result<(Rdma<Completions>, Rdma<Completions>)> {
    device.register(target.pool(), Purpose::Filled)?;
    let fabric = || -> anyhow::Result<_> {
        let lent = Pool::new(LENT_BYTES)?;
        device.register(&lent, Purpose::Lent)?;
        let supply = Threads::into_buffers(Arc::new(Region::new()), lent, 1)?;
        let options = RdmaOptions { stall_timeout: Duration::from_secs(10), ..RdmaOptions::default() };
        Ok(Rdma::new(device.completions(2)?, Box::new(supply), options)?)
    };
    let (mut serving, mut reading) = (fabric()?, fabric()?);
    let (ours, theirs) =
        (device.prepare(serving.verbs().queue(), 1)?, device.prepare(reading.verbs().queue(), 2)?);
    let end = |end: &End| End { gid: address.gid, ..*end };
    ours.connect(address.gid_index, &end(theirs.end()))?;
    theirs.connect(address.gid_index, &end(ours.end()))?;
    for (fabric, prepared, begins) in [(&mut serving, ours, false), (&mut reading, theirs, true)] {
        let qp = fabric.verbs_mut().adopt(prepared).context("a number twice")?;
        let path = NewPath { id: PATH, peer: NodeId::from_bytes([1; 32]), qp, begins };
        fabric.add_path(Instant::now(), path)?;
    }
    let (mut done, mut proven, began) = (Vec::new(), 0, Instant::now());
    while proven < 2 {
        serving.poll(Instant::now(), &mut done);
        reading.poll(Instant::now(), &mut done);
        proven += done.drain(..).filter(|done| matches!(done, Completion::PathProven { .. })).count();
        ensure!(began.elapsed() < Duration::from_secs(10), "the path was not proven");
    }
    Ok((serving, reading))
}

/// The rate of perftest's READs of 1 MiB between two processes, in MiB/s.
fn perftest(address: &Address, mebibytes: u64) -> anyhow::Result<f64> {
    let program = tools::find("ib_read_bw").context("ib_read_bw is not installed (Debian: perftest)")?;
    let command = || {
        let mut command = Command::new(&program);
        command.args(["-F", "-s", "1048576", "-n", &mebibytes.to_string(), "-d", &address.place.device]);
        command.args(["-i", &address.place.port.to_string(), "-x", &address.gid_index.to_string()]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    };
    let mut server = command().stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    let measured = loop {
        // It listens some time after it has started.
        let client = command().arg(address.ip.to_string()).output()?;
        let printed = String::from_utf8_lossy(&client.stdout).into_owned();
        let row = printed.lines().map(str::split_whitespace).find_map(|mut words| {
            (words.next() == Some("1048576")).then(|| words.nth(2).and_then(|word| word.parse::<f64>().ok()))
        });
        if let Some(rate) = row.flatten() {
            break Ok(rate);
        }
        if began.elapsed() > Duration::from_secs(20) || server.try_wait()?.is_some() {
            break Err(anyhow!("ib_read_bw gave no rate: {printed}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let _ = server.kill();
    server.wait()?;
    measured
}

fn region_to_region(
    report: &mut Report,
    quick: bool,
    plugin: Plugin,
    address: &Address,
) -> anyhow::Result<()> {
    let name = "reads of 1 MiB, region to region";
    if !report.wants(name) {
        return Ok(());
    }
    let (rounds, pieces) = if quick { (1, 32) } else { (5, 96) };
    let device = Device::open(plugin, &address.place)?;
    let mut target = Target::new()?;
    let (mut serving, mut reading) = pair(&device, address, &target)?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let beside = perftest(address, pieces)?;
        let seconds = between_threads(&mut serving, &mut reading, &[PATH], pieces << 20, &mut target)?;
        let rate = pieces as f64 / seconds;
        ratios.push(rate / beside);
        ours.push(rate);
        theirs.push(beside);
    }
    let (rate, beside) = (super::median(ours), super::median(theirs));
    let against = format!("ib_read_bw, messages of 1 MiB, {beside:.1} MiB/s");
    report.ratio(
        name,
        (rate, "MiB/s"),
        against,
        super::median(ratios),
        Bars { floor: Some(0.8), goal: Some(1.0) },
    );
    if let Some(port) = device.rate_bytes_per_s() {
        report.stated("what the port says of its rate", port as f64 / MIB, "MiB/s");
    }
    Ok(())
}

/// How long it takes to register memory: as much of it as there is room for.
fn registration(report: &mut Report, plugin: Plugin, address: &Address) -> anyhow::Result<()> {
    let name = "registering 1 GiB for READs";
    if !report.wants(name) {
        return Ok(());
    }
    let available = crate::machine::available_bytes().saturating_sub(SPARED_BYTES);
    let bytes = available.clamp(64 << 20, REGISTERED_MAX_BYTES) & !((2 << 20) - 1);
    // Where this is root's machine, such as a guest, it gives huge pages.
    let pages = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(pages).unwrap_or_default();
    let _ = std::fs::write(pages, (bytes >> 21).to_string());
    let measured = (|| -> anyhow::Result<()> {
        let pool = Pool::with(PoolOptions { bytes, huge_pages: true, populate: true })?;
        let device = Device::open(plugin, &address.place)?;
        let registered = device.register(&pool, Purpose::Filled)?;
        let gib = registered.bytes as f64 / (1u64 << 30) as f64;
        let how = if pool.is_huge() { "on huge pages" } else { "on small pages" };
        let name = format!("{name}, {how}: {gib:.1} GiB in {} slices side by side", registered.regions);
        report.stated(&name, registered.took.as_secs_f64() * 1e3 / gib, "ms");
        Ok(())
    })();
    let _ = std::fs::write(pages, before.trim());
    measured
}

/// Two nodes: verified and stored.
fn stored(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let name = "two nodes, verified and stored";
    if !report.wants(name) {
        return Ok(());
    }
    let mebibytes: u64 = if quick { 32 } else { 128 };
    let cluster = Cluster::start_with(2, &velo_tests::rdma::settings(""));
    let get = |seed, bytes: u64| -> anyhow::Result<f64> {
        let source = cluster.path("source");
        random_file(&source, seed, bytes);
        let put = cluster.nodes[0].json(&["put", source.to_str().context("UTF-8")?]);
        let id = put["id"].as_str().context("an id")?.to_owned();
        let began = Instant::now();
        cluster.nodes[1].ok(&["get", &id, cluster.path("dest").to_str().context("UTF-8")?]);
        Ok(began.elapsed().as_secs_f64())
    };
    let by_rdma = || cluster.nodes[0].counter("fabric_sent_bytes_total{fabric=\"rdma\"}");
    let began = Instant::now();
    for seed in 100.. {
        // Until the path is proven streams carry what is asked.
        get(seed, 4 << 20)?;
        if by_rdma() > 0 {
            break;
        }
        ensure!(
            began.elapsed() < Duration::from_secs(60),
            "RDMA carries nothing: {}",
            cluster.nodes[1].log_tail()
        );
    }
    let before = by_rdma();
    let seconds = get(1, mebibytes << 20)?;
    ensure!(by_rdma() - before >= mebibytes << 20, "not everything went by RDMA");
    report.stated(name, mebibytes as f64 / seconds, "MiB/s");
    Ok(())
}
