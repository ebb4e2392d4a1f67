//! Two packet fabrics over any two ports, one that serves the region and one that reads it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::udp::{Udp, UdpError, UdpOptions};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::supply::Inline;
use velo_fabric::{Completion, Fabric as _, PathId};
use velo_object::NodeId;

use super::region::Region;
use super::sockets::Side;

/// The path between the two.
pub(super) const PATH: PathId = 1;

/// Sealed, as by default.
pub(super) const SEALED: Protection = Protection::Sealed(Cipher::Aes128Gcm);

/// A socket at this side.
pub(super) fn udp(side: Side<'_>) -> Result<Udp, UdpError> {
    side.run(|| Udp::bind(SocketAddr::new(side.ip, 0), &UdpOptions::default()))
}

/// The serving side at `a` and the reading side at `b` over sockets, with datagrams of at most `datagram_bytes`.
pub(super) fn udp_pair(
    region: &Arc<Region>,
    a: Side<'_>,
    b: Side<'_>,
    protection: Protection,
    datagram_bytes: usize,
) -> anyhow::Result<(Packet<Udp>, Packet<Udp>)> {
    pair(udp(a)?, udp(b)?, region, protection, datagram_bytes)
}

/// Both sides over these ports, with a path between them that has been proven.
pub(super) fn pair<P: Port>(
    serving: P,
    reading: P,
    region: &Arc<Region>,
    protection: Protection,
    datagram_bytes: usize,
) -> anyhow::Result<(Packet<P>, Packet<P>)> {
    let fabric = |port, seed| {
        let options =
            EndpointOptions { seed, stall_timeout: Duration::from_secs(10), ..EndpointOptions::default() };
        Packet::new(port, Box::new(Inline::new(region.clone())), options)
    };
    let (mut serving, mut reading) = (fabric(serving, 1)?, fabric(reading, 2)?);
    let (to_serving, to_reading) = (serving.local(), reading.local());
    serving.add_path(path(Role::Accepter, to_reading, protection, datagram_bytes))?;
    reading.add_path(path(Role::Dialler, to_serving, protection, datagram_bytes))?;
    let (mut done, mut proven) = (Vec::new(), 0);
    let began = Instant::now();
    while proven < 2 {
        serving.poll(Instant::now(), &mut done);
        reading.poll(Instant::now(), &mut done);
        proven += done.drain(..).filter(|done| matches!(done, Completion::PathProven { .. })).count();
        ensure!(began.elapsed() < Duration::from_secs(10), "the path was not proven");
    }
    Ok((serving, reading))
}

/// One end of [`PATH`].
pub(super) fn path(
    role: Role,
    remote: SocketAddr,
    protection: Protection,
    datagram_max_bytes: usize,
) -> NewPath {
    let name = PathName { fabric: "udp", dialler: 0x100, accepter: 0x200 };
    let keys = PathKeys::derive(&PathSecret([7; 32]), &name, role, protection);
    NewPath { id: PATH, peer: NodeId::from_bytes([1; 32]), remote, keys, datagram_max_bytes }
}
