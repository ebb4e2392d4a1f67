//! A stranger who sends whatever he likes to the port of a worker, in the middle of an honest transfer.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use velo_fabric::packet::limits::READS_PER_PATH;
use velo_fabric::packet::protocol::NewPath;
use velo_fabric::packet::protocol::frame::{Credit, Message, ReadRequest};
use velo_fabric::{Fabric, What};

use crate::pair::{PROTECTIONS, Pair};
use crate::support::{MIB, ended, noise};

/// Random datagrams, and such as begin like real ones.
fn junk(seed: u64, path: u32) -> Vec<u8> {
    let random = noise(seed, 8);
    let pick = u64::from_le_bytes(random.try_into().unwrap());
    let len = [0, 1, 7, 15, 16, 17, 31, 32, 40, 56, 64, 200, 1232, 1472, 9000][pick as usize % 15];
    let mut bytes = noise(seed ^ 0xf00d, len);
    if pick & 0x100 != 0 && len >= 16 {
        // A header that parses, for a path that exists: kind, flags, and a number that is or is not in the window.
        bytes[0] = 1 << 4 | (pick >> 16) as u8 & 7;
        bytes[1] = (pick >> 24) as u8 & 3;
        bytes[2..4].fill(0);
        bytes[4..8].copy_from_slice(&path.to_le_bytes());
        let number = if pick & 0x200 != 0 { pick >> 32 & 0xfff } else { u64::MAX >> (pick >> 40 & 63) };
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

#[test]
fn a_stranger_gets_no_answer_and_changes_nothing() {
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let content = noise(30, 24 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1);
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        stranger.set_nonblocking(true).unwrap();
        for i in 0..24 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        let (to_a, to_b) = (pair.a.local(), pair.b.local());
        let mut sent = 0u64;
        pair.drive(|pair| {
            for _ in 0..8 {
                sent += 1;
                // The numbers of path 1 at either side.
                let (to, path) =
                    if sent.is_multiple_of(2) { (to_a, 1 << 8) } else { (to_b, (1 << 8) + (1 << 20)) };
                let _ = stranger.send_to(&junk(sent, path), to);
            }
            pair.a_done.len() == 24 && sent > 2000
        });
        for i in 0..24 {
            let (bytes, result) = ended(&pair.a_done, i).unwrap();
            assert!(
                result == Ok(MIB as u32) && bytes == &content[i as usize * MIB..][..MIB],
                "{protection:?} {i}"
            );
        }
        assert!(stranger.recv(&mut [0; 100]).is_err(), "{protection:?}: a stranger was answered");
        let (a, b) = (pair.a.endpoint_counters(), pair.b.endpoint_counters());
        assert!(a.rejected > 0 && a.unknown > 0 && b.rejected > 0 && b.unknown > 0, "{a:?} {b:?}");
        assert_eq!((a.fabric.protocol_errors + b.fabric.protocol_errors, a.moves + b.moves), (0, 0));
        assert_eq!((pair.a.paths(), pair.b.paths()), (1, 1));
    }
}

/// A member who says that he is somewhere else cannot have content sent there.
#[test]
fn content_goes_to_nobody_who_has_not_answered() {
    for protection in PROTECTIONS {
        let victim = UdpSocket::bind("127.0.0.1:0").unwrap();
        victim.set_nonblocking(true).unwrap();
        let mut pair = Pair::new(protection);
        let blob = pair.b_source.add(&noise(33, MIB), &[]);
        let (mut member, keys) = crate::pair::keys(1, 7, protection);
        let (peer, remote) = (crate::support::A, victim.local_addr().unwrap());
        let path = NewPath { id: 1, peer, remote, keys, datagram_max_bytes: 1472 };
        pair.b.add_path(path).unwrap();
        let mut frame = [0; 1472];
        let read = ReadRequest {
            slot: 0,
            read: 1,
            blob,
            what: What::Blob,
            offset_bytes: 0,
            len: MIB as u32,
            segment_bytes: 1344,
        };
        let credit = Credit { slot: 0, read: 1, number: 1, stamp: 1, first: 0, mask: u64::MAX };
        let messages = [Message::Read(read), Message::Credit(credit)];
        let len = member.sealer.control(&mut frame, |body| {
            messages.iter().for_each(|message| assert!(body.push(message)));
        });
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        elsewhere.send_to(&frame[..len.unwrap()], pair.b.local()).unwrap();
        let (mut served_at, mut heard) = (None, 0);
        pair.drive(|pair| {
            let served = pair.b.endpoint_counters().fabric.reads_served == 1;
            served_at = served_at.or(served.then(Instant::now));
            heard += usize::from(victim.recv(&mut [0; 2000]).is_ok());
            served_at.is_some_and(|at| at.elapsed() > Duration::from_millis(200))
        });
        let counters = pair.b.endpoint_counters();
        assert_eq!(counters.fabric.payload_bytes_out, 0, "{protection:?}: {counters:?}");
        assert!((1..100).contains(&heard), "{heard} probes in a fifth of a second");
    }
}

/// Whatever has been overheard comes again, whole or damaged, from elsewhere: nothing is answered, nothing moves.
#[test]
fn what_was_overheard_comes_again() {
    for protection in PROTECTIONS {
        // The stranger stands between the two and hands on what he hears.
        let middle = UdpSocket::bind("127.0.0.1:0").unwrap();
        middle.set_nonblocking(true).unwrap();
        let here = middle.local_addr().unwrap();
        let mut pair = Pair::new(protection);
        let content = noise(31, 4 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        let (a_keys, b_keys) = crate::pair::keys(1, 7, protection);
        let new = |peer, keys| NewPath { id: 1, peer, remote: here, keys, datagram_max_bytes: 1472 };
        pair.a.add_path(new(crate::support::B, a_keys)).unwrap();
        pair.b.add_path(new(crate::support::A, b_keys)).unwrap();
        for i in 0..4 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        let (to_a, to_b) = (pair.a.local(), pair.b.local());
        let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let mut count = 0usize;
        pair.drive(|pair| {
            let mut datagram = [0; 2048];
            while let Ok((len, from)) = middle.recv_from(&mut datagram) {
                let to = if from == to_a { to_b } else { to_a };
                count += 1;
                // Now and then a damaged copy comes first, and a whole one comes later from another address.
                if count.is_multiple_of(5) {
                    datagram[count % len] ^= 1 << (count % 8);
                    let _ = elsewhere.send_to(&datagram[..len], to);
                    datagram[count % len] ^= 1 << (count % 8);
                }
                let _ = middle.send_to(&datagram[..len], to);
                if count.is_multiple_of(3) {
                    let _ = elsewhere.send_to(&datagram[..len], to);
                }
            }
            pair.a_done.iter().filter(|done| matches!(done, velo_fabric::Completion::Read { .. })).count()
                == 4
        });
        for i in 0..4 {
            let (bytes, result) = ended(&pair.a_done, i).unwrap();
            assert!(result == Ok(MIB as u32) && bytes == &content[i as usize * MIB..][..MIB]);
        }
        let (a, b) = (pair.a.endpoint_counters(), pair.b.endpoint_counters());
        assert!(a.replayed > 0 && b.replayed > 0 && a.rejected > 0, "{a:?} {b:?}");
        assert_eq!((a.moves, b.moves, a.fabric.protocol_errors, b.fabric.protocol_errors), (0, 0, 0, 0));
        assert!(elsewhere.recv(&mut [0; 2048]).is_err(), "{protection:?}: a copy was answered");
    }
}

/// A peer with good keys whose port is only silent: nothing is kept for it beyond what a path has.
#[test]
fn reads_of_a_peer_that_never_grants_are_forgotten() {
    let mut pair = Pair::new(PROTECTIONS[0]);
    let blob = pair.b_source.add(&noise(32, 64 * MIB), &[]);
    pair.connect(1);
    for i in 0..READS_PER_PATH as u64 {
        pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
    }
    pair.drive(|pair| pair.b_source.leases() > 0);
    // `a` falls silent; `b` gives up on it in time that is made up.
    let (start, mut later) = (Instant::now(), Instant::now());
    while pair.b_source.leases() > 0 && start.elapsed() < Duration::from_secs(60) {
        later += Duration::from_millis(250);
        pair.b.poll(later, &mut pair.b_done);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(pair.b_source.leases(), 0, "{:?}", pair.b.endpoint_counters());
}
