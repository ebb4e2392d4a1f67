//! Transfers: a blob that arrives piece by piece, from many threads, and can be read while it does.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fs::OFlags;
use velo_object::{BlobId, Outboard, PieceSet, Pieces, Verified};

use crate::dir::{FileKind, Part, remove_file};
use crate::error::At;
use crate::extents::{punch, write_sparse};
use crate::have_map::HaveMap;
use crate::publish::{Arrival, check_pack};
use crate::space::Reservation;
use crate::store::{Inner, Shared, Store};
use crate::{StageKind, StoreError};

/// Where a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Committed,
    Abandoned,
}

#[derive(Debug)]
pub(crate) struct Progress {
    pub have: PieceSet,
    pub holes: PieceSet,
}

/// A blob that is being received. Shared by all who write it; it takes only [`Verified`] pieces.
#[derive(Debug)]
pub struct Staging {
    id: BlobId,
    pieces: Pieces,
    kind: StageKind,
    outboard: Option<Outboard>,
    /// None: the blob was here before.
    file: Option<File>,
    /// For readers; none where the file (a sink) cannot be read.
    reader: Option<Arc<File>>,
    /// None: a sink.
    map: Option<HaveMap>,
    /// The file had other bytes where pieces are missing: a hole must be punched.
    dirty: bool,
    /// Who writes into the file. The kernel lets one in at a time, and spins for the next on a core that others may need.
    writing: Mutex<()>,
    state: Mutex<Progress>,
    phase: Mutex<Phase>,
    reservation: Mutex<Option<Reservation>>,
    /// What is still to be reserved when the size is proven.
    unreserved_bytes: Mutex<u64>,
    inner: Weak<Inner>,
    shared: Arc<Shared>,
}

/// What a staging is made of.
pub(crate) struct Made {
    pub id: BlobId,
    pub size_bytes: u64,
    pub kind: StageKind,
    pub outboard: Option<Outboard>,
    pub file: Option<File>,
    pub reader: Option<Arc<File>>,
    pub map: Option<HaveMap>,
    pub dirty: bool,
    pub state: Progress,
    pub reservation: Option<Reservation>,
    pub unreserved_bytes: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Staging {
    pub(crate) fn new(inner: &Arc<Inner>, made: Made) -> Arc<Self> {
        let committed = made.file.is_none();
        Arc::new(Self {
            id: made.id,
            pieces: Pieces::new(made.size_bytes),
            kind: made.kind,
            outboard: made.outboard,
            file: made.file,
            reader: made.reader,
            map: made.map,
            dirty: made.dirty,
            writing: Mutex::new(()),
            state: Mutex::new(made.state),
            phase: Mutex::new(if committed { Phase::Committed } else { Phase::Open }),
            reservation: Mutex::new(made.reservation),
            unreserved_bytes: Mutex::new(made.unreserved_bytes),
            inner: Arc::downgrade(inner),
            shared: inner.shared.clone(),
        })
    }

    /// The blob.
    pub fn id(&self) -> BlobId {
        self.id
    }

    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.pieces.size_bytes()
    }

    /// What it is.
    pub fn kind(&self) -> StageKind {
        self.kind
    }

    /// The outboard it is received under; none for a blob of one piece.
    pub fn outboard(&self) -> Option<Outboard> {
        self.outboard.clone()
    }

    /// Whether it goes into a caller's file and is not kept.
    pub fn is_sink(&self) -> bool {
        self.map.is_none() && self.file.is_some()
    }

    /// The pieces that are here, holes among them.
    pub fn have(&self) -> PieceSet {
        lock(&self.state).have.clone()
    }

    /// Those that are holes.
    pub fn holes(&self) -> PieceSet {
        lock(&self.state).holes.clone()
    }

    /// Whether piece `index` is here.
    pub fn has(&self, index: u64) -> bool {
        lock(&self.state).have.contains(index)
    }

    /// Pieces still missing.
    pub fn remaining(&self) -> u64 {
        let state = lock(&self.state);
        state.have.len() - state.have.count()
    }

    /// Whether all pieces of a byte range are here.
    pub(crate) fn covers(&self, range: std::ops::Range<u64>) -> bool {
        lock(&self.state).have.contains_all(self.pieces.covering(range))
    }

