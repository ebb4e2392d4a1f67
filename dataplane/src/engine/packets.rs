//! The packet fabrics of this node as the engine sees them: their workers, the ends of new paths, and what protects frames.

use std::net::SocketAddr;

use velo_fabric::PathId;
use velo_fabric::packet::protocol::NewPath;
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, Role};
use velo_object::NodeId;

use super::peers::SessionFacts;
use crate::session::paths::{ENDS_MAX, OfferedPackets, PacketKind, PathEnd, PathProtection};

/// The worker's share of a path's number, and how many numbers that leaves.
const WORKER_BITS: u32 = 8;
const SERIALS: u64 = 1 << (u32::BITS - WORKER_BITS);

/// A packet fabric that this node has.
#[derive(Debug)]
pub(super) struct PacketFabric {
    pub(super) kind: PacketKind,
    /// Its place in the order of preference: lower is better.
    pub(super) rank: u8,
    /// Its workers: each one's index in the engine, and where packets for it go.
    pub(super) ends: Vec<(usize, SocketAddr)>,
    /// The largest datagram that its ports carry.
    pub(super) datagram_max_bytes: u32,
    /// The worker that gets the first path of the next peer.
    pub(super) next_end: usize,
    /// A bit for each of its workers whose port has failed; they get no more paths.
    pub(super) failed: u64,
}

impl PacketFabric {
    pub(super) fn is_alive(&self, end: usize) -> bool {
        self.failed >> end & 1 == 0
    }

    /// How many paths a peer is offered.
    pub(super) fn count(&self) -> usize {
        (0..self.ends.len()).filter(|&end| self.is_alive(end)).count().min(ENDS_MAX)
    }

    /// Whether its packets can go to a peer of that session: an unspecified address stands for the one of the session.
    pub(super) fn reaches(&self, session: &SessionFacts) -> bool {
        let (_, address) = self.ends[0];
        !address.ip().is_unspecified() || address.is_ipv4() == session.address.is_ipv4()
    }

    pub(super) fn takes(&self, theirs: &OfferedPackets, session: &SessionFacts) -> bool {
        let (_, own) = self.ends[0];
        let fits = |end: &PathEnd| remote(end, session).is_ipv4() == family(own, session);
        self.kind == theirs.kind && self.count() > 0 && self.reaches(session) && theirs.ends.iter().all(fits)
    }

    /// Numbers for new paths: `count` of them, but no more than an offer may have. None where the session, which began at the serial
    /// number `since`, has to be made anew first: no number may come twice in one.
    pub(super) fn new_ends(
        &mut self,
        serial: &mut u64,
        since: u64,
        count: usize,
    ) -> Option<Vec<(usize, PathEnd)>> {
        let ends = (0..count.min(ENDS_MAX)).map(|_| {
            let mut following = (0..self.ends.len()).map(|end| (self.next_end + end) % self.ends.len());
            let at = following.find(|&end| self.is_alive(end))?;
            self.next_end = at + 1;
            *serial += 1;
            if *serial - since >= SERIALS {
                return None;
            }
            let (worker, address) = self.ends[at];
            Some((
                worker,
                PathEnd { number: ((*serial % SERIALS) as u32) << WORKER_BITS | at as u32, address },
            ))
        });
        ends.collect()
    }
}

impl PacketFabric {
    /// A worker's port is of no further use. Gives its address and how many are left, the first time.
    pub(super) fn port_failed(&mut self, worker: usize) -> Option<(String, usize)> {
        let at = self.ends.iter().position(|(other, _)| *other == worker)?;
        if !self.is_alive(at) {
            return None;
        }
        self.failed |= 1 << at;
        Some((self.ends[at].1.to_string(), self.count()))
    }
}

/// Where packets for the other side's end go.
fn remote(end: &PathEnd, session: &SessionFacts) -> SocketAddr {
    let ip =
        if end.address.ip().is_unspecified() { session.address } else { end.address.ip().to_canonical() };
    SocketAddr::new(ip, end.address.port())
}

/// Whether this side's packets go over IPv4.
fn family(own: SocketAddr, session: &SessionFacts) -> bool {
    if own.ip().is_unspecified() { session.address.is_ipv4() } else { own.is_ipv4() }
}

/// How this side would protect frames, best first.
pub(super) fn protections(trusted: bool) -> Vec<PathProtection> {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    let ciphers = if aes {
        [PathProtection::Aes128Gcm, PathProtection::ChaCha20Poly1305]
    } else {
        [PathProtection::ChaCha20Poly1305, PathProtection::Aes128Gcm]
    };
    trusted.then_some(PathProtection::Trusted).into_iter().chain(ciphers).collect()
}

