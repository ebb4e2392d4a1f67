//! Two `tcp` fabrics over loopback: that bytes are right, and that everything that goes wrong ends as it should.

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use support::{
    A, B, MIB, PROTECTIONS, Pair, Protection, Source, closed, ended, noise, options, protect, sockets,
};
use velo_fabric::tcp::{READS_PER_PATH, Tcp, TcpOptions, TcpPath};
use velo_fabric::{Completion, Fabric, PathError, ProtocolError, Read, ReadError, What};
use velo_object::BlobId;

#[test]
fn both_sides_read_many_pieces_in_any_order() {
    for protection in PROTECTIONS {
        let mut pair = Pair::new(protection);
        let (from_b, from_a) = (noise(1, 20 * MIB + 12345), noise(2, 5 * MIB + 1));
        let blob_b = pair.b_source.add(&from_b, &[]);
        let blob_a = pair.a_source.add(&from_a, &[]);
        pair.connect(7, "127.0.0.1:0");
        for i in [20, 3, 0, 19, 7, 1, 12, 11, 10, 2, 4, 5, 6, 8, 9, 13, 14, 15, 16, 17, 18u64] {
            let read = pair.read(i, blob_b, i * MIB as u64, MIB as u32);
            pair.a.post_read(7, read).unwrap();
        }
        for i in 0..6 {
            let read = pair.read(100 + i, blob_a, i * MIB as u64, MIB as u32);
            pair.b.post_read(7, read).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 21 && pair.b_done.len() == 6);
        for (i, expected) in from_b.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.a_done, i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "{protection:?}: piece {i} differs");
        }
        for (i, expected) in from_a.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.b_done, 100 + i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "{protection:?}: piece {i} of the other direction differs");
        }
        let (a, b) = (pair.a.counters(), pair.b.counters());
        assert_eq!((a.reads_posted, a.reads_done, a.reads_failed, a.reads_served), (21, 21, 0, 6));
        assert_eq!((b.reads_posted, b.reads_done, b.reads_failed, b.reads_served), (6, 6, 0, 21));
        assert_eq!((a.payload_bytes_in, b.payload_bytes_out), (from_b.len() as u64, from_b.len() as u64));
        assert_eq!((a.bytes_in, a.bytes_out), (b.bytes_out, b.bytes_in));
        assert_eq!(pair.b_source.sent.load(Ordering::Relaxed), from_b.len() as u64);
        assert_eq!(Arc::strong_count(&pair.b_source.leases), 1, "leases are given back");
    }
}
