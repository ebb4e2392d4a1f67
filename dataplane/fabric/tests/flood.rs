//! A flood of random and mutated packets at a live port, in the middle of an honest transfer: no panic, no growth, the
//! right bytes. `VELO_FULL` makes it fifty times as long. What is left of the goodput is printed here and measured by
//! `velo-benches fabrics`.

#[path = "packet/pair.rs"]
mod pair;
#[path = "support/stranger.rs"]
mod stranger;
mod support;

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pair::{Pair, options, udp};
use stranger::{Heard, Overheard, Stranger};
use support::{MIB, ended, noise};
use velo_fabric::packet::Packet;
use velo_fabric::packet::protocol::seal::Protection;
use velo_fabric::{Completion, Fabric};

/// Packets in a round: short ones, taken in turns at the closed port and the live one, so that both meet the same machine.
const ROUND: u64 = 20_000;

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
    let heard = Heard::default();
    let port = || Overheard::new(udp("127.0.0.1:0"), heard.clone());
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
        go_on(&|| start.elapsed() > Duration::from_millis(500) && heard.is_enough());
        let mut stranger = Stranger::new(&heard);
        stranger.flood(closed_port, |sent| sent < ROUND);
        let before = resident_bytes();
        let (mut closed, mut live) = (0.0, 0.0);
        let flooded = Instant::now();
        for _ in 0..rounds {
            for (to, goodput) in [(closed_port, &mut closed), (to_a, &mut live)] {
                let over = AtomicBool::new(false);
                thread::scope(|flooding| {
                    flooding.spawn(|| {
                        stranger.flood(to, |sent| sent < ROUND);
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
        assert_eq!((counters.fabric.protocol_errors, counters.moves, counters.fabric.stalls), (0, 0, 0));
    });
}
