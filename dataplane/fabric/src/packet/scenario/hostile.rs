//! A peer that holds the keys and does what it likes: a sequence of operations, read from bytes, on an endpoint whose promises are
//! checked after each. For property tests and the fuzzer.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use velo_object::{BlobId, NodeId};

use super::blob;
use crate::packet::limits::{EVENTS, READS_PER_PATH, SEGMENTS_PER_READ, WINDOW_MAX_BYTES};
use crate::packet::port::{Arrival, Ecn};
use crate::packet::protocol::frame::{CloseReason, Credit, Data, Message, ReadRequest};
use crate::packet::protocol::seal::{Frame, PathKeys, PathName, PathSecret, Protection, Role};
use crate::packet::protocol::{Endpoint, EndpointOptions, Event, NewPath, Timestamp};
use crate::pool::{BUFFER_BYTES, Pool};
use crate::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId};
use crate::{Completion, Read, Refusal, What};

const PATH: u64 = 9;
const DATAGRAM_BYTES: usize = 9_000;

/// Bytes that are read as numbers until they are used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: u32) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), 0]) % end
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes([(); 8].map(|()| self.byte()))
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

/// The endpoint, its peer's keys, and what both know.
struct Table {
    endpoint: Endpoint,
    peer: PathKeys,
    pool: Pool,
    now: u64,
    /// Tags of reads that were accepted and have not ended.
    reads: HashSet<u64>,
    next_tag: u64,
    /// What was asked of the endpoint's node and not released; answered or not.
    asks: HashMap<ServeId, Ask>,
    /// What the endpoint has asked for and granted, as its peer sees it.
    requests: HashMap<u16, ReadRequest>,
    credits: Vec<Credit>,
    nonces: Vec<(u64, usize)>,
    closed: bool,
    /// Bytes from the endpoint to addresses that it was never told from within a frame of the peer's.
    frame: Vec<u8>,
    content: Bytes,
}

fn address(number: u8) -> SocketAddr {
    ([10, 0, 0, number], 7_440).into()
}

/// Does what `input` says and checks every promise of the protocol that a peer could break.
///
/// # Panics
/// If a promise is broken.
pub fn hostile(input: &[u8]) {
    let mut input = Input(input);
    let protection = match input.byte() % 2 {
        0 => Protection::Trusted,
        _ => Protection::Sealed(crate::packet::protocol::seal::Cipher::ChaCha20Poly1305),
    };
    let mut table = Table::new(protection);
    // An input of many short operations is stopped as well as a long one.
    for _ in 0..4_096 {
        if input.is_empty() {
            break;
        }
        table.step(&mut input);
        table.check();
    }
    table.finish();
}

impl Table {
    fn new(protection: Protection) -> Self {
        let options = EndpointOptions {
            stall_timeout: Duration::from_secs(1),
            line_rate_bytes_per_s: Some(1_000_000_000),
            datagram_max_bytes: DATAGRAM_BYTES,
            ..EndpointOptions::default()
        };
        let mut endpoint = Endpoint::new(options);
        let name = PathName { fabric: "hostile", dialler: 5, accepter: 6 };
        let secret = PathSecret([4; 32]);
        let path = NewPath {
            id: PATH,
            peer: NodeId::from_bytes([2; 32]),
            remote: address(1),
            keys: PathKeys::derive(&secret, &name, Role::Dialler, protection),
            datagram_max_bytes: DATAGRAM_BYTES,
        };
        endpoint.add_path(Timestamp(1), path).expect("the first path");
        Self {
            endpoint,
            peer: PathKeys::derive(&secret, &name, Role::Accepter, protection),
            pool: Pool::new((READS_PER_PATH as u64 + 1) * BUFFER_BYTES as u64).expect("address space"),
            now: 1,
            reads: HashSet::new(),
            next_tag: 0,
            asks: HashMap::new(),
            requests: HashMap::new(),
            credits: Vec::new(),
            nonces: Vec::new(),
            closed: false,
            frame: vec![0; DATAGRAM_BYTES],
            content: vec![5; BUFFER_BYTES].into(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.now)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0 | 1 => self.now += u64::from(input.below(1 << 24)) << (input.byte() % 8),
            2 | 3 => self.post(input),
            4 => {
                let tag = u64::from(input.byte());
                self.endpoint.cancel(self.now(), PATH, tag);
            }
            5 | 6 => self.answer(input),
            7 | 8 => self.control(input),
            9 => self.data(input),
            10 => self.honest_data(input),
            11 => self.probe(input),
            12 => {
                let len = input.below(200) as usize;
                let mut bytes = input.take(len);
                self.arrive(&mut bytes, input.byte());
            }
            13 => self.endpoint.handle_timeout(self.now()),
            14 => self.transmit(usize::from(input.byte())),
            _ => {
                // A frame that is damaged or comes again.
                let len = self.peer.sealer.control(&mut self.frame, |body| {
                    let _ = body.push(&Message::Pong { stamp: 1 });
                });
                let mut bytes = self.frame[..len.unwrap_or(0)].to_vec();
                let mut again = bytes.clone();
                self.arrive(&mut bytes, 1);
                if let Some(byte) = again.get_mut(usize::from(input.byte())) {
                    *byte ^= input.byte();
                }
                self.arrive(&mut again, 1);
            }
        }
        self.events();
    }

