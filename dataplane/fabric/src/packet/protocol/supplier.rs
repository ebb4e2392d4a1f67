//! The supplying side of a path: what the peer reads from us, and which segments it has granted. It knows nothing of what has arrived.

use std::collections::VecDeque;

use velo_object::NodeId;

use super::frame::{Credit, Data, ReadRequest};
use super::reader::each;
use super::{Answer, Ask, EndpointCounters, Event, Loaded, LoadedBytes, ServeId};
use crate::packet::limits::{EVENTS, GRANTS_PER_PATH, GRANTS_PER_SLOT, READS_PER_PATH, SERVE_IDLE_NS};
use crate::{PathId, Refusal};

/// No grant.
const NONE: u16 = u16::MAX;

/// A grant that waits for its turn.
#[derive(Clone, Copy)]
struct Grant {
    mask: u64,
    arrived_ns: u64,
    number: u32,
    stamp: u32,
    first: u16,
    /// The next of its slot, or the next free one.
    next: u16,
}

enum State {
    /// No read.
    Vacant,
    /// The supply has been asked.
    Asked,
    /// It has given the bytes.
    Loaded(Loaded),
    /// It has none.
    Refused(Refusal),
}

struct Slot {
    state: State,
    read: u32,
    len: u32,
    segment_bytes: u32,
    first: u16,
    last: u16,
    count: u16,
    sent_bytes: u64,
    /// When the peer last said anything about it.
    heard_ns: u64,
}

/// What a supplier reports to.
pub(super) struct Counter<'a> {
    pub(super) path: PathId,
    pub(super) peer: NodeId,
    pub(super) events: &'a mut VecDeque<Event>,
    pub(super) counters: &'a mut EndpointCounters,
}

/// What the peer reads on one path.
pub(super) struct Supplier {
    slots: Box<[Slot]>,
    grants: Box<[Grant]>,
    free: u16,
    /// Slots that hold a read.
    held: u64,
    /// Slots with bytes and grants.
    ready: u64,
    /// The slot whose first grant is being sent.
    current: Option<u8>,
    /// Slots whose REFUSE is to be sent.
    refuse: u64,
    /// Slots whose READY is to be sent.
    tell: u64,
}

/// A segment that is to be sent.
pub(super) struct Segment<'a> {
    pub(super) data: Data,
    pub(super) payload: &'a [u8],
}

impl Supplier {
    pub(super) fn new() -> Self {
        let vacant = || Slot {
            state: State::Vacant,
            read: 0,
            len: 0,
            segment_bytes: 0,
            first: NONE,
            last: NONE,
            count: 0,
            sent_bytes: 0,
            heard_ns: 0,
        };
        let grant = |index: usize| Grant {
            mask: 0,
            arrived_ns: 0,
            number: 0,
            stamp: 0,
            first: 0,
            next: if index + 1 == GRANTS_PER_PATH { NONE } else { index as u16 + 1 },
        };
        Self {
            slots: (0..READS_PER_PATH).map(|_| vacant()).collect(),
            grants: (0..GRANTS_PER_PATH).map(grant).collect(),
            free: 0,
            held: 0,
            ready: 0,
            current: None,
            refuse: 0,
            tell: 0,
        }
    }

    /// Whether the peer reads anything.
    pub(super) fn is_active(&self) -> bool {
        self.held != 0
    }

    pub(super) fn has_data(&self) -> bool {
        self.ready != 0
    }

    pub(super) fn has_messages(&self) -> bool {
        (self.refuse | self.tell) != 0
    }

    /// The peer wants a range. A READ that came before is only a sign of life.
    pub(super) fn read(&mut self, now: u64, request: &ReadRequest, to: &mut Counter<'_>) {
        let index = usize::from(request.slot);
        let slot = &mut self.slots[index];
        if !matches!(slot.state, State::Vacant) {
            if slot.read == request.read {
                slot.heard_ns = now;
                match slot.state {
                    State::Refused(_) => self.refuse |= 1 << index,
                    // The reader does not know it.
                    State::Loaded(_) if slot.first == NONE => self.tell |= 1 << index,
                    _ => {}
                }
                return;
            }
        } else if slot.read == request.read {
            // It has ended: this one was late.
            return;
        }
        if (request.read.wrapping_sub(slot.read) as i32) < 0 && slot.read != 0 || to.events.len() >= EVENTS {
            return;
        }
        self.release(index, to);
        let slot = &mut self.slots[index];
        slot.state = State::Asked;
        slot.read = request.read;
        slot.len = request.len;
        slot.segment_bytes = request.segment_bytes.into();
        slot.sent_bytes = 0;
        slot.heard_ns = now;
        self.held |= 1 << index;
        to.events.push_back(Event::Ask(Ask {
            id: ServeId { path: to.path, slot: request.slot, read: request.read },
            peer: to.peer,
            blob: request.blob,
            what: request.what,
            offset_bytes: request.offset_bytes,
            len: request.len,
        }));
    }

