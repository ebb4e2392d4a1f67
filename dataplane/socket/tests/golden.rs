//! Version 2 of every message, byte by byte: `golden/messages.v2` never changes. What is added to the messages comes after what there is.
//!
//! `VELO_GOLDEN=write cargo test -p velo-socket --test golden` writes the file if it is missing.

use std::fmt::{Debug, Write as _};
use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};
use velo_object::{BlobId, NodeId, ObjectId, ObjectKind, PieceSet};
use velo_socket::{
    BlobStat, Caller, Error, ErrorCode, Ingested, JobState, JobStatus, Member, PROTOCOL_VERSION, Request,
    Response, SessionStatus, Status,
};

fn blob() -> BlobId {
    BlobId::of(b"golden")
}

fn node() -> NodeId {
    NodeId::from_bytes([0xa5; 32])
}

fn root() -> ObjectId {
    ObjectId { kind: ObjectKind::Tree, blob: blob() }
}

fn requests() -> Vec<Request> {
    let address = "192.0.2.1:7440".parse().expect("an address");
    vec![
        Request::Hello { version: PROTOCOL_VERSION, client: "velo".to_owned() },
        Request::Stat(vec![blob(); 2]),
        Request::List { after: Some(blob()), limit: 300 },
        Request::Resolve("0123456789".parse().expect("a prefix")),
        Request::PutBegin,
        Request::PutFiles { put: 7, count: 2 },
        Request::PutSmall { put: 7, contents: vec![b"x".to_vec(), vec![]] },
        Request::PutPacks { put: 7 },
        Request::PutCommit { put: 7, root: root() },
        Request::Ingest { expected: blob() },
        Request::Open { blob: blob(), partial: true },
        Request::Wait { blob: blob(), range: 1..1 << 40, timeout_ms: 1000 },
        Request::Pull {
            roots: vec![root()],
            tables_only: false,
            sources: vec![node()],
            priority: 200,
            sinks: vec![blob()],
            sizes: vec![None, Some(1 << 20)],
        },
        Request::AddSources { job: 9, sources: vec![node()] },
        Request::Watch { job: 9, every_ms: 250 },
        Request::Cancel { job: 9 },
        Request::Jobs,
        Request::Pin { root: root(), pinned: true },
        Request::Pins,
        Request::Remove { root: root() },
        Request::Verify,
        Request::Status,
        Request::Members(vec![Member {
            node: node(),
            name: "n".to_owned(),
            addresses: vec![address, "[2001:db8::1]:1".parse().expect("an address")],
            zone: "z".to_owned(),
        }]),
        Request::Revoked(vec![node()]),
        Request::ReloadIdentity,
        Request::Call { node: node(), payload: vec![1, 2, 3], timeout_ms: 5000 },
        Request::Serve,
        Request::Answer { call: 3, reply: Err("no".to_owned()) },
        Request::BookGet { table: "refs".to_owned(), key: b"k".to_vec() },
        Request::BookPut { table: "refs".to_owned(), key: b"k".to_vec(), value: None, expect: Some(None) },
        Request::BookScan { table: "refs".to_owned(), after: Some(b"k".to_vec()), limit: 10 },
        Request::Forget { blobs: vec![blob()] },
    ]
}

