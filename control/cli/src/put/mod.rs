//! Puts a file or a directory into the store of this node: this process opens the files with its own rights, velod
//! reads, hashes and keeps them.

mod walk;

use std::fs::{File, Metadata};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::FileType;
use velo_object::{EntryKind, Named, ObjectId, ObjectKind, TreeBuilder};
use velo_socket::{Client, Ingested, PutId};

use crate::interrupt::Interrupt;
use crate::progress::Progress;
pub use walk::mtime_ns;
use walk::{Found, Kind, Root, Stamp};

/// The most files in one message.
const BATCH_FILES: usize = velo_socket::MAX_DESCRIPTORS;
/// A message ends with the file that reaches this many bytes, so that progress is seen.
const BATCH_BYTES: u64 = 256 << 20;
/// How soon an interrupt is noticed.
const TICK: Duration = Duration::from_millis(50);
/// The most links in one message; their targets are at most 4 KiB each.
const BATCH_LINKS: usize = 1024;

/// What was put.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Its id.
    pub id: ObjectId,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of all contents.
    pub bytes: u64,
}

/// Puts what is at `path`. `mtimes`: modification times are part of the tree.
pub fn put(
    velod: &mut Client,
    path: &Path,
    mtimes: bool,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> anyhow::Result<Summary> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot put {}", path.display()))?;
    let handle = velod.handle().context("no descriptor is left")?;
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let result = std::thread::scope(|scope| {
        // velod answers when it has read the whole of a batch. The end of the connection ends the put at once: what is not committed goes.
        scope.spawn(move || {
            while end.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                if interrupt.is_set() {
                    let _ = handle.shutdown(Shutdown::Both);
                    return;
                }
            }
        });
        let _ended = ended;
        whole(velod, path, &metadata, mtimes, interrupt, progress)
    });
    if result.is_err() {
        interrupt.check()?;
    }
    result
}

fn whole(
    velod: &mut Client,
    path: &Path,
    metadata: &Metadata,
    mtimes: bool,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> anyhow::Result<Summary> {
    if metadata.is_dir() {
        return Directory {
            root: Root::open(path)?,
            put: velod.put_begin()?,
            velod,
            mtimes,
            interrupt,
            progress,
        }
        .run();
    }
    if !metadata.is_file() {
        bail!("{} is neither a file nor a directory, so it cannot be put", path.display());
    }
    put_file(velod, path, progress)
}

fn put_file(velod: &mut Client, path: &Path, progress: &mut Progress) -> anyhow::Result<Summary> {
    let context = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(context)?;
    let before = rustix::fs::fstat(&file).with_context(context)?;
    if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
        bail!("{} is not a file any more", path.display());
    }
    progress.total(before.st_size as u64);
    let put = velod.put_begin()?;
    let done = one(velod.put_files(put, &[file.as_fd()])?)?;
    let after = rustix::fs::fstat(&file).with_context(context)?;
    if Stamp::of(&before) != Stamp::of(&after) || done.size_bytes != before.st_size as u64 {
        bail!("{} changed while it was read: put it again when nobody writes to it", path.display());
    }
    progress.add(done.size_bytes);
    velod.put_packs(put)?;
    let id = ObjectId { kind: ObjectKind::Blob, blob: done.blob };
    velod.put_commit(put, id, None)?;
    Ok(Summary { id, files: 1, links: 0, bytes: done.size_bytes })
}

struct Directory<'a> {
    root: Root,
    put: PutId,
    velod: &'a mut Client,
    mtimes: bool,
    interrupt: &'a Interrupt,
    progress: &'a mut Progress,
}

