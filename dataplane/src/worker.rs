//! A worker: one thread that owns a fabric, posts the engine's reads on it and hands filled buffers to verifiers.
//!
//! It shares nothing, and sleeps only when its fabric and its commands have nothing for it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_config::Poll;
use velo_fabric::pool::Buffer;
use velo_fabric::ring::{Consumer, Producer, Sleeper};
use velo_fabric::{Completion, PathError, PathId, Read, ReadError};
use velo_object::NodeId;

use crate::carrier::{AnyPath, Carrier, Renewed, Spent};
use crate::metrics::PeerCounters;
use crate::numbers::WorkerNumbers;
use crate::target::Target;
use crate::verify::{Check, Filled};

/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 64;
/// A busy worker's counters are copied out after so many turns.
const PUBLISH_TURNS: u32 = 64;
/// How often it is told how paths do.
const HEALTH: Duration = Duration::from_millis(500);
/// The longest sleep, so that counters are published and a stop is seen.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// How long an idle worker spins before it sleeps, where it has a core to itself. Whoever sends to a sleeping one pays for waking it: in a
/// virtual machine some microseconds each time.
const SPIN: Duration = Duration::from_micros(200);

/// What the engine tells a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// A path to a peer is this worker's from now on; how it does is written there.
    AddPath(AnyPath, Arc<PeerCounters>),
    /// Post a read.
    Read(PathId, Read, Then),
    /// End a read.
    Cancel(PathId, u64),
    /// Close a path.
    Close(PathId),
    /// Its device is back.
    Renew(Box<Renewed>),
    /// End the thread.
    Stop,
}

/// What becomes of a filled buffer.
#[derive(Debug)]
pub(crate) enum Then {
    /// It holds piece `1` of the target: a verifier checks and stores it.
    Verify(Arc<Target>, u64),
    /// It goes back to the engine as it is.
    Collect,
}

/// What a worker tells the engine.
#[derive(Debug)]
pub(crate) enum WorkerEvent {
    /// The bytes of a piece have come and are on their way to a verifier.
    Arrived { path: PathId, tag: u64, bytes: u32 },
    /// The bytes of a read that was to be collected.
    Collected { path: PathId, tag: u64, buffer: Buffer },
    /// A read brought nothing.
    Failed { path: PathId, tag: u64, error: ReadError },
    /// Packets have come through on a path.
    PathProven { path: PathId },
    /// The device of a worker, given by its place in the engine, is of no further use.
    PortFailed { worker: usize, why: String },
    /// And nothing of it is in use any more.
    PortSpent { worker: usize },
    /// A path is gone.
    PathClosed { path: PathId, peer: NodeId, error: PathError },
}

/// Where it is written how each path does.
type Paths = HashMap<PathId, Arc<PeerCounters>>;

/// What a worker is made of.
pub(crate) struct Worker {
    /// Its place in the engine.
    pub(crate) at: usize,
    pub(crate) fabric: Box<dyn Carrier>,
    pub(crate) commands: Consumer<Command>,
    pub(crate) events: Producer<WorkerEvent>,
    pub(crate) verifiers: Vec<Producer<Check>>,
    pub(crate) sleeper: Sleeper,
    pub(crate) poll: Poll,
    /// Whether an idle worker may spin: only where other threads have cores of their own.
    pub(crate) spin: bool,
    pub(crate) numbers: Arc<WorkerNumbers>,
}

