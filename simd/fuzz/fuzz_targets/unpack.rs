//! Any bytes: a delta that unpacks has the length it declares, comes back after packing, and applies as it unpacks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use velo_simd::{apply, pack, packed_len, unpack};

const MOST: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(delta) = unpack(bytes, MOST) else { return };
    assert_eq!(packed_len(bytes), Ok(delta.len() as u64));
    assert!(unpack(&pack(&delta), MOST).as_ref() == Ok(&delta));
    let mut content = vec![0; delta.len()];
    apply(bytes, &mut content).expect("it unpacks, so it applies");
    assert!(content == delta);
});
