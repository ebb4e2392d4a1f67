//! [`Rdma`]: the paths of one worker over one port of a device, as a [`Fabric`].

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use velo_object::NodeId;

use super::limits;
use super::path::{Path, Shared};
use super::provider::Provider;
use super::verbs::{Event, QueuePair, Verbs};
use crate::counters::counters;
use crate::pool::BUFFER_BYTES;
use crate::supply::Supply;
use crate::{Completion, Fabric, FabricCounters, PathError, PathId, Read};

counters! {
    /// Plain counters of one RDMA fabric, besides those that every fabric has; they only grow.
    RdmaCounters {
        ..fabric: FabricCounters,
        /// Messages that came.
        messages_in,
        /// Loans made to peers.
        leases_granted,
        /// Loans taken back.
        leases_revoked,
        /// Loans that peers kept until they were taken from them.
        leases_expired,
        /// Loans that the device did not take back in time: their paths were closed.
        revocations_late,
        /// Loans to us that ended before the bytes were here.
        leases_ran_out,
    }
}

/// How an [`Rdma`] works.
#[derive(Debug, Clone, Copy)]
pub struct RdmaOptions {
    /// How long nothing may come of outstanding reads, or of loans that the device is to take back.
    pub stall_timeout: Duration,
    /// How long a loan lasts: up to [`limits::LEASE_MAX`].
    pub lease: Duration,
    /// The most that is lent to the peer of one path at once.
    pub lent_max_bytes: u64,
}

impl Default for RdmaOptions {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(5),
            lease: limits::LEASE,
            lent_max_bytes: (limits::READS_PER_PATH * BUFFER_BYTES) as u64,
        }
    }
}

/// A path to be added: its queue pair is connected.
#[derive(Debug, Clone, Copy)]
pub struct NewPath {
    /// Its number.
    pub id: PathId,
    /// Who is at the other end.
    pub peer: NodeId,
    /// Its queue pair, which is the fabric's from now on.
    pub qp: QueuePair,
    /// Whether this side greets first. It is the one that connected last: what comes to a queue pair before is lost.
    pub begins: bool,
}

/// Why a path was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPathError {
    /// There is one of this number.
    #[error("path {0} exists")]
    Exists(PathId),
    /// There are too many.
    #[error("a worker has at most {} paths", limits::PATHS)]
    TooMany,
    /// The device is gone.
    #[error("the device has failed and carries no paths any more")]
    DeviceFailed,
}

/// The RDMA fabric of one worker.
pub struct Rdma<V> {
    verbs: V,
    shared: Shared,
    options: RdmaOptions,
    paths: HashMap<PathId, Path>,
    by_qp: HashMap<QueuePair, PathId>,
    /// What the device said when it failed.
    failed: Option<io::Error>,
    /// Readable when the device or the supply is; `None` where one of them must be polled.
    epoll: Option<OwnedFd>,
    deadline: Option<Instant>,
    /// Paths whose queue pair went while the others were being looked at.
    gone: Vec<QueuePair>,
    /// When the last turn was.
    now: Instant,
    /// What ended between two turns.
    early: Vec<Completion>,
}

impl<V: Verbs> Rdma<V> {
    /// A fabric without paths. Whatever `supply` answers must lie in buffers that the device can lend.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new(verbs: V, supply: Box<dyn Supply>, options: RdmaOptions) -> io::Result<Self> {
        let epoll = match verbs.descriptor() {
            None => None,
            Some(of_device) => {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                epoll::add(&epoll, of_device, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                if let Some(of_supply) = supply.descriptor() {
                    epoll::add(&epoll, of_supply, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
                }
                Some(epoll)
            }
        };
        let counters = RdmaCounters::default();
        Ok(Self {
            verbs,
            shared: Shared { supply, counters, epoch: 0, stall_timeout: options.stall_timeout },
            options: RdmaOptions { lease: options.lease.min(limits::LEASE_MAX), ..options },
            paths: HashMap::with_capacity(limits::PATHS),
            by_qp: HashMap::with_capacity(limits::PATHS),
            failed: None,
            epoll,
            deadline: None,
            gone: Vec::with_capacity(limits::PATHS),
            now: Instant::now(),
            early: Vec::new(),
        })
    }

    /// Takes a path in.
    ///
    /// # Errors
    /// [`AddPathError`]; the queue pair is retired then, too.
    pub fn add_path(&mut self, now: Instant, path: NewPath) -> Result<(), AddPathError> {
        let NewPath { id, qp, .. } = path;
        let refused = if self.failed.is_some() {
            Some(AddPathError::DeviceFailed)
        } else if self.paths.contains_key(&id) {
            Some(AddPathError::Exists(id))
        } else {
            (self.paths.len() >= limits::PATHS).then_some(AddPathError::TooMany)
        };
        if let Some(error) = refused {
            self.verbs.retire(qp);
            return Err(error);
        }
        let provider = Provider::new(now, self.verbs.lending(), &self.options);
        self.paths.insert(id, Path::new(path, now, provider));
        self.by_qp.insert(qp, id);
        self.shared.counters.fabric.paths_opened += 1;
        Ok(())
    }

    /// The device.
    pub fn verbs(&self) -> &V {
        &self.verbs
    }

    /// The device, for a queue pair to be given to it.
    pub fn verbs_mut(&mut self) -> &mut V {
        &mut self.verbs
    }

    /// How many paths it has.
    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    /// What the device said when it failed.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failed.as_ref()
    }

