//! What two nodes say to get paths of a packet fabric: an offer, and its acceptance or refusal.
//!
//! Either side may offer, once it has a session, the packet fabrics that it has; the other accepts one or says why none. Then both add
//! the same paths to their workers, with keys that only the two ends of the session can derive, and probe them. Whatever a peer says
//! here costs at most [`ENDS_MAX`] paths and the probes of them.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use velo_fabric::packet::limits::{DATAGRAM_MAX_BYTES, DATAGRAM_MIN_BYTES};
use velo_fabric::packet::protocol::seal;

/// The most fabrics of an offer.
pub const OFFERED_MAX: usize = 4;
/// The most kinds of protection of an offered fabric.
pub const PROTECTIONS_MAX: usize = 4;
/// The most paths that one offer makes.
pub const ENDS_MAX: usize = 8;

/// What is said about paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMessage {
    /// I have these packet fabrics: let us use one.
    Offer(PathOffer),
    /// This one, so.
    Accept(PathAccept),
    /// None of them.
    Refuse {
        /// The number of the offer.
        offer: u32,
        /// Why.
        why: PathRefusal,
    },
}

/// Packet fabrics that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathOffer {
    /// Names it in its answer.
    pub offer: u32,
    /// Best first: 1 to [`OFFERED_MAX`], no two of one kind.
    pub fabrics: Vec<OfferedFabric>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFabric {
    /// Which.
    pub kind: PacketKind,
    /// The largest datagram that it carries, without the headers of IP and UDP.
    pub datagram_max_bytes: u32,
    /// How frames may be protected, best first: 1 to [`PROTECTIONS_MAX`].
    pub protections: Vec<PathProtection>,
    /// This side's ends of the paths: 1 to [`ENDS_MAX`].
    pub ends: Vec<PathEnd>,
}

/// The answer to an offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathAccept {
    /// The number of the offer.
    pub offer: u32,
    /// Which of the offered fabrics.
    pub kind: PacketKind,
    /// The largest datagram that this side carries.
    pub datagram_max_bytes: u32,
    /// Which of the offered kinds of protection.
    pub protection: PathProtection,
    /// This side's ends: the first belongs to the first that was offered, and so on. 1 to as many as were offered.
    pub ends: Vec<PathEnd>,
}

/// One end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathEnd {
    /// This side's number of the path: its low byte is the worker's. Never the same twice in one session.
    pub number: u32,
    /// Where packets go; an unspecified address stands for the one from which the session comes.
    pub address: SocketAddr,
}

/// A packet fabric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PacketKind {
    /// Over UDP sockets.
    Udp,
    /// Over AF_XDP.
    Xdp,
    /// Over DPDK.
    Dpdk,
}

/// How the frames of a path are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathProtection {
    /// In the clear, authenticated: only where both sides declare their network trusted.
    Trusted,
    /// AES-128-GCM.
    Aes128Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

/// Why an offer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathRefusal {
    /// None of these fabrics is here, or none that reaches the other side.
    NoneInCommon,
    /// An offer of this side crossed it and goes first.
    Crossed,
    /// The last one is too short ago.
    TooSoon,
    /// No more paths.
    Full,
}

impl PathMessage {
    /// Whether every number of it is within its limits.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Offer(offer) => {
                let kinds = offer.fabrics.iter().map(|fabric| fabric.kind);
                distinct(kinds, 1..=OFFERED_MAX, "an offer of no, too many or the same fabrics")?;
                offer.fabrics.iter().try_for_each(|fabric| {
                    let protections = fabric.protections.iter().copied();
                    distinct(
                        protections,
                        1..=PROTECTIONS_MAX,
                        "an offer of no, too many or the same protections",
                    )?;
                    check_ends(fabric.datagram_max_bytes, &fabric.ends)
                })
            }
            Self::Accept(accept) => check_ends(accept.datagram_max_bytes, &accept.ends),
            Self::Refuse { .. } => Ok(()),
        }
    }
}

fn check_ends(datagram_max_bytes: u32, ends: &[PathEnd]) -> Result<(), &'static str> {
    if !(DATAGRAM_MIN_BYTES..=DATAGRAM_MAX_BYTES).contains(&(datagram_max_bytes as usize)) {
        return Err("a size of datagrams that does not exist");
    }
    distinct(ends.iter().map(|end| end.number), 1..=ENDS_MAX, "no, too many or the same paths")?;
    let usable = |end: &PathEnd| {
        let one = match end.address.ip() {
            IpAddr::V4(ip) => !ip.is_multicast() && !ip.is_broadcast(),
            IpAddr::V6(ip) => !ip.is_multicast(),
        };
        one && end.address.port() != 0
    };
    if ends.iter().all(usable) { Ok(()) } else { Err("an address that is not that of one host") }
}

