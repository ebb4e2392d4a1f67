//! Messages to and from the kernel, many in one call: `recvmmsg` and `sendmmsg` with their addresses and control
//! messages (the size of segments, congestion marks).

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::packet::port::Ecn;

/// Messages received in one call, at most.
const RX_MESSAGES: usize = 32;
/// Bytes received in one call, about: what is still in the second cache when it is looked at.
const RX_BYTES: usize = 256 << 10;
/// Messages sent in one call.
pub(super) const TX_MESSAGES: usize = 32;
/// The most segments that the kernel cuts one message into (`UDP_MAX_SEGMENTS` of the oldest kernels that can).
pub(super) const SEGMENTS_MAX: usize = 64;
/// Room for the largest message.
const RX_SPACE_BYTES: usize = 65_536;
/// The distance between two spaces is no power of two: otherwise the beginnings of all would compete for the same
/// few lines of the caches.
const RX_STRIDE_BYTES: usize = RX_SPACE_BYTES + 4096 + 128;

/// Room for the control messages of one message: two, each of one C integer.
const CONTROL_BYTES: usize = 64;

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL_BYTES]);

const EMPTY_CONTROL: Control = Control([0; CONTROL_BYTES]);

/// A message that has been received.
pub(super) struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it lies in the slab.
    pub range: Range<usize>,
    /// The length of each of its datagrams but the last.
    pub segment: usize,
    /// The mark on it.
    pub ecn: Ecn,
}

/// Memory for one call's worth of received messages.
pub(super) struct RxSlab {
    bytes: Box<[u8]>,
    /// How many messages the next call asks for.
    messages: usize,
}

impl RxSlab {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; RX_MESSAGES * RX_STRIDE_BYTES].into_boxed_slice(), messages: RX_MESSAGES }
    }

    pub(super) fn space(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.bytes[range]
    }
}

/// Receives into `slab`, without waiting, about as many messages as lie in the caches until they have been looked at. `each` gets a message, or `None` for one that is not
/// whole or comes from no address.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    slab: &mut RxSlab,
    mut each: impl FnMut(&mut RxSlab, Option<Received>),
) -> io::Result<usize> {
    // SAFETY: these are C structures of integers and pointers, for which zeros are a value.
    let mut headers: [libc::mmsghdr; RX_MESSAGES] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut names: [libc::sockaddr_in6; RX_MESSAGES] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut vectors: [libc::iovec; RX_MESSAGES] = unsafe { mem::zeroed() };
    let mut controls = [EMPTY_CONTROL; RX_MESSAGES];
    let messages = slab.messages;
    let spaces = slab.bytes.chunks_exact_mut(RX_STRIDE_BYTES);
    for (i, space) in spaces.take(messages).enumerate() {
        vectors[i] = libc::iovec { iov_base: space.as_mut_ptr().cast(), iov_len: RX_SPACE_BYTES };
        let header = &mut headers[i].msg_hdr;
        header.msg_name = ptr::from_mut(&mut names[i]).cast();
        header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
        header.msg_iov = &mut vectors[i];
        header.msg_iovlen = 1;
        header.msg_control = controls[i].0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES as _;
    }
    let count = loop {
        // SAFETY: every header points to memory of this frame and of the slab, with the lengths that it states, all of
        // which outlive the call; the number of headers is that of the array.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                messages as u32,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if count >= 0 {
            break count as usize;
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(0),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    };
    let bytes: usize = headers[..count].iter().map(|header| header.msg_len as usize).sum();
    slab.messages = (RX_BYTES * count).checked_div(bytes).unwrap_or(RX_MESSAGES).clamp(2, RX_MESSAGES);
    for (i, header) in headers[..count].iter().enumerate() {
        let len = (header.msg_len as usize).min(RX_SPACE_BYTES);
        let (segment, ecn) = parse_control(&header.msg_hdr);
        let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        let message = address_of(&names[i]).filter(|_| whole).map(|from| Received {
            from,
            range: i * RX_STRIDE_BYTES..i * RX_STRIDE_BYTES + len,
            segment: segment.filter(|&size| size > 0).unwrap_or(len),
            ecn,
        });
        each(slab, message);
    }
    Ok(count)
}

/// The size of the segments and the congestion mark that the kernel reports.
fn parse_control(header: &libc::msghdr) -> (Option<usize>, Ecn) {
    let (mut segment, mut ecn) = (None, Ecn::NotCapable);
    // SAFETY: the kernel has filled the control buffer, which the header describes, and set its length.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: `next` is a control message within the buffer, aligned as `Control` is and the macros keep it.
        let (level, kind, data) = unsafe { ((*next).cmsg_level, (*next).cmsg_type, libc::CMSG_DATA(next)) };
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: the kernel gives this one a C integer.
                let size = unsafe { data.cast::<c_int>().read_unaligned() };
                segment = usize::try_from(size).ok();
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                // SAFETY: the kernel gives this one a byte.
                ecn = ecn_of(unsafe { data.read() });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // SAFETY: the kernel gives this one a C integer.
                ecn = ecn_of(unsafe { data.cast::<c_int>().read_unaligned() } as u8);
            }
            _ => {}
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    (segment, ecn)
}

