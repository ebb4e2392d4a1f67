//! Two `udp` fabrics on loopback with paths between them.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{EndpointOptions, NewPath};
use velo_fabric::pool::{Pool, PoolOptions};
use velo_fabric::supply::Threads;
use velo_fabric::{Completion, Fabric, PathId, Read, What};
use velo_object::BlobId;

use crate::support::{A, B, Source};

pub const AES: Protection = Protection::Sealed(Cipher::Aes128Gcm);
pub const PROTECTIONS: [Protection; 3] =
    [Protection::Trusted, AES, Protection::Sealed(Cipher::ChaCha20Poly1305)];

/// Long enough that a busy machine does not make a stall.
pub fn options() -> EndpointOptions {
    EndpointOptions { stall_timeout: Duration::from_secs(10), ..EndpointOptions::default() }
}

/// A socket on loopback: `127.0.0.1:0` or `[::1]:0`.
pub fn udp(address: &str) -> Udp {
    let options = UdpOptions { receive_buffer_bytes: 4 << 20, ..UdpOptions::default() };
    Udp::bind(address.parse().unwrap(), &options).unwrap()
}

/// A fabric that serves `source` from its own memory for `buffers` reads.
pub fn packet<P: Port>(port: P, source: &Arc<Source>, options: EndpointOptions, buffers: u64) -> Packet<P> {
    let memory = PoolOptions { bytes: buffers << 20, huge_pages: false, populate: true };
    let supply = Threads::new(source.clone(), Pool::with(memory).unwrap(), 1).unwrap();
    Packet::new(port, Box::new(supply), options).unwrap()
}

/// The keys of both ends of path `id`: the dialler's first.
pub fn keys(id: PathId, secret: u8, protection: Protection) -> (PathKeys, PathKeys) {
    let number = (id as u32) << 8;
    let name = PathName { fabric: "udp", dialler: number, accepter: number + (1 << 20) };
    let derive = |role| PathKeys::derive(&PathSecret([secret; 32]), &name, role, protection);
    (derive(Role::Dialler), derive(Role::Accepter))
}

/// Two fabrics; `a` has dialled.
pub struct Pair<P: Port = Udp> {
    pub a: Packet<P>,
    pub b: Packet<P>,
    pub a_source: Arc<Source>,
    pub b_source: Arc<Source>,
    pub pool: Pool,
    pub protection: Protection,
    pub a_done: Vec<Completion>,
    pub b_done: Vec<Completion>,
}

impl Pair {
    pub fn new(protection: Protection) -> Self {
        Self::with(protection, options())
    }

    pub fn with(protection: Protection, options: EndpointOptions) -> Self {
        Self::over(udp("127.0.0.1:0"), udp("127.0.0.1:0"), protection, options)
    }
}

impl<P: Port> Pair<P> {
    pub fn over(a: P, b: P, protection: Protection, options: EndpointOptions) -> Self {
        let (a_source, b_source) = (Arc::new(Source::default()), Arc::new(Source::default()));
        Self {
            a: packet(a, &a_source, EndpointOptions { seed: 1, ..options }, 32),
            b: packet(b, &b_source, EndpointOptions { seed: 2, ..options }, 32),
            a_source,
            b_source,
            pool: Pool::new(128 << 20).unwrap(),
            protection,
            a_done: Vec::new(),
            b_done: Vec::new(),
        }
    }

    /// One more path between the two, with this number on both sides; waits until it is proven.
    pub fn connect(&mut self, id: PathId) {
        self.add(id);
        self.drive(|pair| is_proven(&pair.a_done, id) && is_proven(&pair.b_done, id));
        self.a_done.retain(|done| !matches!(done, Completion::PathProven { .. }));
        self.b_done.retain(|done| !matches!(done, Completion::PathProven { .. }));
    }

    pub fn add(&mut self, id: PathId) {
        let (a_keys, b_keys) = keys(id, 7, self.protection);
        let datagram_max_bytes = self.a.port().caps().datagram_max_bytes;
        let (to_a, to_b) = (self.a.local(), self.b.local());
        let new = |peer, remote: SocketAddr, keys| NewPath { id, peer, remote, keys, datagram_max_bytes };
        self.a.add_path(new(B, to_b, a_keys)).unwrap();
        self.b.add_path(new(A, to_a, b_keys)).unwrap();
    }

    pub fn read(&self, tag: u64, blob: BlobId, offset_bytes: u64, len: u32) -> Read {
        let mut buffer = self.pool.take().unwrap();
        buffer.as_mut().fill(0xee);
        Read { tag, blob, what: What::Blob, offset_bytes, len, buffer }
    }

    /// Polls both until `until` says so.
    pub fn drive(&mut self, mut until: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !until(self) {
            let now = Instant::now();
            assert!(
                now < end,
                "nothing came of it: {:?} {:?} {:?} {:?}",
                self.a.endpoint_counters(),
                self.b.endpoint_counters(),
                self.a_done,
                self.b_done
            );
            if self.a.poll(now, &mut self.a_done) + self.b.poll(now, &mut self.b_done) == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
}

pub fn is_proven(done: &[Completion], id: PathId) -> bool {
    done.iter().any(|done| matches!(done, Completion::PathProven { path } if *path == id))
}
