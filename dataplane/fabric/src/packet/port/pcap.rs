//! A port that wraps another one and writes what passes to a pcap file, for Wireshark with `deploy/velo.lua`. The datagrams get headers
//! of IP and UDP made up for them, whatever the port within is.
//!
//! Format: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-03.html>, with nanoseconds and link type RAW.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::ether::checksum::Sum;
use super::{Arrival, Departure, Ecn, Port, PortCaps, PortCounters};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// Packets begin with their IP header, which says its version.
const LINKTYPE_RAW: u32 = 101;
const SNAP_BYTES: u32 = 1 << 18;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const HOPS: u8 = 64;

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct FileHeader {
    magic: U32,
    major: U16,
    minor: U16,
    zero: [U32; 2],
    snap_bytes: U32,
    link_type: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RecordHeader {
    seconds: U32,
    nanoseconds: U32,
    captured: U32,
    len: U32,
}

/// Writes datagrams as a pcap file.
#[derive(Debug)]
pub struct PcapWriter<W> {
    to: W,
}

impl<W: Write> PcapWriter<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn new(mut to: W) -> io::Result<Self> {
        let header = FileHeader {
            magic: MAGIC_NANOSECONDS.into(),
            major: 2.into(),
            minor: 4.into(),
            zero: [U32::ZERO; 2],
            snap_bytes: SNAP_BYTES.into(),
            link_type: LINKTYPE_RAW.into(),
        };
        to.write_all(header.as_bytes())?;
        Ok(Self { to })
    }

    /// Adds a datagram that passed `since_epoch` after 1970.
    ///
    /// # Errors
    /// Those of writing.
    pub fn datagram(
        &mut self,
        since_epoch: std::time::Duration,
        from: SocketAddr,
        to: SocketAddr,
        ecn: Ecn,
        datagram: &[u8],
    ) -> io::Result<()> {
        let mut headers = [0; IPV6_BYTES + UDP_BYTES];
        let headers = fill_headers(&mut headers, from, to, ecn, datagram);
        let len = (headers.len() + datagram.len()) as u32;
        let record = RecordHeader {
            seconds: (since_epoch.as_secs() as u32).into(),
            nanoseconds: since_epoch.subsec_nanos().into(),
            captured: len.into(),
            len: len.into(),
        };
        self.to.write_all(record.as_bytes())?;
        self.to.write_all(headers)?;
        self.to.write_all(datagram)
    }

    /// Hands on what is still buffered.
    ///
    /// # Errors
    /// Those of writing.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The headers of IP and UDP that the datagram would have had. Where only one address is of IPv6, the other is mapped into it.
fn fill_headers<'a>(
    space: &'a mut [u8; IPV6_BYTES + UDP_BYTES],
    from: SocketAddr,
    to: SocketAddr,
    ecn: Ecn,
    datagram: &[u8],
) -> &'a [u8] {
    let ecn = match ecn {
        Ecn::NotCapable => 0,
        Ecn::Capable => 2,
        Ecn::Congested => 3,
    };
    let udp_len = (UDP_BYTES + datagram.len()) as u16;
    let ip = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let ip = &mut space[..IPV4_BYTES];
            ip[0] = 0x45;
            ip[1] = ecn;
            ip[2..4].copy_from_slice(&(IPV4_BYTES as u16 + udp_len).to_be_bytes());
            // Never fragmented.
            ip[6] = 0x40;
            ip[8..10].copy_from_slice(&[HOPS, UDP]);
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            let checksum = Sum::default().add(ip).checksum();
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
            IPV4_BYTES
        }
        (source, destination) => {
            let ip = &mut space[..IPV6_BYTES];
            ip[..2].copy_from_slice(&[0x60, ecn << 4]);
            ip[4..6].copy_from_slice(&udp_len.to_be_bytes());
            ip[6..8].copy_from_slice(&[UDP, HOPS]);
            ip[8..24].copy_from_slice(&mapped(source).octets());
            ip[24..40].copy_from_slice(&mapped(destination).octets());
            IPV6_BYTES
        }
    };
    let (head, udp) = space.split_at_mut(ip);
    let udp = &mut udp[..UDP_BYTES];
    udp[..2].copy_from_slice(&from.port().to_be_bytes());
    udp[2..4].copy_from_slice(&to.port().to_be_bytes());
    udp[4..6].copy_from_slice(&udp_len.to_be_bytes());
    // The pseudo-header is the addresses, which end both headers of IP, the protocol and the length.
    let addresses = if ip == IPV4_BYTES { &head[12..] } else { &head[8..] };
    let pseudo = Sum::default().add(addresses).add_word(UDP.into()).add_word(udp_len);
    let checksum = pseudo.add(udp).add(datagram).udp_checksum();
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());
    &space[..ip + UDP_BYTES]
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// A port whose traffic is written down. Where the file takes no more, the traffic goes on and [`Capture::error`] says why.
#[derive(Debug)]
pub struct Capture<P, W: Write> {
    port: P,
    writer: Option<PcapWriter<W>>,
    error: Option<io::Error>,
}

impl<P: Port, W: Write + Send> Capture<P, W> {
    /// Writes what passes through `port`. Give a buffered writer.
    ///
    /// # Errors
    /// Those of writing the header.
    pub fn new(port: P, to: W) -> io::Result<Self> {
        Ok(Self { port, writer: Some(PcapWriter::new(to)?), error: None })
    }

    /// Why nothing is written any more.
    pub fn error(&self) -> Option<&io::Error> {
        self.error.as_ref()
    }

    /// The port within.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// Hands what is still buffered to the file.
    ///
    /// # Errors
    /// Those of writing.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.as_mut().map_or(Ok(()), PcapWriter::flush)
    }
}

/// Writes a datagram down; after an error nothing more.
fn note<W: Write>(
    writer: &mut Option<PcapWriter<W>>,
    failed: &mut Option<io::Error>,
    [from, to]: [SocketAddr; 2],
    ecn: Ecn,
    datagram: &[u8],
) {
    let Some(pcap) = writer else { return };
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Err(error) = pcap.datagram(since_epoch, from, to, ecn, datagram) {
        *failed = Some(error);
        *writer = None;
    }
}

impl<P: Port, W: Write + Send> Port for Capture<P, W> {
    fn name(&self) -> &'static str {
        self.port.name()
    }

    fn caps(&self) -> PortCaps {
        self.port.caps()
    }

    fn local(&self) -> SocketAddr {
        self.port.local()
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let local = self.port.local();
        let Self { port, writer, error } = self;
        port.rx_burst(&mut |arrival| {
            // Before the receiver decrypts it where it lies.
            note(writer, error, [arrival.from, local], arrival.ecn, arrival.datagram);
            each(arrival);
        })
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        let local = self.port.local();
        let Self { port, writer, error } = self;
        port.tx_burst(&mut |space| {
            let departure = fill(space)?;
            note(writer, error, [local, departure.to], departure.ecn, &space[..departure.len]);
            Some(departure)
        })
    }

    fn arm(&mut self) -> io::Result<bool> {
        self.port.arm()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.port.descriptor()
    }

    fn counters(&self) -> PortCounters {
        self.port.counters()
    }
}
