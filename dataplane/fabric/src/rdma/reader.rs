//! The reading side of a path: what was asked for, what is lent to us, which READs the device has.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::RdmaCounters;
use super::limits::{LEASE_MARGIN_PART, LEASE_MAX, LEASES_PER_READ, READS_PER_PATH};
use super::message::{AskMessage, Grant, Message};
use super::verbs::{QueuePair, Span, Verbs, WorkError};
use crate::pool::Buffer;
use crate::{Completion, PathId, ProtocolError, Read, ReadError, Refusal, What};

/// Where a read is.
enum State {
    /// Asked for, or about to be.
    Asked,
    /// Lent to us until then; the READ is to be posted.
    Granted { span: Span, until: Instant },
    /// The device has the buffer.
    Reading { len: u32, until: Instant },
}

struct Reading {
    tag: u64,
    blob: velo_object::BlobId,
    what: What,
    offset_bytes: u64,
    len: u32,
    buffer: Option<Buffer>,
    state: State,
    /// When it was asked for: no lease began before.
    asked: Instant,
    leases: u32,
    cancelled: bool,
}

#[derive(Default)]
struct Slot {
    reading: Option<Reading>,
    /// The number of the last read.
    number: u32,
    /// The number of the read whose END is to be sent.
    ended: u32,
}

/// Where what ends is reported.
pub(super) struct Desk<'a> {
    pub(super) path: PathId,
    pub(super) completions: &'a mut Vec<Completion>,
    pub(super) counters: &'a mut RdmaCounters,
}

impl Desk<'_> {
    fn end(&mut self, tag: u64, mut buffer: Buffer, result: Result<u32, ReadError>) {
        let counters = &mut self.counters.fabric;
        if let Ok(len) = result {
            buffer.set_len(len as usize);
            counters.reads_done += 1;
            counters.payload_bytes_in += u64::from(len);
        } else {
            counters.reads_failed += 1;
        }
        self.completions.push(Completion::Read { path: self.path, tag, buffer, result });
    }
}

/// The reads of one path.
pub(super) struct Reader {
    slots: [Slot; READS_PER_PATH],
    active: u64,
    /// Slots whose END, and after it whose ASK, is to be sent, and those whose READ is to be posted.
    end: u64,
    ask: u64,
    granted: u64,
    /// Slots whose reads were posted since the last turn, which alone knows what time it is.
    fresh: u64,
    /// When something last came of a read, or the first was posted.
    progress: Instant,
}

pub(super) fn each(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(slot)
    })
}

impl Reader {
    pub(super) fn new(now: Instant) -> Self {
        let slots = std::array::from_fn(|_| Slot::default());
        Self { slots, active: 0, end: 0, ask: 0, granted: 0, fresh: 0, progress: now }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.active == 0
    }

    pub(super) fn has_work(&self) -> bool {
        (self.end | self.ask | self.granted) != 0
    }

    /// A turn begins.
    pub(super) fn begin_turn(&mut self, now: Instant) {
        if self.fresh != 0 && self.fresh == self.active {
            self.progress = now;
        }
        for slot in each(std::mem::take(&mut self.fresh)) {
            if let Some(reading) = &mut self.slots[slot].reading {
                reading.asked = now;
            }
        }
    }

    /// Takes a read in, or gives it back.
    pub(super) fn post(&mut self, read: Read) -> Result<(), Read> {
        let slot = (!self.active).trailing_zeros() as usize;
        if slot >= READS_PER_PATH || self.find(read.tag).is_some() {
            return Err(read);
        }
        let now = self.progress;
        let Read { tag, blob, what, offset_bytes, len, buffer } = read;
        self.slots[slot].reading = Some(Reading {
            tag,
            blob,
            what,
            offset_bytes,
            len,
            buffer: Some(buffer),
            state: State::Asked,
            asked: now,
            leases: 0,
            cancelled: false,
        });
        self.active |= 1 << slot;
        self.fresh |= 1 << slot;
        self.ask_for(now, slot);
        Ok(())
    }

    /// Asks for what a slot holds under a new number.
    fn ask_for(&mut self, now: Instant, slot: usize) {
        let Slot { reading, number, .. } = &mut self.slots[slot];
        *number = number.wrapping_add(1);
        if let Some(reading) = reading {
            (reading.state, reading.asked) = (State::Asked, now);
        }
        self.ask |= 1 << slot;
    }

