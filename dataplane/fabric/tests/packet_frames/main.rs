//! The frames of the packet fabric from outside: golden bytes, round trips, every bad field, every forgery.

mod allocations;
mod fields;
mod forgeries;
mod golden;
mod round_trips;

use velo_fabric::packet::protocol::frame::{Credit, Data, Message, ReadRequest};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role, Sealer};
use velo_fabric::{Refusal, What};
use velo_object::BlobId;

pub(crate) const PROTECTIONS: [Protection; 3] = [
    Protection::Sealed(Cipher::Aes128Gcm),
    Protection::Sealed(Cipher::ChaCha20Poly1305),
    Protection::Trusted,
];
pub(crate) const NAME: PathName<'static> =
    PathName { fabric: "udp", dialler: 0x0102_0304, accepter: 0xa1a2_a3a4 };

/// The keys of the dialler and of the accepter.
pub fn pair(protection: Protection) -> (PathKeys, PathKeys) {
    let secret = PathSecret(std::array::from_fn(|i| i as u8));
    let keys = |role| PathKeys::derive(&secret, &NAME, role, protection);
    (keys(Role::Dialler), keys(Role::Accepter))
}

/// A message of every type.
pub fn messages() -> Vec<Message> {
    vec![
        Message::Read(ReadRequest {
            slot: 63,
            read: 0x0a0b_0c0d,
            blob: BlobId::from_bytes(std::array::from_fn(|i| 0x80 + i as u8)),
            what: What::Outboard,
            offset_bytes: 0x0102_0304_0506_0708,
            len: 1 << 20,
            segment_bytes: 1396,
        }),
        Message::Credit(Credit {
            slot: 63,
            read: 0x0a0b_0c0d,
            number: 0x1112_1314,
            stamp: 0x2122_2324,
            first: 960,
            mask: 0x8000_0000_0000_0001,
        }),
        Message::End { slot: 1, read: 2 },
        Message::Refuse { slot: 3, read: 4, why: Refusal::NotHere },
        Message::Refuse { slot: 3, read: 4, why: Refusal::Refused },
        Message::Close { why: velo_fabric::packet::protocol::frame::CloseReason::Source },
        Message::Ping { stamp: 0x3132_3334 },
        Message::Pong { stamp: 0x4142_4344 },
        Message::Ready { slot: 5, read: 6 },
    ]
}

pub(crate) const DATA: Data = Data {
    slot: 5,
    segment: 700,
    read: 0x5152_5354,
    len: 1_000_000,
    credit: 0x6162_6364,
    echo: 0x7172_7374,
    held: 0x8182_8384,
};

/// One frame of each kind, in the order of their numbers.
pub fn frames(sealer: &mut Sealer) -> [(&'static str, Vec<u8>); 4] {
    let mut space = vec![0xee; 400];
    let cut = |space: &[u8], len: Option<usize>| space[..len.expect("there is room")].to_vec();
    let data = sealer.data(&mut space, &DATA, b"thirty-three bytes of the payload");
    let data = cut(&space, data);
    let control = sealer.control(&mut space, |body| {
        for message in messages() {
            assert!(body.push(&message));
        }
    });
    let control = cut(&space, control);
    let probe = sealer.probe(&mut space, 0x9192_9394_9596_9798, 64);
    let probe = cut(&space, probe);
    let probed = sealer.probed(&mut space, 0xa1a2_a3a4_a5a6_a7a8, 80);
    let probed = cut(&space, probed);
    [("data", data), ("control", control), ("probe", probe), ("probed", probed)]
}
