//! A machine whose power can be cut: a guest started by `tests/guest/run` with its root on the host and its disk here.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};

use crate::disk::{PowerCut, VolatileDisk};
use crate::nbd::Server;

/// How long a guest lives at most, in seconds, whatever it does: then it is a hang.
const LIFE_S: u64 = 600;

/// The machine between two lives: its disk, and where its things lie on the host.
#[derive(Debug)]
pub struct Machine {
    run: PathBuf,
    scratch: PathBuf,
    disk: Arc<Mutex<VolatileDisk>>,
}

impl Machine {
    /// A machine with a blank disk of `disk_bytes`, started by the script `run`, with its things in `scratch`.
    pub fn new(run: &Path, scratch: &Path, disk_bytes: u64) -> io::Result<Self> {
        let image = File::options().read(true).write(true).create_new(true).open(scratch.join("image"))?;
        image.set_len(disk_bytes)?;
        std::fs::create_dir_all(scratch.join("out"))?;
        let disk = Arc::new(Mutex::new(VolatileDisk::new(image)?));
        Ok(Self { run: run.to_owned(), scratch: scratch.to_owned(), disk })
    }

    /// The directory that the guest sees as `$OUT`.
    pub fn out(&self) -> PathBuf {
        self.scratch.join("out")
    }

    /// Boots it with ext4's `mount` options to run `command`.
    pub fn boot(&mut self, mount: &str, command: &[&str]) -> io::Result<Life<'_>> {
        let (socket, pid) = (self.scratch.join("nbd"), self.scratch.join("pid"));
        for stale in [&socket, &pid] {
            match std::fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let server = Server::start(&socket, Arc::clone(&self.disk))?;
        let log = OpenOptions::new().create(true).append(true).open(self.scratch.join("log"))?;
        let mut child = Command::new(&self.run)
            .arg("--disk")
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .args(["--mount", mount, "--timeout", &LIFE_S.to_string(), "--out"])
            .arg(self.out())
            .arg("--pid")
            .arg(&pid)
            .arg("--")
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Life { machine: self, child: Some(child), server: Some(server), lines, pid })
    }
}

/// What a guest says next.
#[derive(Debug)]
pub enum Said {
    /// A line of its output.
    Line(String),
    /// Nothing until the moment that was waited for.
    Nothing,
    /// It has ended.
    End,
}

/// One life of the machine, from boot to power cut or to its own end.
#[derive(Debug)]
pub struct Life<'machine> {
    machine: &'machine mut Machine,
    child: Option<Child>,
    server: Option<Server>,
    lines: Receiver<String>,
    pid: PathBuf,
}

impl Life<'_> {
    /// The next line, waiting for it until `moment` (for ever without one: a life has an end).
    pub fn listen(&self, moment: Option<Instant>) -> Said {
        let wait =
            moment.map_or(Duration::from_secs(2 * LIFE_S), |at| at.saturating_duration_since(Instant::now()));
        match self.lines.recv_timeout(wait) {
            Ok(line) => Said::Line(line),
            Err(RecvTimeoutError::Timeout) => Said::Nothing,
            Err(RecvTimeoutError::Disconnected) => Said::End,
        }
    }

    /// Waits until the disk's cache holds anything, at most for `patience`; whether it does.
    pub fn wait_for_unflushed(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            if self.machine.disk.lock().unwrap_or_else(PoisonError::into_inner).unflushed_blocks() > 0 {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Cuts the power: the guest's memory is gone at once, and of the disk's cache each block survives with the probability
    /// `keep`. Returns what the disk lost and the lines that had reached the host before.
    pub fn cut_power(mut self, keep: f64, random: &mut impl Rng) -> io::Result<(PowerCut, Vec<String>)> {
        self.kill()?;
        self.settle()?;
        let lines = self.lines.iter().collect();
        let mut disk = self.machine.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((disk.cut_power(keep, random)?, lines))
    }

    /// Waits for its own end, after which the disk's cache is dropped too.
    pub fn end(self) -> io::Result<(ExitStatus, Vec<String>)> {
        self.end_keeping(0.0, &mut rand::rng())
    }

    /// Waits for its own end; of the disk's cache each block then survives with the probability `keep`.
    pub fn end_keeping(mut self, keep: f64, random: &mut impl Rng) -> io::Result<(ExitStatus, Vec<String>)> {
        let lines = self.lines.iter().collect();
        let status = self.settle()?;
        let mut disk = self.machine.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.cut_power(keep, random)?;
        Ok((status, lines))
    }

    /// Kills QEMU, and leaves the script that started it to tidy up.
    fn kill(&mut self) -> io::Result<()> {
        let pid = std::fs::read_to_string(&self.pid)?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no process id of QEMU"))?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Waits until nothing can touch the disk any more.
    fn settle(&mut self) -> io::Result<ExitStatus> {
        let status = match self.child.take() {
            Some(mut child) => child.wait()?,
            None => return Err(io::Error::other("this life has ended before")),
        };
        if let Some(server) = self.server.take() {
            // A guest that never was does not leave the server waiting for it.
            drop(UnixStream::connect(self.machine.scratch.join("nbd")));
            server.join()?;
        }
        Ok(status)
    }
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = self.kill();
            let _ = child.wait();
        }
    }
}