    /// Whether its size is known for certain: it was when it began, or the last piece has proven it.
    pub(crate) fn size_is_proven(&self) -> bool {
        self.outboard.as_ref().is_some_and(Outboard::is_confirmed) || self.has(self.pieces.last())
    }

    pub(crate) fn reader(&self) -> Option<Arc<File>> {
        self.reader.clone()
    }

    /// Writes a piece; of a hole only the state is written. Any thread may call it, for any piece, at any time.
    /// False where the piece was here already.
    ///
    /// # Errors
    /// [`StoreError::Stranger`] for a piece of something else, [`StoreError::Ended`], [`StoreError::Full`] (for the last
    /// piece also where a size that nothing else had proven turns out not to fit), [`StoreError::Io`]. After an error the piece is missing, as before.
    pub fn write<B: AsRef<[u8]>>(&self, piece: &Verified<B>) -> Result<bool, StoreError> {
        let index = piece.index();
        let len = piece.len() as u64;
        if piece.blob() != self.id || index >= self.pieces.count() || len != self.pieces.len(index) {
            return Err(StoreError::Stranger { blob: self.id, index });
        }
        if self.has(index) {
            self.shared.counts.duplicate_pieces.fetch_add(1, Relaxed);
            return Ok(false);
        }
        let file = match (&self.file, *lock(&self.phase)) {
            (Some(file), Phase::Open) => file,
            // It came by another way.
            (_, Phase::Committed) => {
                self.shared.counts.duplicate_pieces.fetch_add(1, Relaxed);
                return Ok(false);
            }
            _ => return Err(StoreError::Ended(self.id)),
        };
        if index == self.pieces.last() {
            self.reserve_rest()?;
        }
        let offset = piece.offset_bytes();
        let hole = piece.is_hole();
        let written = {
            let _alone = lock(&self.writing);
            match piece.bytes() {
                Some(bytes) if self.dirty => file.write_all_at(bytes, offset),
                Some(bytes) => write_sparse(file, bytes, offset),
                None if self.dirty => punch(file, offset, len),
                None => Ok(()),
            }
        };
        written
            .and_then(|()| self.map.as_ref().map_or(Ok(()), |map| map.set(index, hole)))
            .map_err(|error| self.shared.space.io(error, &self.path(), len))?;
        if let Some(reservation) = &*lock(&self.reservation) {
            if hole { reservation.not_needed(len) } else { reservation.written(len) }
        }
        let fresh = {
            let mut state = lock(&self.state);
            if hole {
                state.holes.insert(index);
            }
            state.have.insert(index)
        };
        let counter =
            if fresh { &self.shared.counts.received_pieces } else { &self.shared.counts.duplicate_pieces };
        counter.fetch_add(1, Relaxed);
        self.shared.arrivals.announce();
        Ok(fresh)
    }

    /// The size is proven: room is set aside, and made, for all of it.
    fn reserve_rest(&self) -> Result<(), StoreError> {
        let mut rest = lock(&self.unreserved_bytes);
        if *rest > 0 {
            let inner = self.inner.upgrade().ok_or(StoreError::Closed)?;
            let more = inner.reserve(*rest)?;
            if let Some(reservation) = &*lock(&self.reservation) {
                reservation.join(more);
            }
            *rest = 0;
        }
        Ok(())
    }

    /// Makes the whole blob durable, then visible. A pack's contents are hashed and indexed. A sink is only let go:
    /// whoever owns the file flushes it. Calling it again does nothing.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] while pieces are missing, [`StoreError::Ended`] where it was abandoned,
    /// [`StoreError::Pack`] where the bytes are no pack, [`StoreError::Full`], [`StoreError::Io`]. The transfer is
    /// then as it was.
    pub fn commit(&self) -> Result<(), StoreError> {
        let inner = self.inner.upgrade().ok_or(StoreError::Closed)?;
        let mut phase = lock(&self.phase);
        if let Some(arrival) = self.arrival(&inner, *phase)? {
            inner.publish(&[arrival], None)?;
        }
        self.committed(&inner, &mut phase);
        Ok(())
    }

