//! Over kernel UDP between two network namespaces, where a datagram may be too large for the link.

use std::net::SocketAddr;

use velo_fabric::Fabric as _;
use velo_fabric::packet::limits::DATAGRAM_MIN_BYTES;
use velo_fabric::packet::port::fault::{Fault, Faults};
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::protocol::seal::Protection;

use crate::namespaces::{DEVICE, End, link_or_skip};
use crate::pair::{AES, Pair, options};
use crate::support::{MIB, ended, noise};

/// A port at one end of a link.
fn open(end: &End, six: bool, offload: bool) -> Udp {
    let address: SocketAddr = if six { (end.v6, 7777).into() } else { (end.v4, 7777).into() };
    let options = UdpOptions { offload, receive_buffer_bytes: 4 << 20, ..UdpOptions::default() };
    end.run(|| Udp::bind(address, &options)).unwrap()
}

#[test]
fn both_sides_get_the_right_bytes_with_5_percent_loss_and_without() {
    for (mtu, loss, protection, six) in [
        (1500, 0.0, AES, false),
        (1500, 0.05, Protection::Trusted, true),
        (9000, 0.0, Protection::Trusted, true),
        (9000, 0.05, AES, false),
        (65_535, 0.05, Protection::Trusted, false),
    ] {
        let Some(link) = link_or_skip(mtu, "transfers over udp between namespaces") else { return };
        let faults = Faults { loss, ..Faults::default() };
        let port = |end, seed| Fault::new(open(end, six, true), seed, faults, Faults::default());
        let mut pair = Pair::over(port(&link.a, 1), port(&link.b, 2), protection, options());
        let (from_b, from_a) = (noise(1, 12 * MIB + 12345), noise(2, 3 * MIB + 1));
        let (blob_b, blob_a) = (pair.b_source.add(&from_b, &[]), pair.a_source.add(&from_a, &[]));
        pair.connect(7);
        for i in 0..13 {
            pair.a.post_read(7, pair.read(i, blob_b, i * MIB as u64, MIB as u32)).unwrap();
        }
        for i in 0..4 {
            pair.b.post_read(7, pair.read(i, blob_a, i * MIB as u64, MIB as u32)).unwrap();
        }
        pair.drive(|pair| pair.a_done.len() == 13 && pair.b_done.len() == 4);
        for (done, content) in [(&pair.a_done, &from_b), (&pair.b_done, &from_a)] {
            for (i, expected) in content.chunks(MIB).enumerate() {
                let (bytes, result) = ended(done, i as u64).unwrap();
                assert_eq!(result, Ok(expected.len() as u32));
                assert!(bytes == expected, "MTU {mtu}, loss {loss}: piece {i} differs");
            }
        }
        let (sent, _) = pair.b.port().faults();
        assert_eq!(sent.lost > 0, loss > 0.0);
        // The headers of IP and UDP.
        let most = mtu as usize - if six { 48 } else { 28 };
        let proven = pair.a.path_info(7).unwrap().datagram_bytes;
        assert!((DATAGRAM_MIN_BYTES + 1..=most).contains(&proven), "MTU {mtu}: datagrams of {proven} bytes");
    }
}

#[test]
fn a_link_that_shrinks_in_mid_transfer_is_noticed() {
    // Every datagram on its own: the kernel lets joined ones through whatever the receiver's MTU is.
    let Some(link) = link_or_skip(9000, "a link that shrinks") else { return };
    let port = |end| open(end, false, false);
    let mut pair = Pair::over(port(&link.a), port(&link.b), AES, options());
    let content = noise(3, 24 * MIB);
    let blob = pair.b_source.add(&content, &[]);
    pair.connect(1);
    pair.drive(|pair| pair.a.path_info(1).is_some_and(|info| info.datagram_bytes > 8000));
    for i in 0..24 {
        pair.a.post_read(1, pair.read(i, blob, i * MIB as u64, MIB as u32)).unwrap();
    }
    pair.drive(|pair| pair.a.counters().payload_bytes_in > 0);
    // The receiver's device takes no larger ones any more, and nobody tells the sender.
    link.a.ip(&["link", "set", DEVICE, "mtu", "1400"]).unwrap();
    pair.drive(|pair| pair.a_done.len() == 24);
    for (i, expected) in content.chunks(MIB).enumerate() {
        let (bytes, result) = ended(&pair.a_done, i as u64).unwrap();
        assert!(result == Ok(MIB as u32) && bytes == expected, "piece {i}");
    }
    let info = pair.a.path_info(1).unwrap();
    assert!(
        info.datagram_bytes <= 1372 || pair.a.counters().reads_done == 24 && info.segments_lost == 0,
        "{info:?}"
    );
}
