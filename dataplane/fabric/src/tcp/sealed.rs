//! A path under TLS: records opened as they come and sealed as the kernel takes them.

use std::io::Write as _;
use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::outgoing::{Next, copy_served};
use super::path::{Path, Space, Turn};
use super::record::{
    self, CONTENT_BYTES, HEADER_BYTES, MAX_BODY_BYTES, OVERHEAD_BYTES, Opened, Opener, Sealer,
};
use super::{TlsError, TlsKeys};
use crate::PathError;

/// Room before what is received for the beginning of a record that came earlier.
pub(super) const CARRY_BYTES: usize = HEADER_BYTES + MAX_BODY_BYTES;
/// Records sealed at once.
const RECORDS: usize = 16;
const CHUNK_BYTES: usize = (RECORDS + 1) * (CONTENT_BYTES + OVERHEAD_BYTES);

/// The memory for sealed records that the kernel has not taken: so many chunks, made when first needed.
pub(super) struct Chunks {
    free: Vec<Box<[u8]>>,
    left: usize,
    /// Whether a path has gone without since the last return.
    pub starved: bool,
}

impl Chunks {
    pub(super) fn new(bytes: usize) -> Self {
        Self { free: Vec::new(), left: (bytes / CHUNK_BYTES).max(1), starved: false }
    }

    fn take(&mut self) -> Option<Box<[u8]>> {
        if let Some(chunk) = self.free.pop() {
            return Some(chunk);
        }
        if self.left == 0 {
            self.starved = true;
            return None;
        }
        self.left -= 1;
        Some(vec![0; CHUNK_BYTES].into_boxed_slice())
    }

    /// Whether a path that needs one gets one.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty() || self.left > 0
    }

    fn give_back(&mut self, chunk: Box<[u8]>) {
        self.free.push(chunk);
    }
}

pub(super) struct Tls {
    pub client: bool,
    sealer: Sealer,
    opener: Opener,
    /// The beginning of a record whose end has not come.
    carry: Vec<u8>,
    /// Sealed records that the kernel has not taken: from where to where.
    pub sealed: Option<(Box<[u8]>, usize, usize)>,
}

impl Tls {
    pub(super) fn new(keys: &TlsKeys) -> Result<Self, TlsError> {
        Ok(Self {
            client: keys.client,
            sealer: Sealer::new(&keys.send)?,
            opener: Opener::new(&keys.receive)?,
            carry: Vec::new(),
            sealed: None,
        })
    }

    /// Says that this side sends no more, where that takes no waiting, and gives the chunk back.
    pub(super) fn finish(&mut self, mut stream: &TcpStream, chunks: &mut Chunks) {
        match self.sealed.take() {
            // Records are missing, or one is incomplete: nothing can be said.
            Some((chunk, _, _)) => chunks.give_back(chunk),
            None => {
                let mut record = [0; OVERHEAD_BYTES + 2];
                let len = self.sealer.seal_alert(&mut record, record::CLOSE_NOTIFY);
                let _ = stream.write(&record[..len]);
            }
        }
    }
}

impl Path {
    pub(super) fn receive_sealed(&mut self, turn: &mut Turn<'_>) -> Result<usize, PathError> {
        let mut received = 0;
        while self.readable && received < turn.options.turn_bytes {
            let space = &mut turn.scratch[CARRY_BYTES..];
            let Some(count) = self.receive(Space::Scratch(space), turn.counters)? else { break };
            received += count;
            let Some(tls) = &mut self.tls else { break };
            let mut at = CARRY_BYTES - tls.carry.len();
            turn.scratch[at..CARRY_BYTES].copy_from_slice(&tls.carry);
            tls.carry.clear();
            let end = CARRY_BYTES + count;
            while let Some(header) = turn.scratch[at..end].first_chunk::<HEADER_BYTES>() {
                let header = *header;
                let body = record::body_bytes(&header)?;
                let begin = at + HEADER_BYTES;
                if end - begin < body {
                    break;
                }
                let Some(tls) = &mut self.tls else { break };
                match tls.opener.open(&header, &mut turn.scratch[begin..begin + body], 0)? {
                    Opened::Data(len) => self.feed(begin, begin + len, turn)?,
                    Opened::Nothing => {}
                    Opened::Closed => return Err(PathError::Peer),
                }
                at = begin + body;
            }
            if let Some(tls) = &mut self.tls {
                tls.carry.extend_from_slice(&turn.scratch[at..end]);
            }
        }
        Ok(received)
    }

    pub(super) fn send_sealed(&mut self, turn: &mut Turn<'_>) -> Result<usize, PathError> {
        let mut total = 0;
        while total < turn.options.turn_bytes && self.has_to_send() {
            let Some(tls) = &mut self.tls else { break };
            let (chunk, begin, end) = match tls.sealed.take() {
                Some(sealed) => sealed,
                None => {
                    let Some(mut chunk) = turn.chunks.take() else { break };
                    let end = match self.seal(&mut chunk, turn) {
                        Ok(end) => end,
                        Err(error) => {
                            // Records are missing from the stream now, so nothing more can be said on it.
                            if let Some(tls) = &mut self.tls {
                                tls.sealed = Some((chunk, 0, 0));
                            }
                            return Err(error);
                        }
                    };
                    (chunk, 0, end)
                }
            };
            let outcome = send(&self.stream, &chunk[begin..end], SendFlags::NOSIGNAL);
            let count = outcome.unwrap_or(0);
            total += count;
            turn.counters.bytes_out += count as u64;
            if begin + count == end {
                turn.chunks.give_back(chunk);
            } else if let Some(tls) = &mut self.tls {
                tls.sealed = Some((chunk, begin + count, end));
            }
            match outcome {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    break;
                }
                Err(error) => return Err(PathError::Io(error.into())),
            }
        }
        Ok(total)
    }

    /// Fills `chunk` with records of what is to be sent. Returns its length.
    fn seal(&mut self, chunk: &mut [u8], turn: &mut Turn<'_>) -> Result<usize, PathError> {
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let mut end = tls.sealer.key_update(chunk);
        for _ in 0..RECORDS {
            let record = &mut chunk[end..end + CONTENT_BYTES + OVERHEAD_BYTES];
            let content = &mut record[HEADER_BYTES..HEADER_BYTES + CONTENT_BYTES];
            let mut filled = 0;
            while filled < content.len() {
                let space = &mut content[filled..];
                let count = match self.outgoing.next(space.len(), self.peer, turn.serve, turn.counters) {
                    Next::Nothing => break,
                    Next::Frames(bytes, _) => {
                        let count = bytes.len().min(space.len());
                        space[..count].copy_from_slice(&bytes[..count]);
                        count
                    }
                    Next::Payload(served, range) => {
                        let count = (range.end - range.start) as usize;
                        copy_served(served, range.start, &mut space[..count]).map_err(PathError::Source)?;
                        turn.counters.payload_bytes_out += count as u64;
                        turn.serve.sent(self.peer, count as u64);
                        count
                    }
                };
                turn.counters.reads_served += u64::from(self.outgoing.sent(count));
                filled += count;
            }
            if filled == 0 {
                break;
            }
            end += tls.sealer.seal(record, filled);
        }
        Ok(end)
    }
}
