//! A stranger who floods a port: with random packets, and with mutations of datagrams that were overheard.
#![allow(dead_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::port::{Arrival, Departure, Ecn, Port, PortCaps, PortCounters};

/// How fast the packets come, where the machine can send so many: 0.6 Gbit/s.
pub const PACKETS_PER_S: u64 = 100_000;
/// Datagrams that are overheard, to be mutated.
const OVERHEARD: usize = 512;
const NOISE_BYTES: usize = 1 << 20;

/// What was overheard.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Vec<u8>>>>);

impl Heard {
    /// Whether it is all that a stranger needs.
    pub fn is_enough(&self) -> bool {
        self.0.lock().expect("nobody panics with it").len() >= OVERHEARD
    }
}

/// A port that lets a stranger hear the first datagrams that arrive.
pub struct Overheard {
    port: Udp,
    heard: Heard,
    full: bool,
}

impl Overheard {
    /// Who listens at `port` notes what arrives in `heard`.
    pub fn new(port: Udp, heard: Heard) -> Self {
        Self { port, heard, full: false }
    }
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
        let mut heard = heard.0.lock().expect("nobody panics with it");
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

/// Who floods.
pub struct Stranger {
    port: Udp,
    draw: Draw,
    heard: Vec<Vec<u8>>,
    noise: Vec<u8>,
}

impl Stranger {
    /// On a socket of his own on loopback.
    ///
    /// # Panics
    /// Where there is none, or nothing was overheard.
    pub fn new(heard: &Heard) -> Self {
        let heard = heard.0.lock().expect("nobody panics with it").clone();
        assert!(!heard.is_empty(), "nothing was overheard");
        let options = UdpOptions { offload: false, ..UdpOptions::default() };
        let port = Udp::bind("127.0.0.1:0".parse().expect("an address"), &options).expect("a socket");
        let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
        let noise = (0..NOISE_BYTES / 8).flat_map(|_| draw.next().to_le_bytes()).collect();
        Self { port, draw, heard, noise }
    }

    /// Sends packets to `to`, at [`PACKETS_PER_S`], as long as `go_on` says so of the number that has been sent. Returns that number.
    ///
    /// # Panics
    /// If he is answered.
    pub fn flood(&mut self, to: SocketAddr, go_on: impl Fn(u64) -> bool) -> u64 {
        let Self { port, draw, heard, noise } = self;
        let (start, mut sent) = (Instant::now(), 0);
        while go_on(sent) {
            let due = start.elapsed().as_micros() as u64 * PACKETS_PER_S / 1_000_000;
            if sent >= due {
                thread::sleep(Duration::from_micros(100));
            }
            port.tx_burst(&mut |space| {
                let len = (sent < due && go_on(sent)).then(|| write(draw, heard, noise, space))?;
                sent += 1;
                Some(Departure { to, len, ecn: Ecn::Capable, probe: false })
            })
            .expect("the socket is there");
        }
        port.rx_burst(&mut |_| panic!("a stranger was answered")).expect("the socket is there");
        assert_eq!(port.counters().rx_datagrams, 0);
        sent
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
