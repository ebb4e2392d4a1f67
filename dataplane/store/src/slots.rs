//! Which transfers there are, and whose turn it is with the files of one.
//!
//! To make, to open or to delete the files of a transfer may take minutes, as what is there is hashed. Whoever does it
//! marks the slot as busy and lets the lock go: only who wants the same transfer waits.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use velo_object::BlobId;

use crate::StoreError;
use crate::dir::{Part, remove_file};
use crate::stage::Staging;
use crate::store::{Inner, Slot, Store, lock};

/// A busy slot, in the hands of one thread. Dropped, it leaves what was there before, or nothing.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    inner: &'a Inner,
    id: BlobId,
    leave: Option<Slot>,
}

/// What a thread finds that wants a transfer.
#[derive(Debug)]
pub(crate) enum Claimed<'a> {
    Present(Arc<Staging>),
    /// There is none, and nobody else makes one.
    Vacant(Claim<'a>),
}

impl Claim<'_> {
    /// Ends it with the transfer that was made.
    pub fn settle(mut self, staging: &Arc<Staging>) {
        self.leave = Some(Slot::Active(staging.clone()));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut slots = lock(&self.inner.stagings);
        match self.leave.take() {
            Some(slot) => drop(slots.insert(self.id, slot)),
            None => drop(slots.remove(&self.id)),
        }
        drop(slots);
        self.inner.settled.notify_all();
        self.inner.shared.arrivals.announce();
    }
}

impl Store {
    /// The transfer of `id` that is under way or can go on, if there is one. One on disk is opened, which may take a
    /// while after a crash of the machine; one that cannot be read is none (the log says why).
    pub fn staging(&self, id: &BlobId) -> Option<Arc<Staging>> {
        match self.0.claim(id) {
            Ok(Claimed::Present(staging)) => Some(staging),
            Ok(Claimed::Vacant(_)) => None,
            Err(error) => {
                tracing::warn!(blob = %id, %error, "what an earlier transfer left cannot be read");
                None
            }
        }
    }

    /// As [`Store::staging`], but none while another thread has it in hand.
    pub(crate) fn staging_unless_busy(&self, id: &BlobId) -> Option<Arc<Staging>> {
        let found = lock(&self.0.stagings).get(id).cloned();
        match found {
            Some(Slot::Active(staging)) => Some(staging),
            Some(Slot::Parked) => self.staging(id),
            Some(Slot::Busy) | None => None,
        }
    }

    /// Whether a range of the file that [`Store::open_blob`] gave may be read. While there is a transfer, its file is the
    /// one that may be open, whatever else has the blob.
    pub(crate) fn is_here(&self, id: &BlobId, range: &Range<u64>) -> Result<bool, StoreError> {
        match lock(&self.0.stagings).get(id) {
            Some(Slot::Active(staging)) if !staging.is_sink() => return Ok(staging.covers(range.clone())),
            Some(Slot::Busy) => return Ok(false),
            _ => {}
        }
        self.has(id)
    }

    /// The transfer of `id` if it is open; never waits.
    pub(crate) fn open_staging(&self, id: &BlobId) -> Option<Arc<Staging>> {
        match lock(&self.0.stagings).get(id) {
            Some(Slot::Active(staging)) => Some(staging.clone()),
            _ => None,
        }
    }
}

impl Inner {
    /// The transfer of `id`, opened if it is only on disk; where there is none, the right to make it.
    pub fn claim(self: &Arc<Self>, id: &BlobId) -> Result<Claimed<'_>, StoreError> {
        let mut slots = lock(&self.stagings);
        let parked = loop {
            match slots.get(id) {
                Some(Slot::Active(staging)) => return Ok(Claimed::Present(staging.clone())),
                Some(Slot::Busy) => {
                    slots = self.settled.wait(slots).unwrap_or_else(PoisonError::into_inner);
                }
                Some(Slot::Parked) => break true,
                None => break false,
            }
        };
        slots.insert(*id, Slot::Busy);
        drop(slots);
        let mut claim = Claim { inner: self, id: *id, leave: parked.then_some(Slot::Parked) };
        if !parked {
            return Ok(Claimed::Vacant(claim));
        }
        match self.load_staging(*id)? {
            Some(made) => {
                let staging = Staging::new(self, made);
                claim.settle(&staging);
                Ok(Claimed::Present(staging))
            }
            None => {
                claim.leave = None;
                Ok(Claimed::Vacant(claim))
            }
        }
    }

    /// Ends the transfer of a blob that another file has become.
    pub fn supersede(&self, id: &BlobId) -> Result<(), StoreError> {
        let mut slots = lock(&self.stagings);
        let found = slots.get(id).cloned();
        match found {
            Some(Slot::Active(staging)) => {
                drop(slots);
                staging.supersede()
            }
            Some(Slot::Parked) => {
                slots.insert(*id, Slot::Busy);
                drop(slots);
                let _claim = Claim { inner: self, id: *id, leave: None };
                self.remove_staged(id)
            }
            Some(Slot::Busy) | None => Ok(()),
        }
    }

    /// Deletes the files of a transfer: the map first, as without it the rest is garbage that the next start removes.
    pub fn remove_staged(&self, id: &BlobId) -> Result<(), StoreError> {
        [Part::Map, Part::Data, Part::Outboard]
            .into_iter()
            .try_for_each(|part| remove_file(&self.dir.staged(id, part)))
    }

    /// Takes the slot of a transfer that ends; none where it is that of another one.
    pub fn reclaim(&self, staging: &Staging) -> Option<Claim<'_>> {
        let id = staging.id();
        let mut slots = lock(&self.stagings);
        match slots.get(&id) {
            Some(Slot::Active(present)) if std::ptr::eq(Arc::as_ptr(present), staging) => {
                slots.insert(id, Slot::Busy);
                Some(Claim { inner: self, id, leave: None })
            }
            _ => None,
        }
    }
}
