//! Where the engine writes the state of its jobs, and everybody reads it without asking the engine.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use velo_socket::{JobId, JobState, JobStatus};

/// The last published state of each job.
#[derive(Debug, Default)]
pub(crate) struct Board {
    jobs: Mutex<BTreeMap<JobId, Posted>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Posted {
    status: JobStatus,
    version: u64,
}

impl Board {
    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobId, Posted>> {
        self.jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Publishes a job's state.
    pub(crate) fn post(&self, status: JobStatus) {
        let mut jobs = self.jobs();
        let version = jobs.get(&status.job).map_or(1, |posted| posted.version + 1);
        jobs.insert(status.job, Posted { status, version });
        drop(jobs);
        self.changed.notify_all();
    }

    /// Forgets a job.
    pub(crate) fn remove(&self, job: JobId) {
        self.jobs().remove(&job);
        self.changed.notify_all();
    }

    /// A job's state.
    pub(crate) fn get(&self, job: JobId) -> Option<JobStatus> {
        self.jobs().get(&job).map(|posted| posted.status.clone())
    }

    /// All jobs, oldest first.
    pub(crate) fn all(&self) -> Vec<JobStatus> {
        self.jobs().values().map(|posted| posted.status.clone()).collect()
    }

    /// Waits until the state is newer than `seen`, the job has ended, or the time is over.
    pub(crate) fn wait(&self, job: JobId, seen: u64, timeout: Duration) -> Option<(u64, JobStatus)> {
        let deadline = Instant::now() + timeout;
        let mut jobs = self.jobs();
        loop {
            let posted = jobs.get(&job)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let going_on = matches!(posted.status.state, JobState::Running | JobState::Waiting);
            if posted.version > seen || !going_on || left.is_zero() {
                return Some((posted.version, posted.status.clone()));
            }
            jobs =
                self.changed.wait_timeout(jobs, left).map_or_else(|e| e.into_inner().0, |(guard, _)| guard);
        }
    }
}
