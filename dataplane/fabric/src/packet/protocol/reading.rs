//! One read of ours: which of its segments have arrived, which are granted and in what order, which are still to be granted.

use velo_object::BlobId;

use super::segment_set::SegmentSet;
use crate::packet::limits::SEGMENTS_PER_READ;
use crate::pool::Buffer;
use crate::{Read, What};

/// No segment.
const NONE: u16 = u16::MAX;

const _: () = assert!(SEGMENTS_PER_READ < NONE as usize);

/// A granted segment, in the list of them by the order of their grants, which is the order in which the supplier sends.
#[derive(Clone, Copy)]
struct Granted {
    previous: u16,
    next: u16,
    /// The number of the grant.
    credit: u32,
    /// The packet (low half of its number) that showed that this segment was sent before it; 0 where none has.
    passed_at: u32,
    /// When it was granted, in microseconds.
    at_us: u32,
}

/// What an arrived segment was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Was {
    /// Waited for.
    Granted,
    /// Waited for, though by a later grant: the earlier one had been taken for lost too soon.
    GrantedAgain,
    /// Taken for lost and not granted again yet.
    Lost,
}

/// Every segment is in exactly one of three states: arrived, wanted (to be granted), or granted (in the list).
pub(super) struct Reading {
    pub(super) tag: u64,
    pub(super) blob: BlobId,
    pub(super) what: What,
    pub(super) offset_bytes: u64,
    /// How many bytes come: what was asked for, until the supplier says that it is less.
    pub(super) len: u32,
    /// `None` between reads.
    buffer: Option<Buffer>,
    pub(super) segment_bytes: u32,
    /// How many segments there are.
    count: u32,
    arrived: SegmentSet,
    arrived_count: u32,
    wanted: SegmentSet,
    wanted_count: u32,
    /// No wanted segment is below.
    wanted_from: u32,
    /// No segment from here on was ever granted.
    fresh_from: u32,
    first: u16,
    last: u16,
    /// The last one in the list that has been passed, as have all before it.
    last_passed: u16,
    granted_bytes: u64,
    granted: Box<[Granted; SEGMENTS_PER_READ]>,
    /// Whether the supplier has said that it has the bytes, or sent any.
    pub(super) confirmed: bool,
    /// Whether it was granted anything since it was last asked for.
    pub(super) started: bool,
    /// When it last was granted something or something arrived.
    pub(super) active_ns: u64,
    /// How often the tail timer has fired since something last arrived.
    pub(super) timeouts: u32,
}

impl Reading {
    /// One that can be [`begin`](Self::begin)ned.
    pub(super) fn vacant() -> Box<Self> {
        let none = Granted { previous: NONE, next: NONE, credit: 0, passed_at: 0, at_us: 0 };
        Box::new(Self {
            tag: 0,
            blob: BlobId::from_bytes([0; 32]),
            what: What::Blob,
            offset_bytes: 0,
            len: 0,
            buffer: None,
            segment_bytes: 0,
            count: 0,
            arrived: SegmentSet::default(),
            arrived_count: 0,
            wanted: SegmentSet::default(),
            wanted_count: 0,
            wanted_from: 0,
            fresh_from: 0,
            first: NONE,
            last: NONE,
            last_passed: NONE,
            granted_bytes: 0,
            granted: Box::new([none; SEGMENTS_PER_READ]),
            confirmed: false,
            started: false,
            active_ns: 0,
            timeouts: 0,
        })
    }

    /// Takes a read in. [`ask`](Self::ask) is to follow.
    pub(super) fn begin(&mut self, read: Read) {
        let Read { tag, blob, what, offset_bytes, len, mut buffer } = read;
        buffer.set_len(len as usize);
        self.buffer = Some(buffer);
        (self.tag, self.blob, self.what, self.offset_bytes, self.len) = (tag, blob, what, offset_bytes, len);
        // What the read before left, from here on nothing refers to.
        (self.segment_bytes, self.count, self.timeouts) = (0, 0, 0);
        (self.arrived, self.wanted) = (SegmentSet::default(), SegmentSet::default());
        (self.arrived_count, self.wanted_count, self.granted_bytes) = (0, 0, 0);
        (self.first, self.last, self.last_passed) = (NONE, NONE, NONE);
        (self.confirmed, self.started) = (false, false);
    }