    /// The peer grants segments.
    pub(super) fn credit(&mut self, now: u64, credit: &Credit, to: &mut Counter<'_>) {
        let index = usize::from(credit.slot);
        let slot = &mut self.slots[index];
        if slot.read != credit.read || !matches!(slot.state, State::Asked | State::Loaded(_)) {
            if slot.read == credit.read && matches!(slot.state, State::Refused(_)) {
                self.refuse |= 1 << index;
            }
            return;
        }
        slot.heard_ns = now;
        self.tell &= !(1 << index);
        self.withdraw(index, credit);
        let slot = &mut self.slots[index];
        if self.free == NONE || usize::from(slot.count) >= GRANTS_PER_SLOT {
            to.counters.grants_dropped += 1;
            return;
        }
        let place = self.free;
        self.free = self.grants[usize::from(place)].next;
        self.grants[usize::from(place)] = Grant {
            mask: credit.mask,
            arrived_ns: now,
            number: credit.number,
            stamp: credit.stamp,
            first: credit.first,
            next: NONE,
        };
        self.insert(index, place);
        if matches!(self.slots[index].state, State::Loaded(_)) {
            self.ready |= 1 << index;
        }
    }

    /// Puts a grant in the place that its number gives it: mostly the last, as credits seldom overtake each other.
    fn insert(&mut self, index: usize, place: u16) {
        let number = self.grants[usize::from(place)].number;
        let slot = &mut self.slots[index];
        slot.count += 1;
        let before = |grants: &[Grant], other: u16| {
            (grants[usize::from(other)].number.wrapping_sub(number) as i32) < 0
        };
        if slot.last == NONE {
            (slot.first, slot.last) = (place, place);
        } else if before(&self.grants, slot.last) {
            self.grants[usize::from(slot.last)].next = place;
            slot.last = place;
        } else if !before(&self.grants, slot.first) {
            self.grants[usize::from(place)].next = slot.first;
            slot.first = place;
        } else {
            let mut at = slot.first;
            while before(&self.grants, self.grants[usize::from(at)].next) {
                at = self.grants[usize::from(at)].next;
            }
            self.grants[usize::from(place)].next = self.grants[usize::from(at)].next;
            self.grants[usize::from(at)].next = place;
        }
    }

    /// What is granted again need not be sent for the earlier grant, if that still waits.
    fn withdraw(&mut self, index: usize, credit: &Credit) {
        let (mut at, mut previous) = (self.slots[index].first, NONE);
        while at != NONE {
            let grant = &mut self.grants[usize::from(at)];
            let distance = i32::from(credit.first) - i32::from(grant.first);
            grant.mask &= !match distance {
                0..64 => credit.mask << distance,
                -63..0 => credit.mask >> -distance,
                _ => 0,
            };
            let next = grant.next;
            if grant.mask == 0 {
                self.drop_grant(index, at, previous);
            } else {
                previous = at;
            }
            at = next;
        }
    }

    /// Frees a grant that stands behind `previous` in its slot.
    fn drop_grant(&mut self, index: usize, place: u16, previous: u16) {
        let slot = &mut self.slots[index];
        let next = std::mem::replace(&mut self.grants[usize::from(place)].next, self.free);
        self.free = place;
        match previous {
            NONE => slot.first = next,
            previous => self.grants[usize::from(previous)].next = next,
        }
        if slot.last == place {
            slot.last = previous;
        }
        slot.count -= 1;
        if slot.first == NONE {
            self.ready &= !(1 << index);
        }
        if previous == NONE && self.current == Some(index as u8) {
            self.current = None;
        }
    }

