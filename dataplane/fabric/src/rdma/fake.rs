//! A fake of devices and the network between them, in virtual time: everything that a device may do, drawn by a seed. It checks what no
//! device would tell: that memory which is lent is not used for anything else.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limits::{RECEIVES_PER_PATH, SENDS_PER_PATH};
use super::verbs::{Event, Lending, QueuePair, Span, Verbs, WorkError};
use crate::pool::Buffer;

/// What goes wrong, each with a probability for each work request unless it says otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The queue pair fails.
    pub fail: f64,
    /// A READ's end is not reported until the queue pair is retired.
    pub lose_completion: f64,
    /// A loan that is taken back stays, and nothing is said of it until the queue pair is retired.
    pub lose_revoked: f64,
    /// A READ or message takes a hundred times as long.
    pub slow: f64,
    /// The device is gone at this moment (ns).
    pub device_gone_ns: Option<u64>,
    /// From this moment on (ns) nothing gets to the other devices.
    pub cut_ns: Option<u64>,
}

/// What a queue pair reports, some time.
enum Report {
    Message(Vec<u8>),
    Read {
        tag: u32,
        buffer: Buffer,
        result: Result<(), WorkError>,
    },
    Revoked {
        tag: u32,
    },
    Failed(WorkError),
    Gone,
    /// A message has left: there is room.
    Sent,
}

/// What the device is to do.
enum Work {
    Send(Vec<u8>),
    Read { tag: u32, from: Span, buffer: Buffer },
    Revoke { tag: u32 },
}

struct Pair {
    /// The device and the queue pair at the other end.
    peer: Option<(usize, u32)>,
    queue: VecDeque<(u64, Work)>,
    failed: bool,
    retired: bool,
    /// Work that has not been reported.
    outstanding: usize,
    /// READs whose end was lost.
    lost: Vec<(u32, Buffer)>,
    /// No later work ends before this.
    last_ns: u64,
}

struct Loan {
    qp: u32,
    tag: u32,
    /// Where it lies in our memory: for who wants to know whether it is lent.
    memory: usize,
    /// As it was when it was lent.
    bytes: Vec<u8>,
}

struct Device {
    lending: Lending,
    faults: Faults,
    pairs: BTreeMap<u32, Pair>,
    loans: BTreeMap<u32, Loan>,
    reports: BTreeMap<(u64, u64), (u32, Report)>,
    gone: bool,
    told: bool,
}

struct Net {
    now_ns: u64,
    /// Of a message or READ.
    trip_ns: u64,
    lot: u64,
    next: u64,
    devices: Vec<Device>,
}

/// Devices and what joins them.
#[derive(Clone)]
pub struct Network(Arc<Mutex<Net>>);

/// One device, for one worker.
pub struct Fake {
    network: Network,
    device: usize,
}

