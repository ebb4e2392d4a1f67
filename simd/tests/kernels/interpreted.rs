//! All kernels on a few lengths, in memory of exactly that size: little enough for Miri, which sees what guard pages do not.

use velo_simd::*;

use crate::checksum::{adler, fletcher};
use crate::delta::{check, other};
use crate::support::{bytes, levels};

#[test]
fn every_kernel_keeps_within_its_memory() {
    for kernels in levels() {
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 130, 300, 4097] {
            let a = bytes(len as u64, len);
            let b = other(&a, 5);
            check(kernels, &mut vec![0; len], &a, &b);
            let differ = || a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at);
            assert_eq!(kernels.first_difference(&a, &b), differ().next());
            assert_eq!(kernels.last_difference(&a, &b), differ().next_back());
            assert_eq!(kernels.adler32(1, &a), adler(&a));
            assert_eq!(kernels.fletcher32(0, &a), fletcher(&a));
            let mut zeros = vec![0; len];
            assert!(kernels.is_zero(&zeros) && kernels.leading_zeros(&zeros) == len);
            assert_eq!(kernels.find_zero_run(&zeros, 16), 0);
            if let Some(last) = zeros.last_mut() {
                *last = 1;
                assert!(!kernels.is_zero(&zeros) && kernels.leading_zeros(&zeros) == len - 1);
            }
        }
    }
    let mut delta = bytes(7, 5000);
    delta[100..4000].fill(0);
    let packed = pack(&delta);
    assert_eq!(unpack(&packed, delta.len()).as_deref(), Ok(&delta[..]));
    let mut new = vec![0; delta.len()];
    apply(&packed, &mut new).expect("its own length");
    assert_eq!(new, delta);
    let mut copy = vec![0; delta.len()];
    assert_eq!(copy_crc32c(&mut copy, &delta), crc32c(&delta));
    assert_eq!(copy, delta);
}