    /// The peer needs a read no more, nor any that it posted before in the same slot.
    pub(super) fn end(&mut self, slot: u16, read: u32, to: &mut Counter<'_>) {
        let index = usize::from(slot);
        if (self.slots[index].read.wrapping_sub(read) as i32) <= 0 {
            self.release(index, to);
            // Should its READ come late, it has ended.
            self.slots[index].read = read;
        }
    }

    /// The supply has answered. Too late, it is dropped.
    pub(super) fn answer(&mut self, answer: Answer, to: &mut Counter<'_>) {
        let index = usize::from(answer.id.slot);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.read != answer.id.read || !matches!(slot.state, State::Asked) {
            return;
        }
        match answer.result {
            Ok(loaded)
                if (1..=slot.len).contains(&loaded.len) && loaded.bytes.len() >= loaded.len as usize =>
            {
                slot.len = loaded.len;
                slot.state = State::Loaded(loaded);
                to.counters.fabric.reads_served += 1;
                // Data say that they are there, too.
                let mask = if slot.first == NONE { &mut self.tell } else { &mut self.ready };
                *mask |= 1 << index;
            }
            // It gave nothing, or more than was asked: either way nothing that can be sent.
            other => {
                slot.state = State::Refused(other.err().unwrap_or(Refusal::NotHere));
                to.counters.fabric.reads_refused += 1;
                self.drop_grants(index);
                self.refuse |= 1 << index;
            }
        }
    }

    fn drop_grants(&mut self, index: usize) {
        while self.slots[index].first != NONE {
            self.drop_grant(index, self.slots[index].first, NONE);
        }
    }

    fn release(&mut self, index: usize, to: &mut Counter<'_>) {
        self.drop_grants(index);
        let slot = &mut self.slots[index];
        let state = std::mem::replace(&mut slot.state, State::Vacant);
        self.held &= !(1 << index);
        self.refuse &= !(1 << index);
        self.tell &= !(1 << index);
        if !matches!(state, State::Vacant) {
            let id = ServeId { path: to.path, slot: index as u16, read: slot.read };
            to.events.push_back(Event::Release { id, peer: to.peer, sent_bytes: slot.sent_bytes });
        }
    }

    /// Ends all reads of the peer.
    pub(super) fn release_all(&mut self, to: &mut Counter<'_>) {
        for index in each(self.held) {
            self.release(index, to);
        }
    }

    /// Ends what the peer has forgotten.
    pub(super) fn release_idle(&mut self, now: u64, to: &mut Counter<'_>) {
        for index in each(self.held) {
            if now >= self.slots[index].heard_ns.saturating_add(SERVE_IDLE_NS) {
                self.release(index, to);
                // If it does come again, it was not forgotten but slow.
                self.slots[index].read = self.slots[index].read.wrapping_sub(1);
            }
        }
    }

    /// The next slot, read and reason of which a REFUSE is to be sent.
    pub(super) fn next_refuse(&mut self) -> Option<(u16, u32, Refusal)> {
        let index = each(self.refuse).next()?;
        self.refuse &= !(1 << index);
        let slot = &self.slots[index];
        match slot.state {
            State::Refused(why) => Some((index as u16, slot.read, why)),
            _ => None,
        }
    }

    /// The next slot and read of which a READY is to be sent.
    pub(super) fn next_ready(&mut self) -> Option<(u16, u32)> {
        let index = each(self.tell).next()?;
        self.tell &= !(1 << index);
        Some((index as u16, self.slots[index].read))
    }

    /// The next segment to be sent, by the order of the grants.
    pub(super) fn next_segment(&mut self, now: u64, to: &mut EndpointCounters) -> Option<Segment<'_>> {
        loop {
            let index = match self.current {
                Some(index) => usize::from(index),
                None => {
                    let number = |index: &usize| {
                        let first = self.slots[*index].first;
                        self.grants.get(usize::from(first)).map_or(0, |grant| grant.number)
                    };
                    let any = number(&each(self.ready).next()?);
                    let index =
                        each(self.ready).min_by_key(|index| number(index).wrapping_sub(any) as i32)?;
                    self.current = Some(index as u8);
                    index
                }
            };
            let (first, segment_bytes, len) = {
                let slot = &self.slots[index];
                (slot.first, slot.segment_bytes, slot.len)
            };
            let grant = self.grants.get_mut(usize::from(first))?;
            let segment = u32::from(grant.first) + grant.mask.trailing_zeros();
            grant.mask &= grant.mask - 1;
            let Grant { mask, arrived_ns, number, stamp, .. } = *grant;
            if mask == 0 {
                self.drop_grant(index, first, NONE);
            }
            let from = segment * segment_bytes;
            // What was granted may be beyond what there is.
            if from >= len {
                continue;
            }
            let to_byte = (from + segment_bytes).min(len);
            let slot = &mut self.slots[index];
            let bytes = u64::from(to_byte - from);
            slot.sent_bytes += bytes;
            to.fabric.payload_bytes_out += bytes;
            let held = u32::try_from(now.saturating_sub(arrived_ns) / 1_000).unwrap_or(u32::MAX);
            let State::Loaded(loaded) = &slot.state else { return None };
            return Some(Segment {
                data: Data {
                    slot: index as u16,
                    segment: segment as u16,
                    read: slot.read,
                    len,
                    credit: number,
                    echo: stamp,
                    held,
                },
                payload: loaded.bytes.as_ref().get(from as usize..to_byte as usize)?,
            });
        }
    }
}

