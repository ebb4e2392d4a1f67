//! The area `fabrics`: the packet fabric over each of its ports, region to region (no hashing, no store), beside iperf3 and the port's
//! bare loop; the simulator's curves; and what rings and pools cost.

pub mod memif;
mod packets;
mod port_loop;
mod region;
mod simulated;
mod tcp;
mod threads;
mod xdp;

use std::sync::Arc;

use velo_fabric::packet::limits::DATAGRAM_MAX_BYTES;
use velo_fabric::packet::protocol::seal::Protection;

use crate::report::{Bars, Report};
use crate::tools;
use region::{Region, Target};

/// Measures the whole area.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let rounds = if quick { 3 } else { 7 };
    threads::measure(report, rounds, quick)?;
    on_loopback(report, rounds, quick)?;
    xdp::rows(report, rounds, quick)?;
    memif::rows(report, rounds, quick)?;
    simulated::measure(report, quick)?;
    Ok(())
}

/// The fabrics over kernel sockets beside iperf3, all on loopback, one thread a side.
fn on_loopback(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    /// Name, protection, largest datagram; the ratio to iperf3 that it must reach.
    type Contender = (&'static str, Protection, usize, Option<f64>);
    const CONTENDERS: [Contender; 4] = [
        ("udp trusted, GSO of 1472-byte datagrams", Protection::Trusted, 1472, None),
        (
            "udp trusted, the datagrams that the path carries",
            Protection::Trusted,
            DATAGRAM_MAX_BYTES,
            Some(1.0),
        ),
        ("udp sealed, GSO of 1472-byte datagrams", packets::SEALED, 1472, None),
        ("udp sealed, the datagrams that the path carries", packets::SEALED, DATAGRAM_MAX_BYTES, None),
    ];
    const TCP: &str = "tcp plain";
    let name = |contender: &str| format!("{contender}, region to region, loopback");
    if !CONTENDERS.iter().map(|contender| contender.0).chain([TCP]).any(|it| report.wants(&name(it))) {
        return Ok(());
    }
    let bytes: u64 = if quick { 2 << 30 } else { 8 << 30 };
    let seconds = if quick { 1 } else { 3 };
    let region = Arc::new(Region::new());
    let mut target = Target::new()?;
    let (mut small, mut large, mut tcp) = (Vec::new(), Vec::new(), Vec::new());
    let mut udp: [Vec<f64>; CONTENDERS.len()] = Default::default();
    for _ in 0..rounds {
        small.push(tools::iperf3(None, seconds)?);
        large.push(tools::iperf3(Some("1M"), seconds)?);
        let (mut server, mut reader) = tcp::pair(&region)?;
        let taken = region::between_threads(&mut server, &mut reader, &[packets::PATH], bytes, &mut target)?;
        tcp.push(bytes as f64 * 8e-9 / taken);
        for (at, (_, protection, datagram_bytes, _)) in CONTENDERS.into_iter().enumerate() {
            let (mut server, mut reader) = packets::udp_pair(&region, protection, datagram_bytes)?;
            let taken =
                region::between_threads(&mut server, &mut reader, &[packets::PATH], bytes, &mut target)?;
            udp[at].push(bytes as f64 * 8e-9 / taken);
        }
    }
    let (small, large) = (median(small), median(large));
    let best = small.max(large);
    let against = format!("iperf3 TCP {best:.1} Gbit/s (its default {small:.1}, -l 1M {large:.1})");
    let mut row = |contender: &str, rates: Vec<f64>, floor| {
        let rate = median(rates);
        report.ratio(
            &name(contender),
            (rate, "Gbit/s"),
            against.clone(),
            rate / best,
            Bars { floor, goal: None },
        );
        rate
    };
    row(TCP, tcp, None);
    for ((contender, _, _, floor), rates) in CONTENDERS.into_iter().zip(udp) {
        row(contender, rates, floor);
    }
    let (misses, asked) = target.misses();
    let hits = 1.0 - misses as f64 / asked.max(1) as f64;
    report.ratio(
        "buffers that the pool had when a transfer asked",
        (hits * 100.0, "%"),
        format!("{asked} asked for"),
        hits,
        Bars { floor: Some(0.99), goal: None },
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