    /// Whether the device has failed and nothing of it is in use any more: it is best dropped, since its removal may wait for that.
    pub fn is_spent(&self) -> bool {
        self.failed.is_some() && self.paths.is_empty()
    }

    /// What it has done so far.
    pub fn rdma_counters(&self) -> RdmaCounters {
        self.shared.counters
    }

    /// Takes what the device reports. Returns how much.
    fn take_events(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize {
        let Self { verbs, shared, paths, by_qp, failed, gone, .. } = self;
        verbs.poll(&mut |event| {
            let path = match &event {
                Event::Received { qp, .. }
                | Event::Read { qp, .. }
                | Event::Revoked { qp, .. }
                | Event::Failed { qp, .. } => by_qp.get(qp).and_then(|id| paths.get_mut(id)),
                Event::Gone { .. } | Event::DeviceFailed { .. } => None,
            };
            match event {
                Event::Received { bytes, .. } => {
                    if let Some(path) = path {
                        path.received(now, bytes, shared, completions);
                    }
                }
                Event::Read { tag, buffer, result, .. } => {
                    let Some(path) = path else { return };
                    if result.is_ok() {
                        shared.counters.fabric.bytes_in += buffer.len() as u64;
                    }
                    let closing = path.ends_reads();
                    let (reader, mut desk) = path.reading(&mut shared.counters, completions);
                    reader.read(now, tag, buffer, result, closing, &mut desk);
                    if let Err(error) = result {
                        path.close(now, PathError::Io(io::Error::other(error)), shared, completions);
                    }
                }
                Event::Revoked { tag, .. } => {
                    if let Some(path) = path {
                        let (provider, mut desk) = path.providing(shared);
                        provider.revoked(now, tag, &mut desk);
                    }
                }
                Event::Failed { error, .. } => {
                    if let Some(path) = path {
                        path.close(now, PathError::Io(io::Error::other(error)), shared, completions);
                    }
                }
                Event::Gone { qp } => gone.push(qp),
                Event::DeviceFailed { error } => {
                    for path in paths.values_mut() {
                        let error = io::Error::new(error.kind(), error.to_string());
                        path.close(now, PathError::Port(error), shared, completions);
                    }
                    failed.get_or_insert(error);
                }
            }
        })
    }
}

impl<V: Verbs> Fabric for Rdma<V> {
    fn name(&self) -> &'static str {
        "rdma"
    }

    fn post_read(&mut self, path: PathId, read: Read) -> Result<(), Read> {
        let Some(path) = self.paths.get_mut(&path) else { return Err(read) };
        if !(1..=BUFFER_BYTES as u32).contains(&read.len) || !self.verbs.takes(&read.buffer) {
            return Err(read);
        }
        path.post(read)?;
        self.shared.counters.fabric.reads_posted += 1;
        Ok(())
    }

    fn cancel(&mut self, path: PathId, tag: u64) {
        let Some(path) = self.paths.get_mut(&path) else { return };
        let (reader, mut desk) = path.reading(&mut self.shared.counters, &mut self.early);
        reader.cancel(tag, &mut desk);
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize {
        self.now = now;
        let mut done = self.early.len();
        completions.append(&mut self.early);
        done += self.take_events(now, completions);
        for qp in self.gone.drain(..) {
            if let Some(path) = self.by_qp.remove(&qp).and_then(|id| self.paths.remove(&id)) {
                path.gone(now, &mut self.shared, completions);
            }
        }
        let Self { paths, shared, .. } = self;
        let Shared { supply, counters, .. } = shared;
        done += supply.poll(&mut |answer| {
            if let Some(path) = paths.get_mut(&answer.id.path) {
                path.answer(answer, counters);
            }
        });
        let mut deadline: Option<Instant> = None;
        for path in self.paths.values_mut() {
            path.handle_timeout(now, &mut self.shared, completions);
            if path.has_work() {
                path.transmit(now, &mut self.verbs, &mut self.shared, completions);
            }
            let next = path.next_timeout(self.options.stall_timeout);
            deadline = [deadline, next].into_iter().flatten().min();
        }
        self.deadline = deadline;
        self.verbs.flush();
        if done == 0 && self.epoll.is_some() {
            // A device that is gone says so in its events.
            let armed = self.verbs.arm().is_ok() && self.shared.supply.arm();
            done += self.take_events(now, completions) + usize::from(!armed);
        }
        done
    }

    fn close(&mut self, path: PathId) {
        if let Some(path) = self.paths.get_mut(&path) {
            path.close(self.now, PathError::Local, &mut self.shared, &mut self.early);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(AsFd::as_fd)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn counters(&self) -> FabricCounters {
        self.shared.counters.fabric
    }
}
