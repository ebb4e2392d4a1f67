//! Transfers drawn by lot from the ranges that the protocol must get through.

use std::time::Duration;

use super::{Reordering, Transfer};
use crate::packet::limits::{READS_PER_PATH, WINDOW_MAX_BYTES};

/// Shares of datagrams that are lost: one row of runs each.
pub const LOSSES: [f64; 6] = [0.0, 0.001, 0.01, 0.05, 0.1, 0.3];

/// SplitMix64.
struct Lot(u64);

impl Lot {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Between two positive numbers; every order of magnitude is as likely as any other.
    fn magnitude(&mut self, least: f64, most: f64) -> f64 {
        least * (most / least).powf(self.share())
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.next().is_multiple_of(of)
    }
}

impl Transfer {
    /// A transfer with this loss and everything else drawn by `seed`: 4 to 64 MiB, 10 Mbit/s to 400 Gbit/s, a round trip of 0.01 to
    /// 200 ms, duplication up to 50 %, reordering up to 64 frames, corruption up to 1 %, the size of datagrams, queue, marks, window,
    /// protection; sometimes a way that carries less than the ports do, or a sender that has few buffers or is slow to fill them.
    pub fn drawn(seed: u64, loss: f64) -> Self {
        let mut lot = Lot(seed ^ loss.to_bits());
        let bytes = lot.magnitude(f64::from(4 << 20), f64::from(64 << 20)) as u64;
        let rate = lot.magnitude(1.25e6, 50e9) as u64;
        let rtt = Duration::from_secs_f64(lot.magnitude(10e-6, 200e-3));
        let mut transfer = Self::new(seed, bytes, rate, rtt).losing(loss);
        // Half of the runs have the worst of each fault, the others anything up to that.
        let worst = lot.one_in(2);
        let mut upto = |most: f64| if worst { most } else { most * lot.share() };
        let (duplication, corruption) = (upto(0.5), upto(0.01));
        let reordering = Reordering { probability: upto(0.2), frames: upto(64.0) as u32 };
        for link in [&mut transfer.down, &mut transfer.up] {
            link.duplication = duplication;
            link.corruption = corruption;
            link.reordering = Some(reordering);
        }
        transfer.datagram_max_bytes = [1_472, 1_472, 8_972, 65_487][(lot.next() % 4) as usize];
        if lot.one_in(4) {
            let carried = lot.magnitude(1_232.0, 9_000.0) as usize;
            (transfer.down.datagram_max_bytes, transfer.up.datagram_max_bytes) = (carried, carried);
        }
        if lot.one_in(3) {
            // A queue that is short against what is on its way.
            let bytes = transfer.down.queue_bytes;
            transfer.down.queue_bytes = (bytes / 8).max(16 * transfer.datagram_max_bytes as u64);
        }
        if lot.one_in(3) {
            transfer.down.mark_bytes = Some(transfer.down.queue_bytes / 4);
        }
        if lot.one_in(2) {
            transfer = transfer.sealed();
        }
        transfer.paced = lot.one_in(3);
        transfer.reads = 1 + (lot.next() % READS_PER_PATH as u64) as usize;
        if lot.one_in(4) {
            transfer.window_max_bytes = lot.magnitude(256e3, WINDOW_MAX_BYTES as f64) as u64;
        }
        if lot.one_in(3) {
            transfer.buffers = 1 + (lot.next() % 16) as usize;
        }
        if lot.one_in(3) {
            transfer.load = Duration::from_secs_f64(lot.magnitude(10e-6, 50e-3));
        }
        transfer
    }
}
