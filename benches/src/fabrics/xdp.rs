//! AF_XDP over virtual Ethernet between two network namespaces: the packet fabric beside the bare loop of its port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use velo_fabric::packet::port::Port as _;
use velo_fabric::packet::port::ether::{Ether, EtherOptions, FramePort as _, Neighbourhood};
use velo_fabric::packet::port::xdp::{Xdp, XdpOptions};
use velo_fabric::packet::protocol::seal::Protection;
use velo_tests::namespaces::{DEVICE, End, Link};

use super::region::{Region, Target};
use super::{median, median_ratio, packets, port_loop, region};
use crate::report::{Bars, Report};

fn open(end: &End) -> anyhow::Result<Ether<Xdp>> {
    let local = SocketAddr::new(end.v4.into(), 4_800);
    end.run(|| {
        let frames = Xdp::open(&XdpOptions::new(DEVICE, local))?;
        let interface = frames.caps().interface.context("it has no interface of the kernel")?;
        let neighbourhood = Neighbourhood::Kernel { interface };
        Ok(Ether::new(frames, EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false })?)
    })
}

/// At the MTU of Ethernet and at the largest that one buffer holds and beyond.
pub(super) fn rows(report: &mut Report, rounds: usize, quick: bool) -> anyhow::Result<()> {
    if !report.wants("xdp over veth") {
        return Ok(());
    }
    let time = Duration::from_millis(if quick { 300 } else { 1_000 });
    let source = Arc::new(Region::new());
    let mut target = Target::new()?;
    for mtu in [1_500, 3_506, 9_000, 65_000] {
        let link = match Link::new(mtu) {
            Ok(link) => link,
            Err(missing) => {
                report.note(format!("xdp over veth is not measured: {missing}"));
                return Ok(());
            }
        };
        let [mut bare, mut lost, mut trusted, mut sealed] = [const { Vec::new() }; 4];
        for _ in 0..rounds {
            let (mut a, mut b) = match (open(&link.a), open(&link.b)) {
                (Ok(a), Ok(b)) => (a, b),
                (Err(missing), _) | (_, Err(missing)) => {
                    report.note(format!("xdp over veth is not measured: {missing:#}"));
                    return Ok(());
                }
            };
            let datagram_bytes = a.caps().datagram_max_bytes;
            let rate = port_loop::between(&mut a, &mut b, datagram_bytes, time)?;
            bare.push(rate.gbit_per_s);
            lost.push(rate.lost * 100.0);
            drop((a, b));
            let bytes = ((rate.gbit_per_s / 2.0 * 125e6 * time.as_secs_f64()) as u64 >> 20).max(16) << 20;
            for (protection, rates) in [(Protection::Trusted, &mut trusted), (packets::SEALED, &mut sealed)] {
                let (mut server, mut reader) =
                    packets::pair(open(&link.a)?, open(&link.b)?, &source, protection, datagram_bytes)?;
                let paths = [packets::PATH];
                let taken = region::between_threads(&mut server, &mut reader, &paths, bytes, &mut target)?;
                rates.push(bytes as f64 * 8e-9 / taken);
            }
        }
        let lost = median(lost);
        let against = format!(
            "the bare loop, cold data copied in and out, {:.1} Gbit/s, {lost:.1} % lost",
            median(bare.clone())
        );
        for (what, rates) in [("trusted", trusted), ("sealed", sealed)] {
            let name = format!("xdp over veth, MTU {mtu}, {what}");
            let none = Bars { floor: None, goal: None };
            let ratio = median_ratio(&rates, &bare);
            report.ratio(&name, (median(rates), "Gbit/s"), against.clone(), ratio, none);
        }
    }
    Ok(())
}
