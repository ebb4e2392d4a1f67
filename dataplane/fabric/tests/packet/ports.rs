//! Over ports that make trouble: one whose address changes, one that fails.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use velo_fabric::packet::port::udp::Udp;
use velo_fabric::packet::port::{Arrival, Departure, Port, PortCaps, PortCounters};
use velo_fabric::{Fabric, PathError, ReadError};

use crate::pair::{PROTECTIONS, Pair, options, udp};
use crate::support::{MIB, closed, ended, noise};

/// Sends from one socket for a while, then from another, and receives at the one that it sends from: as seen from behind
/// a NAT that forgets.
struct Moving {
    ports: [Udp; 2],
    datagrams_left: usize,
}

impl Moving {
    fn now(&self) -> usize {
        usize::from(self.datagrams_left == 0)
    }
}

impl Port for Moving {
    fn name(&self) -> &'static str {
        "moving"
    }

    fn caps(&self) -> PortCaps {
        PortCaps { wakes: false, ..self.ports[0].caps() }
    }

    fn local(&self) -> SocketAddr {
        self.ports[0].local()
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let now = self.now();
        self.ports[now].rx_burst(each)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        let now = self.now();
        let sent = self.ports[now].tx_burst(fill)?;
        self.datagrams_left = self.datagrams_left.saturating_sub(sent);
        Ok(sent)
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        self.ports[0].counters()
    }
}

/// Works for some bursts, then is gone.
struct Failing {
    port: Udp,
    bursts_left: usize,
}

impl Port for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn caps(&self) -> PortCaps {
        self.port.caps()
    }

    fn local(&self) -> SocketAddr {
        self.port.local()
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        self.bursts_left = self.bursts_left.saturating_sub(1);
        if self.bursts_left == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "pulled out"));
        }
        self.port.rx_burst(each)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        self.port.tx_burst(fill)
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.port.arm()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.port.descriptor()
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }
}

#[test]
fn a_peer_may_move_to_another_address_in_mid_transfer() {
    for protection in PROTECTIONS {
        let moving =
            |datagrams_left| Moving { ports: [udp("127.0.0.1:0"), udp("127.0.0.1:0")], datagrams_left };
        // The one who reads moves; it sends little but credit.
        let mut pair = Pair::over(moving(25), moving(usize::MAX), protection, options());
        let content = noise(20, 32 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1);
        for i in 0..32 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 32);
        for i in 0..32 {
            let (bytes, result) = ended(&pair.a_done, i).unwrap();
            assert!(result == Ok(MIB as u32) && bytes == &content[i as usize * MIB..][..MIB]);
        }
        assert_eq!(pair.a.port().datagrams_left, 0, "it has moved");
        assert_eq!(pair.b.endpoint_counters().moves, 1);
        let now = pair.a.port().ports[1].local();
        assert_eq!(pair.b.path_info(1).unwrap().remote, now);
    }
}

#[test]
fn a_port_that_fails_gives_everything_back() {
    for bursts_left in [40, 80, 200] {
        let failing = |bursts_left| Failing { port: udp("127.0.0.1:0"), bursts_left };
        let mut pair = Pair::over(failing(bursts_left), failing(usize::MAX), PROTECTIONS[0], options());
        let blob = pair.b_source.add(&noise(21, 64 * MIB), &[]);
        for path in [1, 2] {
            pair.add(path);
            for i in 0..16 {
                pair.a.post_read(path, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
            }
        }
        pair.drive(|pair| pair.a.paths() == 0 && closed(&pair.a_done).is_some());
        assert!(
            matches!(closed(&pair.a_done), Some(PathError::Port(error)) if error.to_string() == "pulled out")
        );
        for i in 0..16 {
            assert!(matches!(ended(&pair.a_done, i).unwrap().1, Ok(_) | Err(ReadError::PathClosed)));
        }
        pair.a_done.clear();
        assert_eq!(pair.pool.counters().in_use, 0, "every buffer is back");
        assert!(pair.a.post_read(1, pair.read(1, blob, 0, 1)).is_err());
        // It stays quiet, and the worker may sleep until something else wakes it.
        for _ in 0..3 {
            assert_eq!(pair.a.poll(std::time::Instant::now(), &mut pair.a_done), 0);
            assert_eq!(pair.a.next_deadline(), None);
        }
        let mut fds = [PollFd::from_borrowed_fd(pair.a.descriptor().unwrap(), PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 })), Ok(0));
    }
}