impl Directory<'_> {
    fn run(mut self) -> anyhow::Result<Summary> {
        self.progress.phase("looking");
        let found = self.root.walk(self.interrupt)?;
        let bytes = found.iter().map(|f| f.size_bytes).sum();
        self.progress.phase("putting");
        self.progress.total(bytes);

        let mut builder = TreeBuilder::new();
        let mut summary = Summary {
            id: ObjectId { kind: ObjectKind::Tree, blob: velo_object::BlobId::of(b"") },
            files: 0,
            links: 0,
            bytes: 0,
        };
        let mut rest = found.as_slice();
        while let Some(first) = rest.first() {
            self.interrupt.check()?;
            let count = match first.kind {
                Kind::Directory => {
                    builder.directory(&first.path, self.mtime(first))?;
                    1
                }
                Kind::Symlink => self.links(rest, &mut builder, &mut summary)?,
                Kind::File { .. } => self.files(rest, &mut builder, &mut summary)?,
            };
            rest = &rest[count..];
        }
        let packs: Vec<Named> = self.velod.put_packs(self.put)?.into_iter().map(named).collect();
        let tree = builder.finish(&packs)?;
        summary.id.blob = tree.id();
        let table = velo_socket::memory_file("velo-tree", tree.as_bytes());
        let table = table.context("cannot hold the table of the tree in memory")?;
        self.progress.phase("committing");
        self.velod.put_commit(self.put, summary.id, Some(table.as_fd()))?;
        Ok(summary)
    }

    fn mtime(&self, found: &Found) -> u64 {
        if self.mtimes { found.mtime_ns } else { 0 }
    }

    /// Puts the run of links at the beginning of `rest`; gives how many entries that were.
    fn links(
        &mut self,
        rest: &[Found],
        builder: &mut TreeBuilder,
        summary: &mut Summary,
    ) -> anyhow::Result<usize> {
        let links: Vec<&Found> =
            rest.iter().take(BATCH_LINKS).take_while(|found| found.kind == Kind::Symlink).collect();
        let targets: Vec<Vec<u8>> =
            links.iter().map(|link| self.root.read_link(link)).collect::<anyhow::Result<_>>()?;
        let done = self.velod.put_small(self.put, targets)?;
        all(&done, links.len())?;
        for (link, done) in links.iter().zip(done) {
            builder.content(&link.path, EntryKind::Symlink, named(done), self.mtime(link))?;
            summary.links += 1;
            summary.bytes += done.size_bytes;
            self.progress.add(done.size_bytes);
        }
        Ok(links.len())
    }

    /// Puts files from the beginning of `rest` up to the next link; directories between them are only noted.
    fn files(
        &mut self,
        rest: &[Found],
        builder: &mut TreeBuilder,
        summary: &mut Summary,
    ) -> anyhow::Result<usize> {
        let mut files: Vec<(&Found, OwnedFd, Stamp)> = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        for found in rest {
            match found.kind {
                Kind::Symlink => break,
                Kind::Directory => builder.directory(&found.path, self.mtime(found))?,
                Kind::File { .. } => {
                    if files.len() == BATCH_FILES || bytes >= BATCH_BYTES {
                        break;
                    }
                    let (fd, stamp) = self.root.open_file(found)?;
                    bytes += found.size_bytes;
                    files.push((found, fd, stamp));
                }
            }
            count += 1;
        }
        let descriptors: Vec<_> = files.iter().map(|(_, fd, _)| fd.as_fd()).collect();
        let done = self.velod.put_files(self.put, &descriptors)?;
        all(&done, files.len())?;
        for ((found, fd, before), done) in files.iter().zip(done) {
            let after = rustix::fs::fstat(fd).with_context(|| self.root.show(&found.path))?;
            if Stamp::of(&after) != *before || done.size_bytes != found.size_bytes {
                return Err(self.root.changed(found));
            }
            let kind = match found.kind {
                Kind::File { executable: true } => EntryKind::Executable,
                _ => EntryKind::File,
            };
            builder.content(&found.path, kind, named(done), self.mtime(found))?;
            summary.files += 1;
            summary.bytes += done.size_bytes;
            self.progress.add(done.size_bytes);
        }
        Ok(count)
    }
}

/// velod answered for each content.
fn all(done: &[Ingested], asked: usize) -> anyhow::Result<()> {
    if done.len() != asked {
        bail!("velod ingested {} contents of {asked}: are velo and velod of one version?", done.len());
    }
    Ok(())
}

fn one(done: Vec<Ingested>) -> anyhow::Result<Ingested> {
    all(&done, 1)?;
    Ok(done[0])
}

fn named(done: Ingested) -> Named {
    Named { blob: done.blob, size_bytes: done.size_bytes }
}
