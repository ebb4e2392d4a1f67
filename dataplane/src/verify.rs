//! A verifier: one thread that pops filled buffers, checks their hash and writes them into the store.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use velo_fabric::pool::Buffer;
use velo_fabric::ring::{Consumer, Producer, Sleeper};
use velo_object::Verified;
use velo_socket::Error;

use crate::target::Target;

const SLEEP_MAX: Duration = Duration::from_secs(1);

/// What a verifier is given.
#[derive(Debug)]
pub(crate) enum Check {
    /// A buffer with a piece.
    Filled(Filled),
    /// Whether a piece is all zeros.
    Hole { tag: u64, target: Arc<Target>, index: u64, len: u32 },
    /// End the thread.
    Stop,
}

/// A buffer with unverified bytes.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) tag: u64,
    pub(crate) target: Arc<Target>,
    pub(crate) index: u64,
    pub(crate) buffer: Buffer,
    pub(crate) len: usize,
}

/// What a verifier tells the engine.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The piece is verified and stored; not `fresh` where it was there already.
    Good { tag: u64, target: Arc<Target>, index: u64, bytes: u32, hole: bool, fresh: bool },
    /// It does not match its hash.
    Bad { tag: u64 },
    /// It matches but could not be stored.
    NotStored { tag: u64, target: Arc<Target>, error: Error },
}

/// What a verifier is made of.
#[derive(Debug)]
pub(crate) struct Verifier {
    /// From the engine and from each worker.
    pub(crate) inputs: Vec<Consumer<Check>>,
    pub(crate) verdicts: Producer<Verdict>,
    pub(crate) sleeper: Sleeper,
}

impl Verifier {
    /// Runs until it is told to stop or all who feed it are gone.
    pub(crate) fn run(mut self) -> io::Result<()> {
        loop {
            let mut work = false;
            for at in 0..self.inputs.len() {
                if let Some(check) = self.inputs[at].pop() {
                    work = true;
                    let Some(verdict) = judge(check) else { return Ok(()) };
                    self.tell(verdict);
                }
            }
            if work {
                continue;
            }
            if self.inputs.iter().all(Consumer::is_abandoned) && self.inputs.iter().all(Consumer::is_empty) {
                return Ok(());
            }
            let has_work = || self.inputs.iter().any(|input| !input.is_empty());
            self.sleeper.sleep_unless(has_work, &[], Some(SLEEP_MAX))?;
        }
    }

    /// The engine always drains its rings, so waiting for room ends.
    fn tell(&mut self, mut verdict: Verdict) {
        while let Err(back) = self.verdicts.push(verdict) {
            if self.verdicts.is_abandoned() {
                return;
            }
            verdict = back;
            std::thread::yield_now();
        }
    }
}

fn judge(check: Check) -> Option<Verdict> {
    Some(match check {
        Check::Filled(Filled { tag, target, index, buffer, len }) => {
            match Verified::check(buffer, len, target.expected(index)) {
                Ok(verified) => store(tag, target, &verified),
                Err(_) => Verdict::Bad { tag },
            }
        }
        Check::Hole { tag, target, index, len } => {
            match Verified::<Buffer>::check_hole(len as usize, target.expected(index)) {
                Ok(verified) => store(tag, target, &verified),
                Err(_) => Verdict::Bad { tag },
            }
        }
        Check::Stop => return None,
    })
}

fn store(tag: u64, target: Arc<Target>, verified: &Verified<Buffer>) -> Verdict {
    let (index, bytes, hole) = (verified.index(), verified.len() as u32, verified.is_hole());
    match target.write(verified) {
        Ok(fresh) => Verdict::Good { tag, target, index, bytes, hole, fresh },
        Err(error) => Verdict::NotStored { tag, target, error },
    }
}
