//! DPDK's environment (EAL): threads, memory and drivers, once in a process.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::Mutex;

use velo_fabric::packet::port::dpdk::table::LogFn;

use crate::shim;

/// EAL, started. It stays until the process ends: it cannot be started again, and `rte_eal_cleanup` (22.11) takes the memory away that
/// its thread for interrupts still reads. Nothing is left behind, as all memory is the process's own.
pub(crate) struct Eal(());

/// The one of this process.
static STARTED: Mutex<Option<Eal>> = Mutex::new(None);

/// EALREADY, as the table returns it.
const ALREADY: c_int = -114;

impl Eal {
    /// # Safety
    /// `argv` must be `argc` strings.
    unsafe fn start(argc: c_int, argv: *const *const c_char, log: LogFn) -> Result<Self, c_int> {
        // SAFETY: the callback is a function of the caller, which does not go away.
        let rc = unsafe { shim::velo_log_to(log) };
        if rc < 0 {
            return Err(rc);
        }
        // EAL reorders the array; the strings stay as they are.
        let mut arguments = vec![ptr::null_mut(); argc as usize + 1];
        for (index, argument) in arguments[..argc as usize].iter_mut().enumerate() {
            // SAFETY: the caller vouches for `argc` entries.
            *argument = unsafe { *argv.add(index) }.cast_mut();
        }
        // SAFETY: `argc` strings and a null pointer.
        let rc = unsafe { shim::rte_eal_init(argc, arguments.as_mut_ptr()) };
        // SAFETY: reads a thread-local number.
        if rc < 0 { Err(-unsafe { shim::velo_errno() }) } else { Ok(Self(())) }
    }
}

/// [`Table::start`](velo_fabric::packet::port::dpdk::table::Table::start).
///
/// # Safety
/// As there.
pub(crate) unsafe extern "C" fn start(argc: c_int, argv: *const *const c_char, log: LogFn) -> c_int {
    let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if started.is_some() {
        return ALREADY;
    }
    // SAFETY: the caller's promise.
    match unsafe { Eal::start(argc, argv, log) } {
        Ok(eal) => {
            *started = Some(eal);
            0
        }
        Err(error) => error.min(-1),
    }
}