fn responses() -> Vec<Response> {
    let stat = BlobStat {
        size_bytes: Some(3 << 20),
        complete: false,
        have: PieceSet::full(3),
        pinned: true,
        stored_bytes: 1 << 21,
    };
    let error = Error { code: ErrorCode::Mismatch, message: "other bytes".to_owned() };
    let status = JobStatus {
        job: 9,
        roots: vec![root()],
        state: JobState::Failed(error.clone()),
        total_bytes: 10,
        done_bytes: 9,
        received_bytes: 8,
        bad_pieces: 1,
        duplicate_pieces: 0,
        elapsed_ms: 1234,
        sources: vec![(node(), 8)],
        missing: vec![blob()],
    };
    let session = SessionStatus {
        node: node(),
        address: "192.0.2.1:7440".parse().expect("an address"),
        up_ms: 5,
        fabric: "udp".to_owned(),
        rtt_us: Some(300),
        loss_ppm: None,
        received_bytes: 1,
        sent_bytes: 2,
        bad_pieces: 3,
    };
    let ingested = Ingested { blob: blob(), size_bytes: 6 };
    vec![
        Response::Hello { version: PROTOCOL_VERSION, node: node(), pid: 4321 },
        Response::Done,
        Response::Error(error),
        Response::Stats(vec![None, Some(stat.clone())]),
        Response::List(vec![(blob(), stat)]),
        Response::Ids(vec![blob()]),
        Response::Put(7),
        Response::Ingested(vec![ingested]),
        Response::Packs(vec![ingested]),
        Response::Opened { offset_bytes: 4096, size_bytes: 6, complete: true },
        Response::Job(9),
        Response::Progress(status.clone()),
        Response::Jobs(vec![status]),
        Response::Pins(vec![root()]),
        Response::Removed { blobs: 1, bytes: 2, kept: 3 },
        Response::Verifying { blobs: 1, bytes: 2, total_bytes: 3, damaged: vec![blob()], last: true },
        Response::Status(Box::new(Status {
            counters: vec![("c".to_owned(), 1)],
            gauges: vec![("g".to_owned(), u64::MAX)],
            sessions: vec![session],
            workers: vec!["w".to_owned()],
            notes: vec!["n".to_owned()],
        })),
        Response::Reply(b"r".to_vec()),
        Response::Incoming { call: 3, from: Caller::Member(node()), payload: b"p".to_vec() },
        Response::BookValue(Some(b"v".to_vec())),
        Response::BookEntries(vec![(b"k".to_vec(), b"v".to_vec())]),
    ]
}

/// One line for each message: its number, and its bytes in hexadecimal. Each reads back as what it was, and no part of it reads as a whole.
fn lines<T: Serialize + DeserializeOwned + Debug>(what: &str, messages: &[T]) -> String {
    let mut lines = String::new();
    for (number, message) in messages.iter().enumerate() {
        let bytes = postcard::to_stdvec(message).expect("plain data");
        assert_eq!(usize::from(bytes[0]), number, "the numbers of messages never change: {message:?}");
        let (again, rest) = postcard::take_from_bytes::<T>(&bytes).expect("it reads back");
        assert_eq!((format!("{again:?}"), rest.len()), (format!("{message:?}"), 0));
        for cut in 0..bytes.len() {
            assert!(postcard::take_from_bytes::<T>(&bytes[..cut]).is_err(), "a part of {message:?}");
        }
        writeln!(lines, "{what} {}", hex::encode(bytes)).expect("a string has room");
    }
    let next = u8::try_from(messages.len()).expect("few messages");
    let padded = [&[next][..], &[0; 200]].concat();
    assert!(postcard::take_from_bytes::<T>(&padded).is_err(), "{what} {next} is missing here");
    lines
}

#[test]
fn every_message_has_the_bytes_of_version_2() {
    let made = lines("request", &requests()) + &lines("response", &responses());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.v2");
    if std::env::var_os("VELO_GOLDEN").is_some_and(|what| what == "write") && !path.exists() {
        std::fs::write(&path, &made).expect("the folder can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for (number, (made, golden)) in made.lines().zip(golden.lines()).enumerate() {
        assert_eq!(made, golden, "message {number} has other bytes than in version 2");
    }
    assert!(made.lines().count() >= golden.lines().count(), "a message has gone");
    assert_eq!(made, golden, "a message was added: add its line to the file");
}

/// What comes first has been the same since version 1, so that both sides can say that they speak different ones.
#[test]
fn a_hello_of_version_1_is_understood() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/messages.v1");
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let hello = |what: &str| {
        let line = golden.lines().find_map(|line| line.strip_prefix(what)).expect("the first of them");
        hex::decode(line.trim()).expect("hexadecimal")
    };
    let request = postcard::from_bytes(&hello("request")).expect("it reads");
    assert!(matches!(request, Request::Hello { version: 1, .. }));
    let response = postcard::from_bytes(&hello("response")).expect("it reads");
    assert!(matches!(response, Response::Hello { version: 1, .. }));
}
