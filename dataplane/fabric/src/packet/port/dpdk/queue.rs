//! One queue of a device as a [`FramePort`]. Frames are moved in bursts: one call of the plugin for each.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::slice;
use std::sync::Arc;

use super::start::OpenedDevice;
use super::table::{
    ARRIVED_BAD, ARRIVED_GOOD, BURST, FILL_CHECKSUM, FILL_IPV4, Frame, LINK_BYTES_SHIFT, NETWORK_BYTES_SHIFT,
    QueueHandle, Table,
};
use crate::packet::port::PortCounters;
use crate::packet::port::ether::{
    ChecksumRequest, FrameArrival, FrameCaps, FrameDeparture, FramePort, Verdict,
};

/// Bytes of frames in one burst, about: what is still in the second cache when it is used again. Drivers without hardware copy it.
const BURST_BYTES: usize = 256 << 10;
/// Frames of a burst, however large they are.
const BURST_MIN: usize = 4;

/// One queue of a device, in both directions. Owned by one worker.
pub struct DpdkPort {
    table: &'static Table,
    queue: *mut QueueHandle,
    /// Empty mbufs, and before them the filled ones that the device has had no room for.
    departing: Batch,
    waiting: usize,
    /// How many frames the next burst asks for.
    expected: usize,
    counters: PortCounters,
    caps: FrameCaps,
    device: Arc<OpenedDevice>,
}

// SAFETY: a queue may be used from any thread, by one at a time: its methods need `&mut self`.
unsafe impl Send for DpdkPort {}

/// Mbufs that are this side's.
struct Batch {
    frames: [Frame; BURST],
    len: usize,
}

/// Gives back what has arrived, also where its reader panics.
struct Arrived<'a> {
    table: &'static Table,
    queue: *mut QueueHandle,
    frames: &'a mut [Frame],
}

impl Drop for Arrived<'_> {
    fn drop(&mut self) {
        // SAFETY: the frames came from this queue, and nobody else has them.
        unsafe { (self.table.free)(self.queue, self.frames.as_mut_ptr(), self.frames.len() as u32) };
    }
}

impl fmt::Debug for DpdkPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DpdkPort").field("device", &self.device).field("counters", &self.counters).finish()
    }
}

impl DpdkPort {
    pub(super) fn new(table: &'static Table, queue: *mut QueueHandle, device: Arc<OpenedDevice>) -> Self {
        let caps = FrameCaps {
            mac: device.mac(),
            frame_max_bytes: device.frame_max_bytes(),
            lossless: device.device().lossless(),
            line_rate_bytes_per_s: device.link().rate_bytes_per_s,
            wakes: false,
            checksums: device.fills_checksums(),
            interface: None,
        };
        let departing = Batch { frames: [Frame::NONE; BURST], len: 0 };
        Self {
            table,
            queue,
            departing,
            waiting: 0,
            expected: BURST,
            counters: PortCounters::default(),
            caps,
            device,
        }
    }

    /// The device that it is a queue of.
    pub fn device(&self) -> &Arc<OpenedDevice> {
        &self.device
    }

    /// Hands the filled mbufs to the device. Those that it has no room for wait.
    fn flush(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let frames = &mut self.departing.frames;
        // SAFETY: the first `waiting` frames are ours.
        let sent =
            unsafe { (self.table.tx_burst)(self.queue, frames.as_mut_ptr(), self.waiting as u32) } as usize;
        self.counters.tx_datagrams += sent as u64;
        self.counters.tx_bytes += frames[..sent].iter().map(|frame| u64::from(frame.len)).sum::<u64>();
        frames.copy_within(sent..self.departing.len, 0);
        self.departing.len -= sent;
        self.waiting -= sent;
    }
}

fn fill_flags(request: Option<ChecksumRequest>) -> u32 {
    request.map_or(0, |request| {
        FILL_CHECKSUM
            | if request.ipv4 { FILL_IPV4 } else { 0 }
            | u32::from(request.link_bytes) << LINK_BYTES_SHIFT
            | u32::from(request.network_bytes) << NETWORK_BYTES_SHIFT
    })
}

impl FramePort for DpdkPort {
    fn name(&self) -> &'static str {
        "dpdk"
    }

    fn caps(&self) -> FrameCaps {
        self.caps
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize> {
        let mut frames = [Frame::NONE; BURST];
        // SAFETY: room for as many frames.
        let count =
            unsafe { (self.table.rx_burst)(self.queue, frames.as_mut_ptr(), self.expected as u32) } as usize;
        if count == 0 {
            return Ok(0);
        }
        let bytes: usize = frames[..count].iter().map(|frame| frame.len as usize).sum();
        self.expected = (BURST_BYTES * count / bytes.max(1)).clamp(BURST_MIN, BURST);
        let arrived = Arrived { table: self.table, queue: self.queue, frames: &mut frames[..count] };
        for frame in &mut *arrived.frames {
            self.counters.rx_datagrams += 1;
            self.counters.rx_bytes += u64::from(frame.len);
            let checksum = match frame.flags {
                ARRIVED_GOOD => Verdict::Good,
                ARRIVED_BAD => Verdict::Bad,
                _ => Verdict::Unknown,
            };
            // SAFETY: an mbuf of ours with `len` initialised bytes, which nobody else has.
            let frame = unsafe { slice::from_raw_parts_mut(frame.data, frame.len as usize) };
            each(FrameArrival { frame, checksum });
        }
        drop(arrived);
        Ok(count)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>) -> io::Result<usize> {
        self.flush();
        if self.waiting > 0 {
            self.counters.tx_full += 1;
            return Ok(0);
        }
        let (mut filled, mut bytes) = (0, 0);
        while filled < BURST_MIN || bytes < BURST_BYTES {
            if self.waiting == self.departing.len {
                if self.waiting == BURST {
                    break;
                }
                let room = &mut self.departing.frames[self.waiting..];
                // SAFETY: room for as many frames.
                let got = unsafe { (self.table.alloc)(self.queue, room.as_mut_ptr(), room.len() as u32) };
                if got == 0 {
                    self.counters.tx_full += 1;
                    break;
                }
                debug_assert!(
                    room[..got as usize].iter().all(|frame| frame.len as usize >= self.caps.frame_max_bytes)
                );
                self.departing.len += got as usize;
            }
            let frame = &mut self.departing.frames[self.waiting];
            // SAFETY: an mbuf of ours with this room, in memory that EAL has mapped and zeroed.
            let space = unsafe { slice::from_raw_parts_mut(frame.data, self.caps.frame_max_bytes) };
            let Some(departure) = fill(space) else { break };
            frame.len = departure.len.min(space.len()) as u32;
            frame.flags = fill_flags(departure.checksum);
            bytes += frame.len as usize;
            self.waiting += 1;
            filled += 1;
        }
        self.flush();
        Ok(filled)
    }

    fn arm(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        let mut counters = self.counters;
        let statistics = self.device.statistics();
        counters.rx_dropped =
            statistics.rx_missed + statistics.rx_errors + statistics.rx_no_mbuf + statistics.rx_unjoined;
        counters.tx_dropped = statistics.tx_errors;
        counters
    }
}

impl Drop for DpdkPort {
    fn drop(&mut self) {
        let Batch { frames, len } = &mut self.departing;
        // SAFETY: the first `len` frames are ours.
        unsafe { (self.table.free)(self.queue, frames.as_mut_ptr(), *len as u32) };
    }
}