    /// It is asked for, for the first time or again, in segments of this size. What has arrived stays, as far as it makes whole segments.
    pub(super) fn ask(&mut self, segment_bytes: u32) {
        let mut arrived = SegmentSet::default();
        let count = self.len.div_ceil(segment_bytes);
        for segment in 0..count {
            let from = segment * segment_bytes;
            let to = (from + segment_bytes).min(self.len) - 1;
            // Before it was first asked for there were no segments.
            let before = |byte: u32| byte.checked_div(self.segment_bytes);
            if let (Some(from), Some(to)) = (before(from), before(to))
                && self.arrived.contains_all(from..=to)
            {
                arrived.insert(segment);
            }
        }
        self.segment_bytes = segment_bytes;
        self.count = count;
        self.arrived = arrived;
        self.arrived_count = arrived.len();
        self.wanted = SegmentSet::first(count).without(&arrived);
        self.wanted_count = count - self.arrived_count;
        (self.wanted_from, self.fresh_from) = (0, 0);
        (self.first, self.last, self.last_passed) = (NONE, NONE, NONE);
        self.granted_bytes = 0;
        self.confirmed = false;
        self.started = false;
    }

    /// Ends it.
    pub(super) fn finish(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }

    /// Whether it has been asked for: before, nothing can come.
    pub(super) fn is_asked(&self) -> bool {
        self.segment_bytes != 0
    }

    pub(super) fn is_complete(&self) -> bool {
        self.arrived_count == self.count
    }

    /// Whether something is to be granted.
    pub(super) fn is_wanting(&self) -> bool {
        self.wanted_count > 0
    }

    /// Whether something that was granted before is to be granted again.
    pub(super) fn has_lost(&self) -> bool {
        self.wanted_count > 0 && self.wanted_from < self.fresh_from
    }

    /// Whether something is granted and has not arrived.
    pub(super) fn is_waiting(&self) -> bool {
        self.first != NONE
    }

    /// Whether something granted has been passed by what was granted later.
    pub(super) fn has_passed(&self) -> bool {
        self.last_passed != NONE
    }

    /// Bytes granted that have not arrived.
    pub(super) fn granted_bytes(&self) -> u64 {
        self.granted_bytes
    }

    /// Bytes of payload of one segment.
    fn bytes_of(&self, segment: u32) -> u32 {
        self.segment_bytes.min(self.len - segment * self.segment_bytes)
    }

    /// The size of the next segment to be granted.
    pub(super) fn next_bytes(&self) -> Option<u32> {
        self.wanted.next(self.wanted_from).map(|segment| self.bytes_of(segment))
    }

    /// Grants up to `most` of the first 64 segments from the first wanted one on. Returns that one, the mask and how many bytes.
    pub(super) fn grant(&mut self, credit: u32, at_us: u32, most: u32) -> Option<(u16, u64, u64)> {
        let first = self.wanted.next(self.wanted_from)?;
        let mut left = self.wanted.mask(first);
        let (mut mask, mut bytes, mut last) = (0u64, 0u64, first);
        for _ in 0..most.min(64) {
            if left == 0 {
                break;
            }
            let bit = left.trailing_zeros();
            left &= left - 1;
            mask |= 1 << bit;
            last = first + bit;
            bytes += u64::from(self.bytes_of(last));
            self.append(last as u16, credit, at_us);
        }
        if mask == 0 {
            return None;
        }
        self.wanted.remove_mask(first, mask);
        self.wanted_count -= mask.count_ones();
        self.wanted_from = last + 1;
        self.fresh_from = self.fresh_from.max(last + 1);
        self.granted_bytes += bytes;
        self.started = true;
        Some((first as u16, mask, bytes))
    }

