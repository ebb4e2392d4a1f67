//! Datagrams at an endpoint: of a stranger, who must not move it, and of a peer that has the keys and means harm.
#![no_main]

use std::net::SocketAddr;

use velo_fabric::packet::port::{Arrival, Ecn};
use velo_fabric::packet::protocol::Timestamp;
use velo_fabric::packet::protocol::frame::{
    Body, CloseReason, Credit, Data, Header, Message, Messages, ReadRequest,
};
use velo_fabric::packet::protocol::seal::{Frame, Protection, Role};
use velo_fabric::{Refusal, What};
use velo_fabric_fuzz::station::{PATH, Station, keys};
use velo_fabric_fuzz::{Input, PROTECTIONS};
use velo_object::BlobId;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let how = input.byte();
    let protection = PROTECTIONS[usize::from(how) % 3];
    if how & 0x80 == 0 {
        parse(input.0);
        stranger(protection, input);
    } else {
        peer(protection, how & 0x40 != 0, input);
    }
});

fn remote() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 2))
}

/// What parses is what would have been written.
fn parse(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    let Ok(messages) = Messages::parse(bytes) else { return };
    let mut space = vec![0; bytes.len()];
    let mut body = Body::new(&mut space);
    for message in messages {
        assert!(body.push(&message));
    }
    assert_eq!(body.room(), 0);
    assert_eq!(space, bytes);
}

/// One without keys: whatever he sends, nothing is answered and nothing changes.
fn stranger(protection: Protection, mut input: Input<'_>) {
    let now = Timestamp(1_000_000);
    let mut station = Station::new(Role::Dialler, protection, remote(), false);
    station.post(now.0, 0, 10_000);
    let mut space = vec![0; 9_000];
    while station.endpoint.poll_transmit(now, &mut space).is_some() {}
    while !input.is_empty() {
        let len = input.number(2) as usize;
        let mut datagram = input.bytes(len % 2_048).to_vec();
        if len & 0x8000 != 0 && datagram.len() >= 16 {
            // So that it comes to the keys.
            datagram[0] = 1 << 4 | (datagram[0] & 3) + 1;
            datagram[1] = if protection == Protection::Trusted { 0 } else { 2 };
            datagram[2..4].fill(0);
            datagram[4..8].copy_from_slice(&0x0100u32.to_le_bytes());
        }
        let before = station.endpoint.counters();
        let arrival = Arrival { from: remote(), datagram: &mut datagram, ecn: Ecn::Capable };
        station.endpoint.handle_datagram(now, arrival);
        let after = station.endpoint.counters();
        assert_eq!(after.unknown + after.rejected, before.unknown + before.rejected + 1);
        assert_eq!((after.datagrams_in, after.fabric.protocol_errors), (0, 0));
        assert!(station.endpoint.poll_event().is_none(), "a stranger causes an event");
        assert!(station.endpoint.poll_transmit(now, &mut space).is_none(), "a stranger is answered");
    }
}