fn distinct<T: PartialEq>(
    items: impl ExactSizeIterator<Item = T> + Clone,
    count: std::ops::RangeInclusive<usize>,
    why: &'static str,
) -> Result<(), &'static str> {
    if !count.contains(&items.len()) {
        return Err(why);
    }
    let twice = items.clone().enumerate().any(|(at, item)| items.clone().take(at).any(|other| other == item));
    if twice { Err(why) } else { Ok(()) }
}

impl PacketKind {
    /// The fabric of the configuration.
    pub fn fabric(self) -> velo_config::Fabric {
        match self {
            Self::Udp => velo_config::Fabric::Udp,
            Self::Xdp => velo_config::Fabric::Xdp,
            Self::Dpdk => velo_config::Fabric::Dpdk,
        }
    }
}

impl From<PathProtection> for seal::Protection {
    fn from(protection: PathProtection) -> Self {
        match protection {
            PathProtection::Trusted => Self::Trusted,
            PathProtection::Aes128Gcm => Self::Sealed(seal::Cipher::Aes128Gcm),
            PathProtection::ChaCha20Poly1305 => Self::Sealed(seal::Cipher::ChaCha20Poly1305),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(number: u32, address: &str) -> PathEnd {
        PathEnd { number, address: address.parse().expect("an address") }
    }

    fn offer(change: impl FnOnce(&mut PathOffer)) -> PathMessage {
        let ends = vec![end(0x100, "0.0.0.0:7442"), end(0x201, "192.0.2.1:7442")];
        let protections = vec![PathProtection::Aes128Gcm, PathProtection::Trusted];
        let udp = OfferedFabric { kind: PacketKind::Udp, datagram_max_bytes: 1472, protections, ends };
        let mut offer = PathOffer { offer: 1, fabrics: vec![udp] };
        change(&mut offer);
        PathMessage::Offer(offer)
    }

    #[test]
    fn offers_within_the_limits_pass_and_all_others_do_not() {
        assert_eq!(offer(|_| {}).check(), Ok(()));
        let most = offer(|offer| {
            offer.fabrics[0].ends = (0..ENDS_MAX as u32).map(|n| end(n, "[2001:db8::1]:1")).collect();
            offer.fabrics.push(OfferedFabric { kind: PacketKind::Dpdk, ..offer.fabrics[0].clone() });
        });
        assert_eq!(most.check(), Ok(()));
        type Change = fn(&mut PathOffer);
        let bad: [Change; 15] = [
            |offer| offer.fabrics.clear(),
            |offer| offer.fabrics.push(offer.fabrics[0].clone()),
            |offer| offer.fabrics = vec![offer.fabrics[0].clone(); 100_000],
            |offer| offer.fabrics[0].datagram_max_bytes = 0,
            |offer| offer.fabrics[0].datagram_max_bytes = DATAGRAM_MIN_BYTES as u32 - 1,
            |offer| offer.fabrics[0].datagram_max_bytes = DATAGRAM_MAX_BYTES as u32 + 1,
            |offer| offer.fabrics[0].protections.clear(),
            |offer| offer.fabrics[0].protections = vec![PathProtection::Trusted; 2],
            |offer| offer.fabrics[0].ends.clear(),
            |offer| offer.fabrics[0].ends = (0..=ENDS_MAX as u32).map(|n| end(n, "192.0.2.1:1")).collect(),
            |offer| offer.fabrics[0].ends = vec![end(7, "192.0.2.1:1"), end(7, "192.0.2.1:2")],
            |offer| offer.fabrics[0].ends[0] = end(7, "192.0.2.1:0"),
            |offer| offer.fabrics[0].ends[0] = end(7, "224.0.0.1:1"),
            |offer| offer.fabrics[0].ends[0] = end(7, "255.255.255.255:1"),
            |offer| offer.fabrics[0].ends[0] = end(7, "[ff02::1]:1"),
        ];
        for (at, change) in bad.into_iter().enumerate() {
            assert!(offer(change).check().is_err(), "change {at}");
        }
        let accept = |ends| PathAccept {
            offer: 1,
            kind: PacketKind::Udp,
            datagram_max_bytes: 1472,
            protection: PathProtection::Trusted,
            ends,
        };
        assert_eq!(PathMessage::Accept(accept(vec![end(1, "0.0.0.0:1")])).check(), Ok(()));
        assert!(PathMessage::Accept(accept(vec![])).check().is_err());
        assert!(PathMessage::Accept(accept(vec![end(1, "0.0.0.0:0")])).check().is_err());
    }
}
