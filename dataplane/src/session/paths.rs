//! What two nodes say to get paths that are no streams: an offer, and its acceptance or refusal.
//!
//! Either side may offer, once it has a session, the fabrics that it has; the other accepts one or says why none. Then both add the same
//! paths to their workers and probe them: those of a packet fabric with keys that only the two ends of the session can derive, those of
//! RDMA over queue pairs that take nothing but what comes from the other. Whatever a peer says here costs at most [`ENDS_MAX`] paths and
//! the probes of them.

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
/// The most addresses of a port of an RDMA device.
pub const ADDRESSES_MAX: usize = 16;

/// What is said about paths.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMessage {
    /// I have these fabrics: let us use one.
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

/// Fabrics that a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathOffer {
    /// Names it in its answer.
    pub offer: u32,
    /// Best first: 1 to [`OFFERED_MAX`], no two of one kind.
    pub fabrics: Vec<OfferedFabric>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OfferedFabric {
    /// Packets.
    Packets(OfferedPackets),
    /// One queue pair of each port of an RDMA device: 1 to [`ENDS_MAX`].
    Rdma(Vec<OfferedPair>),
}

/// A packet fabric that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPackets {
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
    /// Which of the offered fabrics, and this side of it.
    pub fabric: AcceptedFabric,
}

/// Which fabric is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AcceptedFabric {
    /// Packets.
    Packets(AcceptedPackets),
    /// RDMA, over these pairs: 1 to as many as were offered, none of them twice.
    Rdma(Vec<AcceptedPair>),
}

/// A packet fabric that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedPackets {
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

/// One end of a reliable connection between two queue pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairEnd {
    /// The queue pair's number: 24 bits.
    pub number: u32,
    /// The number of the first packet that it sends: 24 bits.
    pub sequence: u32,
    /// The largest packet of its port, as verbs number it: 1 (256 bytes) to 5 (4096).
    pub mtu: u8,
    /// The port's LID; 0 where it has none.
    pub lid: u16,
    /// READs that it answers at once; at least 1.
    pub reads_in: u8,
}

/// A queue pair that waits for a partner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPair {
    /// It.
    pub end: PairEnd,
    /// The addresses (GIDs) of its port, best first: 1 to [`ADDRESSES_MAX`].
    pub addresses: Vec<Gid>,
}

/// A queue pair and the one that it is connected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedPair {
    /// The place of the other in the offer.
    pub of: u8,
    /// By which of its addresses.
    pub to: Gid,
    /// This side's.
    pub end: PairEnd,
    /// By which address of its own.
    pub from: Gid,
}

/// An address of a port of an RDMA device, in network order.
pub type Gid = [u8; 16];

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
                let fabrics = offer.fabrics.iter().map(OfferedFabric::fabric);
                distinct(fabrics, 1..=OFFERED_MAX, "an offer of no, too many or the same fabrics")?;
                offer.fabrics.iter().try_for_each(OfferedFabric::check)
            }
            Self::Accept(accept) => match &accept.fabric {
                AcceptedFabric::Packets(packets) => check_ends(packets.datagram_max_bytes, &packets.ends),
                AcceptedFabric::Rdma(pairs) => {
                    distinct(
                        pairs.iter().map(|pair| pair.of),
                        1..=ENDS_MAX,
                        "no, too many or the same pairs",
                    )?;
                    pairs.iter().try_for_each(|pair| pair.end.check())
                }
            },
            Self::Refuse { .. } => Ok(()),
        }
    }
}

impl OfferedFabric {
    /// The fabric of the configuration.
    pub fn fabric(&self) -> velo_config::Fabric {
        match self {
            Self::Packets(packets) => packets.kind.fabric(),
            Self::Rdma(_) => velo_config::Fabric::Rdma,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Packets(packets) => {
                let protections = packets.protections.iter().copied();
                let why = "an offer of no, too many or the same protections";
                distinct(protections, 1..=PROTECTIONS_MAX, why)?;
                check_ends(packets.datagram_max_bytes, &packets.ends)
            }
            Self::Rdma(pairs) => {
                // Those of different devices may have the same number.
                if !(1..=ENDS_MAX).contains(&pairs.len()) {
                    return Err("an offer of no or too many queue pairs");
                }
                pairs.iter().try_for_each(|pair| {
                    let why = "a queue pair of no, too many or the same addresses";
                    distinct(pair.addresses.iter(), 1..=ADDRESSES_MAX, why)?;
                    pair.end.check()
                })
            }
        }
    }
}

impl AcceptedFabric {
    /// The fabric of the configuration.
    pub fn fabric(&self) -> velo_config::Fabric {
        match self {
            Self::Packets(packets) => packets.kind.fabric(),
            Self::Rdma(_) => velo_config::Fabric::Rdma,
        }
    }
}

