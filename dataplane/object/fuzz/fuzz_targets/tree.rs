//! Any bytes: a table that parses is what the builder makes of its entries, and every entry can be found.
#![no_main]

use libfuzzer_sys::fuzz_target;
use velo_object::{EntryKind, Named, Tree, TreeBuilder};

fuzz_target!(|bytes: &[u8]| {
    let Ok(tree) = Tree::parse(bytes) else { return };
    let mut builder = TreeBuilder::new();
    let mut total_bytes = 0;
    for entry in tree.iter() {
        assert_eq!(tree.find(entry.path), Some(entry));
        assert!(tree.under(entry.path).is_empty());
        total_bytes += entry.size_bytes;
        let content = Named { blob: entry.blob, size_bytes: entry.size_bytes };
        match entry.kind {
            EntryKind::Directory => builder.directory(entry.path, entry.mtime_ns),
            kind => builder.content(entry.path, kind, content, entry.mtime_ns),
        }
        .expect("a path of a tree");
    }
    assert_eq!(total_bytes, tree.total_bytes());
    let packs: Vec<_> = tree.packs().collect();
    assert!(tree.packed().all(|at| at.offset_bytes + at.entry.size_bytes < packs[at.pack].size_bytes));
    assert_eq!(tree.under(b""), 0..tree.len());
    assert_eq!(builder.finish(&packs).expect("the entries of a tree").into_bytes(), bytes);
});
