//! A flood of random and mutated packets at a live port, in the middle of an honest transfer: no panic, no growth, the
//! right bytes, and (with VELO_FULL, which makes it fifty times as long) no more harm than the same flood at a closed port.

#[path = "packet/pair.rs"]
mod pair;
mod support;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use pair::{Pair, options, udp};
use support::{MIB, ended, noise};
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::port::{Arrival, Departure, Ecn, Port, PortCaps, PortCounters};
use velo_fabric::packet::protocol::seal::Protection;
use velo_fabric::{Completion, Fabric};

/// Packets in a round: short ones, taken in turns at the closed port and the live one, so that both meet the same machine.
const ROUND: u64 = 20_000;
/// How fast they come, where the machine can send so many: 0.6 Gbit/s.
const PACKETS_PER_S: u64 = 100_000;
/// Datagrams that are overheard, to be mutated.
const OVERHEARD: usize = 512;

/// Lets a stranger hear the first datagrams that arrive.
struct Overheard {
    port: Udp,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    full: bool,
}

impl Port for Overheard {
    fn name(&self) -> &'static str {
        "overheard"
    }

    fn caps(&self) -> PortCaps {
        self.port.caps()
    }

    fn local(&self) -> SocketAddr {
        self.port.local()
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let Self { port, heard, full } = self;
        if *full {
            return port.rx_burst(each);
        }
        let mut heard = heard.lock().unwrap();
        *full = heard.len() >= OVERHEARD;
        port.rx_burst(&mut |arrival| {
            if heard.len() < OVERHEARD {
                heard.push(arrival.datagram[..arrival.datagram.len().min(1500)].to_vec());
            }
            each(arrival);
        })
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

/// Numbers from a seed (xorshift64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Writes a packet of the flood; returns its length.
fn write(draw: &mut Draw, heard: &[Vec<u8>], noise: &[u8], space: &mut [u8]) -> usize {
    if draw.next().is_multiple_of(2) {
        let len = 1 + draw.below(1472);
        let at = draw.below(noise.len() - len);
        space[..len].copy_from_slice(&noise[at..at + len]);
        if len >= 8 && draw.next().is_multiple_of(2) {
            // It begins like a real one.
            space[..8].copy_from_slice(&heard[draw.below(heard.len())][..8]);
        }
        return len;
    }
    let real = &heard[draw.below(heard.len())];
    space[..real.len()].copy_from_slice(real);
    match draw.below(5) {
        0 => space[draw.below(real.len())] ^= 1 << draw.below(8),
        1 => return 1 + draw.below(real.len()),
        2 => space[8..16].copy_from_slice(&draw.next().to_le_bytes()),
        3 => space[draw.below(16)] = draw.next() as u8,
        _ => {
            let other = &heard[draw.below(heard.len())];
            let cut = draw.below(real.len().min(other.len()));
            space[..cut].copy_from_slice(&other[..cut]);
        }
    }
    real.len()
}

/// Sends one round to `to`.
fn flood(port: &mut Udp, draw: &mut Draw, heard: &[Vec<u8>], noise: &[u8], to: SocketAddr) {
    let (start, mut sent) = (Instant::now(), 0);
    while sent < ROUND {
        let due = (start.elapsed().as_micros() as u64 * PACKETS_PER_S / 1_000_000).min(ROUND);
        if sent == due {
            thread::sleep(Duration::from_micros(100));
        }
        port.tx_burst(&mut |space| {
            let len = (sent < due).then(|| write(draw, heard, noise, space))?;
            sent += 1;
            Some(Departure { to, len, ecn: Ecn::Capable, probe: false })
        })
        .unwrap();
    }
    assert_eq!(port.counters().rx_datagrams, 0);
    port.rx_burst(&mut |_| panic!("a stranger was answered")).unwrap();
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Turns of a worker, who spins for a moment before he sleeps, as velod's do.
fn turn(fabric: &mut Packet<Overheard>, done: &mut Vec<Completion>, idle_since: &mut Option<Instant>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Instant::now();
    if fabric.poll(now, done) > 0 {
        *idle_since = None;
    } else if now.duration_since(*idle_since.get_or_insert(now)) < Duration::from_micros(30) {
        std::hint::spin_loop();
    } else {
        let until = fabric.next_deadline().map(|at| at.saturating_duration_since(now));
        let until = until.map_or(Duration::from_millis(10), |until| until.min(Duration::from_millis(10)));
        let mut fds = [PollFd::from_borrowed_fd(fabric.descriptor().unwrap(), PollFlags::IN)];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: until.subsec_nanos().into() }));
    }
}

