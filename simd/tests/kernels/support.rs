//! What all tests of kernels share: the levels of this machine, bytes from a seed, guarded memory.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use velo_simd::{Kernels, Level};

/// Says once that something was not tested, where `tests/run` finds it: what a passing test prints is not shown.
fn skip(why: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if !SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(why.to_owned()) {
        return;
    }
    eprintln!("SKIP: {why}");
    if let Some(path) = std::env::var_os("VELO_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(path)
    {
        let _ = writeln!(file, "SKIP: {why}");
    }
}

/// The kernels of every level that this machine has; says which it lacks.
pub fn levels() -> Vec<Kernels> {
    Level::ALL
        .into_iter()
        .filter_map(|level| match Kernels::at(level) {
            Ok(kernels) => Some(kernels),
            Err(error) => {
                skip(&format!("the kernels of level {level}: {error}"));
                None
            }
        })
        .collect()
}

/// Bytes from a seed (SplitMix64).
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}
