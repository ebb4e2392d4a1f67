//! Kernel UDP: one socket for each worker, many datagrams in each system call, and many in each of the kernel's own
//! packets where it can cut (GSO) and join (GRO) them.
//!
//! Sockets that share one port ([`Udp::group`]) are told apart by the low byte of the path's number in each datagram.
//! Where every worker may have a port of its own, [`Udp::bind`] is faster: the kernel joins datagrams that differ in no
//! address, so that joining is off in a group of several.

mod message;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use socket2::Socket;

use self::message::{Outgoing, RxSlab, SEGMENTS_MAX, TX_MESSAGES};
use super::{Arrival, Departure, Port, PortCaps, PortCounters};
use crate::packet::limits::DATAGRAM_MAX_BYTES;

/// Bytes written before they are handed to the kernel: so few that they are still in the second cache then.
const TX_SLAB_BYTES: usize = 4 * DATAGRAM_MAX_BYTES;
/// Sockets that the low byte of a path's number can tell apart.
const GROUP_MAX: usize = 256;

/// How a [`Udp`] is made.
#[derive(Debug, Clone, Copy)]
pub struct UdpOptions {
    /// The size of the kernel's receive buffer, as far as it allows.
    pub receive_buffer_bytes: usize,
    /// The size of the kernel's send buffer, as far as it allows.
    pub send_buffer_bytes: usize,
    /// Whether the kernel is to cut and join datagrams (GSO and GRO), where it can.
    pub offload: bool,
    /// How long the kernel polls the device in a call that finds nothing (`SO_BUSY_POLL`).
    pub busy_poll_us: Option<u32>,
    /// The rate at which the kernel lets datagrams go, where the device's queue is `fq` (`SO_MAX_PACING_RATE`).
    pub pacing_rate_bytes_per_s: Option<u64>,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            receive_buffer_bytes: 16 << 20,
            send_buffer_bytes: 4 << 20,
            offload: true,
            busy_poll_us: None,
            pacing_rate_bytes_per_s: None,
        }
    }
}

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The address cannot be had.
    #[error("cannot bind UDP {address}: {error}; is another process using the port?")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// The system does not do for a socket what it must do.
    #[error("the UDP socket for {address} {what}: {error}")]
    Option {
        /// Where it was to be bound.
        address: SocketAddr,
        /// What it cannot.
        what: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// More sockets than steering can tell apart, or none.
    #[error("{0} workers cannot share a UDP port: 1 to 256 can")]
    Workers(usize),
}

/// A UDP socket as a port.
pub struct Udp {
    socket: Socket,
    /// Readable when there is something to receive or, after a full send buffer, room.
    epoll: OwnedFd,
    waits_for_room: bool,
    local: SocketAddr,
    /// Whether IPv4 addresses are written as mapped ones.
    mapped: bool,
    segments: bool,
    rx: RxSlab,
    tx: Box<[u8]>,
    /// What is written into `tx` and not yet handed on, from `sent` on.
    outgoing: Vec<Outgoing>,
    sent: usize,
    counters: PortCounters,
}