    fn find(&self, tag: u64) -> Option<usize> {
        each(self.active)
            .find(|slot| self.slots[*slot].reading.as_ref().is_some_and(|reading| reading.tag == tag))
    }

    /// Ends a read because nobody wants it any more: at once, unless the device has its buffer.
    pub(super) fn cancel(&mut self, tag: u64, desk: &mut Desk<'_>) {
        let Some(slot) = self.find(tag) else { return };
        let Some(reading) = &mut self.slots[slot].reading else { return };
        reading.cancelled = true;
        if !matches!(reading.state, State::Reading { .. }) {
            self.finish(slot, Err(ReadError::Cancelled), desk);
        }
    }

    /// Ends all reads of which the device has no buffer; those of which it has one end when it gives it back.
    pub(super) fn fail(&mut self, error: ReadError, desk: &mut Desk<'_>) {
        for slot in each(self.active) {
            let reading = self.slots[slot].reading.as_ref();
            if reading.is_some_and(|reading| !matches!(reading.state, State::Reading { .. })) {
                self.finish(slot, Err(error), desk);
            }
        }
        (self.end, self.ask, self.granted) = (0, 0, 0);
    }

    fn finish(&mut self, slot: usize, result: Result<u32, ReadError>, desk: &mut Desk<'_>) {
        let bit = 1u64 << slot;
        let Slot { reading, number, ended } = &mut self.slots[slot];
        // One whose buffer the device has ends when it gives it back.
        let Some(Reading { tag, buffer: Some(buffer), .. }) =
            reading.take_if(|reading| reading.buffer.is_some())
        else {
            return;
        };
        // Whoever was not asked need not be told; whoever refused knows.
        if self.ask & bit == 0 && !matches!(result, Err(ReadError::NotHere | ReadError::Refused)) {
            *ended = *number;
            self.end |= bit;
        }
        for mask in [&mut self.active, &mut self.ask, &mut self.granted, &mut self.fresh] {
            *mask &= !bit;
        }
        desk.end(tag, buffer, result);
    }

    /// The reading of a slot, if it has this number and has been asked for.
    fn asked(&mut self, slot: u16, read: u32) -> Option<&mut Reading> {
        let index = usize::from(slot);
        if self.slots[index].number != read || self.ask >> index & 1 == 1 {
            return None;
        }
        self.slots[index].reading.as_mut()
    }

    /// The provider lends us what was asked for.
    pub(super) fn granted(
        &mut self,
        now: Instant,
        grant: &Grant,
        desk: &mut Desk<'_>,
    ) -> Result<(), ProtocolError> {
        let slot = usize::from(grant.slot);
        // Whoever cancelled it has given it back already.
        let Some(reading) = self.asked(grant.slot, grant.read) else { return Ok(()) };
        if !matches!(reading.state, State::Asked) {
            return Err(ProtocolError::Unasked { tag: grant.read.into() });
        }
        if grant.span.len > reading.len {
            return Err(ProtocolError::TooLong {
                tag: grant.read.into(),
                len: grant.span.len,
                asked: reading.len,
            });
        }
        let lasts = Duration::from_millis(grant.lease_ms.into()).min(LEASE_MAX);
        let held = Duration::from_micros(grant.held_us.into());
        // By our clock it began no sooner than this.
        let until = reading.asked + held + (lasts - lasts / LEASE_MARGIN_PART);
        reading.state = State::Granted { span: grant.span, until };
        if now >= until {
            self.ran_out(now, slot, desk);
        } else {
            self.granted |= 1 << slot;
        }
        Ok(())
    }

    /// The lease of a slot's read has ended before its bytes were here.
    fn ran_out(&mut self, now: Instant, slot: usize, desk: &mut Desk<'_>) {
        desk.counters.leases_ran_out += 1;
        self.granted &= !(1 << slot);
        let Slot { reading: Some(reading), number, ended } = &mut self.slots[slot] else { return };
        reading.leases += 1;
        if reading.leases >= LEASES_PER_READ {
            return self.finish(slot, Err(ReadError::Stalled), desk);
        }
        *ended = *number;
        self.end |= 1 << slot;
        self.ask_for(now, slot);
    }