    /// What is to be published; none for a sink, and for what was committed before.
    fn arrival(&self, inner: &Inner, phase: Phase) -> Result<Option<Arrival>, StoreError> {
        match phase {
            Phase::Committed => return Ok(None),
            Phase::Abandoned => return Err(StoreError::Ended(self.id)),
            Phase::Open => {}
        }
        let missing = self.remaining();
        if missing > 0 {
            return Err(StoreError::Incomplete { blob: self.id, missing });
        }
        let (Some(file), Some(_)) = (&self.file, &self.map) else { return Ok(None) };
        let (kind, contents) = match self.kind {
            StageKind::Blob => (FileKind::Loose, Vec::new()),
            StageKind::Pack => (FileKind::Pack, check_pack(inner, &self.id, file, self.size_bytes())?),
        };
        Ok(Some(Arrival {
            id: self.id,
            kind,
            path: inner.dir.staged(&self.id, Part::Data),
            size_bytes: self.size_bytes(),
            outboard: self.outboard.as_ref().map(Outboard::encode),
            contents,
        }))
    }

    fn committed(&self, inner: &Inner, phase: &mut Phase) {
        if *phase != Phase::Open {
            return;
        }
        if self.map.is_some() {
            // While the transfer is still known: from then on these names may be those of another one.
            for part in [Part::Map, Part::Outboard] {
                if let Err(error) = remove_file(&inner.dir.staged(&self.id, part)) {
                    tracing::warn!(blob = %self.id, %error, "it is committed; what is left of its transfer stays until the next start");
                }
            }
        }
        *phase = Phase::Committed;
        lock(&self.reservation).take();
        drop(inner.reclaim(self));
    }

    /// Gives up and deletes what has arrived (of a sink: nothing, the file is the caller's). Nothing happens where it
    /// was committed.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn abandon(&self) -> Result<(), StoreError> {
        self.delete(Phase::Abandoned)
    }

    /// Another file has become the blob: this one goes, and who reads it must open the blob again. To whom it is
    /// received, it is as if it had been committed.
    pub(crate) fn supersede(&self) -> Result<(), StoreError> {
        if self.is_sink() { Ok(()) } else { self.delete(Phase::Committed) }
    }

    fn delete(&self, end: Phase) -> Result<(), StoreError> {
        let mut phase = lock(&self.phase);
        if *phase != Phase::Open {
            return Ok(());
        }
        *phase = end;
        let Some(inner) = self.inner.upgrade() else { return Ok(()) };
        lock(&self.reservation).take();
        // While the slot is ours: from then on these names may be those of another transfer.
        let Some(_ours) = inner.reclaim(self) else { return Ok(()) };
        if self.map.is_some() {
            inner.remove_staged(&self.id)?;
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        match self.inner.upgrade() {
            Some(inner) if self.map.is_some() => inner.dir.staged(&self.id, Part::Data),
            _ => PathBuf::from("the destination"),
        }
    }
}

impl Store {
    /// Commits many transfers at once, which costs little more flushing than one. Gives for each what
    /// [`Staging::commit`] would have given.
    pub fn commit_all(&self, stagings: &[Arc<Staging>]) -> Vec<Result<(), StoreError>> {
        let inner = &*self.0;
        // Locked in one order, whoever commits.
        let mut order: Vec<&Arc<Staging>> = stagings.iter().collect();
        order.sort_unstable_by_key(|staging| (staging.id, Arc::as_ptr(staging)));
        order.dedup_by_key(|staging| Arc::as_ptr(staging));
        let mut phases: Vec<MutexGuard<'_, Phase>> =
            order.iter().map(|staging| lock(&staging.phase)).collect();
        let mut arrivals = Vec::new();
        for (staging, phase) in order.iter().zip(&phases) {
            // What cannot be published says so below, by itself.
            arrivals.extend(staging.arrival(inner, **phase).ok().flatten());
        }
        if inner.publish(&arrivals, None).is_ok() {
            let published: HashSet<BlobId> = arrivals.iter().map(|arrival| arrival.id).collect();
            for (staging, phase) in order.iter().zip(&mut phases) {
                if published.contains(&staging.id) {
                    staging.committed(inner, phase);
                }
            }
        }
        drop(phases);
        stagings.iter().map(|staging| staging.commit()).collect()
    }
}

/// Whether a descriptor can be read.
pub(crate) fn is_readable(file: &File) -> bool {
    rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags & OFlags::RWMODE != OFlags::WRONLY)
}

/// Opens the data of a transfer.
pub(crate) fn open_data(path: &std::path::Path, create: bool) -> Result<File, StoreError> {
    OpenOptions::new().read(true).write(true).create(create).truncate(create).mode(0o600).open(path).at(path)
}
