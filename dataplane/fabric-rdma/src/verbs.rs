//! The static inline functions of `infiniband/verbs.h` that `rdma-sys` lacks or has wrong, each once; and errno.

use std::ffi::c_int;
use std::io;
use std::mem::offset_of;
use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_context, ibv_device_attr_ex, ibv_odp_general_caps, ibv_odp_transport_cap_bits, ibv_port_attr,
    verbs_context,
};

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

/// `ibv_query_device_ex`, as far as it tells whether READs can fill memory that is not there yet (on-demand paging).
///
/// # Safety
/// The context is open.
pub unsafe fn fills_on_demand(context: *mut ibv_context) -> bool {
    // SAFETY: as `verbs_get_ctx_op` does it: a context that says so is a part of a larger structure, which says how long it is.
    unsafe {
        // `__VERBS_ABI_IS_EXTENDED`: all bits.
        if (*context).abi_compat as usize != usize::MAX {
            return false;
        }
        let whole = context.byte_sub(offset_of!(verbs_context, context)).cast::<verbs_context>();
        if (*whole).sz < size_of::<verbs_context>() - offset_of!(verbs_context, query_device_ex) {
            return false;
        }
        let Some(query) = (*whole).query_device_ex else { return false };
        // Numbers: all zeros are values.
        let mut attr: ibv_device_attr_ex = std::mem::zeroed();
        if query(context, ptr::null(), &mut attr, size_of::<ibv_device_attr_ex>()) != 0 {
            return false;
        }
        let (general, connected) = (attr.odp_caps.general_caps, attr.odp_caps.per_transport_caps.rc_odp_caps);
        general & u64::from(ibv_odp_general_caps::IBV_ODP_SUPPORT.0) != 0
            && connected & ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_READ.0 != 0
    }
}
