//! Frames and descriptors over socket pairs: what is whole arrives, what is not is an error that leaves nothing open.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use velo_socket::{
    Connection, Error, ErrorCode, FrameError, MAX_DESCRIPTORS, MAX_FRAME_BYTES, PROTOCOL_VERSION, Request,
    Response,
};

const SOON: Option<Duration> = Some(Duration::from_secs(10));

fn pair() -> (Connection, Connection) {
    let (a, b) = UnixStream::pair().expect("a pair");
    (Connection::new(a), Connection::new(b))
}

/// The reading end of a pipe says end of file only when every copy of this writing end is closed.
fn pipe() -> (File, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("a pipe");
    (File::from(reader), writer)
}

fn assert_closed(mut reader: File) {
    let fd = reader.as_fd();
    let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&timeout)).expect("polled");
    assert!(!polled[0].revents().is_empty(), "a descriptor was left open");
    assert_eq!(reader.read(&mut [0; 1]).expect("end of file"), 0);
}

/// Sends raw bytes with descriptors beside them.
fn send_raw(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).expect("sent");
    assert_eq!(sent, bytes.len());
}

fn frame(request: &Request) -> Vec<u8> {
    let mut bytes = postcard::to_extend(request, vec![0; 4]).expect("encoded");
    let len = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes
}

#[test]
fn descriptors_arrive_with_their_frame_and_in_order() {
    let (mut a, mut b) = pair();
    let files: Vec<File> = (0..MAX_DESCRIPTORS)
        .map(|number| {
            let mut file = tempfile::tempfile().expect("a file");
            write!(file, "{number}").expect("written");
            file
        })
        .collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let request = Request::PutFiles { put: 1, count: fds.len() as u32 };
    a.send_request(&Request::Jobs, &[]).expect("sent");
    a.send_request(&request, &fds).expect("sent");
    a.send_request(&Request::Pins, &fds[..1]).expect("sent");
    assert!(matches!(b.receive_request(SOON).expect("one"), (Request::Jobs, fds) if fds.is_empty()));
    let (second, received) = b.receive_request(SOON).expect("two");
    assert!(matches!(second, Request::PutFiles { put: 1, .. }));
    assert_eq!(received.len(), MAX_DESCRIPTORS);
    for (number, fd) in received.into_iter().enumerate() {
        use std::os::unix::fs::FileExt;
        let mut text = vec![0; number.to_string().len()];
        File::from(fd).read_exact_at(&mut text, 0).expect("read");
        assert_eq!(text, number.to_string().into_bytes());
    }
    let (third, received) = b.receive_request(SOON).expect("three");
    assert!(matches!(third, Request::Pins) && received.len() == 1);
}

#[test]
fn received_descriptors_are_not_inherited() {
    let (mut a, mut b) = pair();
    let (_reader, writer) = pipe();
    a.send_request(&Request::Jobs, &[writer.as_fd()]).expect("sent");
    let (_, fds) = b.receive_request(SOON).expect("received");
    let flags = rustix::io::fcntl_getfd(&fds[0]).expect("flags");
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn large_frames_pass_and_larger_ones_do_not() {
    let (mut a, mut b) = pair();
    // Text, because postcard copies it whole: bytes one by one take seconds unoptimised.
    let text = |bytes: usize| Response::Error(Error { code: ErrorCode::Io, message: "é".repeat(bytes / 2) });
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| a.send_response(&text(MAX_FRAME_BYTES - 100), &[]));
        match b.receive_response(SOON) {
            Ok((Response::Error(error), _)) => assert_eq!(error.message.len(), MAX_FRAME_BYTES - 100),
            other => panic!("{:?}", other.map(drop)),
        }
        sender.join().expect("no panic").expect("sent");
    });
    assert!(matches!(a.send_response(&text(MAX_FRAME_BYTES + 2), &[]), Err(FrameError::TooLarge(_))));
    a.send_response(&Response::Done, &[]).expect("the connection is still good");
    assert!(matches!(b.receive_response(SOON), Ok((Response::Done, _))));

    let (a, mut b) = UnixStream::pair().map(|(a, b)| (a, Connection::new(b))).expect("a pair");
    (&a).write_all(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes()).expect("sent");
    assert!(matches!(b.receive_request(SOON), Err(FrameError::TooLarge(_))));
}