impl Worker {
    /// Runs until it is told to stop or the engine is gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        let mut pending: HashMap<u64, Then> = HashMap::with_capacity(1024);
        let mut commands = Vec::with_capacity(COMMANDS_PER_TURN);
        let mut completions = Vec::with_capacity(256);
        let mut idle_since: Option<Instant> = None;
        let mut turns = 0u32;
        let mut paths = HashMap::new();
        let (mut told, mut failed) = (Instant::now(), false);
        loop {
            let mut work = self.commands.pop_batch(&mut commands, COMMANDS_PER_TURN);
            for command in commands.drain(..) {
                if !self.obey(command, &mut pending, &mut paths) {
                    return Ok(());
                }
            }
            let now = Instant::now();
            work += self.fabric.poll(now, &mut completions);
            for completion in completions.drain(..) {
                self.complete(completion, &mut pending, &mut paths);
            }
            failed = self.look_at_port(failed);
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(PUBLISH_TURNS) {
                self.numbers.publish(&*self.fabric, now);
                if now.duration_since(told) >= HEALTH {
                    told = now;
                    self.tell_health(&paths);
                }
            }
            if work > 0 {
                idle_since = None;
                continue;
            }
            if self.commands.is_abandoned() && self.commands.is_empty() {
                return Ok(());
            }
            let since = *idle_since.get_or_insert_with(|| {
                self.numbers.publish(&*self.fabric, now);
                now
            });
            if self.poll == Poll::Busy || (self.spin && now.duration_since(since) < SPIN) {
                std::hint::spin_loop();
                continue;
            }
            if self.fabric.descriptor().is_none() {
                // A device that wakes nobody.
                std::thread::yield_now();
                continue;
            }
            self.sleep(now)?;
        }
    }

    /// Says once that the device has failed, and lets go of it when nothing of it is in use. Gives whether it has.
    fn look_at_port(&mut self, known: bool) -> bool {
        let Some(why) = self.fabric.failure() else { return false };
        if !known {
            self.numbers.failed(&why);
            self.tell(WorkerEvent::PortFailed { worker: self.at, why });
        }
        if self.fabric.is_spent() {
            self.fabric = Box::new(Spent::of(&*self.fabric));
            self.tell(WorkerEvent::PortSpent { worker: self.at });
        }
        true
    }

    fn sleep(&mut self, now: Instant) -> io::Result<()> {
        let until = self.fabric.next_deadline().map_or(SLEEP_MAX, |at| at.saturating_duration_since(now));
        let descriptor = self.fabric.descriptor();
        self.sleeper.sleep_unless(
            || !self.commands.is_empty() || self.commands.is_abandoned(),
            descriptor.as_slice(),
            Some(until.min(SLEEP_MAX)),
        )
    }

    fn tell_health(&self, paths: &Paths) {
        for (path, counters) in paths {
            if let Some(health) = self.fabric.health(*path) {
                counters.set_health(health);
            }
        }
    }

    /// False where it is to stop.
    fn obey(&mut self, command: Command, pending: &mut HashMap<u64, Then>, paths: &mut Paths) -> bool {
        match command {
            Command::AddPath(path, counters) => {
                let (id, peer) = path.names();
                match self.fabric.take(path) {
                    Ok(()) => drop(paths.insert(id, counters)),
                    Err(error) => self.tell(WorkerEvent::PathClosed { path: id, peer, error }),
                }
            }
            Command::Read(path, read, then) => {
                let tag = read.tag;
                match self.fabric.post_read(path, read) {
                    Ok(()) => {
                        pending.insert(tag, then);
                    }
                    Err(_) => self.tell(WorkerEvent::Failed { path, tag, error: ReadError::PathClosed }),
                }
            }
            Command::Cancel(path, tag) => self.fabric.cancel(path, tag),
            Command::Close(path) => self.fabric.close(path),
            Command::Renew(renewed) => {
                let Renewed { carrier, words, facts } = *renewed;
                self.numbers.publish(&*self.fabric, Instant::now());
                self.numbers.renewed(words, facts);
                self.fabric = carrier;
            }
            Command::Stop => return false,
        }
        true
    }

    fn complete(&mut self, completion: Completion, pending: &mut HashMap<u64, Then>, paths: &mut Paths) {
        match completion {
            Completion::Read { path, tag, buffer, result } => match (pending.remove(&tag), result) {
                (Some(Then::Verify(target, index)), Ok(bytes)) => {
                    // The engine must know that it came before it can know that it verified.
                    self.tell(WorkerEvent::Arrived { path, tag, bytes });
                    self.verify(Check::Filled(Filled { tag, target, index, buffer, len: bytes as usize }));
                }
                (Some(Then::Collect), Ok(_)) => self.tell(WorkerEvent::Collected { path, tag, buffer }),
                (_, Err(error)) => {
                    drop(buffer);
                    self.tell(WorkerEvent::Failed { path, tag, error });
                }
                (None, Ok(_)) => {}
            },
            // Streams are proven by their handshake.
            Completion::PathProven { path } => self.tell(WorkerEvent::PathProven { path }),
            Completion::PathClosed { path, peer, error } => {
                paths.remove(&path);
                self.tell(WorkerEvent::PathClosed { path, peer, error });
            }
        }
    }

    /// The engine always drains its rings, so waiting for room ends.
    fn tell(&mut self, mut event: WorkerEvent) {
        while let Err(back) = self.events.push(event) {
            if self.events.is_abandoned() {
                return;
            }
            event = back;
            std::thread::yield_now();
        }
    }

    /// Gives a buffer to the verifier with the shortest queue. Each ring holds as many as there are buffers.
    fn verify(&mut self, mut check: Check) {
        let Some(verifier) = self.verifiers.iter_mut().max_by_key(|verifier| verifier.slots()) else {
            return;
        };
        while let Err(back) = verifier.push(check) {
            if verifier.is_abandoned() {
                return;
            }
            check = back;
            std::thread::yield_now();
        }
    }
}
