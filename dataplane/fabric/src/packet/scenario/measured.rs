//! The scenarios whose figures are promised: goodput under loss, many senders to one receiver, and flows that share a link.

use std::time::Duration;

use super::{Link, Outcome, RenoFlow, RenoOutcome, Transfer, World};

/// A network in which goodput under loss is held against goodput without.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// What people call it.
    pub name: &'static str,
    /// Of every link.
    pub rate_bytes_per_s: u64,
    /// Of an empty network.
    pub rtt: Duration,
    /// What is moved.
    pub bytes: u64,
    /// The largest datagram.
    pub datagram_max_bytes: usize,
}

/// Two datacentres, one of them with jumbo frames, and a wide-area network.
pub const SETTINGS: [Setting; 3] = [
    Setting {
        name: "datacentre",
        rate_bytes_per_s: 3_125_000_000,
        rtt: Duration::from_micros(50),
        bytes: 64 << 20,
        datagram_max_bytes: 8_972,
    },
    Setting {
        name: "datacentre, 1500",
        rate_bytes_per_s: 3_125_000_000,
        rtt: Duration::from_micros(50),
        bytes: 64 << 20,
        datagram_max_bytes: 1_472,
    },
    Setting {
        name: "WAN",
        rate_bytes_per_s: 125_000_000,
        rtt: Duration::from_millis(40),
        bytes: 256 << 20,
        datagram_max_bytes: 1_472,
    },
];

impl Setting {
    /// A transfer in it that loses this share of all datagrams.
    pub fn transfer(&self, seed: u64, loss: f64) -> Transfer {
        let mut transfer = Transfer::new(seed, self.bytes, self.rate_bytes_per_s, self.rtt).losing(loss);
        transfer.datagram_max_bytes = self.datagram_max_bytes;
        transfer
    }
}

/// Bytes per second of the line of [`incast`].
pub const INCAST_RATE: u64 = 1_250_000_000;

/// 32 senders to one receiver that knows its line rate, [`INCAST_RATE`].
pub fn incast(seed: u64) -> Outcome {
    let mut transfer = Transfer::new(seed, 8 << 20, INCAST_RATE, Duration::from_micros(100));
    transfer.senders = 32;
    transfer.reads = 8;
    transfer.paced = true;
    // It is not the queue's end that bounds it.
    transfer.down.queue_bytes = INCAST_RATE / 1_000;
    transfer.run()
}

/// Two flows through one link.
#[derive(Debug, Clone, Copy)]
pub struct TwoFlows {
    /// Everything follows from it.
    pub seed: u64,
    /// Of the link that they share.
    pub rate_bytes_per_s: u64,
    /// Of an empty network.
    pub rtt: Duration,
    /// When the second begins.
    pub later: Duration,
    /// How long they are measured, after a third of that for finding their shares.
    pub span: Duration,
}

impl TwoFlows {
    /// Each flow's bytes per second, and the longest queue at the link.
    pub fn run(&self) -> (Vec<f64>, u64) {
        let mut transfer = Transfer::new(self.seed, 1 << 40, self.rate_bytes_per_s, self.rtt);
        transfer.reads = 16;
        let mut world = World::new(self.seed, transfer.datagram_max_bytes);
        let shared = world.network.add_link(transfer.down.clone());
        let fast = || Link::new(4 * self.rate_bytes_per_s, transfer.sender.delay_ns);
        for flow in 0..2 {
            let [up, there, back] = [(); 3].map(|()| world.network.add_link(fast()));
            let receiver = world.add_station(up, shared, &transfer, None);
            let sender = world.add_station(there, back, &transfer, None);
            if flow == 1 {
                world.run_until(self.later.as_nanos() as u64);
            }
            world.connect(receiver, sender, &transfer);
            world.fetch(receiver, sender, transfer.bytes, transfer.reads);
        }
        let begin = (self.later + self.span / 3).as_nanos() as u64;
        world.run_until(begin);
        let before = world.fetched();
        world.run_until(begin + self.span.as_nanos() as u64);
        let rate = |(now, before): (u64, u64)| (now - before) as f64 / self.span.as_secs_f64();
        let rates = world.fetched().into_iter().zip(before).map(rate).collect();
        (rates, world.network.counters(shared).queue_max_bytes)
    }
}

/// A flow of ours and, half a second later, one of TCP's through one link of this rate, for 20 seconds: our bytes per second, and TCP's.
pub fn beside_tcp(seed: u64, rate_bytes_per_s: u64, rtt: Duration) -> (f64, RenoOutcome) {
    let mut transfer = Transfer::new(seed, 1 << 40, rate_bytes_per_s, rtt);
    transfer.reads = 16;
    let mut world = World::new(seed, transfer.datagram_max_bytes);
    let shared = world.network.add_link(transfer.down.clone());
    let mut fast = || world.network.add_link(Link::new(4 * rate_bytes_per_s, transfer.sender.delay_ns));
    let [up, there, back, a, b, c] = [(); 6].map(|()| fast());
    let receiver = world.add_station(up, shared, &transfer, None);
    let sender = world.add_station(there, back, &transfer, None);
    world.connect(receiver, sender, &transfer);
    world.fetch(receiver, sender, transfer.bytes, transfer.reads);
    let tcp = world.add_reno((a, b), (c, shared), RenoFlow { start_ns: 500_000_000, window_max: 2_000.0 });
    world.run_until(20_000_000_000);
    (world.fetched()[0] as f64 / 20.0, world.reno(tcp))
}