    fn post(&mut self, input: &mut Input<'_>) {
        let Some(buffer) = self.pool.take() else { return };
        let len = match input.byte() % 4 {
            0 => input.below(BUFFER_BYTES as u32 + 2),
            1 => input.below(4_000),
            _ => BUFFER_BYTES as u32,
        };
        let tag = self.next_tag;
        let read = Read { tag, blob: blob(), what: What::Blob, offset_bytes: input.word(), len, buffer };
        if self.endpoint.post_read(self.now(), PATH, read).is_ok() {
            self.next_tag += 1;
            assert!(self.reads.insert(tag) && !self.closed && len > 0 && len as usize <= BUFFER_BYTES);
        }
    }

    fn answer(&mut self, input: &mut Input<'_>) {
        let chosen = usize::from(input.byte());
        let mut ids: Vec<_> = self.asks.keys().copied().collect();
        ids.sort_by_key(|id| (id.slot, id.read));
        let Some(id) = ids.get(chosen % ids.len().max(1)) else { return };
        let ask = self.asks[id];
        let result = match input.byte() % 4 {
            0 => Err(Refusal::Refused),
            1 => Ok(input.below(BUFFER_BYTES as u32 + 9)),
            _ => Ok(ask.len),
        };
        let result = result.map(|len| {
            let bytes = LoadedBytes::Shared(self.content.clone());
            Loaded { bytes, len, lease: Box::new(()) }
        });
        self.endpoint.answer(self.now(), Answer { id: *id, result });
    }

    /// Messages that are well formed, and mean anything.
    fn control(&mut self, input: &mut Input<'_>) {
        let mut messages = Vec::new();
        for _ in 0..1 + input.byte() % 24 {
            let slot = (input.byte() % READS_PER_PATH as u8).into();
            let read = input.below(8);
            messages.push(match input.byte() % 13 {
                0..=3 => Message::Read(ReadRequest {
                    slot,
                    read,
                    blob: BlobId::from_bytes([1; 32]),
                    what: What::Outboard,
                    offset_bytes: u64::from(input.below(1 << 20)),
                    len: 1 + input.below(BUFFER_BYTES as u32),
                    segment_bytes: 1_024 + input.below(7_900) as u16,
                }),
                4..=7 => {
                    let first = input.below(SEGMENTS_PER_READ as u32);
                    let room = (SEGMENTS_PER_READ as u32 - first).min(64);
                    let mask = input.word() & (u64::MAX >> (64 - room)) | 1;
                    let (number, stamp) = (input.below(1 << 12), input.below(1 << 20));
                    Message::Credit(Credit { slot, read, number, stamp, first: first as u16, mask })
                }
                8 => Message::End { slot, read },
                9 => {
                    let read = self.requests.get(&slot).map_or(read, |request| request.read);
                    Message::Refuse { slot, read, why: Refusal::NotHere }
                }
                10 => Message::Ping { stamp: read },
                11 => {
                    let read = self.requests.get(&slot).map_or(read, |request| request.read);
                    Message::Ready { slot, read }
                }
                _ if input.byte() == 0 => Message::Close { why: CloseReason::Done },
                _ => Message::Pong { stamp: read },
            });
        }
        let len = self.peer.sealer.control(&mut self.frame, |body| {
            for message in &messages {
                if !body.push(message) {
                    break;
                }
            }
        });
        self.send(len, 1 + u8::from(input.byte() == 3));
    }

    fn data(&mut self, input: &mut Input<'_>) {
        let slot: u16 = (input.byte() % READS_PER_PATH as u8).into();
        let request = self.requests.get(&slot);
        let data = Data {
            slot,
            segment: input.below(SEGMENTS_PER_READ as u32) as u16,
            read: request.map_or(0, |request| request.read) + u32::from(input.byte().is_multiple_of(8)),
            len: 1 + input.below(BUFFER_BYTES as u32),
            credit: input.below(1 << 10),
            echo: input.below(1 << 24),
            held: input.below(1 << 24),
        };
        let len = 1 + input.below(8_000) as usize;
        let len = self.peer.sealer.data(&mut self.frame, &data, &self.content[..len]);
        self.send(len, 1);
    }

    /// What was granted, more or less as it should come.
    fn honest_data(&mut self, input: &mut Input<'_>) {
        for _ in 0..1 + input.byte() % 32 {
            if self.credits.is_empty() {
                return;
            }
            let chosen = usize::from(input.byte()) % self.credits.len();
            let credit = &mut self.credits[chosen];
            let segment = u32::from(credit.first) + credit.mask.trailing_zeros();
            credit.mask &= credit.mask.wrapping_sub(1);
            let credit = *credit;
            if credit.mask == 0 {
                self.credits.swap_remove(chosen);
            }
            let Some(request) = self.requests.get(&credit.slot) else { continue };
            let from = segment * u32::from(request.segment_bytes);
            if from >= request.len {
                continue;
            }
            let len = u32::from(request.segment_bytes).min(request.len - from);
            let data = Data {
                slot: credit.slot,
                segment: segment as u16,
                read: credit.read,
                len: request.len,
                credit: credit.number,
                echo: credit.stamp,
                held: 0,
            };
            let len = self.peer.sealer.data(&mut self.frame, &data, &self.content[..len as usize]);
            self.send(len, 1);
        }
    }

