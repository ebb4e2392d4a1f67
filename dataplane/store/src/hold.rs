//! Keeping from eviction what somebody is still collecting.

use std::sync::Arc;

use velo_object::BlobId;

use crate::store::{Inner, Store};

/// Keeps files from eviction while it lives, also those that have not come yet.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    ids: Vec<BlobId>,
}

impl Store {
    /// A hold on nothing yet.
    pub fn hold(&self) -> Hold {
        Hold { inner: self.0.clone(), ids: Vec::new() }
    }
}

impl Hold {
    /// Keeps this blob or pack, too.
    pub fn add(&mut self, id: BlobId) {
        self.inner.files.hold(id);
        self.ids.push(id);
    }

    /// Lets all go.
    pub fn release(&mut self) {
        self.ids.drain(..).for_each(|id| self.inner.files.release(&id));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}
