//! An endpoint with one path, and what it must keep to whatever happens: every read ends once, every question is released once, at most
//! as many of each as there are slots.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use velo_fabric::packet::limits::READS_PER_PATH;
use velo_fabric::packet::protocol::seal::{PathKeys, PathName, PathSecret, Protection, Role};
use velo_fabric::packet::protocol::{Endpoint, EndpointOptions, Event, NewPath, Timestamp};
use velo_fabric::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId};
use velo_fabric::{Completion, Read, Refusal, What};
use velo_object::{BlobId, NodeId};

use crate::{content, pool};

/// The number of the path in events.
pub const PATH: u64 = 9;

/// The keys of one end of the path.
pub fn keys(role: Role, protection: Protection) -> PathKeys {
    let name = PathName { fabric: "fuzz", dialler: 0x0100, accepter: 0x0200 };
    PathKeys::derive(&PathSecret([5; 32]), &name, role, protection)
}

/// One end.
pub struct Station {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Reads that have not ended: what they ask for.
    pub outstanding: HashMap<u64, (u64, u32)>,
    /// What the peer wants and has got no answer to.
    pub asks: Vec<Ask>,
    asked: HashSet<ServeId>,
    next_tag: u64,
    /// Whether the path has ended.
    pub closed: bool,
    /// Whether what arrives is what was asked for: of a peer that lies, it is not.
    pub honest: bool,
}

impl Station {
    /// An endpoint with a path to `remote`.
    pub fn new(role: Role, protection: Protection, remote: SocketAddr, lossless: bool) -> Self {
        let mut endpoint = Endpoint::new(EndpointOptions {
            stall_timeout: Duration::from_secs(2),
            line_rate_bytes_per_s: (!lossless).then_some(1_000_000_000),
            lossless,
            datagram_max_bytes: 9_000,
            seed: role as u64,
            ..EndpointOptions::default()
        });
        let path = NewPath {
            id: PATH,
            peer: NodeId::from_bytes([role as u8; 32]),
            remote,
            keys: keys(role, protection),
            datagram_max_bytes: 9_000,
        };
        endpoint.add_path(Timestamp(0), path).expect("there is none yet");
        Self {
            endpoint,
            outstanding: HashMap::new(),
            asks: Vec::new(),
            asked: HashSet::new(),
            next_tag: 0,
            closed: false,
            honest: true,
        }
    }

    /// Asks the peer for a range.
    pub fn post(&mut self, now: u64, offset_bytes: u64, len: u32) {
        let Some(buffer) = pool().take() else { return };
        let tag = self.next_tag;
        let read =
            Read { tag, blob: BlobId::from_bytes([1; 32]), what: What::Blob, offset_bytes, len, buffer };
        match self.endpoint.post_read(Timestamp(now), PATH, read) {
            Ok(()) => {
                self.next_tag += 1;
                self.outstanding.insert(tag, (offset_bytes, len));
                assert!(self.outstanding.len() <= READS_PER_PATH);
            }
            Err(read) => assert!(
                self.closed
                    || self.outstanding.len() == READS_PER_PATH
                    || self.endpoint.path_info(PATH).is_none()
                    || read.len as usize != read.buffer.len()
                    || read.len == 0
                    || offset_bytes.checked_add(len.into()).is_none(),
                "a good read is refused"
            ),
        }
    }

    /// Answers the question at this place; `how` is odd where it is refused.
    pub fn answer(&mut self, now: u64, place: usize, how: u8) {
        if self.asks.is_empty() {
            return;
        }
        let Ask { id, offset_bytes, len, .. } = self.asks.swap_remove(place % self.asks.len());
        let result = if how & 1 == 1 {
            Err(if how & 2 == 0 { Refusal::NotHere } else { Refusal::Refused })
        } else {
            // Some sources end earlier.
            let len = if how & 4 == 0 { len } else { len.div_ceil(2) };
            let bytes = LoadedBytes::Shared(content(offset_bytes & 0xffff_ffff, len).into());
            Ok(Loaded { bytes, len, lease: Box::new(()) })
        };
        self.endpoint.answer(Timestamp(now), Answer { id, result });
    }

    /// Takes what has happened.
    pub fn events(&mut self) {
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Ask(ask) => {
                    assert!(ask.id.path == PATH && ask.len > 0 && !self.closed);
                    assert!(self.asked.insert(ask.id), "asked twice");
                    // Those that the peer has given up are released late at most by those in this queue.
                    assert!(self.asked.len() <= 2 * READS_PER_PATH, "{} questions", self.asked.len());
                    self.asks.push(ask);
                }
                Event::Release { id, .. } => {
                    assert!(self.asked.remove(&id), "released twice, or never asked");
                    self.asks.retain(|ask| ask.id != id);
                }
                Event::Proven { path } => assert_eq!(path, PATH),
                Event::Completion(Completion::Read { tag, buffer, result, .. }) => {
                    let Some((offset, asked)) = self.outstanding.remove(&tag) else { panic!("ended twice") };
                    let Ok(len) = result else { continue };
                    assert!(len > 0 && len <= asked && buffer.len() == len as usize);
                    if self.honest {
                        assert!(buffer.as_ref() == content(offset, len), "other bytes than were sent");
                    }
                }
                Event::Completion(Completion::PathClosed { .. }) => {
                    assert!(self.outstanding.is_empty(), "reads outlive their path");
                    assert!(!self.closed, "closed twice");
                    self.closed = true;
                }
                Event::Completion(other) => panic!("{other:?} comes from other fabrics only"),
            }
        }
    }

    /// After the path has been closed and time has passed, nothing may be left.
    pub fn check_end(&self) {
        assert!(self.closed && self.outstanding.is_empty());
        assert!(self.asked.is_empty(), "{} questions are never released", self.asked.len());
    }
}
