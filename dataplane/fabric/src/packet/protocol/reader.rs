//! The reading side of a path: its slots and what arrives for them. What is granted when stands in [`granting`], what is taken for lost in
//! [`timers`].

mod granting;
mod timers;

use std::collections::VecDeque;

use super::congestion::Congestion;
use super::frame::Data;
use super::reading::{Place, Reading, Was};
use super::reordering::Reordering;
use super::rtt::RoundTrip;
use super::seal::Payload;
use super::{EndpointCounters, EndpointOptions, Event};
use crate::packet::limits;
use crate::{Completion, PathId, Read, ReadError, Refusal};

const SLOTS: usize = limits::READS_PER_PATH;
/// Segments that one CREDIT grants at most.
const MASK: u32 = u64::BITS;

/// Grants of which it is known whether anything came by them.
const CREDITS: usize = limits::GRANTS_PER_PATH;

const _: () = assert!(SLOTS == u64::BITS as usize);

/// All slots of one bit mask, lowest first.
pub(super) fn each(mut slots: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let slot = (slots != 0).then(|| slots.trailing_zeros() as usize)?;
        slots &= slots - 1;
        Some(slot)
    })
}

/// Reads that can be used again. Boxes, because they move between here and the slots.
pub(super) type Spare = Vec<Box<Reading>>;

/// What a reader reports to, and takes memory from.
pub(super) struct Desk<'a> {
    pub(super) path: PathId,
    pub(super) events: &'a mut VecDeque<Event>,
    pub(super) spare: &'a mut Spare,
    pub(super) counters: &'a mut EndpointCounters,
}

impl Desk<'_> {
    fn end(&mut self, mut reading: Box<Reading>, result: Result<u32, ReadError>) {
        match result {
            Ok(_) => self.counters.fabric.reads_done += 1,
            Err(_) => self.counters.fabric.reads_failed += 1,
        }
        if let Some(mut buffer) = reading.finish() {
            if let Ok(len) = result {
                buffer.set_len(len as usize);
            }
            let completion = Completion::Read { path: self.path, tag: reading.tag, buffer, result };
            self.events.push_back(Event::Completion(completion));
        }
        self.spare.push(reading);
    }
}

/// The reads of one path.
pub(super) struct Reader {
    slots: [Option<Box<Reading>>; SLOTS],
    /// The number of the last read of each slot.
    numbers: [u32; SLOTS],
    /// In which order the reads are asked for and granted something: that in which they were posted, until one has waited in vain.
    order: [u32; SLOTS],
    next_order: u32,
    /// Slots with a read.
    active: u64,
    /// Slots whose READ is to be sent.
    ask: u64,
    /// Slots whose END is to be sent, and those whose END goes with the next frame in any case.
    end: u64,
    end_again: u64,
    /// Slots with something to be granted that may be granted now.
    wanting: u64,
    /// Those of them with something that was lost.
    lossy: u64,
    /// Slots whose reads the supplier is known to have the bytes of, and those granted something though that is not known.
    confirmed: u64,
    tentative: u64,
    /// Whether reads wait at the supplier for its buffers: above 0 for so many reads after one that waited in vain.
    held_up: u32,
    /// Slots with something granted that has been passed.
    passed: u64,
    inflight: u64,
    next_credit: u32,
    /// The last grants by which something came, each at its number modulo their count.
    came: Box<[u32; CREDITS]>,
    /// What may be granted now so that the window is spread over the round trip, when that was, and when more may be where it is too little.
    allowance: u64,
    allowed_ns: u64,
    spread_until: Option<u64>,
    /// Whether the pacer holds grants back.
    pub(super) paced: bool,
    pub(super) rtt: RoundTrip,
    pub(super) congestion: Congestion,
    pub(super) reordering: Reordering,
    /// Payload of the segments of reads to come; 0 before the path is proven.
    segment_bytes: u32,
    line_rate: Option<u64>,
    /// However long responses take, a tail is asked for again some times before the path has stalled.
    tail_max_ns: u64,
    /// When something new last arrived, or the first read was posted.
    progress_ns: u64,
    arrived: u64,
    lost: u64,
}

impl Reader {
    pub(super) fn new(options: &EndpointOptions) -> Self {
        let slack = if options.lossless { limits::TAIL_SLACK_LOSSLESS_NS } else { limits::TAIL_SLACK_NS };
        let most =
            options.window_max_bytes.clamp(limits::SEGMENT_MAX_BYTES as u64 * 2, limits::WINDOW_MAX_BYTES);
        let queue_target = options.queue_target.as_nanos().min(1 << 40) as u64;
        Self {
            slots: [const { None }; SLOTS],
            numbers: [0; SLOTS],
            order: [0; SLOTS],
            next_order: 0,
            active: 0,
            ask: 0,
            end: 0,
            end_again: 0,
            wanting: 0,
            lossy: 0,
            confirmed: 0,
            tentative: 0,
            held_up: 0,
            passed: 0,
            inflight: 0,
            next_credit: 1,
            came: Box::new([0; CREDITS]),
            allowance: 0,
            allowed_ns: 0,
            spread_until: None,
            paced: false,
            rtt: RoundTrip::new(slack),
            congestion: Congestion::new(options.lossless, limits::WINDOW_FIRST_BYTES, most, queue_target),
            reordering: Reordering::default(),
            segment_bytes: 0,
            line_rate: options.line_rate_bytes_per_s,
            tail_max_ns: (options.stall_timeout.as_nanos() as u64 / 4).max(1),
            progress_ns: 0,
            arrived: 0,
            lost: 0,
        }
    }

