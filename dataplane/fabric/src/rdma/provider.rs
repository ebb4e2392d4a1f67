//! The providing side of a path: what the peer asked for, and what is lent to it.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use velo_object::NodeId;

use super::limits::READS_PER_PATH;
use super::message::{AskMessage, Grant, Message};
use super::reader::each;
use super::verbs::{Lending, QueuePair, Verbs};
use super::{RdmaCounters, RdmaOptions};
use crate::pool::BUFFER_BYTES;
use crate::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId, Supply};
use crate::{PathId, ProtocolError, Refusal};

enum State {
    Vacant,
    /// The supply has been asked.
    Loading,
    /// The bytes are there, and about to be lent.
    Loaded(Loaded),
    /// They are lent.
    Lent(Loaded),
    /// They are being taken back, and must not go before that is done.
    Revoking {
        _held: Loaded,
    },
    /// A REFUSE is about to be sent.
    Refused(Refusal),
}

struct Slot {
    state: State,
    /// The number of the last read.
    read: u32,
    /// When its ASK came.
    asked: Instant,
    /// When what is lent is taken from the peer; once it is being taken back, when that must be over.
    due: Instant,
    /// Whether the peer is done with it.
    ended: bool,
    /// What the peer asks for after it.
    next: Option<AskMessage>,
}

/// Whom a provider works for.
pub(super) struct Desk<'a> {
    pub(super) path: PathId,
    pub(super) peer: NodeId,
    pub(super) supply: &'a mut dyn Supply,
    pub(super) counters: &'a mut RdmaCounters,
    /// Counts the loans of this worker.
    pub(super) epoch: &'a mut u64,
}

/// What the peer reads on one path.
pub(super) struct Provider {
    slots: [Slot; READS_PER_PATH],
    lending: Lending,
    lease: Duration,
    /// How long the device may need to take something back.
    patience: Duration,
    /// The most slots that may be lent at once.
    lent_max: u32,
    /// Slots that are to be lent, refused, taken back; and those that are lent, whatever is being done about it.
    lend: u64,
    refuse: u64,
    revoke: u64,
    lent: u64,
}

impl Provider {
    pub(super) fn new(now: Instant, lending: Lending, options: &RdmaOptions) -> Self {
        let RdmaOptions { lease, stall_timeout: patience, lent_max_bytes } = *options;
        let lent_max = (lent_max_bytes / BUFFER_BYTES as u64).clamp(1, u32::MAX.into()) as u32;
        let slot = || Slot { state: State::Vacant, read: 0, asked: now, due: now, ended: true, next: None };
        let slots = std::array::from_fn(|_| slot());
        Self { slots, lending, lease, patience, lent_max, lend: 0, refuse: 0, revoke: 0, lent: 0 }
    }

    pub(super) fn has_work(&self) -> bool {
        (self.refuse | self.revoke) != 0 || (self.lend != 0 && self.lent.count_ones() < self.lent_max)
    }

