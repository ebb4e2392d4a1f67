//! Opening content for a read, pulling it if it is not here, for as long as somebody waits for it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::{Mutex, OwnedSemaphorePermit, oneshot};
use velo_object::{BlobId, ObjectId, ObjectKind};
use velo_socket::{ErrorCode, JobId, JobState, JobStatus, check_current};

use super::{ApiError, App};
use crate::node::Control;
use crate::pull::goes_on;
use crate::velod::VelodError;

/// How long a read waits while nothing comes, from somebody who said that he has it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for somebody to say so.
const NOBODY: Duration = Duration::from_secs(4);
/// How long a read that goes on waits for its next piece.
pub(super) const NEXT_PIECE: Duration = Duration::from_secs(60);
/// How long of that in one question, so that many who wait take turns.
const ONE_WAIT: Duration = Duration::from_secs(2);
/// How long a read waits to begin, even while other content comes, behind which it may stand in the queue.
const LONGEST: Duration = Duration::from_secs(300);
/// The time between two looks at what has come; it grows to the second.
const LOOKS: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(250)];
/// What somebody waits for goes before what is only to be here some day.
const PRIORITY: u8 = 128;

/// A blob that can be read, whole or in part.
pub(super) struct Opened {
    pub(super) blob: BlobId,
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) complete: bool,
    /// What brings the rest; let go with the read.
    arriving: Option<Arriving>,
}

/// A read of what is not all here: its job, if it began one, and its place among those who read so.
struct Arriving {
    control: Arc<Control>,
    job: Mutex<Option<Wanted>>,
    _place: OwnedSemaphorePermit,
}

/// A job that one reader wants. It is cancelled if the reader goes before anything could be read, and later if nothing comes.
struct Wanted {
    control: Arc<Control>,
    job: JobId,
    opened: bool,
}

impl Wanted {
    /// Begins a job. Whenever the caller goes, the job does not stay behind.
    async fn begin(control: &Arc<Control>, root: ObjectId, size: Option<u64>) -> Result<Self, VelodError> {
        let (begun, receiver) = oneshot::channel();
        let control = Arc::clone(control);
        tokio::spawn(async move {
            let job = control.pull_sized(vec![(root, size)], true, PRIORITY).await;
            // Where nobody waits for it any more, it is dropped here.
            let _ = begun.send(job.map(|job| Self { control, job, opened: false }));
        });
        receiver.await.map_err(|error| VelodError::Down(error.to_string()))?
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (control, job, opened) = (Arc::clone(&self.control), self.job, self.opened);
        runtime.spawn(async move {
            let stays =
                opened && control.job(job).await.is_ok_and(|status| status.state != JobState::Waiting);
            if !stays {
                let _ = control.velod.cancel(job).await;
            }
        });
    }
}

/// What shows that something comes.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    done_bytes: u64,
    origin_bytes: u64,
    /// What all jobs have received: behind some of them this one may stand in the queue.
    received_bytes: u64,
}

