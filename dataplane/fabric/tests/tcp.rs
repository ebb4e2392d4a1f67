//! Two `tcp` fabrics over loopback: that bytes are right, and that everything that goes wrong ends as it should.

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::{
    A, MIB, PROTECTIONS, Pair, Protection, Source, closed, ended, noise, options, protect, sockets,
};
use velo_fabric::tcp::{READS_PER_PATH, Tcp, TcpOptions, TcpPath};
use velo_fabric::{Completion, Fabric, PathError, ProtocolError, Read, ReadError, What};
use velo_object::BlobId;

#[test]
fn both_sides_read_many_pieces_in_any_order() {
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let (from_b, from_a) = (noise(1, 20 * MIB + 12345), noise(2, 5 * MIB + 1));
        let blob_b = pair.b_source.add(&from_b, &[]);
        let blob_a = pair.a_source.add(&from_a, &[]);
        pair.connect(7, "127.0.0.1:0");
        for i in [20, 3, 0, 19, 7, 1, 12, 11, 10, 2, 4, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18u64] {
            let read = pair.read(i, blob_b, i * MIB as u64, MIB as u32);
            pair.a.post_read(7, read).unwrap();
        }
        for i in 0..6 {
            let read = pair.read(100 + i, blob_a, i * MIB as u64, MIB as u32);
            pair.b.post_read(7, read).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 21 && pair.b_done.len() == 6);
        for (i, expected) in from_b.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.a_done, i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "{protection:?}: piece {i} differs");
        }
        for (i, expected) in from_a.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.b_done, 100 + i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "{protection:?}: piece {i} of the other direction differs");
        }
        let (a, b) = (pair.a.counters(), pair.b.counters());
        assert_eq!((a.reads_posted, a.reads_done, a.reads_failed, a.reads_served), (21, 21, 0, 6));
        assert_eq!((b.reads_posted, b.reads_done, b.reads_failed, b.reads_served), (6, 6, 0, 21));
        assert_eq!((a.payload_bytes_in, b.payload_bytes_out), (from_b.len() as u64, from_b.len() as u64));
        assert_eq!((a.bytes_in, a.bytes_out), (b.bytes_out, b.bytes_in));
        assert_eq!(pair.b_source.sent.load(Ordering::Relaxed), from_b.len() as u64);
        assert_eq!(pair.b_source.leases(), 0, "leases are given back");
    }
}

#[test]
fn ipv6_and_outboards() {
    let mut pair = Pair::new(Protection::Aes256);
    let blob = pair.b_source.add(b"content", &noise(3, 5000));
    pair.connect(1, "[::1]:0");
    let outboard = |tag, offset_bytes, len, pair: &Pair| Read {
        what: What::Outboard,
        ..pair.read(tag, blob, offset_bytes, len)
    };
    pair.a.post_read(1, outboard(1, 0, 1 << 20, &pair)).unwrap();
    pair.a.post_read(1, outboard(2, 4000, 500, &pair)).unwrap();
    pair.a.post_read(1, pair.read(3, blob, 2, 1)).unwrap();
    pair.drive(|pair| pair.a_done.len() == 3);
    assert!(ended(&pair.a_done, 1) == Some((&noise(3, 5000)[..], Ok(5000))));
    assert!(ended(&pair.a_done, 2) == Some((&noise(3, 5000)[4000..4500], Ok(500))));
    assert_eq!(ended(&pair.a_done, 3), Some((&b"n"[..], Ok(1))));
}

#[test]
fn what_is_not_there_is_refused_and_the_path_goes_on() {
    for protection in [Protection::Plain, Protection::Aes128] {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(4, 1000), &[]);
        pair.connect(1, "127.0.0.1:0");
        pair.a.post_read(1, pair.read(1, BlobId::of(b"nobody has it"), 0, 100)).unwrap();
        pair.a.post_read(1, pair.read(2, blob, 1000, 100)).unwrap();
        pair.a.post_read(1, pair.read(3, blob, 900, 4096)).unwrap();
        // Its outboard is empty, so that the source gives nothing.
        pair.a.post_read(1, Read { what: What::Outboard, ..pair.read(4, blob, 0, 1) }).unwrap();
        pair.drive(|pair| pair.a_done.len() == 4);
        assert_eq!(ended(&pair.a_done, 1).unwrap().1, Err(ReadError::NotHere));
        assert_eq!(ended(&pair.a_done, 2).unwrap().1, Err(ReadError::Refused));
        assert!(ended(&pair.a_done, 3) == Some((&noise(4, 1000)[900..], Ok(100))));
        assert_eq!(ended(&pair.a_done, 4).unwrap().1, Err(ReadError::NotHere));
        assert_eq!((pair.a.counters().reads_failed, pair.b.counters().reads_refused), (3, 3));
    }
}

