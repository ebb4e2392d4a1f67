//! Which addresses others are told to dial.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

use velo_object::NodeId;

/// What `run/velod.json` says, as far as control needs it.
#[derive(serde::Deserialize)]
struct VelodJson {
    node: String,
    listen: Vec<SocketAddr>,
}

/// Where velod listens, once it has said so in `run/velod.json`.
pub(crate) fn listens(ready: &Path, own: NodeId) -> Option<Vec<SocketAddr>> {
    let ready: VelodJson = serde_json::from_slice(&std::fs::read(ready).ok()?).ok()?;
    (ready.node == own.to_hex()).then_some(ready.listen)
}

/// How listened-on addresses become advertised ones.
#[derive(Debug, Clone)]
pub struct Reach {
    configured: Vec<SocketAddr>,
    outward: IpAddr,
}

impl Reach {
    /// With what the configuration says, and the address of a peer if one is known: this machine's own address is the one that the kernel
    /// would send to it from. Nothing is sent.
    pub(crate) fn new(configured: &[SocketAddr], peer: Option<&SocketAddr>) -> Self {
        // 192.0.2.1 is nobody's (RFC 5737): it finds the default route.
        let peer = peer.copied().unwrap_or_else(|| SocketAddr::from(([192, 0, 2, 1], 9)));
        let any: SocketAddr = if peer.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let found = UdpSocket::bind(any).and_then(|socket| {
            socket.connect(peer)?;
            socket.local_addr()
        });
        let outward = found.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip());
        Self { configured: configured.to_vec(), outward }
    }

    /// Where a listener on `listen` is reached.
    pub(crate) fn at(&self, listen: SocketAddr) -> SocketAddr {
        let ip = if listen.ip().is_unspecified() { self.outward } else { listen.ip() };
        SocketAddr::new(ip, listen.port())
    }

    /// What the configuration says, else where these listeners are reached.
    pub(crate) fn advertised(&self, listens: &[SocketAddr]) -> Vec<SocketAddr> {
        if !self.configured.is_empty() {
            return self.configured.clone();
        }
        let mut addresses: Vec<SocketAddr> = listens.iter().map(|listen| self.at(*listen)).collect();
        addresses.dedup();
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_goes_before_what_is_found() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let found = Reach::new(&[], Some(&address("127.0.0.1:9")));
        let listens = [address("0.0.0.0:7440"), address("127.0.0.1:7440"), address("[::1]:7440")];
        assert_eq!(found.advertised(&listens), [address("127.0.0.1:7440"), address("[::1]:7440")]);
        let told = Reach::new(&[address("10.1.2.3:1")], None);
        assert_eq!(told.advertised(&listens), [address("10.1.2.3:1")]);
        assert_eq!(told.at(address("10.9.9.9:5")), address("10.9.9.9:5"));
    }

    #[test]
    fn only_this_nodes_velod_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("velod.json");
        let own = NodeId::from_bytes([7; 32]);
        assert_eq!(listens(&path, own), None);
        std::fs::write(&path, format!("{{\"pid\":1,\"node\":\"{own}\",\"listen\":[\"127.0.0.1:5\"]}}"))
            .expect("written");
        assert_eq!(listens(&path, own), Some(vec!["127.0.0.1:5".parse().expect("an address")]));
        assert_eq!(listens(&path, NodeId::from_bytes([8; 32])), None);
        std::fs::write(&path, "{").expect("written");
        assert_eq!(listens(&path, own), None);
    }
}
