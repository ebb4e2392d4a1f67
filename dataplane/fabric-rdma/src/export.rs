//! The one exported symbol: the table, and the functions in it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::{ptr, slice};

use velo_fabric::rdma::table::{
    ABI, Async, DeviceAnswer, DeviceHandle, Done, End, Keys, PairHandle, PairRequest, QueueHandle, Receive,
    RegionHandle, Table, WindowHandle, Work,
};

use crate::device::{self, Device};
use crate::pair::Pair;
use crate::queue::Queue;

/// What velod looks for.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static velo_rdma_v1: Table = Table {
    abi: ABI,
    size: size_of::<Table>() as u32,
    open,
    close,
    register,
    deregister,
    window,
    drop_window,
    queue,
    drop_queue,
    queue_descriptor,
    pair,
    connect,
    fail,
    drop_pair,
    work,
    receive,
    poll,
    arm,
    async_descriptor,
    take_async,
};

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(0)
}

/// The handle of what was made, or null and the error.
fn handle<T, H>(made: Result<T, c_int>, error: &mut c_int) -> *mut H {
    match made {
        Ok(made) => Box::into_raw(Box::new(made)).cast(),
        Err(why) => {
            *error = why;
            ptr::null_mut()
        }
    }
}

unsafe extern "C" fn open(name: *const c_char, port: u32, answer: *mut DeviceAnswer) -> *mut DeviceHandle {
    // SAFETY: the table's contract: a string and room for the answer.
    let (name, answer) = unsafe { (CStr::from_ptr(name), &mut *answer) };
    let mut error = 0;
    let device: *mut DeviceHandle = handle(Device::open(name, port, answer), &mut error);
    if device.is_null() {
        answer.error = error;
    }
    device
}

unsafe extern "C" fn close(device: *mut DeviceHandle) {
    // SAFETY: made by `open`, and not used any more.
    drop(unsafe { Box::from_raw(device.cast::<Device>()) });
}

unsafe extern "C" fn register(
    device: *mut DeviceHandle,
    address: *mut c_void,
    len: usize,
    purpose: u32,
    keys: *mut Keys,
    error: *mut c_int,
) -> *mut RegionHandle {
    // SAFETY: an open device, room for the answers, and memory that stays.
    unsafe {
        match (*device.cast::<Device>()).register(address, len, purpose, &mut *keys) {
            Ok(region) => region.as_ptr().cast(),
            Err(why) => {
                *error = why;
                ptr::null_mut()
            }
        }
    }
}

unsafe extern "C" fn deregister(region: *mut RegionHandle) -> c_int {
    // SAFETY: made by `register`.
    unsafe { device::deregister(region.cast()) }
}

unsafe extern "C" fn window(device: *mut DeviceHandle, rkey: *mut u32) -> *mut WindowHandle {
    // SAFETY: an open device, and room for the key.
    unsafe {
        let Some(window) = (*device.cast::<Device>()).window() else { return ptr::null_mut() };
        *rkey = (*window.as_ptr()).rkey;
        window.as_ptr().cast()
    }
}

unsafe extern "C" fn drop_window(window: *mut WindowHandle) -> c_int {
    // SAFETY: made by `window`.
    unsafe { device::drop_window(window.cast()) }
}

unsafe extern "C" fn queue(device: *mut DeviceHandle, places: u32, error: *mut c_int) -> *mut QueueHandle {
    // SAFETY: an open device, and room for the error.
    unsafe { handle(Queue::new(&*device.cast::<Device>(), places), &mut *error) }
}

unsafe extern "C" fn drop_queue(queue: *mut QueueHandle) -> c_int {
    // SAFETY: made by `queue`, and not used any more.
    unsafe { Box::from_raw(queue.cast::<Queue>()) }.destroy()
}

unsafe extern "C" fn queue_descriptor(queue: *mut QueueHandle) -> c_int {
    // SAFETY: made by `queue`.
    unsafe { (*queue.cast::<Queue>()).descriptor() }
}

unsafe extern "C" fn pair(
    device: *mut DeviceHandle,
    queue: *mut QueueHandle,
    request: *const PairRequest,
    end: *mut End,
    error: *mut c_int,
) -> *mut PairHandle {
    // SAFETY: an open device, a queue of it, and structures that nobody else uses meanwhile.
    unsafe {
        let (device, queue) = (&*device.cast::<Device>(), &*queue.cast::<Queue>());
        handle(Pair::new(device, queue, &*request, &mut *end), &mut *error)
    }
}

unsafe extern "C" fn connect(
    pair: *mut PairHandle,
    gid_index: u32,
    ours: *const End,
    theirs: *const End,
) -> c_int {
    // SAFETY: made by `pair`, and two structures.
    unsafe { code((*pair.cast::<Pair>()).connect(gid_index, &*ours, &*theirs)) }
}

unsafe extern "C" fn fail(pair: *mut PairHandle) -> c_int {
    // SAFETY: made by `pair`.
    unsafe { code((*pair.cast::<Pair>()).fail()) }
}

unsafe extern "C" fn drop_pair(pair: *mut PairHandle) -> c_int {
    // SAFETY: made by `pair`, and not used any more.
    unsafe { Box::from_raw(pair.cast::<Pair>()) }.destroy()
}

unsafe extern "C" fn work(pair: *mut PairHandle, work: *const Work, count: u32) -> u32 {
    // SAFETY: made by `pair`; so many requests, whose memory is the caller's promise.
    unsafe { (*pair.cast::<Pair>()).work(slice::from_raw_parts(work, count as usize)) as u32 }
}

unsafe extern "C" fn receive(pair: *mut PairHandle, places: *const Receive, count: u32) -> u32 {
    // SAFETY: as in `work`.
    unsafe { (*pair.cast::<Pair>()).receive(slice::from_raw_parts(places, count as usize)) as u32 }
}

unsafe extern "C" fn poll(queue: *mut QueueHandle, to: *mut Done, count: u32) -> c_int {
    // SAFETY: made by `queue`; room for so many.
    let polled = unsafe { (*queue.cast::<Queue>()).poll(slice::from_raw_parts_mut(to, count as usize)) };
    polled.map_or_else(|error| error, |count| count as c_int)
}

unsafe extern "C" fn arm(queue: *mut QueueHandle) -> c_int {
    // SAFETY: made by `queue`.
    unsafe { code((*queue.cast::<Queue>()).arm()) }
}

unsafe extern "C" fn async_descriptor(device: *mut DeviceHandle) -> c_int {
    // SAFETY: an open device.
    unsafe { (*device.cast::<Device>()).async_descriptor() }
}

unsafe extern "C" fn take_async(device: *mut DeviceHandle, to: *mut Async) -> c_int {
    // SAFETY: an open device, and room for what it says.
    unsafe {
        match (*device.cast::<Device>()).take_async() {
            Ok(Some(told)) => {
                *to = told;
                1
            }
            Ok(None) => 0,
            Err(error) => error,
        }
    }
}
