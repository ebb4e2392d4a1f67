//! The fabrics over the kernel's sockets beside iperf3, one thread a side: on loopback, and between two network namespaces whose
//! Ethernet carries packets of 1500 bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use velo_fabric::packet::limits::DATAGRAM_MAX_BYTES;
use velo_fabric::packet::protocol::seal::Protection;
use velo_tests::namespaces::{End, Link};

use super::region::{self, Region, Target};
use super::{median, median_ratio, packets, port_loop, tcp};
use crate::report::{Bars, Report};
use crate::tools;

/// Where one of the sides is.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    /// Its address.
    pub(super) ip: IpAddr,
    /// Its network namespace; none is this process's own.
    end: Option<&'a End>,
}

impl<'a> Side<'a> {
    /// On loopback.
    pub(super) fn here() -> Self {
        Self { ip: [127, 0, 0, 1].into(), end: None }
    }

    /// Runs `work` where sockets must be made.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self.end {
            Some(end) => end.run(work),
            None => work(),
        }
    }

    /// Its address and its namespace, as other programs are told them.
    fn place(self) -> (IpAddr, Option<&'a str>) {
        (self.ip, self.end.map(End::name))
    }
}

/// One fabric in one setting.
struct Contender {
    name: &'static str,
    /// Of packets, how they are protected and how large they may be; of the others nothing.
    packets: Option<(Protection, usize)>,
    /// The ratio to iperf3 that it must reach.
    floor: Option<f64>,
}

const TCP: Contender = Contender { name: "tcp plain", packets: None, floor: None };

const fn packets(
    name: &'static str,
    protection: Protection,
    datagram_bytes: usize,
    floor: Option<f64>,
) -> Contender {
    Contender { name, packets: Some((protection, datagram_bytes)), floor }
}

/// Datagrams of one Ethernet packet.
const SMALL: usize = 1_472;
const ON_LOOPBACK: [Contender; 5] = [
    TCP,
    packets("udp trusted, GSO of 1472-byte datagrams", Protection::Trusted, SMALL, None),
    packets(
        "udp trusted, the datagrams that the path carries",
        Protection::Trusted,
        DATAGRAM_MAX_BYTES,
        Some(1.0),
    ),
    packets("udp sealed, GSO of 1472-byte datagrams", packets::SEALED, SMALL, None),
    packets("udp sealed, the datagrams that the path carries", packets::SEALED, DATAGRAM_MAX_BYTES, None),
];
const ON_ETHERNET: [Contender; 3] = [
    TCP,
    packets("udp trusted, GSO", Protection::Trusted, SMALL, Some(1.0)),
    packets("udp sealed, GSO", packets::SEALED, SMALL, None),
];

/// Both places.
pub(super) fn rows(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    place(report, "loopback", &ON_LOOPBACK, [Side::here(); 2], rounds, quick)?;
    match Link::new(1_500) {
        Ok(link) => {
            let sides = [&link.a, &link.b].map(|end| Side { ip: end.v4.into(), end: Some(end) });
            place(report, "veth of MTU 1500", &ON_ETHERNET, sides, rounds, quick)
        }
        Err(missing) => {
            report.note(format!("udp and tcp over veth are not measured: {missing}"));
            Ok(())
        }
    }
}

fn place(
    report: &mut Report,
    place: &str,
    contenders: &[Contender],
    [a, b]: [Side<'_>; 2],
    rounds: usize,
    quick: bool,
) -> anyhow::Result<()> {
    let name = |contender: &Contender| format!("{}, region to region, {place}", contender.name);
    let contenders: Vec<_> = contenders.iter().filter(|contender| report.wants(&name(contender))).collect();
    if contenders.is_empty() {
        return Ok(());
    }
    let bytes: u64 = if quick { 2 << 30 } else { 8 << 30 };
    let seconds = if quick { 1 } else { 3 };
    let region = Arc::new(Region::new());
    let mut target = Target::new()?;
    let (mut small, mut large) = (Vec::new(), Vec::new());
    let mut rates = vec![Vec::new(); contenders.len()];
    // By size of datagrams.
    let mut bare: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        small.push(tools::iperf3([a.place(), b.place()], None, seconds)?);
        large.push(tools::iperf3([a.place(), b.place()], Some("1M"), seconds)?);
        let sizes: BTreeSet<usize> = contenders.iter().filter_map(|it| Some(it.packets?.1)).collect();
        for size in sizes {
            let (mut from, mut to) = (packets::udp(a)?, packets::udp(b)?);
            let time = Duration::from_secs(seconds.into()) / 2;
            let rate = port_loop::between(&mut from, &mut to, size, time)?;
            bare.entry(size).or_default().push(rate.gbit_per_s);
        }
        for (contender, rates) in contenders.iter().zip(&mut rates) {
            let taken = match contender.packets {
                None => {
                    let (mut server, mut reader) = tcp::pair(&region, a, b)?;
                    region::between_threads(&mut server, &mut reader, &[packets::PATH], bytes, &mut target)?
                }
                Some((protection, datagram_bytes)) => {
                    let (mut server, mut reader) =
                        packets::udp_pair(&region, a, b, protection, datagram_bytes)?;
                    region::between_threads(&mut server, &mut reader, &[packets::PATH], bytes, &mut target)?
                }
            };
            rates.push(bytes as f64 * 8e-9 / taken);
        }
    }
    let best: Vec<f64> = small.iter().zip(&large).map(|(small, large)| small.max(*large)).collect();
    let against = format!(
        "iperf3 TCP {:.1} Gbit/s (its default {:.1}, -l 1M {:.1})",
        median(best.clone()),
        median(small),
        median(large)
    );
    for (size, rates) in bare {
        let name = format!("udp, the bare loop, datagrams of {size}, cold data copied in and out, {place}");
        let ratio = median_ratio(&rates, &best);
        let none = Bars { floor: None, goal: None };
        report.ratio(&name, (median(rates), "Gbit/s"), against.clone(), ratio, none);
    }
    for (contender, rates) in contenders.iter().zip(rates) {
        let ratio = median_ratio(&rates, &best);
        let bars = Bars { floor: contender.floor, goal: None };
        report.ratio(&name(contender), (median(rates), "Gbit/s"), against.clone(), ratio, bars);
    }
    let (misses, asked) = target.misses();
    let hits = 1.0 - misses as f64 / asked.max(1) as f64;
    report.ratio(
        &format!("buffers that the pool had when a transfer over {place} asked"),
        (hits * 100.0, "%"),
        format!("{asked} asked for"),
        hits,
        Bars { floor: Some(0.99), goal: None },
    );
    Ok(())
}
