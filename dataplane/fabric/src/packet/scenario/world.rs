//! Stations in a simulated network, driven in virtual time until all they fetch is there.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use velo_object::NodeId;

use super::reno::{Reno, RenoFlow, RenoOutcome};
use super::{Outcome, Transfer, blob, piece};
use crate::packet::limits::{READS_PER_PATH, WINDOW_MAX_BYTES};
use crate::packet::port::sim::{Host, LinkId, Network};
use crate::packet::protocol::seal::{PathKeys, PathName, PathSecret, Role};
use crate::packet::protocol::{Endpoint, EndpointOptions, Event, NewPath, Timestamp};
use crate::pool::{BUFFER_BYTES, Pool};
use crate::supply::{Answer, Ask, Loaded, LoadedBytes, ServeId};
use crate::{Completion, PathId, Read, Refusal, What};

/// Something to be fetched by one station from another.
struct Fetch {
    station: usize,
    path: PathId,
    bytes: u64,
    reads: usize,
    next: u64,
    outstanding: usize,
    done: u64,
    /// When the path was proven and when the last byte came.
    started: Option<u64>,
    ended: Option<u64>,
}

/// Where the bytes come from that a station's peers read: a few buffers, each filled in some time and kept until its read has ended.
struct Shelf {
    buffers: usize,
    load_ns: u64,
    waiting: VecDeque<Ask>,
    /// What is being read, and when it is there.
    loading: VecDeque<(u64, Ask)>,
    held: Vec<ServeId>,
}

impl Shelf {
    fn hand_on(&mut self, now: u64) {
        while self.held.len() < self.buffers
            && let Some(ask) = self.waiting.pop_front()
        {
            self.held.push(ask.id);
            self.loading.push_back((now + self.load_ns, ask));
        }
    }

    fn release(&mut self, now: u64, id: ServeId) {
        self.waiting.retain(|ask| ask.id != id);
        self.held.retain(|held| *held != id);
        self.hand_on(now);
    }

    /// When there is an answer.
    fn wake(&self) -> u64 {
        self.loading.front().map_or(u64::MAX, |(at, _)| *at)
    }

    fn answer(&mut self, now: u64) -> Option<Answer> {
        let (_, ask) = if self.wake() <= now { self.loading.pop_front()? } else { return None };
        let result = if ask.blob == blob() && ask.offset_bytes.is_multiple_of(BUFFER_BYTES as u64) {
            let bytes = LoadedBytes::Shared(piece(ask.offset_bytes / BUFFER_BYTES as u64).clone());
            Ok(Loaded { bytes, len: ask.len, lease: Box::new(()) })
        } else {
            Err(Refusal::NotHere)
        };
        Some(Answer { id: ask.id, result })
    }
}

/// A host with an endpoint.
struct Station {
    host: Host,
    endpoint: Endpoint,
    shelf: Shelf,
    /// When it wants a turn without anything arriving.
    wake: u64,
    /// The device has no room before.
    room: u64,
}

/// A network with stations.
pub struct World {
    /// The network.
    pub network: Network,
    seed: u64,
    datagram_max_bytes: usize,
    stations: Vec<Station>,
    /// Which station a host is, where it is one.
    by_host: Vec<Option<usize>>,
    fetches: Vec<Fetch>,
    renos: Vec<Reno>,
    pool: Pool,
    now: u64,
    error: Option<String>,
    wrong: Option<String>,
    /// Unfinished fetches.
    open: usize,
}

impl World {
    /// An empty one.
    ///
    /// # Panics
    /// Where there is no memory for its buffers.
    pub fn new(seed: u64, datagram_max_bytes: usize) -> Self {
        Self {
            network: Network::new(seed, datagram_max_bytes),
            seed,
            datagram_max_bytes,
            stations: Vec::new(),
            by_host: Vec::new(),
            fetches: Vec::new(),
            renos: Vec::new(),
            pool: Pool::new(512 << 20).expect("address space"),
            now: 0,
            error: None,
            wrong: None,
            open: 0,
        }
    }