    fn append(&mut self, segment: u16, credit: u32, at_us: u32) {
        let granted = Granted { previous: self.last, next: NONE, credit, passed_at: 0, at_us };
        self.granted[usize::from(segment)] = granted;
        match self.last {
            NONE => self.first = segment,
            last => self.granted[usize::from(last)].next = segment,
        }
        self.last = segment;
    }

    fn unlink(&mut self, segment: u16) {
        let Granted { previous, next, .. } = self.granted[usize::from(segment)];
        match previous {
            NONE => self.first = next,
            previous => self.granted[usize::from(previous)].next = next,
        }
        match next {
            NONE => self.last = previous,
            next => self.granted[usize::from(next)].previous = previous,
        }
        if self.last_passed == segment {
            self.last_passed = previous;
        }
        self.granted_bytes -= u64::from(self.bytes_of(u32::from(segment)));
    }

    /// The supplier says how many bytes come in all. Returns false where that cannot be.
    pub(super) fn learn_len(&mut self, len: u32) -> bool {
        if len == self.len {
            return true;
        }
        // Only the first word counts, and only where nothing says otherwise; before the supplier was asked, none does.
        let count = len.div_ceil(self.segment_bytes.max(1));
        if self.count == 0 || len > self.len || self.arrived.next(0).is_some() {
            return false;
        }
        for segment in count..self.count {
            if self.wanted.contains(segment) {
                self.wanted.remove(segment);
                self.wanted_count -= 1;
            } else {
                self.unlink(segment as u16);
            }
        }
        // The last one has become shorter.
        let last = count - 1;
        if !self.wanted.contains(last) && !self.arrived.contains(last) {
            let before = self.bytes_of(last);
            self.granted_bytes -= u64::from(before - (len - last * self.segment_bytes));
        }
        self.len = len;
        self.count = count;
        self.fresh_from = self.fresh_from.min(count);
        true
    }