    pub(super) fn inflight(&self) -> u64 {
        self.inflight
    }

    /// Segments arrived, and lost.
    pub(super) fn segments(&self) -> (u64, u64) {
        (self.arrived, self.lost)
    }

    /// Takes a read in, or gives it back.
    pub(super) fn post(&mut self, now: u64, read: Read, desk: &mut Desk<'_>) -> Result<(), Read> {
        let slot = (!self.active).trailing_zeros() as usize;
        if slot >= SLOTS || self.find(read.tag).is_some() {
            return Err(read);
        }
        let mut reading = desk.spare.pop().unwrap_or_else(Reading::vacant);
        reading.begin(read);
        reading.active_ns = now;
        if self.active == 0 {
            self.progress_ns = now;
        }
        self.slots[slot] = Some(reading);
        self.active |= 1 << slot;
        self.put_last(slot);
        if self.segment_bytes != 0 {
            self.ask(slot);
        }
        Ok(())
    }

    fn put_last(&mut self, slot: usize) {
        self.order[slot] = self.next_order;
        self.next_order = self.next_order.wrapping_add(1);
    }

    /// The first of some slots.
    fn first_of(&self, slots: u64) -> Option<usize> {
        each(slots).min_by_key(|slot| self.order[*slot].wrapping_sub(self.next_order))
    }

    fn find(&self, tag: u64) -> Option<usize> {
        each(self.active).find(|slot| self.slots[*slot].as_ref().is_some_and(|reading| reading.tag == tag))
    }

    /// Asks for what a slot holds under a new number.
    fn ask(&mut self, slot: usize) {
        let Some(reading) = &mut self.slots[slot] else { return };
        self.inflight -= reading.granted_bytes();
        reading.ask(self.segment_bytes);
        self.numbers[slot] = self.numbers[slot].wrapping_add(1);
        let bit = 1 << slot;
        self.ask |= bit;
        self.end &= !bit;
        self.end_again &= !bit;
        self.passed &= !bit;
        self.update(slot);
    }

    /// From now on segments are of this size, and so are those of reads that are under way where they must be.
    pub(super) fn set_segment_bytes(&mut self, bytes: u32) {
        let before = std::mem::replace(&mut self.segment_bytes, bytes);
        self.congestion.set_segment(bytes.into());
        for slot in each(self.active) {
            let larger = self.slots[slot].as_ref().is_some_and(|reading| reading.segment_bytes > bytes);
            if before == 0 || larger {
                self.ask(slot);
            }
        }
    }

    /// The round trip is known before anything was granted: where the line rate is, too, so is what fits on the way.
    pub(super) fn open_window(&mut self) {
        if let Some(rate) = self.line_rate {
            let fits = u128::from(rate) * u128::from(self.rtt.shortest()) / 1_000_000_000;
            self.congestion.open((fits as u64).min(limits::WINDOW_FIRST_MAX_BYTES));
        }
    }

    /// Ends a read because nobody wants it any more.
    pub(super) fn cancel(&mut self, tag: u64, desk: &mut Desk<'_>) {
        if let Some(slot) = self.find(tag) {
            self.finish(slot, Err(ReadError::Cancelled), desk);
        }
    }

    /// Ends all reads.
    pub(super) fn fail_all(&mut self, error: ReadError, desk: &mut Desk<'_>) {
        for slot in each(self.active) {
            self.finish(slot, Err(error), desk);
        }
    }

    /// The supplier gives nothing.
    pub(super) fn refused(&mut self, now: u64, slot: u16, read: u32, why: Refusal, desk: &mut Desk<'_>) {
        let slot = usize::from(slot);
        let asked = self.slots[slot].as_ref().is_some_and(|reading| reading.is_asked());
        if !asked || self.numbers[slot] != read {
            return;
        }
        self.progress_ns = now;
        let error = match why {
            Refusal::NotHere => ReadError::NotHere,
            Refusal::Refused => ReadError::Refused,
        };
        self.finish(slot, Err(error), desk);
    }

    /// The supplier has the bytes of a read, and waits to be granted something of it.
    pub(super) fn ready(&mut self, slot: u16, read: u32) {
        let slot = usize::from(slot);
        if self.numbers[slot] != read {
            return;
        }
        if let Some(reading) = self.slots[slot].as_mut().filter(|reading| reading.is_asked()) {
            (reading.confirmed, reading.timeouts) = (true, 0);
            self.update(slot);
        }
    }