#[test]
fn a_read_that_cannot_be_posted_comes_back() {
    let mut pair = Pair::new(Protection::Plain);
    let blob = pair.b_source.add(&noise(5, 1000), &[]);
    assert!(pair.a.post_read(1, pair.read(1, blob, 0, 1)).is_err(), "no such path");
    pair.connect(1, "127.0.0.1:0");
    for (tag, offset, len) in [(1, 0, 0), (2, 0, MIB as u32 + 1), (3, u64::MAX, 2)] {
        assert!(pair.a.post_read(1, pair.read(tag, blob, offset, len)).is_err(), "{tag}");
    }
    for tag in 0..READS_PER_PATH as u64 {
        pair.a.post_read(1, pair.read(tag, blob, 0, 1)).unwrap();
    }
    assert!(pair.a.post_read(1, pair.read(1000, blob, 0, 1)).is_err(), "too many");
    pair.drive(|pair| pair.a_done.len() == READS_PER_PATH);
    pair.a.post_read(1, pair.read(5, blob, 0, 1)).unwrap();
    assert!(pair.a.post_read(1, pair.read(5, blob, 0, 1)).is_err(), "the tag is in use");
    pair.a.close(1);
    assert!(pair.a.post_read(1, pair.read(6, blob, 0, 1)).is_err(), "the path is closing");
}

#[test]
fn a_cancelled_read_ends_at_once_and_the_others_are_untouched() {
    for protection in [Protection::Plain, Protection::Aes128] {
        let mut pair = Pair::with(protection, TcpOptions { turn_bytes: 100_000, ..options() });
        let content = noise(6, 8 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1, "127.0.0.1:0");
        for i in 0..8 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        // In the middle of the first payload.
        pair.drive(|pair| pair.a.counters().bytes_in > 150_000);
        assert!(pair.a_done.is_empty());
        pair.a.cancel(1, 0);
        pair.a.cancel(1, 0);
        pair.a.cancel(1, 6);
        pair.a.cancel(1, 99);
        // The tag is free only when the peer has answered.
        assert!(pair.a.post_read(1, pair.read(6, blob, 0, 1)).is_err());
        pair.a.poll(Instant::now(), &mut pair.a_done);
        assert_eq!(ended(&pair.a_done, 0).unwrap().1, Err(ReadError::Cancelled));
        assert_eq!(ended(&pair.a_done, 6).unwrap().1, Err(ReadError::Cancelled));
        pair.drive(|pair| pair.a_done.len() == 8);
        for i in [1, 2, 3, 4, 5, 7] {
            let (bytes, result) = ended(&pair.a_done, i).unwrap();
            assert_eq!(result, Ok(MIB as u32));
            assert!(bytes == &content[i as usize * MIB..][..MIB], "{protection:?}: piece {i} differs");
        }
        assert_eq!(pair.b_source.asked.load(Ordering::Relaxed), 7, "what was cancelled early is not read");
        // And what was cancelled may be asked again.
        pair.a.post_read(1, pair.read(6, blob, 5, 6)).unwrap();
        pair.drive(|pair| pair.a_done.len() == 9);
        assert_eq!(pair.a.counters().protocol_errors + pair.b.counters().protocol_errors, 0);
    }
}

/// A fabric with one path to a bare socket.
fn against_a_socket() -> (Tcp, std::net::TcpStream, Arc<Source>, Pair) {
    let pair = Pair::new(Protection::Plain);
    let source = Arc::new(Source::default());
    let (bare, stream) = sockets("127.0.0.1:0");
    let mut tcp = Tcp::new(options(), source.clone()).unwrap();
    tcp.add_path(TcpPath { id: 1, peer: A, stream, tls: None }).unwrap();
    (tcp, bare, source, pair)
}

