//! The limits of every value, checked once after all sources are merged.

use std::ops::RangeInclusive;

use crate::load::Places;
use crate::{Bytes, Config, ConfigError, Count, Rate};

const NAME_BYTES: usize = 64;
const LISTEN_MAX: usize = 16;
const LINE_RATE_MIN: Rate = Rate(1_000_000);
const LINE_RATE_MAX: Rate = Rate(10_000_000_000_000);
/// A path's number has 8 bits for its worker.
const PACKET_WORKERS_MAX: u64 = 64;
/// IFNAMSIZ without the zero at the end.
const INTERFACE_BYTES: usize = 15;
const EAL_MAX: usize = 64;
const RDMA_DEVICES_MAX: usize = 16;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(crate) fn check(config: &Config, places: &Places) -> Result<(), ConfigError> {
    let Config { node, net, fabric, http: _, gossip, store, dataplane, origin, log } = config;
    let fail = |key: &'static str, must: String, is: String| {
        Err(ConfigError::Limit { key, must, is, place: places.of(key) })
    };
    let within = |key: &'static str, value: u64, range: RangeInclusive<u64>| {
        if range.contains(&value) {
            return Ok(());
        }
        fail(key, format!("between {} and {}", range.start(), range.end()), value.to_string())
    };
    let size = |key: &'static str, value: Bytes, range: RangeInclusive<u64>| {
        if range.contains(&value.0) {
            return Ok(());
        }
        fail(key, format!("between {} and {}", Bytes(*range.start()), Bytes(*range.end())), value.to_string())
    };
    let count = |key: &'static str, value: Count, range: RangeInclusive<u64>| match value {
        Count::Auto => Ok(()),
        Count::Fixed(n) => within(key, n, range),
    };

    for (key, text) in [("node.name", &node.name), ("node.zone", &node.zone)] {
        if text.len() > NAME_BYTES || text.chars().any(char::is_control) {
            return fail(key, format!("at most {NAME_BYTES} bytes of printable text"), format!("{text:?}"));
        }
    }
    if node.zone.is_empty() {
        return fail("node.zone", "a word".into(), "empty".into());
    }
    if net.listen.is_empty() || net.listen.len() > LISTEN_MAX {
        let is = format!("{} addresses", net.listen.len());
        return fail("net.listen", format!("1 to {LISTEN_MAX} addresses"), is);
    }
    if net.advertise.len() > LISTEN_MAX {
        let is = format!("{} addresses", net.advertise.len());
        return fail("net.advertise", format!("at most {LISTEN_MAX} addresses"), is);
    }
    for (key, address) in (net.advertise.iter().map(|a| ("net.advertise", a)))
        .chain(gossip.advertise.iter().map(|a| ("gossip.advertise", a)))
        .chain(fabric.udp.advertise.iter().map(|a| ("fabric.udp.advertise", a)))
    {
        if address.ip().is_unspecified() || address.port() == 0 {
            return fail(key, "an address and port that others can reach".into(), address.to_string());
        }
    }
    for (at, named) in net.fabrics.iter().enumerate() {
        if net.fabrics[..at].contains(named) {
            return fail(
                "net.fabrics",
                "a list of different fabrics".into(),
                format!("with `{named}` twice"),
            );
        }
    }
    let line_rate = net.line_rate;
    if line_rate.0 != 0 && !(LINE_RATE_MIN..=LINE_RATE_MAX).contains(&line_rate) {
        let must = format!("0 or between {LINE_RATE_MIN} and {LINE_RATE_MAX}");
        return fail("net.line_rate", must, line_rate.to_string());
    }
    count("fabric.udp.workers", fabric.udp.workers, 1..=PACKET_WORKERS_MAX)?;
    within("fabric.udp.busy_poll_us", fabric.udp.busy_poll_us.into(), 0..=10_000)?;
    if fabric.xdp.interface.len() > INTERFACE_BYTES {
        let must = format!("the name of an interface: at most {INTERFACE_BYTES} bytes");
        return fail("fabric.xdp.interface", must, format!("{:?}", fabric.xdp.interface));
    }
    within("fabric.xdp.port", fabric.xdp.port.into(), 1..=65_535)?;
    count("fabric.dpdk.queues", fabric.dpdk.queues, 1..=PACKET_WORKERS_MAX)?;
    within("fabric.dpdk.port", fabric.dpdk.port.into(), 1..=65_535)?;
    if fabric.dpdk.eal.len() > EAL_MAX || fabric.dpdk.eal.iter().any(|word| word.contains('\0')) {
        let must = format!("at most {EAL_MAX} words without zero bytes");
        return fail("fabric.dpdk.eal", must, format!("{} words", fabric.dpdk.eal.len()));
    }
    if !fabric.dpdk.device.is_empty() && fabric.dpdk.address.is_none() {
        let must = "this node's address on the network of `fabric.dpdk.device`".into();
        return fail("fabric.dpdk.address", must, "empty".into());
    }
    if let (Some(own), Some(gateway)) = (fabric.dpdk.address, fabric.dpdk.gateway)
        && own.address.is_ipv4() != gateway.is_ipv4()
    {
        let must = format!("of the same kind as the address {own}");
        return fail("fabric.dpdk.gateway", must, gateway.to_string());
    }
    let rdma = &fabric.rdma;
    let is_place = |name: &String| {
        let (device, port) = name.split_once(':').unwrap_or((name, "1"));
        !device.is_empty() && !device.contains(['/', '\0']) && port.parse::<u8>().is_ok_and(|port| port > 0)
    };
    if rdma.devices.len() > RDMA_DEVICES_MAX || !rdma.devices.iter().all(is_place) {
        let must = format!("at most {RDMA_DEVICES_MAX} names such as `mlx5_0` or `mlx5_0:2`");
        return fail("fabric.rdma.devices", must, format!("{:?}", rdma.devices));
    }
    within("fabric.rdma.lease_ms", rdma.lease_ms, 100..=600_000)?;
    size("fabric.rdma.lent_per_peer", rdma.lent_per_peer, 1 << 20..=1 << 40)?;
    within("net.streams_per_peer", net.streams_per_peer.into(), 1..=64)?;
    within("net.stall_timeout_ms", net.stall_timeout_ms, 100..=600_000)?;
    within("net.max_sessions", net.max_sessions.into(), 1..=65_536)?;
    if store.capacity.0 != 0 {
        size("store.capacity", store.capacity, 1 << 20..=1 << 60)?;
    }
    count("dataplane.workers", dataplane.workers, 1..=256)?;
    count("dataplane.verify_threads", dataplane.verify_threads, 1..=256)?;
    size("dataplane.memory", dataplane.memory, 32 << 20..=1 << 40)?;
    if !origin.url.is_empty() && !origin.url.starts_with("file:///") {
        return fail("origin.url", "empty or file:///FOLDER".into(), format!("{:?}", origin.url));
    }
    for directive in log.level.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default();
        if !LEVELS.contains(&level) {
            let must = "error, warn, info, debug or trace, or a list such as info,velod=debug".into();
            return fail("log.level", must, format!("{:?}", log.level));
        }
    }
    Ok(())
}
