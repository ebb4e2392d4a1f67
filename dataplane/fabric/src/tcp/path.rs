//! One path: a socket, what arrives on it, what is sent on it, and when its peer has last moved.

use std::io::{self, Read as _};
use std::net::TcpStream;
use std::time::Instant;

use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use velo_object::NodeId;

use super::incoming::{Event, Incoming};
use super::outgoing::{Next, Outgoing};
use super::sealed::{CARRY_BYTES, Chunks, Tls};
use super::{READS_PER_PATH, TcpOptions, TlsError, TlsKeys};
use crate::{Completion, FabricCounters, PathError, PathId, ProtocolError, Serve, ServedContent};

/// What is read at once where records or frames are expected.
const SCRATCH_BYTES: usize = 256 << 10;
/// Where nothing was asked only frames are expected.
const FRAMES_BYTES: usize = 4 << 10;

/// What the paths of a fabric share, for one turn.
pub(super) struct Turn<'a> {
    pub now: Instant,
    pub options: &'a TcpOptions,
    pub serve: &'a dyn Serve,
    pub scratch: &'a mut [u8],
    pub chunks: &'a mut Chunks,
    pub counters: &'a mut FabricCounters,
    pub completions: &'a mut Vec<Completion>,
}

/// Bytes that [`Turn::scratch`] has.
pub(super) const TURN_SCRATCH_BYTES: usize = CARRY_BYTES + SCRATCH_BYTES;

pub(super) struct Path {
    pub id: PathId,
    pub peer: NodeId,
    pub stream: TcpStream,
    pub incoming: Incoming,
    pub outgoing: Outgoing,
    pub tls: Option<Tls>,
    /// Whether the kernel may have bytes for us, or room for ours.
    pub readable: bool,
    pub writable: bool,
    /// Whether the kernel has said that the peer sends no more. It says so once, perhaps together with its last bytes.
    pub hung_up: bool,
    /// Whether it stands in the fabric's queue.
    pub queued: bool,
    /// Whether it stands in the queue of those that wait for memory.
    pub starving: bool,
    /// Set to close it in its next turn.
    pub closing: Option<PathError>,
    /// When bytes arrived last, or the first outstanding read was posted; `None` where none is outstanding.
    waiting_since: Option<Instant>,
    /// When the kernel last took bytes, or first had no room; `None` where it has room.
    blocked_since: Option<Instant>,
}

impl Path {
    pub(super) fn new(
        id: PathId,
        peer: NodeId,
        stream: TcpStream,
        keys: Option<&TlsKeys>,
    ) -> Result<Self, TlsError> {
        let tls = keys.map(Tls::new).transpose()?;
        Ok(Self {
            id,
            peer,
            stream,
            incoming: Incoming::new(READS_PER_PATH),
            outgoing: Outgoing::new(),
            tls,
            readable: true,
            writable: true,
            hung_up: false,
            queued: false,
            starving: false,
            closing: None,
            waiting_since: None,
            blocked_since: None,
        })
    }

    /// Receives and sends what is due, within the turn's bounds. Returns how many bytes moved.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>) -> Result<usize, PathError> {
        if let Some(error) = self.closing.take() {
            return Err(error);
        }
        let received = if !self.readable {
            0
        } else if self.tls.is_some() {
            self.receive_sealed(turn)?
        } else {
            self.receive_plain(turn)?
        };
        if self.incoming.outstanding() == 0 {
            self.waiting_since = None;
        } else if received > 0 || self.waiting_since.is_none() {
            self.waiting_since = Some(turn.now);
        }