    /// The provider lends nothing.
    pub(super) fn refused(
        &mut self,
        now: Instant,
        slot: u16,
        read: u32,
        why: Refusal,
        desk: &mut Desk<'_>,
    ) -> Result<(), ProtocolError> {
        let Some(reading) = self.asked(slot, read) else { return Ok(()) };
        // What it has lent it cannot refuse: the device may have the buffer.
        if !matches!(reading.state, State::Asked) {
            return Err(ProtocolError::Unasked { tag: read.into() });
        }
        self.progress = now;
        let error = match why {
            Refusal::NotHere => ReadError::NotHere,
            Refusal::Refused => ReadError::Refused,
        };
        self.finish(slot.into(), Err(error), desk);
        Ok(())
    }

    /// The device has given a buffer back. `closing` is how reads end that brought nothing, where the path is being closed.
    pub(super) fn read(
        &mut self,
        now: Instant,
        tag: u32,
        buffer: Buffer,
        result: Result<(), WorkError>,
        closing: Option<ReadError>,
        desk: &mut Desk<'_>,
    ) {
        let slot = tag as usize;
        let Some(reading) = self.slots.get_mut(slot).and_then(|slot| slot.reading.as_mut()) else { return };
        let State::Reading { len, until } = reading.state else { return };
        reading.buffer = Some(buffer);
        let cancelled = reading.cancelled.then_some(ReadError::Cancelled);
        match (result, cancelled.or(closing)) {
            (_, Some(error)) => self.finish(slot, Err(error), desk),
            // The path fails with it.
            (Err(_), None) => self.finish(slot, Err(ReadError::PathClosed), desk),
            // What came may have changed under the READ.
            (Ok(()), None) if now >= until => self.ran_out(now, slot, desk),
            (Ok(()), None) => {
                self.progress = now;
                self.finish(slot, Ok(len), desk);
            }
        }
    }

