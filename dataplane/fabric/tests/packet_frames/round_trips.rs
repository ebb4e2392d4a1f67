//! Whatever a sealer makes, its opener gives back.

use proptest::prelude::*;
use velo_fabric::packet::limits::{
    DATA_OVERHEAD_BYTES, DATAGRAM_MAX_BYTES, READS_PER_PATH, SEGMENT_MAX_BYTES, SEGMENT_MIN_BYTES,
    SEGMENTS_PER_READ,
};
use velo_fabric::packet::protocol::frame::{
    CloseReason, Credit, Data, Message, Messages, PROBE_MIN_BYTES, ReadRequest,
};
use velo_fabric::packet::protocol::seal::{Frame, Protection};
use velo_fabric::pool::BUFFER_BYTES;
use velo_fabric::{Refusal, What};
use velo_object::BlobId;

use crate::{PROTECTIONS, pair};

fn slot() -> impl Strategy<Value = u16> {
    0..READS_PER_PATH as u16
}

fn message() -> impl Strategy<Value = Message> {
    let read = (
        (slot(), any::<u32>(), any::<[u8; 32]>(), any::<bool>()),
        (any::<u64>(), 1..=BUFFER_BYTES as u32, SEGMENT_MIN_BYTES as u16..=SEGMENT_MAX_BYTES as u16),
    )
        .prop_map(|((slot, read, blob, outboard), (offset, len, segment_bytes))| {
            Message::Read(ReadRequest {
                slot,
                read,
                blob: BlobId::from_bytes(blob),
                what: if outboard { What::Outboard } else { What::Blob },
                offset_bytes: offset.min(u64::MAX - u64::from(len)),
                len,
                segment_bytes,
            })
        });
    let credit = (slot(), any::<[u32; 3]>(), 0..SEGMENTS_PER_READ as u16, any::<u64>()).prop_map(
        |(slot, [read, number, stamp], first, mask)| {
            let room = SEGMENTS_PER_READ as u32 - u32::from(first);
            let mask = if room < 64 { mask & ((1 << room) - 1) } else { mask };
            Message::Credit(Credit { slot, read, number, stamp, first, mask: mask.max(1) })
        },
    );
    prop_oneof![
        read,
        credit,
        (slot(), any::<u32>()).prop_map(|(slot, read)| Message::End { slot, read }),
        (slot(), any::<u32>(), prop_oneof![Just(Refusal::NotHere), Just(Refusal::Refused)])
            .prop_map(|(slot, read, why)| Message::Refuse { slot, read, why }),
        prop_oneof![
            Just(CloseReason::Done),
            Just(CloseReason::Stalled),
            Just(CloseReason::Protocol),
            Just(CloseReason::Source)
        ]
        .prop_map(|why| Message::Close { why }),
        any::<u32>().prop_map(|stamp| Message::Ping { stamp }),
        any::<u32>().prop_map(|stamp| Message::Pong { stamp }),
        (slot(), any::<u32>()).prop_map(|(slot, read)| Message::Ready { slot, read }),
    ]
}

fn data() -> impl Strategy<Value = Data> {
    (slot(), 0..SEGMENTS_PER_READ as u16, 1..=BUFFER_BYTES as u32, any::<[u32; 4]>()).prop_map(
        |(slot, segment, len, [read, credit, echo, held])| Data {
            slot,
            segment,
            read,
            len,
            credit,
            echo,
            held,
        },
    )
}

fn protection() -> impl Strategy<Value = Protection> {
    prop::sample::select(PROTECTIONS.to_vec())
}

