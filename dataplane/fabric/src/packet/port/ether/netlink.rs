//! The kernel's tables of interfaces, routes and neighbours by rtnetlink(7): single questions and their answers over one socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Mac;

/// How long the kernel may take, which answers at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// More than the kernel's largest answer to a single question (an interface with many virtual functions).
const ANSWER_MAX_BYTES: usize = 64 << 10;

const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
const MESSAGE_NEW_LINK: u16 = 16;
const MESSAGE_GET_LINK: u16 = 18;
const MESSAGE_NEW_ADDRESS: u16 = 20;
const MESSAGE_GET_ADDRESS: u16 = 22;
const MESSAGE_NEW_ROUTE: u16 = 24;
const MESSAGE_GET_ROUTE: u16 = 26;
const MESSAGE_NEW_NEIGHBOUR: u16 = 28;
const MESSAGE_GET_NEIGHBOUR: u16 = 30;

const REQUEST: u16 = 0x001;
const ACKNOWLEDGE: u16 = 0x004;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_INFO: u16 = 18;
const LINK_INFO_KIND: u16 = 1;
const LINK_XDP: u16 = 43;
const LINK_XDP_PROGRAM: u16 = 4;
const LINK_IS_UP: u32 = 1;

const ADDRESS_PREFIX: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
/// Temporary or not the first of its network, failed, deprecated, not yet known to be free.
const ADDRESS_UNFIT: u8 = 0x01 | 0x08 | 0x20 | 0x40;
/// Scopes from here on end at the link or at the host.
const SCOPE_LINK: u8 = 253;

const ROUTE_DESTINATION: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const ROUTE_SOURCE: u16 = 2;
const ROUTE_VIA: u16 = 18;
const ROUTE_PREFERRED_SOURCE: u16 = 7;
const ROUTE_UNICAST: u8 = 1;
const ROUTE_LOCAL: u8 = 2;
/// Flag: the entry of the table that matches, not what would be done.
const ROUTE_OF_TABLE: u32 = 0x2000;

const NEIGHBOUR_DESTINATION: u16 = 1;
const NEIGHBOUR_ADDRESS: u16 = 2;
/// Flag: as if a datagram were to be sent.
const NEIGHBOUR_USE: u8 = 0x01;
const STATE_REACHABLE: u16 = 0x02;
const STATE_NO_ARP: u16 = 0x40;
const STATE_PERMANENT: u16 = 0x80;
/// Reachable, stale, delay, probe, without ARP, permanent: there is an address to send to.
const STATE_VALID: u16 = 0xde;

/// Notifications about neighbours, interfaces and routes.
pub(super) const GROUPS: u32 = 1 << 0 | 1 << 2 | 1 << 6 | 1 << 10;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct MessageHeader {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct AttributeHeader {
    len: u16,
    kind: u16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Default)]
#[repr(C)]
struct LinkMessage {
    family: u8,
    pad: u8,
    kind: u16,
    index: u32,
    flags: u32,
    change: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Default)]
#[repr(C)]
struct AddressMessage {
    family: u8,
    prefix_bits: u8,
    flags: u8,
    scope: u8,
    interface: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Default)]
#[repr(C)]
struct RouteMessage {
    family: u8,
    destination_bits: u8,
    source_bits: u8,
    service: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Default)]
#[repr(C)]
struct NeighbourMessage {
    family: u8,
    pad: [u8; 3],
    interface: u32,
    state: u16,
    flags: u8,
    kind: u8,
}

/// An interface of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::packet::port) struct Link {
    pub(in crate::packet::port) index: u32,
    pub(in crate::packet::port) name: String,
    pub(in crate::packet::port) mac: Option<Mac>,
    pub(in crate::packet::port) mtu: u32,
    pub(in crate::packet::port) is_up: bool,
    /// `veth`, `bond`, …; none for a device of its own.
    pub(in crate::packet::port) kind: Option<String>,
    /// The XDP program that is attached to it.
    pub(in crate::packet::port) program: Option<u32>,
}

/// What the kernel knows of a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NeighbourState {
    /// Where it is.
    pub(super) mac: Option<Mac>,
    /// Whether the kernel is sure of it, so that there is no reason to have it asked.
    pub(super) sure: bool,
}

/// How the kernel would send somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    /// Out of which interface; none where it says several.
    pub(crate) interface: Option<u32>,
    /// From which address, where it says so.
    pub(crate) source: Option<IpAddr>,
}

