//! What a reader asks for, ends and grants, and in which order.

use super::{MASK, Reader, each};
use crate::packet::protocol::frame::{Credit, ReadRequest};
use crate::packet::protocol::pacer::Pacer;

impl Reader {
    /// Whether there is anything to be told to the supplier now.
    pub(in crate::packet::protocol) fn has_messages(&self) -> bool {
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
    pub(in crate::packet::protocol) fn next_ask(&mut self) -> Option<ReadRequest> {
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
    pub(in crate::packet::protocol) fn tell(&mut self, mut push: impl FnMut(u16, u32) -> bool) {
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
    pub(in crate::packet::protocol) fn tell_ends(&mut self) {
        for slot in each(!self.active).filter(|slot| self.numbers[*slot] != 0) {
            self.end |= 1 << slot;
        }
    }

    /// The next grant, as far as window and pacer allow; `left` bytes at most.
    pub(in crate::packet::protocol) fn next_credit(
        &mut self,
        now: u64,
        left: &mut u64,
        pacer: &mut Pacer,
    ) -> Option<Credit> {
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
}
