//! Waiting for what is on its way: one bell for all, rung only while somebody listens.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    listeners: AtomicUsize,
    lock: Mutex<u64>,
    bell: Condvar,
}

impl Arrivals {
    /// Says that something has arrived. Costs one load where nobody waits.
    pub fn announce(&self) {
        if self.listeners.load(SeqCst) > 0 {
            *self.lock.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.bell.notify_all();
        }
    }

    /// Asks `arrived` at every announcement until it gives something; none at the deadline.
    pub fn wait<T>(&self, deadline: Instant, mut arrived: impl FnMut() -> Option<T>) -> Option<T> {
        self.listeners.fetch_add(1, SeqCst);
        let result = self.wait_counted(deadline, &mut arrived);
        self.listeners.fetch_sub(1, SeqCst);
        result
    }

    fn wait_counted<T>(&self, deadline: Instant, arrived: &mut impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            let seen = *self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(value) = arrived() {
                return Some(value);
            }
            let mut count = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            while *count == seen {
                let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
                count = self.bell.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}
