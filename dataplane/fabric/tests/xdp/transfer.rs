//! The packet fabric over AF_XDP, with and without losses on the way.

use velo_fabric::Fabric as _;
use velo_fabric::packet::limits::DATAGRAM_MIN_BYTES;
use velo_fabric::packet::port::fault::{Fault, Faults};
use velo_fabric::packet::protocol::seal::Protection;

use crate::namespaces::link_or_skip;
use crate::pair::{AES, Pair, options};
use crate::support::{MIB, ended, noise};
use crate::{address, open, open_or_skip};

#[test]
fn both_sides_get_the_right_bytes_with_5_percent_loss_and_without() {
    let what = "transfers over xdp";
    for (mtu, loss, protection, six) in [
        (1500, 0.0, AES, false),
        (1500, 0.05, Protection::Trusted, false),
        (1500, 0.05, AES, true),
        (9000, 0.0, Protection::Trusted, true),
        (9000, 0.05, AES, false),
        (65_535, 0.05, Protection::Trusted, false),
    ] {
        let Some(link) = link_or_skip(mtu, what) else { return };
        let Some(a) = open_or_skip(&link.a, address(&link.a, six), what) else { return };
        let b = open(&link.b, address(&link.b, six)).unwrap();
        let faults = Faults { loss, ..Faults::default() };
        let (a, b) =
            (Fault::new(a, 1, faults, Faults::default()), Fault::new(b, 2, faults, Faults::default()));
        let mut pair = Pair::over(a, b, protection, options());
        let (from_b, from_a) = (noise(1, 12 * MIB + 12345), noise(2, 3 * MIB + 1));
        let blob_b = pair.b_source.add(&from_b, &[]);
        let blob_a = pair.a_source.add(&from_a, &[]);
        pair.connect(7);
        for i in 0..13 {
            pair.a.post_read(7, pair.read(i, blob_b, i * MIB as u64, MIB as u32)).unwrap();
        }
        for i in 0..4 {
            pair.b.post_read(7, pair.read(100 + i, blob_a, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 13 && pair.b_done.len() == 4);
        for (i, expected) in from_b.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.a_done, i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "MTU {mtu}, loss {loss}: piece {i} differs");
        }
        for (i, expected) in from_a.chunks(MIB).enumerate() {
            let (bytes, result) = ended(&pair.b_done, 100 + i as u64).unwrap();
            assert_eq!(result, Ok(expected.len() as u32));
            assert!(bytes == expected, "MTU {mtu}, loss {loss}: piece {i} of the other direction differs");
        }
        let (lost, _) = pair.b.port().faults();
        assert_eq!(lost.lost > 0, loss > 0.0);
        // Sooner or later, larger datagrams are known to come through.
        pair.drive(|pair| pair.a.path_info(7).unwrap().datagram_bytes > DATAGRAM_MIN_BYTES);
    }
}
