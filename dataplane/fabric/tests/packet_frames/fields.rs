//! Every field that can be wrong, wrong.

use velo_fabric::ProtocolError;
use velo_fabric::packet::limits::{DATAGRAM_MAX_BYTES, SEGMENT_MAX_BYTES};
use velo_fabric::packet::protocol::frame::{Body, Credit, Data, Header, Message, Messages, Reject};
use velo_fabric::packet::protocol::seal::{OpenError, Protection};

use crate::{DATA, PROTECTIONS, frames, messages, pair};

#[test]
fn every_bad_field_of_a_header() {
    let (mut dialler, _) = pair(Protection::Trusted);
    for (kind, good) in frames(&mut dialler.sealer) {
        Header::parse(&good).unwrap();
        let cases: &[(usize, u8, Reject)] = &[
            (0, good[0] & 15, Reject::Version),
            (0, good[0] & 15 | 2 << 4, Reject::Version),
            (0, 1 << 4, Reject::Kind),
            (0, 1 << 4 | 5, Reject::Kind),
            (0, 1 << 4 | 15, Reject::Kind),
            (1, 4, Reject::Flags),
            (1, 128, Reject::Flags),
            (2, 1, Reject::Flags),
            (3, 1, Reject::Flags),
            (8, 0, Reject::Number),
        ];
        for &(at, value, reject) in cases {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Header::parse(&bad), Err(reject), "{kind}: byte {at} = {value}");
        }
        let least = if kind == "data" { 57 } else { 33 };
        for short in [0, 1, 15, 16, least - 1] {
            assert_eq!(Header::parse(&good[..short]), Err(Reject::Length), "{kind} of {short}");
        }
        let mut long = good.clone();
        long.resize(DATAGRAM_MAX_BYTES, 0);
        Header::parse(&long).unwrap();
        long.push(0);
        assert_eq!(Header::parse(&long), Err(Reject::Length));
    }
}

#[test]
fn every_bad_field_of_data() {
    let cases: [(Data, &str); 5] = [
        (Data { slot: 64, ..DATA }, "slot"),
        (Data { segment: 1024, ..DATA }, "segment"),
        (Data { len: 0, ..DATA }, "len"),
        (Data { len: (1 << 20) + 1, ..DATA }, "len"),
        (Data { slot: u16::MAX, ..DATA }, "slot"),
    ];
    for protection in PROTECTIONS {
        let (mut dialler, mut accepter) = pair(protection);
        for (data, field) in cases {
            let mut space = [0; 100];
            let len = dialler.sealer.data(&mut space, &data, b"payload").unwrap();
            let error = accepter.opener.open(&mut space[..len]).unwrap_err();
            assert_eq!(error, OpenError::Protocol(ProtocolError::Field { frame: "data", field }));
        }
    }
}

#[test]
fn every_bad_field_of_a_message() {
    let too_long = (SEGMENT_MAX_BYTES + 1) as u16;
    // Which message, from which byte, which bytes, which field.
    let cases: Vec<(usize, usize, Vec<u8>, &str, &str)> = vec![
        (0, 1, vec![2], "read", "what"),
        (0, 2, vec![64, 0], "read", "slot"),
        (0, 3, vec![1], "read", "slot"),
        (0, 40, vec![0xff; 8], "read", "offset"),
        (0, 48, vec![0; 4], "read", "len"),
        (0, 48, vec![1, 0, 16, 0], "read", "len"),
        (0, 52, 1023u16.to_le_bytes().to_vec(), "read", "segment_bytes"),
        (0, 52, too_long.to_le_bytes().to_vec(), "read", "segment_bytes"),
        (0, 54, vec![1], "read", "zero"),
        (0, 55, vec![1], "read", "zero"),
        (1, 1, vec![1], "credit", "zero"),
        (1, 2, vec![64], "credit", "slot"),
        (1, 16, vec![0xc1, 3], "credit", "mask"),
        (1, 16, vec![0xff, 0xff], "credit", "mask"),
        (1, 18, vec![1], "credit", "zero"),
        (1, 20, vec![0; 8], "credit", "mask"),
        (2, 1, vec![1], "control", "zero"),
        (2, 2, vec![64], "control", "slot"),
        (3, 1, vec![2], "control", "why"),
        (3, 2, vec![64], "control", "slot"),
        (5, 1, vec![4], "control", "why"),
        (5, 2, vec![1], "control", "zero"),
        (5, 7, vec![1], "control", "zero"),
        (6, 1, vec![1], "control", "zero"),
        (6, 3, vec![1], "control", "zero"),
        (7, 1, vec![1], "control", "zero"),
        (7, 2, vec![1], "control", "zero"),
        (8, 1, vec![1], "control", "zero"),
        (8, 2, vec![64], "control", "slot"),
    ];
    for (which, at, bytes, frame, field) in cases {
        let message = messages()[which];
        let mut space = [0; 56];
        let mut body = Body::new(&mut space);
        assert!(body.push(&message));
        let len = body.len();
        Messages::parse(&space[..len]).unwrap();
        space[at..at + bytes.len()].copy_from_slice(&bytes);
        let error = Messages::parse(&space[..len]).unwrap_err();
        assert_eq!(error, ProtocolError::Field { frame, field }, "{message:?} with {bytes:?} at {at}");
    }
}

#[test]
fn messages_that_are_none() {
    assert_eq!(Messages::parse(&[]), Err(ProtocolError::Field { frame: "control", field: "length" }));
    for kind in [0, 9, 255] {
        assert_eq!(Messages::parse(&[kind; 56]), Err(ProtocolError::Kind(kind)));
    }
    for message in messages() {
        let mut space = [0; 57];
        let mut body = Body::new(&mut space);
        assert!(body.push(&message));
        let len = body.len();
        for short in 1..len {
            let error = Messages::parse(&space[..short]).unwrap_err();
            assert!(
                matches!(error, ProtocolError::Field { field: "length", .. }),
                "{message:?} cut to {short}"
            );
        }
        // What follows a message is one, too.
        assert_eq!(Messages::parse(&space[..=len]), Err(ProtocolError::Kind(0)));
    }
}

/// A message that no honest peer makes, by one that has the keys: it is at fault, not the network.
#[test]
fn a_bad_message_of_the_peer_is_told_from_a_forged_one() {
    for protection in PROTECTIONS {
        let (mut dialler, mut accepter) = pair(protection);
        let mut space = [0; 100];
        let bad = Message::Credit(Credit { slot: 0, read: 1, number: 1, stamp: 1, first: 0, mask: 0 });
        let len = dialler.sealer.control(&mut space, |body| assert!(body.push(&bad))).unwrap();
        let error = accepter.opener.open(&mut space[..len]).unwrap_err();
        assert_eq!(error, OpenError::Protocol(ProtocolError::Field { frame: "credit", field: "mask" }));
        // It was the peer: the number is used.
        assert_eq!(accepter.opener.newest(), 1);
    }
}
