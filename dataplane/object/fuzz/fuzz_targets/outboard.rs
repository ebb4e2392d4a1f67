//! Any bytes: an outboard that decodes encodes to the same bytes, and states a size that fits its entries.
//!
//! A fuzzer finds no hash that merges, so the id is taken from the values where they have the right number.
#![no_main]

use libfuzzer_sys::fuzz_target;
use velo_object::{BlobId, Outboard, OutboardBuilder, Pieces};

fuzz_target!(|bytes: &[u8]| {
    assert!(Outboard::decode(BlobId::of(b"another blob"), bytes).is_err());
    let Some((header, values)) = bytes.split_at_checked(16) else { return };
    let size_bytes = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
    if size_bytes <= 1 << 20 || Pieces::new(size_bytes).count() != (values.len() / 32) as u64 {
        return;
    }
    let mut builder = OutboardBuilder::new(size_bytes);
    for (index, value) in values.chunks_exact(32).enumerate() {
        builder.set(index as u64, value.try_into().expect("32 bytes"));
    }
    let made = builder.finish();
    if let Ok(outboard) = Outboard::decode(made.id(), bytes) {
        assert_eq!(outboard.encode(), bytes);
        assert!(!outboard.is_confirmed());
    }
    let mut again = Outboard::decode(made.id(), &made.encode()).expect("what encode made");
    again.confirm();
    assert_eq!(again, made);
});
