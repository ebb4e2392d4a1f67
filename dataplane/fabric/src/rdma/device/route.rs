//! Which device, port and address reach a peer: the address that the kernel would send from is one of the device's own.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::Place;

/// How packets with an address are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    /// In UDP (RoCE v2): routable, and preferred.
    RoceV2,
    /// InfiniBand.
    InfiniBand,
    /// In Ethernet (RoCE v1): reaches the same segment only.
    RoceV1,
}

/// An address of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whose it is.
    pub place: Place,
    /// Its place in the port's table, which changes at run time.
    pub gid_index: u32,
    /// The address in network order.
    pub gid: [u8; 16],
    /// The same: IPv4 where it is one.
    pub ip: IpAddr,
    /// How it is used.
    pub kind: AddressKind,
    /// The network interface that it belongs to, if any.
    pub interface: Option<String>,
}

/// All addresses of all devices, as they are now: they change with the interfaces' own.
pub fn addresses() -> Vec<Address> {
    addresses_below(Path::new("/sys/class/infiniband"))
}

fn addresses_below(root: &Path) -> Vec<Address> {
    let mut found = Vec::new();
    for device in names(root) {
        for port in names(&root.join(&device).join("ports")) {
            let Ok(number) = port.parse() else { continue };
            let folder = root.join(&device).join("ports").join(&port);
            for index in names(&folder.join("gids")) {
                let Ok(gid_index) = index.parse() else { continue };
                let read = |what: &str| fs::read_to_string(folder.join(what).join(&index)).ok();
                let Some(gid) = read("gids").and_then(|gid| gid.trim().parse::<Ipv6Addr>().ok()) else {
                    continue;
                };
                if gid.is_unspecified() {
                    continue;
                }
                let kind = match read("gid_attrs/types").as_deref().map(str::trim) {
                    Some("RoCE v2") => AddressKind::RoceV2,
                    Some("IB/RoCE v1") if is_ethernet(&folder) => AddressKind::RoceV1,
                    _ => AddressKind::InfiniBand,
                };
                let interface = read("gid_attrs/ndevs").map(|name| name.trim().to_owned());
                let place = Place { device: device.clone(), port: number };
                let (ip, gid) = (gid.to_canonical(), gid.octets());
                found.push(Address { place, gid_index, gid, ip, kind, interface });
            }
        }
    }
    found.sort_by(|a, b| {
        // What reaches no other segment comes last.
        let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let key = |address: &Address| {
            (address.kind, local(address.ip), address.place.device.clone(), address.gid_index)
        };
        key(a).cmp(&key(b))
    });
    // Most devices list each address for every kind of framing: the best is enough.
    let mut seen = HashSet::new();
    found.retain(|address| seen.insert((address.place.clone(), address.gid)));
    found
}

/// The kernel's entry through which user space speaks to a device.
pub(super) fn entry_of(device: &str) -> Option<PathBuf> {
    let root = Path::new("/sys/class/infiniband_verbs");
    let of_device = |name: &String| {
        fs::read_to_string(root.join(name).join("ibdev")).is_ok_and(|ibdev| ibdev.trim() == device)
    };
    names(root).into_iter().find(of_device).map(|name| root.join(name))
}

fn is_ethernet(port: &Path) -> bool {
    fs::read_to_string(port.join("link_layer")).is_ok_and(|layer| layer.trim() == "Ethernet")
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The address from which the kernel would send to a peer.
///
/// # Errors
/// Where it has no route.
fn source_towards(peer: IpAddr) -> io::Result<IpAddr> {
    let any: SocketAddr =
        if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing: the kernel looks the route up.
    socket.connect((peer, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// Of `own` and the addresses of a peer's port the best two that reach each other: by the route that the kernel has for packets, by the
/// subnet on InfiniBand.
pub fn reaching<'a>(own: &'a [Address], theirs: &[[u8; 16]]) -> Option<(&'a Address, [u8; 16])> {
    let reach = |own: &Address, theirs: &[u8; 16]| match own.kind {
        AddressKind::InfiniBand => own.gid[..8] == theirs[..8],
        _ => source_towards(Ipv6Addr::from(*theirs).to_canonical()).is_ok_and(|source| source == own.ip),
    };
    own.iter().find_map(|own| theirs.iter().find(|theirs| reach(own, theirs)).map(|theirs| (own, *theirs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_kernels_tables() {
        let root = tempfile::tempdir().unwrap();
        let port = root.path().join("mlx5_0/ports/1");
        for folder in ["gids", "gid_attrs/types", "gid_attrs/ndevs"] {
            fs::create_dir_all(port.join(folder)).unwrap();
        }
        fs::write(port.join("link_layer"), "Ethernet\n").unwrap();
        let gids = [
            ("0", "fe80:0000:0000:0000:0202:03ff:fe04:0506", "IB/RoCE v1", "eth0"),
            ("1", "fe80:0000:0000:0000:0202:03ff:fe04:0506", "RoCE v2", "eth0"),
            ("2", "0000:0000:0000:0000:0000:ffff:0a01:0001", "IB/RoCE v1", "eth0"),
            ("3", "0000:0000:0000:0000:0000:ffff:0a01:0001", "RoCE v2", "eth0"),
            ("4", "0000:0000:0000:0000:0000:ffff:0a02:0001", "RoCE v2", "eth0.7"),
            ("5", "0000:0000:0000:0000:0000:0000:0000:0000", "", ""),
        ];
        for (index, gid, kind, interface) in gids {
            fs::write(port.join("gids").join(index), format!("{gid}\n")).unwrap();
            fs::write(port.join("gid_attrs/types").join(index), format!("{kind}\n")).unwrap();
            fs::write(port.join("gid_attrs/ndevs").join(index), format!("{interface}\n")).unwrap();
        }
        let found = addresses_below(root.path());
        let of = |ip: &str| found.iter().find(|address| address.ip == ip.parse::<IpAddr>().unwrap()).unwrap();
        assert_eq!(found.len(), 3, "each address once");
        assert_eq!((of("10.1.0.1").gid_index, of("10.1.0.1").kind), (3, AddressKind::RoceV2));
        assert_eq!(of("10.2.0.1").interface.as_deref(), Some("eth0.7"));
        assert_eq!(of("fe80::202:3ff:fe04:506").gid_index, 1);
    }

    fn address(kind: AddressKind, ip: &str) -> Address {
        let place = Place { device: "rxe0".to_owned(), port: 1 };
        let ip: IpAddr = ip.parse().unwrap();
        let gid = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        Address { place, gid_index: 1, gid, ip, kind, interface: None }
    }

    #[test]
    fn the_route_names_the_addresses() {
        let gid = |ip: &str| address(AddressKind::RoceV2, ip).gid;
        let (far, local) =
            (address(AddressKind::RoceV2, "10.1.2.3"), address(AddressKind::RoceV2, "127.0.0.1"));
        let both = [far, local.clone()];
        let theirs = [gid("fe80::1"), gid("127.0.0.9")];
        assert_eq!(reaching(&both, &theirs), Some((&local, gid("127.0.0.9"))));
        assert_eq!(reaching(&both[..1], &theirs), None);
        let infiniband = [address(AddressKind::InfiniBand, "fe80::a:b:c:d")];
        let theirs = [gid("fe80:1::1"), gid("fe80::1:2:3:4")];
        assert_eq!(reaching(&infiniband, &theirs), Some((&infiniband[0], theirs[1])));
    }
}
