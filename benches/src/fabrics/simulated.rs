//! The protocol in the simulated network: goodput under loss as a curve, many senders to one receiver, flows that share a link. In virtual
//! time: these figures depend on the seed and not on the machine.

use std::time::Duration;

use anyhow::ensure;
use velo_fabric::packet::scenario::{INCAST_RATE, LOSSES, SETTINGS, TwoFlows, beside_tcp, incast, jain};

use super::median;
use crate::chart::{self, Curve};
use crate::report::{Bars, Report};

/// All of them.
pub(super) fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let seeds = if quick { 1 } else { 5 };
    if report.wants("simulated, goodput") {
        curves(report, seeds, quick)?;
    }
    if report.wants("simulated, 32 senders") {
        senders(report)?;
    }
    if report.wants("simulated, two flows") {
        sharing(report);
    }
    Ok(())
}

fn curves(report: &mut Report, seeds: u64, quick: bool) -> anyhow::Result<()> {
    let mut drawn = Vec::new();
    for setting in SETTINGS {
        let mut ratios = Vec::new();
        let mut clean = 0.0;
        for loss in LOSSES {
            let mut goodputs = Vec::new();
            for seed in 0..seeds {
                let outcome = setting.transfer(seed, loss).run();
                ensure!(outcome.complete, "{} at {loss} with seed {seed}: {outcome:?}", setting.name);
                goodputs.push(outcome.goodput());
            }
            let goodput = median(goodputs);
            if loss == 0.0 {
                clean = goodput;
            }
            ratios.push(goodput / clean);
            let floor = match loss {
                loss if loss > 0.01 => None,
                loss if loss > 0.001 => Some(0.75),
                _ => Some(0.9),
            };
            report.ratio(
                &format!("simulated, goodput, {}, {} % lost", setting.name, loss * 100.0),
                (goodput * 8e-9, "Gbit/s"),
                format!("{:.3} Gbit/s without loss", clean * 8e-9),
                goodput / clean,
                Bars { floor, goal: None },
            );
        }
        drawn.push(Curve { name: setting.name.to_owned(), values: ratios });
    }
    if !quick {
        let points: Vec<String> = LOSSES.iter().map(|loss| format!("{} %", loss * 100.0)).collect();
        let title = "Goodput under random loss, in parts of what it is without (simulated)";
        chart::write("goodput", title, "datagrams lost, both ways", &points, &drawn)?;
    }
    Ok(())
}

fn senders(report: &mut Report) -> anyhow::Result<()> {
    let outcome = incast(1);
    ensure!(outcome.complete, "{outcome:?}");
    let goodput = outcome.goodput();
    report.ratio(
        "simulated, 32 senders to one receiver",
        (goodput * 8e-9, "Gbit/s"),
        format!(
            "a line of {} Gbit/s; longest queue {} KiB, {} dropped",
            INCAST_RATE as f64 * 8e-9,
            outcome.queue_max_bytes >> 10,
            outcome.overflowed
        ),
        goodput / INCAST_RATE as f64,
        Bars { floor: Some(0.9), goal: None },
    );
    Ok(())
}

fn sharing(report: &mut Report) {
    let ms = Duration::from_millis;
    for (rate_bytes_per_s, rtt, span) in
        [(1_250_000_000, Duration::from_micros(100), ms(100)), (125_000_000, ms(20), ms(6_000))]
    {
        let (rates, queue) = TwoFlows { seed: 1, rate_bytes_per_s, rtt, later: span / 4, span }.run();
        let sum: f64 = rates.iter().sum();
        report.ratio(
            &format!(
                "simulated, two flows, {} Gbit/s, {} ms",
                rate_bytes_per_s as f64 * 8e-9,
                rtt.as_secs_f64() * 1e3
            ),
            (sum * 8e-9, "Gbit/s"),
            format!("equal shares (Jain's index); longest queue {} KiB", queue >> 10),
            jain(&rates),
            Bars { floor: Some(0.95), goal: None },
        );
    }
    let rate = 12_500_000;
    let (ours, theirs) = beside_tcp(1, rate, ms(20));
    report.ratio(
        "simulated, two flows, the other is TCP (Reno)",
        (theirs.rate * 8e-9, "Gbit/s"),
        format!("its fair half of 0.1 Gbit/s; ours has {:.3}", ours * 8e-9),
        theirs.rate / (rate as f64 / 2.0),
        Bars { floor: Some(0.5), goal: None },
    );
}