/// One socket.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    question: Vec<u8>,
    answer: Vec<u8>,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(0, SocketFlags::CLOEXEC)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: 0, question: Vec::new(), answer: vec![0; ANSWER_MAX_BYTES] })
    }

    /// The interface called `name`.
    pub(in crate::packet::port) fn link(&mut self, name: &str) -> io::Result<Link> {
        self.begin(MESSAGE_GET_LINK, REQUEST, LinkMessage::default().as_bytes());
        self.put(LINK_NAME, &[name.as_bytes(), &[0]].concat());
        let answer = self.exchange(MESSAGE_NEW_LINK)?.ok_or(io::ErrorKind::NotFound)?;
        let (message, attributes) = LinkMessage::read_from_prefix(&answer).map_err(|_| malformed())?;
        let mut link = Link {
            index: message.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            is_up: message.flags & LINK_IS_UP != 0,
            kind: None,
            program: None,
        };
        for (kind, value) in Attributes(attributes) {
            match kind {
                LINK_NAME => link.name = text(value),
                LINK_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                LINK_MTU => link.mtu = number(value).unwrap_or(0),
                LINK_INFO => {
                    link.kind =
                        Attributes(value).find(|(kind, _)| *kind == LINK_INFO_KIND).map(|(_, v)| text(v));
                }
                LINK_XDP => {
                    let mut inner = Attributes(value).filter(|(kind, _)| *kind >= LINK_XDP_PROGRAM);
                    link.program = inner.find_map(|(_, value)| number(value).filter(|id| *id != 0));
                }
                _ => {}
            }
        }
        Ok(link)
    }

    /// The addresses of an interface that others can send to, those of IPv4 first.
    pub(in crate::packet::port) fn addresses(&mut self, interface: u32) -> io::Result<Vec<IpAddr>> {
        self.begin(MESSAGE_GET_ADDRESS, REQUEST | DUMP, AddressMessage::default().as_bytes());
        let mut found = Vec::new();
        self.ask(|kind, body| {
            if kind != MESSAGE_NEW_ADDRESS {
                return Ok((kind == MESSAGE_DONE).then_some(()));
            }
            let (message, attributes) = AddressMessage::read_from_prefix(body).map_err(|_| malformed())?;
            let fit = message.flags & ADDRESS_UNFIT == 0 && message.scope < SCOPE_LINK;
            if message.interface == interface && fit {
                let of = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted);
                // On a point-to-point link the prefix is the other end's.
                let local = of(ADDRESS_LOCAL).or_else(|| of(ADDRESS_PREFIX));
                found.extend(local.and_then(|(_, value)| address(value)));
            }
            Ok(None)
        })?;
        found.sort_by_key(IpAddr::is_ipv6);
        Ok(found)
    }

    /// The neighbour to hand what goes to `destination` to, if the route leads out of this interface.
    pub(super) fn next_hop(
        &mut self,
        interface: u32,
        source: IpAddr,
        destination: IpAddr,
    ) -> io::Result<Option<IpAddr>> {
        let bits = if destination.is_ipv4() { 32 } else { 128 };
        let message = RouteMessage {
            family: family(destination),
            destination_bits: bits,
            source_bits: bits,
            ..RouteMessage::default()
        };
        self.begin(MESSAGE_GET_ROUTE, REQUEST, message.as_bytes());
        self.put_address(ROUTE_DESTINATION, destination);
        self.put(ROUTE_INTERFACE, &interface.to_ne_bytes());
        self.put_address(ROUTE_SOURCE, source);
        let answer = match self.exchange(MESSAGE_NEW_ROUTE) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(None),
            // What the kernel says of a place where nothing leads: unreachable, prohibited, a black hole.
            Err(error) if is_answer(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (message, attributes) = RouteMessage::read_from_prefix(&answer).map_err(|_| malformed())?;
        if message.kind != ROUTE_UNICAST {
            return Ok(None);
        }
        let mut hop = destination;
        for (kind, value) in Attributes(attributes) {
            match kind {
                ROUTE_INTERFACE if number(value) != Some(interface) => return Ok(None),
                ROUTE_GATEWAY => hop = address(value).ok_or_else(malformed)?,
                // A gateway of the other family: its family, then its address.
                ROUTE_VIA => hop = value.get(2..).and_then(address).ok_or_else(malformed)?,
                _ => {}
            }
        }
        Ok(Some(hop))
    }

    /// The number of the interface called `name`.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<u32> {
        Ok(self.link(name)?.index)
    }

    /// How the kernel would send to `destination`, out of this interface if one is given; none where nothing leads there that way.
    pub(crate) fn route(&mut self, interface: Option<u32>, destination: IpAddr) -> io::Result<Option<Route>> {
        // Of an interface without a route the kernel supposes that everything is on its link: only the table itself says otherwise.
        if let Some(interface) = interface {
            let entry = self.ask_route(Some(interface), destination, ROUTE_OF_TABLE)?;
            if entry.is_none_or(|entry| entry.interface.is_some_and(|found| found != interface)) {
                return Ok(None);
            }
        }
        self.ask_route(interface, destination, 0)
    }

    fn ask_route(
        &mut self,
        interface: Option<u32>,
        destination: IpAddr,
        flags: u32,
    ) -> io::Result<Option<Route>> {
        let destination_bits = if destination.is_ipv4() { 32 } else { 128 };
        let family = family(destination);
        let message = RouteMessage { family, destination_bits, flags, ..RouteMessage::default() };
        self.begin(MESSAGE_GET_ROUTE, REQUEST, message.as_bytes());
        self.put_address(ROUTE_DESTINATION, destination);
        if let Some(interface) = interface {
            self.put(ROUTE_INTERFACE, &interface.to_ne_bytes());
        }
        let answer = match self.exchange(MESSAGE_NEW_ROUTE) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(None),
            Err(error) if is_answer(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (message, attributes) = RouteMessage::read_from_prefix(&answer).map_err(|_| malformed())?;
        if !matches!(message.kind, ROUTE_UNICAST | ROUTE_LOCAL) {
            return Ok(None);
        }
        let of = |wanted| Attributes(attributes).find(|(kind, _)| *kind == wanted);
        let interface = of(ROUTE_INTERFACE).and_then(|(_, value)| number(value));
        let source = of(ROUTE_PREFERRED_SOURCE).and_then(|(_, value)| address(value));
        Ok(Some(Route { interface, source }))
    }

    /// What the kernel knows of a neighbour.
    pub(super) fn neighbour(&mut self, interface: u32, hop: IpAddr) -> io::Result<NeighbourState> {
        let unknown = NeighbourState { mac: None, sure: false };
        let message = NeighbourMessage { family: family(hop), interface, ..NeighbourMessage::default() };
        self.begin(MESSAGE_GET_NEIGHBOUR, REQUEST, message.as_bytes());
        self.put_address(NEIGHBOUR_DESTINATION, hop);
        let answer = match self.exchange(MESSAGE_NEW_NEIGHBOUR) {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(unknown),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(unknown),
            Err(error) => return Err(error),
        };
        let (message, attributes) = NeighbourMessage::read_from_prefix(&answer).map_err(|_| malformed())?;
        let mac = Attributes(attributes)
            .find(|(kind, _)| *kind == NEIGHBOUR_ADDRESS)
            .and_then(|(_, value)| value.try_into().ok().map(Mac))
            .filter(|_| message.state & STATE_VALID != 0);
        let sure = message.state & (STATE_REACHABLE | STATE_PERMANENT | STATE_NO_ARP) != 0;
        Ok(NeighbourState { mac, sure: sure && mac.is_some() })
    }

    /// Has the kernel find a neighbour, or make sure of it, as if a datagram were to be sent there.
    pub(super) fn use_neighbour(&mut self, interface: u32, hop: IpAddr) -> io::Result<()> {
        let message = NeighbourMessage {
            family: family(hop),
            interface,
            flags: NEIGHBOUR_USE,
            ..NeighbourMessage::default()
        };
        self.begin(MESSAGE_NEW_NEIGHBOUR, REQUEST | ACKNOWLEDGE | CREATE, message.as_bytes());
        self.put_address(NEIGHBOUR_DESTINATION, hop);
        self.exchange(MESSAGE_NEW_NEIGHBOUR).map(|_| ())
    }

    fn begin(&mut self, kind: u16, flags: u16, message: &[u8]) {
        self.sequence = self.sequence.wrapping_add(1);
        let header = MessageHeader { len: 0, kind, flags, sequence: self.sequence, port: 0 };
        self.question.clear();
        self.question.extend_from_slice(header.as_bytes());
        self.question.extend_from_slice(message);
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        let len = (size_of::<AttributeHeader>() + value.len()) as u16;
        self.question.extend_from_slice(AttributeHeader { len, kind }.as_bytes());
        self.question.extend_from_slice(value);
        self.question.resize(self.question.len().next_multiple_of(4), 0);
    }

    fn put_address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.put(kind, &address.octets()),
            IpAddr::V6(address) => self.put(kind, &address.octets()),
        }
    }

    /// Sends the question and gives the body of its answer; `None` where the answer is that it was done.
    fn exchange(&mut self, wanted: u16) -> io::Result<Option<Vec<u8>>> {
        self.ask(|kind, body| Ok((kind == wanted).then(|| body.to_vec())))
    }

    /// Sends the question and shows each answer's kind and body to `each`, until that has what it wants, or (`None`) the answer is
    /// that it was done.
    fn ask<T>(&mut self, mut each: impl FnMut(u16, &[u8]) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        let len = self.question.len() as u32;
        self.question[..4].copy_from_slice(&len.to_ne_bytes());
        rustix::net::send(&self.socket, &self.question, SendFlags::empty())?;
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut self.answer[..], RecvFlags::empty())?;
            let mut at = 0;
            while let Some((header, body)) = message(&self.answer[..len], at) {
                at += (header.len as usize).next_multiple_of(4);
                if header.sequence != self.sequence {
                    continue;
                }
                if header.kind == MESSAGE_ERROR {
                    let code = body.get(..4).and_then(|code| i32::read_from_bytes(code).ok());
                    return match code.ok_or_else(malformed)? {
                        0 => Ok(None),
                        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    };
                }
                if let Some(found) = each(header.kind, body)? {
                    return Ok(Some(found));
                }
            }
        }
    }
}

