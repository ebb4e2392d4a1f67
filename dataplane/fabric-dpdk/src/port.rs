//! Ports: a device that is configured, and its queues.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicU64, Ordering};

use velo_fabric::packet::port::dpdk::table::{LinkAnswer, PortAnswer, PortRequest, Statistics};

use crate::mempool::Mempool;
use crate::shim::{self, RteMempool};

/// `struct velo_queue`: what the bursts need of one queue, in a cache line of its own.
#[repr(C, align(64))]
pub(crate) struct Queue {
    mempool: *mut RteMempool,
    unjoined: AtomicU64,
    refused: AtomicU64,
    port: u16,
    index: u16,
}

/// A started device. Dropping it stops and closes it and frees its mempool.
pub(crate) struct Port {
    device: Device,
    queues: Box<[Queue]>,
    // Dropped after the device has let go of its mbufs.
    _mempool: Mempool,
}

/// A device that DPDK has, started or not.
struct Device {
    number: u16,
    started: bool,
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: the number is of a device that is this value's alone.
        unsafe { shim::velo_port_close(self.number, c_int::from(self.started)) };
    }
}

/// As an error number of DPDK.
fn checked(rc: c_int, answer: &mut PortAnswer) -> Result<(), ()> {
    answer.error = rc;
    if rc == 0 { Ok(()) } else { Err(()) }
}

impl Port {
    /// Configures and starts the device `name`. Where it fails, `answer` says why, and the device is closed if it was touched.
    pub(crate) fn open(name: &CStr, request: &PortRequest, answer: &mut PortAnswer) -> Result<Self, ()> {
        *answer = PortAnswer { numa_node: -1, ..PortAnswer::default() };
        let mut number = 0;
        // SAFETY: a string and two structures of the right layout.
        let rc = unsafe { shim::velo_port_configure(name.as_ptr(), request, answer, &mut number) };
        checked(rc, answer)?;
        let mut device = Device { number, started: false };
        answer.stage = STAGE_MEMPOOL;
        let mbufs = request.mbufs.saturating_mul(request.queues);
        let mempool = match Mempool::new(mbufs, request.room_bytes, answer.numa_node) {
            Ok(mempool) => mempool,
            Err(error) => {
                answer.error = error.min(-1);
                return Err(());
            }
        };
        let queue = |index| Queue {
            mempool: mempool.as_ptr(),
            unjoined: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            port: number,
            index,
        };
        let queues: Box<[Queue]> = (0..request.queues as u16).map(queue).collect();
        for queue in &queues {
            let mut stage = 0;
            // SAFETY: the device is configured and not started; the mempool outlives it.
            let rc =
                unsafe { shim::velo_port_queue(number, queue.index, answer, mempool.as_ptr(), &mut stage) };
            answer.stage = stage;
            checked(rc, answer)?;
        }
        // SAFETY: the device and all its queues are configured.
        let rc = unsafe { shim::velo_port_start(number, request, answer) };
        checked(rc, answer)?;
        device.started = true;
        Ok(Self { device, queues, _mempool: mempool })
    }

    pub(crate) fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    pub(crate) fn link(&self) -> LinkAnswer {
        let mut link = LinkAnswer::default();
        // SAFETY: the device is there as long as `self`.
        unsafe { shim::velo_port_link(self.device.number, &mut link) };
        link
    }

    pub(crate) fn statistics(&self) -> Statistics {
        let mut statistics = Statistics::default();
        // SAFETY: as in `link`.
        unsafe { shim::velo_port_statistics(self.device.number, &mut statistics) };
        for queue in &self.queues {
            statistics.rx_unjoined += queue.unjoined.load(Ordering::Relaxed);
            statistics.tx_errors += queue.refused.load(Ordering::Relaxed);
        }
        statistics
    }
}

/// Index into [`STAGES`](velo_fabric::packet::port::dpdk::table::STAGES).
const STAGE_MEMPOOL: u32 = 3;