#[test]
fn a_flood_does_no_harm() {
    let full = std::env::var_os("VELO_FULL").is_some();
    let rounds = if full { 10_000_000 / ROUND } else { 200_000 / ROUND };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let port = || Overheard { port: udp("127.0.0.1:0"), heard: heard.clone(), full: false };
    let mut pair = Pair::over(port(), port(), Protection::Trusted, options());
    let content = noise(1, 24 * MIB);
    let blob = pair.b_source.add(&content, &[]);
    pair.connect(1);
    let (to_a, pool) = (pair.a.local(), pair.pool.clone());
    let Pair { mut a, mut b, mut a_done, mut b_done, .. } = pair;
    let read = |tag: u64| {
        let buffer = pool.take().unwrap();
        velo_fabric::Read {
            tag,
            blob,
            what: velo_fabric::What::Blob,
            offset_bytes: tag % 24 * MIB as u64,
            len: MIB as u32,
            buffer,
        }
    };
    let closed_port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut idle_since = None;
            while !stop.load(Ordering::Relaxed) {
                turn(&mut b, &mut b_done, &mut idle_since);
            }
        });
        let mut next = 0;
        while next < 24 {
            a.post_read(1, read(next)).unwrap();
            next += 1;
        }
        let (mut checked, mut idle_since) = (0u64, None);
        // Reads on until `until`; every piece is compared. Returns bytes per second.
        let mut go_on = |until: &dyn Fn() -> bool| {
            let (start, mut bytes) = (Instant::now(), 0u64);
            while !until() {
                assert!(start.elapsed() < Duration::from_secs(300), "the flood does not end");
                turn(&mut a, &mut a_done, &mut idle_since);
                for completion in &a_done {
                    let Completion::Read { tag, .. } = completion else { panic!("{completion:?}") };
                    let (piece, result) = ended(&a_done, *tag).unwrap();
                    assert_eq!(result, Ok(MIB as u32));
                    assert!(piece == &content[*tag as usize % 24 * MIB..][..MIB], "piece {tag} differs");
                    bytes += MIB as u64;
                    checked += 1;
                }
                for _ in 0..a_done.drain(..).count() {
                    a.post_read(1, read(next)).unwrap();
                    next += 1;
                }
            }
            bytes as f64 / start.elapsed().as_secs_f64()
        };
        let start = Instant::now();
        go_on(&|| start.elapsed() > Duration::from_millis(500) && heard.lock().unwrap().len() >= OVERHEARD);
        let (noise, heard) = (noise(2, 1 << 20), heard.lock().unwrap().clone());
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        let options = UdpOptions { offload: false, ..UdpOptions::default() };
        let mut stranger = Udp::bind("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        flood(&mut stranger, &mut draw, &heard, &noise, closed_port);
        let before = resident_bytes();
        let (mut closed, mut live) = (0.0, 0.0);
        let flooded = Instant::now();
        for _ in 0..rounds {
            for (to, goodput) in [(closed_port, &mut closed), (to_a, &mut live)] {
                let over = AtomicBool::new(false);
                thread::scope(|flooding| {
                    flooding.spawn(|| {
                        flood(&mut stranger, &mut draw, &heard, &noise, to);
                        over.store(true, Ordering::Relaxed);
                    });
                    *goodput += go_on(&|| over.load(Ordering::Relaxed));
                });
            }
        }
        let seconds = flooded.elapsed().as_secs_f64();
        let grown = resident_bytes().saturating_sub(before);
        stop.store(true, Ordering::Relaxed);
        let counters = a.endpoint_counters();
        println!(
            "{} packets at a live port, {:.0} in a second: {:.2} of the goodput under the same flood at a closed one \
             ({:.2} GB/s); {} KiB more memory; {checked} pieces; {counters:?} {:?}",
            rounds * ROUND,
            (2 * rounds * ROUND) as f64 / seconds,
            live / closed,
            closed / rounds as f64 / 1e9,
            grown >> 10,
            a.port_counters(),
        );
        assert!(grown < 8 << 20, "{grown} bytes more");
        assert!(counters.rejected > 0 && counters.unknown > 0 && checked > 0, "{counters:?}");
        assert_eq!((counters.protocol_errors, counters.moves, counters.stalls), (0, 0, 0));
        assert!(!full || live / closed >= 0.8, "{:.2} of the goodput is left", live / closed);
    });
}
