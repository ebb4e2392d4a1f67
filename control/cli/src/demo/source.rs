//! The directory that the demo moves: the user's, the Rust toolchain's libraries, or one made up.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::interrupt::Interrupt;
use crate::output::Output;

/// The most of the toolchain that is moved.
const TOOLCHAIN_BYTES: u64 = 2_000_000_000;
/// Large files of a made-up tree.
const MADE_LARGE: [u64; 4] = [1 << 20, (1 << 20) + 1, 48 << 20, 200 << 20];
/// Small files of a made-up tree.
const MADE_SMALL: u64 = 2000;

/// A directory to move.
#[derive(Debug)]
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, for the user.
    pub what: String,
}

/// What a directory holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Size {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Source {
    /// The user's directory, or the toolchain's libraries, or one that is made in `scratch`.
    pub fn choose(
        given: Option<&Path>,
        scratch: &Path,
        output: &Output,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        if let Some(path) = given {
            let path = path.canonicalize().with_context(|| format!("--path {}", path.display()))?;
            return Ok(Self { what: path.display().to_string(), path });
        }
        if let Some(path) = toolchain() {
            let size = measure(&path)?;
            if size.bytes <= TOOLCHAIN_BYTES {
                return Ok(Self { what: path.display().to_string(), path });
            }
            let part = scratch.join("source");
            output.note(format!("{} is larger than 2 GB: its first 2 GB are moved", path.display()));
            copy_part(&path, &part, &mut { TOOLCHAIN_BYTES }, interrupt)?;
            return Ok(Self { what: format!("2 GB of {}", path.display()), path: part });
        }
        let made = scratch.join("source");
        make(&made, interrupt).context("cannot make a directory to move")?;
        Ok(Self { what: "a made-up directory (there is no Rust toolchain)".into(), path: made })
    }
}

/// `lib/rustlib` of the installed toolchain.
fn toolchain() -> Option<PathBuf> {
    let printed = Command::new("rustc").args(["--print", "sysroot"]).stderr(Stdio::null()).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(printed.stdout).ok()?.trim());
    let path = sysroot.join("lib/rustlib");
    (printed.status.success() && path.is_dir()).then_some(path)
}

/// Counts the regular files below `path`.
pub fn measure(path: &Path) -> anyhow::Result<Size> {
    let mut size = Size::default();
    if path.is_file() {
        return Ok(Size { files: 1, bytes: path.metadata()?.len() });
    }
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let metadata = entry.metadata()?; // of a link, the link itself
            if metadata.is_dir() {
                open.push(entry.path());
            } else if metadata.is_file() {
                size.files += 1;
                size.bytes += metadata.len();
            }
        }
    }
    Ok(size)
}

/// Copies files (as hard links where that is possible) in order of names until `left` bytes are used up.
fn copy_part(from: &Path, to: &Path, left: &mut u64, interrupt: &Interrupt) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    let mut entries: Vec<_> = std::fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        interrupt.check()?;
        let (metadata, target) = (entry.metadata()?, to.join(entry.file_name()));
        if metadata.is_dir() {
            copy_part(&entry.path(), &target, left, interrupt)?;
        } else if metadata.is_symlink() {
            symlink(std::fs::read_link(entry.path())?, target)?;
        } else if metadata.is_file() && metadata.len() <= *left {
            *left -= metadata.len();
            if std::fs::hard_link(entry.path(), &target).is_err() {
                std::fs::copy(entry.path(), target)?;
            }
        }
    }
    Ok(())
}

/// Makes a directory with large and small files, an executable, a link and an empty directory.
fn make(path: &Path, interrupt: &Interrupt) -> anyhow::Result<()> {
    std::fs::create_dir_all(path.join("empty"))?;
    for (index, bytes) in MADE_LARGE.iter().enumerate() {
        interrupt.check()?;
        fill(&path.join(format!("large-{index}")), *bytes, index as u64)?;
    }
    for index in 0..MADE_SMALL {
        let dir = path.join(format!("small/{:02}", index % 40));
        std::fs::create_dir_all(&dir)?;
        fill(&dir.join(format!("file-{index}")), index * 17 % 65_536, 1000 + index)?;
    }
    std::fs::write(path.join("run.sh"), "#!/bin/sh\necho velo\n")?;
    std::fs::set_permissions(path.join("run.sh"), std::fs::Permissions::from_mode(0o755))?;
    symlink("large-0", path.join("link"))?;
    Ok(())
}

/// Writes `bytes` bytes that do not compress, from a seed.
fn fill(path: &Path, bytes: u64, seed: u64) -> std::io::Result<()> {
    let mut stream = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut file = BufWriter::new(File::create(path)?);
    let mut buffer = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let some = left.min(buffer.len() as u64) as usize;
        stream.fill(&mut buffer[..some]);
        file.write_all(&buffer[..some])?;
        left -= some as u64;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_no_more_bytes_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a", 600), ("b", 500), ("c", 400)] {
            fill(&dir.path().join(name), bytes, bytes).unwrap();
        }
        let part = tempfile::tempdir().unwrap();
        copy_part(dir.path(), part.path(), &mut 1000, &Interrupt::never()).unwrap();
        let size = measure(part.path()).unwrap();
        assert_eq!((size.files, size.bytes), (2, 1000));
        assert!(!part.path().join("b").exists());
    }
}
