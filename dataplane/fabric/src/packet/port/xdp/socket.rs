//! An AF_XDP socket with its rings: made, and bound to one queue of an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_send_buffer_size_force, set_xdp_rx_ring_size, set_xdp_tx_ring_size,
    set_xdp_umem_completion_ring_size, set_xdp_umem_fill_ring_size, xdp_mmap_offsets, xdp_options,
    xdp_statistics,
};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::ring::{Consuming, Descriptor, Producing};

/// In copy mode what is on its way counts against the socket's buffer, which by default holds three of the largest frames.
const SEND_BUFFER_BYTES: usize = 16 << 20;

/// The rings of a socket. Those for sending only where it sends.
pub(super) struct Rings {
    pub(super) fill: Producing<u64>,
    pub(super) completion: Consuming<u64>,
    pub(super) receive: Consuming<Descriptor>,
    pub(super) send: Producing<Descriptor>,
}

/// The socket.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new() -> io::Result<Self> {
        let socket =
            rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // Without it (CAP_NET_ADMIN is missing) the largest frames go more slowly.
        let _ = set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES);
        Ok(Self(socket))
    }

    /// Makes the rings: for `receive` chunks to receive into, and `send` pieces to send; powers of two. The memory is registered.
    ///
    /// The kernel shows what it has received before it shows that it has taken the chunks for it from the ring for filling
    /// (`xsk_flush`). That ring is twice as long, so that a chunk which comes back in between finds room.
    pub(super) fn rings(&self, receive: u32, send: u32) -> io::Result<Rings> {
        set_xdp_umem_fill_ring_size(&self.0, 2 * receive)?;
        set_xdp_umem_completion_ring_size(&self.0, send)?;
        set_xdp_rx_ring_size(&self.0, receive)?;
        set_xdp_tx_ring_size(&self.0, send)?;
        let offsets = xdp_mmap_offsets(&self.0)?;
        let socket = self.0.as_fd();
        Ok(Rings {
            fill: Producing::map(socket, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, 2 * receive)?,
            completion: Consuming::map(socket, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, send)?,
            receive: Consuming::map(socket, XDP_PGOFF_RX_RING, &offsets.rx, receive)?,
            send: Producing::map(socket, XDP_PGOFF_TX_RING, &offsets.tx, send)?,
        })
    }

    /// Binds it to a queue: without copies where the driver can, else with them.
    pub(super) fn bind(&self, interface: u32, queue: u32, fragments: bool) -> io::Result<()> {
        let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        if fragments {
            flags |= SocketAddrXdpFlags::XDP_USE_SG;
        }
        let bind = |copies| rustix::net::bind(&self.0, &SocketAddrXdp::new(flags | copies, interface, queue));
        match bind(SocketAddrXdpFlags::XDP_ZEROCOPY) {
            Ok(()) => Ok(()),
            Err(error @ (Errno::BUSY | Errno::NODEV | Errno::NETDOWN | Errno::PERM)) => Err(error.into()),
            Err(_) => Ok(bind(SocketAddrXdpFlags::XDP_COPY)?),
        }
    }

    /// Whether the device reads and writes the memory itself.
    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        Ok(xdp_options(&self.0)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
    }

    /// Frames that the kernel threw away for want of room.
    pub(super) fn dropped(&self) -> u64 {
        xdp_statistics(&self.0).map_or(0, |statistics| {
            statistics.rx_dropped
                + statistics.rx_ring_full.unwrap_or(0)
                + statistics.rx_fill_ring_empty_descs.unwrap_or(0)
        })
    }

    /// Has the kernel take what is to be filled.
    pub(super) fn wake_receiver(&self) -> io::Result<()> {
        answered(rustix::net::recv(&self.0, &mut [0u8; 0][..], RecvFlags::DONTWAIT).map(|_| ()))
    }

    /// Has the kernel send what is to be sent, or a part of it.
    pub(super) fn wake_sender(&self) -> io::Result<()> {
        answered(rustix::net::send(&self.0, &[], SendFlags::DONTWAIT).map(|_| ()))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// That the kernel has done only a part, or that the interface is down for now, is no error: what waits in the ring goes out later.
fn answered(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::NETDOWN | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
