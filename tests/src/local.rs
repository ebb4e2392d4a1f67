//! What tests and benchmarks ask velod over its local socket.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use velo_object::{BlobId, NodeId, ObjectId, PieceSet};
use velo_socket::{Client, ClientError, JobId, JobStatus, Pull, Response};

/// Starts a job for one root.
///
/// # Errors
/// What velod has to say.
pub fn pull(socket: &mut Client, root: ObjectId, sources: Vec<NodeId>) -> Result<JobId, ClientError> {
    socket.pull(Pull { roots: vec![root], sources, ..Pull::default() })
}

/// Waits until a job has ended; how it ended.
///
/// # Errors
/// What velod has to say, or that it died.
pub fn finish(socket: &mut Client, job: JobId) -> Result<JobStatus, ClientError> {
    let mut last = None;
    for answer in socket.watch(job, Duration::from_millis(50))? {
        if let Response::Progress(status) = answer? {
            last = Some(status);
        }
    }
    last.ok_or_else(|| ClientError::Unexpected("no progress".to_owned()))
}

/// Where a job stands.
///
/// # Panics
/// If velod does not know it.
pub fn job(socket: &mut Client, job: JobId) -> JobStatus {
    let jobs = socket.jobs().expect("velod answers");
    jobs.into_iter().find(|status| status.job == job).expect("velod knows the job")
}

/// The pieces of a blob that are here.
///
/// # Panics
/// If velod does not answer.
pub fn have(socket: &mut Client, blob: BlobId) -> Option<PieceSet> {
    socket.stat_one(blob).expect("velod answers").map(|stat| stat.have)
}

/// All bytes of a blob.
///
/// # Panics
/// If it is not complete here.
pub fn read(socket: &mut Client, blob: BlobId) -> Vec<u8> {
    let (file, offset_bytes, size_bytes, complete) =
        socket.open(blob, false).unwrap_or_else(|error| panic!("{blob} does not open: {error}"));
    assert!(complete, "{blob} is not complete");
    let mut bytes = vec![0; size_bytes as usize];
    File::from(file).read_exact_at(&mut bytes, offset_bytes).expect("a readable file");
    bytes
}