    /// The peer asks for a range.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        ask: &AskMessage,
        desk: &mut Desk<'_>,
    ) -> Result<(), ProtocolError> {
        let index = usize::from(ask.slot);
        let slot = &mut self.slots[index];
        if !slot.ended || slot.next.is_some() {
            return Err(ProtocolError::TooManyReads { limit: READS_PER_PATH });
        }
        if matches!(slot.state, State::Vacant) {
            self.begin(now, ask, desk);
        } else {
            slot.next = Some(*ask);
        }
        Ok(())
    }

    fn begin(&mut self, now: Instant, ask: &AskMessage, desk: &mut Desk<'_>) {
        let index = usize::from(ask.slot);
        let slot = &mut self.slots[index];
        (slot.state, slot.read, slot.asked, slot.ended) = (State::Loading, ask.read, now, false);
        let id = ServeId { path: desk.path, slot: ask.slot, read: ask.read };
        let AskMessage { blob, what, offset_bytes, len, .. } = *ask;
        if desk.supply.ask(Ask { id, peer: desk.peer, blob, what, offset_bytes, len }).is_err() {
            self.refuse_it(index, Refusal::Refused, desk.counters);
        }
    }

    fn refuse_it(&mut self, index: usize, why: Refusal, counters: &mut RdmaCounters) {
        counters.fabric.reads_refused += 1;
        self.slots[index].state = State::Refused(why);
        self.refuse |= 1 << index;
    }

    /// The peer is done with a read.
    pub(super) fn end(&mut self, now: Instant, slot: u16, read: u32, desk: &mut Desk<'_>) {
        let index = usize::from(slot);
        let slot = &mut self.slots[index];
        // It may have given up what waits for the slot.
        if slot.next.take_if(|next| next.read == read).is_some() {
            return;
        }
        if slot.read != read || slot.ended {
            return;
        }
        slot.ended = true;
        match slot.state {
            State::Lent(_) => self.take_back(now, index),
            // The answer to come is too late.
            State::Loading | State::Loaded(_) => self.vacate(now, index, desk),
            State::Vacant | State::Revoking { .. } | State::Refused(_) => {}
        }
    }

    /// What a slot has lent is to be taken back.
    fn take_back(&mut self, now: Instant, index: usize) {
        let bit = 1 << index;
        if self.revoke & bit == 0 {
            self.revoke |= bit;
            self.slots[index].due = now + self.patience;
        }
    }

    /// A slot holds nothing any more.
    fn vacate(&mut self, now: Instant, index: usize, desk: &mut Desk<'_>) {
        let slot = &mut self.slots[index];
        let id = ServeId { path: desk.path, slot: index as u16, read: slot.read };
        let bit = 1u64 << index;
        for mask in [&mut self.lend, &mut self.refuse, &mut self.revoke, &mut self.lent] {
            *mask &= !bit;
        }
        let state = std::mem::replace(&mut slot.state, State::Vacant);
        let next = slot.next.take();
        if !matches!(state, State::Vacant) {
            drop(state);
            desk.supply.release(id);
        }
        if let Some(ask) = next {
            self.begin(now, &ask, desk);
        }
    }

    /// The supply has answered. Too late, it is dropped.
    pub(super) fn answer(&mut self, answer: Answer, counters: &mut RdmaCounters) {
        let index = usize::from(answer.id.slot);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.read != answer.id.read || !matches!(slot.state, State::Loading) {
            return;
        }
        match answer.result {
            // Only what lies in a buffer can be lent.
            Ok(loaded) if matches!(loaded.bytes, LoadedBytes::Buffer(_)) => {
                slot.state = State::Loaded(loaded);
                self.lend |= 1 << index;
            }
            Ok(_) => self.refuse_it(index, Refusal::Refused, counters),
            Err(why) => self.refuse_it(index, why, counters),
        }
    }

    /// Nobody can read by a loan any more.
    pub(super) fn revoked(&mut self, now: Instant, tag: u32, desk: &mut Desk<'_>) {
        let index = tag as usize;
        if self.slots.get(index).is_some_and(|slot| matches!(slot.state, State::Revoking { .. })) {
            desk.counters.leases_revoked += 1;
            self.vacate(now, index, desk);
        }
    }

    /// Takes back what has been lent for too long.
    ///
    /// # Errors
    /// Why only the end of the queue pair can do that.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        counters: &mut RdmaCounters,
    ) -> Result<(), &'static str> {
        for index in each(self.lent) {
            if self.slots[index].due > now {
                continue;
            }
            if self.revoke >> index & 1 == 1 || matches!(self.slots[index].state, State::Revoking { .. }) {
                counters.revocations_late += 1;
                return Err("the device does not say that it has taken back what was lent");
            }
            counters.leases_expired += 1;
            if self.lending == Lending::Slabs {
                return Err("the peer kept what was lent to it for longer than its lease");
            }
            self.take_back(now, index);
        }
        Ok(())
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        each(self.lent).map(|index| self.slots[index].due).min()
    }

    /// Lends, refuses and takes back as much as there is room for.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        qp: QueuePair,
        verbs: &mut dyn Verbs,
        desk: &mut Desk<'_>,
    ) {
        for index in each(self.revoke) {
            if !verbs.revoke(qp, index as u32) {
                return;
            }
            self.revoke &= !(1 << index);
            let slot = &mut self.slots[index];
            slot.state = match std::mem::replace(&mut slot.state, State::Vacant) {
                State::Lent(loaded) => State::Revoking { _held: loaded },
                other => other,
            };
        }
        for index in each(self.refuse) {
            let State::Refused(why) = self.slots[index].state else { continue };
            let refuse = Message::Refuse { slot: index as u16, read: self.slots[index].read, why };
            if !verbs.send(qp, refuse.encode().as_ref()) {
                return;
            }
            // The peer does not end what it was refused.
            self.slots[index].ended = true;
            self.vacate(now, index, desk);
        }
        for index in each(self.lend) {
            if self.lent.count_ones() >= self.lent_max {
                return;
            }
            let slot = &mut self.slots[index];
            let State::Loaded(Loaded { bytes: LoadedBytes::Buffer(buffer), len, .. }) = &slot.state else {
                continue;
            };
            let Some(span) = verbs.lend(qp, index as u32, buffer, *len) else { return };
            *desk.epoch += 1;
            let held = now.saturating_duration_since(slot.asked);
            let grant = Message::Grant(Grant {
                slot: index as u16,
                read: slot.read,
                span,
                lease_ms: self.lease.as_millis() as u32,
                held_us: u32::try_from(held.as_micros()).unwrap_or(u32::MAX),
                epoch: *desk.epoch,
            });
            let sent = verbs.send(qp, grant.encode().as_ref());
            let len = *len;
            slot.state = match std::mem::replace(&mut slot.state, State::Vacant) {
                State::Loaded(loaded) => State::Lent(loaded),
                other => other,
            };
            slot.due = now + self.lease;
            self.lend &= !(1 << index);
            self.lent |= 1 << index;
            if !sent {
                // A device has room for both. One that had not would have it taken back; the reader's path stalls in time.
                self.take_back(now, index);
                return;
            }
            desk.counters.leases_granted += 1;
            desk.counters.fabric.reads_served += 1;
            desk.counters.fabric.payload_bytes_out += u64::from(len);
            desk.supply.sent(desk.peer, len.into());
        }
    }

    /// The path is being closed: what is not lent is let go of now.
    pub(super) fn close(&mut self, now: Instant, desk: &mut Desk<'_>) {
        for index in 0..READS_PER_PATH {
            self.slots[index].next = None;
            if !matches!(self.slots[index].state, State::Vacant | State::Lent(..) | State::Revoking { .. }) {
                self.vacate(now, index, desk);
            }
        }
        (self.lend, self.refuse, self.revoke) = (0, 0, 0);
    }

    /// The queue pair is gone, and with it every loan.
    pub(super) fn gone(&mut self, now: Instant, desk: &mut Desk<'_>) {
        for index in 0..READS_PER_PATH {
            self.slots[index].next = None;
            self.vacate(now, index, desk);
        }
    }
}

