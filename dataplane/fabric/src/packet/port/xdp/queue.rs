//! One queue of an interface: a socket, its rings, and its memory. Which chunk belongs to whom is decided here and nowhere else: a chunk
//! to receive into is the kernel's from the moment it is pushed into the ring for filling until it comes back as received; a group to send
//! from is the kernel's from the ring for sending until all its pieces come back as completed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::XdpError;
use super::ring::{CONTINUED, Descriptor};
use super::socket::{Rings, Socket};
use super::umem::{CHUNK_BYTES, Umem};
use crate::packet::port::PortCounters;
use crate::packet::port::ether::{FrameArrival, FrameDeparture, Verdict};

/// Frames in one burst.
const BURST: u32 = 64;
/// Calls in a row to have one burst sent: in copy mode the kernel takes at least 32 pieces in each.
const CALLS_PER_BURST: u32 = 8;

/// How large a queue is.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueSize {
    pub(super) receive_chunks: u32,
    pub(super) send_frames: u32,
    pub(super) frame_max_bytes: usize,
    /// Whether a frame may be in several chunks.
    pub(super) fragments: bool,
}

/// The queue.
pub(super) struct Queue {
    rings: Rings,
    socket: Socket,
    umem: Umem,
    /// Groups that nothing is on its way from.
    free: Vec<u32>,
    /// For each group how many pieces are on their way.
    on_the_way: Box<[u32]>,
    frame_max_bytes: usize,
    /// Frames in several chunks are put together here.
    joined: Box<[u8]>,
    pub(super) counters: PortCounters,
}

