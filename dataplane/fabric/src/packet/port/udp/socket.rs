//! Making the socket of a port: its options, its buffers, and the steering of a group of sockets that share an address.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::{UdpError, UdpOptions};

/// Where the number of the path lies in a datagram; its low byte is the worker's index.
pub(super) const PATH_OFFSET: usize = 4;

/// What a kernel does for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offload {
    /// It cuts one message into many datagrams.
    pub segments: bool,
    /// It joins many datagrams to one message.
    pub joins: bool,
}

/// A bound, nonblocking socket; `shared` where others are to be bound to its address.
pub(super) fn make(
    address: SocketAddr,
    options: &UdpOptions,
    shared: bool,
) -> Result<(Socket, Offload), UdpError> {
    let failed = |what| move |error| UdpError::Option { address, what, error };
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))
        .map_err(failed("cannot be made"))?;
    socket.set_nonblocking(true).map_err(failed("cannot be made nonblocking"))?;
    if shared {
        socket.set_reuse_port(true).map_err(failed("cannot share its port"))?;
    }
    never_fragment(&socket, address).map_err(failed("cannot forbid fragments"))?;
    report_ecn(&socket, address).map_err(failed("cannot report congestion marks"))?;
    for (which, forced, wanted) in [
        (libc::SO_RCVBUF, libc::SO_RCVBUFFORCE, options.receive_buffer_bytes),
        (libc::SO_SNDBUF, libc::SO_SNDBUFFORCE, options.send_buffer_bytes),
    ] {
        let wanted = c_int::try_from(wanted).unwrap_or(c_int::MAX);
        // The forced one needs CAP_NET_ADMIN; the other is cut to the sysctl without a word.
        if set(&socket, libc::SOL_SOCKET, forced, &wanted).is_err() {
            set(&socket, libc::SOL_SOCKET, which, &wanted).map_err(failed("cannot have buffers"))?;
        }
    }
    if let Some(us) = options.busy_poll_us {
        let us = c_int::try_from(us).unwrap_or(c_int::MAX);
        set(&socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &us).map_err(failed("cannot be busy-polled"))?;
    }
    if let Some(rate) = options.pacing_rate_bytes_per_s {
        set(&socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, &rate)
            .map_err(failed("cannot be paced by the kernel"))?;
    }
    // Kernels before 4.18 and 5.0 know neither: then every datagram goes on its own.
    let offload = Offload {
        segments: options.offload && set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, &(0 as c_int)).is_ok(),
        // The kernel would join datagrams for different sockets of a group: they differ in no header.
        joins: options.offload
            && !shared
            && set(&socket, libc::SOL_UDP, libc::UDP_GRO, &(1 as c_int)).is_ok(),
    };
    socket.bind(&address.into()).map_err(|error| UdpError::Bind { address, error })?;
    Ok((socket, offload))
}

/// How many bytes of datagrams wait in the socket at most, as the kernel counts them (with its own overhead).
pub(super) fn receive_buffer_bytes(socket: &Socket) -> usize {
    socket.recv_buffer_size().unwrap_or(0)
}

/// Lets the kernel pick the `n`-th socket of the group for a datagram whose path number has the low byte `n`.
pub(super) fn steer(socket: &Socket) -> io::Result<()> {
    // A datagram too short for the load ends the program with 0: the first worker throws it away.
    let mut program = [
        libc::sock_filter {
            code: (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16,
            jt: 0,
            jf: 0,
            k: PATH_OFFSET as u32,
        },
        libc::sock_filter { code: (libc::BPF_RET | libc::BPF_A) as u16, jt: 0, jf: 0, k: 0 },
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// The datagrams that this kernel cannot carry whole are refused, whatever it has heard about the path: so that the
/// probes of the protocol find out the truth.
fn never_fragment(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv6() {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_PROBE)?;
        // What an IPv6 socket sends to mapped IPv4 addresses goes by this one. A kernel without IPv4 lacks it.
        let _ = set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE);
        Ok(())
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)
    }
}

fn report_ecn(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let on: c_int = 1;
    if address.is_ipv6() {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, &on)?;
        let _ = set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, &on);
        Ok(())
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, &on)
    }
}

/// `T` is what the kernel expects for this option: a C integer or structure.
fn set<T>(socket: &Socket, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which the kernel only reads during the call; what a
    // `sock_fprog` points to lives in the caller's frame.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `net.core.rmem_max`, where it can be read.
pub(super) fn receive_buffer_limit() -> Option<usize> {
    std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?.trim().parse().ok()
}
