//! Two packet fabrics over kernel UDP on loopback: that bytes are right, and that everything that goes wrong ends as it
//! should.

mod hostile;
mod link;
#[path = "../support/namespaces.rs"]
mod namespaces;
mod pair;
mod ports;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pair::{AES, PROTECTIONS, Pair, keys, options, packet, udp};
use support::{B, MIB, Source, closed, ended, noise};
use velo_fabric::packet::Packet;
use velo_fabric::packet::limits::READS_PER_PATH;
use velo_fabric::packet::port::udp::Udp;
use velo_fabric::packet::protocol::seal::Protection;
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::{Completion, Fabric, PathError, Read, ReadError, What};
use velo_object::BlobId;

#[test]
fn both_sides_read_many_pieces_in_any_order() {
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let (from_b, from_a) = (noise(1, 20 * MIB + 12345), noise(2, 5 * MIB + 1));
        let blob_b = pair.b_source.add(&from_b, &[]);
        let blob_a = pair.a_source.add(&from_a, &[]);
        pair.connect(7);
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
        // The ends of the reads reach the suppliers, which let go of what they held.
        pair.drive(|pair| pair.a_source.leases() + pair.b_source.leases() == 0);
        let (a, b) = (pair.a.counters(), pair.b.counters());
        assert_eq!((a.reads_posted, a.reads_done, a.reads_failed, a.reads_served), (21, 21, 0, 6));
        assert_eq!((b.reads_posted, b.reads_done, b.reads_failed, b.reads_served), (6, 6, 0, 21));
        assert_eq!((a.payload_bytes_in, b.payload_bytes_in), (from_b.len() as u64, from_a.len() as u64));
        assert!(b.payload_bytes_out >= from_b.len() as u64 && b.bytes_out > b.payload_bytes_out);
        assert_eq!(pair.b_source.sent.load(Ordering::Relaxed), b.payload_bytes_out);
    }
}

#[test]
fn ipv6_and_outboards() {
    let mut pair = Pair::over(udp("[::1]:0"), udp("[::1]:0"), AES, options());
    let blob = pair.b_source.add(b"content", &noise(3, 5000));
    pair.connect(1);
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
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(4, 1000), &[]);
        pair.connect(1);
        pair.a.post_read(1, pair.read(1, BlobId::of(b"nobody has it"), 0, 100)).unwrap();
        pair.a.post_read(1, pair.read(2, blob, 1000, 100)).unwrap();
        pair.a.post_read(1, pair.read(3, blob, 900, 4096)).unwrap();
        // Its outboard is empty, so that the source gives nothing.
        pair.a.post_read(1, Read { what: What::Outboard, ..pair.read(4, blob, 0, 1) }).unwrap();
        pair.drive(|pair| pair.a_done.len() == 4);
        assert_eq!(ended(&pair.a_done, 1).unwrap().1, Err(ReadError::NotHere));
        assert_eq!(ended(&pair.a_done, 2).unwrap().1, Err(ReadError::Refused));
        assert!(ended(&pair.a_done, 3) == Some((&noise(4, 1000)[900..], Ok(100))));
        assert!(ended(&pair.a_done, 4).unwrap().1.is_err());
        assert_eq!((pair.a.counters().reads_failed, pair.b.counters().reads_refused), (3, 3));
    }
}