    /// Where the payload of a segment goes, and only where it is as long as the segment and has not arrived.
    pub(super) fn place(&mut self, segment: u32, len: usize) -> Place<'_> {
        if segment >= self.count || self.bytes_of(segment) as usize != len {
            return Place::Nowhere;
        }
        if self.arrived.contains(segment) {
            return Place::Filled;
        }
        let from = segment as usize * self.segment_bytes as usize;
        match self.buffer.as_mut().and_then(|buffer| buffer.as_mut().get_mut(from..from + len)) {
            Some(place) => Place::Free(place),
            None => Place::Nowhere,
        }
    }

    /// A segment has arrived, for the first time, by the grant `credit` and in packet `number`.
    pub(super) fn arrive(&mut self, segment: u32, credit: u32, number: u64) -> Was {
        self.arrived.insert(segment);
        self.arrived_count += 1;
        if self.wanted.contains(segment) {
            self.wanted.remove(segment);
            self.wanted_count -= 1;
            return Was::Lost;
        }
        let granted = self.granted[segment as usize];
        let segment = segment as u16;
        if granted.credit != credit {
            self.unlink(segment);
            return Was::GrantedAgain;
        }
        if granted.passed_at == 0 {
            // It was sent after all that stand before it in the list.
            let mut at = match self.last_passed {
                NONE => self.first,
                last => self.granted[usize::from(last)].next,
            };
            while at != segment {
                let passed = &mut self.granted[usize::from(at)];
                passed.passed_at = (number as u32).max(1);
                self.last_passed = at;
                at = passed.next;
            }
        }
        self.unlink(segment);
        Was::Granted
    }

    /// Takes for lost what was passed by a packet `threshold` or more before packet `newest`, or was passed and is older than `wait_us`.
    /// Tells `each` by which grant it had been granted, and returns how many.
    pub(super) fn lose_passed(
        &mut self,
        newest: u64,
        threshold: u32,
        now_us: u32,
        wait_us: u32,
        mut each: impl FnMut(u32),
    ) -> u32 {
        let mut lost = 0;
        while self.last_passed != NONE {
            let first = self.first;
            let Granted { passed_at, at_us, credit, .. } = self.granted[usize::from(first)];
            let distance = (newest as u32).wrapping_sub(passed_at) as i32;
            if distance < threshold as i32 && now_us.wrapping_sub(at_us) < wait_us {
                break;
            }
            self.lose(first);
            each(credit);
            lost += 1;
        }
        lost
    }

    /// How long ago the first of what has been passed was granted.
    pub(super) fn passed_age_us(&self, now_us: u32) -> Option<u32> {
        let first = self.granted.get(usize::from(self.first)).filter(|_| self.last_passed != NONE)?;
        Some(now_us.wrapping_sub(first.at_us))
    }

    /// Takes all that is granted for lost. Returns how many.
    pub(super) fn lose_all(&mut self) -> u32 {
        let mut lost = 0;
        while self.first != NONE {
            self.lose(self.first);
            lost += 1;
        }
        lost
    }

    fn lose(&mut self, segment: u16) {
        self.unlink(segment);
        let segment = u32::from(segment);
        self.wanted.insert(segment);
        self.wanted_count += 1;
        self.wanted_from = self.wanted_from.min(segment);
    }

    /// That every segment is in one state, and that all sums are right.
    #[cfg(test)]
    fn check(&self) {
        let mut listed = SegmentSet::default();
        let (mut at, mut previous, mut bytes) = (self.first, NONE, 0);
        while at != NONE {
            let granted = self.granted[usize::from(at)];
            assert_eq!(granted.previous, previous);
            listed.insert(u32::from(at));
            bytes += u64::from(self.bytes_of(u32::from(at)));
            (previous, at) = (at, granted.next);
        }
        assert_eq!((self.last, self.granted_bytes), (previous, bytes));
        assert_eq!((self.wanted.len(), self.arrived.len()), (self.wanted_count, self.arrived_count));
        for segment in 0..self.count {
            let states = [&listed, &self.wanted, &self.arrived].map(|set| u8::from(set.contains(segment)));
            assert_eq!(states.iter().sum::<u8>(), 1, "segment {segment} is in {states:?}");
        }
        assert_eq!(listed.len() + self.wanted_count + self.arrived_count, self.count);
        assert!(self.wanted.next(0).is_none_or(|segment| segment >= self.wanted_from));
    }
}