    fn address(&self) -> SocketAddr {
        let index = self.by_host.len() as u32;
        SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(0x0a00_0001 + index), 7_440))
    }

    /// A host that sends through `up` and receives through `down`.
    pub fn add_station(
        &mut self,
        up: LinkId,
        down: LinkId,
        transfer: &Transfer,
        line_rate: Option<u64>,
    ) -> usize {
        let host = self.network.add_host(self.address(), up, down);
        let options = EndpointOptions {
            line_shares: 1,
            stall_timeout: transfer.stall_timeout,
            line_rate_bytes_per_s: line_rate,
            lossless: false,
            datagram_max_bytes: transfer.datagram_max_bytes,
            window_max_bytes: transfer.window_max_bytes,
            queue_target: transfer.queue_target,
            seed: self.seed.wrapping_mul(31).wrapping_add(host.index() as u64),
        };
        self.by_host.push(Some(self.stations.len()));
        let shelf = Shelf {
            buffers: transfer.buffers,
            load_ns: transfer.load.as_nanos() as u64,
            waiting: VecDeque::new(),
            loading: VecDeque::new(),
            held: Vec::new(),
        };
        self.stations.push(Station { host, endpoint: Endpoint::new(options), shelf, wake: 0, room: 0 });
        self.stations.len() - 1
    }

    /// A path between two stations, which both know by the same number.
    ///
    /// # Panics
    /// If they have as many paths as they may have.
    pub fn connect(&mut self, a: usize, b: usize, transfer: &Transfer) -> PathId {
        let id = self.fetches.len() as PathId + 1_000 * a as PathId;
        let number = |station: usize| (id as u32) << 8 | station as u32 & 0xff;
        let name = PathName { fabric: "sim", dialler: number(a), accepter: number(b) };
        let secret = PathSecret([id as u8; 32]);
        for (this, that, role) in [(a, b, Role::Dialler), (b, a, Role::Accepter)] {
            let path = NewPath {
                id,
                peer: NodeId::from_bytes([that as u8 + 1; 32]),
                remote: self.network.address(self.stations[that].host),
                keys: PathKeys::derive(&secret, &name, role, transfer.protection),
                datagram_max_bytes: transfer.datagram_max_bytes,
            };
            let added = self.stations[this].endpoint.add_path(Timestamp(self.now), path);
            added.expect("few paths");
        }
        id
    }

    /// Station `a` fetches `bytes` from `b`, to which it is connected by the path that was added last.
    pub fn fetch(&mut self, a: usize, b: usize, bytes: u64, reads: usize) {
        let path = self.fetches.len() as PathId + 1_000 * a as PathId;
        debug_assert!(self.stations[b].endpoint.path_info(path).is_some());
        self.open += 1;
        self.fetches.push(Fetch {
            station: a,
            path,
            bytes,
            reads: reads.min(READS_PER_PATH),
            next: 0,
            outstanding: 0,
            done: 0,
            started: None,
            ended: None,
        });
    }

    /// A flow of TCP's kind from one new host to another. Returns its number.
    pub fn add_reno(&mut self, from: (LinkId, LinkId), to: (LinkId, LinkId), flow: RenoFlow) -> usize {
        let sender = self.network.add_host(self.address(), from.0, from.1);
        self.by_host.push(None);
        let receiver = self.network.add_host(self.address(), to.0, to.1);
        self.by_host.push(None);
        self.renos.push(Reno::new(sender, receiver, flow));
        self.renos.len() - 1
    }

    /// What a flow of TCP's kind has moved.
    pub fn reno(&self, number: usize) -> RenoOutcome {
        self.renos[number].outcome(self.now)
    }

    /// The time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// A station's endpoint.
    pub fn endpoint(&self, station: usize) -> &Endpoint {
        &self.stations[station].endpoint
    }

    /// All links.
    pub fn links(&self) -> Vec<LinkId> {
        self.network.links().collect()
    }

    /// The host of a station.
    pub fn host(&self, station: usize) -> Host {
        self.stations[station].host
    }

    /// Bytes that each fetch has brought, in the order in which they were begun.
    pub fn fetched(&self) -> Vec<u64> {
        self.fetches.iter().map(|fetch| fetch.done).collect()
    }

    /// Runs until all is fetched, something has failed, or it is `limit` since the beginning.
    pub fn run(&mut self, limit: Duration) {
        let limit = limit.as_nanos() as u64;
        for station in 0..self.stations.len() {
            self.turn(station);
        }
        while self.open > 0 && self.error.is_none() && self.wrong.is_none() {
            if !self.step(limit) {
                self.error = Some(format!("not done after {limit} ns"));
            }
        }
    }

    /// Runs until `until` nanoseconds since the beginning, whatever is done.
    pub fn run_until(&mut self, until: u64) {
        for station in 0..self.stations.len() {
            self.turn(station);
        }
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Goes on to what happens next. False where nothing does before `limit`.
    fn step(&mut self, limit: u64) -> bool {
        let wakes = self.stations.iter().map(|station| station.wake);
        let wake = wakes.chain(self.renos.iter().map(Reno::wake)).min().unwrap_or(u64::MAX).max(self.now);
        let event = self.network.next_event().map_or(u64::MAX, |at| at.0);
        let at = wake.min(event);
        if at > limit {
            return false;
        }
        if event <= wake {
            if let Some(delivery) = self.network.poll(Timestamp(event)) {
                self.now = delivery.at.0;
                let index = delivery.to.index();
                match self.by_host[index] {
                    Some(station) => {
                        let arrival = delivery.arrival;
                        self.stations[station].endpoint.handle_datagram(Timestamp(self.now), arrival);
                        self.turn(station);
                    }
                    None => {
                        let (now, to) = (self.now, delivery.to);
                        let bytes = delivery.arrival.datagram.to_vec();
                        for reno in &mut self.renos {
                            reno.arrived(now, to, &bytes, &mut self.network);
                        }
                    }
                }
            }
            self.now = self.now.max(event);
            return true;
        }
        self.now = wake;
        for station in 0..self.stations.len() {
            if self.stations[station].wake <= wake {
                self.turn(station);
            }
        }
        for reno in &mut self.renos {
            reno.turn(wake, &mut self.network);
        }
        true
    }

    /// Lets a station do all it can do now.
    fn turn(&mut self, index: usize) {
        let now = Timestamp(self.now);
        let station = &mut self.stations[index];
        if station.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            station.endpoint.handle_timeout(now);
        }
        loop {
            let station = &mut self.stations[index];
            if let Some(event) = station.endpoint.poll_event() {
                self.event(index, event);
            } else if let Some(answer) = station.shelf.answer(now.0) {
                station.endpoint.answer(now, answer);
            } else {
                break;
            }
        }
        let station = &mut self.stations[index];
        station.wake = u64::MAX;
        loop {
            station.room = self.network.room_at(station.host).0;
            if station.room > now.0 {
                station.wake = station.room;
                break;
            }
            let endpoint = &mut station.endpoint;
            if !self.network.send(now, station.host, |space| endpoint.poll_transmit(now, space)) {
                break;
            }
        }
        let timeout = station.endpoint.poll_timeout().map_or(u64::MAX, |at| at.0.max(now.0 + 1));
        station.wake = station.wake.min(timeout).min(station.shelf.wake());
    }

    fn event(&mut self, index: usize, event: Event) {
        let now = Timestamp(self.now);
        match event {
            Event::Ask(ask) => {
                let shelf = &mut self.stations[index].shelf;
                shelf.waiting.push_back(ask);
                shelf.hand_on(now.0);
            }
            Event::Release { id, .. } => self.stations[index].shelf.release(now.0, id),
            Event::Proven { path } => {
                let Some(number) = self.fetch_of(index, path) else { return };
                self.fetches[number].started = Some(now.0);
                self.post(number);
            }
            Event::Completion(Completion::Read { path, tag, buffer, result }) => {
                let Some(number) = self.fetch_of(index, path) else { return };
                let fetch = &mut self.fetches[number];
                fetch.outstanding -= 1;
                match result {
                    Ok(len) => {
                        let expected =
                            (fetch.bytes - tag * BUFFER_BYTES as u64).min(BUFFER_BYTES as u64) as usize;
                        if buffer.as_ref() != &piece(tag)[..expected] || len as usize != expected {
                            self.wrong = Some(format!("piece {tag} of fetch {number} is not what was sent"));
                            return;
                        }
                        fetch.done += u64::from(len);
                        if fetch.done == fetch.bytes {
                            fetch.ended = Some(now.0);
                            self.open -= 1;
                        }
                    }
                    Err(error) => self.error = Some(format!("read {tag} of fetch {number}: {error}")),
                }
                drop(buffer);
                self.post(number);
                self.check_bounds(index, path);
            }
            Event::Completion(Completion::PathClosed { path, error, .. }) => {
                self.error = Some(format!("path {path}: {error}"));
            }
            Event::Completion(Completion::PathProven { .. }) => {}
        }
    }

    fn fetch_of(&self, station: usize, path: PathId) -> Option<usize> {
        self.fetches.iter().position(|fetch| fetch.station == station && fetch.path == path)
    }

    fn post(&mut self, number: usize) {
        let fetch = &mut self.fetches[number];
        while fetch.outstanding < fetch.reads && fetch.next * (BUFFER_BYTES as u64) < fetch.bytes {
            let offset_bytes = fetch.next * BUFFER_BYTES as u64;
            let len = (fetch.bytes - offset_bytes).min(BUFFER_BYTES as u64) as u32;
            let Some(buffer) = self.pool.take() else { return };
            let read = Read { tag: fetch.next, blob: blob(), what: What::Blob, offset_bytes, len, buffer };
            let endpoint = &mut self.stations[fetch.station].endpoint;
            if endpoint.post_read(Timestamp(self.now), fetch.path, read).is_err() {
                return;
            }
            fetch.next += 1;
            fetch.outstanding += 1;
        }
    }

    fn check_bounds(&mut self, station: usize, path: PathId) {
        let Some(info) = self.stations[station].endpoint.path_info(path) else { return };
        let largest = self.datagram_max_bytes as u64;
        if info.window_bytes > WINDOW_MAX_BYTES || info.inflight_bytes > WINDOW_MAX_BYTES + largest {
            self.wrong = Some(format!("a window of {} with {}", info.window_bytes, info.inflight_bytes));
        }
    }

    /// What the fetches of a station have come to; `link` is the one towards it.
    pub fn outcome(&self, station: usize, link: LinkId) -> Outcome {
        let fetches = || self.fetches.iter().filter(|fetch| fetch.station == station);
        let started = fetches().filter_map(|fetch| fetch.started).min().unwrap_or(0);
        let ended = fetches().map(|fetch| fetch.ended.unwrap_or(self.now)).max().unwrap_or(self.now);
        let rates = fetches().map(|fetch| {
            let elapsed = fetch.ended.unwrap_or(self.now).saturating_sub(started).max(1);
            fetch.done as f64 * 1e9 / elapsed as f64
        });
        let counters = self.network.counters(link);
        let others = (0..self.stations.len()).filter(|other| *other != station);
        Outcome {
            complete: self.open == 0 && self.wrong.is_none() && self.error.is_none(),
            error: self.error.clone(),
            wrong: self.wrong.clone(),
            bytes: fetches().map(|fetch| fetch.done).sum(),
            elapsed: Duration::from_nanos(ended.saturating_sub(started)),
            rates: rates.collect(),
            receiver: self.stations[station].endpoint.counters(),
            payload_bytes_sent: others
                .map(|other| self.endpoint(other).counters().fabric.payload_bytes_out)
                .sum(),
            queue_max_bytes: counters.queue_max_bytes,
            overflowed: counters.overflowed,
            lost: counters.lost,
        }
    }
}
