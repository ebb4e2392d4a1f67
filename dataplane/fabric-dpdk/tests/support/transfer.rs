//! A transfer by the packet fabric between two processes: one end serves, the other reads and looks at every byte.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::dpdk::HugePages;
use velo_fabric::packet::port::ether::{Ether, EtherOptions, Neighbourhood};
use velo_fabric::packet::port::fault::{Fault, Faults};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::supply::Inline;
use velo_fabric::{Bytes, Completion, Fabric, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

use super::{PATIENCE, end, port, wait_for_link};

/// What is moved, in MiB (the last is cut short).
pub const PIECES: u64 = 4;
const READS_AT_ONCE: u64 = 8;
const BLOB: BlobId = BlobId::from_bytes([7; 32]);

/// The bytes of a piece. The last is shorter.
fn piece(index: u64) -> Bytes {
    let mut state = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let len = if index + 1 == PIECES { BUFFER_BYTES / 3 + 5 } else { BUFFER_BYTES };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

struct Pieces(Vec<Bytes>);

impl Serve for Pieces {
    fn serve(&self, _: NodeId, blob: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let index = range.start / BUFFER_BYTES as u64;
        let bytes = self.0.get(index as usize).filter(|_| *blob == BLOB).ok_or(Refusal::NotHere)?;
        let len = (range.end - range.start).min(bytes.len() as u64) as u32;
        Ok(Served { content: ServedContent::Bytes(bytes.clone()), len, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

/// A system call that nothing else makes, for who traces this process.
fn mark() {
    // SAFETY: reads a number of this process.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
}

/// One end.
struct End<P> {
    serves: bool,
    fabric: Packet<P>,
    /// For what is printed.
    name: String,
}

/// One end, by its role: kind, device, largest frame, loss in per cent, protection; of the one that reads also the other's number.
pub fn one_end(role: &[String]) {
    let [kind, device, frame, loss, protection, other @ ..] = role else { panic!("{role:?}") };
    let serves = kind == "serve";
    let frames = port(device, frame.parse().expect("a number"), HugePages::No);
    wait_for_link(&frames);
    let (local, remote) = if serves { (address(1), address(2)) } else { (address(2), address(1)) };
    let neighbourhood = Neighbourhood::Own { prefix_bits: 24, gateway: None };
    let ether = Ether::new(frames, EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false });
    let ether = ether.expect("an address and a prefix");
    let protection = match protection.as_str() {
        "trusted" => Protection::Trusted,
        _ => Protection::Sealed(Cipher::Aes128Gcm),
    };
    let name = format!("{}, frames of {frame}, {loss} % lost", device.split('/').next().unwrap_or(device));
    let loss: f64 = loss.parse().expect("a number");
    if loss == 0.0 {
        return End::new(name, serves, ether, remote, protection).run(other);
    }
    let faults = Faults { loss: loss / 100.0, ..Faults::default() };
    let port = Fault::new(ether, 3 + u64::from(serves), faults, Faults::default());
    End::new(name, serves, port, remote, protection).run(other);
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, 1, last)), 7_444)
}

impl<P: Port> End<P> {
    fn new(name: String, serves: bool, port: P, remote: SocketAddr, protection: Protection) -> Self {
        let datagram_max_bytes = port.caps().datagram_max_bytes;
        let pieces = if serves { (0..PIECES).map(piece).collect() } else { Vec::new() };
        let options = EndpointOptions {
            stall_timeout: PATIENCE,
            seed: u64::from(serves),
            ..EndpointOptions::default()
        };
        let mut fabric = Packet::new(port, Box::new(Inline::new(Arc::new(Pieces(pieces)))), options)
            .expect("a descriptor");
        let names = PathName { fabric: "dpdk", dialler: 1 << 8, accepter: 2 << 8 };
        let role = if serves { Role::Accepter } else { Role::Dialler };
        let keys = PathKeys::derive(&PathSecret([5; 32]), &names, role, protection);
        let peer = NodeId::from_bytes([u8::from(serves); 32]);
        fabric.add_path(NewPath { id: 1, peer, remote, keys, datagram_max_bytes }).expect("its first path");
        Self { serves, fabric, name }
    }

    /// Serves until it is ended, or reads everything and looks at every byte.
    fn run(mut self, other: &[String]) {
        let pool = Pool::new((2 * READS_AT_ONCE) << 20).expect("memory");
        // Made beforehand, so that nothing but moving the bytes lies between the marks.
        let right: Vec<Bytes> = (0..PIECES).map(piece).collect();
        let mut marked = false;
        let (mut asked, mut read, mut proven) = (0, 0, false);
        let (mut done, mut began) = (Vec::with_capacity(64), Instant::now());
        while read < PIECES {
            let now = Instant::now();
            assert!(
                now - began < PATIENCE || self.serves,
                "{read} of {PIECES} pieces: {:?} {:?}",
                self.fabric.endpoint_counters(),
                self.fabric.port_counters()
            );
            if proven && !marked {
                (marked, began) = (true, now);
                mark();
            }
            while !self.serves && proven && asked < PIECES && asked - read < READS_AT_ONCE {
                let buffer = pool.take().expect("one for each read");
                let (len, offset_bytes) = (BUFFER_BYTES as u32, asked * BUFFER_BYTES as u64);
                let what = Read { tag: asked, blob: BLOB, what: What::Blob, offset_bytes, len, buffer };
                self.fabric.post_read(1, what).expect("not more than a path takes");
                asked += 1;
            }
            self.fabric.poll(now, &mut done);
            for completion in done.drain(..) {
                match completion {
                    Completion::PathProven { .. } => proven = true,
                    Completion::Read { tag, buffer, result, .. } => {
                        let right = &right[tag as usize];
                        assert_eq!(result, Ok(right.len() as u32), "piece {tag}");
                        assert!(buffer.as_ref() == &**right, "piece {tag} has other bytes");
                        read += 1;
                    }
                    Completion::PathClosed { error, .. } => panic!("{error}"),
                }
            }
        }
        mark();
        let seconds = began.elapsed().as_secs_f64();
        let counters = self.fabric.endpoint_counters();
        println!(
            "{}: {:.0} MB/s with all that looks at the bytes, {} segments asked for again",
            self.name,
            counters.fabric.payload_bytes_in as f64 / seconds / 1e6,
            counters.segments_lost,
        );
        end(&other[0]);
    }
}