#[test]
fn a_read_that_cannot_be_posted_comes_back() {
    let mut pair = Pair::new(Protection::Trusted);
    let blob = pair.b_source.add(&noise(5, 1000), &[]);
    assert!(pair.a.post_read(1, pair.read(1, blob, 0, 1)).is_err(), "no such path");
    pair.connect(1);
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
    for protection in PROTECTIONS {
        let mut pair = Pair::with(protection, EndpointOptions { window_max_bytes: 256 << 10, ..options() });
        let content = noise(6, 8 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1);
        for i in 0..8 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        // In the middle of it all.
        pair.drive(|pair| pair.a.counters().payload_bytes_in > 0);
        let before: Vec<_> = (0..8).map(|tag| ended(&pair.a_done, tag).is_some()).collect();
        for tag in [0, 0, 6, 99] {
            pair.a.cancel(1, tag);
        }
        pair.a.poll(Instant::now(), &mut pair.a_done);
        for tag in [0, 6] {
            if !before[tag as usize] {
                assert_eq!(ended(&pair.a_done, tag).unwrap().1, Err(ReadError::Cancelled));
            }
        }
        pair.drive(|pair| pair.a_done.len() == 8);
        for i in [1, 2, 3, 4, 5, 7] {
            let (bytes, result) = ended(&pair.a_done, i).unwrap();
            assert_eq!(result, Ok(MIB as u32));
            assert!(bytes == &content[i as usize * MIB..][..MIB], "{protection:?}: piece {i} differs");
        }
        // And what was cancelled may be asked again.
        pair.a_done.clear();
        pair.a.post_read(1, pair.read(6, blob, 5, 6)).unwrap();
        pair.drive(|pair| pair.a_done.len() == 1);
        assert!(ended(&pair.a_done, 6) == Some((&content[5..11], Ok(6))));
        assert_eq!(pair.a.counters().protocol_errors + pair.b.counters().protocol_errors, 0);
        pair.drive(|pair| pair.b_source.leases() == 0);
    }
}

#[test]
fn a_peer_that_stalls_is_dropped_and_its_reads_come_back() {
    let options = EndpointOptions { stall_timeout: Duration::from_secs(8), ..options() };
    let mut pair = Pair::with(AES, options);
    let blob = pair.b_source.add(&noise(7, 64 * MIB), &[]);
    pair.connect(1);
    let read = |i| pair.read(i, blob, i * MIB as u64, MIB as u32);
    let reads: Vec<_> = (0..READS_PER_PATH as u64).map(read).collect();
    // Idle for longer than the timeout: that is no stall. The time is made up.
    let mut later = Instant::now() + Duration::from_secs(20);
    pair.a.poll(later, &mut pair.a_done);
    assert!(pair.a_done.is_empty(), "{:?}", pair.a_done);
    for read in reads {
        pair.a.post_read(1, read).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(30);
    while pair.a.counters().payload_bytes_in == 0 {
        assert!(Instant::now() < end, "{:?}", pair.a.endpoint_counters());
        pair.a.poll(later, &mut pair.a_done);
        pair.b.poll(Instant::now(), &mut pair.b_done);
    }
    // From here on `b` says nothing more.
    while closed(&pair.a_done).is_none() {
        assert!(Instant::now() < end, "{:?}", pair.a.endpoint_counters());
        later += Duration::from_millis(10);
        pair.a.poll(later, &mut pair.a_done);
    }
    assert!(matches!(closed(&pair.a_done), Some(PathError::Stalled { ms: 8000 })), "{:?}", pair.a_done);
    assert!(
        matches!(pair.a_done.last(), Some(Completion::PathClosed { path: 1, peer: B, .. })),
        "the last word"
    );
    assert_eq!(pair.a_done.len(), READS_PER_PATH + 1, "every read has ended");
    let ends = (0..READS_PER_PATH as u64).map(|tag| ended(&pair.a_done, tag).unwrap().1);
    assert!(ends.into_iter().all(|end| matches!(end, Ok(_) | Err(ReadError::Stalled))));
    assert_eq!((pair.a.counters().stalls, pair.a.paths()), (1, 0));
    pair.a_done.clear();
    assert_eq!(pair.pool.counters().in_use, 0);
}

#[test]
fn closing_tells_both_sides() {
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(10, MIB), &[]);
        pair.connect(3);
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
        pair.drive(|pair| pair.b_source.leases() == 0);
    }
}