#[test]
fn a_network_that_loses_repeats_reorders_and_damages_delivers_the_right_bytes() {
    use velo_fabric::packet::port::fault::{Fault, Faults};
    let bad = [
        Faults { loss: 0.05, ..Faults::default() },
        Faults { loss: 0.3, ..Faults::default() },
        Faults { duplication: 0.5, reordering: 0.3, reordering_frames: 64, ..Faults::default() },
        Faults { loss: 0.01, duplication: 0.05, reordering: 0.1, reordering_frames: 8, corruption: 0.01 },
    ];
    for (seed, faults) in (1..).zip(bad) {
        for protection in PROTECTIONS {
            let port = |seed| Fault::new(udp("127.0.0.1:0"), seed, faults, Faults::default());
            let mut pair = Pair::over(port(seed), port(seed + 100), protection, options());
            let (from_b, from_a) = (noise(22, 12 * MIB), noise(23, 3 * MIB));
            let (blob_b, blob_a) = (pair.b_source.add(&from_b, &[]), pair.a_source.add(&from_a, &[]));
            pair.connect(1);
            for i in 0..12 {
                pair.a.post_read(1, pair.read(i, blob_b, i * MIB as u64, MIB as u32)).unwrap();
            }
            for i in 0..3 {
                pair.b.post_read(1, pair.read(i, blob_a, i * MIB as u64, MIB as u32)).unwrap();
            }
            pair.drive(|pair| pair.a_done.len() == 12 && pair.b_done.len() == 3);
            for (done, content) in [(&pair.a_done, &from_b), (&pair.b_done, &from_a)] {
                for (i, expected) in content.chunks(MIB).enumerate() {
                    let (bytes, result) = ended(done, i as u64).unwrap();
                    assert_eq!(result, Ok(MIB as u32));
                    assert!(bytes == expected, "{faults:?} {protection:?}: piece {i} differs");
                }
            }
            let (sent, _) = pair.b.port().faults();
            assert!(sent.lost + sent.duplicated + sent.reordered > 0, "{sent:?}");
            assert_eq!(pair.a.counters().protocol_errors + pair.b.counters().protocol_errors, 0);
        }
    }
}

#[test]
fn a_blackout_longer_than_the_stall_timeout_ends_the_reads_and_a_shorter_one_does_not() {
    use velo_fabric::packet::port::fault::{Fault, Faults};
    for (blackout_ms, ends) in [(200, false), (u128::MAX, true)] {
        let none = Faults::default;
        let port = || Fault::new(udp("127.0.0.1:0"), 1, none(), none());
        let options = velo_fabric::packet::protocol::EndpointOptions {
            stall_timeout: std::time::Duration::from_secs(3),
            ..options()
        };
        let mut pair = Pair::over(port(), port(), PROTECTIONS[0], options);
        let content = noise(24, 16 * MIB);
        let blob = pair.b_source.add(&content, &[]);
        pair.connect(1);
        for i in 0..16 {
            pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a.counters().payload_bytes_in > 0);
        let switch = pair.a.port().blackout();
        switch.set(true);
        let begin = std::time::Instant::now();
        pair.drive(|pair| begin.elapsed().as_millis() >= blackout_ms || closed(&pair.a_done).is_some());
        switch.set(false);
        if ends {
            pair.drive(|pair| closed(&pair.a_done).is_some());
            assert!(matches!(closed(&pair.a_done), Some(PathError::Stalled { ms: 3000 })));
            assert_eq!(pair.a_done.len(), 17, "every read has ended");
        } else {
            pair.drive(|pair| pair.a_done.len() == 16);
            for i in 0..16 {
                let (bytes, result) = ended(&pair.a_done, i).unwrap();
                assert!(result == Ok(MIB as u32) && bytes == &content[i as usize * MIB..][..MIB]);
            }
        }
    }
}