    fn finish(&mut self, slot: usize, result: Result<u32, ReadError>, desk: &mut Desk<'_>) {
        let Some(reading) = self.slots[slot].take() else { return };
        self.inflight -= reading.granted_bytes();
        let bit = 1u64 << slot;
        self.active &= !bit;
        // Also where its READ has not gone out: what the slot held before may still wait for its end.
        self.end |= bit;
        for mask in [
            &mut self.ask,
            &mut self.wanting,
            &mut self.lossy,
            &mut self.passed,
            &mut self.confirmed,
            &mut self.tentative,
        ] {
            *mask &= !bit;
        }
        desk.end(reading, result);
    }

    /// Brings the masks up to date with a slot.
    fn update(&mut self, slot: usize) {
        let Some(reading) = &self.slots[slot] else { return };
        let bit = 1u64 << slot;
        let set = |mask: &mut u64, to: bool| if to { *mask |= bit } else { *mask &= !bit };
        // Of a read that the supplier has not confirmed, only the beginning is granted.
        set(&mut self.wanting, reading.is_wanting() && (reading.confirmed || !reading.started));
        set(&mut self.lossy, reading.has_lost() && reading.confirmed);
        set(&mut self.confirmed, reading.confirmed);
        set(&mut self.tentative, reading.started && !reading.confirmed);
        set(&mut self.passed, reading.has_passed());
    }

    /// Data have arrived in packet `number`; `newest` is the highest so far.
    #[expect(clippy::too_many_arguments, reason = "each is another fact of one packet")]
    pub(super) fn data(
        &mut self,
        now: u64,
        number: u64,
        newest: u64,
        data: &Data,
        payload: &Payload<'_>,
        marked: bool,
        desk: &mut Desk<'_>,
    ) {
        let slot = usize::from(data.slot);
        self.reordering.seen(number, newest);
        let Some(reading) =
            self.slots[slot].as_mut().filter(|reading| reading.is_asked() && self.numbers[slot] == data.read)
        else {
            desk.counters.segments_late += 1;
            // The supplier may not have heard that this read has ended; where the slot is in use again, its READ says it.
            if self.active >> slot & 1 == 0 {
                self.end |= 1 << slot;
            }
            return;
        };
        let (before, segment) = (reading.granted_bytes(), u32::from(data.segment));
        let placed = reading.learn_len(data.len)
            && match reading.place(segment, payload.len()) {
                Place::Free(place) => payload.copy_to(place).is_ok(),
                Place::Filled => {
                    self.inflight -= before - reading.granted_bytes();
                    desk.counters.segments_spurious += 1;
                    return;
                }
                Place::Nowhere => false,
            };
        if !placed {
            self.inflight -= before - reading.granted_bytes();
            desk.counters.rejected += 1;
            return;
        }
        let len = payload.len() as u64;
        self.came[data.credit as usize % CREDITS] = data.credit;
        let was = reading.arrive(segment, data.credit, number);
        if was != Was::Granted {
            desk.counters.segments_spurious += 1;
            self.reordering.too_soon();
        }
        self.inflight -= before - reading.granted_bytes();
        if !reading.confirmed {
            self.held_up = self.held_up.saturating_sub(1);
        }
        let changed = !reading.confirmed || was == Was::Lost;
        reading.confirmed = true;
        reading.active_ns = now;
        reading.timeouts = 0;
        self.progress_ns = now;
        self.arrived += 1;
        desk.counters.fabric.payload_bytes_in += len;
        self.measure(now, len, data, marked, desk);
        let Some(reading) = &self.slots[slot] else { return };
        if reading.is_complete() {
            let len = reading.len;
            return self.finish(slot, Ok(len), desk);
        }
        if reading.has_passed() {
            self.lose_passed_of(now, slot, newest, desk);
        } else if changed || self.passed >> slot & 1 == 1 {
            self.update(slot);
        }
        // Other slots learn from the number of this packet, too, though not at once.
        if number.is_multiple_of(8) && self.passed != 0 {
            self.lose_passed(now, newest, desk);
        }
    }

    fn measure(&mut self, now: u64, len: u64, data: &Data, marked: bool, desk: &mut Desk<'_>) {
        // All in microseconds of our clock, which may have wrapped since the grant.
        let response = ((now / 1_000) as u32).wrapping_sub(data.echo);
        let rtt = response.saturating_sub(data.held);
        if response > u32::MAX / 2 {
            return;
        }
        let (rtt, response) = (u64::from(rtt.max(1)) * 1_000, u64::from(response.max(1)) * 1_000);
        self.rtt.sample(now, rtt, response);
        desk.counters.congestion_marks += u64::from(marked);
        let cuts = self.congestion.cuts();
        if self.congestion.arrived(now, len, rtt, data.credit, self.next_credit, marked, &self.rtt) {
            self.rtt.end_round();
        }
        desk.counters.window_cuts += self.congestion.cuts() - cuts;
    }
}