#[test]
fn a_path_with_much_to_do_does_not_starve_another() {
    for protection in [Protection::Trusted, AES] {
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(8, 24 * MIB), &[]);
        pair.connect(1);
        pair.connect(2);
        // The first never has less than all the reads that it may have; the second has a few.
        let mut next = 0;
        for _ in 0..READS_PER_PATH {
            pair.a.post_read(1, pair.read(next, blob, next % 24 * MIB as u64, MIB as u32)).unwrap();
            next += 1;
        }
        for i in 0..4 {
            pair.a.post_read(2, pair.read(1_000_000 + i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        let mut second = 0;
        pair.drive(|pair| {
            for completion in std::mem::take(&mut pair.a_done) {
                let Completion::Read { path, buffer, result, .. } = completion else {
                    panic!("{completion:?}")
                };
                assert_eq!(result, Ok(MIB as u32));
                drop(buffer);
                if path == 1 {
                    let read = pair.read(next, blob, next % 24 * MIB as u64, MIB as u32);
                    pair.a.post_read(1, read).unwrap();
                    next += 1;
                } else {
                    second += 1;
                }
            }
            second == 4
        });
    }
}

#[test]
fn little_memory_for_serving_is_shared_by_many_reads() {
    let mut pair = Pair::new(AES);
    // Two buffers for thirty-two reads of eight paths.
    pair.b = packet(udp("127.0.0.1:0"), &pair.b_source, EndpointOptions { seed: 5, ..options() }, 2);
    let content = noise(9, 8 * MIB);
    let blob = pair.b_source.add(&content, &[]);
    for path in 0..8 {
        pair.connect(path);
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
fn a_worker_may_sleep_on_the_descriptor() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    for protection in [Protection::Trusted, AES] {
        let mut pair =
            Pair::with(protection, EndpointOptions { stall_timeout: Duration::from_secs(30), ..options() });
        let content = noise(11, 40 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1);
        for i in 0..40 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        let Pair { a, b, mut a_done, mut b_done, .. } = pair;
        let (mut a, mut b) = (a, b);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let run = |fabric: &mut Packet<Udp>,
                   done: &mut Vec<Completion>,
                   until: &dyn Fn(&[Completion]) -> bool| {
            let end = Instant::now() + Duration::from_secs(60);
            while !until(done) {
                assert!(Instant::now() < end, "it slept over something: {:?}", fabric.endpoint_counters());
                if fabric.poll(Instant::now(), done) == 0 {
                    let until = fabric.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
                    let until = until
                        .map_or(Duration::from_millis(500), |until| until.min(Duration::from_millis(500)));
                    let mut fds = [PollFd::from_borrowed_fd(fabric.descriptor().unwrap(), PollFlags::IN)];
                    let timeout = Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() };
                    let _ = poll(&mut fds, Some(&timeout));
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| run(&mut b, &mut b_done, &|_| stop.load(Ordering::Relaxed)));
            run(&mut a, &mut a_done, &|done| done.len() == 40);
            stop.store(true, Ordering::Relaxed);
        });
        for i in 0..40 {
            let (bytes, result) = ended(&a_done, i).unwrap();
            assert!(result == Ok(MIB as u32) && bytes == &content[i as usize * MIB..][..MIB]);
        }
    }
}

#[test]
fn strangers_do_not_wake_a_worker_again_and_again() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Pair { mut a, mut a_done, .. } = Pair::new(AES);
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let local = a.local();
    let wakes = |a: &Packet<Udp>, ms: i64| {
        let mut fds = [PollFd::from_borrowed_fd(a.descriptor().unwrap(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 })).unwrap() > 0
    };
    let began = Instant::now();
    // The clock of the worker is ours.
    let at = |ms| began + Duration::from_millis(ms);
    assert_eq!((a.poll(at(0), &mut a_done), a.next_deadline()), (0, None));
    for now in [1, 10, 20] {
        stranger.send_to(b"noise", local).unwrap();
        assert!(wakes(&a, 900), "it could be a peer's");
        assert_eq!((a.poll(at(now), &mut a_done), a.next_deadline()), (0, None));
    }
    for _ in 0..20 {
        stranger.send_to(b"noise", local).unwrap();
    }
    assert!(wakes(&a, 900));
    assert_eq!(a.poll(at(30), &mut a_done), 0);
    assert_eq!(a.port_counters().rx_datagrams, 23);
    let wake = a.next_deadline().expect("it looks again by itself");
    assert!(wake > at(30) && wake < at(31), "soon");
    stranger.send_to(b"more noise", local).unwrap();
    assert!(!wakes(&a, 20), "the next ones do not");
    // It is quiet again.
    assert_eq!((a.poll(at(40), &mut a_done), a.next_deadline()), (0, None));
    assert_eq!(a.port_counters().rx_datagrams, 24);
    stranger.send_to(b"", local).unwrap();
    assert!(wakes(&a, 900), "it listens");
}

#[test]
fn content_that_cannot_be_read_is_refused_and_the_path_goes_on() {
    for protection in [Protection::Trusted, AES] {
        let mut pair = Pair::new(protection);
        let content = noise(12, 3 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.b_source.cut(&blob, MIB as u64 + 500_000);
        pair.connect(1);
        for i in 0..3 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 3);
        assert!(ended(&pair.a_done, 0) == Some((&content[..MIB], Ok(MIB as u32))));
        assert!([1, 2].iter().all(|&tag| ended(&pair.a_done, tag).unwrap().1 == Err(ReadError::NotHere)));
        pair.drive(|pair| pair.b_source.leases() == 0);
    }
}

#[test]
fn a_group_of_workers_behind_one_port() {
    let options_of_port = velo_fabric::packet::port::udp::UdpOptions::default();
    let ports = Udp::group("127.0.0.1:0".parse().unwrap(), 2, &options_of_port).unwrap();
    let to = velo_fabric::packet::port::Port::local(&ports[0]);
    let source = Arc::new(Source::default());
    let content = noise(13, 8 * MIB);
    let blob = source.add(&content, &[]);
    let mut workers: Vec<_> = ports.into_iter().map(|port| packet(port, &source, options(), 16)).collect();
    let mut reader = Pair::new(AES);
    for worker in 0..2u64 {
        let name = velo_fabric::packet::protocol::seal::PathName {
            fabric: "udp",
            dialler: worker as u32 * 256,
            accepter: 256 + worker as u32,
        };
        use velo_fabric::packet::protocol::seal::{PathKeys, PathSecret, Role};
        let derive = |role| PathKeys::derive(&PathSecret([1; 32]), &name, role, AES);
        let new = |peer, remote, role| NewPath {
            id: worker,
            peer,
            remote,
            keys: derive(role),
            datagram_max_bytes: 65_487,
        };
        reader.a.add_path(new(B, to, Role::Dialler)).unwrap();
        let back = new(support::A, reader.a.local(), Role::Accepter);
        workers[worker as usize].add_path(back).unwrap();
        for i in 0..4 {
            let at = (worker * 4 + i) * MIB as u64;
            reader.a.post_read(worker, reader.read(i, blob, at, MIB as u32)).unwrap();
        }
    }
    let mut done = Vec::new();
    reader.drive(|reader| {
        for worker in &mut workers {
            worker.poll(Instant::now(), &mut done);
        }
        reader.a_done.iter().filter(|done| matches!(done, Completion::Read { .. })).count() == 8
    });
    for completion in &reader.a_done {
        if let Completion::Read { path, tag, buffer, result } = completion {
            assert_eq!(*result, Ok(MIB as u32));
            assert!(buffer.as_ref() == &content[(path * 4 + tag) as usize * MIB..][..MIB]);
        }
    }
    assert!(workers.iter().all(|worker| worker.counters().reads_served == 4));
}

#[test]
fn a_path_with_other_keys_never_comes_to_anything() {
    for protection in PROTECTIONS {
        let options = EndpointOptions { stall_timeout: Duration::from_millis(300), ..options() };
        let mut pair = Pair::with(protection, options);
        let blob = pair.b_source.add(&noise(14, MIB), &[]);
        let (a_keys, _) = keys(1, 7, protection);
        let (_, b_keys) = keys(1, 8, protection);
        let (to_a, to_b) = (pair.a.local(), pair.b.local());
        let new = |peer, remote, keys| NewPath { id: 1, peer, remote, keys, datagram_max_bytes: 65_487 };
        pair.a.add_path(new(B, to_b, a_keys)).unwrap();
        pair.b.add_path(new(support::A, to_a, b_keys)).unwrap();
        pair.a.post_read(1, pair.read(1, blob, 0, MIB as u32)).unwrap();
        pair.drive(|pair| closed(&pair.a_done).is_some());
        assert!(matches!(closed(&pair.a_done), Some(PathError::Stalled { .. })), "{:?}", pair.a_done);
        assert_eq!(ended(&pair.a_done, 1).unwrap().1, Err(ReadError::Stalled));
        assert!(!pair::is_proven(&pair.a_done, 1) && !pair::is_proven(&pair.b_done, 1));
        assert!(pair.b.endpoint_counters().rejected > 0);
        assert_eq!(pair.b_source.asked.load(Ordering::Relaxed), 0);
    }
}
