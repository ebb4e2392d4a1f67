//! What a flood of packets from a stranger leaves of a transfer: as much as where the same flood hits a closed port, or nearly.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use velo_fabric::packet::protocol::seal::Protection;
use velo_tests::stranger::{Heard, Overheard, PACKETS_PER_S, Stranger};

use super::region::{self, Region, Target};
use super::sockets::Side;
use super::{median, packets};
use crate::report::{Bars, Report};

/// Datagrams of one Ethernet packet, as strangers' are.
const DATAGRAM_BYTES: usize = 1_472;

/// The row.
pub(super) fn row(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    const NAME: &str = "udp trusted, under a flood of a stranger's packets";
    if !report.wants(NAME) {
        return Ok(());
    }
    let bytes: u64 = if quick { 1 << 30 } else { 4 << 30 };
    let region = Arc::new(Region::new());
    let mut target = Target::new()?;
    let heard = Heard::default();
    let port = || packets::udp(Side::here()).map(|port| Overheard::new(port, heard.clone()));
    let (mut server, mut reader) =
        packets::pair(port()?, port()?, &region, Protection::Trusted, DATAGRAM_BYTES)?;
    let live = reader.local();
    let stop = AtomicBool::new(false);
    let (mut at_closed, mut at_live, mut ratios, mut sent) = (Vec::new(), Vec::new(), Vec::new(), 0);
    thread::scope(|scope| {
        scope.spawn(|| region::serve_until(&mut server, &stop));
        let mut measure = || -> anyhow::Result<()> {
            while !heard.is_enough() {
                region::read_all(&mut reader, &[packets::PATH], 64 << 20, &mut target)?;
            }
            let mut stranger = Stranger::new(&heard);
            let closed = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
            let mut under = |to| -> anyhow::Result<f64> {
                let over = AtomicBool::new(false);
                thread::scope(|scope| {
                    let flooding = scope.spawn(|| stranger.flood(to, |_| !over.load(Ordering::Relaxed)));
                    let taken = region::read_all(&mut reader, &[packets::PATH], bytes, &mut target);
                    over.store(true, Ordering::Relaxed);
                    sent += flooding.join().expect("he is not answered");
                    Ok(bytes as f64 * 8e-9 / taken?)
                })
            };
            for _ in 0..rounds {
                let (quiet, loud) = (under(closed)?, under(live)?);
                at_closed.push(quiet);
                at_live.push(loud);
                ratios.push(loud / quiet);
            }
            Ok(())
        };
        let measured = measure();
        stop.store(true, Ordering::Relaxed);
        measured
    })?;
    report.ratio(
        NAME,
        (median(at_live), "Gbit/s"),
        format!(
            "the same flood at a closed port, {:.1} Gbit/s; {sent} packets, {PACKETS_PER_S} in a second",
            median(at_closed)
        ),
        median(ratios),
        Bars { floor: Some(0.8), goal: None },
    );
    Ok(())
}
