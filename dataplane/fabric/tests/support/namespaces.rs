//! Two network namespaces joined by a pair of virtual Ethernet devices, for tests and measurements that need a link of their own.
#![allow(dead_code)]

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The name of the device at both ends.
pub const DEVICE: &str = "velo0";

/// One end of a [`Link`]: a network namespace with one device. It goes with its value, also in a panic.
pub struct End {
    name: String,
    /// Its address, in one network of 24 bits with the other end's.
    pub v4: Ipv4Addr,
    /// Its address, in one network of 64 bits with the other end's.
    pub v6: Ipv6Addr,
}

impl End {
    fn new(name: String, number: u8) -> io::Result<Self> {
        ip(&["netns", "add", &name])?;
        let v6 = Ipv6Addr::new(0xfd00, 0x7e10, 0, 0, 0, 0, 0, u16::from(number));
        Ok(Self { name, v4: Ipv4Addr::new(10, 77, 0, number), v6 })
    }

    /// Its name, as `ip netns exec` takes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread in the namespace. Sockets that it makes stay there wherever they are used.
    ///
    /// # Panics
    /// If `work` does, or the namespace is gone.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            let namespace =
                fs::File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("whoever may make a namespace may enter it");
            work()
        };
        thread::scope(|scope| match scope.spawn(enter).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Runs `ip` in the namespace.
    ///
    /// # Errors
    /// With what it said.
    pub fn ip(&self, arguments: &[&str]) -> io::Result<()> {
        ip(&[&["-n", &self.name], arguments].concat())
    }

    fn up(&self) -> io::Result<()> {
        self.ip(&["link", "set", "lo", "up"])?;
        self.ip(&["addr", "add", &format!("{}/24", self.v4), "dev", DEVICE])?;
        // Without looking whether the address is free, which takes seconds.
        self.ip(&["addr", "add", &format!("{}/64", self.v6), "dev", DEVICE, "nodad"])?;
        self.ip(&["link", "set", DEVICE, "up"])
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Two ends, joined.
pub struct Link {
    /// The one.
    pub a: End,
    /// The other.
    pub b: End,
}

impl Link {
    /// A link with frames of up to `mtu` bytes and one queue in each direction.
    ///
    /// # Errors
    /// Without root, or `ip`.
    pub fn new(mtu: u32) -> io::Result<Self> {
        Self::with_queues(mtu, 1)
    }

    /// As [`new`](Self::new) with several queues.
    ///
    /// # Errors
    /// As there.
    pub fn with_queues(mtu: u32, queues: u32) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |end| format!("velo-{}-{number}-{end}", std::process::id());
        let (a, b) = (End::new(name("a"), 1)?, End::new(name("b"), 2)?);
        let (mtu, queues) = (mtu.to_string(), queues.to_string());
        let mut arguments = vec!["link", "add", DEVICE, "mtu", &mtu];
        arguments.extend(["numtxqueues", &queues, "numrxqueues", &queues]);
        arguments.extend(["netns", a.name(), "type", "veth", "peer", "name", DEVICE, "mtu", &mtu]);
        arguments.extend(["numtxqueues", &queues, "numrxqueues", &queues, "netns", b.name()]);
        ip(&arguments)?;
        a.up()?;
        b.up()?;
        Ok(Self { a, b })
    }
}

/// A link, or a line that says why there can be none here.
pub fn link_or_skip(mtu: u32, what: &str) -> Option<Link> {
    match Link::new(mtu) {
        Ok(link) => Some(link),
        Err(error) => {
            skip(&format!("{what}: network namespaces cannot be made here: {error}"));
            None
        }
    }
}

/// Says aloud that something was not tested, where `tests/run` finds it.
pub fn skip(why: &str) {
    println!("SKIP: {why}");
    if let Some(path) = std::env::var_os("VELO_SKIPS")
        && let Ok(mut file) = fs::OpenOptions::new().append(true).open(path)
    {
        let _ = writeln!(file, "SKIP: {why}");
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), said.trim())))
}