impl LoadedBytes {
    fn len(&self) -> usize {
        self.as_ref().len()
    }
}

impl AsRef<[u8]> for LoadedBytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Buffer(buffer) => buffer.as_ref(),
            Self::Shared(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use velo_object::BlobId;

    use super::*;
    use crate::What;

    const PEER: NodeId = NodeId::from_bytes([0; 32]);

    fn read(read: u32) -> ReadRequest {
        let (blob, what) = (BlobId::from_bytes([0; 32]), What::Blob);
        ReadRequest { slot: 3, read, blob, what, offset_bytes: 0, len: 10, segment_bytes: 1_024 }
    }

    #[test]
    fn bytes_that_nothing_is_granted_of_are_announced() {
        let (mut events, mut counters) = (VecDeque::new(), EndpointCounters::default());
        let mut to = Counter { path: 1, peer: PEER, events: &mut events, counters: &mut counters };
        let mut supplier = Supplier::new();
        let answer = |read| {
            let bytes = LoadedBytes::Shared(vec![7; 10].into());
            let result = Ok(Loaded { bytes, len: 10, lease: Box::new(()) });
            Answer { id: ServeId { path: 1, slot: 3, read }, result }
        };
        let credit = |read, number| Credit { slot: 3, read, number, stamp: 0, first: 0, mask: 1 };
        supplier.read(0, &read(1), &mut to);
        assert_eq!(supplier.next_ready(), None, "they are not there yet");
        supplier.answer(answer(1), &mut to);
        assert!(supplier.has_messages() && !supplier.has_data());
        assert_eq!(supplier.next_ready(), Some((3, 1)));
        assert_eq!(supplier.next_ready(), None);
        supplier.read(1, &read(1), &mut to);
        assert_eq!(supplier.next_ready(), Some((3, 1)), "the first was lost");
        supplier.read(2, &read(1), &mut to);
        supplier.credit(2, &credit(1, 1), &mut to);
        assert!(!supplier.has_messages() && supplier.has_data(), "data say it, too");
        assert!(supplier.next_segment(2, to.counters).is_some());
        supplier.read(3, &read(1), &mut to);
        supplier.end(3, 1, &mut to);
        assert!(!supplier.has_messages(), "what has ended");
        supplier.read(4, &read(2), &mut to);
        supplier.credit(4, &credit(2, 2), &mut to);
        supplier.answer(answer(2), &mut to);
        assert!(!supplier.has_messages() && supplier.has_data());
    }

    #[test]
    fn an_end_covers_the_reads_before_it() {
        let (mut events, mut counters) = (VecDeque::new(), EndpointCounters::default());
        let mut to = Counter { path: 1, peer: PEER, events: &mut events, counters: &mut counters };
        let mut supplier = Supplier::new();
        supplier.read(0, &read(5), &mut to);
        supplier.end(3, 4, &mut to);
        assert!(supplier.is_active(), "that was another");
        supplier.end(3, 7, &mut to);
        assert!(!supplier.is_active(), "its own end, and the READs of two more, were lost");
        supplier.read(0, &read(7), &mut to);
        assert!(!supplier.is_active(), "it has ended before it came");
        supplier.read(0, &read(8), &mut to);
        assert!(supplier.is_active());
        supplier.end(3, 8, &mut to);
        let released = events.iter().filter(|event| matches!(event, Event::Release { .. })).count();
        assert_eq!((supplier.is_active(), released), (false, 2));
    }
}