impl Udp {
    /// A port on a socket of its own. Port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> Result<Self, UdpError> {
        Self::new(address, options, false)
    }

    /// Ports for `workers` workers on one address, in the order of the workers: what comes for a path goes to the one
    /// whose index is the low byte of the path's number.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn group(address: SocketAddr, workers: usize, options: &UdpOptions) -> Result<Vec<Self>, UdpError> {
        match workers {
            1 => return Ok(vec![Self::bind(address, options)?]),
            0 => return Err(UdpError::Workers(workers)),
            _ if workers > GROUP_MAX => return Err(UdpError::Workers(workers)),
            _ => {}
        }
        let first = Self::new(address, options, true)?;
        let address = first.local;
        socket::steer(&first.socket).map_err(|error| UdpError::Option {
            address,
            what: "cannot steer",
            error,
        })?;
        let mut group = vec![first];
        while group.len() < workers {
            group.push(Self::new(address, options, true)?);
        }
        Ok(group)
    }

    fn new(address: SocketAddr, options: &UdpOptions, shared: bool) -> Result<Self, UdpError> {
        let failed = |what| move |error| UdpError::Option { address, what, error };
        let (socket, offload) = socket::make(address, options, shared)?;
        let local = socket.local_addr().map_err(failed("has no address"))?;
        let local = local.as_socket().unwrap_or(address);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| failed("cannot be waited for")(error.into()))?;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(|error| failed("cannot be waited for")(error.into()))?;
        let port = Self {
            socket,
            epoll,
            waits_for_room: false,
            local,
            mapped: local.is_ipv6(),
            segments: offload.segments,
            rx: RxSlab::new(),
            tx: vec![0; TX_SLAB_BYTES].into_boxed_slice(),
            outgoing: Vec::with_capacity(TX_MESSAGES),
            sent: 0,
            counters: PortCounters::default(),
        };
        if let Some(warning) = port.receive_buffer_warning(options) {
            tracing::warn!("{warning}");
        }
        Ok(port)
    }

    /// A sentence for the operator where the kernel gave less than `options` asked for.
    pub fn receive_buffer_warning(&self, options: &UdpOptions) -> Option<String> {
        // The kernel doubles what it is asked for, and reports that.
        let granted = socket::receive_buffer_bytes(&self.socket) / 2;
        (granted < options.receive_buffer_bytes).then(|| {
            let limit = socket::receive_buffer_limit().unwrap_or(granted);
            format!(
                "net.core.rmem_max is {limit}: {} receives through {granted} bytes instead of {}; bursts may be lost \
                 (`sysctl -w net.core.rmem_max={}`)",
                self.local, options.receive_buffer_bytes, options.receive_buffer_bytes
            )
        })
    }

    /// Whether the kernel cuts what is sent.
    pub fn segments(&self) -> bool {
        self.segments
    }

    /// Adds a datagram that has been written at the end of what is to be sent.
    fn append(&mut self, departure: Departure, path: u8, at: usize) -> usize {
        let Departure { to, len, ecn, probe } = departure;
        let end = at + len;
        if self.segments
            && !probe
            && let Some(last) = self.outgoing.last_mut()
        {
            let open = last.range.len() == last.count * last.segment && last.range.end == at;
            let fits = last.count < SEGMENTS_MAX && end - last.range.start <= DATAGRAM_MAX_BYTES;
            // What is joined on its way is steered by its first datagram.
            let alike = last.to == to && last.ecn == ecn && last.path == path;
            if open && fits && alike && (1..=last.segment).contains(&len) && !last.probe {
                last.range.end = end;
                last.count += 1;
                return end;
            }
        }
        self.outgoing.push(Outgoing { to, range: at..end, segment: len, count: 1, ecn, path, probe });
        end
    }

    /// Hands what has been written to the kernel. True where it has no room for all of it.
    fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.outgoing.len() {
            self.counters.calls += 1;
            let messages = &self.outgoing[self.sent..];
            match message::send(self.socket.as_fd(), &self.tx, messages, self.mapped) {
                Ok(count) => {
                    for message in &messages[..count] {
                        self.counters.tx_datagrams += message.count as u64;
                        self.counters.tx_bytes += message.range.len() as u64;
                    }
                    self.sent += count;
                }
                Err(error) => {
                    if self.refused(error)? {
                        return Ok(true);
                    }
                }
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(false)
    }

    /// The kernel does not take the next message. True where it will later.
    fn refused(&mut self, error: io::Error) -> io::Result<bool> {
        let message = self.outgoing[self.sent].clone();
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN) => {
                self.counters.tx_full += 1;
                return Ok(true);
            }
            Some(Errno::IO | Errno::INVAL | Errno::MSGSIZE | Errno::OPNOTSUPP) if message.count > 1 => {
                // The device cannot cut, or the segments are larger than it carries: one by one they may go.
                self.counters.gso_refused += 1;
                if Errno::from_io_error(&error) != Some(Errno::MSGSIZE) {
                    self.segments = false;
                }
                self.split(&message)?;
                self.sent += 1;
            }
            Some(Errno::BADF | Errno::NOTSOCK) => return Err(error),
            // Too large for the device (MSGSIZE), no room there (NOBUFS), no route, forbidden by a filter: it is as if the network
            // had lost it.
            _ => {
                self.counters.tx_dropped += message.count as u64;
                self.sent += 1;
            }
        }
        Ok(false)
    }

    /// Sends the datagrams of a message one by one.
    fn split(&mut self, message: &Outgoing) -> io::Result<()> {
        let mut at = message.range.start;
        while at < message.range.end {
            let end = (at + message.segment).min(message.range.end);
            let single = Outgoing { range: at..end, count: 1, ..message.clone() };
            self.counters.calls += 1;
            match message::send(self.socket.as_fd(), &self.tx, &[single], self.mapped) {
                Ok(_) => {
                    self.counters.tx_datagrams += 1;
                    self.counters.tx_bytes += (end - at) as u64;
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::BADF | Errno::NOTSOCK) => return Err(error),
                    _ => self.counters.tx_dropped += 1,
                },
            }
            at = end;
        }
        Ok(())
    }

    fn wait_for_room(&mut self, wait: bool) -> io::Result<()> {
        if self.waits_for_room != wait {
            let room = if wait { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            epoll::modify(
                &self.epoll,
                &self.socket,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN | room,
            )?;
            self.waits_for_room = wait;
        }
        Ok(())
    }
}

