//! A worker's part of a device: its completion queue, and the queue pairs that report to it.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::Device;
use super::error::RdmaError;
use super::pair::{Prepared, RECEIVED};
use super::queue::{COMPLETIONS_PER_PAIR, Queue};
use super::regions::{self, Purpose, Region};
use super::requests::{Kind, Pair};
use crate::pool::Buffer;
use crate::rdma::table::{
    ASYNC_DEVICE, ASYNC_PAIR, ASYNC_PORT_DOWN, Async, BATCH, Done, WORK_BIND, WORK_INVALIDATE, WORK_READ,
    WORK_SEND, Work,
};
use crate::rdma::verbs::{Event, Lending, QueuePair, Span, Verbs, WorkError};

/// How often it is looked whether the device is still there, and what it says of itself where there is no time between completions.
const LOOK: Duration = Duration::from_millis(200);
/// Something that has happened without the completion queue.
enum Late {
    Read { qp: u32, tag: u32, buffer: Buffer },
    Revoked { qp: u32, tag: u32 },
    Failed { qp: u32, error: WorkError },
    Gone { qp: u32 },
    DeviceFailed(io::Error),
}

/// A queue pair to be destroyed, and whether the worker waits for it.
type Dying = (Prepared, bool);

/// A worker's part of a device. Dropping it destroys its queue pairs.
pub struct Completions {
    name: String,
    pairs: HashMap<u32, Pair>,
    late: VecDeque<Late>,
    /// What came to queue pairs before we had them.
    early: Vec<Done>,
    /// Pairs with work that is pending.
    dirty: Vec<u32>,
    /// Where pairs are destroyed, and which have been.
    undertaker: Option<(Sender<Dying>, JoinHandle<()>)>,
    destroyed: Receiver<u32>,
    /// Readable when one has been.
    wake: Arc<OwnedFd>,
    epoll: OwnedFd,
    device_failed: bool,
    /// When it was last looked whether the device is still there.
    looked: Instant,
    // These two last and in this order: queue pairs use both, and a region is deregistered while its device is open.
    regions: Vec<Arc<Region>>,
    queue: Arc<Queue>,
}

impl Drop for Completions {
    fn drop(&mut self) {
        // Before any buffer goes, whatever might fill it is destroyed.
        if let Some((send, thread)) = self.undertaker.take() {
            drop(send);
            let _ = thread.join();
        }
    }
}

impl Device {
    /// A worker's part, for so many queue pairs. All memory that it is to use has been registered before.
    ///
    /// # Errors
    /// [`RdmaError`].
    pub fn completions(&self, pairs: usize) -> Result<Completions, RdmaError> {
        let shared = &*self.shared;
        let places = (pairs * COMPLETIONS_PER_PAIR) as u32;
        let mut error = 0;
        // SAFETY: an open device, and room for the error.
        let handle = unsafe { (shared.table.queue)(shared.handle.as_ptr(), places, &mut error) };
        let stage = "making a completion queue";
        let handle = NonNull::new(handle).ok_or_else(|| RdmaError::device(self.place(), stage, error))?;
        let queue = Arc::new(Queue::new(self.clone(), handle));
        let (send, dying) = channel::<Dying>();
        let (tell, destroyed) = channel();
        let fault =
            |why: io::Error| RdmaError::device(self.place(), stage, -why.raw_os_error().unwrap_or(libc::EIO));
        let flags = eventfd_flags();
        let wake = Arc::new(rustix::event::eventfd(0, flags).map_err(|error| fault(error.into()))?);
        let wakes = wake.clone();
        let undertaker = move || {
            for (prepared, awaited) in dying {
                let number = prepared.queue_pair().0;
                // What may still be in use is not given back.
                if prepared.destroy() && awaited {
                    // Nobody hears it where the worker is gone.
                    let _ = tell.send(number);
                    let _ = rustix::io::write(&wakes, &1u64.to_ne_bytes());
                }
            }
        };
        let thread =
            thread::Builder::new().name("velo-rdma-end".to_owned()).spawn(undertaker).map_err(fault)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| fault(error.into()))?;
        // SAFETY: both descriptors live as long as the queue and the device, which the result holds.
        let (of_queue, of_device) = unsafe {
            (
                BorrowedFd::borrow_raw((shared.table.queue_descriptor)(handle.as_ptr())),
                BorrowedFd::borrow_raw((shared.table.async_descriptor)(shared.handle.as_ptr())),
            )
        };
        for (number, descriptor) in [(0, of_queue), (1, of_device), (2, wake.as_fd())] {
            let data = epoll::EventData::new_u64(number);
            epoll::add(&epoll, descriptor, data, epoll::EventFlags::IN)
                .map_err(|error| fault(error.into()))?;
        }
        Ok(Completions {
            name: self.place().to_string(),
            pairs: HashMap::new(),
            late: VecDeque::new(),
            early: Vec::new(),
            dirty: Vec::new(),
            undertaker: Some((send, thread)),
            destroyed,
            wake,
            epoll,
            device_failed: false,
            looked: Instant::now(),
            regions: self.regions(),
            queue,
        })
    }
}

