//! The next deadline of every path, in a binary heap in which each path has at most one place.

/// No place in the heap.
const NOWHERE: u32 = u32::MAX;

/// Deadlines by the index of their path.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// (when, path), the earliest first.
    heap: Vec<(u64, u32)>,
    /// Where each path stands in it.
    places: Vec<u32>,
}

impl Deadlines {
    /// The earliest.
    pub(super) fn first(&self) -> Option<u64> {
        self.heap.first().map(|(when, _)| *when)
    }

    /// The path with the earliest deadline, where that has come. It has none then.
    pub(super) fn take_due(&mut self, now: u64) -> Option<u32> {
        let (_, path) = *self.heap.first().filter(|(when, _)| *when <= now)?;
        self.clear(path);
        Some(path)
    }

    /// Sets the deadline of a path, or leaves an earlier one.
    pub(super) fn at_least(&mut self, path: u32, when: u64) {
        if self.places.len() <= path as usize {
            self.places.resize(path as usize + 1, NOWHERE);
        }
        match self.places[path as usize] {
            NOWHERE => {
                self.heap.push((when, path));
                self.rise(self.heap.len() - 1);
            }
            place if when < self.heap[place as usize].0 => {
                self.heap[place as usize].0 = when;
                self.rise(place as usize);
            }
            _ => {}
        }
    }

    /// Takes the deadline of a path away.
    pub(super) fn clear(&mut self, path: u32) {
        let Some(place) = self.places.get(path as usize).copied().filter(|place| *place != NOWHERE) else {
            return;
        };
        self.places[path as usize] = NOWHERE;
        self.heap.swap_remove(place as usize);
        if (place as usize) < self.heap.len() {
            let place = self.rise(place as usize);
            self.sink(place);
        }
    }

    fn rise(&mut self, mut at: usize) -> usize {
        while at > 0 && self.heap[at] < self.heap[(at - 1) / 2] {
            self.heap.swap(at, (at - 1) / 2);
            self.places[self.heap[at].1 as usize] = at as u32;
            at = (at - 1) / 2;
        }
        self.places[self.heap[at].1 as usize] = at as u32;
        at
    }

    fn sink(&mut self, mut at: usize) {
        loop {
            let mut least = at;
            for child in [2 * at + 1, 2 * at + 2] {
                if child < self.heap.len() && self.heap[child] < self.heap[least] {
                    least = child;
                }
            }
            self.places[self.heap[at].1 as usize] = at as u32;
            if least == at {
                return;
            }
            self.heap.swap(at, least);
            self.places[self.heap[at].1 as usize] = at as u32;
            at = least;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It gives what a sorted map of the paths' deadlines gives.
        #[test]
        fn is_a_heap(steps in prop::collection::vec((0u8..3, 0u32..12, 0u64..50), 1..200)) {
            let (mut deadlines, mut model) = (Deadlines::default(), BTreeMap::<u32, u64>::new());
            for (step, path, when) in steps {
                match step {
                    0 => {
                        deadlines.at_least(path, when);
                        model.entry(path).and_modify(|at| *at = when.min(*at)).or_insert(when);
                    }
                    1 => { deadlines.clear(path); model.remove(&path); }
                    _ => {
                        let due = model.iter().map(|(path, at)| (*at, *path)).min().filter(|(at, _)| *at <= when);
                        prop_assert_eq!(deadlines.take_due(when), due.map(|(_, path)| path));
                        if let Some((_, path)) = due { model.remove(&path); }
                    }
                }
                prop_assert_eq!(deadlines.first(), model.values().min().copied());
            }
        }
    }
}
