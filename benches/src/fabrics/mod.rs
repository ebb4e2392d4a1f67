//! The area `fabrics`: the packet fabric over each of its ports, region to region (no hashing, no store), beside iperf3 and the port's
//! bare loop; the simulator's curves; and what rings and pools cost.

mod endpoints;
mod flood;
mod frames;
pub mod memif;
mod packets;
mod port_loop;
pub mod rdma;
mod region;
mod simulated;
mod sockets;
mod tcp;
mod threads;
mod xdp;

use crate::report::Report;

/// Measures the whole area.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let rounds = if quick { 3 } else { 7 };
    threads::measure(report, rounds, quick)?;
    frames::rows(report);
    endpoints::rows(report, rounds, quick);
    sockets::rows(report, rounds, quick)?;
    flood::row(report, rounds, quick)?;
    xdp::rows(report, rounds, quick)?;
    memif::rows(report, rounds, quick)?;
    simulated::measure(report, quick)?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median of what each round gave beside its own `against`: the machine's speed changes from one round to the next.
fn median_ratio(values: &[f64], against: &[f64]) -> f64 {
    median(values.iter().zip(against).map(|(value, against)| value / against).collect())
}
