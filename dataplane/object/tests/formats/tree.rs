//! Trees: what the builder makes, the view reads; every other spelling, and everything dangerous, is refused.

use proptest::prelude::*;
use velo_object::tree::{MAX_ENTRIES, PathError, is_under, path_order};
use velo_object::{BlobId, EntryKind, MAX_BLOB_BYTES, Named, Tree, TreeBuilder, TreeError};

use crate::outboard::{bend, bends};
use crate::sample::{self, Directory, rebuild};

/// A table as anybody might write it: no rule is kept.
#[derive(Clone)]
struct Raw {
    entries: Vec<RawEntry>,
    packs: Vec<Named>,
}

#[derive(Clone)]
struct RawEntry {
    path: Vec<u8>,
    hash: [u8; 32],
    size: u64,
    mode: u32,
    flags: u16,
    pad: u16,
}

impl Raw {
    /// Files of 1 MiB under these paths.
    fn files(paths: &[&[u8]]) -> Self {
        let entry = |path: &&[u8]| RawEntry {
            path: path.to_vec(),
            hash: *BlobId::of(path).as_bytes(),
            size: 1 << 20,
            mode: 0o644,
            flags: 0,
            pad: 0,
        };
        Self { entries: paths.iter().map(entry).collect(), packs: Vec::new() }
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn encode(&self) -> Vec<u8> {
        let names: Vec<u8> = self.entries.iter().flat_map(|entry| entry.path.clone()).collect();
        let total = self.entries.iter().fold(0u64, |sum, entry| sum.wrapping_add(entry.size));
        let mut table = b"VTR1".to_vec();
        for count in [self.entries.len(), self.packs.len(), names.len()] {
            table.extend((count as u32).to_le_bytes());
        }
        table.extend(total.to_le_bytes());
        table.extend([0; 8]);
        for entry in &self.entries {
            table.extend(entry.hash);
            table.extend(entry.size.to_le_bytes());
            table.extend(0u64.to_le_bytes());
            table.extend(entry.mode.to_le_bytes());
            table.extend(entry.flags.to_le_bytes());
            table.extend(entry.pad.to_le_bytes());
        }
        let mut offset = 0;
        table.extend(0u32.to_le_bytes());
        for entry in &self.entries {
            offset += entry.path.len() as u32;
            table.extend(offset.to_le_bytes());
        }
        table.extend(names);
        table.resize(table.len().next_multiple_of(8), 0);
        for pack in &self.packs {
            table.extend(pack.blob.as_bytes());
            table.extend(pack.size_bytes.to_le_bytes());
        }
        table
    }

    fn error(&self) -> TreeError {
        Tree::parse(self.encode()).expect_err("refused")
    }
}

#[test]
fn the_raw_table_is_otherwise_good() {
    Tree::parse(Raw::files(&[]).encode()).expect("the empty directory");
    Tree::parse(Raw::files(&[b"a/b", b"a-b", b"c"]).encode()).expect("good");
}

#[test]
fn paths_that_are_refused() {
    let (long, deep) = ([b'x'; 256], b"d/".repeat(2048));
    for (path, expected) in [
        (b"".as_slice(), PathError::Empty),
        (b"/etc/passwd", PathError::Absolute),
        (b"a/", PathError::TrailingSlash),
        (b"a//b", PathError::EmptyComponent),
        (b"../a", PathError::Dots),
        (b"a/../../b", PathError::Dots),
        (b"a/.", PathError::Dots),
        (b"a\0b", PathError::Nul),
        (&long, PathError::ComponentTooLong(256)),
        (&[&deep[..], b"x"].concat(), PathError::TooLong(4097)),
    ] {
        let error = Raw::files(&[path]).error();
        assert!(matches!(&error, TreeError::Path { why, .. } if *why == expected), "{error}");
        let built = TreeBuilder::new().directory(path, 0).expect_err("refused by the builder too");
        assert!(matches!(&built, TreeError::Path { why, .. } if *why == expected), "{built}");
    }
}

#[test]
fn orders_that_are_refused() {
    let text = str::to_owned;
    let order = TreeError::Order { path: text("a"), before: text("b") };
    assert_eq!(Raw::files(&[b"b", b"a"]).error(), order);
    let plain = TreeError::Order { path: text("a/b"), before: text("a-b") };
    assert_eq!(Raw::files(&[b"a-b", b"a/b"]).error(), plain, "plain order of bytes is another one");
    assert_eq!(Raw::files(&[b"a", b"a"]).error(), TreeError::Duplicate(text("a")));
    let parent = TreeError::Parent { path: text("a/b/c"), parent: text("a") };
    assert_eq!(Raw::files(&[b"a", b"a/b/c"]).error(), parent);
    let link = Raw::files(&[b"a", b"a/b/c"]).with(|raw| {
        let link = &mut raw.entries[0];
        (link.flags, link.mode, link.size) = (1, 0o777, 9);
    });
    assert_eq!(link.error(), parent, "nothing is written through a link");
    let directory = Raw::files(&[b"a", b"a/b/c"]).with(|raw| {
        let directory = &mut raw.entries[0];
        (directory.flags, directory.mode, directory.size, directory.hash) = (2, 0o755, 0, [0; 32]);
    });
    assert_eq!(directory.error(), parent, "a directory that is not empty has no entry");
}

#[test]
fn records_that_are_refused() {
    let with =
        |change: fn(&mut RawEntry)| Raw::files(&[b"f"]).with(|raw| change(&mut raw.entries[0])).error();
    let path = || "f".to_owned();
    for flags in [3, 4, 0x8000] {
        let raw = Raw::files(&[b"f"]).with(|raw| raw.entries[0].flags = flags);
        assert_eq!(raw.error(), TreeError::Flags { path: path(), flags });
    }
    for mode in [0, 0o600, 0o664, 0o777, 0o4755, 0o2755, 0o1755, 0o100644, u32::MAX] {
        let raw = Raw::files(&[b"f"]).with(|raw| raw.entries[0].mode = mode);
        assert_eq!(raw.error(), TreeError::Mode { path: path(), mode });
    }
    assert_eq!(with(|entry| entry.pad = 1), TreeError::EntryPadding(path()));
    assert_eq!(
        with(|entry| entry.size = MAX_BLOB_BYTES + 1),
        TreeError::Size { path: path(), size_bytes: MAX_BLOB_BYTES + 1 }
    );
    for size_bytes in [0, 4096, 1 << 40] {
        let raw = Raw::files(&[b"f"]).with(|raw| {
            let entry = &mut raw.entries[0];
            (entry.flags, entry.mode, entry.size) = (1, 0o777, size_bytes);
        });
        assert_eq!(raw.error(), TreeError::LinkTarget { path: path(), size_bytes });
    }
    let content = TreeError::DirectoryContent(path());
    assert_eq!(with(|entry| (entry.flags, entry.mode, entry.size) = (2, 0o755, 0)), content, "a hash");
    assert_eq!(with(|entry| (entry.flags, entry.mode, entry.hash) = (2, 0o755, [0; 32])), content, "a size");
    let two_sizes = Raw::files(&[b"a", b"b"]).with(|raw| {
        raw.entries[1].hash = raw.entries[0].hash;
        raw.entries[1].size += 1;
    });
    assert_eq!(
        two_sizes.error(),
        TreeError::SizeConflict { path: "b".into(), blob: BlobId::of(b"a"), size_bytes: (1 << 20) + 1 }
    );
}

#[test]
fn frames_that_are_refused() {
    let good = Raw::files(&[b"a", b"bc"]).encode();
    let error = |at: usize, bytes: &[u8]| {
        let mut bent = good.clone();
        bent[at..at + bytes.len()].copy_from_slice(bytes);
        Tree::parse(bent).expect_err("refused")
    };
    let found = good.len() as u64;
    assert_eq!(Tree::parse(b"".as_slice()).expect_err("empty"), TreeError::Magic);
    assert_eq!(Tree::parse(&good[..31]).expect_err("short"), TreeError::Magic);
    assert_eq!(error(0, b"X"), TreeError::Magic);
    assert_eq!(error(3, b"2"), TreeError::Version(b'2'));
    assert_eq!(error(4, &[0xff; 4]), TreeError::TooManyEntries(u64::from(u32::MAX)));
    let most = (MAX_ENTRIES as u32).to_le_bytes();
    assert!(matches!(error(4, &most), TreeError::Length { found: f, .. } if f == found));
    assert!(matches!(error(8, &[0xff; 4]), TreeError::Length { .. }));
    assert_eq!(error(12, &[0xff; 4]), TreeError::TooManyNames(u64::from(u32::MAX)));
    assert_eq!(error(16, &[1]), TreeError::Total { stated: (2 << 20) + 1 });
    assert_eq!(error(31, &[1]), TreeError::Padding(31));
    let offsets = 32 + 2 * 56;
    assert_eq!(error(offsets, &[1]), TreeError::NameOffset(0));
    assert_eq!(error(offsets + 4, &[5]), TreeError::NameOffset(1), "past the names");
    assert_eq!(error(offsets + 4, &[0xff; 4]), TreeError::NameOffset(1));
    assert_eq!(error(offsets + 8, &[2]), TreeError::NameOffset(2), "not the end of the names");
    assert_eq!(error(good.len() - 1, &[7]), TreeError::Padding(found - 1));
    assert_eq!(
        Tree::parse([good.as_slice(), &[0; 8]].concat()).expect_err("longer"),
        TreeError::Length { expected: found, found: found + 8 }
    );
    let sum =
        Raw::files(&[b"a", b"b"]).with(|raw| raw.entries.iter_mut().for_each(|entry| entry.size = u64::MAX));
    assert!(matches!(sum.error(), TreeError::Size { .. }));
}

#[test]
fn pack_lists_that_are_refused() {
    let small = Raw::files(&[b"a", b"b"]).with(|raw| {
        raw.entries[0].size = 5;
        raw.entries[1].size = 7;
        raw.packs = vec![Named { blob: BlobId::of(b"pack"), size_bytes: 5 + 7 + 2 * 36 + 8 }];
    });
    Tree::parse(small.encode()).expect("good");
    let pack = small.packs[0];
    let other = Named { blob: BlobId::of(b"other"), ..pack };
    for packs in [vec![], vec![pack, other], vec![pack, pack]] {
        let found = packs.len() as u64;
        let raw = small.clone().with(|raw| raw.packs = packs);
        assert_eq!(raw.error(), TreeError::PackCount { expected: 1, found });
    }
    let raw = small.clone().with(|raw| raw.packs[0].size_bytes += 1);
    assert_eq!(raw.error(), TreeError::PackSize { index: 0, expected: 92, found: 93 });

    // Ids that end in ones end no pack before 96 MiB: 800 of them make two.
    let paths: Vec<Vec<u8>> = (0..800).map(|index| format!("{index:03}").into_bytes()).collect();
    let many = Raw::files(&paths.iter().map(Vec::as_slice).collect::<Vec<_>>()).with(|raw| {
        for entry in &mut raw.entries {
            entry.size = 128 << 10;
            entry.hash[24..].fill(0xff);
        }
        let size = |count: u64| count * ((128 << 10) + 36) + 8;
        raw.packs = vec![
            Named { blob: BlobId::of(b"1"), size_bytes: size(767) },
            Named { blob: BlobId::of(b"2"), size_bytes: size(33) },
        ];
    });
    Tree::parse(many.encode()).expect("good");
    let twice = many.with(|raw| raw.packs[1].blob = raw.packs[0].blob);
    assert_eq!(twice.error(), TreeError::PackTwice(BlobId::of(b"1")));
}

#[test]
fn everything_can_be_found() {
    let directory = sample::everything();
    let (packs, tree) = sample::tree(&directory);
    let tree = tree.expect("a good directory");
    assert!(tree.iter().is_sorted_by(|a, b| path_order(a.path, b.path).is_lt()));
    for (path, (kind, content, mtime_ns)) in &directory {
        let entry = tree.find(path).expect("an entry");
        assert_eq!((entry.path, entry.kind, entry.mtime_ns), (path.as_slice(), *kind, *mtime_ns));
        if entry.has_content() {
            assert_eq!(Named { blob: entry.blob, size_bytes: entry.size_bytes }, sample::name(content));
        }
    }
    for absent in [b"".as_slice(), b"bin", b"copy", b"copy/of", b"zzz", b"READM", b"bin/", b"bin/run/x"] {
        assert!(tree.find(absent).is_none());
    }
    assert_eq!(tree.under(b"bin").len(), 1);
    assert_eq!(tree.under(b"copy/of").len(), 1);
    assert_eq!(tree.under(b"").len(), directory.len());
    assert!(tree.under(b"README").is_empty() && tree.under(b"nothing").is_empty());
    let large: Vec<_> =
        [b"large".as_slice(), b"limit+1"].map(|path| sample::name(&directory[path].1)).to_vec();
    assert_eq!(tree.blobs().collect::<Vec<_>>(), large);
    for at in tree.packed() {
        let start = at.offset_bytes as usize;
        let content = &packs[at.pack][start..start + at.entry.size_bytes as usize];
        assert_eq!(BlobId::of(content), at.entry.blob);
    }
    assert_eq!(
        tree.total_bytes(),
        directory.values().map(|(_, content, _)| content.len() as u64).sum::<u64>()
    );
}

#[test]
fn directories_with_entries_are_implied() {
    let mut builder = TreeBuilder::new();
    for path in [b"a".as_slice(), b"a/b", b"a/b/c", b"d"] {
        builder.directory(path, 5).expect("a good path");
    }
    let tree = builder.finish(&[]).expect("a good directory");
    assert_eq!(tree.iter().map(|entry| entry.path).collect::<Vec<_>>(), [b"a/b/c".as_slice(), b"d"]);

    let mut twice = TreeBuilder::new();
    twice.directory(b"a", 0).expect("a good path");
    twice.directory(b"a", 0).expect("a good path");
    assert_eq!(twice.finish(&[]).expect_err("twice"), TreeError::Duplicate("a".into()));
    let mut under_file = TreeBuilder::new();
    under_file.content(b"a", EntryKind::File, sample::name(&[1; 200_000]), 0).expect("a good path");
    under_file.directory(b"a/b", 0).expect("a good path");
    let parent = TreeError::Parent { path: "a/b".into(), parent: "a".into() };
    assert_eq!(under_file.finish(&[]).expect_err("under a file"), parent);
}

fn directories() -> impl Strategy<Value = Directory> {
    let component = prop::sample::select(vec![
        b"a".as_slice(),
        b"b",
        b"a-",
        b"a.b",
        b"..c",
        b"\xff",
        b"\xc3\xa9",
        b"new\nline",
        b"\x01",
        b"A b",
    ]);
    let path = prop::collection::vec(component, 1..5).prop_map(|parts| parts.join(&b'/'));
    let content = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..9),
        1 => Just(Vec::new()),
        1 => (any::<u8>(), 131_070usize..131_080).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let entry =
        (0u8..5, content, prop_oneof![4 => Just(0), 1 => any::<u64>()]).prop_map(|(kind, content, mtime)| {
            match kind {
                0 => (EntryKind::Directory, Vec::new(), mtime),
                1 if !content.is_empty() && content.len() <= 4095 => (EntryKind::Symlink, content, mtime),
                2 => (EntryKind::Executable, content, mtime),
                _ => (EntryKind::File, content, mtime),
            }
        });
    prop::collection::btree_map(path, entry, 0..40).prop_map(|mut directory| {
        // A path under a file cannot be; a directory with entries is implied.
        let all: Vec<_> = directory.keys().cloned().collect();
        directory.retain(|path, _| !all.iter().any(|other| is_under(other, path)));
        directory
    })
}

