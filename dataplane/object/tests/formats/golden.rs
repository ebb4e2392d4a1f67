//! Version 1 of every format, byte by byte: these files never change. A new version gets new ones.
//!
//! `VELO_GOLDEN=write cargo test -p velo-object golden` writes files that are missing.

use std::path::Path;

use velo_object::{BlobId, Outboard, PackReader, Tree};

use crate::sample;

fn check(name: &str, made: &[u8], id: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("VELO_GOLDEN").is_some_and(|what| what == "write") && !path.exists() {
        std::fs::write(&path, made).expect("the folder can be written");
    }
    let golden = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(golden == made, "{name} is made with other bytes than version 1 of its format has");
    assert_eq!(BlobId::of(&golden).to_hex(), id, "{name}");
}

#[test]
fn golden_outboard() {
    let content = sample::noise(b"golden outboard", (5 << 20) + 1);
    let outboard = sample::outboard(&content);
    check(
        "outboard.v1",
        &outboard.encode(),
        "94c11a09a002b1f68859d7f428f0e4225f762cd8accb3dcecac8d3ca0bcdbb45",
    );
    assert_eq!(
        Outboard::decode(BlobId::of(&content), &outboard.encode()).expect("golden").size_bytes(),
        5 << 20 | 1
    );
}

#[test]
fn golden_tree() {
    let (packs, tree) = sample::tree(&sample::everything());
    let tree = tree.expect("a good directory");
    check("tree.v1", tree.as_bytes(), "30bec79bbe1764d4566e815d475e8e486977af24ef2097e2c5e9e73a326c08ef");
    let again = Tree::parse(tree.as_bytes()).expect("golden");
    assert_eq!((again.len(), again.packs().count(), packs.len()), (12, 1, 1));
}

#[test]
fn golden_pack() {
    let contents: [&[u8]; 5] = [b"one", b"", b"three", b"one", &[7; 300]];
    let packs = sample::packs(contents);
    check("pack.v1", &packs[0], "bb049a11e01672f4e15af52595e714983728412ba9c726ca31376b114ca2d9c2");
    PackReader::parse(packs[0].as_slice()).expect("golden").verify().expect("golden");
}
