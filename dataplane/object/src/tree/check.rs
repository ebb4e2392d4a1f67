//! The one way from bytes to a [`Tree`]: every rule of the format, in the order in which a reader can rely on them.

use super::path::{check_path, is_under, path_order, path_text};
use super::{
    ENTRY_BYTES, EntryKind, HEADER_BYTES, MAGIC, MAX_ENTRIES, MAX_LINK_BYTES, MAX_NAMES_BYTES, PACK_BYTES,
    Tree, TreeError, VERSION, field, header, u16_at, u32_at, u64_at,
};
use crate::outboard::MAX_BLOB_BYTES;
use crate::pack::{Layout, PACKED_FILE_BYTES};

pub(super) fn parse<B: AsRef<[u8]>>(bytes: B) -> Result<Tree<B>, TreeError> {
    let mut tree = frame(bytes)?;
    check_offsets(&tree)?;
    check_order(&tree)?;
    let mut sum: Option<u64> = Some(0);
    for index in 0..tree.entries {
        check_record(&tree, index)?;
        sum = sum.and_then(|sum| sum.checked_add(tree.entry(index).size_bytes));
    }
    if sum != Some(tree.total_bytes) {
        return Err(TreeError::Total { stated: tree.total_bytes });
    }
    tree.firsts = first_contents(&tree)?;
    check_packs(&tree)?;
    Ok(tree)
}

/// The header, and the length that it asks for.
fn frame<B: AsRef<[u8]>>(bytes: B) -> Result<Tree<B>, TreeError> {
    let all = bytes.as_ref();
    if all.len() < HEADER_BYTES || all[..3] != MAGIC {
        return Err(TreeError::Magic);
    }
    if all[3] != VERSION {
        return Err(TreeError::Version(all[3]));
    }
    check_zero(all, header::ZERO.start, header::ZERO.end)?;
    let entries = u64::from(u32_at(all, header::ENTRIES));
    let packs = u64::from(u32_at(all, header::PACKS));
    let names = u64::from(u32_at(all, header::NAMES));
    if entries > MAX_ENTRIES {
        return Err(TreeError::TooManyEntries(entries));
    }
    if names > MAX_NAMES_BYTES {
        return Err(TreeError::TooManyNames(names));
    }
    let offsets_at = HEADER_BYTES as u64 + ENTRY_BYTES as u64 * entries;
    let names_at = offsets_at + 4 * (entries + 1);
    let names_end = names_at + names;
    let packs_at = names_end.next_multiple_of(8);
    let expected = packs_at + PACK_BYTES as u64 * packs;
    let found = all.len() as u64;
    if found != expected {
        return Err(TreeError::Length { expected, found });
    }
    check_zero(all, names_end as usize, packs_at as usize)?;
    let total_bytes = u64_at(all, header::TOTAL);
    Ok(Tree {
        bytes,
        entries: entries as usize,
        packs: packs as usize,
        offsets_at: offsets_at as usize,
        names_at: names_at as usize,
        packs_at: packs_at as usize,
        total_bytes,
        firsts: Vec::new(),
    })
}

fn check_zero(bytes: &[u8], start: usize, end: usize) -> Result<(), TreeError> {
    match bytes[start..end].iter().position(|&byte| byte != 0) {
        Some(at) => Err(TreeError::Padding((start + at) as u64)),
        None => Ok(()),
    }
}

/// After this, [`Tree::path`] cannot fail.
fn check_offsets<B: AsRef<[u8]>>(tree: &Tree<B>) -> Result<(), TreeError> {
    let bytes = tree.as_bytes();
    let names = u32_at(bytes, header::NAMES);
    let mut last = 0;
    for (index, offset) in bytes[tree.offsets_at..tree.names_at].chunks_exact(4).enumerate() {
        let offset = u32_at(offset, 0..4);
        let right = match index {
            0 => offset == 0,
            _ => offset >= last && offset <= names,
        };
        if !right || (index == tree.entries && offset != names) {
            return Err(TreeError::NameOffset(index));
        }
        last = offset;
    }
    Ok(())
}

/// Every path may stand in a tree, they rise, and none lies under another.
fn check_order<B: AsRef<[u8]>>(tree: &Tree<B>) -> Result<(), TreeError> {
    let mut before: Option<&[u8]> = None;
    for index in 0..tree.entries {
        let path = tree.path(index);
        check_path(path).map_err(|why| TreeError::path(path, why))?;
        if let Some(before) = before {
            check_follows(before, path)?;
        }
        before = Some(path);
    }
    Ok(())
}

