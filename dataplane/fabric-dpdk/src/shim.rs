//! What the C shim exports (`shim/shim.h`), and the few functions of libdpdk that need none.

use std::ffi::{c_char, c_int};

use velo_fabric::packet::port::dpdk::table::{Frame, LinkAnswer, LogFn, PortAnswer, PortRequest, Statistics};

use crate::port::Queue;

/// `struct rte_mempool`.
#[repr(C)]
pub(crate) struct RteMempool {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    pub(crate) fn rte_version() -> *const c_char;
    pub(crate) fn rte_eal_init(argc: c_int, argv: *mut *mut c_char) -> c_int;
    pub(crate) fn rte_mempool_free(mempool: *mut RteMempool);

    pub(crate) fn velo_log_to(log: LogFn) -> c_int;
    pub(crate) fn velo_errno() -> c_int;
    pub(crate) fn velo_mempool_create(
        name: *const c_char,
        mbufs: u32,
        room: u32,
        numa_node: c_int,
        error: *mut c_int,
    ) -> *mut RteMempool;
    pub(crate) fn velo_port_configure(
        name: *const c_char,
        request: *const PortRequest,
        answer: *mut PortAnswer,
        port: *mut u16,
    ) -> c_int;
    pub(crate) fn velo_port_queue(
        port: u16,
        queue: u16,
        answer: *const PortAnswer,
        mempool: *mut RteMempool,
        stage: *mut u32,
    ) -> c_int;
    pub(crate) fn velo_port_start(port: u16, request: *const PortRequest, answer: *mut PortAnswer) -> c_int;
    pub(crate) fn velo_port_close(port: u16, started: c_int);
    pub(crate) fn velo_port_link(port: u16, link: *mut LinkAnswer);
    pub(crate) fn velo_port_statistics(port: u16, statistics: *mut Statistics);
    pub(crate) fn velo_rx_burst(queue: *mut Queue, frames: *mut Frame, count: u32) -> u32;
    pub(crate) fn velo_tx_burst(queue: *mut Queue, frames: *mut Frame, count: u32) -> u32;
    pub(crate) fn velo_alloc(queue: *mut Queue, frames: *mut Frame, count: u32) -> u32;
    pub(crate) fn velo_free(queue: *mut Queue, frames: *mut Frame, count: u32);
}