impl PairEnd {
    fn check(&self) -> Result<(), &'static str> {
        let numbers = self.number.max(self.sequence) < 1 << 24;
        let sound = numbers && (1..=5).contains(&self.mtu) && self.reads_in > 0;
        if sound { Ok(()) } else { Err("a queue pair that cannot be") }
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
        let udp = OfferedPackets { kind: PacketKind::Udp, datagram_max_bytes: 1472, protections, ends };
        let mut offer = PathOffer { offer: 1, fabrics: vec![OfferedFabric::Packets(udp)] };
        change(&mut offer);
        PathMessage::Offer(offer)
    }

    /// The packets of the offer above.
    fn packets(offer: &mut PathOffer) -> &mut OfferedPackets {
        match &mut offer.fabrics[0] {
            OfferedFabric::Packets(packets) => packets,
            OfferedFabric::Rdma(_) => panic!("it offers packets first"),
        }
    }

    fn pair(number: u32) -> PairEnd {
        PairEnd { number, sequence: 5, mtu: 3, lid: 0, reads_in: 16 }
    }

    #[test]
    fn pairs_within_the_limits_pass_and_all_others_do_not() {
        let offered = |change: fn(&mut OfferedPair), count: u32| {
            let addresses = vec![[1; 16], [2; 16]];
            let mut pairs: Vec<_> =
                (0..count).map(|n| OfferedPair { end: pair(n), addresses: addresses.clone() }).collect();
            pairs.iter_mut().for_each(change);
            PathMessage::Offer(PathOffer { offer: 1, fabrics: vec![OfferedFabric::Rdma(pairs)] }).check()
        };
        assert_eq!(offered(|_| {}, 1), Ok(()));
        assert_eq!(offered(|_| {}, ENDS_MAX as u32), Ok(()));
        assert!(offered(|_| {}, 0).is_err() && offered(|_| {}, ENDS_MAX as u32 + 1).is_err());
        let bad: [fn(&mut OfferedPair); 9] = [
            |pair| pair.end.number = 1 << 24,
            |pair| pair.end.sequence = 1 << 24,
            |pair| pair.end.mtu = 0,
            |pair| pair.end.mtu = 6,
            |pair| pair.end.reads_in = 0,
            |pair| pair.addresses.clear(),
            |pair| pair.addresses = vec![[1; 16]; 2],
            |pair| pair.addresses = (0..=ADDRESSES_MAX as u8).map(|n| [n; 16]).collect(),
            |pair| pair.addresses = vec![[7; 16]; 100_000],
        ];
        for (at, change) in bad.into_iter().enumerate() {
            assert!(offered(change, 1).is_err(), "change {at}");
        }
        assert_eq!(offered(|pair| pair.end.number = 9, 2), Ok(()), "pairs of two devices");
        let accepted =
            |pairs| PathMessage::Accept(PathAccept { offer: 1, fabric: AcceptedFabric::Rdma(pairs) }).check();
        let one = AcceptedPair { of: 0, to: [1; 16], end: pair(7), from: [2; 16] };
        assert_eq!(accepted(vec![one]), Ok(()));
        assert!(accepted(vec![]).is_err() && accepted(vec![one, one]).is_err());
        assert!(accepted(vec![AcceptedPair { end: PairEnd { mtu: 0, ..one.end }, ..one }]).is_err());
    }

    #[test]
    fn offers_within_the_limits_pass_and_all_others_do_not() {
        assert_eq!(offer(|_| {}).check(), Ok(()));
        let most = offer(|offer| {
            packets(offer).ends = (0..ENDS_MAX as u32).map(|n| end(n, "[2001:db8::1]:1")).collect();
            let dpdk = OfferedPackets { kind: PacketKind::Dpdk, ..packets(offer).clone() };
            offer.fabrics.push(OfferedFabric::Packets(dpdk));
        });
        assert_eq!(most.check(), Ok(()));
        type Change = fn(&mut PathOffer);
        let bad: [Change; 15] = [
            |offer| offer.fabrics.clear(),
            |offer| offer.fabrics.push(offer.fabrics[0].clone()),
            |offer| offer.fabrics = vec![offer.fabrics[0].clone(); 100_000],
            |offer| packets(offer).datagram_max_bytes = 0,
            |offer| packets(offer).datagram_max_bytes = DATAGRAM_MIN_BYTES as u32 - 1,
            |offer| packets(offer).datagram_max_bytes = DATAGRAM_MAX_BYTES as u32 + 1,
            |offer| packets(offer).protections.clear(),
            |offer| packets(offer).protections = vec![PathProtection::Trusted; 2],
            |offer| packets(offer).ends.clear(),
            |offer| packets(offer).ends = (0..=ENDS_MAX as u32).map(|n| end(n, "192.0.2.1:1")).collect(),
            |offer| packets(offer).ends = vec![end(7, "192.0.2.1:1"), end(7, "192.0.2.1:2")],
            |offer| packets(offer).ends[0] = end(7, "192.0.2.1:0"),
            |offer| packets(offer).ends[0] = end(7, "224.0.0.1:1"),
            |offer| packets(offer).ends[0] = end(7, "255.255.255.255:1"),
            |offer| packets(offer).ends[0] = end(7, "[ff02::1]:1"),
        ];
        for (at, change) in bad.into_iter().enumerate() {
            assert!(offer(change).check().is_err(), "change {at}");
        }
        let accept = |ends| {
            let (kind, protection) = (PacketKind::Udp, PathProtection::Trusted);
            let packets = AcceptedPackets { kind, datagram_max_bytes: 1472, protection, ends };
            PathAccept { offer: 1, fabric: AcceptedFabric::Packets(packets) }
        };
        assert_eq!(PathMessage::Accept(accept(vec![end(1, "0.0.0.0:1")])).check(), Ok(()));
        assert!(PathMessage::Accept(accept(vec![])).check().is_err());
        assert!(PathMessage::Accept(accept(vec![end(1, "0.0.0.0:0")])).check().is_err());
    }
}
