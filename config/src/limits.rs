//! The limits of every value, checked once after all sources are merged.

use std::ops::RangeInclusive;

use crate::load::Places;
use crate::{Bytes, Config, ConfigError, Count};

const NAME_BYTES: usize = 64;
const LISTEN_MAX: usize = 16;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

pub(crate) fn check(config: &Config, places: &Places) -> Result<(), ConfigError> {
    let Config { node, net, http: _, gossip, store, dataplane, origin, log } = config;
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
    {
        if address.ip().is_unspecified() || address.port() == 0 {
            return fail(key, "an address and port that others can reach".into(), address.to_string());
        }
    }
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
