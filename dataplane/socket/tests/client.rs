//! The client against a server of a few lines: errors that name what to do, streams, readers, calls.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use velo_object::{BlobId, NodeId, PIECE_BYTES};
use velo_socket::{
    Caller, Client, ClientError, Connection, Error, ErrorCode, JobState, JobStatus, PROTOCOL_VERSION,
    Request, Response,
};

fn hello() -> Response {
    Response::Hello { version: PROTOCOL_VERSION, node: NodeId::from_bytes([7; 32]), pid: 42 }
}

/// A client, and a server that answers each request with what `answer` gives.
fn served(mut answer: impl FnMut(Request, &mut Connection) + Send + 'static) -> (Client, JoinHandle<()>) {
    let (here, there) = UnixStream::pair().expect("a pair");
    let server = std::thread::spawn(move || {
        let mut connection = Connection::new(there);
        while let Ok((request, _)) = connection.receive_request(None) {
            match request {
                Request::Hello { .. } => connection.send_response(&hello(), &[]).expect("sent"),
                request => answer(request, &mut connection),
            }
        }
    });
    (Client::over(here, "test").expect("hello"), server)
}

fn status(job: u64, state: JobState) -> JobStatus {
    JobStatus::begun(job, Vec::new(), state, Vec::new())
}

#[test]
fn who_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("velod.sock");
    let error = Client::connect(&path).expect_err("nobody");
    assert!(error.is_disconnected());
    let text = error.to_string();
    assert!(text.contains("velod is not running: no socket at") && text.contains("velo up"), "{text}");
    drop(UnixListener::bind(&path).expect("a socket"));
    let error = Client::connect(&path).expect_err("a stale one");
    assert!(matches!(error, ClientError::NotRunning { stale: true, .. }), "{error}");
}

#[test]
fn another_version_is_refused() {
    let (here, there) = UnixStream::pair().expect("a pair");
    let server = std::thread::spawn(move || {
        let mut connection = Connection::new(there);
        connection.receive_request(None).expect("hello");
        let other = Response::Hello { version: 99, node: NodeId::from_bytes([0; 32]), pid: 1 };
        connection.send_response(&other, &[]).expect("sent");
    });
    let error = Client::over(here, "test").expect_err("another version");
    assert!(matches!(error, ClientError::Version { velod: 99, own: PROTOCOL_VERSION }));
    server.join().expect("no panic");
}

#[test]
fn errors_and_wrong_answers_are_told_apart() {
    let (mut client, _server) = served(|request, connection| {
        let answer = match request {
            Request::Jobs => Response::Done,
            _ => Response::Error(Error { code: ErrorCode::Full, message: "no room".to_owned() }),
        };
        connection.send_response(&answer, &[]).expect("sent");
    });
    assert_eq!((client.node(), client.pid()), (NodeId::from_bytes([7; 32]), 42));
    let full = client.pins().expect_err("an error");
    assert_eq!((full.code(), full.to_string().as_str()), (Some(ErrorCode::Full), "no room"));
    assert!(matches!(client.jobs(), Err(ClientError::Unexpected(what)) if what == "Done"));
    // After an error the connection goes on.
    assert_eq!(client.pins().expect_err("an error").code(), Some(ErrorCode::Full));
}

#[test]
fn a_velod_that_dies_is_noticed_and_one_that_hangs_is_given_up() {
    let (mut client, _server) = served(|request, connection| {
        if matches!(request, Request::Jobs) {
            connection.stream().shutdown(std::net::Shutdown::Both).expect("closed");
        }
    });
    client.set_timeout(Some(Duration::from_millis(50)));
    assert!(client.status().expect_err("no answer").is_disconnected());
    assert!(client.jobs().expect_err("closed").is_disconnected());
}