/// What both sides can: in the clear where both sides trust the network, AES where both have it in hardware.
pub(super) fn agree(own: &[PathProtection], offered: &[PathProtection]) -> Option<PathProtection> {
    if own.first() == offered.first() {
        return own.first().copied();
    }
    let both = |wanted: &PathProtection| own.contains(wanted) && offered.contains(wanted);
    [PathProtection::ChaCha20Poly1305, PathProtection::Aes128Gcm].into_iter().find(both)
}

/// One new path: both ends of it, and what protects it.
pub(super) fn new_path(
    id: PathId,
    peer: NodeId,
    session: &SessionFacts,
    (kind, protection, datagram_max_bytes): (PacketKind, PathProtection, u32),
    (own, theirs): (PathEnd, PathEnd),
) -> NewPath {
    let (role, dialler, accepter) = if session.dialled {
        (Role::Dialler, own.number, theirs.number)
    } else {
        (Role::Accepter, theirs.number, own.number)
    };
    let name = PathName { fabric: kind.fabric().name(), dialler, accepter };
    NewPath {
        id,
        peer,
        remote: remote(&theirs, session),
        keys: PathKeys::derive(&session.keying.secret, &name, role, protection.into()),
        datagram_max_bytes: datagram_max_bytes as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_protects_is_what_both_sides_can() {
        use PathProtection::{Aes128Gcm, ChaCha20Poly1305, Trusted};
        let (with, without) = ([Aes128Gcm, ChaCha20Poly1305], [ChaCha20Poly1305, Aes128Gcm]);
        assert_eq!(agree(&with, &with), Some(Aes128Gcm));
        assert_eq!(agree(&with, &without), Some(ChaCha20Poly1305));
        assert_eq!(agree(&without, &without), Some(ChaCha20Poly1305));
        let trusting = [Trusted, Aes128Gcm, ChaCha20Poly1305];
        assert_eq!(agree(&trusting, &trusting), Some(Trusted));
        assert_eq!(agree(&with, &trusting), Some(ChaCha20Poly1305), "only one side trusts the network");
        assert_eq!(agree(&with, &[Trusted]), None);
        assert!(protections(true).starts_with(&[Trusted]) && !protections(false).contains(&Trusted));
    }

    #[test]
    fn no_number_comes_twice_in_a_session() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7442));
        let ends = vec![(3, address), (4, address)];
        let mut fabric = PacketFabric {
            kind: PacketKind::Udp,
            rank: 0,
            ends,
            datagram_max_bytes: 1472,
            next_end: 0,
            failed: 0,
        };
        let mut serial = 0;
        let ends = fabric.new_ends(&mut serial, 0, 3).expect("numbers");
        let numbers: Vec<_> = ends.iter().map(|(worker, end)| (*worker, end.number)).collect();
        assert_eq!(numbers, [(3, 0x100), (4, 0x201), (3, 0x300)]);
        assert_eq!(fabric.new_ends(&mut serial, 0, 100).map(|ends| ends.len()), Some(ENDS_MAX));
        serial = SERIALS - 2;
        assert!(fabric.new_ends(&mut serial, 0, 1).is_some());
        assert_eq!(fabric.new_ends(&mut serial, 0, 1), None);
        assert!(fabric.new_ends(&mut serial, SERIALS, 2).is_some(), "a new session may begin again");
    }

    #[test]
    fn a_port_that_has_failed_gets_no_paths() {
        let address = SocketAddr::from(([127, 0, 0, 1], 7442));
        let ends = vec![(3, address), (4, address), (5, address)];
        let kind = PacketKind::Udp;
        let mut fabric =
            PacketFabric { kind, rank: 0, ends, datagram_max_bytes: 1472, next_end: 0, failed: 0b010 };
        assert_eq!(fabric.count(), 2);
        let ends = fabric.new_ends(&mut 0, 0, 4).expect("numbers");
        let workers: Vec<_> = ends.iter().map(|(worker, end)| (*worker, end.number & 0xff)).collect();
        assert_eq!(workers, [(3, 0), (5, 2), (3, 0), (5, 2)]);
        fabric.failed = 0b111;
        assert_eq!((fabric.count(), fabric.new_ends(&mut 0, 0, 1)), (0, None));
    }
}