    /// Hands as much as there is room for to the device.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        qp: QueuePair,
        verbs: &mut dyn Verbs,
        desk: &mut Desk<'_>,
    ) {
        for slot in each(self.end) {
            let end = Message::End { slot: slot as u16, read: self.slots[slot].ended };
            if !verbs.send(qp, end.encode().as_ref()) {
                return;
            }
            self.end &= !(1 << slot);
        }
        for slot in each(self.granted) {
            let Some(reading) = &mut self.slots[slot].reading else { continue };
            let State::Granted { span, until } = reading.state else { continue };
            if now >= until {
                self.ran_out(now, slot, desk);
                continue;
            }
            let Some(buffer) = reading.buffer.take() else { continue };
            if let Err(buffer) = verbs.read(qp, slot as u32, span, buffer) {
                reading.buffer = Some(buffer);
                return;
            }
            reading.state = State::Reading { len: span.len, until };
            self.granted &= !(1 << slot);
        }
        // After the ENDs: the slot's last read has ended.
        for slot in each(self.ask & !self.end) {
            let Slot { reading: Some(reading), number, .. } = &self.slots[slot] else { continue };
            let ask = Message::Ask(AskMessage {
                slot: slot as u16,
                read: *number,
                blob: reading.blob,
                what: reading.what,
                offset_bytes: reading.offset_bytes,
                len: reading.len,
            });
            if !verbs.send(qp, ask.encode().as_ref()) {
                return;
            }
            self.ask &= !(1 << slot);
        }
    }

    /// When the path has stalled unless something comes of a read.
    pub(super) fn stalls_at(&self, stall_timeout: Duration) -> Option<Instant> {
        (self.active != 0).then(|| self.progress + stall_timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::BorrowedFd;

    use velo_object::BlobId;

    use super::super::verbs::{Event, Lending};
    use super::*;
    use crate::pool::Pool;

    /// A device that takes everything and does nothing.
    #[derive(Default)]
    struct Idle {
        messages: Vec<Message>,
        reads: Vec<Buffer>,
    }

    impl Verbs for Idle {
        fn name(&self) -> &str {
            "idle"
        }
        fn lending(&self) -> Lending {
            Lending::Windows
        }
        fn rate_bytes_per_s(&self) -> Option<u64> {
            None
        }
        fn takes(&self, _: &Buffer) -> bool {
            true
        }
        fn send(&mut self, _: QueuePair, message: &[u8]) -> bool {
            self.messages.push(Message::decode(message).expect("one of ours"));
            true
        }
        fn read(&mut self, _: QueuePair, _: u32, _: Span, to: Buffer) -> Result<(), Buffer> {
            self.reads.push(to);
            Ok(())
        }
        fn lend(&mut self, _: QueuePair, _: u32, _: &Buffer, _: u32) -> Option<Span> {
            None
        }
        fn revoke(&mut self, _: QueuePair, _: u32) -> bool {
            false
        }
        fn flush(&mut self) {}
        fn retire(&mut self, _: QueuePair) {}
        fn poll(&mut self, _: &mut dyn FnMut(Event<'_>)) -> usize {
            0
        }
        fn arm(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn descriptor(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    const LEASE_MS: u32 = 1_600;
    /// What of it the reader uses.
    const USED: Duration = Duration::from_millis(1_500);

    /// A read that was posted, asked for and granted at `now`; its READ has been handed to the device, in slot 0 as read 1.
    fn granted(now: Instant, desk: &mut Desk<'_>) -> (Reader, Idle) {
        let pool = Pool::new(1 << 20).expect("memory");
        let (mut reader, mut device) = (Reader::new(now), Idle::default());
        let buffer = pool.take().expect("a buffer");
        let (blob, what) = (BlobId::from_bytes([1; 32]), What::Blob);
        assert!(reader.post(Read { tag: 9, blob, what, offset_bytes: 0, len: 4096, buffer }).is_ok());
        reader.begin_turn(now);
        reader.transmit(now, QueuePair(1), &mut device, desk);
        assert!(matches!(device.messages.pop(), Some(Message::Ask(AskMessage { slot: 0, read: 1, .. }))));
        let span = Span { address: 1 << 20, rkey: 1, len: 4096 };
        let grant = Grant { slot: 0, read: 1, span, lease_ms: LEASE_MS, held_us: 0, epoch: 1 };
        reader.granted(now, &grant, desk).expect("it was asked for");
        reader.transmit(now, QueuePair(1), &mut device, desk);
        (reader, device)
    }

    /// What comes of a read whose bytes are there so long after it was granted.
    fn read_that_takes(taken: Duration) -> (Vec<Completion>, RdmaCounters, Vec<Message>) {
        let (mut completions, mut counters) = (Vec::new(), RdmaCounters::default());
        let mut desk = Desk { path: 1, completions: &mut completions, counters: &mut counters };
        let start = Instant::now();
        let (mut reader, mut device) = granted(start, &mut desk);
        let buffer = device.reads.pop().expect("a READ was posted");
        reader.read(start + taken, 0, buffer, Ok(()), None, &mut desk);
        reader.transmit(start + taken, QueuePair(1), &mut device, &mut desk);
        (completions, counters, device.messages)
    }

    #[test]
    fn who_lends_and_then_refuses_breaks_the_protocol_and_loses_no_buffer() {
        let (mut completions, mut counters) = (Vec::new(), RdmaCounters::default());
        let mut desk = Desk { path: 1, completions: &mut completions, counters: &mut counters };
        let start = Instant::now();
        let (mut reader, mut device) = granted(start, &mut desk);
        let refused = reader.refused(start, 0, 1, Refusal::Refused, &mut desk);
        assert!(matches!(refused, Err(ProtocolError::Unasked { .. })), "{refused:?}");
        let buffer = device.reads.pop().expect("a READ was posted");
        reader.read(start, 0, buffer, Ok(()), Some(ReadError::PathClosed), &mut desk);
        assert!(matches!(completions[..], [Completion::Read { tag: 9, result: Err(_), .. }]));
        assert!(reader.is_idle());
    }

    #[test]
    fn bytes_that_came_within_the_lease_are_delivered() {
        let (completions, counters, messages) = read_that_takes(USED - Duration::from_millis(1));
        assert!(matches!(completions[..], [Completion::Read { tag: 9, result: Ok(4096), .. }]));
        assert_eq!(counters.leases_ran_out, 0);
        assert!(matches!(messages[..], [Message::End { .. }]), "{messages:?}");
    }

    #[test]
    fn bytes_that_came_after_the_lease_are_thrown_away_and_asked_for_again() {
        let (completions, counters, messages) = read_that_takes(USED);
        assert!(completions.is_empty(), "{completions:?}");
        assert_eq!(counters.leases_ran_out, 1);
        assert!(matches!(messages[..], [Message::End { .. }, Message::Ask(_)]), "{messages:?}");
    }
}