/// Where a payload goes.
pub(super) enum Place<'a> {
    /// Here.
    Free(&'a mut [u8]),
    /// It is there already.
    Filled,
    /// There is no such segment.
    Nowhere,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pool::{BUFFER_BYTES, Pool};

    fn reading(len: u32, segment_bytes: u32) -> Box<Reading> {
        let mut reading = Reading::vacant();
        let buffer = Pool::new(BUFFER_BYTES as u64).unwrap().take().unwrap();
        let blob = BlobId::from_bytes([1; 32]);
        reading.begin(Read { tag: 1, blob, what: What::Blob, offset_bytes: 0, len, buffer });
        reading.ask(segment_bytes);
        reading
    }

    #[test]
    fn what_later_packets_pass_is_lost() {
        let mut reading = reading(10 * 1_024, 1_024);
        assert_eq!(reading.grant(1, 0, 8), Some((0, 0xff, 8 * 1_024)));
        assert_eq!(reading.arrive(2, 1, 100), Was::Granted);
        assert!(reading.has_passed());
        assert_eq!(reading.lose_passed(102, 3, 0, 1_000, |_| {}), 0);
        assert_eq!(reading.arrive(1, 1, 99), Was::Granted, "it was only late");
        assert_eq!(reading.lose_passed(103, 3, 0, 1_000, |_| {}), 1);
        assert!(reading.has_lost() && !reading.has_passed());
        // Granted again it goes first, and what comes of the earlier grant after all is taken.
        assert_eq!(reading.grant(2, 0, 1), Some((0, 1, 1_024)));
        assert_eq!(reading.arrive(0, 1, 98), Was::GrantedAgain);
        assert_eq!(reading.lose_all(), 5);
        assert_eq!(reading.arrive(5, 1, 120), Was::Lost);
        reading.check();
    }

    #[test]
    fn the_supplier_may_have_less() {
        let mut reading = reading(10 * 1_024, 1_024);
        reading.grant(1, 0, 5);
        assert!(reading.learn_len(2 * 1_024 + 7));
        assert!(matches!(reading.place(3, 1_024), Place::Nowhere));
        assert!(matches!(reading.place(2, 1_024), Place::Nowhere), "the last one is short");
        assert!(matches!(reading.place(2, 7), Place::Free(_)));
        for segment in 0..3 {
            reading.arrive(segment, 1, 1);
        }
        reading.confirmed = true;
        reading.check();
        assert!(reading.is_complete() && !reading.learn_len(7), "it said otherwise before");
    }

    /// Otherwise it could be complete without anybody noticing.
    #[test]
    fn what_has_begun_to_arrive_gets_no_shorter() {
        let mut reading = reading(10 * 1_024, 1_024);
        reading.grant(1, 0, 5);
        assert!(reading.learn_len(10 * 1_024));
        reading.arrive(0, 1, 1);
        reading.confirmed = true;
        reading.lose_all();
        reading.ask(1_024);
        assert!(!reading.confirmed && !reading.learn_len(1_024) && reading.learn_len(10 * 1_024));
        reading.check();
    }

    /// A supplier that guesses the number of a read that waits for the path to be proven.
    #[test]
    fn before_it_is_asked_for_nothing_can_be_said_of_it() {
        let mut reading = Reading::vacant();
        let buffer = Pool::new(BUFFER_BYTES as u64).unwrap().take().unwrap();
        let blob = BlobId::from_bytes([1; 32]);
        reading.begin(Read { tag: 1, blob, what: What::Blob, offset_bytes: 0, len: 5_000, buffer });
        assert!(!reading.learn_len(2_000));
        assert!(matches!(reading.place(0, 2_000), Place::Nowhere));
        reading.ask(1_024);
        assert!(reading.learn_len(2_000));
        reading.check();
    }

    proptest! {
        /// Whatever comes in whatever order, every segment is in one state, and the sums are right.
        #[test]
        fn every_segment_is_in_one_state(
            len in 1u32..=BUFFER_BYTES as u32,
            size in 0usize..3,
            steps in prop::collection::vec((0u8..8, any::<u32>(), any::<u16>()), 1..120),
        ) {
            let sizes = [1_152, 1_408, 8_896];
            let mut reading = reading(len, sizes[size]);
            let (mut credit, mut number) = (0, 0u64);
            for (step, a, b) in steps {
                match step {
                    0..=2 => {
                        credit += 1;
                        reading.grant(credit, number as u32, a % 65);
                    }
                    3 | 4 => {
                        number += 1;
                        let segment = a % reading.count.max(1);
                        if !reading.arrived.contains(segment) && (!reading.wanted.contains(segment) || reading.started) {
                            let credit = if step == 3 { reading.granted[segment as usize].credit } else { u32::from(b) };
                            reading.arrive(segment, credit, number + u64::from(b % 4));
                        }
                    }
                    5 => { reading.lose_passed(number, u32::from(b % 8), number as u32, 50, |_| {}); }
                    6 => { reading.lose_all(); }
                    _ => match b % 8 {
                        0 => reading.ask(sizes[a as usize % 3]),
                        1 => { reading.learn_len(a % BUFFER_BYTES as u32 + 1); }
                        _ => {}
                    },
                }
                reading.check();
            }
        }
    }
}
