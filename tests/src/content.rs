//! Content for tests: made from a seed, and compared byte for byte.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};

/// Writes `bytes` incompressible bytes from `seed` to `path`.
pub fn random_file(path: &Path, seed: u64, bytes: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut file = fs::File::create(path).expect("a new file");
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(buffer.len() as u64) as usize;
        random.fill_bytes(&mut buffer[..part]);
        file.write_all(&buffer[..part]).expect("room on the disk");
        left -= part as u64;
    }
}

/// `count` files of `bytes` each in subdirectories of 256.
pub fn many_files(dir: &Path, seed: u64, count: usize, bytes: usize) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut buffer = vec![0; bytes];
    for index in 0..count {
        let parent = dir.join(format!("{:03}", index / 256));
        if index % 256 == 0 {
            fs::create_dir_all(&parent).expect("a directory");
        }
        random.fill_bytes(&mut buffer);
        fs::write(parent.join(format!("file-{index}")), &buffer).expect("a small file");
    }
}

/// What a directory holds: relative path to (kind and mode, content or target).
pub fn listing(dir: &Path) -> BTreeMap<OsString, (char, u32, u64)> {
    let mut found = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        for entry in fs::read_dir(dir.join(&relative)).expect("a readable directory") {
            let entry = entry.expect("a readable entry");
            let path = relative.join(entry.file_name());
            let meta = fs::symlink_metadata(entry.path()).expect("metadata");
            let mode = meta.permissions().mode();
            let kind = if meta.is_dir() {
                stack.push(path.clone());
                'd'
            } else if meta.is_symlink() {
                'l'
            } else {
                'f'
            };
            let executable = if kind == 'f' { u32::from(mode & 0o111 != 0) } else { 0 };
            let size = if kind == 'd' { 0 } else { meta.size() };
            found.insert(path.into_os_string(), (kind, executable, size));
        }
    }
    found
}

/// Panics unless both directories hold the same names, kinds, executable bits, link targets and bytes.
pub fn assert_same(left: &Path, right: &Path) {
    let (found_left, found_right) = (listing(left), listing(right));
    for (path, what) in &found_left {
        assert_eq!(
            Some(what),
            found_right.get(path),
            "{path:?} in {} and {}",
            left.display(),
            right.display()
        );
    }
    assert_eq!(found_left.len(), found_right.len(), "{} has more entries", right.display());
    for (path, (kind, ..)) in &found_left {
        let (left, right) = (left.join(path), right.join(path));
        match kind {
            'l' => assert_eq!(fs::read_link(&left).ok(), fs::read_link(&right).ok(), "target of {path:?}"),
            'f' => assert!(same_file(&left, &right), "{path:?} differs"),
            _ => {}
        }
    }
}

/// Whether two files have the same bytes.
pub fn same_file(left: &Path, right: &Path) -> bool {
    let (Ok(mut left), Ok(mut right)) = (fs::File::open(left), fs::File::open(right)) else { return false };
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let (x, y) = (fill(&mut left, &mut a), fill(&mut right, &mut b));
        if x != y || a[..x] != b[..y] {
            return false;
        }
        if x == 0 {
            return true;
        }
    }
}

fn fill(file: &mut fs::File, buffer: &mut [u8]) -> usize {
    let mut at = 0;
    while at < buffer.len() {
        match file.read(&mut buffer[at..]).expect("a readable file") {
            0 => break,
            n => at += n,
        }
    }
    at
}
