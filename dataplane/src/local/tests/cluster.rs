//! What two nodes do for local callers: pulls with readers waiting, calls, membership.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use velo_object::{BlobId, ObjectId, ObjectKind, PIECE_BYTES};
use velo_socket::{Caller, Client, ErrorCode, JobState, JobStatus, Pull, Response};

use super::{SOON, Velod, code, file, noise};
use crate::session::tests::authority::Authority;
use crate::session::tests::eventually;

fn pair(authority: &Authority) -> (Velod, Velod) {
    let (a, b) = (Velod::new(authority), Velod::new(authority));
    for velod in [&a, &b] {
        velod.client().members(vec![a.member(), b.member()]).expect("members");
    }
    (a, b)
}

fn put(velod: &Velod, content: &[u8]) -> ObjectId {
    let mut client = velod.client();
    let put = client.put_begin().expect("begun");
    let blob = client.put_files(put, &[file(content).as_fd()]).expect("ingested")[0].blob;
    let root = ObjectId { kind: ObjectKind::Blob, blob };
    client.put_packs(put).expect("packs");
    client.put_commit(put, root, None).expect("committed");
    root
}

fn ended(client: &mut Client, job: u64) -> JobStatus {
    match client.watch(job, Duration::from_millis(20)).expect("a stream").last() {
        Some(Ok(Response::Progress(status))) => status,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pull_with_a_reader_that_waits() {
    let (a, b) = pair(&Authority::new());
    let content = noise(5 * PIECE_BYTES as usize + 77, 3);
    let root = put(&a, &content);
    let mut client = b.client();
    // Nobody to ask yet: the job waits, and so does a reader.
    let pull = Pull { roots: vec![root], ..Pull::default() };
    let job = client.pull(pull).expect("a job");
    let waiting = {
        let mut waiter = b.client();
        std::thread::spawn(move || waiter.wait(root.blob, 0..10, SOON))
    };
    client.add_sources(job, vec![a.node]).expect("added");
    waiting.join().expect("no panic").expect("the range came");
    let mut reader = b.client().reader(root.blob, true).expect("a reader");
    let mut read = Vec::new();
    reader.read_to_end(&mut read).expect("read");
    assert!(read == content);
    let status = ended(&mut client, job);
    assert_eq!(status.state, JobState::Complete, "{status:?}");
    assert_eq!(status.received_bytes, content.len() as u64);
    let up = client.status().expect("a status").sessions;
    assert_eq!((up.len(), up[0].node), (1, a.node));
    // The outboard comes from it, too.
    let received = up[0].received_bytes - content.len() as u64;
    assert!(received < 1000, "{received}");
    assert!(client.jobs().expect("jobs").iter().any(|status| status.job == job));
    assert!(!client.stat_one(root.blob).expect("a stat").expect("there").pinned, "only cache");
}

#[test]
fn what_is_put_reaches_who_waits_for_it() {
    let (a, b) = pair(&Authority::new());
    let content = noise(3 * PIECE_BYTES as usize, 8);
    let root = ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(&content) };
    let mut client = b.client();
    let job =
        client.pull(Pull { roots: vec![root], sources: vec![a.node], ..Pull::default() }).expect("a job");
    // The source has been asked, and has nothing of it.
    eventually("it waits", || {
        let jobs = client.jobs().expect("jobs");
        jobs.iter().any(|status| status.job == job && status.state == JobState::Waiting)
    });
    assert_eq!(put(&a, &content), root);
    assert_eq!(ended(&mut client, job).state, JobState::Complete);
}

#[test]
fn a_sink_receives_and_nothing_is_kept() {
    let (a, b) = pair(&Authority::new());
    let content = noise(2 * PIECE_BYTES as usize + 1, 4);
    let root = put(&a, &content);
    let sink = file(b"");
    let mut client = b.client();
    let pull = Pull {
        roots: vec![root],
        sources: vec![a.node],
        sinks: vec![(root.blob, sink.as_fd())],
        sizes: vec![Some(content.len() as u64)],
        ..Pull::default()
    };
    let job = client.pull(pull).expect("a job");
    assert_eq!(ended(&mut client, job).state, JobState::Complete);
    let mut received = vec![0; content.len()];
    sink.read_exact_at(&mut received, 0).expect("read");
    assert!(received == content);
    assert_eq!(code(client.open(root.blob, false)), ErrorCode::NotFound);
}

#[test]
fn a_job_into_a_sink_ends_with_its_caller() {
    let (a, b) = pair(&Authority::new());
    drop(a);
    let missing = ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(b"nobody has it") };
    let sink = file(b"");
    let mut caller = b.client();
    let sinks = vec![(missing.blob, sink.as_fd())];
    let job = caller.pull(Pull { roots: vec![missing], sinks, ..Pull::default() }).expect("a job");
    let kept = caller.pull(Pull { roots: vec![missing], ..Pull::default() }).expect("a job");
    drop(caller);
    let mut client = b.client();
    assert_eq!(ended(&mut client, job).state, JobState::Cancelled);
    let kept = client.jobs().expect("jobs").into_iter().find(|status| status.job == kept).expect("there");
    assert!(matches!(kept.state, JobState::Running | JobState::Waiting), "{kept:?}");
}

