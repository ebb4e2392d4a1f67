//! A blob that is being received: what its pieces are checked against and where they are written.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use velo_fabric::pool::Buffer;
use velo_object::{BlobId, Expected, Outboard, Verified};
use velo_socket::Error;
use velo_store::{StageKind, Staging, Store, StoreError};

use crate::error::store_error;

/// Shared by the engine and all reads of one blob that are on their way.
#[derive(Debug)]
pub(crate) struct Target {
    blob: BlobId,
    outboard: Option<Outboard>,
    place: Mutex<Place>,
}

#[derive(Debug)]
enum Place {
    /// Its only piece makes the place, when it has verified: before that its size is not known.
    Later {
        store: Store,
        kind: StageKind,
        sink: Option<File>,
    },
    Here(Arc<Staging>),
    /// Its sink is its owner's again.
    Ended,
}

impl Target {
    /// A blob of at most one piece.
    pub(crate) fn whole(store: Store, blob: BlobId, kind: StageKind, sink: Option<File>) -> Self {
        Self { blob, outboard: None, place: Mutex::new(Place::Later { store, kind, sink }) }
    }

    /// A blob of more than one piece, staged under this outboard.
    pub(crate) fn pieces(outboard: Outboard, staging: Arc<Staging>) -> Self {
        Self { blob: outboard.id(), outboard: Some(outboard), place: Mutex::new(Place::Here(staging)) }
    }

    /// Whether it is a blob of one piece.
    pub(crate) fn is_whole(&self) -> bool {
        self.outboard.is_none()
    }

    pub(crate) fn blob(&self) -> BlobId {
        self.blob
    }

    /// What piece `index` is checked against.
    pub(crate) fn expected(&self, index: u64) -> Expected<'_> {
        match &self.outboard {
            Some(outboard) => Expected::Piece(outboard, index),
            None => Expected::Whole(self.blob),
        }
    }

    /// Where its pieces are, once there is such a place.
    pub(crate) fn staging(&self) -> Option<Arc<Staging>> {
        match &*self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Here(staging) => Some(staging.clone()),
            Place::Later { .. } | Place::Ended => None,
        }
    }

    /// Nobody wants it any more: what goes into a sink goes there no longer, so that another transfer may. What goes into the store
    /// is left for the next job.
    pub(crate) fn let_go(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        match &*place {
            Place::Later { sink: Some(_), .. } => {}
            Place::Here(staging) if staging.is_sink() => {
                // It deletes nothing of a sink, so nothing can fail.
                let _ = staging.abandon();
            }
            _ => return,
        }
        *place = Place::Ended;
    }

    /// Stores a piece. False where it was there already.
    pub(crate) fn write(&self, verified: &Verified<Buffer>) -> Result<bool, Error> {
        let staging = self.place(verified.len() as u64)?;
        staging.write(verified).map_err(|error| store_error(&error))
    }

    fn place(&self, size_bytes: u64) -> Result<Arc<Staging>, Error> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Place::Later { store, kind, sink } = &mut *place {
            let staging = store
                .stage(self.blob, size_bytes, None, sink.take(), *kind)
                .map_err(|error| store_error(&error))?;
            *place = Place::Here(staging);
        }
        match &*place {
            Place::Here(staging) => Ok(staging.clone()),
            Place::Later { .. } | Place::Ended => Err(store_error(&StoreError::Ended(self.blob))),
        }
    }
}