impl Net {
    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.lot = self.lot.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.lot;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, probability: f64) -> bool {
        (self.draw() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn report(&mut self, at_ns: u64, device: usize, qp: u32, report: Report) {
        let number = self.number();
        self.devices[device].reports.insert((at_ns, number), (qp, report));
    }

    fn is_cut(&self, device: usize) -> bool {
        let device = &self.devices[device];
        device.gone || device.faults.cut_ns.is_some_and(|at| at <= self.now_ns)
    }

    /// When work that is posted now is done: after all that was posted before.
    fn takes(&mut self, device: usize, qp: u32) -> u64 {
        let slow = self.devices[device].faults.slow;
        let mut took = self.trip_ns / 2 + self.draw() % self.trip_ns.max(1);
        if self.happens(slow) {
            took *= 100;
        }
        let at = self.now_ns + took;
        let Some(pair) = self.devices[device].pairs.get_mut(&qp) else { return at };
        pair.last_ns = pair.last_ns.max(at);
        pair.last_ns
    }

    /// Everything that is due by now is done.
    fn advance(&mut self) {
        for device in 0..self.devices.len() {
            if self.devices[device].faults.device_gone_ns.is_some_and(|at| at <= self.now_ns)
                && !self.devices[device].gone
            {
                self.devices[device].gone = true;
                let pairs: Vec<u32> = self.devices[device].pairs.keys().copied().collect();
                for qp in pairs {
                    self.fail(device, qp, WorkError::Flushed);
                }
            }
        }
        // In the order of time, whatever device.
        loop {
            let next = (0..self.devices.len())
                .flat_map(|device| {
                    let pairs = self.devices[device].pairs.iter();
                    pairs.filter_map(move |(qp, pair)| Some((pair.queue.front()?.0, device, *qp)))
                })
                .min();
            let Some((at, device, qp)) = next.filter(|(at, ..)| *at <= self.now_ns) else { return };
            let Some(pair) = self.devices[device].pairs.get_mut(&qp) else { return };
            let Some((_, work)) = pair.queue.pop_front() else { return };
            self.execute(at, device, qp, work);
        }
    }

    fn execute(&mut self, at: u64, device: usize, qp: u32, work: Work) {
        let faults = self.devices[device].faults;
        let Some(pair) = self.devices[device].pairs.get(&qp) else { return };
        let (peer, failed) = (pair.peer, pair.failed);
        if failed {
            return self.flush(device, qp, work);
        }
        if self.happens(faults.fail) {
            self.fail(device, qp, WorkError::Remote);
            return self.flush(device, qp, work);
        }
        if let Work::Revoke { tag } = work {
            if self.happens(faults.lose_revoked) {
                return;
            }
            self.devices[device].loans.retain(|_, loan| (loan.qp, loan.tag) != (qp, tag));
            return self.report(at, device, qp, Report::Revoked { tag });
        }
        let reachable = peer.filter(|(other, number)| {
            let alive =
                self.devices[*other].pairs.get(number).is_some_and(|pair| !pair.failed && !pair.retired);
            alive && !self.is_cut(device) && !self.is_cut(*other)
        });
        let Some((other, number)) = reachable else {
            self.fail(device, qp, WorkError::Unreachable);
            return self.flush(device, qp, work);
        };
        match work {
            Work::Send(bytes) => {
                self.report(at, other, number, Report::Message(bytes));
                self.report(at, device, qp, Report::Sent);
            }
            Work::Read { tag, from, mut buffer } => {
                let loan = self.devices[other].loans.get(&from.rkey);
                let right = loan.filter(|loan| {
                    let bound = self.devices[other].lending == Lending::Slabs || loan.qp == number;
                    bound && loan.memory as u64 == from.address && loan.bytes.len() >= from.len as usize
                });
                let Some(loan) = right else {
                    self.fail(other, number, WorkError::RemoteAccess);
                    self.fail(device, qp, WorkError::RemoteAccess);
                    let result = Err(WorkError::RemoteAccess);
                    return self.report(at, device, qp, Report::Read { tag, buffer, result });
                };
                let len = from.len as usize;
                buffer.as_mut()[..len].copy_from_slice(&loan.bytes[..len]);
                if self.happens(faults.lose_completion) {
                    if let Some(pair) = self.devices[device].pairs.get_mut(&qp) {
                        pair.lost.push((tag, buffer));
                    }
                } else {
                    self.report(at, device, qp, Report::Read { tag, buffer, result: Ok(()) });
                }
            }
            Work::Revoke { .. } => {}
        }
    }

    /// Reports work that is not done.
    fn flush(&mut self, device: usize, qp: u32, work: Work) {
        let now = self.now_ns;
        match work {
            Work::Read { tag, buffer, .. } => {
                let result = Err(WorkError::Flushed);
                self.report(now, device, qp, Report::Read { tag, buffer, result });
            }
            Work::Send(_) => self.report(now, device, qp, Report::Sent),
            // It is not taken back: only the end of the queue pair does that.
            Work::Revoke { .. } => {}
        }
    }

    fn fail(&mut self, device: usize, qp: u32, error: WorkError) {
        let now = self.now_ns;
        let Some(pair) = self.devices[device].pairs.get_mut(&qp) else { return };
        if !std::mem::replace(&mut pair.failed, true) && !pair.retired {
            self.report(now, device, qp, Report::Failed(error));
        }
    }

    fn retire(&mut self, device: usize, qp: u32) {
        let at = self.now_ns + self.draw() % (20 * self.trip_ns);
        let Some(pair) = self.devices[device].pairs.get_mut(&qp) else { return };
        if std::mem::replace(&mut pair.retired, true) {
            return;
        }
        pair.failed = true;
        let (queue, lost) = (std::mem::take(&mut pair.queue), std::mem::take(&mut pair.lost));
        for (tag, buffer) in lost {
            self.report(at, device, qp, Report::Read { tag, buffer, result: Err(WorkError::Flushed) });
        }
        for (_, work) in queue {
            self.flush(device, qp, work);
        }
        // After all that is still to be reported.
        let last =
            self.devices[device].reports.iter().filter(|(_, (of, _))| *of == qp).map(|((at, _), _)| *at);
        let at = last.max().unwrap_or(0).max(at);
        self.report(at, device, qp, Report::Gone);
    }
}

impl Network {
    /// A network without devices in which a message takes about `trip_ns`.
    pub fn new(seed: u64, trip_ns: u64) -> Self {
        Self(Arc::new(Mutex::new(Net { now_ns: 0, trip_ns, lot: seed, next: 0, devices: Vec::new() })))
    }

    fn net(&self) -> MutexGuard<'_, Net> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more device.
    pub fn device(&self, lending: Lending, faults: Faults) -> Fake {
        let mut net = self.net();
        net.devices.push(Device {
            lending,
            faults,
            pairs: BTreeMap::new(),
            loans: BTreeMap::new(),
            reports: BTreeMap::new(),
            gone: false,
            told: false,
        });
        Fake { network: self.clone(), device: net.devices.len() - 1 }
    }

    /// Two connected queue pairs.
    pub fn connect(&self, a: &Fake, b: &Fake) -> (QueuePair, QueuePair) {
        let mut net = self.net();
        let (one, two) = (net.number() as u32, net.number() as u32);
        for (device, qp, peer) in [(a.device, one, (b.device, two)), (b.device, two, (a.device, one))] {
            let pair = Pair {
                peer: Some(peer),
                queue: VecDeque::new(),
                failed: false,
                retired: false,
                outstanding: 0,
                lost: Vec::new(),
                last_ns: 0,
            };
            net.devices[device].pairs.insert(qp, pair);
        }
        (QueuePair(one), QueuePair(two))
    }

    /// Goes on to this moment.
    pub fn advance(&self, now_ns: u64) {
        let mut net = self.net();
        net.now_ns = net.now_ns.max(now_ns);
        net.advance();
    }

    /// When something next happens by itself.
    pub fn next_event(&self) -> Option<u64> {
        let net = self.net();
        let reports = net.devices.iter().filter_map(|device| device.reports.keys().next().map(|(at, _)| *at));
        let work = net.devices.iter().flat_map(|device| device.pairs.values());
        let work = work.filter_map(|pair| pair.queue.front().map(|(at, _)| *at));
        let gone = net
            .devices
            .iter()
            .filter(|device| !device.gone)
            .filter_map(|device| device.faults.device_gone_ns);
        reports.chain(work).chain(gone).min()
    }

    /// The addresses of all memory that is lent.
    pub fn lent(&self) -> BTreeSet<usize> {
        let net = self.net();
        net.devices.iter().flat_map(|device| device.loans.values()).map(|loan| loan.memory).collect()
    }
}

impl Fake {
    fn post(&mut self, qp: QueuePair, work: Work) -> Result<(), Work> {
        let mut net = self.network.net();
        let at = net.takes(self.device, qp.0);
        let Some(pair) = net.devices[self.device].pairs.get_mut(&qp.0) else { return Err(work) };
        if pair.outstanding >= SENDS_PER_PATH || pair.retired {
            return Err(work);
        }
        pair.outstanding += 1;
        pair.queue.push_back((at, work));
        Ok(())
    }
}

impl Verbs for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn lending(&self) -> Lending {
        self.network.net().devices[self.device].lending
    }

    fn rate_bytes_per_s(&self) -> Option<u64> {
        None
    }

    fn takes(&self, _: &Buffer) -> bool {
        true
    }

    fn send(&mut self, qp: QueuePair, message: &[u8]) -> bool {
        self.post(qp, Work::Send(message.to_vec())).is_ok()
    }

    fn read(&mut self, qp: QueuePair, tag: u32, from: Span, to: Buffer) -> Result<(), Buffer> {
        match self.post(qp, Work::Read { tag, from, buffer: to }) {
            Err(Work::Read { buffer, .. }) => Err(buffer),
            _ => Ok(()),
        }
    }

    fn lend(&mut self, qp: QueuePair, tag: u32, memory: &Buffer, len: u32) -> Option<Span> {
        let mut net = self.network.net();
        let rkey = net.number() as u32;
        let device = &mut net.devices[self.device];
        if device.pairs.get(&qp.0).is_none_or(|pair| pair.retired) {
            return None;
        }
        let bytes = memory.as_ref()[..len as usize].to_vec();
        let place = memory.as_ref().as_ptr() as usize;
        device.loans.insert(rkey, Loan { qp: qp.0, tag, memory: place, bytes });
        Some(Span { address: place as u64, rkey, len })
    }

    fn revoke(&mut self, qp: QueuePair, tag: u32) -> bool {
        self.post(qp, Work::Revoke { tag }).is_ok()
    }

    fn flush(&mut self) {}

    fn retire(&mut self, qp: QueuePair) {
        self.network.net().retire(self.device, qp.0);
    }

    fn poll(&mut self, each: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut count = 0;
        while count < RECEIVES_PER_PATH {
            let mut net = self.network.net();
            let now = net.now_ns;
            let device = &mut net.devices[self.device];
            if device.gone && !std::mem::replace(&mut device.told, true) {
                drop(net);
                each(Event::DeviceFailed { error: io::Error::other("device removed") });
                count += 1;
                continue;
            }
            let Some(first) = device.reports.first_entry().filter(|first| first.key().0 <= now) else {
                break;
            };
            let (number, report) = first.remove();
            let qp = QueuePair(number);
            if let Some(pair) = device.pairs.get_mut(&number)
                && matches!(report, Report::Sent | Report::Read { .. } | Report::Revoked { .. })
            {
                pair.outstanding = pair.outstanding.saturating_sub(1);
            }
            if matches!(report, Report::Gone) {
                device.pairs.remove(&number);
                device.loans.retain(|_, loan| loan.qp != number);
            }
            drop(net);
            count += 1;
            match report {
                Report::Message(bytes) => each(Event::Received { qp, bytes: &bytes }),
                Report::Read { tag, buffer, result } => each(Event::Read { qp, tag, buffer, result }),
                Report::Revoked { tag } => each(Event::Revoked { qp, tag }),
                Report::Failed(error) => each(Event::Failed { qp, error }),
                Report::Gone => each(Event::Gone { qp }),
                Report::Sent => {}
            }
        }
        count
    }

    fn arm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// As with a device, dropping it destroys its queue pairs: nobody reads what it lent any more.
impl Drop for Fake {
    fn drop(&mut self) {
        let mut net = self.network.net();
        let device = &mut net.devices[self.device];
        device.loans.clear();
        device.pairs.clear();
        device.reports.clear();
        device.gone = true;
    }
}