#[cfg(test)]
mod tests {
    use velo_object::BlobId;

    use super::super::fake::{Fake, Faults, Network};
    use super::super::verbs::Event;
    use super::*;
    use crate::What;
    use crate::pool::Pool;

    /// Remembers what it was asked; the tests answer.
    #[derive(Default)]
    struct Asked(Vec<Ask>);

    impl Supply for Asked {
        fn ask(&mut self, ask: Ask) -> Result<(), Ask> {
            self.0.push(ask);
            Ok(())
        }
        fn poll(&mut self, _: &mut dyn FnMut(Answer)) -> usize {
            0
        }
        fn release(&mut self, id: ServeId) {
            self.0.retain(|ask| ask.id != id);
        }
        fn sent(&mut self, _: NodeId, _: u64) {}
    }

    const OPTIONS: RdmaOptions = RdmaOptions {
        stall_timeout: Duration::from_millis(500),
        lease: Duration::from_millis(100),
        lent_max_bytes: 32 << 20,
    };

    /// A provider, its device, and the reader's.
    struct Bench {
        provider: Provider,
        supply: Asked,
        counters: RdmaCounters,
        epoch: u64,
        pool: Pool,
        now: Instant,
        network: Network,
        at_ns: u64,
        ours: Fake,
        theirs: Fake,
        qp: QueuePair,
    }

    impl Bench {
        fn new(lending: Lending, faults: Faults) -> Self {
            let (network, now) = (Network::new(1, 1_000), Instant::now());
            let (ours, theirs) =
                (network.device(lending, faults), network.device(lending, Faults::default()));
            let (qp, _) = network.connect(&ours, &theirs);
            Self {
                provider: Provider::new(now, lending, &OPTIONS),
                supply: Asked::default(),
                counters: RdmaCounters::default(),
                epoch: 0,
                pool: Pool::new(4 << 20).expect("memory"),
                now,
                network,
                at_ns: 0,
                ours,
                theirs,
                qp,
            }
        }

