//! The demo's nodes: each is a `velo up` of its own on loopback, in a directory of its own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::interrupt::Interrupt;

/// How long a node may take until it is ready, and to stop.
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Nodes of one cluster on this machine. They are stopped when this is dropped.
#[derive(Debug, Default)]
pub struct Fleet {
    /// In the order of their start; the first has the authority.
    pub nodes: Vec<DemoNode>,
}

/// One of them.
#[derive(Debug)]
pub struct DemoNode {
    /// What it is called.
    pub name: String,
    /// Its id.
    pub node: String,
    /// Where it listens for other nodes.
    pub listen: String,
    dir: PathBuf,
    up: Option<Child>,
}

impl Fleet {
    /// Starts `count` nodes below `scratch`.
    pub fn start(count: usize, scratch: &Path, interrupt: &Interrupt) -> anyhow::Result<Self> {
        let mut fleet = Self::default();
        let mut first = DemoNode::prepare(1, scratch)?;
        first.json(["cluster", "init"], interrupt)?;
        let ready = first.spawn(&[])?;
        fleet.nodes.push(first);
        fleet.nodes[0].wait(&ready, interrupt)?;
        let reply =
            fleet.nodes[0].json(["cluster", "token", "--uses", &(count - 1).to_string()], interrupt)?;
        let token = reply["token"].as_str().context("no token in the answer")?;
        let address = fleet.nodes[0].listen.clone();
        let mut waiting = Vec::new();
        for number in 2..=count {
            let mut node = DemoNode::prepare(number, scratch)?;
            waiting.push(node.spawn(&["--join", &address, "--token", token])?);
            fleet.nodes.push(node);
        }
        for (node, ready) in fleet.nodes[1..].iter_mut().zip(waiting) {
            node.wait(&ready, interrupt)?;
        }
        fleet.wait_until_all_know_all(interrupt)?;
        Ok(fleet)
    }

    fn wait_until_all_know_all(&self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let begun = Instant::now();
        for node in &self.nodes {
            loop {
                let answer = node.json(["peers"], interrupt)?;
                let peers = answer["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
                let alive = peers.iter().filter(|peer| peer["state"] == "alive").count();
                if alive >= self.nodes.len() {
                    break;
                }
                if begun.elapsed() > START_TIMEOUT {
                    bail!("{} sees only {alive} of {} nodes", node.name, self.nodes.len());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All are told before the first is waited for.
        self.nodes.iter().for_each(DemoNode::tell_to_stop);
        self.nodes.clear();
    }
}

impl DemoNode {
    fn prepare(number: usize, scratch: &Path) -> anyhow::Result<Self> {
        let name = format!("node{number}");
        let dir = scratch.join(&name);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let config = format!(
            "[node]\nname = \"{name}\"\n[net]\nlisten = [\"127.0.0.1:0\"]\n[fabric.udp]\nlisten = \"127.0.0.1:0\"\n\
             [gossip]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n"
        );
        std::fs::write(dir.join("velo.toml"), config)?;
        Ok(Self { name, node: String::new(), listen: String::new(), dir, up: None })
    }

    /// A `velo` for this node. The environment's settings for the user's own node are not for this one.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("cannot find the velo executable")?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"VELO_"))
        {
            command.env_remove(name);
        }
        command.arg("--json").arg("--config").arg(self.dir.join("velo.toml"));
        command.arg("--data-dir").arg(self.dir.join("data")).args(arguments).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command to its end; what it answered.
    pub fn json<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Value> {
        Ok(run_at_once(vec![(self, self.command(arguments)?)], interrupt)?.remove(0))
    }

    /// Starts `velo up`; its first line comes through the channel.
    fn spawn(&mut self, arguments: &[&str]) -> anyhow::Result<Receiver<String>> {
        let log = File::create(self.dir.join("log"))?;
        let own = std::process::id().to_string();
        let mut command = self.command(["up", "--with-parent", &own])?;
        // A process group of its own: Ctrl-C comes to the demo alone, which then stops its nodes in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start velo up")?;
        let stdout = child.stdout.take().context("no output to read")?;
        self.up = Some(child);
        let (send, receive) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout.take(1 << 20)).read_line(&mut line);
            let _ = send.send(line);
        });
        Ok(receive)
    }

    /// Waits until it is up.
    fn wait(&mut self, ready: &Receiver<String>, interrupt: &Interrupt) -> anyhow::Result<()> {
        let begun = Instant::now();
        let line = loop {
            interrupt.check()?;
            match ready.recv_timeout(Duration::from_millis(50)) {
                Ok(line) => break line,
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < START_TIMEOUT => {}
                Err(_) => break String::new(),
            }
        };
        let answer: Value = serde_json::from_str(&line).unwrap_or_default();
        if answer["ok"] != true {
            bail!("{} does not start:\n{}", self.name, self.log_tail());
        }
        self.node = answer["node"].as_str().unwrap_or_default().to_owned();
        self.listen = answer["data"][0].as_str().context("no address in the ready line")?.to_owned();
        Ok(())
    }

    /// A counter of velod, summed over its labels.
    pub fn counter(&self, name: &str) -> anyhow::Result<u64> {
        let socket = self.dir.join("data/run/velod.sock");
        let status = velo_socket::Client::connect(&socket)?.status()?;
        let all = status.counters.iter().filter(|(key, _)| key.split('{').next() == Some(name));
        Ok(all.map(|(_, value)| value).sum())
    }

    /// Where this node gets things to.
    pub fn destination(&self) -> PathBuf {
        self.dir.join("received")
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned();
        format!("the end of the log of {}:\n{tail}", self.name)
    }

    fn tell_to_stop(&self) {
        if let Some(pid) = self.up.as_ref().and_then(|child| Pid::from_raw(child.id() as i32)) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Runs commands of nodes at the same time; what they answered, in order.
pub fn run_at_once(commands: Vec<(&DemoNode, Command)>, interrupt: &Interrupt) -> anyhow::Result<Vec<Value>> {
    let mut running: Vec<(&DemoNode, Option<Child>)> = Vec::with_capacity(commands.len());
    let result = (|| {
        for (node, mut command) in commands {
            let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
            running.push((node, Some(child.context("cannot start velo")?)));
        }
        let mut answers = vec![Value::Null; running.len()];
        while running.iter().any(|(_, child)| child.is_some()) {
            interrupt.check()?;
            for ((node, slot), answer) in running.iter_mut().zip(&mut answers) {
                let Some(child) = slot else { continue };
                let Some(status) = child.try_wait()? else { continue };
                let (mut out, mut err) = (String::new(), String::new());
                // Both are short enough for a pipe: an answer of one line, and errors.
                if let (Some(stdout), Some(stderr)) = (&mut child.stdout, &mut child.stderr) {
                    stdout.read_to_string(&mut out)?;
                    stderr.read_to_string(&mut err)?;
                }
                *slot = None;
                if !status.success() {
                    bail!("{}: {}\n{}", node.name, err.trim(), node.log_tail());
                }
                *answer =
                    serde_json::from_str(&out).with_context(|| format!("{} gave no JSON", node.name))?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(answers)
    })();
    // After an error or an interrupt the others are not left alone.
    for mut child in running.into_iter().filter_map(|(_, child)| child) {
        if let Some(pid) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = child.wait();
    }
    result
}

impl Drop for DemoNode {
    fn drop(&mut self) {
        self.tell_to_stop();
        let Some(mut child) = self.up.take() else { return };
        let begun = Instant::now();
        while let Ok(None) = child.try_wait() {
            if begun.elapsed() > STOP_TIMEOUT {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
