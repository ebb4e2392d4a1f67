//! [`Packet`]: the protocol's endpoint driven over a port, with a supply for what peers ask, as a [`Fabric`].

#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::port::{Port, PortCounters};
use super::protocol::{
    AddPathError, Endpoint, EndpointCounters, EndpointOptions, Event, NewPath, PathInfo, Timestamp,
};
use crate::supply::{Answer, Supply};
use crate::{Completion, Fabric, FabricCounters, PathError, PathId, Read, Refusal};

/// Rounds of receiving and sending in one turn.
const ROUNDS_PER_TURN: usize = 4;
/// Bursts received, and bursts sent, in one round.
const BURSTS_PER_ROUND: usize = 4;
/// Rounds that may leave something at the port before deadlines are looked at all the same.
const ROUNDS_UNDRAINED: u32 = 16;

/// So many datagrams that come from no peer within so long are a flood: it must not cost a wake-up for each, so that for as long again
/// the port wakes nobody.
const FLOOD_DATAGRAMS: usize = 8;
const FLOOD_SPAN: Duration = Duration::from_millis(1);
/// How long the thread then sleeps at most.
const FLOOD_SLEEP: Duration = Duration::from_micros(100);

/// Why a path was not added to a [`Packet`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PacketPathError {
    /// The endpoint does not take it.
    #[error(transparent)]
    Refused(#[from] AddPathError),
    /// The port is gone.
    #[error("port {0} has failed and carries no paths any more")]
    PortFailed(&'static str),
}

/// The packet fabric of one worker: an endpoint over a port.
pub struct Packet<P> {
    port: P,
    supply: Box<dyn Supply>,
    endpoint: Endpoint,
    clock: Clock,
    /// Readable when the port or the supply is; `None` where one of them must be polled.
    epoll: Option<OwnedFd>,
    /// What the port said when it failed.
    failed: Option<io::Error>,
    /// Rounds since all that had arrived was taken.
    undrained: u32,
    flood: Flood,
    /// Whether the port may wake the thread.
    listens: bool,
    /// Its paths, to be closed where the port fails.
    paths: Vec<PathId>,
    deadline: Option<Instant>,
}

impl<P: Port> Packet<P> {
    /// A fabric without paths. What `options` says of the port is taken from the port itself, the line rate where they do
    /// not give one.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new(port: P, supply: Box<dyn Supply>, options: EndpointOptions) -> io::Result<Self> {
        let caps = port.caps();
        let options = EndpointOptions {
            lossless: caps.lossless,
            datagram_max_bytes: caps.datagram_max_bytes,
            line_rate_bytes_per_s: options.line_rate_bytes_per_s.or(caps.line_rate_bytes_per_s),
            ..options
        };
        let epoll = match port.descriptor().filter(|_| caps.wakes) {
            None => None,
            Some(of_port) => {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                epoll::add(&epoll, of_port, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
                if let Some(of_supply) = supply.descriptor() {
                    epoll::add(&epoll, of_supply, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
                }
                Some(epoll)
            }
        };
        Ok(Self {
            port,
            supply,
            endpoint: Endpoint::new(options),
            clock: Clock::new(),
            epoll,
            failed: None,
            undrained: 0,
            flood: Flood::new(),
            listens: true,
            paths: Vec::new(),
            deadline: None,
        })
    }

    /// Takes a path in.
    ///
    /// # Errors
    /// [`PacketPathError`].
    pub fn add_path(&mut self, path: NewPath) -> Result<(), PacketPathError> {
        if self.failed.is_some() {
            return Err(PacketPathError::PortFailed(self.port.name()));
        }
        let id = path.id;
        self.endpoint.add_path(self.clock.read(), path)?;
        self.paths.push(id);
        Ok(())
    }

    /// The address that peers send to.
    pub fn local(&self) -> SocketAddr {
        self.port.local()
    }

    /// How many paths it has.
    pub fn paths(&self) -> usize {
        self.paths.len()
    }

    /// The port.
    pub fn port(&self) -> &P {
        &self.port
    }

    /// How a path is doing; `None` where there is none of this number.
    pub fn path_info(&self, path: PathId) -> Option<PathInfo> {
        self.endpoint.path_info(path)
    }

    /// What the port has done so far.
    pub fn port_counters(&self) -> PortCounters {
        self.port.counters()
    }

    /// What the protocol has done so far.
    pub fn endpoint_counters(&self) -> EndpointCounters {
        self.endpoint.counters()
    }

    /// Receives bursts until there is nothing more or the round's share is done. Returns how many datagrams came from peers:
    /// a stranger's are not worth staying awake for.
    fn receive(&mut self) -> io::Result<usize> {
        let before = self.endpoint.counters();
        let (mut taken, mut handed) = (0, 0);
        self.undrained += 1;
        for _ in 0..BURSTS_PER_ROUND {
            let (endpoint, clock) = (&mut self.endpoint, &mut self.clock);
            // Read when the burst is there: a datagram must not seem to have come before it was sent.
            let mut now = None;
            let count = self.port.rx_burst(&mut |arrival| {
                let now = *now.get_or_insert_with(|| clock.read());
                handed += 1;
                endpoint.handle_datagram(now, arrival);
            })?;
            taken += count;
            if count == 0 {
                self.undrained = 0;
                break;
            }
        }
        let after = self.endpoint.counters();
        let refused = (after.unknown - before.unknown) + (after.rejected - before.rejected);
        self.flood.note(self.clock.told, refused as usize + taken - handed);
        Ok((after.datagrams_in - before.datagrams_in) as usize)
    }

    /// Sends bursts until there is nothing more, no room, or the round's share is done.
    fn send(&mut self) -> io::Result<usize> {
        let mut sent = 0;
        for _ in 0..BURSTS_PER_ROUND {
            let now = self.clock.read();
            let endpoint = &mut self.endpoint;
            let count = self.port.tx_burst(&mut |space| endpoint.poll_transmit(now, space))?;
            sent += count;
            if count == 0 {
                break;
            }
        }
        Ok(sent)
    }

    /// Takes the endpoint's events, and answers from the supply. Returns how many.
    fn exchange(&mut self, completions: &mut Vec<Completion>) -> usize {
        let now = self.clock.read();
        let mut count = 0;
        while let Some(event) = self.endpoint.poll_event() {
            count += 1;
            match event {
                Event::Completion(mut completion) => {
                    if let Completion::PathClosed { path, error, .. } = &mut completion {
                        self.paths.retain(|id| id != path);
                        if let Some(failed) = &self.failed {
                            *error = PathError::Port(io::Error::new(failed.kind(), failed.to_string()));
                        }
                    }
                    completions.push(completion);
                }
                Event::Ask(ask) => {
                    if let Err(ask) = self.supply.ask(ask) {
                        self.endpoint.answer(now, Answer { id: ask.id, result: Err(Refusal::Refused) });
                    }
                }
                Event::Release { id, peer, sent_bytes } => {
                    self.supply.release(id);
                    if sent_bytes > 0 {
                        self.supply.sent(peer, sent_bytes);
                    }
                }
                Event::Proven { path } => completions.push(Completion::PathProven { path }),
            }
        }
        let endpoint = &mut self.endpoint;
        count + self.supply.poll(&mut |answer| endpoint.answer(now, answer))
    }

    /// Looks at the deadlines. What is late only because this thread was, and waits at the port, is taken in first.
    fn expire(&mut self) {
        if !self.undrained.is_multiple_of(ROUNDS_UNDRAINED) {
            return;
        }
        let now = self.clock.read();
        if self.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            self.endpoint.handle_timeout(now);
        }
    }

    /// The port is of no further use: neither are the paths.
    fn fail(&mut self, error: io::Error) {
        tracing::error!(port = self.port.name(), at = %self.port.local(), %error, "a port has failed");
        self.endpoint.abandon(self.clock.read());
        if let (Some(epoll), Some(port)) = (&self.epoll, self.port.descriptor()) {
            // What it says would never end.
            let _ = epoll::delete(epoll, port);
        }
        self.listens = true;
        self.failed = Some(error);
    }

    /// One round. Returns how much was done.
    fn round(&mut self, completions: &mut Vec<Completion>) -> usize {
        let mut done = 0;
        if self.failed.is_none() {
            match self.receive() {
                Ok(count) => done += count,
                Err(error) => self.fail(error),
            }
        }
        self.expire();
        done += self.exchange(completions);
        if self.failed.is_none() {
            match self.send() {
                Ok(count) => done += count,
                Err(error) => self.fail(error),
            }
        }
        done
    }

    /// Whether the thread may sleep now.
    fn arm(&mut self, now: Instant) -> bool {
        match self.port.arm().and_then(|armed| self.listen(now).map(|()| armed)) {
            Ok(armed) => armed && self.supply.arm(),
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    /// Lets the port wake the thread, or not while strangers flood it.
    fn listen(&mut self, now: Instant) -> io::Result<()> {
        let listens = !self.flood.lasts(now);
        if listens != self.listens
            && let (Some(epoll), Some(port)) = (&self.epoll, self.port.descriptor())
        {
            let events = if listens { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
            epoll::modify(epoll, port, epoll::EventData::new_u64(0), events)?;
            self.listens = listens;
        }
        Ok(())
    }
}

impl<P: Port> Fabric for Packet<P> {
    fn name(&self) -> &'static str {
        self.port.name()
    }

    fn post_read(&mut self, path: PathId, read: Read) -> Result<(), Read> {
        self.endpoint.post_read(self.clock.read(), path, read)
    }

    fn cancel(&mut self, path: PathId, tag: u64) {
        self.endpoint.cancel(self.clock.read(), path, tag);
    }

    fn poll(&mut self, now: Instant, completions: &mut Vec<Completion>) -> usize {
        self.clock.begin(now);
        let mut done = 0;
        for _ in 0..ROUNDS_PER_TURN {
            let count = self.round(completions);
            done += count;
            if count == 0 {
                break;
            }
        }
        if done == 0 && self.epoll.is_some() && self.failed.is_none() && !self.arm(now) {
            done = 1;
        }
        let deadline = self.endpoint.poll_timeout().map(|at| self.clock.instant(at));
        let wakes = (!self.listens).then(|| now + FLOOD_SLEEP);
        self.deadline = deadline.into_iter().chain(wakes).min();
        done
    }

    fn close(&mut self, path: PathId) {
        self.endpoint.close(self.clock.read(), path);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.epoll.as_ref().map(AsFd::as_fd)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn counters(&self) -> FabricCounters {
        self.endpoint.counters().fabric
    }
}

/// Whether strangers flood the port.
struct Flood {
    /// When counting began, and how many have come since.
    since: Instant,
    count: usize,
    /// When it was last a flood.
    last: Option<Instant>,
}

impl Flood {
    fn new() -> Self {
        Self { since: Instant::now(), count: 0, last: None }
    }

    /// So many have come now.
    fn note(&mut self, now: Instant, count: usize) {
        if count == 0 {
            return;
        }
        if now >= self.since + FLOOD_SPAN {
            (self.since, self.count) = (now, 0);
        }
        self.count += count;
        if self.count >= FLOOD_DATAGRAMS {
            self.last = Some(now);
        }
    }

    fn lasts(&mut self, now: Instant) -> bool {
        self.last = self.last.filter(|&at| now < at + FLOOD_SPAN);
        self.last.is_some()
    }
}

/// The endpoint's time: that of whoever polls, and what has passed since; never goes back.
struct Clock {
    /// Time zero.
    origin: Instant,
    /// What the last poll was told, and when it was told it.
    told: Instant,
    told_at: Instant,
    last: Timestamp,
}

impl Clock {
    fn new() -> Self {
        let now = Instant::now();
        Self { origin: now, told: now, told_at: now, last: Timestamp(0) }
    }

    fn begin(&mut self, now: Instant) {
        self.told = now;
        self.told_at = Instant::now();
    }

    fn read(&mut self) -> Timestamp {
        let since = self.told.saturating_duration_since(self.origin) + self.told_at.elapsed();
        let now = Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        self.last = self.last.max(now);
        self.last
    }

    fn instant(&self, at: Timestamp) -> Instant {
        self.origin + Duration::from_nanos(at.0)
    }
}