/// One with keys, who sends whatever there are fields for.
fn peer(protection: Protection, lossless: bool, mut input: Input<'_>) {
    let mut station = Station::new(Role::Dialler, protection, remote(), lossless);
    station.honest = false;
    let mut hostile = keys(Role::Accepter, protection);
    let mut now = 0;
    let mut space = vec![0; 9_000];
    // What the station has said last: some of it, the peer answers as it should.
    let (mut nonce, mut wanted, mut stamp) = (0, (0, 0), (0, 0));
    while !input.is_empty() {
        let mut sent = None;
        match input.byte() % 12 {
            0 => {
                let count = input.byte() % 8 + 1;
                sent = hostile.sealer.control(&mut space, |body| {
                    for _ in 0..count {
                        let _ = body.push(&message(&mut input, wanted));
                    }
                });
            }
            1 => {
                let data = Data {
                    slot: input.byte().into(),
                    segment: input.number(2) as u16,
                    read: input.number(4) as u32,
                    len: input.number(3) as u32,
                    credit: input.number(4) as u32,
                    echo: input.number(4) as u32,
                    held: input.number(4) as u32,
                };
                let len = input.number(2) as usize % 8_900 + 1;
                sent = hostile.sealer.data(&mut space, &data, &vec![0xda; len]);
            }
            2 => {
                // As it should be, but perhaps of another length or of the wrong segment.
                let (slot, read) = wanted;
                let (credit, echo) = stamp;
                let data = Data {
                    slot,
                    segment: input.byte().into(),
                    read,
                    len: (input.number(2) as u32).max(1),
                    credit,
                    echo,
                    held: 0,
                };
                let lens = [1_176, 1_024, 1_416, 8_944, 1, 100];
                let len = lens[usize::from(input.byte()) % lens.len()];
                sent = hostile.sealer.data(&mut space, &data, &vec![0xda; len]);
            }
            3 => {
                let len = input.number(2) as usize % 9_001;
                sent = hostile.sealer.probe(&mut space, input.number(8), len);
            }
            4 => {
                let len = input.number(2) as usize % 9_001;
                sent = hostile.sealer.probed(&mut space, nonce ^ u64::from(input.byte()), len);
            }
            5 | 6 => now += input.number(2) * 10_000,
            7 => station.post(now, input.number(8), input.number(3) as u32 % (1 << 20) + 1),
            8 => station.endpoint.cancel(Timestamp(now), PATH, input.byte().into()),
            9 => station.answer(now, input.byte().into(), input.byte()),
            10 => {
                if input.byte() == 0 {
                    station.endpoint.close(Timestamp(now), PATH);
                }
            }
            _ => now += 1_000,
        }
        if let Some(len) = sent {
            let from = if input.byte() & 15 == 0 { SocketAddr::from(([10, 0, 0, 3], 3)) } else { remote() };
            let arrival = Arrival { from, datagram: &mut space[..len], ecn: Ecn::Capable };
            station.endpoint.handle_datagram(Timestamp(now), arrival);
        }
        station.events();
        if station.endpoint.poll_timeout().is_some_and(|at| at.0 <= now) {
            station.endpoint.handle_timeout(Timestamp(now));
        }
        // What it grants to itself at once is bounded: it always comes to an end.
        let mut turns = 0;
        while let Some(departure) = station.endpoint.poll_transmit(Timestamp(now), &mut space) {
            turns += 1;
            assert!(turns < 100_000, "it sends without end");
            // Whatever it is told, it makes good frames.
            let opened = hostile.opener.open(&mut space[..departure.len]).expect("a good frame");
            match opened.frame {
                Frame::Probe { nonce: sent } => nonce = sent,
                Frame::Control(messages) => messages.for_each(|message| match message {
                    Message::Read(read) => wanted = (read.slot, read.read),
                    Message::Credit(credit) => stamp = (credit.number, credit.stamp),
                    _ => {}
                }),
                _ => {}
            }
        }
        station.events();
    }
    station.endpoint.close(Timestamp(now), PATH);
    for _ in 0..100 {
        now += 500_000_000;
        station.endpoint.handle_timeout(Timestamp(now));
        while station.endpoint.poll_transmit(Timestamp(now), &mut space).is_some() {}
        station.events();
    }
    station.check_end();
}

fn message(input: &mut Input<'_>, wanted: (u16, u32)) -> Message {
    let kind = input.byte();
    // Sometimes what the station knows, sometimes anything.
    let (slot, read) = if kind & 0x80 == 0 { wanted } else { (input.byte().into(), input.number(2) as u32) };
    match kind % 9 {
        0 | 1 => Message::Read(ReadRequest {
            slot,
            read: input.number(1) as u32,
            blob: BlobId::from_bytes([input.byte(); 32]),
            what: if kind & 0x40 == 0 { What::Blob } else { What::Outboard },
            offset_bytes: input.number(8),
            len: input.number(3) as u32,
            segment_bytes: input.number(2) as u16,
        }),
        2 | 3 => Message::Credit(Credit {
            slot,
            read: input.number(1) as u32,
            number: input.number(2) as u32,
            stamp: input.number(4) as u32,
            first: input.number(2) as u16 % 1_030,
            mask: input.number(8),
        }),
        4 => Message::End { slot, read },
        5 => Message::Refuse { slot, read, why: Refusal::NotHere },
        6 if input.byte() == 0 => Message::Close { why: CloseReason::Done },
        6 => Message::Ping { stamp: input.number(4) as u32 },
        7 => Message::Pong { stamp: input.number(4) as u32 },
        _ => Message::Ready { slot, read },
    }
}
