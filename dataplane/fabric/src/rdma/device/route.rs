//! Which device, port and address reach a peer: the address that the kernel would send from is one of the device's own.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

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
    /// Where it is in which table.
    pub place: Place,
    /// The address: IPv4 where it is one.
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
                let place = Place { device: device.clone(), port: number, gid_index };
                found.push(Address { place, ip: gid.to_canonical(), kind, interface });
            }
        }
    }
    found.sort_by(|a, b| {
        let key = |address: &Address| (address.kind, address.place.device.clone(), address.place.gid_index);
        key(a).cmp(&key(b))
    });
    found
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
pub fn source_towards(peer: IpAddr) -> io::Result<IpAddr> {
    let any: SocketAddr =
        if peer.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any)?;
    // Sends nothing: the kernel looks the route up.
    socket.connect((peer, 9))?;
    Ok(socket.local_addr()?.ip())
}

/// The best of `addresses` for a peer, by the route to it.
///
/// # Errors
/// Where the kernel has no route.
pub fn towards(addresses: &[Address], peer: IpAddr) -> io::Result<Option<&Address>> {
    let source = source_towards(peer)?;
    Ok(addresses.iter().find(|address| address.ip == source))
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
        assert_eq!(found.len(), 5);
        assert_eq!((of("10.1.0.1").place.gid_index, of("10.1.0.1").kind), (3, AddressKind::RoceV2));
        assert_eq!(of("10.2.0.1").interface.as_deref(), Some("eth0.7"));
        assert_eq!(of("fe80::202:3ff:fe04:506").place.gid_index, 1);
    }

    #[test]
    fn the_route_names_the_address() {
        let place = Place { device: "rxe0".to_owned(), port: 1, gid_index: 1 };
        let ip = "127.0.0.1".parse().unwrap();
        let address = Address { place, ip, kind: AddressKind::RoceV2, interface: None };
        let other = Address { ip: "10.1.2.3".parse().unwrap(), ..address.clone() };
        let all = [other, address.clone()];
        assert_eq!(towards(&all, "127.0.0.9".parse().unwrap()).unwrap(), Some(&address));
        assert_eq!(towards(&all[..1], "127.0.0.9".parse().unwrap()).unwrap(), None);
    }
}
