//! Which device, port and address reach a peer: a route of the kernel leads there out of the address's own interface, and from it.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use super::Place;
use crate::packet::port::ether::netlink::Netlink;

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

/// Those of one port, as they are now. A table has up to 1,024 places, so who needs them more than once keeps them meanwhile.
pub fn addresses_of(place: &Place) -> Vec<Address> {
    let mut found = Vec::new();
    read_port(Path::new("/sys/class/infiniband"), place, &mut found);
    in_order(found)
}

fn addresses_below(root: &Path) -> Vec<Address> {
    let mut found = Vec::new();
    for device in names(root) {
        for port in names(&root.join(&device).join("ports")) {
            let Ok(port) = port.parse() else { continue };
            read_port(root, &Place { device: device.clone(), port }, &mut found);
        }
    }
    in_order(found)
}

fn read_port(root: &Path, place: &Place, found: &mut Vec<Address>) {
    let folder = root.join(&place.device).join("ports").join(place.port.to_string());
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
        let (ip, gid) = (gid.to_canonical(), gid.octets());
        found.push(Address { place: place.clone(), gid_index, gid, ip, kind, interface });
    }
}

/// Best first, each once.
fn in_order(mut found: Vec<Address>) -> Vec<Address> {
    found.sort_by(|a, b| {
        // What reaches no other segment comes last.
        let local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let key = |address: &Address| {
            (address.kind, local(address.ip), address.place.device.clone(), address.gid_index)
        };
        key(a).cmp(&key(b))
    });
    // Most devices list each address for every kind of framing: the best is enough. Interfaces may share one (VLANs their link's).
    let mut seen = HashSet::new();
    found.retain(|address| seen.insert((address.place.clone(), address.gid, address.interface.clone())));
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

/// Whether a port is there and up.
pub fn is_active(place: &Place) -> bool {
    let port = format!("/sys/class/infiniband/{}/ports/{}/state", place.device, place.port);
    fs::read_to_string(port).is_ok_and(|state| state.trim().ends_with("ACTIVE"))
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

/// Whether an address reaches another, and then whether that is the way which the kernel takes by itself.
type Reaches<'a> = &'a mut dyn FnMut(&Address, IpAddr) -> Option<bool>;

/// Asks the kernel: a route leads there out of the address's interface, from that address. Where two devices share a subnet only one of
/// them is the kernel's own choice, and both can do it.
fn by_the_kernels_routes(netlink: &mut Option<Netlink>, own: &Address, peer: IpAddr) -> Option<bool> {
    let (Some(netlink), Some(name)) = (netlink, &own.interface) else {
        return source_towards(peer).is_ok_and(|source| source == own.ip).then_some(true);
    };
    let index = netlink.index(name).ok()?;
    let route = netlink.route(Some(index), peer).ok()??;
    if route.source.is_some_and(|source| source != own.ip) {
        return None;
    }
    Some(netlink.route(None, peer).ok().flatten().is_some_and(|first| first.interface == Some(index)))
}

/// Of `own` and the addresses of a peer's port the best two that reach each other: by the routes that the kernel has for packets, by the
/// subnet on InfiniBand.
pub fn reaching<'a>(own: &'a [Address], theirs: &[[u8; 16]]) -> Option<(&'a Address, [u8; 16])> {
    let mut netlink = Netlink::open().ok();
    reaching_by(own, theirs, &mut |own, peer| by_the_kernels_routes(&mut netlink, own, peer))
}

fn reaching_by<'a>(
    own: &'a [Address],
    theirs: &[[u8; 16]],
    reaches: Reaches<'_>,
) -> Option<(&'a Address, [u8; 16])> {
    let mut second = None;
    for own in own {
        for theirs in theirs {
            let ip = Ipv6Addr::from(*theirs).to_canonical();
            let reached = match own.kind {
                AddressKind::InfiniBand => (own.gid[..8] == theirs[..8]).then_some(true),
                _ if own.ip.is_ipv4() != ip.is_ipv4() => None,
                _ => reaches(own, ip),
            };
            match reached {
                Some(true) => return Some((own, *theirs)),
                Some(false) => drop(second.get_or_insert((own, *theirs))),
                None => {}
            }
        }
    }
    second
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port's tables as the kernel shows them.
    fn write_tables(root: &Path, gids: &[(&str, &str, &str, &str)]) {
        let port = root.join("mlx5_0/ports/1");
        for folder in ["gids", "gid_attrs/types", "gid_attrs/ndevs"] {
            let _ = fs::remove_dir_all(port.join(folder));
            fs::create_dir_all(port.join(folder)).unwrap();
        }
        fs::write(port.join("link_layer"), "Ethernet\n").unwrap();
        for (index, gid, kind, interface) in gids {
            fs::write(port.join("gids").join(index), format!("{gid}\n")).unwrap();
            fs::write(port.join("gid_attrs/types").join(index), format!("{kind}\n")).unwrap();
            fs::write(port.join("gid_attrs/ndevs").join(index), format!("{interface}\n")).unwrap();
        }
    }

    const LOCAL: &str = "fe80:0000:0000:0000:0202:03ff:fe04:0506";
    const PLAIN: &str = "0000:0000:0000:0000:0000:ffff:0a01:0001";
    const VLAN: &str = "0000:0000:0000:0000:0000:ffff:0a02:0001";

    #[test]
    fn addresses_are_read_from_the_kernels_tables() {
        let root = tempfile::tempdir().unwrap();
        let none = ("5", "0000:0000:0000:0000:0000:0000:0000:0000", "", "");
        let gids = [
            ("0", LOCAL, "IB/RoCE v1", "eth0"),
            ("1", LOCAL, "RoCE v2", "eth0"),
            ("2", PLAIN, "IB/RoCE v1", "eth0"),
            ("3", PLAIN, "RoCE v2", "eth0"),
            ("4", VLAN, "RoCE v2", "eth0.7"),
            none,
            ("6", LOCAL, "RoCE v2", "eth0.7"),
        ];
        write_tables(root.path(), &gids);
        let found = addresses_below(root.path());
        let of = |ip: &str| found.iter().find(|address| address.ip == ip.parse::<IpAddr>().unwrap()).unwrap();
        assert_eq!(found.len(), 4, "each address of each interface once");
        assert_eq!((of("10.1.0.1").gid_index, of("10.1.0.1").kind), (3, AddressKind::RoceV2));
        assert_eq!(of("10.2.0.1").interface.as_deref(), Some("eth0.7"));
        assert_eq!(of("fe80::202:3ff:fe04:506").gid_index, 1);
    }

    /// Routes: to which network, out of which interface, from which address. The first is the kernel's own choice.
    fn by_table<'a>(
        routes: &'a [([u8; 3], &'a str, [u8; 4])],
    ) -> impl FnMut(&Address, IpAddr) -> Option<bool> + 'a {
        move |own, peer| {
            let IpAddr::V4(peer) = peer else { return None };
            let mut there = routes.iter().filter(|(network, ..)| peer.octets()[..3] == *network);
            let first = there.clone().next()?;
            let (_, interface, _) = there.find(|(_, interface, source)| {
                own.interface.as_deref() == Some(interface) && own.ip == IpAddr::from(*source)
            })?;
            Some(*interface == first.1)
        }
    }

    fn gid(ip: &str) -> [u8; 16] {
        address(AddressKind::RoceV2, ip).gid
    }

    #[test]
    fn the_tables_are_read_anew_and_a_vlan_is_an_interface_of_its_own() {
        let root = tempfile::tempdir().unwrap();
        let routes = [([10, 1, 0], "eth0", [10, 1, 0, 1]), ([10, 2, 0], "eth0.7", [10, 2, 0, 1])];
        let index = || {
            let own = addresses_below(root.path());
            let peer = [gid("10.2.0.9")];
            let found = reaching_by(&own, &peer, &mut by_table(&routes));
            found.map(|(own, to)| (own.gid_index, own.interface.clone(), to == peer[0]))
        };
        write_tables(root.path(), &[("0", LOCAL, "RoCE v2", "eth0"), ("1", PLAIN, "RoCE v2", "eth0")]);
        assert_eq!(index(), None, "the VLAN is not there yet");
        let vlan = |index| [("1", PLAIN, "RoCE v2", "eth0"), (index, VLAN, "RoCE v2", "eth0.7")];
        write_tables(root.path(), &vlan("4"));
        assert_eq!(index(), Some((4, Some("eth0.7".to_owned()), true)));
        write_tables(root.path(), &vlan("2"));
        assert_eq!(index(), Some((2, Some("eth0.7".to_owned()), true)), "its place has changed");
        write_tables(root.path(), &vlan("4")[..1]);
        assert_eq!(index(), None, "it is gone again");
    }

    #[test]
    fn devices_in_one_subnet_are_each_used_and_the_routes_own_comes_first() {
        let on = |interface: &str, ip: &str| Address {
            interface: Some(interface.to_owned()),
            ..address(AddressKind::RoceV2, ip)
        };
        let (one, two) = (on("eth0", "10.1.0.1"), on("eth1", "10.1.0.2"));
        let routes = [([10, 1, 0], "eth1", [10, 1, 0, 2]), ([10, 1, 0], "eth0", [10, 1, 0, 1])];
        let theirs = [gid("10.3.0.9"), gid("10.1.0.9")];
        let chosen =
            |own: &[Address]| reaching_by(own, &theirs, &mut by_table(&routes)).map(|(own, to)| (own.ip, to));
        assert_eq!(chosen(&[one.clone(), two.clone()]), Some((two.ip, theirs[1])));
        // The other device's own port.
        assert_eq!(chosen(std::slice::from_ref(&one)), Some((one.ip, theirs[1])));
        // The address of one interface on another is of no use.
        assert_eq!(chosen(&[on("eth0", "10.1.0.2")]), None);
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