/// One message to be sent: datagrams to one address, back to back, all but the last of one length.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub to: SocketAddr,
    /// Where it lies in the slab.
    pub range: Range<usize>,
    /// The length of its datagrams, but for the last.
    pub segment: usize,
    /// How many they are.
    pub count: usize,
    pub ecn: Ecn,
    /// The low byte of the path's number at their other end.
    pub path: u8,
    /// Whether it probes for a size.
    pub probe: bool,
}

/// Hands messages to the kernel in one call. Returns how many of them it took: less than all where the next one is
/// refused, which another call would say.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    slab: &[u8],
    messages: &[Outgoing],
    mapped: bool,
) -> io::Result<usize> {
    let messages = &messages[..messages.len().min(TX_MESSAGES)];
    // SAFETY: these are C structures of integers and pointers, for which zeros are a value.
    let mut headers: [libc::mmsghdr; TX_MESSAGES] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut names: [libc::sockaddr_in6; TX_MESSAGES] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut vectors: [libc::iovec; TX_MESSAGES] = unsafe { mem::zeroed() };
    let mut controls = [EMPTY_CONTROL; TX_MESSAGES];
    for (i, message) in messages.iter().enumerate() {
        let bytes = &slab[message.range.clone()];
        vectors[i] = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let header = &mut headers[i].msg_hdr;
        header.msg_namelen = write_address(&mut names[i], message.to, mapped);
        header.msg_name = ptr::from_mut(&mut names[i]).cast();
        header.msg_iov = &mut vectors[i];
        header.msg_iovlen = 1;
        header.msg_controllen = write_control(&mut controls[i], message) as _;
        header.msg_control = controls[i].0.as_mut_ptr().cast();
    }
    loop {
        // SAFETY: every header points to memory of this frame and of the slab, with the lengths that it states, all of
        // which outlive the call; the kernel writes only the headers' counts.
        let count = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                messages.len() as u32,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        if count >= 0 {
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Writes the control messages for `message`; returns their length.
fn write_control(control: &mut Control, message: &Outgoing) -> usize {
    let mark = c_int::from(bits_of(message.ecn));
    let (level, kind) = match message.to.ip() {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_none() => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        _ => (libc::IPPROTO_IP, libc::IP_TOS),
    };
    let mut len = 0;
    put_control(control, &mut len, level, kind, mark);
    if message.count > 1 {
        put_control(control, &mut len, libc::SOL_UDP, libc::UDP_SEGMENT, message.segment as u16);
    }
    len
}

fn put_control<T: Copy>(control: &mut Control, len: &mut usize, level: c_int, kind: c_int, value: T) {
    const HEADER_BYTES: usize = size_of::<libc::cmsghdr>();
    let size = HEADER_BYTES + size_of::<T>();
    let space = size.next_multiple_of(align_of::<libc::cmsghdr>());
    assert!(*len + space <= CONTROL_BYTES);
    // SAFETY: zeros are a value of this C structure of integers.
    let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
    header.cmsg_len = size as _;
    header.cmsg_level = level;
    header.cmsg_type = kind;
    let at = control.0[*len..].as_mut_ptr();
    // SAFETY: `space` bytes at `at` lie in the buffer, as asserted; the writes are unaligned.
    unsafe {
        at.cast::<libc::cmsghdr>().write_unaligned(header);
        at.add(HEADER_BYTES).cast::<T>().write_unaligned(value);
    }
    *len += space;
}

fn bits_of(ecn: Ecn) -> u8 {
    match ecn {
        Ecn::NotCapable => 0b00,
        Ecn::Capable => 0b10,
        Ecn::Congested => 0b11,
    }
}

fn ecn_of(traffic_class: u8) -> Ecn {
    match traffic_class & 0b11 {
        0b00 => Ecn::NotCapable,
        0b11 => Ecn::Congested,
        _ => Ecn::Capable,
    }
}

/// The address that the kernel wrote; a mapped one as the IPv4 address that it stands for.
fn address_of(name: &libc::sockaddr_in6) -> Option<SocketAddr> {
    match c_int::from(name.sin6_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the kernel wrote an IPv4 address, which is smaller.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 => {
            let (ip, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddrV4::new(ip, port).into(),
                None => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            })
        }
        _ => None,
    }
}

/// Writes `address` for a socket of IPv4, or one of IPv6 where `mapped`. Returns its length.
fn write_address(name: &mut libc::sockaddr_in6, address: SocketAddr, mapped: bool) -> libc::socklen_t {
    let address = match address {
        SocketAddr::V4(v4) if mapped => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0),
        SocketAddr::V4(v4) => {
            let mut value = MaybeUninit::<libc::sockaddr_in>::zeroed();
            // SAFETY: zeros are a value of this C structure of integers.
            let value = unsafe { value.assume_init_mut() };
            value.sin_family = libc::AF_INET as _;
            value.sin_port = v4.port().to_be();
            value.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
            // SAFETY: an IPv4 address is smaller than the space for an IPv6 one, and no more strictly aligned.
            unsafe { ptr::from_mut(name).cast::<libc::sockaddr_in>().write(*value) };
            return size_of::<libc::sockaddr_in>() as _;
        }
        SocketAddr::V6(v6) => v6,
    };
    name.sin6_family = libc::AF_INET6 as _;
    name.sin6_port = address.port().to_be();
    name.sin6_flowinfo = 0;
    name.sin6_addr.s6_addr = address.ip().octets();
    name.sin6_scope_id = address.scope_id();
    size_of::<libc::sockaddr_in6>() as _
}
