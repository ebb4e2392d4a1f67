//! The one exported symbol: the table, and the functions in it that are not the shim's own.

use std::ffi::{CStr, c_char};
use std::mem;
use std::ptr;

use velo_fabric::packet::port::dpdk::table::{
    ABI, Frame, LinkAnswer, PortAnswer, PortHandle, PortRequest, QueueHandle, Statistics, Table,
};

use crate::eal;
use crate::port::{Port, Queue};
use crate::shim;

/// What velod looks for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static velo_dpdk_v1: Table = Table {
    abi: ABI,
    size: size_of::<Table>() as u32,
    version: shim::rte_version,
    start: eal::start,
    open,
    close,
    queue,
    link,
    statistics,
    rx_burst: of_queue(shim::velo_rx_burst),
    alloc: of_queue(shim::velo_alloc),
    tx_burst: of_queue(shim::velo_tx_burst),
    free: of_queue_silent(shim::velo_free),
};

type OfQueue<Q, R> = unsafe extern "C" fn(*mut Q, *mut Frame, u32) -> R;

/// The shim's function itself under the table's opaque type, so that a burst costs one call.
const fn of_queue(function: OfQueue<Queue, u32>) -> OfQueue<QueueHandle, u32> {
    // SAFETY: the two differ in what a pointer points to only, and a handle is always a pointer to a `Queue`.
    unsafe { mem::transmute(function) }
}

const fn of_queue_silent(function: OfQueue<Queue, ()>) -> OfQueue<QueueHandle, ()> {
    // SAFETY: as in `of_queue`.
    unsafe { mem::transmute(function) }
}

unsafe extern "C" fn open(
    name: *const c_char,
    request: *const PortRequest,
    answer: *mut PortAnswer,
) -> *mut PortHandle {
    // SAFETY: the table's contract: a string and two structures, which nobody else uses meanwhile.
    let (name, request, answer) = unsafe { (CStr::from_ptr(name), &*request, &mut *answer) };
    match Port::open(name, request, answer) {
        Ok(port) => Box::into_raw(Box::new(port)).cast(),
        Err(()) => ptr::null_mut(),
    }
}

unsafe extern "C" fn close(port: *mut PortHandle) {
    // SAFETY: made by `open`, and not used any more.
    drop(unsafe { Box::from_raw(port.cast::<Port>()) });
}

unsafe extern "C" fn queue(port: *mut PortHandle, index: u32) -> *mut QueueHandle {
    // SAFETY: made by `open` and not closed.
    let port = unsafe { &*port.cast::<Port>() };
    port.queue(index as usize).map_or(ptr::null_mut(), |queue| ptr::from_ref(queue).cast_mut().cast())
}

unsafe extern "C" fn link(port: *mut PortHandle, answer: *mut LinkAnswer) {
    // SAFETY: a port that is not closed, and room for the answer.
    unsafe { *answer = (*port.cast::<Port>()).link() };
}

unsafe extern "C" fn statistics(port: *mut PortHandle, answer: *mut Statistics) {
    // SAFETY: as in `link`.
    unsafe { *answer = (*port.cast::<Port>()).statistics() };
}
