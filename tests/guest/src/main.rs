//! Cuts the power of a guest that runs Velo, again and again, at random moments, and holds each next life to what was
//! acknowledged in the ones before: `hard-stops --run SCRIPT --velo EXECUTABLE [--seed S] [--durability fsync|process] [STOPS]`.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use velo_guest::ledger::{Event, Ledger};
use velo_guest::machine::{Life, Machine, Said};

/// The disk: what the nodes keep is some 50 MiB.
const DISK_BYTES: u64 = 1 << 30;
/// The status of `tests/guest/run` where no guest can be run.
const SKIPPED: i32 = 77;
/// How often QEMU may die by itself.
const EMULATOR_DEATHS: u32 = 5;

struct Options {
    run: PathBuf,
    velo: PathBuf,
    seed: u64,
    stops: u32,
    durability: String,
}

fn options() -> anyhow::Result<Options> {
    let (mut run, mut velo, mut seed, mut stops, mut durability) =
        (None, None, None, 100, "fsync".to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--run" => run = Some(PathBuf::from(value()?)),
            "--velo" => velo = Some(PathBuf::from(value()?)),
            "--seed" => seed = Some(value()?.parse().context("a seed is a number")?),
            "--durability" => durability = value()?,
            count => stops = count.parse().with_context(|| format!("{count} is no number of stops"))?,
        }
    }
    let run = run.context("no --run: tests/guest/hard-stops gives it")?;
    let velo = velo.context("no --velo: tests/guest/hard-stops gives it")?;
    Ok(Options { run, velo, seed: seed.unwrap_or_else(|| rand::rng().random()), stops, durability })
}

