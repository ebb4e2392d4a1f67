//! Requests that take their time: waiting for a range, watching a job, verifying the store. Each ends when its caller goes away.

use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use velo_object::BlobId;
use velo_socket::{Connection, Error, ErrorCode, FrameError, JobId, JobState, Response};
use velo_store::{StoreError, Verification};

use super::Context;
use super::answer::{error, store_error};

/// How often a caller that waits is looked after.
const LOOK: Duration = Duration::from_millis(500);
/// The longest wait.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// Progress of a verification is told this often.
const VERIFY_EVERY: Duration = Duration::from_millis(200);

/// Whether nobody is there any more to be answered.
fn gone(context: &Context, connection: &Connection) -> bool {
    let mut look = [PollFd::from_borrowed_fd(connection.stream().as_fd(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let hung_up = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let polled = poll(&mut look, Some(&now)).is_ok();
    context.stopping.load(Ordering::Acquire) || (polled && look[0].revents().intersects(hung_up))
}

fn cancelled() -> Error {
    error(ErrorCode::Cancelled, "velod is stopping, or the caller has gone away")
}

/// Waits until a range is verified and readable, also of a blob that no job has begun to receive yet.
pub(super) fn wait(
    context: &Context,
    connection: &Connection,
    blob: BlobId,
    range: Range<u64>,
    timeout_ms: u64,
) -> Result<Response, Error> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(WAIT_MAX);
    loop {
        let now = Instant::now();
        let answer = context.store.wait(&blob, range.clone(), deadline.min(now + LOOK));
        let failure = match answer {
            Ok(()) => return Ok(Response::Done),
            Err(failure) => failure,
        };
        let over = Instant::now() >= deadline;
        if over || !matches!(failure, StoreError::TimedOut { .. }) {
            return Err(store_error(&failure));
        }
        if gone(context, connection) {
            return Err(cancelled());
        }
    }
}

/// Tells of a job until it has ended.
pub(super) fn watch(
    context: &Context,
    connection: &mut Connection,
    job: JobId,
    every_ms: u32,
) -> Result<(), FrameError> {
    let every = Duration::from_millis(every_ms.clamp(10, 60_000).into());
    let mut seen = 0;
    loop {
        let Some((version, status)) = context.engine.wait_change(job, seen, Duration::ZERO) else {
            let message = format!("there is no job {job}: it may be long ended");
            return connection.send_response(&Response::Error(error(ErrorCode::NotFound, message)), &[]);
        };
        seen = version;
        let ended = !matches!(status.state, JobState::Running | JobState::Waiting);
        connection.send_response(&Response::Progress(status), &[])?;
        if ended {
            return Ok(());
        }
        // Waits for the next time, or for the end of the job.
        let next = Instant::now() + every;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if gone(context, connection) {
                return connection.send_response(&Response::Error(cancelled()), &[]);
            }
            match context.engine.wait_change(job, seen, left.min(LOOK)) {
                Some((version, status)) if matches!(status.state, JobState::Running | JobState::Waiting) => {
                    seen = version;
                }
                _ => break,
            }
        }
    }
}

/// Hashes everything again and tells how far it is.
pub(super) fn verify(context: &Context, connection: &mut Connection) -> Result<(), FrameError> {
    let (mut told, mut next) = (0, Instant::now());
    let mut failed = None;
    let mut report = |connection: &mut Connection, state: &Verification, last| {
        let damaged = state.damaged[told..].iter().map(|damage| damage.blob).collect();
        told = state.damaged.len();
        let response = Response::Verifying {
            blobs: state.blobs,
            bytes: state.bytes,
            total_bytes: state.total_bytes,
            damaged,
            last,
        };
        connection.send_response(&response, &[])
    };
    let verified = context.store.verify(|state| {
        if Instant::now() < next {
            return ControlFlow::Continue(());
        }
        next = Instant::now() + VERIFY_EVERY;
        if gone(context, connection) {
            return ControlFlow::Break(());
        }
        match report(connection, state, false) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    match (failed, verified) {
        (Some(error), _) => Err(error),
        (None, Ok(state)) => report(connection, &state, true),
        (None, Err(error)) => connection.send_response(&Response::Error(store_error(&error)), &[]),
    }
}
