//! Two processes with a DPDK each: EAL is one in a process, so that a test executes itself again for each end.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::env;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::dpdk::{Device, Dpdk, DpdkError, DpdkOptions, DpdkPort, HugePages};

pub mod echo;
pub mod namespace;
pub mod transfer;

/// How long anything may take. It only decides how soon a failure is told.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a process ends with that has not got what it needs of this machine, and has said so.
pub const LACKING: i32 = 75;

const ROLE: &str = "VELO_DPDK_TEST_ROLE";

/// Says aloud that something was not tested, where `tests/run` finds it.
pub fn skip(why: &str) {
    println!("SKIP: {why}");
    if let Some(path) = env::var_os("VELO_SKIPS")
        && let Ok(mut file) = fs::OpenOptions::new().append(true).open(path)
    {
        let _ = writeln!(file, "SKIP: {why}");
    }
}

/// Whether the plugin opens; says aloud that `what` is skipped otherwise.
pub fn dpdk_is_here(what: &str) -> bool {
    match Dpdk::probe(None) {
        Ok(_) => true,
        Err(error) => {
            skip(&format!("{what}: {error}"));
            false
        }
    }
}

/// What this process is, if it is one that [`spawn`] started: a role and its arguments.
pub fn role() -> Option<Vec<String>> {
    env::var(ROLE).ok().map(|words| words.split('\u{1f}').map(String::from).collect())
}

/// This test's executable again, to run `test` only, in a role. Ended with the value.
pub fn spawn(test: &str, role: &[&str]) -> Peer {
    spawn_by(Command::new(env::current_exe().expect("a test has a path")), test, role)
}

/// As [`spawn`], started by `command`, to which the test's arguments are added.
pub fn spawn_by(mut command: Command, test: &str, role: &[&str]) -> Peer {
    let child = command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ROLE, role.join("\u{1f}"))
        .stdin(Stdio::null())
        .spawn();
    Peer(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// A process in a role, killed when the value goes.
pub struct Peer(pub Child);

impl Peer {
    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "process {} does not end", self.0.id());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end, which must be a good one. False where it lacked [`LACKING`] something.
    pub fn ends_well(&mut self) -> bool {
        let status = self.ended();
        let lacking = status.code() == Some(LACKING);
        assert!(status.success() || lacking, "process {} ended with {status}", self.0.id());
        !lacking
    }

    /// Waits until the other end has [`end`]ed it: it must not have ended by itself.
    pub fn was_ended(&mut self) {
        let status = self.ended();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "process {} ended with {status}", self.0.id());
    }

    /// Its number.
    pub fn number(&self) -> String {
        self.0.id().to_string()
    }
}

/// Ends the process at the other end of a device, by its number. Not before nothing here polls the device any more, and before this
/// process goes: whoever polls a memif when its other end goes may crash (see `Device::Memif`).
pub fn end(number: &str) {
    let number = number.parse().expect("a process's number");
    // SAFETY: sends a signal, to a process of this test that its parent has not waited for yet.
    unsafe { libc::kill(number, libc::SIGKILL) };
    let began = Instant::now();
    let gone =
        || fs::read_to_string(format!("/proc/{number}/stat")).map_or(true, |stat| stat.contains(") Z "));
    while !gone() {
        assert!(began.elapsed() < PATIENCE, "process {number} cannot be killed");
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until it is true; `maker`, who makes it so, must live that long. False where it lacks something.
pub fn wait_until(what: &str, maker: &mut Peer, mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if let Some(ended) = maker.0.try_wait().expect("a child can be waited for") {
            assert_eq!(ended.code(), Some(LACKING), "{what}: its maker has ended");
            return false;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a file that a process makes.
pub fn wait_for(path: &Path, maker: &mut Peer) -> bool {
    wait_until(&path.display().to_string(), maker, || path.exists())
}

/// So many more free huge pages while it lives.
pub struct HugePagesHeld {
    taken: u64,
    _alone: MutexGuard<'static, ()>,
}

impl HugePagesHeld {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    /// Pages of 2 MiB for `mb` megabytes; an error where they cannot be had.
    pub fn new(mb: u64) -> io::Result<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let held = Self { taken: mb / 2, _alone: ALONE.lock().unwrap_or_else(PoisonError::into_inner) };
        let before = Self::pages()?;
        fs::write(Self::FILE, (before + held.taken).to_string())?;
        if Self::pages()? < before + held.taken {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(held)
    }

    fn pages() -> io::Result<u64> {
        fs::read_to_string(Self::FILE)?.trim().parse().map_err(io::Error::other)
    }
}

impl Drop for HugePagesHeld {
    fn drop(&mut self) {
        if let Ok(pages) = Self::pages() {
            let _ = fs::write(Self::FILE, pages.saturating_sub(self.taken).to_string());
        }
    }
}

/// One queue of one device, with frames of `frame_max_bytes`. Ends the process where huge pages are gone before they are got.
pub fn port(device: &str, frame_max_bytes: usize, huge_pages: HugePages) -> DpdkPort {
    ports(device, 1, frame_max_bytes, huge_pages).remove(0)
}

/// As [`port`], with so many queues.
pub fn ports(device: &str, queues: usize, frame_max_bytes: usize, huge_pages: HugePages) -> Vec<DpdkPort> {
    let parsed: Device = device.parse().unwrap_or_else(|error| panic!("{error}"));
    let options = DpdkOptions {
        queues,
        frame_max_bytes: Some(frame_max_bytes),
        huge_pages,
        ..DpdkOptions::device(parsed)
    };
    match Dpdk::start(options).and_then(|dpdk| dpdk.open(0)) {
        Ok(ports) => ports,
        Err(error @ DpdkError::NoHugePages { .. }) => {
            skip(&format!("{device}: {error}"));
            std::process::exit(LACKING);
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits for the device's link.
pub fn wait_for_link(port: &DpdkPort) {
    let began = Instant::now();
    while !port.device().link().up {
        assert!(began.elapsed() < PATIENCE, "{} has no link", port.device().device());
        thread::sleep(Duration::from_millis(2));
    }
}