fn main() -> ExitCode {
    let scratch = match tempfile::Builder::new().prefix("velo-hard-stops-").tempdir() {
        Ok(scratch) => scratch,
        Err(error) => {
            eprintln!("hard-stops: no temporary directory: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = options().and_then(|options| HardStops::new(options, scratch.path())?.run());
    match result {
        Ok(Outcome::Passed) => ExitCode::SUCCESS,
        Ok(Outcome::Skipped) => ExitCode::from(SKIPPED as u8),
        Err(error) => {
            let kept = scratch.keep();
            eprintln!("hard-stops: FAILED: {error:#}");
            eprintln!(
                "hard-stops: the disk's image, the nodes' logs and the ledger are in {}",
                kept.display()
            );
            ExitCode::FAILURE
        }
    }
}

enum Outcome {
    Passed,
    Skipped,
}

/// Where in a life the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Recovery,
    Work,
}

/// One stop, drawn from the seed.
#[derive(Debug)]
struct Plan {
    phase: Phase,
    events: usize,
    after: Duration,
    amid_writes: bool,
    keep: f64,
    writeback_s: u32,
    mount: String,
}

impl Plan {
    fn draw(random: &mut StdRng) -> Self {
        let phase = if random.random_bool(0.15) { Phase::Recovery } else { Phase::Work };
        // Counted in what the guest reports, and only then in time, so that a loaded host hits the same moments.
        let (events, after_ms) = match phase {
            Phase::Recovery => (0, random.random_range(0..3000)),
            Phase::Work => (random.random_range(0..10), random.random_range(0..2500)),
        };
        // Most writes are followed by a flush at once, and few moments lie between the two.
        let amid_writes = random.random_bool(0.6);
        let keep = match random.random_range(0..4) {
            0 | 1 => 0.0,
            2 => 0.5,
            _ => random.random_range(0.05..0.95),
        };
        // How soon the guest writes back what nobody asks it to flush.
        let writeback_s = if random.random_bool(0.5) { 0 } else { 30 };
        // How soon the journal commits by itself; and renames do not flush what they rename, as other file systems do not.
        let commit = [1, 5, 300][random.random_range(0..3)];
        let after = Duration::from_millis(after_ms);
        let mount = format!("noauto_da_alloc,commit={commit}");
        Self { phase, events, after, amid_writes, keep, writeback_s, mount }
    }
}

#[derive(Debug, Default)]
struct Totals {
    in_recovery: u32,
    amid_put: u32,
    amid_pull: u32,
    lost_blocks: usize,
    kept_blocks: usize,
    puts: usize,
    pulls: usize,
    pins: usize,
    refs: usize,
    removals: usize,
    checked: usize,
    read_back: usize,
    emulator_deaths: u32,
}

impl Totals {
    fn acknowledged(&self) -> usize {
        self.puts + self.pulls + self.pins + self.refs + self.removals
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Checked { roots, read_back } => {
                self.checked += roots;
                self.read_back += read_back;
            }
            Event::Put { .. } => self.puts += 1,
            Event::Pulled { .. } => self.pulls += 1,
            Event::Pinned { .. } => self.pins += 1,
            Event::Ref { .. } => self.refs += 1,
            Event::Removed { .. } => self.removals += 1,
            Event::Starting
            | Event::Working
            | Event::TryPut { .. }
            | Event::TryPull { .. }
            | Event::TryRemove { .. }
            | Event::TryRef { .. } => {}
        }
    }
}

struct HardStops {
    options: Options,
    machine: Machine,
    workload: String,
    ledger: Ledger,
    totals: Totals,
}

impl HardStops {
    fn new(options: Options, scratch: &Path) -> anyhow::Result<Self> {
        let workload = std::env::current_exe()?.with_file_name("guest-workload");
        ensure!(workload.exists(), "{} is not built", workload.display());
        let workload = workload.to_str().context("a path that is not UTF-8")?.to_owned();
        let machine = Machine::new(&options.run, scratch, DISK_BYTES)?;
        Ok(Self { options, machine, workload, ledger: Ledger::default(), totals: Totals::default() })
    }

    fn run(mut self) -> anyhow::Result<Outcome> {
        println!("hard-stops: {} stops, seed {}", self.options.stops, self.options.seed);
        if !self.the_disk_forgets()? {
            return Ok(Outcome::Skipped);
        }
        self.run_through("noauto_da_alloc", &["nodes", "make"]).context("while the cluster was made")?;
        let began = Instant::now();
        for number in 1..=self.options.stops {
            let mut random = StdRng::seed_from_u64(self.options.seed.wrapping_add(u64::from(number)));
            let plan = Plan::draw(&mut random);
            while !self
                .stop(number, &plan, &mut random)
                .with_context(|| format!("in life {number}, planned as {plan:?}"))?
            {}
        }
        self.run_through("defaults", &["nodes", "check"]).context("after the last stop")?;
        let totals = &self.totals;
        println!(
            "hard-stops: passed: {} stops ({} during recovery, {} in the middle of a put, {} of a pull) in {} s; {} puts, {} \
             pulls, {} pins, {} refs and {} removals acknowledged; {} roots and refs checked, {} trees read back; {} \
             unflushed blocks lost, {} kept",
            self.options.stops,
            totals.in_recovery,
            totals.amid_put,
            totals.amid_pull,
            began.elapsed().as_secs(),
            totals.puts,
            totals.pulls,
            totals.pins,
            totals.refs,
            totals.removals,
            totals.checked,
            totals.read_back,
            totals.lost_blocks,
            totals.kept_blocks,
        );
        Ok(Outcome::Passed)
    }

    /// Proves that this test could fail: after a power cut the flushed file is there, and neither the one that only the disk's
    /// cache had nor the one that only the page cache had. False where no guest can be run.
    fn the_disk_forgets(&mut self) -> anyhow::Result<bool> {
        let mut random = StdRng::seed_from_u64(self.options.seed);
        let life = self.machine.boot("noauto_da_alloc,commit=300", &[&self.workload, "lossy", "write"])?;
        loop {
            match life.listen(None) {
                Said::Line(line) if line == "written" => break,
                Said::Line(line) => println!("guest: {line}"),
                Said::Nothing | Said::End => {
                    let (status, _) = life.end()?;
                    ensure!(status.code() == Some(SKIPPED), "the guest ended with {status}");
                    return Ok(false);
                }
            }
        }
        let (cut, _) = life.cut_power(0.0, &mut random)?;
        let lines = self.run_through("noauto_da_alloc", &["lossy", "read"])?;
        ensure!(
            lines == ["1 1 0"],
            "the disk does not lose what it should, or loses what it should not: flushed, direct, cached: {lines:?}"
        );
        println!("hard-stops: the disk forgets what was not flushed ({} blocks)", cut.lost_blocks);
        Ok(true)
    }

    /// Runs the workload to its own end and takes what it says into the ledger; other lines are returned.
    fn run_through(&mut self, mount: &str, arguments: &[&str]) -> anyhow::Result<Vec<String>> {
        self.write_ledger()?;
        let [velo, durability] = self.environment()?;
        let command = ["env", &velo, &durability, &self.workload];
        let life = self.machine.boot(mount, &[&command, arguments].concat())?;
        let (status, lines) = life.end()?;
        let others = self.take(lines)?;
        ensure!(status.success(), "the guest ended with {status}: {}", others.join("\n"));
        Ok(others)
    }

    fn environment(&self) -> anyhow::Result<[String; 2]> {
        let velo = self.options.velo.to_str().context("a path that is not UTF-8")?;
        Ok([format!("VELO_EXECUTABLE={velo}"), format!("VELO_STORE_DURABILITY={}", self.options.durability)])
    }

    fn write_ledger(&self) -> anyhow::Result<()> {
        Ok(std::fs::write(self.machine.out().join("ledger"), serde_json::to_vec_pretty(&self.ledger)?)?)
    }

    /// One life and its end by a power cut. False where QEMU died before by a defect of its own: that stops the guest as hard,
    /// but not at the moment that was planned, and is not counted.
    fn stop(&mut self, number: u32, plan: &Plan, random: &mut StdRng) -> anyhow::Result<bool> {
        let began = Instant::now();
        self.write_ledger()?;
        let seed = random.random::<u64>().to_string();
        let [velo, durability] = self.environment()?;
        let writeback = plan.writeback_s.to_string();
        let command = ["env", &velo, &durability, &self.workload, "nodes", "work", &seed, &writeback];
        let life = self.machine.boot(&plan.mount, &command)?;
        let mut heard = Vec::new();
        let Moment::Planned(working) = listen(&life, plan, &mut heard) else {
            let (status, late) = life.end_keeping(plan.keep, random)?;
            heard.extend(late);
            let others = self.take(heard)?;
            self.totals.emulator_deaths += 1;
            ensure!(
                status.code().is_some_and(|code| code > 128)
                    && self.totals.emulator_deaths <= EMULATOR_DEATHS,
                "the guest ended by itself ({status}): {}",
                others.join("\n")
            );
            println!(
                "hard-stops: {number}: QEMU died ({status}); that life is not counted, and this one is lived again"
            );
            return Ok(false);
        };
        if plan.amid_writes {
            life.wait_for_unflushed(Duration::from_secs(3));
        }
        let (cut, late) = life.cut_power(plan.keep, random)?;
        heard.extend(late);
        let before = self.totals.acknowledged();
        let (amid_put, amid_pull) = unanswered(&heard);
        self.totals.amid_put += u32::from(amid_put);
        self.totals.amid_pull += u32::from(amid_pull);
        let others = self.take(heard)?;
        ensure!(others.is_empty(), "the guest said: {}", others.join("\n"));
        self.totals.in_recovery += u32::from(plan.phase == Phase::Recovery);
        self.totals.lost_blocks += cut.lost_blocks;
        self.totals.kept_blocks += cut.kept_blocks;
        println!(
            "hard-stops: {number}: {:?} + {} events + {} ms{}, {}, writeback {} s: {} acknowledged, {} unflushed blocks lost, \
             {} kept; {:.1} s{}",
            plan.phase,
            plan.events,
            plan.after.as_millis(),
            if plan.amid_writes { ", amid writes" } else { "" },
            plan.mount,
            plan.writeback_s,
            self.totals.acknowledged() - before,
            cut.lost_blocks,
            cut.kept_blocks,
            began.elapsed().as_secs_f64(),
            working.map_or_else(String::new, |at| format!(
                ", working after {:.1} s",
                (at - began).as_secs_f64()
            )),
        );
        Ok(true)
    }

    /// Writes events down; what is none is returned.
    fn take(&mut self, lines: Vec<String>) -> anyhow::Result<Vec<String>> {
        let mut others = Vec::new();
        for line in lines {
            let Ok(event) = serde_json::from_str::<Event>(&line) else {
                // The last line may have been cut with the power; anything else is the workload's complaint.
                if !line.starts_with('{') {
                    others.push(line);
                }
                continue;
            };
            self.totals.count(&event);
            self.ledger.record(&event);
        }
        Ok(others)
    }
}

/// Whether the lines that a life said end within a put, and within a pull.
fn unanswered(heard: &[String]) -> (bool, bool) {
    let (mut put, mut pull) = (false, false);
    for event in heard.iter().filter_map(|line| serde_json::from_str(line).ok()) {
        match event {
            Event::TryPut { .. } => put = true,
            Event::Put { .. } => put = false,
            Event::TryPull { .. } => pull = true,
            Event::Pulled { .. } => pull = false,
            _ => {}
        }
    }
    (put, pull)
}

/// What a life came to.
enum Moment {
    /// The planned moment; when the guest had checked everything and begun to work, if it had.
    Planned(Option<Instant>),
    /// The guest ended, or said nothing for too long.
    End,
}

/// Listens until the planned moment has come.
fn listen(life: &Life<'_>, plan: &Plan, heard: &mut Vec<String>) -> Moment {
    let begins = match plan.phase {
        Phase::Recovery => Event::Starting,
        Phase::Work => Event::Working,
    };
    let (mut begun, mut events, mut moment, mut working) = (false, 0, None, None);
    loop {
        match life.listen(moment) {
            Said::Line(line) => {
                if let Ok(event) = serde_json::from_str::<Event>(&line) {
                    events += usize::from(begun);
                    begun |= event == begins;
                    if event == Event::Working {
                        working = Some(Instant::now());
                    }
                }
                heard.push(line);
                if begun && events >= plan.events && moment.is_none() {
                    moment = Some(Instant::now() + plan.after);
                }
            }
            Said::Nothing if moment.is_some() => return Moment::Planned(working),
            Said::Nothing | Said::End => return Moment::End,
        }
    }
}