proptest! {
    #[test]
    fn what_is_built_can_be_read(directory in directories()) {
        let (packs, tree) = sample::tree(&directory);
        let tree = tree.expect("a good directory");
        prop_assert_eq!(tree.len(), directory.len());
        for entry in tree.iter() {
            let (kind, content, mtime_ns) = &directory[entry.path];
            prop_assert_eq!((entry.kind, entry.mtime_ns), (*kind, *mtime_ns));
            prop_assert_eq!(entry.size_bytes, content.len() as u64);
            prop_assert_eq!(tree.find(entry.path), Some(entry));
        }
        for path in directory.keys().flat_map(|path| [path.as_slice(), path.split(|b| *b == b'/').next().expect("one")]) {
            let listed: Vec<_> = tree.under(path).map(|index| tree.entry(index).path).collect();
            let mut expected: Vec<_> = directory.keys().filter(|other| is_under(other, path)).collect();
            expected.sort_by(|a, b| path_order(a, b));
            prop_assert_eq!(listed, expected);
        }
        for at in tree.packed() {
            let start = at.offset_bytes as usize;
            let content = &packs[at.pack][start..start + at.entry.size_bytes as usize];
            prop_assert_eq!(content, directory[at.entry.path].1.as_slice());
        }
        let rebuilt = rebuild(&tree);
        prop_assert_eq!(rebuilt.as_bytes(), tree.as_bytes());
        prop_assert_eq!(rebuilt.id(), tree.id());
    }

    /// A bent table is refused, or is the one table of another directory.
    #[test]
    fn bent_trees(bends in bends(1200), cut in 0usize..3, swap in any::<bool>()) {
        let (_, tree) = sample::tree(&sample::everything());
        let mut bent = tree.expect("a good directory").into_bytes();
        bend(&mut bent, &bends);
        if swap {
            let (first, second) = bent.split_at_mut(32 + 56);
            first[32..].swap_with_slice(&mut second[..56]);
        }
        bent.truncate(bent.len() - cut);
        if let Ok(tree) = Tree::parse(bent.as_slice()) {
            prop_assert_eq!(rebuild(&tree).into_bytes(), bent);
        }
    }

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400), entries in 0u8..4) {
        let mut table = b"VTR1".to_vec();
        table.extend([entries, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
        table.extend(bytes);
        if let Ok(tree) = Tree::parse(table.as_slice()) {
            prop_assert_eq!(rebuild(&tree).into_bytes(), table);
        }
    }
}