impl Completions {
    /// What queue pairs for this worker are [prepared](Device::prepare) with.
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// Takes a connected queue pair. None where another of its number is not quite gone, or it was made for an earlier worker's part of
    /// the device: make another.
    pub fn adopt(&mut self, prepared: Prepared) -> Option<QueuePair> {
        let qp = prepared.queue_pair();
        if self.pairs.contains_key(&qp.0) || !Arc::ptr_eq(&prepared.queue, &self.queue) {
            if let Some((undertaker, _)) = &self.undertaker {
                let _ = undertaker.send((prepared, false));
            }
            return None;
        }
        self.queue.expected().remove(&qp.0);
        self.pairs.insert(qp.0, Pair::new(prepared));
        Some(qp)
    }

    /// Tells what came before the queue pair did.
    fn tell_early(&mut self, each: &mut dyn FnMut(Event<'_>)) -> usize {
        let early = std::mem::take(&mut self.early);
        let count = early.len();
        // What still waits is kept again; what belongs to none any more is forgotten.
        early.iter().for_each(|done| self.ended(done, each));
        count - self.early.len()
    }

    /// Posts work where there is room for `needed` requests.
    fn post(
        &mut self,
        qp: QueuePair,
        needed: usize,
        with: impl FnOnce(&mut Pair, &[Arc<Region>]) -> bool,
    ) -> bool {
        let Some(pair) = self.pairs.get_mut(&qp.0) else { return false };
        if pair.room() < needed || pair.failed || pair.prepared.is_none() {
            return false;
        }
        if pair.pending.is_empty() {
            self.dirty.push(qp.0);
        }
        with(pair, &self.regions)
    }

    /// One completion: what it means, if anything.
    fn ended(&mut self, done: &Done, each: &mut dyn FnMut(Event<'_>)) {
        let qp = QueuePair(done.number);
        let Some(pair) = self.pairs.get_mut(&done.number) else {
            if self.queue.expected().contains(&done.number) {
                self.early.push(*done);
            }
            return;
        };
        let error = error_of(done.status);
        if done.id & RECEIVED != 0 {
            let place = (done.id & !RECEIVED) as usize;
            match (error, &mut pair.prepared) {
                (None, Some(prepared)) => {
                    each(Event::Received { qp, bytes: prepared.message(place, done.len as usize) });
                    // One by one costs a doorbell each; they are cheap, and messages few.
                    if prepared.receive(&[place]) == 0 {
                        fail(pair, qp, WorkError::Local(0), each);
                    }
                }
                (Some(error), _) => fail(pair, qp, error, each),
                (None, None) => {}
            }
            return;
        }
        let (kind, tag) = (done.id >> 56, (done.id >> 32 & 0xff_ffff) as u32);
        // They end in the order in which they were posted.
        pair.ended = done.id as u32;
        if kind == Kind::Read as u64
            && let Some(buffer) = pair.reads.get_mut(tag as usize).and_then(Option::take)
        {
            each(Event::Read { qp, tag, buffer, result: error.map_or(Ok(()), Err) });
        }
        match error {
            Some(error) => fail(pair, qp, error, each),
            None if kind == Kind::Invalidate as u64 => each(Event::Revoked { qp, tag }),
            None => {}
        }
    }

    fn tell_late(&mut self, each: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut count = 0;
        while let Some(late) = self.late.pop_front() {
            count += 1;
            match late {
                Late::Read { qp, tag, buffer } => {
                    each(Event::Read { qp: QueuePair(qp), tag, buffer, result: Err(WorkError::Flushed) });
                }
                Late::Revoked { qp, tag } => each(Event::Revoked { qp: QueuePair(qp), tag }),
                Late::Failed { qp, error } => each(Event::Failed { qp: QueuePair(qp), error }),
                Late::Gone { qp } => each(Event::Gone { qp: QueuePair(qp) }),
                Late::DeviceFailed(error) => each(Event::DeviceFailed { error }),
            }
        }
        count
    }

    /// What the device says of itself.
    fn take_async(&mut self) {
        let shared = self.queue.device();
        let mut told = Async::default();
        // SAFETY: an open device, and room for what it says.
        let result = unsafe { (shared.table.take_async)(shared.handle.as_ptr(), &mut told) };
        let failed = match (result, told.kind) {
            (0, _) => return,
            (1, ASYNC_PAIR) => {
                self.late.push_back(Late::Failed { qp: told.number, error: WorkError::Remote });
                return;
            }
            (1, ASYNC_PORT_DOWN) => "its port is down",
            (1, ASYNC_DEVICE) => "it was removed, or does nothing any more",
            (1, _) => return,
            _ => "it cannot be asked any more",
        };
        self.fail_device(failed);
    }

    fn fail_device(&mut self, why: &str) {
        if !std::mem::replace(&mut self.device_failed, true) {
            let error = io::Error::other(format!("the RDMA device {}: {why}", self.name));
            self.late.push_back(Late::DeviceFailed(error));
        }
    }

    /// Not every driver says that its device is being removed.
    fn look(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.looked) >= LOOK {
            self.looked = now;
            self.take_async();
            if self.queue.owner().is_removed() {
                self.fail_device("it is being removed");
            }
        }
    }
}

fn eventfd_flags() -> rustix::event::EventfdFlags {
    rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK
}

fn fail(pair: &mut Pair, qp: QueuePair, error: WorkError, each: &mut dyn FnMut(Event<'_>)) {
    if !std::mem::replace(&mut pair.failed, true) {
        each(Event::Failed { qp, error });
    }
}

/// What a status (`ibv_wc_status`) means.
fn error_of(status: u32) -> Option<WorkError> {
    Some(match status {
        0 => return None,
        5 => WorkError::Flushed,
        9 | 11 => WorkError::Remote,
        10 => WorkError::RemoteAccess,
        12 | 13 => WorkError::Unreachable,
        other => WorkError::Local(other),
    })
}

const NOTHING: Work = Work {
    id: 0,
    kind: 0,
    signalled: 0,
    address: null_mut(),
    len: 0,
    lkey: 0,
    remote: 0,
    rkey: 0,
    zero: 0,
    window: null_mut(),
    region: null_mut(),
};

impl Verbs for Completions {
    fn name(&self) -> &str {
        &self.name
    }

    fn lending(&self) -> Lending {
        self.queue.owner().lending()
    }

    fn rate_bytes_per_s(&self) -> Option<u64> {
        self.queue.owner().rate_bytes_per_s()
    }

    fn takes(&self, buffer: &Buffer) -> bool {
        regions::of(&self.regions, buffer, Purpose::Filled).is_some()
    }

    fn send(&mut self, qp: QueuePair, message: &[u8]) -> bool {
        let len = message.len() as u32;
        self.post(qp, 1, |pair, _| {
            pair.push(Kind::Send, 0, Work { kind: WORK_SEND, len, ..NOTHING }, message);
            true
        })
    }

    fn read(&mut self, qp: QueuePair, tag: u32, from: Span, to: Buffer) -> Result<(), Buffer> {
        let mut buffer = Some(to);
        self.post(qp, 1, |pair, regions| {
            let Some(place) = pair.reads.get_mut(tag as usize).filter(|place| place.is_none()) else {
                return false;
            };
            let Some(mut to) = buffer.take() else { return false };
            let Some(region) = regions::of(regions, &to, Purpose::Filled) else {
                buffer = Some(to);
                return false;
            };
            to.set_len(from.len as usize);
            let work = Work {
                kind: WORK_READ,
                address: to.as_mut().as_mut_ptr().cast(),
                len: from.len,
                lkey: region.keys.lkey,
                remote: from.address,
                rkey: from.rkey,
                ..NOTHING
            };
            *place = Some(to);
            pair.push(Kind::Read, tag, work, &[]);
            true
        });
        buffer.map_or(Ok(()), Err)
    }

    fn lend(&mut self, qp: QueuePair, tag: u32, memory: &Buffer, len: u32) -> Option<Span> {
        let lending = self.lending();
        let address = memory.as_ref().as_ptr();
        let mut span = None;
        // For the bind, and for the message that tells of it.
        self.post(qp, 2, |pair, regions| {
            let Some(region) = regions::of(regions, memory, Purpose::Lent) else { return false };
            let mut rkey = region.keys.rkey;
            if lending == Lending::Windows {
                let window =
                    pair.prepared.as_mut().and_then(|prepared| prepared.windows.get_mut(tag as usize));
                let Some(window) = window else { return false };
                // A window's key changes in its low byte with each bind.
                window.rkey = window.rkey & !0xff | window.rkey.wrapping_add(1) & 0xff;
                rkey = window.rkey;
                let work = Work {
                    kind: WORK_BIND,
                    address: address.cast_mut().cast(),
                    len,
                    rkey,
                    window: window.handle.as_ptr(),
                    region: region.handle.as_ptr(),
                    ..NOTHING
                };
                pair.push(Kind::Bind, tag, work, &[]);
            }
            pair.lent[tag as usize] = rkey;
            span = Some(Span { address: address as u64, rkey, len });
            true
        });
        span
    }

    fn revoke(&mut self, qp: QueuePair, tag: u32) -> bool {
        if self.lending() == Lending::Slabs {
            // The peer has given it back; what it may read there still is nothing but verified pieces.
            self.late.push_back(Late::Revoked { qp: qp.0, tag });
            return true;
        }
        self.post(qp, 1, |pair, _| {
            let Some(rkey) = pair.lent.get(tag as usize).copied() else { return false };
            pair.push(Kind::Invalidate, tag, Work { kind: WORK_INVALIDATE, rkey, ..NOTHING }, &[]);
            true
        })
    }

    fn flush(&mut self) {
        let table = self.queue.device().table;
        for qp in self.dirty.drain(..) {
            let Some(pair) = self.pairs.get_mut(&qp) else { continue };
            let Some(prepared) = &pair.prepared else { continue };
            let mut posted = 0;
            for chunk in pair.pending.chunks(BATCH) {
                let mut work = [NOTHING; BATCH];
                for (work, (pending, message)) in work.iter_mut().zip(chunk) {
                    *work = *pending;
                    if pending.kind == WORK_SEND {
                        work.address = message.as_ptr().cast_mut().cast();
                    }
                }
                // SAFETY: messages are copied in the call; buffers stay with us until their READ is reported or the pair is
                // destroyed; windows and regions live as long as the pair.
                let count =
                    unsafe { (table.work)(prepared.handle.as_ptr(), work.as_ptr(), chunk.len() as u32) };
                posted += count as usize;
                if (count as usize) < chunk.len() {
                    break;
                }
            }
            if posted < pair.pending.len() {
                // The device takes no more of it: these will not be reported.
                for (work, _) in &pair.pending[posted..] {
                    let tag = (work.id >> 32 & 0xff_ffff) as u32;
                    if work.kind == WORK_READ
                        && let Some(buffer) = pair.reads.get_mut(tag as usize).and_then(Option::take)
                    {
                        self.late.push_back(Late::Read { qp, tag, buffer });
                    }
                }
                if !std::mem::replace(&mut pair.failed, true) {
                    self.late.push_back(Late::Failed { qp, error: WorkError::Local(0) });
                }
            }
            pair.pending.clear();
        }
    }

    fn retire(&mut self, qp: QueuePair) {
        self.flush();
        let Some(pair) = self.pairs.get_mut(&qp.0) else { return };
        pair.failed = true;
        let Some(prepared) = pair.prepared.take() else { return };
        if let Some((undertaker, _)) = &self.undertaker {
            // It ends only with us.
            let _ = undertaker.send((prepared, true));
        }
    }

    fn poll(&mut self, each: &mut dyn FnMut(Event<'_>)) -> usize {
        let shared = self.queue.device();
        let (table, queue) = (shared.table, self.queue.handle.as_ptr());
        // First which are destroyed: whatever those report is in the queue by now.
        let destroyed: Vec<u32> = self.destroyed.try_iter().collect();
        let mut count = if self.early.is_empty() { 0 } else { self.tell_early(each) };
        loop {
            let mut done = [Done::default(); BATCH];
            // SAFETY: a queue of ours, and room for so many.
            let polled = unsafe { (table.poll)(queue, done.as_mut_ptr(), BATCH as u32) };
            if polled < 0 && !std::mem::replace(&mut self.device_failed, true) {
                let error = io::Error::from_raw_os_error(-polled);
                self.late.push_back(Late::DeviceFailed(error));
            }
            let polled = polled.max(0) as usize;
            for done in &done[..polled] {
                self.ended(done, each);
            }
            count += polled;
            if polled < BATCH || (count >= 8 * BATCH && destroyed.is_empty()) {
                break;
            }
        }
        for qp in destroyed {
            let Some(mut pair) = self.pairs.remove(&qp) else { continue };
            for (tag, buffer) in pair.reads.iter_mut().enumerate() {
                if let Some(buffer) = buffer.take() {
                    self.late.push_back(Late::Read { qp, tag: tag as u32, buffer });
                }
            }
            self.late.push_back(Late::Gone { qp });
        }
        if count == 0 {
            self.take_async();
        }
        self.look();
        count + self.tell_late(each)
    }

    fn arm(&mut self) -> io::Result<()> {
        // The counter of an eventfd; there may be nothing in it.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        // SAFETY: a queue of ours.
        match unsafe { (self.queue.device().table.arm)(self.queue.handle.as_ptr()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }
}
