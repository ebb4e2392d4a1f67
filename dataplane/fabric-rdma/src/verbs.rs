//! The static inline functions of `infiniband/verbs.h` that `rdma-sys` lacks or has wrong, each once; and errno.

use std::ffi::c_int;
use std::io;
use std::ptr::NonNull;

use rdma_sys::{ibv_context, ibv_port_attr};

/// The negative number of the last error of this thread.
pub fn errno() -> c_int {
    -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// A function that returns null where it fails.
pub fn made<T>(pointer: *mut T) -> Result<NonNull<T>, c_int> {
    NonNull::new(pointer).ok_or_else(errno)
}

/// A function that returns an error number, or −1 and errno.
pub fn done(result: c_int) -> Result<(), c_int> {
    match result {
        0 => Ok(()),
        error if error > 0 => Err(-error),
        _ => Err(errno()),
    }
}

/// `ibv_query_port`: the library's function takes a structure without what was added later.
///
/// # Safety
/// The context is open.
pub unsafe fn query_port(context: *mut ibv_context, port: u8) -> Result<ibv_port_attr, c_int> {
    // SAFETY: all zeros are values of its fields, which are numbers.
    let mut attr: ibv_port_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the context is open, and the structure is the whole one, of which the library fills in a part.
    done(unsafe { rdma_sys::___ibv_query_port(context, port, &mut attr) })?;
    Ok(attr)
}