#[test]
fn malformed_frames_close_what_came_with_them() {
    let bodies: [&[u8]; 4] = [&[], &[250, 1, 2], &[255; 40], &[frame(&Request::Jobs)[4], 0]];
    for body in bodies {
        let (a, b) = UnixStream::pair().expect("a pair");
        let mut b = Connection::new(b);
        let (reader, writer) = pipe();
        let bytes = [&(body.len() as u32).to_le_bytes()[..], body].concat();
        send_raw(&a, &bytes, &[writer.as_fd()]);
        drop(writer);
        assert!(matches!(b.receive_request(SOON), Err(FrameError::Malformed(_))), "{body:?}");
        assert_closed(reader);
    }
}

#[test]
fn too_many_descriptors_and_those_in_the_middle_are_refused_and_closed() {
    let (a, b) = UnixStream::pair().expect("a pair");
    let (mut sender, mut b) = (Connection::new(a.try_clone().expect("a clone")), Connection::new(b));
    let (reader, writer) = pipe();
    let many = vec![writer.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(sender.send_request(&Request::Jobs, &many), Err(FrameError::Descriptors)));
    send_raw(&a, &frame(&Request::Jobs), &many);
    drop(writer);
    assert!(matches!(b.receive_request(SOON), Err(FrameError::Descriptors)));
    assert_closed(reader);

    let (a, b) = UnixStream::pair().expect("a pair");
    let mut b = Connection::new(b);
    let (reader, writer) = pipe();
    let bytes = frame(&Request::Hello { version: PROTOCOL_VERSION, client: "x".repeat(100) });
    let (first, second) = bytes.split_at(20);
    (&a).write_all(first).expect("sent");
    send_raw(&a, second, &[writer.as_fd()]);
    drop(writer);
    assert!(matches!(b.receive_request(SOON), Err(FrameError::Descriptors)));
    assert_closed(reader);
}

#[test]
fn an_end_is_told_from_an_end_in_the_middle() {
    let (a, b) = UnixStream::pair().expect("a pair");
    let mut b = Connection::new(b);
    drop(a);
    assert!(matches!(b.receive_request(SOON), Err(FrameError::Closed { midway: false })));
    for cut in [2, 10] {
        let (a, b) = UnixStream::pair().expect("a pair");
        let mut b = Connection::new(b);
        let (reader, writer) = pipe();
        let bytes = frame(&Request::Hello { version: 1, client: "x".repeat(100) });
        send_raw(&a, &bytes[..cut], &[writer.as_fd()]);
        drop((a, writer));
        assert!(matches!(b.receive_request(SOON), Err(FrameError::Closed { midway: true })));
        assert_closed(reader);
    }
}

#[test]
fn whoever_stops_in_the_middle_is_not_waited_for() {
    let (a, b) = UnixStream::pair().expect("a pair");
    let mut b = Connection::new(b);
    b.set_frame_timeout(Duration::from_millis(100));
    assert!(matches!(b.receive_request(Some(Duration::from_millis(50))), Err(FrameError::Slow(_))));
    (&a).write_all(&[200, 0, 0, 0, 1]).expect("sent");
    assert!(matches!(b.receive_request(None), Err(FrameError::Slow(_))));
    // Nor is one that does not read.
    let large = Response::Error(Error { code: ErrorCode::Io, message: "x".repeat(4 << 20) });
    assert!(matches!(b.send_response(&large, &[]), Err(FrameError::Slow(_))));
}