/// Opens `root` (a blob, or the table of a tree), of this size if a tree tells so; if it is not here, pulls it and waits until
/// it can be read in part.
pub(super) async fn open(app: &App, root: ObjectId, size: Option<u64>) -> Result<Opened, ApiError> {
    let control = &app.control;
    let began = Instant::now();
    let (mut moved, mut mark, mut pause) = (began, None, LOOKS[0]);
    let (mut job, mut place): (Option<Wanted>, Option<OwnedSemaphorePermit>) = (None, None);
    loop {
        match control.velod.open(root.blob, true).await {
            Ok((file, offset, size, complete)) => {
                let arriving = match place {
                    _ if complete => None,
                    Some(place) => Some(Arriving::new(control, place, job, root).await?),
                    None => Some(Arriving::new(control, take_place(app)?, job, root).await?),
                };
                let (blob, file) = (root.blob, Arc::new(file.into()));
                return Ok(Opened { blob, file, offset, size, complete, arriving });
            }
            Err(VelodError::Refused(error)) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        if place.is_none() {
            place = Some(take_place(app)?);
        }
        let id = match &job {
            Some(wanted) => wanted.job,
            None => job.insert(Wanted::begin(control, root, size).await?).job,
        };
        let jobs = control.velod.jobs().await?;
        let status = jobs.iter().find(|status| status.job == id);
        match status.map(|status| &status.state) {
            Some(JobState::Failed(error)) => return Err(VelodError::Refused(error.clone()).into()),
            Some(JobState::Cancelled) => {
                return Err(ApiError::new(StatusCode::CONFLICT, "cancelled", "the pull was cancelled"));
            }
            Some(JobState::Running | JobState::Waiting | JobState::Complete) => {}
            // velod began again.
            None => job = None,
        }
        let origin_reads = control.origin.as_ref().is_some_and(|origin| origin.is_reading());
        let coming = !control.pulls.sources(id).is_empty() || origin_reads;
        let now = Mark {
            done_bytes: status.map_or(0, |status| status.done_bytes),
            origin_bytes: control.origin.as_ref().map_or(0, |origin| origin.read_bytes([&root.blob])),
            received_bytes: if coming { jobs.iter().map(|job| job.received_bytes).sum() } else { 0 },
        };
        if mark.as_ref() != Some(&now) {
            mark = Some(now);
            moved = Instant::now();
        }
        let patience = if coming { PATIENCE } else { NOBODY };
        if moved.elapsed() > patience || began.elapsed() > LONGEST {
            let seconds = began.elapsed().as_secs();
            return Err(ApiError::not_found(format!(
                "{root}: no member and no origin gave it within {seconds} s"
            )));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(LOOKS[1]);
    }
}

fn take_place(app: &App) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&app.readers).try_acquire_owned().map_err(|_| {
        let why = "too many contents are read while they arrive: try again when one is here";
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "limit", why)
    })
}

impl Arriving {
    async fn new(
        control: &Arc<Control>,
        place: OwnedSemaphorePermit,
        mut job: Option<Wanted>,
        root: ObjectId,
    ) -> Result<Self, VelodError> {
        if let Some(job) = &mut job {
            job.opened = true;
        }
        let arriving = Self { control: Arc::clone(control), job: Mutex::new(job), _place: place };
        arriving.go_on(root).await?;
        Ok(arriving)
    }

    /// Begins a job where nobody gets the blob any more.
    async fn go_on(&self, root: ObjectId) -> Result<(), VelodError> {
        let mut job = self.job.lock().await;
        let jobs = self.control.velod.jobs().await?;
        let is_got = |job: &JobStatus| goes_on(job) && job.roots.iter().any(|other| other.blob == root.blob);
        if !jobs.iter().any(is_got) {
            let mut wanted = Wanted::begin(&self.control, root, None).await?;
            wanted.opened = true;
            *job = Some(wanted);
        }
        Ok(())
    }
}

impl Opened {
    /// Waits until a range can be read, for [`NEXT_PIECE`] at most.
    pub(super) async fn wait(&self, range: Range<u64>) -> Result<(), VelodError> {
        let Some(arriving) = self.arriving.as_ref().filter(|_| !range.is_empty()) else { return Ok(()) };
        let began = Instant::now();
        loop {
            match arriving.control.velod.wait(self.blob, range.clone(), ONE_WAIT).await {
                Err(VelodError::Refused(error))
                    if error.code == ErrorCode::TimedOut && began.elapsed() < NEXT_PIECE => {}
                Err(error) => return Err(error),
                Ok(()) => return check_current(&self.file, &self.blob).map_err(VelodError::Refused),
            }
            // The job may have been another reader's, who has gone.
            arriving.go_on(ObjectId { kind: ObjectKind::Blob, blob: self.blob }).await?;
        }
    }
}
