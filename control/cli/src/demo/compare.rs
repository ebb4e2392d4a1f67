//! Holds a directory against its source: names, kinds, permissions to run, targets of links, and every byte.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;

use crate::interrupt::Interrupt;

/// The most differences that are named.
const NAMED: usize = 20;

/// What was found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Regular files compared.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many entries differ.
    pub mismatches: u64,
    /// The first of them, in words.
    pub named: Vec<String>,
}

impl Comparison {
    fn differs(&mut self, path: &Path, how: &str) {
        self.mismatches += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}: {how}", path.display()));
        }
    }
}

/// Compares `copy` with `source`.
pub fn compare(source: &Path, copy: &Path, interrupt: &Interrupt) -> anyhow::Result<Comparison> {
    let mut found = Comparison::default();
    pair(source, copy, &mut found, interrupt)?;
    Ok(found)
}

fn pair(source: &Path, copy: &Path, found: &mut Comparison, interrupt: &Interrupt) -> anyhow::Result<()> {
    interrupt.check()?;
    let of_source = std::fs::symlink_metadata(source).with_context(|| source.display().to_string())?;
    let Ok(of_copy) = std::fs::symlink_metadata(copy) else {
        found.differs(copy, "it is missing");
        return Ok(());
    };
    if of_source.file_type() != of_copy.file_type() {
        found.differs(copy, "it is of another kind");
    } else if of_source.is_dir() {
        let (left, right) = (names(source)?, names(copy)?);
        for name in right.keys().filter(|name| !left.contains_key(*name)) {
            found.differs(&copy.join(name), "the source does not have it");
        }
        for name in left.keys() {
            pair(&source.join(name), &copy.join(name), found, interrupt)?;
        }
    } else if of_source.is_symlink() {
        if std::fs::read_link(source)? != std::fs::read_link(copy)? {
            found.differs(copy, "the link points elsewhere");
        }
    } else if of_source.is_file() {
        found.files += 1;
        found.bytes += of_source.len();
        if executable(&of_source) != executable(&of_copy) {
            found.differs(copy, "its permission to run differs");
        } else if of_source.len() != of_copy.len() || !same(source, copy)? {
            found.differs(copy, "its bytes differ");
        }
    }
    Ok(())
}

fn names(dir: &Path) -> anyhow::Result<BTreeMap<OsString, ()>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    entries.map(|entry| Ok((entry?.file_name(), ()))).collect()
}

fn executable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o100 != 0
}

fn same(left: &Path, right: &Path) -> std::io::Result<bool> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let read = left.read(&mut a)?;
        if read == 0 {
            return Ok(right.read(&mut b)? == 0);
        }
        if right.read_exact(&mut b[..read]).is_err() || a[..read] != b[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_found() {
        let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [left.path(), right.path()] {
            std::fs::create_dir(dir.join("d")).unwrap();
            std::fs::write(dir.join("d/same"), b"same").unwrap();
            std::fs::write(dir.join("bytes"), b"one").unwrap();
            std::fs::write(dir.join("mode"), b"m").unwrap();
            std::os::unix::fs::symlink("x", dir.join("kind")).unwrap();
            std::os::unix::fs::symlink("x", dir.join("link")).unwrap();
        }
        let compared = compare(left.path(), right.path(), &Interrupt::never()).unwrap();
        assert_eq!((compared.mismatches, compared.files, compared.bytes), (0, 3, 8));

        let at = |name: &str| right.path().join(name);
        std::fs::write(at("bytes"), b"two").unwrap();
        std::fs::set_permissions(at("mode"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::remove_file(at("kind")).unwrap();
        std::fs::write(at("kind"), b"x").unwrap();
        std::fs::remove_file(at("link")).unwrap();
        std::os::unix::fs::symlink("y", at("link")).unwrap();
        std::fs::remove_file(at("d/same")).unwrap();
        std::fs::write(at("more"), b"").unwrap();
        let compared = compare(left.path(), right.path(), &Interrupt::never()).unwrap();
        assert_eq!(compared.mismatches, 6, "{:?}", compared.named);
    }
}