proptest! {
    #[test]
    fn messages_come_back(protection in protection(), sent in prop::collection::vec(message(), 1..30), space in 64..1_600usize) {
        let (mut dialler, mut accepter) = pair(protection);
        let mut space = vec![0; space];
        let mut fitting = Vec::new();
        let len = dialler.sealer.control(&mut space, |body| {
            for message in &sent {
                let (room, fits) = (body.room(), body.push(message));
                assert_eq!(fits, message.len_bytes() <= room);
                fitting.extend(fits.then_some(*message));
            }
        });
        let Some(len) = len else {
            prop_assert!(fitting.is_empty());
            return Ok(());
        };
        let opened = accepter.opener.open(&mut space[..len]).unwrap();
        let Frame::Control(messages) = opened.frame else { panic!("another kind") };
        prop_assert_eq!(messages.collect::<Vec<_>>(), fitting);
    }

    #[test]
    fn data_come_back(protection in protection(), data in data(), payload in prop::collection::vec(any::<u8>(), 1..5_000)) {
        let (mut dialler, mut accepter) = pair(protection);
        let mut space = vec![0; 6_000];
        let len = accepter.sealer.data(&mut space, &data, &payload).unwrap();
        prop_assert_eq!(len, payload.len() + DATA_OVERHEAD_BYTES);
        let opened = dialler.opener.open(&mut space[..len]).unwrap();
        let Frame::Data(opened, bytes) = opened.frame else { panic!("another kind") };
        prop_assert_eq!((opened, bytes.len()), (data, payload.len()));
        let mut to = vec![0; bytes.len()];
        bytes.copy_to(&mut to).unwrap();
        prop_assert_eq!(to, payload);
    }

    #[test]
    fn probes_come_back(protection in protection(), nonce: u64, len in PROBE_MIN_BYTES..=DATAGRAM_MAX_BYTES) {
        let (mut dialler, mut accepter) = pair(protection);
        let mut space = vec![0xee; DATAGRAM_MAX_BYTES];
        prop_assert_eq!(dialler.sealer.probe(&mut space, nonce, len), Some(len));
        prop_assert_eq!(accepter.opener.open(&mut space[..len]).unwrap().frame, Frame::Probe { nonce });
        prop_assert_eq!(accepter.sealer.probed(&mut space, nonce, len), Some(len));
        prop_assert_eq!(dialler.opener.open(&mut space[..len]).unwrap().frame, Frame::Probed { nonce });
    }

    /// Bytes that begin like messages: no panic, and what is accepted is what would be written.
    #[test]
    fn what_is_accepted_is_canonical(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kinds: [u8; 4]) {
        for (i, kind) in kinds.iter().enumerate() {
            if let Some(byte) = bytes.get_mut(i * 8) {
                *byte = kind % 8;
            }
        }
        if let Ok(messages) = Messages::parse(&bytes) {
            let mut space = vec![0; bytes.len()];
            let mut body = velo_fabric::packet::protocol::frame::Body::new(&mut space);
            for message in messages {
                prop_assert!(body.push(&message));
            }
            prop_assert_eq!(body.room(), 0);
            prop_assert_eq!(space, bytes);
        }
    }
}

#[test]
fn what_does_not_fit_takes_no_number() {
    for protection in PROTECTIONS {
        let sealer = &mut pair(protection).0.sealer;
        let mut space = vec![0; DATAGRAM_MAX_BYTES + 100];
        assert_eq!(sealer.data(&mut space, &crate::DATA, &[]), None);
        assert_eq!(sealer.data(&mut space, &crate::DATA, &vec![0; SEGMENT_MAX_BYTES + 1]), None);
        assert_eq!(sealer.data(&mut space[..DATA_OVERHEAD_BYTES], &crate::DATA, &[1]), None);
        assert_eq!(sealer.control(&mut space, |_| {}), None);
        for short in [0, 15, 16, 31, 32, 39] {
            let len =
                sealer.control(&mut space[..short], |body| assert!(!body.push(&Message::Ping { stamp: 1 })));
            assert_eq!(len, None);
        }
        for len in [0, PROBE_MIN_BYTES - 1, DATAGRAM_MAX_BYTES + 1] {
            assert_eq!(sealer.probe(&mut space, 1, len), None);
        }
        assert_eq!(sealer.probe(&mut space[..50], 1, 51), None);
        assert_eq!(sealer.number(), 0);
        assert!(sealer.data(&mut space, &crate::DATA, &vec![0; SEGMENT_MAX_BYTES]).is_some());
        assert_eq!(sealer.number(), 1);
    }
}