/// What lies under a path follows it at once, so looking at neighbours is enough.
fn check_follows(before: &[u8], path: &[u8]) -> Result<(), TreeError> {
    match path_order(before, path) {
        std::cmp::Ordering::Equal => Err(TreeError::Duplicate(path_text(path))),
        std::cmp::Ordering::Greater => {
            Err(TreeError::Order { path: path_text(path), before: path_text(before) })
        }
        std::cmp::Ordering::Less if is_under(path, before) => {
            Err(TreeError::Parent { path: path_text(path), parent: path_text(before) })
        }
        std::cmp::Ordering::Less => Ok(()),
    }
}

fn check_record<B: AsRef<[u8]>>(tree: &Tree<B>, index: usize) -> Result<(), TreeError> {
    let record = tree.record(index);
    let path = || path_text(tree.path(index));
    let (mode, flags) = (u32_at(record, field::MODE), u16_at(record, field::FLAGS));
    if flags > EntryKind::Directory.flags() {
        return Err(TreeError::Flags { path: path(), flags });
    }
    if mode != EntryKind::of(mode, flags).mode() {
        return Err(TreeError::Mode { path: path(), mode });
    }
    if record[field::PAD] != [0; 2] {
        return Err(TreeError::EntryPadding(path()));
    }
    let entry = tree.entry(index);
    let size_bytes = entry.size_bytes;
    match entry.kind {
        EntryKind::File | EntryKind::Executable if size_bytes > MAX_BLOB_BYTES => {
            Err(TreeError::Size { path: path(), size_bytes })
        }
        EntryKind::Symlink if size_bytes == 0 || size_bytes > MAX_LINK_BYTES => {
            Err(TreeError::LinkTarget { path: path(), size_bytes })
        }
        EntryKind::Directory if size_bytes != 0 || record[field::HASH] != [0; 32] => {
            Err(TreeError::DirectoryContent(path()))
        }
        _ => Ok(()),
    }
}

/// Marks the first entry of every content. Sorts instead of hashing into a table: the hashes are the sender's choice.
fn first_contents<B: AsRef<[u8]>>(tree: &Tree<B>) -> Result<Vec<u64>, TreeError> {
    let hash = |index: u32| &tree.record(index as usize)[field::HASH];
    let mut order: Vec<(u64, u32)> = (0..tree.entries as u32)
        .filter(|&index| tree.entry(index as usize).has_content())
        .map(|index| (u64_at(hash(index), 0..8), index))
        .collect();
    order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| hash(a.1).cmp(hash(b.1))).then(a.1.cmp(&b.1)));
    let mut firsts = vec![0; tree.entries.div_ceil(64)];
    for same in order.chunk_by(|a, b| a.0 == b.0 && hash(a.1) == hash(b.1)) {
        let first = same[0].1 as usize;
        firsts[first / 64] |= 1 << (first % 64);
        let size_bytes = tree.entry(first).size_bytes;
        for &(_, index) in &same[1..] {
            let entry = tree.entry(index as usize);
            if entry.size_bytes != size_bytes {
                let (blob, size_bytes) = (entry.blob, entry.size_bytes);
                return Err(TreeError::SizeConflict { path: path_text(entry.path), blob, size_bytes });
            }
        }
    }
    Ok(firsts)
}

/// The packs have the number and the sizes that the small contents make.
fn check_packs<B: AsRef<[u8]>>(tree: &Tree<B>) -> Result<(), TreeError> {
    let mut layout = Layout::default();
    for entry in tree.first_contents().filter(|entry| entry.size_bytes <= PACKED_FILE_BYTES) {
        layout.place(&entry.blob, entry.size_bytes);
    }
    let expected = layout.finish();
    if expected.len() != tree.packs {
        return Err(TreeError::PackCount { expected: expected.len() as u64, found: tree.packs as u64 });
    }
    for (index, (pack, &expected)) in tree.packs().zip(&expected).enumerate() {
        if pack.size_bytes != expected {
            return Err(TreeError::PackSize { index, expected, found: pack.size_bytes });
        }
    }
    let mut ids: Vec<_> = tree.packs().map(|pack| pack.blob).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(TreeError::PackTwice(pair[0])),
        None => Ok(()),
    }
}