#[test]
fn waits_end_with_time_with_the_caller_and_with_velod() {
    let (a, b) = pair(&Authority::new());
    drop(a);
    let mut client = b.client();
    let missing = ObjectId { kind: ObjectKind::Blob, blob: BlobId::of(b"nobody has it") };
    let job = client.pull(Pull { roots: vec![missing], ..Pull::default() }).expect("a job");
    let begun = Instant::now();
    client.wait(missing.blob, 0..1, Duration::from_millis(200)).expect_err("it never comes");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    client.cancel(job).expect("cancelled");
    assert_eq!(ended(&mut client, job).state, JobState::Cancelled);

    client.pull(Pull { roots: vec![missing], ..Pull::default() }).expect("a job");
    let mut waiter = b.client();
    let waiting = std::thread::spawn(move || waiter.wait(missing.blob, 0..1, 10 * SOON));
    std::thread::sleep(Duration::from_millis(100));
    let begun = Instant::now();
    drop(b);
    assert!(begun.elapsed() < Duration::from_secs(10), "velod stops though somebody waits");
    waiting.join().expect("no panic").expect_err("velod has gone");
}

#[test]
fn control_calls_control() {
    let (a, b) = pair(&Authority::new());
    let mut caller = a.client();
    let nobody = caller.call_node(b.node, vec![1], SOON).expect_err("nobody serves");
    assert_eq!(nobody.code(), Some(ErrorCode::Denied), "{nobody}");
    let (mut calls, answers) = b.client().serve().expect("serving");
    let serving = std::thread::spawn(move || {
        while let Ok(call) = calls.next_call() {
            let reply = match call.payload[..] {
                [0] => Err("no".to_owned()),
                _ => Ok([&call.payload[..], &[9]].concat()),
            };
            if let Caller::Member(_) = call.from {
                answers.answer(call.call, reply).expect("answered");
            }
        }
    });
    eventually("it serves", || caller.call_node(b.node, vec![1], SOON).is_ok());
    assert_eq!(caller.call_node(b.node, vec![4], SOON).expect("a reply"), [4, 9]);
    assert_eq!(code(caller.call_node(b.node, vec![0], SOON)), ErrorCode::Denied);
    // Its own velod's calls come the same way.
    assert_eq!(b.client().call_node(b.node, vec![5], SOON).expect("a reply"), [5, 9]);
    // A second one that serves takes the place of the first.
    let (mut calls, answers) = b.client().serve().expect("serving");
    serving.join().expect("the first one's connection has ended");
    let second = std::thread::spawn(move || {
        let call = calls.next_call().expect("a call");
        answers.answer(call.call, Ok(vec![2])).expect("answered");
        // Then it dies, with the next call unanswered.
        calls.next_call().expect("another call");
    });
    assert_eq!(caller.call_node(b.node, vec![1], SOON).expect("a reply"), [2]);
    assert_eq!(code(caller.call_node(b.node, vec![1], SOON)), ErrorCode::Denied);
    second.join().expect("no panic");
}

#[test]
fn a_revoked_node_is_cut_off_through_the_socket() {
    let (a, b) = pair(&Authority::new());
    let root = put(&a, &noise(1000, 1));
    let mut client = b.client();
    let pull = |sources| Pull { roots: vec![root], sources, ..Pull::default() };
    a.client().revoked(vec![b.node]).expect("told");
    let job = client.pull(pull(vec![a.node])).expect("a job");
    std::thread::sleep(Duration::from_millis(300));
    assert!(client.status().expect("a status").sessions.is_empty());
    assert_eq!(client.stat_one(root.blob).expect("a stat"), None);
    a.client().revoked(Vec::new()).expect("told");
    assert_eq!(ended(&mut client, job).state, JobState::Complete, "pardoned");
    a.client().reload_identity().expect("reloaded");
}