        fn with<T>(&mut self, act: impl FnOnce(&mut Provider, Instant, &mut Desk<'_>) -> T) -> T {
            let Self { provider, supply, counters, epoch, now, .. } = self;
            let mut desk = Desk { path: 1, peer: NodeId::from_bytes([2; 32]), supply, counters, epoch };
            act(provider, *now, &mut desk)
        }

        fn ask(&mut self, read: u32) -> Result<(), ProtocolError> {
            let (blob, what) = (BlobId::from_bytes([1; 32]), What::Blob);
            let ask = AskMessage { slot: 0, read, blob, what, offset_bytes: 0, len: 4096 };
            self.with(|provider, now, desk| provider.ask(now, &ask, desk))
        }

        fn end(&mut self, read: u32) {
            self.with(|provider, now, desk| provider.end(now, 0, read, desk));
        }

        /// The supply has what was asked.
        fn load(&mut self) {
            let id = self.supply.0.last().expect("it was asked").id;
            let bytes = LoadedBytes::Buffer(self.pool.take().expect("a buffer"));
            let result = Ok(Loaded { bytes, len: 4096, lease: Box::new(()) });
            self.provider.answer(Answer { id, result }, &mut self.counters);
        }

        fn transmit(&mut self) {
            let Self { provider, supply, counters, epoch, now, ours, qp, .. } = self;
            let mut desk = Desk { path: 1, peer: NodeId::from_bytes([2; 32]), supply, counters, epoch };
            provider.transmit(*now, *qp, ours, &mut desk);
        }

        /// Both devices do what they were told.
        fn pass(&mut self) {
            self.at_ns += 1_000_000;
            self.network.advance(self.at_ns);
        }

        /// The reads that were granted since.
        fn grants(&mut self) -> Vec<u32> {
            let mut reads = Vec::new();
            self.pass();
            self.theirs.poll(&mut |event| {
                if let Event::Received { bytes, .. } = event
                    && let Ok(Message::Grant(grant)) = Message::decode(bytes)
                {
                    reads.push(grant.read);
                }
            });
            reads
        }

        /// The device says what it has taken back.
        fn take_back(&mut self) {
            self.pass();
            let mut tags = Vec::new();
            self.ours.poll(&mut |event| {
                if let Event::Revoked { tag, .. } = event {
                    tags.push(tag);
                }
            });
            for tag in tags {
                self.with(|provider, now, desk| provider.revoked(now, tag, desk));
            }
        }

        fn lent(&mut self, read: u32) {
            self.ask(read).expect("there is room");
            self.load();
            self.transmit();
            assert_eq!(self.grants(), [read]);
        }
    }

    #[test]
    fn an_end_takes_back_an_ask_that_waits_for_its_slot() {
        let mut bench = Bench::new(Lending::Windows, Faults::default());
        bench.lent(1);
        // The reader is done, asks for the next and gives it up before the slot is free; and asks for one more.
        bench.end(1);
        bench.ask(2).expect("it waits");
        bench.end(2);
        bench.ask(3).expect("nothing waits any more");
        bench.transmit();
        bench.take_back();
        assert_eq!(bench.supply.0.iter().map(|ask| ask.id.read).collect::<Vec<_>>(), [3]);
        bench.load();
        bench.transmit();
        assert_eq!(bench.grants(), [3]);
        bench.end(3);
        bench.ask(4).expect("it waits");
        bench.end(4);
        bench.transmit();
        bench.take_back();
        assert!(bench.supply.0.is_empty(), "nobody wants anything: {:?}", bench.supply.0);
        assert_eq!(bench.pool.counters().in_use, 0);
    }

    #[test]
    fn what_the_device_does_not_take_back_in_time_ends_the_path_and_is_kept() {
        // Nothing that fails is reported: a device that takes work and says no more of it.
        let mut bench = Bench::new(Lending::Windows, Faults { lose_revoked: 1.0, ..Faults::default() });
        bench.lent(1);
        bench.now += OPTIONS.lease;
        assert_eq!(bench.provider.next_timeout(), Some(bench.now));
        assert_eq!(bench.provider.handle_timeout(bench.now, &mut bench.counters), Ok(()));
        bench.transmit();
        bench.take_back();
        let end = bench.now + OPTIONS.stall_timeout;
        assert_eq!(bench.provider.next_timeout(), Some(end));
        let just_before = end - Duration::from_nanos(1);
        assert_eq!(bench.provider.handle_timeout(just_before, &mut bench.counters), Ok(()));
        bench.now = end;
        assert!(bench.provider.handle_timeout(end, &mut bench.counters).is_err());
        assert_eq!((bench.counters.leases_expired, bench.counters.revocations_late), (1, 1));
        // The path is closed; until the queue pair is gone, the memory stays lent.
        bench.with(|provider, now, desk| provider.close(now, desk));
        assert_eq!(bench.pool.counters().in_use, 1);
        bench.with(|provider, now, desk| provider.gone(now, desk));
        assert_eq!(bench.pool.counters().in_use, 0);
    }

    #[test]
    fn a_queue_pair_without_room_to_take_something_back_is_late_too() {
        let mut bench = Bench::new(Lending::Windows, Faults::default());
        bench.lent(1);
        while bench.ours.send(bench.qp, &[0]) {}
        bench.end(1);
        bench.transmit();
        bench.now += OPTIONS.stall_timeout;
        assert!(bench.provider.handle_timeout(bench.now, &mut bench.counters).is_err());
        assert_eq!(bench.counters.revocations_late, 1);
    }
}
