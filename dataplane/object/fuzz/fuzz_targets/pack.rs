//! Any bytes: a pack that parses and verifies is what the builder makes of its contents.
#![no_main]

use std::convert::Infallible;

use libfuzzer_sys::fuzz_target;
use velo_object::{PackBuilder, PackReader, PackStep};

fuzz_target!(|bytes: &[u8]| {
    let Ok(pack) = PackReader::parse(bytes) else { return };
    let contents: Result<Vec<_>, _> = pack
        .index()
        .entries()
        .iter()
        .map(|entry| pack.content(entry).map(|content| (entry.blob, content)))
        .collect();
    assert_eq!(contents.is_ok(), pack.verify().is_ok());
    let Ok(contents) = contents else { return };
    let mut made = Vec::new();
    let mut step = |step: PackStep<'_>| -> Result<(), Infallible> {
        if let PackStep::Append(bytes) = step {
            made.extend_from_slice(bytes);
        }
        Ok(())
    };
    let mut builder = PackBuilder::new();
    for (id, content) in contents {
        let Ok(new) = builder.push(id, content, &mut step);
        assert!(new, "no content stands in a pack twice");
    }
    let Ok(()) = builder.finish(&mut step);
    assert_eq!(made, bytes);
});
