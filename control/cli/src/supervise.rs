//! Runs the two daemons of a node as processes of their own, starts them again when they die, and stops both cleanly.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use velo_control::client::ControlJson;

use crate::exit::{FAILED, Failure, Said};
use crate::interrupt::Interrupt;
use crate::node::Node;

/// The wait before the first new start of a daemon; it doubles with each that follows soon.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A daemon that ran this long has started well: the wait begins anew.
const STEADY: Duration = Duration::from_secs(60);
/// A daemon that has not ended so long after SIGTERM is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(20);

/// What velod wrote into `run/velod.json` when it became ready.
#[derive(Debug, Clone, Deserialize)]
pub struct VelodJson {
    /// Its process.
    pub pid: u32,
    /// Its node.
    pub node: String,
    /// Where it listens for other nodes.
    pub listen: Vec<String>,
}

/// Both daemons, ready.
#[derive(Debug, Clone)]
pub struct Ready {
    /// What velod said.
    pub velod: VelodJson,
    /// What velo-control said.
    pub control: ControlJson,
}

/// One daemon.
struct Daemon {
    name: &'static str,
    role: &'static str,
    ready_file: PathBuf,
    child: Option<Child>,
    started: Instant,
    start_at: Instant,
    wait: Duration,
    was_ready: bool,
}

/// Runs both until the user interrupts. `ready` is told once, when both are.
///
/// # Errors
/// Where a daemon ends before it was ever ready: its own words are on standard error then.
pub fn run(
    node: &Node,
    interrupt: &Interrupt,
    mut ready: impl FnMut(&Ready) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let paths = node.paths();
    let now = Instant::now();
    let daemon = |name, role, ready_file| Daemon {
        name,
        role,
        ready_file,
        child: None,
        started: now,
        start_at: now,
        wait: FIRST_WAIT,
        was_ready: false,
    };
    let mut daemons = [
        daemon("velod", "data", paths.velod_ready()),
        daemon("velo-control", "control", paths.control_ready()),
    ];
    let result = supervise(node, interrupt, &mut daemons, &mut ready);
    stop(&mut daemons);
    result
}

fn supervise(
    node: &Node,
    interrupt: &Interrupt,
    daemons: &mut [Daemon; 2],
    ready: &mut impl FnMut(&Ready) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut told = false;
    while !interrupt.is_set() {
        for daemon in daemons.iter_mut() {
            daemon.tend(node, interrupt)?;
        }
        if !told && let (Some(velod), Some(control)) = (daemons[0].is_ready(), daemons[1].is_ready()) {
            ready(&Ready { velod, control })?;
            told = true;
        }
        std::thread::sleep(if told { TICK * 5 } else { TICK });
    }
    Ok(())
}

impl Daemon {
    /// Starts it, or starts it again when its time has come.
    fn tend(&mut self, node: &Node, interrupt: &Interrupt) -> anyhow::Result<()> {
        let Some(child) = &mut self.child else {
            if Instant::now() >= self.start_at {
                self.start(node)?;
            }
            return Ok(());
        };
        let Some(status) = child.try_wait().with_context(|| self.name)? else {
            self.was_ready |= self.is_ready::<serde_json::Value>().is_some();
            return Ok(());
        };
        self.child = None;
        if interrupt.is_set() {
            return Ok(()); // Ctrl-C came to it as well
        }
        if !self.was_ready {
            bail!(Said(said(status)));
        }
        if self.started.elapsed() >= STEADY {
            self.wait = FIRST_WAIT;
        }
        self.start_at = Instant::now() + self.wait;
        let wait = self.wait.as_secs_f64();
        node.output.warn(format!("{} ended with {status}; it is started again in {wait} s", self.name));
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        Ok(())
    }

    fn start(&mut self, node: &Node) -> anyhow::Result<()> {
        // What a former process left would look like readiness if ids of processes were used again. That of a living one is its own.
        let alive = self.ready_pid().and_then(|pid| Pid::from_raw(pid as i32));
        if alive.is_none_or(|pid| rustix::process::test_kill_process(pid).is_err()) {
            match std::fs::remove_file(&self.ready_file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", self.ready_file.display()));
                }
                _ => {}
            }
        }
        let arguments: [OsString; 4] = [
            "daemon".into(),
            self.role.into(),
            "--with-parent".into(),
            std::process::id().to_string().into(),
        ];
        let velo = std::env::current_exe().context("cannot find the velo executable")?;
        let child = Command::new(velo)
            .args(&node.flags)
            .args(arguments)
            .stdin(Stdio::null())
            // Standard output is for answers; the daemons' log goes to standard error.
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        self.child = Some(child);
        self.started = Instant::now();
        Ok(())
    }

    /// What it wrote when it became ready, if that was this very process.
    fn is_ready<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let pid = self.child.as_ref()?.id();
        let value = self.ready().filter(|value| value["pid"].as_u64() == Some(pid.into()))?;
        serde_json::from_value(value).ok()
    }

    fn ready(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&std::fs::read(&self.ready_file).ok()?).ok()
    }

    /// The process that says that it is ready.
    fn ready_pid(&self) -> Option<u32> {
        self.ready()?["pid"].as_u64()?.try_into().ok()
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.as_ref().and_then(|child| Pid::from_raw(child.id() as i32)) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// Control first: it takes leave of the cluster through velod.
fn stop(daemons: &mut [Daemon; 2]) {
    for daemon in daemons.iter_mut().rev() {
        daemon.signal(Signal::TERM);
        let Some(mut child) = daemon.child.take() else { continue };
        let pid = child.id();
        let asked = Instant::now();
        loop {
            match child.try_wait() {
                Ok(None) if asked.elapsed() < STOP_TIMEOUT => std::thread::sleep(TICK),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                _ => break,
            }
        }
        // A killed one leaves it; that of another process is not ours.
        if daemon.ready_pid() == Some(pid) {
            let _ = std::fs::remove_file(&daemon.ready_file);
        }
    }
}

/// The status to end with after a daemon that ended with `status` and has said why.
fn said(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(FAILED)
}

/// Fails where this node belongs to no cluster.
pub fn check_identity(node: &Node) -> anyhow::Result<()> {
    let paths = node.paths();
    if paths.node_certificate().exists() && paths.node_key().exists() {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{} has no identity: begin a cluster with `velo cluster init`, or join one with `velo up --join HOST:PORT \
         --token TOKEN` (`velo cluster token` on the authority's node makes a token)",
        node.data_dir().display()
    )))
}
