//! What a reader takes for lost, and when: what was passed by what came later, and what did not come in time.

use super::{CREDITS, Desk, Reader, SLOTS, each};
use crate::packet::limits;

impl Reader {
    /// Takes for lost what was passed long enough ago.
    pub(in crate::packet::protocol) fn lose_passed(&mut self, now: u64, newest: u64, desk: &mut Desk<'_>) {
        for slot in each(self.passed) {
            self.lose_passed_of(now, slot, newest, desk);
        }
    }

    pub(super) fn lose_passed_of(&mut self, now: u64, slot: usize, newest: u64, desk: &mut Desk<'_>) {
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

    /// Takes for lost what the tail timers say. Returns whether nothing at all comes through.
    pub(in crate::packet::protocol) fn handle_timeout(&mut self, now: u64, desk: &mut Desk<'_>) -> bool {
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
    pub(in crate::packet::protocol) fn next_timeout(&self, now: u64) -> Option<u64> {
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
    pub(in crate::packet::protocol) fn soonest_timeout(&self, now: u64) -> u64 {
        now.saturating_add(self.rtt.tail_timeout()).min(self.spread_until.unwrap_or(u64::MAX))
    }

    /// When the path has stalled unless something new arrives.
    pub(in crate::packet::protocol) fn stalls_at(&self, stall_timeout_ns: u64) -> Option<u64> {
        (self.active != 0).then(|| self.progress_ns.saturating_add(stall_timeout_ns))
    }
}
