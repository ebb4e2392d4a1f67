//! Content that is the same in every run, and directories that are made of it.

use std::collections::BTreeMap;
use std::convert::Infallible;

use velo_object::{
    BlobId, EntryKind, Named, Outboard, OutboardBuilder, PACKED_FILE_BYTES, PackBuilder, PackStep, Pieces,
    Tree, TreeBuilder, TreeError, chaining_value, path_order,
};

/// `len` bytes that no one would call regular.
pub fn noise(seed: &[u8], len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed).finalize_xof().fill(&mut bytes);
    bytes
}

/// The outboard of `content`, piece by piece.
pub fn outboard(content: &[u8]) -> Outboard {
    let pieces = Pieces::new(content.len() as u64);
    let mut builder = OutboardBuilder::new(content.len() as u64);
    for index in (0..pieces.count()).rev() {
        let range = pieces.range(index);
        builder.set(index, chaining_value(index, &content[range.start as usize..range.end as usize]));
    }
    builder.finish()
}

/// What a directory holds, by path.
pub type Directory = BTreeMap<Vec<u8>, (EntryKind, Vec<u8>, u64)>;

/// What the builder makes.
pub type Built = Result<Tree<Vec<u8>>, TreeError>;

/// All packs of these contents, given in the order of the tree.
pub fn packs<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let (mut packs, mut open) = (Vec::new(), Vec::new());
    let mut step = |step: PackStep<'_>| -> Result<(), Infallible> {
        match step {
            PackStep::Append(bytes) => open.extend_from_slice(bytes),
            PackStep::Close(_) => packs.push(std::mem::take(&mut open)),
        }
        Ok(())
    };
    let mut builder = PackBuilder::new();
    for content in contents {
        let Ok(_) = builder.push(BlobId::of(content), content, &mut step);
    }
    let Ok(()) = builder.finish(&mut step);
    assert!(open.is_empty(), "what was appended belongs to a pack that was closed");
    packs
}

/// The packs and the tree of a directory.
pub fn tree(directory: &Directory) -> (Vec<Vec<u8>>, Built) {
    let mut sorted: Vec<_> = directory.iter().collect();
    sorted.sort_by(|a, b| path_order(a.0, b.0));
    let small = sorted
        .iter()
        .filter(|(_, (kind, content, _))| {
            *kind != EntryKind::Directory && content.len() as u64 <= PACKED_FILE_BYTES
        })
        .map(|(_, (_, content, _))| content.as_slice());
    let packs = packs(small);
    let named: Vec<Named> = packs.iter().map(|pack| name(pack)).collect();
    let mut builder = TreeBuilder::new();
    // The order in which entries come does not matter: give them in another one.
    for (path, (kind, content, mtime_ns)) in directory.iter().rev() {
        let pushed = match kind {
            EntryKind::Directory => builder.directory(path, *mtime_ns),
            kind => builder.content(path, *kind, name(content), *mtime_ns),
        };
        if let Err(error) = pushed {
            return (packs, Err(error));
        }
    }
    let tree = builder.finish(&named);
    (packs, tree)
}

/// The id and the size of `content`.
pub fn name(content: &[u8]) -> Named {
    Named { blob: BlobId::of(content), size_bytes: content.len() as u64 }
}

/// The same table from what the tree says: equal bytes for every table that parses.
pub fn rebuild<B: AsRef<[u8]>>(tree: &Tree<B>) -> Tree<Vec<u8>> {
    let mut builder = TreeBuilder::new();
    for entry in tree.iter() {
        let content = Named { blob: entry.blob, size_bytes: entry.size_bytes };
        match entry.kind {
            EntryKind::Directory => builder.directory(entry.path, entry.mtime_ns),
            kind => builder.content(entry.path, kind, content, entry.mtime_ns),
        }
        .expect("a path of a tree");
    }
    builder.finish(&tree.packs().collect::<Vec<_>>()).expect("the entries of a tree")
}

/// A directory with one of everything.
pub fn everything() -> Directory {
    let file = |content: &[u8]| (EntryKind::File, content.to_vec(), 0);
    Directory::from([
        (b"README".to_vec(), file(b"a tree with one of everything\n")),
        (b"bin/run".to_vec(), (EntryKind::Executable, b"#!/bin/sh\nexit 0\n".to_vec(), 0)),
        (b"bin-old".to_vec(), (EntryKind::Symlink, b"bin/run".to_vec(), 0)),
        (b"copy/of/README".to_vec(), file(b"a tree with one of everything\n")),
        (b"empty".to_vec(), file(b"")),
        (b"empty directory".to_vec(), (EntryKind::Directory, Vec::new(), 0)),
        (b"large".to_vec(), file(&noise(b"large", (2 << 20) + 5))),
        (b"line\nbreak \xff\xfe".to_vec(), file(b"a name that is not UTF-8")),
        (b"limit".to_vec(), file(&noise(b"limit", PACKED_FILE_BYTES as usize))),
        (b"limit+1".to_vec(), file(&noise(b"limit+1", PACKED_FILE_BYTES as usize + 1))),
        (b"link out".to_vec(), (EntryKind::Symlink, b"../../etc/passwd".to_vec(), 0)),
        (b"timed".to_vec(), (EntryKind::File, b"kept\n".to_vec(), 1_700_000_000_123_456_789)),
    ])
}