impl Port for Udp {
    fn name(&self) -> &'static str {
        "udp"
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            datagram_max_bytes: DATAGRAM_MAX_BYTES,
            lossless: false,
            line_rate_bytes_per_s: None,
            wakes: true,
        }
    }

    fn local(&self) -> SocketAddr {
        self.local
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        self.counters.calls += 1;
        let counters = &mut self.counters;
        let (mut datagrams, mut dropped) = (0, 0);
        let received = message::receive(self.socket.as_fd(), &mut self.rx, |slab, received| {
            // Nobody sends empty ones.
            let Some(received) = received.filter(|received| !received.range.is_empty()) else {
                dropped += 1;
                return;
            };
            let (from, ecn) = (received.from, received.ecn);
            counters.rx_bytes += received.range.len() as u64;
            let space = slab.space(received.range);
            for datagram in space.chunks_mut(received.segment) {
                datagrams += 1;
                each(Arrival { from, datagram, ecn });
            }
        });
        counters.rx_datagrams += datagrams as u64;
        counters.rx_dropped += dropped as u64;
        match received {
            Ok(_) => Ok(datagrams + dropped),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::BADF | Errno::NOTSOCK | Errno::FAULT) => Err(error),
                // What an ICMP message said, or no memory for a moment.
                _ => Ok(0),
            },
        }
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        if self.sent < self.outgoing.len() && self.flush()? {
            return Ok(0);
        }
        let (mut at, mut datagrams) = (0, 0);
        while self.outgoing.len() < TX_MESSAGES
            && let Some(space) = self.tx.get_mut(at..at + DATAGRAM_MAX_BYTES)
            && let Some(departure) = fill(space)
        {
            let len = departure.len.min(DATAGRAM_MAX_BYTES);
            let path = self.tx[at..at + len].get(socket::PATH_OFFSET).copied().unwrap_or(0);
            at = self.append(Departure { len, ..departure }, path, at);
            datagrams += 1;
        }
        self.flush()?;
        Ok(datagrams)
    }

    fn arm(&mut self) -> io::Result<bool> {
        // The descriptor tells of what is there already, too.
        self.wait_for_room(self.sent < self.outgoing.len())?;
        Ok(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}