#[test]
fn a_watch_ends_with_its_job() {
    let (mut client, _server) = served(|request, connection| {
        let Request::Watch { job, .. } = request else { return };
        for state in [JobState::Running, JobState::Waiting, JobState::Running, JobState::Complete] {
            connection.send_response(&Response::Progress(status(job, state)), &[]).expect("sent");
        }
    });
    let states: Vec<JobState> = client
        .watch(3, Duration::from_millis(10))
        .expect("a stream")
        .map(|answer| match answer.expect("progress") {
            Response::Progress(status) => status.state,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states.len(), 4);
    assert_eq!(states.last(), Some(&JobState::Complete));
    // The next question gets its own answers.
    assert_eq!(client.watch(4, Duration::from_millis(10)).expect("a stream").count(), 4);
}

#[test]
fn a_reader_waits_for_each_piece_once() {
    let content: Vec<u8> = (0..2 * PIECE_BYTES + 100).map(|at| (at % 253) as u8).collect();
    // With a name, as the file of a transfer has.
    let named = tempfile::NamedTempFile::new().expect("a file");
    let mut file = named.reopen().expect("a descriptor");
    file.write_all(&[0xee; 10]).expect("written");
    let (waits, waited) = std::sync::mpsc::channel();
    let (late, written) = (content.clone(), file.try_clone().expect("a clone"));
    let mut written: File = written;
    let (client, _server) = served(move |request, connection| match request {
        Request::Open { partial: true, .. } => {
            let opened =
                Response::Opened { offset_bytes: 10, size_bytes: late.len() as u64, complete: false };
            connection.send_response(&opened, &[file.as_fd()]).expect("sent");
        }
        Request::Wait { range, .. } => {
            // It arrives only when it is waited for.
            written.seek(SeekFrom::Start(10 + range.start)).expect("a place");
            written.write_all(&late[range.start as usize..range.end as usize]).expect("written");
            waits.send(range).expect("counted");
            connection.send_response(&Response::Done, &[]).expect("sent");
        }
        other => panic!("{other:?}"),
    });
    let mut reader = client.reader(BlobId::of(&content), true).expect("a reader");
    assert_eq!(reader.size_bytes(), content.len() as u64);
    reader.seek(SeekFrom::End(-50)).expect("a place");
    let mut end = Vec::new();
    reader.read_to_end(&mut end).expect("read");
    assert_eq!(end, content[content.len() - 50..]);
    reader.seek(SeekFrom::Start(0)).expect("a place");
    let mut all = Vec::new();
    reader.read_to_end(&mut all).expect("read");
    assert_eq!(all, content);
    let waited: Vec<_> = waited.try_iter().collect();
    assert_eq!(waited.len(), 3, "{waited:?}");
    assert_eq!(waited[0], 2 * PIECE_BYTES..2 * PIECE_BYTES + 100);
    assert!(reader.seek(SeekFrom::Current(-(1 << 40))).is_err());
    assert_eq!(reader.read_at(&mut [0; 10], u64::MAX).expect("the end"), 0);
}

#[test]
fn a_reader_does_not_read_what_gave_way_to_another_transfer() {
    let named = tempfile::NamedTempFile::new().expect("a file");
    named.as_file().set_len(3 * PIECE_BYTES).expect("sparse");
    let file = named.reopen().expect("a descriptor");
    let mut named = Some(named);
    let (client, _server) = served(move |request, connection| match request {
        Request::Open { .. } => {
            let opened = Response::Opened { offset_bytes: 0, size_bytes: 3 * PIECE_BYTES, complete: false };
            connection.send_response(&opened, &[file.as_fd()]).expect("sent");
        }
        Request::Wait { range, .. } => {
            if range.start > 0 {
                drop(named.take());
            }
            connection.send_response(&Response::Done, &[]).expect("sent");
        }
        other => panic!("{other:?}"),
    });
    let mut reader = client.reader(BlobId::of(b"content"), true).expect("a reader");
    reader.ready(0..PIECE_BYTES).expect("still there");
    let error = reader.ready(0..2 * PIECE_BYTES).expect_err("it has no name any more");
    assert_eq!(error.code(), Some(ErrorCode::Conflict));
    assert!(reader.read_at(&mut [0; 10], 2 * PIECE_BYTES).is_err());
}

#[test]
fn calls_are_answered_in_any_order() {
    let (client, server) = served(|request, connection| {
        if !matches!(request, Request::Serve) {
            panic!("{request:?}");
        }
        connection.send_response(&Response::Done, &[]).expect("sent");
        let from = Caller::Member(NodeId::from_bytes([1; 32]));
        for call in [1, 2] {
            let incoming = Response::Incoming { call, from, payload: vec![call as u8] };
            connection.send_response(&incoming, &[]).expect("sent");
        }
        for (call, expected) in [(2, Ok(vec![2])), (1, Err("no".to_owned()))] {
            match connection.receive_request(None).expect("an answer").0 {
                Request::Answer { call: answered, reply } => assert_eq!((answered, reply), (call, expected)),
                other => panic!("{other:?}"),
            }
        }
    });
    let (mut calls, answers) = client.serve().expect("serving");
    let (first, second) = (calls.next_call().expect("one"), calls.next_call().expect("two"));
    assert_eq!((first.payload, second.payload.clone()), (vec![1], vec![2]));
    answers.answer(second.call, Ok(second.payload)).expect("answered");
    std::thread::spawn(move || answers.answer(first.call, Err("no".to_owned())))
        .join()
        .expect("no panic")
        .expect("answered");
    let close = calls.closer().expect("a closer");
    close();
    assert!(calls.next_call().is_err());
    server.join().expect("the server saw both answers");
}