        let sent = if !self.writable {
            0
        } else if self.tls.is_some() {
            self.send_sealed(turn)?
        } else {
            self.send_plain(turn)?
        };
        if self.writable {
            self.blocked_since = None;
        } else if sent > 0 || self.blocked_since.is_none() {
            self.blocked_since = Some(turn.now);
        }
        Ok(received + sent)
    }

    /// Whether it has more to do without waiting for the kernel or for memory.
    pub(super) fn is_due(&self, starved: bool) -> bool {
        self.closing.is_some() || self.readable || (self.writable && !starved && self.has_to_send())
    }

    pub(super) fn has_to_send(&self) -> bool {
        match &self.tls {
            Some(tls) if tls.sealed.is_some() => true,
            Some(tls) if tls.client && !self.incoming.greeted() => false,
            _ => !self.outgoing.is_empty(),
        }
    }

    /// When it is to be closed if its peer does nothing until then.
    pub(super) fn deadline(&self, options: &TcpOptions) -> Option<Instant> {
        let stall = self.waiting_since.map(|since| since + options.stall_timeout);
        let send = self.blocked_since.map(|since| since + options.send_timeout);
        stall.into_iter().chain(send).min()
    }

    /// Why it is to be closed now, if it is.
    pub(super) fn expired(&self, now: Instant, options: &TcpOptions) -> Option<PathError> {
        let over = |since: Option<Instant>, timeout| since.is_some_and(|since| now >= since + timeout);
        let ms = |timeout: std::time::Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        if self.readable {
            // Bytes may have come that we have not looked at.
            return None;
        }
        if over(self.waiting_since, options.stall_timeout) {
            return Some(PathError::Stalled { ms: ms(options.stall_timeout) });
        }
        if over(self.blocked_since, options.send_timeout) {
            return Some(PathError::NotReading { ms: ms(options.send_timeout) });
        }
        None
    }

    /// Lets the peer know that it ends here, where that takes no waiting, and gives shared memory back.
    pub(super) fn finish(&mut self, chunks: &mut Chunks) {
        if let Some(tls) = &mut self.tls {
            tls.finish(&self.stream, chunks);
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Reads once into `space`. `None` where the kernel has nothing.
    pub(super) fn receive(
        &mut self,
        space: Space<'_>,
        counters: &mut FabricCounters,
    ) -> Result<Option<usize>, PathError> {
        let space = match space {
            Space::Scratch(space) => space,
            Space::Payload => match self.incoming.payload() {
                Some((space, _)) => space,
                None => return Ok(None),
            },
        };
        loop {
            match (&self.stream).read(space) {
                Ok(0) => return Err(PathError::Peer),
                Ok(count) => {
                    // On an edge-triggered stream a short read says that the kernel has no more.
                    self.readable = count == space.len() || self.hung_up;
                    counters.bytes_in += count as u64;
                    return Ok(Some(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PathError::Io(error)),
            }
        }
    }

    fn receive_plain(&mut self, turn: &mut Turn<'_>) -> Result<usize, PathError> {
        let mut received = 0;
        while self.readable && received < turn.options.turn_bytes {
            let into_buffer = match self.incoming.payload() {
                Some((space, _)) if !space.is_empty() => true,
                Some((_, missing)) => {
                    let space = missing.min(turn.scratch.len());
                    let Some(count) =
                        self.receive(Space::Scratch(&mut turn.scratch[..space]), turn.counters)?
                    else {
                        break;
                    };
                    received += count;
                    self.incoming.filled(count);
                    continue;
                }
                None => false,
            };
            if into_buffer {
                let Some(count) = self.receive(Space::Payload, turn.counters)? else { break };
                received += count;
                if let Some(event) = self.incoming.filled(count) {
                    on_event(event, self.id, &mut self.outgoing, turn.counters, turn.completions)?;
                }
                continue;
            }
            // With payload expected, no more than one frame at a time, so that payload goes straight to its buffer.
            let space = match self.incoming.outstanding() {
                0 => FRAMES_BYTES,
                _ => self.incoming.missing_of_head(),
            };
            let Some(count) = self.receive(Space::Scratch(&mut turn.scratch[..space]), turn.counters)? else {
                break;
            };
            received += count;
            self.feed(0, count, turn)?;
        }
        Ok(received)
    }

    pub(super) fn feed(&mut self, from: usize, to: usize, turn: &mut Turn<'_>) -> Result<(), PathError> {
        let Self { incoming, outgoing, id, .. } = self;
        let (counters, completions) = (&mut *turn.counters, &mut *turn.completions);
        incoming
            .feed(&turn.scratch[from..to], |event| on_event(event, *id, outgoing, counters, completions))?;
        Ok(())
    }

    fn send_plain(&mut self, turn: &mut Turn<'_>) -> Result<usize, PathError> {
        let mut total = 0;
        while total < turn.options.turn_bytes {
            let budget = turn.options.turn_bytes - total;
            let next = self.outgoing.next(budget, self.peer, turn.serve, turn.counters);
            let (outcome, payload) = match next {
                Next::Nothing => break,
                Next::Frames(bytes, more) => {
                    let more = if more { SendFlags::MORE } else { SendFlags::empty() };
                    (send(&self.stream, bytes, more | SendFlags::NOSIGNAL), false)
                }
                Next::Payload(served, range) => match &served.content {
                    ServedContent::Bytes(bytes) => {
                        let bytes = &bytes[range.start as usize..range.end as usize];
                        (send(&self.stream, bytes, SendFlags::NOSIGNAL), true)
                    }
                    ServedContent::File { file, offset_bytes } => {
                        let mut offset = offset_bytes + u64::from(range.start);
                        let count = (range.end - range.start) as usize;
                        match sendfile(&self.stream, file, Some(&mut offset), count) {
                            Ok(0) => return Err(PathError::Source(io::ErrorKind::UnexpectedEof.into())),
                            outcome => (outcome, true),
                        }
                    }
                },
            };
            match outcome {
                Ok(count) => {
                    total += count;
                    turn.counters.bytes_out += count as u64;
                    if payload {
                        turn.counters.payload_bytes_out += count as u64;
                        turn.serve.sent(self.peer, count as u64);
                    }
                    turn.counters.reads_served += u64::from(self.outgoing.sent(count));
                }
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    break;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(PathError::Io(error.into())),
            }
        }
        Ok(total)
    }
}

/// Where received bytes go.
pub(super) enum Space<'a> {
    Scratch(&'a mut [u8]),
    /// The buffer of the read that is being answered.
    Payload,
}

fn on_event(
    event: Event,
    path: PathId,
    outgoing: &mut Outgoing,
    counters: &mut FabricCounters,
    completions: &mut Vec<Completion>,
) -> Result<(), ProtocolError> {
    match event {
        Event::Request(request) => outgoing.request(request)?,
        Event::Cancel { tag } => outgoing.cancelled(tag),
        Event::Done { tag, buffer, result } => {
            match result {
                Ok(count) => {
                    counters.reads_done += 1;
                    counters.payload_bytes_in += u64::from(count);
                }
                Err(_) => counters.reads_failed += 1,
            }
            completions.push(Completion::Read { path, tag, buffer, result });
        }
    }
    Ok(())
}
