//! The reading side of a path: its slots, what is granted when, what is taken for lost.

use std::collections::VecDeque;

use super::congestion::Congestion;
use super::frame::{Credit, Data, ReadRequest};
use super::pacer::Pacer;
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

    /// Takes for lost what was passed long enough ago.
    pub(super) fn lose_passed(&mut self, now: u64, newest: u64, desk: &mut Desk<'_>) {
        for slot in each(self.passed) {
            self.lose_passed_of(now, slot, newest, desk);
        }
    }

    fn lose_passed_of(&mut self, now: u64, slot: usize, newest: u64, desk: &mut Desk<'_>) {
        let Some(reading) = &mut self.slots[slot] else { return };
        let before = reading.granted_bytes();
        let (now_us, wait_us) = ((now / 1_000) as u32, (self.rtt.tail_timeout() / 1_000) as u32);
        let (came, congestion) = (&self.came, &mut self.congestion);
        let lost = reading.lose_passed(newest, self.reordering.threshold(), now_us, wait_us, |credit| {
            // Where nothing came by a grant, it was the grant that was lost, and the network has carried none of this.
            if came[credit as usize % CREDITS] == credit {
                congestion.lost(1);
            }
        });
        self.inflight -= before - reading.granted_bytes();
        self.lost += u64::from(lost);
        desk.counters.segments_lost += u64::from(lost);
        self.update(slot);
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

    /// Whether there is anything to be told to the supplier now.
    pub(super) fn has_messages(&self) -> bool {
        (self.ask | self.end) != 0 || self.may_grant()
    }

    /// Whether a grant is worth a frame now.
    fn may_grant(&self) -> bool {
        if self.wanting == 0 || self.paced || self.spread_until.is_some() {
            return false;
        }
        let room = self.room();
        // What was lost waits for nothing else.
        let handful = if self.lossy != 0 { u64::from(self.segment_bytes) } else { self.handful() };
        room >= handful || self.inflight == 0
    }

    /// What may be granted now of the reads that come next.
    fn room(&self) -> u64 {
        let window = self.congestion.window();
        let room = window.saturating_sub(self.inflight);
        if self.wanting & self.confirmed != 0 {
            return room;
        }
        let half = (window / 2).max(self.segment_bytes.into());
        if self.held_up == 0 {
            return room.min(half);
        }
        // Of all that may have to wait at the supplier, so much that the rest of the window is left to what need not.
        let tentative = each(self.tentative).filter_map(|slot| self.slots[slot].as_ref());
        let granted: u64 = tentative.map(|reading| reading.granted_bytes()).sum();
        room.min(half.saturating_sub(granted))
    }

    /// Grants go out in handfuls of so many bytes, not one for each segment that arrives.
    fn handful(&self) -> u64 {
        let segment = u64::from(self.segment_bytes);
        (self.congestion.window() / 8).clamp(segment, 32 * segment)
    }

    /// The next READ that is to be sent.
    pub(super) fn next_ask(&mut self) -> Option<ReadRequest> {
        let slot = self.first_of(self.ask)?;
        self.ask &= !(1 << slot);
        let reading = self.slots[slot].as_ref()?;
        Some(ReadRequest {
            slot: slot as u16,
            read: self.numbers[slot],
            blob: reading.blob,
            what: reading.what,
            offset_bytes: reading.offset_bytes,
            len: reading.len,
            segment_bytes: reading.segment_bytes as u16,
        })
    }

    /// Gives `push` the slots and reads whose END is to be sent, as long as it takes them.
    pub(super) fn tell(&mut self, mut push: impl FnMut(u16, u32) -> bool) {
        // Each is told once more with the next frame, should this one be lost.
        let again = self.end_again & !self.end;
        for slot in each(self.end).chain(each(again)) {
            if !push(slot as u16, self.numbers[slot]) {
                return;
            }
            let bit = 1 << slot;
            self.end_again = (self.end_again & !bit) | (self.end & bit);
            self.end &= !bit;
        }
    }

    /// The supplier asks for a sign: tells it again which reads have ended.
    pub(super) fn tell_ends(&mut self) {
        for slot in each(!self.active).filter(|slot| self.numbers[*slot] != 0) {
            self.end |= 1 << slot;
        }
    }

    /// The next grant, as far as window and pacer allow; `left` bytes at most.
    pub(super) fn next_credit(&mut self, now: u64, left: &mut u64, pacer: &mut Pacer) -> Option<Credit> {
        // What the supplier has goes before what may still wait there until it has it.
        let mut room = self.room();
        let slot = self.first_of(self.wanting & self.confirmed).or_else(|| self.first_of(self.wanting))?;
        let reading = self.slots[slot].as_mut()?;
        let next = u64::from(reading.next_bytes()?);
        let window = self.congestion.window();
        if self.inflight == 0 {
            room = room.max(next);
        }
        if room < next {
            self.congestion.hold_back();
            return None;
        }
        if let Some(rate) = self.congestion.pace(&self.rtt) {
            let added = u128::from(now - self.allowed_ns) * u128::from(rate) / 1_000_000_000;
            let most = (window / 8).max(4 * u64::from(self.segment_bytes));
            self.allowance = (added as u64).saturating_add(self.allowance).min(most);
            self.allowed_ns = now;
            if self.allowance < next && self.inflight > 0 {
                // An eighth of the window at a time: timers are not free.
                let missing = u128::from((window / 16).max(next) - self.allowance);
                self.spread_until =
                    Some(now + (missing * 1_000_000_000 / u128::from(rate.max(1))) as u64 + 1);
                return None;
            }
            room = room.min(self.allowance.max(next));
        }
        let cost = Pacer::cost(next, 1);
        if pacer.available().min(*left) < cost {
            self.paced = true;
            return None;
        }
        let most =
            room.min(pacer.available()).min(*left) / Pacer::cost(u64::from(reading.segment_bytes), 1).max(1);
        let most = (most.max(1)).min(MASK.into()) as u32;
        let (number, stamp) = (self.next_credit, (now / 1_000) as u32);
        let (first, mask, bytes) = reading.grant(number, stamp, most)?;
        self.next_credit = number.wrapping_add(1);
        self.inflight += bytes;
        self.allowance = self.allowance.saturating_sub(bytes);
        reading.active_ns = now;
        if self.inflight + self.handful() > window {
            self.congestion.hold_back();
        }
        let cost = Pacer::cost(bytes, mask.count_ones().into());
        pacer.spend(cost);
        *left = left.saturating_sub(cost);
        self.update(slot);
        Some(Credit { slot: slot as u16, read: self.numbers[slot], number, stamp, first, mask })
    }

    /// Takes for lost what the tail timers say. Returns whether nothing at all comes through.
    pub(super) fn handle_timeout(&mut self, now: u64, desk: &mut Desk<'_>) -> bool {
        let mut silent = false;
        self.spread_until = self.spread_until.filter(|until| *until > now);
        for slot in each(self.active) {
            let wait = self.wait(slot);
            let Some(reading) = self.slots[slot].as_mut() else { continue };
            if now < reading.active_ns.saturating_add(wait) {
                continue;
            }
            if !reading.is_waiting() {
                // What the supplier hears nothing of for long, it forgets.
                self.ask |= u64::from(reading.is_asked()) << slot;
                reading.active_ns = now;
                continue;
            }
            desk.counters.tail_timeouts += 1;
            let before = reading.granted_bytes();
            let lost = reading.lose_all();
            self.inflight -= before;
            self.lost += u64::from(lost);
            desk.counters.segments_lost += u64::from(lost);
            reading.timeouts += 1;
            reading.active_ns = now;
            silent |= reading.timeouts > 1;
            // The READ may be lost, or the supplier has forgotten it; or it has no buffer for it before others have ended: those must have
            // their turn then, and it must know which have.
            if !reading.confirmed || reading.timeouts > 1 {
                let waits = !reading.confirmed;
                reading.confirmed &= reading.timeouts < limits::TAILS_UNTIL_FORGOTTEN;
                reading.started &= reading.confirmed;
                self.ask |= 1 << slot;
                if waits {
                    self.put_last(slot);
                    self.held_up = SLOTS as u32;
                }
                self.tell_ends();
            }
            self.update(slot);
        }
        let silent = silent && now > self.progress_ns.saturating_add(2 * self.rtt.tail_timeout());
        if silent {
            self.congestion.silence();
        }
        silent
    }

    /// How long the tail of a slot is waited for; of one that waits for nothing, how long it may be silent.
    fn wait(&self, slot: usize) -> u64 {
        let Some(reading) = &self.slots[slot] else { return u64::MAX };
        if !reading.is_waiting() {
            return limits::READ_AGAIN_NS;
        }
        let timeouts = reading.timeouts;
        let wait = self.rtt.tail_timeout();
        // Slowly longer: one segment asked for again congests nothing, and where much is lost it takes several tries.
        let wait = (wait << (timeouts / 2).min(16)).min(limits::TAIL_MAX_NS.max(wait));
        wait.min(self.tail_max_ns)
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn next_timeout(&self, now: u64) -> Option<u64> {
        let wait = self.rtt.tail_timeout();
        let passed = each(self.passed).filter_map(|slot| {
            let age_us = self.slots[slot].as_ref()?.passed_age_us((now / 1_000) as u32)?;
            Some(now + wait.saturating_sub(u64::from(age_us) * 1_000))
        });
        let waiting = each(self.active).filter_map(|slot| {
            let reading = self.slots[slot].as_ref().filter(|reading| reading.is_asked())?;
            Some(reading.active_ns.saturating_add(self.wait(slot)))
        });
        // Many slots with deadlines close to each other share one turn.
        let tail = waiting.chain(passed).min().map(|at| at.max(now + wait / 8));
        tail.into_iter().chain(self.spread_until).min()
    }

    /// The soonest that a grant made now can time out.
    pub(super) fn soonest_timeout(&self, now: u64) -> u64 {
        now.saturating_add(self.rtt.tail_timeout()).min(self.spread_until.unwrap_or(u64::MAX))
    }

    /// When the path has stalled unless something new arrives.
    pub(super) fn stalls_at(&self, stall_timeout_ns: u64) -> Option<u64> {
        (self.active != 0).then(|| self.progress_ns.saturating_add(stall_timeout_ns))
    }
}