/// A socket that hears when neighbours, interfaces or routes change. What is heard says only that something has.
pub(super) struct Notifications(OwnedFd);

impl Notifications {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self(socket(GROUPS, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?))
    }

    /// Throws away what has been heard so far. Losing some is as good as hearing it.
    pub(super) fn drain(&self) {
        let mut bytes = [0; 4096];
        while !matches!(
            rustix::net::recv(&self.0, &mut bytes[..], RecvFlags::empty()),
            Err(rustix::io::Errno::AGAIN)
        ) {}
    }
}

impl AsFd for Notifications {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn socket(groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn message(bytes: &[u8], at: usize) -> Option<(MessageHeader, &[u8])> {
    let bytes = bytes.get(at..)?;
    let (header, _) = MessageHeader::read_from_prefix(bytes).ok()?;
    let body = bytes.get(size_of::<MessageHeader>()..header.len as usize)?;
    Some((header, body))
}

/// Attributes of a message, as far as they are well formed.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const NESTED_AND_ORDER: u16 = 0xc000;
        let (header, _) = AttributeHeader::read_from_prefix(self.0).ok()?;
        let len = usize::from(header.len);
        let value = self.0.get(size_of::<AttributeHeader>()..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((header.kind & !NESTED_AND_ORDER, value))
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    family.as_raw() as u8
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    u32::read_from_bytes(bytes).ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

fn is_answer(error: &io::Error) -> bool {
    let answers = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::ENETDOWN];
    error.raw_os_error().is_some_and(|code| answers.contains(&code))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer of rtnetlink is shorter than it must be")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface() {
        let mut netlink = Netlink::open().unwrap();
        let link = netlink.link("lo").unwrap();
        assert_eq!((link.name.as_str(), link.kind.as_deref(), link.program), ("lo", None, None));
        assert!(link.mtu > 1000);
        let nobody = netlink.link("velo-none").unwrap_err();
        assert_eq!(nobody.raw_os_error(), Some(libc::ENODEV));
        // What is here is not reached through a neighbour.
        let here = "127.0.0.1".parse().unwrap();
        assert_eq!(netlink.next_hop(link.index, here, here).unwrap(), None);
    }

    #[test]
    fn routes_out_of_an_interface() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.index("lo").unwrap();
        let here = "127.0.0.9".parse().unwrap();
        let route = Route { interface: Some(lo), source: Some("127.0.0.1".parse().unwrap()) };
        assert_eq!(netlink.route(Some(lo), here).unwrap(), Some(route));
        assert_eq!(netlink.route(None, here).unwrap(), Some(route));
        // The kernel would send this out of the loopback interface if it were told to, but has no such route.
        assert_eq!(netlink.route(Some(lo), "192.0.2.1".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn attributes_end_where_they_are_malformed() {
        let good = [8u8, 0, 4, 0x80, 1, 0, 0, 0, 6, 0, 1, 0, b'h', 0, 0, 0];
        let read: Vec<_> = Attributes(&good).collect();
        assert_eq!(read, [(4, &[1, 0, 0, 0][..]), (1, b"h\0")]);
        assert_eq!(Attributes(&good[..10]).count(), 1);
        assert_eq!(Attributes(&[0, 0, 0, 0, 1]).count(), 0);
        assert_eq!(Attributes(&[3, 0, 0, 0, 1]).count(), 0);
    }
}
