//! Follows what velod is doing for us, and stops it when the user interrupts.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use velo_object::BlobId;
use velo_socket::{Client, JobId, JobState, JobStatus, Response};

use crate::exit::Failure;
use crate::interrupt::Interrupt;

/// How often a job tells where it stands.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// How long a job waits for a node that has what is missing, unless the user says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What ends the wait for a job before its own end.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Whether the user wants it to end.
    pub interrupt: &'a Interrupt,
    /// How long it waits for a node that has what is missing.
    pub patience: Duration,
}

/// Follows a job to its end; `step` sees where it stands. An interrupt cancels it, and so does a wait in which no node that
/// can be reached had what is missing: what has arrived stays.
pub fn follow(
    socket: &Path,
    job: JobId,
    limits: Limits<'_>,
    mut step: impl FnMut(&JobStatus),
) -> anyhow::Result<JobStatus> {
    let Limits { interrupt, patience } = limits;
    let mut client = Client::connect(socket)?;
    let mut moved = Instant::now();
    for answer in client.watch(job, PROGRESS_EVERY)? {
        let Response::Progress(status) = answer? else { continue };
        step(&status);
        match status.state {
            JobState::Complete => return Ok(status),
            JobState::Failed(error) => return Err(error.into()),
            JobState::Cancelled => {
                interrupt.check()?;
                bail!("job {job} was cancelled by somebody else");
            }
            JobState::Running => moved = Instant::now(),
            JobState::Waiting => {}
        }
        if moved.elapsed() >= patience {
            Client::connect(socket)?.cancel(job)?;
            let missing =
                status.missing.first().map_or_else(String::new, |blob| format!(" ({blob} is missing)"));
            return Err(Failure::unreachable(format!(
                "no node that can be reached has the rest{missing}: what has arrived stays; --wait waits longer"
            )));
        }
        if interrupt.is_set() {
            // The stream of answers goes on over the first connection, so the word is said over another.
            Client::connect(socket)?.cancel(job)?;
            return Err(Failure::interrupted());
        }
    }
    Err(Failure::unreachable(format!(
        "velod ended before job {job} did: run the same command again to go on"
    )))
}

/// Hashes all of the store again; `step` sees bytes done and bytes in all. Gives blobs, bytes and the damaged ones.
pub fn verify(
    socket: &Path,
    interrupt: &Interrupt,
    mut step: impl FnMut(u64, u64),
) -> anyhow::Result<(u64, u64, Vec<BlobId>)> {
    let mut client = Client::connect(socket)?;
    let mut all = Vec::new();
    for answer in client.verify()? {
        let Response::Verifying { blobs, bytes, total_bytes, damaged, last } = answer? else { continue };
        all.extend(damaged);
        step(bytes, total_bytes);
        if last {
            return Ok((blobs, bytes, all));
        }
        interrupt.check()?;
    }
    Err(Failure::unreachable("velod ended before the store was verified: run `velo verify` again"))
}
