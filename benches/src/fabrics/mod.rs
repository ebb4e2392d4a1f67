//! The area `fabrics`: the packet fabric over each of its ports, region to region (no hashing, no store), beside iperf3 and the port's
//! bare loop; the simulator's curves; and what rings and pools cost.

mod region;
mod tcp;
mod threads;

use std::sync::Arc;

use crate::report::{Bars, Report};
use crate::tools;
use region::{Region, Target};

/// Measures the whole area.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let rounds = if quick { 3 } else { 7 };
    threads::measure(report, rounds, quick)?;
    on_loopback(report, rounds, quick)?;
    Ok(())
}

/// The fabrics over kernel sockets beside iperf3, all on loopback, one thread a side.
fn on_loopback(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    let bytes: u64 = if quick { 2 << 30 } else { 8 << 30 };
    let seconds = if quick { 1 } else { 3 };
    let region = Arc::new(Region::new());
    let mut target = Target::new()?;
    let (mut small, mut large, mut ours) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        small.push(tools::iperf3(None, seconds)?);
        large.push(tools::iperf3(Some("1M"), seconds)?);
        let (mut server, mut reader) = tcp::pair(&region)?;
        let taken = region::between_threads(&mut server, &mut reader, &[1], bytes, &mut target)?;
        ours.push(bytes as f64 * 8e-9 / taken);
    }
    let (small, large) = (median(small), median(large));
    let best = small.max(large);
    let against = format!("iperf3 TCP {best:.1} Gbit/s (its default {small:.1}, -l 1M {large:.1})");
    let tcp = median(ours);
    let none = Bars { floor: None, goal: None };
    report.ratio("tcp plain, region to region, loopback", (tcp, "Gbit/s"), against, tcp / best, none);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