fn drive(tcp: &mut Tcp, done: &mut Vec<Completion>, mut until: impl FnMut(&[Completion]) -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !until(done) {
        assert!(Instant::now() < end, "nothing came of it: {:?}", tcp.counters());
        if tcp.poll(Instant::now(), done) == 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

const GREETING: [u8; 16] = *b"\x01\x01\0\0\0\0\0\0VELODATA";

#[test]
fn a_peer_that_stalls_is_dropped_and_its_reads_come_back() {
    let (mut tcp, mut bare, _, pair) = against_a_socket();
    let mut done = Vec::new();
    // The time is made up, so that it stands still while the kernel takes as long as it likes.
    let mut now = Instant::now();
    let receive = |tcp: &mut Tcp, done: &mut Vec<Completion>, now: Instant, bytes_in: u64| {
        let end = Instant::now() + Duration::from_secs(60);
        while tcp.counters().bytes_in < bytes_in {
            assert!(Instant::now() < end, "what was sent does not come: {:?}", tcp.counters());
            tcp.poll(now, done);
        }
        // Until nothing more is readable.
        while tcp.poll(now, done) > 0 {}
    };
    bare.write_all(&GREETING).unwrap();
    receive(&mut tcp, &mut done, now, 16);
    // Idle for longer than the timeout: that is no stall.
    now += Duration::from_millis(1000);
    receive(&mut tcp, &mut done, now, 16);
    assert!(done.is_empty());

    tcp.post_read(1, pair.read(1, BlobId::of(b""), 0, 1000)).unwrap();
    tcp.post_read(1, pair.read(2, BlobId::of(b""), 0, 1000)).unwrap();
    // It begins to answer, and a byte every now and then is progress.
    bare.write_all(b"\x03\0\0\0\xe8\x03\0\0\x01\0\0\0\0\0\0\0").unwrap();
    receive(&mut tcp, &mut done, now, 32);
    for more in 1..=9 {
        now += Duration::from_millis(199);
        bare.write_all(b"x").unwrap();
        receive(&mut tcp, &mut done, now, 32 + more);
        assert!(done.is_empty(), "a peer that progresses is not dropped");
    }
    assert!(tcp.next_deadline().is_some_and(|at| at <= now + Duration::from_millis(200)));
    receive(&mut tcp, &mut done, now + Duration::from_millis(199), 41);
    assert!(done.is_empty(), "not before its time");
    // Paths are looked through every sixteenth of the timeout.
    receive(&mut tcp, &mut done, now + Duration::from_millis(213), 41);
    assert_eq!(ended(&done, 1).unwrap().1, Err(ReadError::Stalled));
    assert_eq!(ended(&done, 2).unwrap().1, Err(ReadError::Stalled));
    assert!(matches!(closed(&done), Some(PathError::Stalled { ms: 200 })));
    assert_eq!((tcp.counters().stalls, tcp.paths()), (1, 0));
    assert!(matches!(done.last(), Some(Completion::PathClosed { path: 1, peer: A, .. })), "the last word");
}

#[test]
fn a_peer_that_closes_in_mid_payload_gives_the_read_back() {
    let (mut tcp, mut bare, _, pair) = against_a_socket();
    let mut done = Vec::new();
    tcp.post_read(1, pair.read(1, BlobId::of(b""), 0, 1000)).unwrap();
    bare.write_all(&GREETING).unwrap();
    bare.write_all(b"\x03\0\0\0\xe8\x03\0\0\x01\0\0\0\0\0\0\0some of it").unwrap();
    bare.shutdown(std::net::Shutdown::Write).unwrap();
    drive(&mut tcp, &mut done, |done| closed(done).is_some());
    assert_eq!(ended(&done, 1).unwrap().1, Err(ReadError::PathClosed));
    assert!(matches!(closed(&done), Some(PathError::Peer)));
    assert_eq!(pair.pool.counters().in_use, 1, "only the buffer in our hands");
    done.clear();
    assert_eq!(pair.pool.counters().in_use, 0);
}

#[test]
fn garbage_closes_the_path_with_its_reason() {
    let read = |len: u32, offset: u64| {
        let mut frame = vec![2, 0, 0, 0];
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(&[9; 8 + 32]);
        frame.extend_from_slice(&offset.to_le_bytes());
        frame
    };
    let field = |frame, field| ProtocolError::Field { frame, field };
    let data = |len: u32, tag: u64| [&[3, 0, 0, 0], &len.to_le_bytes()[..], &tag.to_le_bytes()].concat();
    let cases: Vec<(bool, Vec<u8>, ProtocolError)> = vec![
        (false, b"GET / HTTP/1.1\r\n\r\n".to_vec(), ProtocolError::Kind(b'G')),
        (false, b"\x01\x02\0\0\0\0\0\0VELODATA".to_vec(), ProtocolError::Version(2)),
        (false, b"\x01\x01\0\0\0\0\0\0VELODAT!".to_vec(), ProtocolError::NoGreeting),
        (false, read(1, 0), ProtocolError::NoGreeting),
        (true, GREETING.to_vec(), ProtocolError::SecondGreeting),
        (true, vec![0; 16], ProtocolError::Kind(0)),
        (true, vec![0xff; 16], ProtocolError::Kind(0xff)),
        (true, read(0, 0), field("read", "length")),
        (true, read(MIB as u32 + 1, 0), field("read", "length")),
        (true, read(2, u64::MAX - 1), field("read", "offset")),
        (true, [&[2, 2], &read(1, 0)[2..]].concat(), field("read", "detail")),
        (true, [&[2, 0, 1], &read(1, 0)[3..]].concat(), field("read", "zero")),
        (true, [&[5, 0, 0, 0, 1], &[0; 11][..]].concat(), field("cancel", "length")),
        (true, [&[4, 3], &[0; 14][..]].concat(), field("refuse", "detail")),
        (true, data(1, 77), ProtocolError::Unasked { tag: 77 }),
        (true, data(1001, 5), ProtocolError::TooLong { tag: 5, len: 1001, asked: 1000 }),
        (true, data(u32::MAX, 5), field("data", "length")),
        (true, read(1, 0).repeat(READS_PER_PATH + 1), ProtocolError::TooManyReads { limit: READS_PER_PATH }),
    ];
    for (greet, bytes, expected) in cases {
        let (mut tcp, mut bare, source, pair) = against_a_socket();
        let mut done = Vec::new();
        tcp.post_read(1, pair.read(5, BlobId::of(b""), 0, 1000)).unwrap();
        if greet {
            bare.write_all(&GREETING).unwrap();
        }
        bare.write_all(&bytes).unwrap();
        // All of it is to come in one turn, so that nothing has been answered meanwhile.
        std::thread::sleep(Duration::from_millis(10));
        drive(&mut tcp, &mut done, |done| closed(done).is_some());
        match closed(&done) {
            Some(PathError::Protocol(error)) => assert_eq!(*error, expected),
            other => panic!("{other:?} instead of {expected:?}"),
        }
        assert_eq!(ended(&done, 5).unwrap().1, Err(ReadError::PathClosed));
        assert_eq!(tcp.counters().protocol_errors, 1);
        assert_eq!(source.sent.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn a_tampered_record_closes_the_path() {
    let (mut bare, mut stream) = sockets("127.0.0.1:0");
    let (_, keys) = protect(Protection::Aes128, &mut bare, &mut stream);
    let mut tcp = Tcp::new(options(), Arc::new(Source::default())).unwrap();
    tcp.add_path(TcpPath { id: 1, peer: A, stream, tls: keys }).unwrap();
    let mut done = Vec::new();
    bare.write_all(&[&[23, 3, 3, 0, 33][..], &[7; 33]].concat()).unwrap();
    drive(&mut tcp, &mut done, |done| closed(done).is_some());
    assert!(matches!(closed(&done), Some(PathError::Protocol(ProtocolError::Record(_)))), "{done:?}");
}

#[test]
fn a_peer_that_reads_nothing_is_dropped() {
    for protection in [Protection::Plain, Protection::Chacha] {
        let mut pair =
            Pair::with(protection, TcpOptions { socket_buffer_bytes: Some(64 << 10), ..options() });
        let blob = pair.b_source.add(&noise(7, 64 * MIB), &[]);
        pair.connect(1, "127.0.0.1:0");
        for i in 0..READS_PER_PATH as u64 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.b.counters().payload_bytes_out > 0);
        // From here on `a` is not polled.
        let mut done = std::mem::take(&mut pair.b_done);
        drive(&mut pair.b, &mut done, |done| closed(done).is_some());
        assert!(matches!(closed(&done), Some(PathError::NotReading { ms: 400 })));
        assert!(pair.b.counters().payload_bytes_out < 8 * MIB as u64, "only what fits into buffers was read");
        assert_eq!(pair.b_source.leases(), 0);
    }
}

#[test]
fn paths_share_a_worker_fairly() {
    for protection in [Protection::Plain, Protection::Aes128] {
        let mut pair = Pair::with(protection, TcpOptions { turn_bytes: 256 << 10, ..options() });
        let blob = pair.b_source.add(&noise(8, 24 * MIB), &[]);
        pair.connect(1, "127.0.0.1:0");
        pair.connect(2, "127.0.0.1:0");
        // The first asks for much, then the second for little.
        for i in 0..24 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a.counters().reads_done >= 2);
        for i in 0..4 {
            pair.a.post_read(2, pair.read(100 + i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| (100..104).all(|tag| ended(&pair.a_done, tag).is_some()));
        let first = pair.a.counters().reads_done - 4;
        assert!(first < 16, "{protection:?}: {first} reads of the first path went before 4 of the second");
        pair.drive(|pair| pair.a_done.len() == 28);
    }
}

#[test]
fn little_memory_for_sending_is_shared_by_many_paths() {
    // One chunk for eight paths.
    let mut pair = Pair::with(Protection::Aes128, TcpOptions { send_memory_bytes: 1, ..options() });
    let content = noise(9, 8 * MIB);
    let blob = pair.b_source.add(&content, &[]);
    for path in 0..8 {
        pair.connect(path, "127.0.0.1:0");
        for i in 0..4 {
            pair.a.post_read(path, pair.read(i, blob, path * MIB as u64, MIB as u32)).unwrap();
        }
    }
    pair.drive(|pair| pair.a_done.len() == 32);
    for completion in &pair.a_done {
        let Completion::Read { path, buffer, result, .. } = completion else { panic!("{completion:?}") };
        assert_eq!(*result, Ok(MIB as u32));
        assert!(buffer.as_ref() == &content[*path as usize * MIB..][..MIB]);
    }
}

#[test]
fn closing_tells_both_sides() {
    for protection in [Protection::Plain, Protection::Aes256] {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(10, MIB), &[]);
        pair.connect(3, "127.0.0.1:0");
        pair.a.post_read(3, pair.read(1, blob, 0, 10)).unwrap();
        pair.drive(|pair| pair.a_done.len() == 1);
        pair.a.post_read(3, pair.read(2, blob, 0, 10)).unwrap();
        pair.a.close(3);
        pair.a.close(4);
        pair.drive(|pair| closed(&pair.a_done).is_some() && closed(&pair.b_done).is_some());
        assert!(matches!(closed(&pair.a_done), Some(PathError::Local)));
        assert!(matches!(closed(&pair.b_done), Some(PathError::Peer)), "{:?}", pair.b_done);
        assert_eq!(ended(&pair.a_done, 2).unwrap().1, Err(ReadError::PathClosed));
        assert_eq!((pair.a.paths(), pair.b.paths()), (0, 0));
        // The number is free again.
        pair.connect(3, "127.0.0.1:0");
    }
}

#[test]
fn a_worker_may_sleep_on_the_descriptor() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    for protection in [Protection::Plain, Protection::Aes128] {
        let mut pair =
            Pair::with(protection, TcpOptions { stall_timeout: Duration::from_secs(30), ..options() });
        let content = noise(11, 40 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1, "127.0.0.1:0");
        for i in 0..40 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        let Pair { a, b, mut a_done, mut b_done, .. } = pair;
        let (mut a, mut b) = (a, b);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let run = |fabric: &mut Tcp, done: &mut Vec<Completion>, until: &dyn Fn(&[Completion]) -> bool| {
            let end = Instant::now() + Duration::from_secs(10);
            while !until(done) {
                assert!(Instant::now() < end, "it slept over something: {:?}", fabric.counters());
                if fabric.poll(Instant::now(), done) == 0 {
                    let mut fds = [PollFd::from_borrowed_fd(fabric.descriptor().unwrap(), PollFlags::IN)];
                    let timeout = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };
                    let _ = poll(&mut fds, Some(&timeout));
                }
            }
        };
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| run(&mut b, &mut b_done, &|_| stop.load(Ordering::Relaxed)));
            run(&mut a, &mut a_done, &|done| done.len() == 40);
            stop.store(true, Ordering::Relaxed);
        });
        assert!(start.elapsed() < Duration::from_secs(8));
        assert_eq!((b.counters().protocol_errors, closed(&a_done).is_none()), (0, true));
    }
}

#[test]
fn content_that_cannot_be_read_is_this_node_s_fault() {
    for protection in [Protection::Plain, Protection::Aes128] {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(12, 3 * MIB), &[]);
        pair.b_source.cut(&blob, MIB as u64 + 500_000);
        pair.connect(1, "127.0.0.1:0");
        for i in 0..3 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| closed(&pair.a_done).is_some() && closed(&pair.b_done).is_some());
        assert!(matches!(closed(&pair.b_done), Some(PathError::Source(_))), "{:?}", pair.b_done);
        // What came before may be lost with the path, but nobody is accused.
        let error = closed(&pair.a_done);
        assert!(matches!(error, Some(PathError::Peer | PathError::Io(_))), "{protection:?}: {error:?}");
        assert!([1, 2].iter().all(|&tag| ended(&pair.a_done, tag).unwrap().1 == Err(ReadError::PathClosed)));
        assert_eq!(pair.b_source.leases(), 0);
    }
}
