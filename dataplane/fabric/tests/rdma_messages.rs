//! The messages over queue pairs from outside: golden bytes, round trips, every bad field.

use std::path::Path;

use proptest::prelude::*;
use velo_fabric::rdma::limits::{MESSAGE_BYTES, READS_PER_PATH};
use velo_fabric::rdma::message::{AskMessage, Grant, Message};
use velo_fabric::rdma::verbs::Span;
use velo_fabric::{Refusal, What};
use velo_object::BlobId;

const BUFFER_BYTES: u32 = velo_fabric::pool::BUFFER_BYTES as u32;

fn ask() -> AskMessage {
    let blob = BlobId::from_bytes([0xb1; 32]);
    AskMessage { slot: 7, read: 300, blob, what: What::Outboard, offset_bytes: 1 << 40, len: 1 << 20 }
}

fn grant() -> Grant {
    let span = Span { address: 0x7f00_1234_5678_9abc, rkey: 0xdead_beef, len: 1 << 20 };
    Grant { slot: 31, read: u32::MAX, span, lease_ms: 10_000, held_us: 250, epoch: 1 << 50 }
}

/// One of each.
fn all() -> Vec<Message> {
    vec![
        Message::Hello,
        Message::Welcome,
        Message::Ask(ask()),
        Message::Ask(AskMessage { what: What::Blob, ..ask() }),
        Message::Grant(grant()),
        Message::Refuse { slot: 1, read: 2, why: Refusal::NotHere },
        Message::Refuse { slot: 1, read: 2, why: Refusal::Refused },
        Message::End { slot: 3, read: 4 },
    ]
}

/// Version 1 of every message, byte by byte: `golden/rdma.v1` never changes. `VELO_GOLDEN=write` writes it if it is missing.
#[test]
fn every_message_has_the_bytes_of_version_1() {
    let line = |message: &Message| -> String {
        message.encode().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n"
    };
    let made: String = all().iter().map(line).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rdma.v1");
    if std::env::var_os("VELO_GOLDEN").is_some_and(|what| what == "write") && !path.exists() {
        std::fs::write(&path, &made).expect("the folder can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("the golden file");
    assert_eq!(golden, made, "messages are made with other bytes than version 1 has");
}

fn messages() -> impl Strategy<Value = Message> {
    let slot = 0..READS_PER_PATH as u16;
    let what = prop_oneof![Just(What::Blob), Just(What::Outboard)];
    let why = prop_oneof![Just(Refusal::NotHere), Just(Refusal::Refused)];
    let range = (1..=BUFFER_BYTES).prop_flat_map(|len| (Just(len), 0..=u64::MAX - u64::from(len)));
    let ask = (slot.clone(), any::<u32>(), any::<[u8; 32]>(), what, range.clone()).prop_map(
        |(slot, read, blob, what, (len, offset_bytes))| {
            let blob = BlobId::from_bytes(blob);
            Message::Ask(AskMessage { slot, read, blob, what, offset_bytes, len })
        },
    );
    let grant = (slot.clone(), any::<u32>(), range, any::<(u32, u32, u32, u64)>()).prop_map(
        |(slot, read, (len, address), (rkey, lease_ms, held_us, epoch))| {
            let span = Span { address, rkey, len };
            Message::Grant(Grant { slot, read, span, lease_ms, held_us, epoch })
        },
    );
    let refuse =
        (slot.clone(), any::<u32>(), why).prop_map(|(slot, read, why)| Message::Refuse { slot, read, why });
    let end = (slot, any::<u32>()).prop_map(|(slot, read)| Message::End { slot, read });
    prop_oneof![ask, grant, refuse, end]
}

proptest! {
    #[test]
    fn what_is_made_is_what_is_read(message in messages()) {
        let encoded = message.encode();
        prop_assert!(encoded.as_ref().len() <= MESSAGE_BYTES);
        prop_assert_eq!(Message::decode(encoded.as_ref()), Ok(message));
    }

    #[test]
    fn garbage_is_an_error_and_no_panic(kind in 0..8u8, rest in prop::collection::vec(any::<u8>(), 0..MESSAGE_BYTES)) {
        let bytes = [&[kind], &rest[..]].concat();
        if let Ok(message) = Message::decode(&bytes) {
            let again = message.encode();
            prop_assert_eq!(again.as_ref(), &bytes[..], "one message has two encodings");
        }
    }
}

#[test]
fn lengths_are_exact() {
    for message in all() {
        let bytes = message.encode().as_ref().to_vec();
        for len in 0..bytes.len() {
            assert!(Message::decode(&bytes[..len]).is_err(), "{message:?} cut to {len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Message::decode(&longer).is_err(), "{message:?} and one more");
    }
}

#[test]
fn every_field_over_its_limit_is_refused_and_named() {
    let with = |message: Message, at: usize, new: &[u8]| {
        let mut bytes = message.encode().as_ref().to_vec();
        bytes[at..at + new.len()].copy_from_slice(new);
        Message::decode(&bytes).expect_err("it must be refused").to_string()
    };
    let (ask, grant) = (|| Message::Ask(ask()), || Message::Grant(grant()));
    let slots = &(READS_PER_PATH as u16).to_le_bytes();
    let (zero, longer) = (&0u32.to_le_bytes(), &(BUFFER_BYTES + 1).to_le_bytes());
    let end = &u64::MAX.to_le_bytes();
    for (named, error) in [
        ("what", with(ask(), 1, &[2])),
        ("slot", with(ask(), 2, slots)),
        ("offset", with(ask(), 40, end)),
        ("len", with(ask(), 48, zero)),
        ("len", with(ask(), 48, longer)),
        ("zero", with(ask(), 52, &[1])),
        ("zero", with(grant(), 1, &[1])),
        ("slot", with(grant(), 2, slots)),
        ("address", with(grant(), 8, end)),
        ("len", with(grant(), 20, zero)),
        ("len", with(grant(), 20, longer)),
        ("why", with(Message::Refuse { slot: 0, read: 0, why: Refusal::Refused }, 1, &[2])),
        ("slot", with(Message::End { slot: 0, read: 0 }, 2, slots)),
        ("zero", with(Message::End { slot: 0, read: 0 }, 1, &[1])),
        ("zero", with(Message::Welcome, 1, &[1])),
        ("zero", with(Message::Hello, 2, &[1])),
        ("version 2", with(Message::Hello, 1, &[2])),
        ("7", with(Message::Hello, 0, &[7])),
    ] {
        assert!(error.contains(named), "{named}: {error}");
    }
}
