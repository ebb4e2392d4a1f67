//! What DPDK says: the last lines are kept for errors, and all go to velod's log.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::c_char;
use std::sync::Mutex;

/// Lines that are kept.
const KEPT: usize = 8;
/// Bytes of a line that are kept.
const LINE_MAX: usize = 400;

static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// The last lines at the level of a warning or worse.
pub(super) fn last() -> Vec<String> {
    LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter().cloned().collect()
}

/// [`LogFn`](super::table::LogFn).
///
/// # Safety
/// `text` must have `len` bytes.
pub(super) unsafe extern "C" fn take(level: u32, text: *const c_char, len: usize) {
    if text.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let line = String::from_utf8_lossy(&line[..line.len().min(LINE_MAX)]).into_owned();
        // RTE_LOG_ERR is 4, _WARNING 5, _NOTICE 6, _INFO 7.
        match level {
            0..=4 => tracing::warn!(target: "dpdk", "{line}"),
            5..=6 => tracing::info!(target: "dpdk", "{line}"),
            _ => tracing::debug!(target: "dpdk", "{line}"),
        }
        if level <= 5 {
            let mut last = LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
}