impl Queue {
    /// A queue that is not bound yet.
    pub(super) fn new(size: QueueSize) -> Result<Self, XdpError> {
        let QueueSize { receive_chunks, send_frames, frame_max_bytes, fragments } = size;
        let socket = Socket::new().map_err(|error| XdpError::of_call("socket", error))?;
        let chunks = receive_chunks as usize + send_frames as usize * frame_max_bytes.div_ceil(CHUNK_BYTES);
        let umem = Umem::new(receive_chunks, send_frames, frame_max_bytes)
            .map_err(|error| XdpError::Memory { bytes: chunks * CHUNK_BYTES, error })?;
        umem.register(socket.as_fd()).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOBUFS) => XdpError::LockedMemory { bytes: umem.bytes() },
            _ => XdpError::Memory { bytes: umem.bytes(), error },
        })?;
        let descriptors = (send_frames * umem.chunks_per_group()).next_power_of_two();
        let mut rings = socket
            .rings(receive_chunks, descriptors)
            .map_err(|error| XdpError::of_call("setting up its rings", error))?;
        for chunk in umem.receive_chunks() {
            rings.fill.push(chunk);
        }
        rings.fill.submit();
        Ok(Self {
            rings,
            socket,
            umem,
            free: (0..send_frames).rev().collect(),
            on_the_way: vec![0; send_frames as usize].into(),
            frame_max_bytes,
            joined: if fragments { vec![0; frame_max_bytes].into() } else { Box::default() },
            counters: PortCounters::default(),
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    pub(super) fn is_huge(&self) -> bool {
        self.umem.is_huge()
    }

    /// Whether something has arrived.
    pub(super) fn has_arrivals(&mut self) -> bool {
        self.rings.receive.look() > 0
    }

    pub(super) fn receive(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize> {
        let available = self.rings.receive.available();
        if available == 0 {
            return Ok(0);
        }
        let (mut taken, mut frames) = (0, 0);
        while taken < available.min(BURST) {
            let first = self.rings.receive.peek(taken);
            let (len, pieces) = if first.options & CONTINUED == 0 {
                (Some(first.len as usize), 1)
            } else {
                match self.join(taken, available) {
                    Some(joined) => joined,
                    // The rest is still to come.
                    None => break,
                }
            };
            let frame = match len {
                Some(len) if pieces == 1 => self.umem.bytes_mut(first.address, len),
                Some(len) => self.joined.get_mut(..len),
                None => None,
            };
            match frame {
                Some(frame) => {
                    self.counters.rx_datagrams += 1;
                    self.counters.rx_bytes += frame.len() as u64;
                    each(FrameArrival { frame, checksum: Verdict::Unknown });
                    frames += 1;
                }
                None => self.counters.rx_dropped += 1,
            }
            for piece in taken..taken + pieces {
                let address = self.rings.receive.peek(piece).address;
                if let Some(chunk) = self.umem.receive_chunk_of(address) {
                    // There is room for all chunks that there are (see `Socket::rings`).
                    self.rings.fill.push(chunk);
                }
            }
            taken += pieces;
        }
        self.rings.receive.release(taken);
        if self.rings.fill.submit() && self.rings.fill.needs_wakeup() {
            self.counters.calls += 1;
            self.socket.wake_receiver()?;
        }
        Ok(frames)
    }

    /// Puts the frame together that begins `first` entries ahead. Gives its length, if it is not longer than it may be, and how many
    /// pieces it has; `None` where not all of it is there.
    fn join(&mut self, first: u32, available: u32) -> Option<(Option<usize>, u32)> {
        let mut len = Some(0);
        for ahead in first..available {
            let piece = self.rings.receive.peek(ahead);
            len = len.and_then(|start| {
                let from = self.umem.bytes_mut(piece.address, piece.len as usize)?;
                self.joined.get_mut(start..start + from.len())?.copy_from_slice(from);
                Some(start + from.len())
            });
            if piece.options & CONTINUED == 0 {
                return Some((len, ahead - first + 1));
            }
        }
        None
    }

    pub(super) fn send(
        &mut self,
        fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>,
    ) -> io::Result<usize> {
        self.reap();
        let mut frames = 0;
        while frames < BURST {
            let Some(group) = self.free.last().copied() else {
                self.counters.tx_full += 1;
                break;
            };
            if !self.rings.send.has_room(self.umem.chunks_per_group()) {
                self.counters.tx_full += 1;
                break;
            }
            let start = self.umem.group_address(group);
            let Some(space) = self.umem.bytes_mut(start, self.frame_max_bytes) else { break };
            let Some(departure) = fill(space) else { break };
            if departure.len == 0 || departure.len > self.frame_max_bytes {
                self.counters.tx_dropped += 1;
                continue;
            }
            self.free.pop();
            self.on_the_way[group as usize] = self.push(start, departure.len);
            self.counters.tx_datagrams += 1;
            self.counters.tx_bytes += departure.len as u64;
            frames += 1;
        }
        self.rings.send.submit();
        self.flush()?;
        Ok(frames as usize)
    }

    /// Puts a frame into the ring for sending, in as many pieces as it has chunks.
    fn push(&mut self, start: u64, len: usize) -> u32 {
        let pieces = len.div_ceil(CHUNK_BYTES);
        for piece in 0..pieces {
            let done = piece * CHUNK_BYTES;
            self.rings.send.push(Descriptor {
                address: start + done as u64,
                len: (len - done).min(CHUNK_BYTES) as u32,
                options: if piece + 1 < pieces { CONTINUED } else { 0 },
            });
        }
        pieces as u32
    }

    /// Calls the kernel for what waits to be sent, where it wants to be called.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let mut waiting = self.rings.send.waiting();
        for _ in 0..CALLS_PER_BURST {
            if waiting == 0 || !self.rings.send.needs_wakeup() {
                break;
            }
            self.counters.calls += 1;
            self.socket.wake_sender()?;
            let before = waiting;
            waiting = self.rings.send.waiting();
            if waiting == before {
                break;
            }
        }
        Ok(())
    }

    /// Takes back what has been sent.
    fn reap(&mut self) {
        let done = self.rings.completion.look();
        for i in 0..done {
            let address = self.rings.completion.peek(i);
            if let Some(group) = self.umem.group_of(address)
                && let Some(pieces) = self.on_the_way.get_mut(group as usize)
                && *pieces > 0
            {
                *pieces -= 1;
                if *pieces == 0 {
                    self.free.push(group);
                }
            }
        }
        if done > 0 {
            self.rings.completion.release(done);
        }
    }

    /// Whether there is room to send, now.
    pub(super) fn has_room(&mut self) -> bool {
        self.reap();
        !self.free.is_empty()
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