    fn probe(&mut self, input: &mut Input<'_>) {
        let from = 1 + input.byte() % 3;
        let len = if input.byte().is_multiple_of(2) {
            self.peer.sealer.probe(&mut self.frame, input.word(), 100 + input.below(8_900) as usize)
        } else {
            let chosen = usize::from(input.byte()) % self.nonces.len().max(1);
            let (nonce, bytes) = self.nonces.get(chosen).copied().unwrap_or((input.word(), 1_232));
            self.peer.sealer.probed(&mut self.frame, nonce, bytes)
        };
        self.send(len, from);
    }

    fn send(&mut self, len: Option<usize>, from: u8) {
        let Some(len) = len else { return };
        let mut bytes = std::mem::take(&mut self.frame);
        self.arrive(&mut bytes[..len], from);
        self.frame = bytes;
    }

    fn arrive(&mut self, bytes: &mut [u8], from: u8) {
        let arrival = Arrival { from: address(from), datagram: bytes, ecn: Ecn::Congested };
        self.endpoint.handle_datagram(self.now(), arrival);
    }

    /// What the endpoint sends, the peer reads.
    fn transmit(&mut self, most: usize) {
        for _ in 0..=most {
            let mut space = vec![0; DATAGRAM_BYTES];
            let Some(departure) = self.endpoint.poll_transmit(self.now(), &mut space) else { return };
            assert!((1..=DATAGRAM_BYTES).contains(&departure.len));
            let opened = self.peer.opener.open(&mut space[..departure.len]);
            match opened.expect("what it sends can be opened").frame {
                Frame::Data(data, payload) => {
                    let asked = self.asks.keys().any(|id| id.slot == data.slot && id.read == data.read);
                    assert!(asked, "data of a read that is not there");
                    assert!(payload.len() <= DATAGRAM_BYTES);
                }
                Frame::Control(messages) => {
                    for message in messages {
                        match message {
                            Message::Read(request) => {
                                self.requests.insert(request.slot, request);
                            }
                            Message::Credit(credit) => self.credits.push(credit),
                            _ => {}
                        }
                    }
                    self.credits.drain(..self.credits.len().saturating_sub(1_000));
                }
                Frame::Probe { nonce } => self.nonces.push((nonce, departure.len)),
                Frame::Probed { .. } => {}
            }
            self.nonces.drain(..self.nonces.len().saturating_sub(20));
        }
    }

    fn events(&mut self) {
        let mut count = 0;
        while let Some(event) = self.endpoint.poll_event() {
            count += 1;
            match event {
                Event::Ask(ask) => assert!(self.asks.insert(ask.id, ask).is_none(), "asked twice"),
                Event::Release { id, .. } => assert!(self.asks.remove(&id).is_some(), "released unasked"),
                Event::Completion(Completion::Read { tag, result, buffer, .. }) => {
                    assert!(self.reads.remove(&tag), "read {tag} ended twice");
                    assert!(result.is_err() || result == Ok(buffer.len() as u32));
                }
                Event::Completion(Completion::PathClosed { .. }) => {
                    assert!(!std::mem::replace(&mut self.closed, true), "closed twice");
                    assert!(self.reads.is_empty() && self.asks.is_empty());
                }
                Event::Completion(Completion::PathProven { .. }) | Event::Proven { .. } => {}
            }
        }
        assert!(count <= 2 * EVENTS, "{count} events of one step");
    }

    fn check(&self) {
        assert!(self.reads.len() <= READS_PER_PATH && self.asks.len() <= READS_PER_PATH);
        assert_eq!(self.endpoint.paths(), usize::from(!self.closed));
        if let Some(info) = self.endpoint.path_info(PATH) {
            assert!(info.inflight_bytes <= WINDOW_MAX_BYTES + DATAGRAM_BYTES as u64);
            assert!(info.inflight_bytes <= self.reads.len() as u64 * BUFFER_BYTES as u64);
            assert!((1_232..=DATAGRAM_BYTES).contains(&info.datagram_bytes) || !info.proven);
        }
        assert!(self.endpoint.poll_timeout().is_some() || self.closed || self.endpoint.paths() == 1);
    }

    /// Closes the path: then everything has ended, and nothing is left to be done.
    fn finish(mut self) {
        self.endpoint.close(self.now(), PATH);
        self.events();
        assert!(self.closed && self.reads.is_empty() && self.asks.is_empty());
        for _ in 0..16 {
            self.transmit(64);
            if let Some(at) = self.endpoint.poll_timeout() {
                self.now = self.now.max(at.0);
                self.endpoint.handle_timeout(self.now());
            }
        }
        assert_eq!(self.endpoint.poll_timeout(), None, "a closed path still wants something");
        assert_eq!(self.pool.counters().in_use, 0, "a buffer is lost");
    }
}
