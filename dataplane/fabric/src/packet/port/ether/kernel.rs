//! Neighbours as the kernel knows them. A thread of its own asks the kernel, has it find those that it does not know, and follows what
//! changes; the worker hands it questions and takes answers through two rings and never waits.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::Mac;
use super::neighbours::STALE_MS;
use super::netlink::{Netlink, Notifications};
use crate::packet::limits;

/// How long a destination is followed after the last question about it.
const FOLLOWED: Duration = Duration::from_millis(2 * STALE_MS);
/// Between two looks at all that is followed, however much the kernel tells.
const PAUSE: Duration = Duration::from_millis(5);

/// Where what goes to a destination must be handed to; `None` where that is unknown, or nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) destination: IpAddr,
    pub(super) mac: Option<Mac>,
}

/// The worker's side.
pub(super) struct Kernel {
    questions: Producer<IpAddr>,
    answers: Consumer<Answer>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kernel {
    /// Follows the kernel's tables for what leaves from `source` through `interface`, in the calling thread's network namespace.
    pub(super) fn follow(interface: u32, source: IpAddr) -> io::Result<Self> {
        let (questions, asked) = RingBuffer::new(limits::NEIGHBOURS);
        let (told, answers) = RingBuffer::new(2 * limits::NEIGHBOURS);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stop = Arc::new(AtomicBool::new(false));
        let follower = Follower {
            interface,
            source,
            netlink: Netlink::open()?,
            notifications: Notifications::open()?,
            asked,
            told,
            wake: wake.clone(),
            stop: stop.clone(),
            followed: HashMap::new(),
        };
        let thread = thread::Builder::new().name("velo-neighbours".into()).spawn(move || follower.run())?;
        Ok(Self { questions, answers, wake, stop, thread: Some(thread) })
    }

    /// Asks. Too many questions at once are forgotten: they are put again.
    pub(super) fn ask(&mut self, destination: IpAddr) {
        if self.questions.push(destination).is_ok() {
            self.wake();
        }
    }

    /// What has been answered.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        self.answers.pop().ok()
    }

    fn wake(&self) {
        // Only a counter that is full refuses, and that wakes as well.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Followed {
    asked: Instant,
    told: Option<Mac>,
}

struct Follower {
    interface: u32,
    source: IpAddr,
    netlink: Netlink,
    notifications: Notifications,
    asked: Consumer<IpAddr>,
    told: Producer<Answer>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    followed: HashMap<IpAddr, Followed>,
}

impl Follower {
    fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            let changed = self.wait();
            while let Ok(destination) = self.asked.pop() {
                self.answer(destination, true);
            }
            if changed {
                self.notifications.drain();
                self.followed.retain(|_, followed| followed.asked.elapsed() < FOLLOWED);
                let all: Vec<_> = self.followed.keys().copied().collect();
                for destination in all {
                    self.answer(destination, false);
                }
                thread::sleep(PAUSE);
            }
        }
    }

    /// Sleeps until there is a question or the kernel's tables change. Returns whether they did.
    fn wait(&self) -> bool {
        let mut ready = [
            PollFd::new(&*self.wake, PollFlags::IN),
            PollFd::from_borrowed_fd(self.notifications.as_fd(), PollFlags::IN),
        ];
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        if poll(&mut ready, Some(&patience)).is_err() {
            return false;
        }
        let changed = !ready[1].revents().is_empty();
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.wake, &mut count);
        changed
    }

    /// Asks the kernel where `destination` is reached, and tells the worker if it `asked` or the answer is another than before.
    fn answer(&mut self, destination: IpAddr, asked: bool) {
        let mac = self.resolve(destination, asked).unwrap_or(None);
        if !self.followed.contains_key(&destination) && self.followed.len() >= 2 * limits::NEIGHBOURS {
            self.followed.retain(|_, followed| followed.asked.elapsed() < FOLLOWED);
        }
        let now = Instant::now();
        let followed = self.followed.entry(destination).or_insert(Followed { asked: now, told: None });
        if asked {
            followed.asked = now;
        }
        if (asked && mac.is_some()) || followed.told != mac {
            // A full ring means that the worker does not look; then it asks again when it does.
            let pushed = self.told.push(Answer { destination, mac }).is_ok();
            followed.told = if pushed { mac } else { None };
        }
    }

    fn resolve(&mut self, destination: IpAddr, asked: bool) -> io::Result<Option<Mac>> {
        let Some(hop) = self.netlink.next_hop(self.interface, self.source, destination)? else {
            return Ok(None);
        };
        let state = self.netlink.neighbour(self.interface, hop)?;
        if asked && !state.sure {
            // Refused without the privilege to change the table; then it is known once the kernel itself talks to it.
            let _ = self.netlink.use_neighbour(self.interface, hop);
        }
        Ok(state.mac)
    }
}
