//! Gets a tree or a blob: resolves it, has it brought here, and writes what differs into the destination.

mod content;
mod copy;
mod destination;
mod direct;
mod fetch;
mod place;
mod plan;
mod write;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Serialize;
use velo_object::{BlobId, EntryKind, ObjectId, ObjectKind, Tree};
use velo_socket::Client;

use crate::exit::Failure;
use crate::job::Limits;
use crate::node::Node;
use crate::output;
use crate::progress::Progress;
use destination::Destination;
use fetch::Traffic;
use place::Placement;
use write::Written;

pub use content::table;
pub use fetch::fetch;

/// Left free whatever is written.
const SPARE_BYTES: u64 = 1 << 20;

/// How it is written.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Read-only hard links to the store instead of copies.
    pub link: bool,
    /// Keep nothing in the store.
    pub no_keep: bool,
    /// Begin even if it does not look as if it fits.
    pub force: bool,
}

/// What was got.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Always true: a failure has another answer.
    pub ok: bool,
    /// The id.
    pub id: String,
    /// Entries of the tree; 1 for a blob.
    pub entries: u64,
    /// Bytes of all contents.
    pub bytes: u64,
    /// Entries written.
    pub written_entries: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Entries that are hard links to the store.
    pub linked_entries: u64,
    /// Entries that stood there already.
    pub unchanged_entries: u64,
    /// What came over the network.
    #[serde(flatten)]
    pub traffic: Traffic,
    /// Until the content was here.
    pub transfer_seconds: f64,
    /// In all.
    pub seconds: f64,
}

/// One `velo get`.
pub struct Get<'a> {
    /// The node that gets it.
    pub node: &'a Node,
    /// How it is written.
    pub options: Options,
    /// What ends it early.
    pub limits: Limits<'a>,
    /// How far it is.
    pub progress: &'a mut Progress,
}

impl Get<'_> {
    /// Gets `what` into `dest`.
    pub fn run(mut self, what: &str, dest: &Path) -> anyhow::Result<Summary> {
        let begun = Instant::now();
        let mut velod = self.node.velod()?;
        let id = self.node.resolve(what)?;
        let mut summary = match id.kind {
            ObjectKind::Tree => self.tree(&mut velod, id, dest)?,
            ObjectKind::Blob => self.blob(&mut velod, id, dest)?,
        };
        summary.seconds = begun.elapsed().as_secs_f64();
        Ok(summary)
    }

    fn tree(&mut self, velod: &mut Client, id: ObjectId, dest: &Path) -> anyhow::Result<Summary> {
        let begun = Instant::now();
        let mut traffic = Traffic::default();
        let had_table = fetch::all_here(velod, [id.blob])?;
        if !had_table {
            self.progress.phase("finding");
            traffic = fetch(self.node, &[id], true, self.limits, self.progress)?;
        }
        let tree = table(velod, id)?;
        let mut destination = Destination::open(dest)?;
        self.progress.phase("comparing");
        let indexes = plan::differing(&tree, destination.fd(), self.limits.interrupt)?;
        let here = fetch::tree_is_here(velod, &tree)?;
        self.check_space(velod, &tree, &indexes, &destination)?;

        let (mut received, mut left) = (HashMap::new(), indexes.clone());
        let mut fetched = Vec::new();
        let mut direct_bytes = 0;
        if self.options.no_keep {
            let packs = absent(velod, tree.packs().map(|pack| pack.blob))?;
            // The origin gives large files, too, by way of the store.
            fetched = absent(velod, tree.blobs().map(|blob| blob.blob))?;
            fetched.extend(&packs);
            fetched.extend((!had_table).then_some(id.blob));
            self.progress.phase("getting");
            let packs: Vec<ObjectId> =
                packs.into_iter().map(|blob| ObjectId { kind: ObjectKind::Blob, blob }).collect();
            if !packs.is_empty() {
                let some = fetch(self.node, &packs, false, self.limits, self.progress)?;
                sum(&mut traffic, &some);
            }
            let (contents, rest, some) = direct::receive(
                self.node,
                velod,
                &tree,
                &indexes,
                &mut destination,
                self.limits,
                self.progress,
            )?;
            sum(&mut traffic, &some);
            (received, left) = (contents, rest);
            direct_bytes = bytes_of(&tree, &indexes) - bytes_of(&tree, &left);
        } else if !here {
            self.progress.phase("getting");
            let some = fetch(self.node, &[id], false, self.limits, self.progress)?;
            sum(&mut traffic, &some);
        }
        let transfer_seconds = begun.elapsed().as_secs_f64();

        self.progress.phase("writing");
        self.progress.total(bytes_of(&tree, &left));
        self.progress.set(0, "");
        let mut contents = content::Contents::of(velod, &tree, received);
        let written = write::write(
            &tree,
            &left,
            &mut contents,
            &mut destination,
            self.options.link,
            self.limits.interrupt,
            self.progress,
        )?;
        forget(velod, fetched);
        let direct = (indexes.len() - left.len()) as u64;
        Ok(Summary {
            ok: true,
            id: id.to_string(),
            entries: tree.len() as u64,
            bytes: tree.total_bytes(),
            written_entries: written.entries + direct,
            written_bytes: written.bytes + direct_bytes,
            linked_entries: written.linked,
            unchanged_entries: (tree.len() - indexes.len()) as u64,
            traffic,
            transfer_seconds,
            seconds: 0.0,
        })
    }

    /// Whether what is to be written fits the destination.
    fn check_space(
        &self,
        velod: &mut Client,
        tree: &Tree<Vec<u8>>,
        indexes: &[usize],
        destination: &Destination,
    ) -> anyhow::Result<()> {
        if self.options.force {
            return Ok(());
        }
        let free = destination.free_bytes()?;
        let upper = bytes_of(tree, indexes);
        if upper.saturating_add(SPARE_BYTES) <= free {
            return Ok(());
        }
        // It looks as if it did not fit: now it is worth asking what the large ones really take.
        let shared = self.options.link || destination.shares_extents_with(&self.node.paths().store_dir());
        let mut needed = SPARE_BYTES;
        for &index in indexes {
            let entry = tree.entry(index);
            if entry.is_packed() {
                needed = needed.saturating_add(entry.size_bytes);
            } else if entry.has_content() && !shared {
                let stat = velod.stat_one(entry.blob)?.filter(|stat| stat.complete);
                let stored = stat.map_or(entry.size_bytes, |stat| stat.stored_bytes.min(entry.size_bytes));
                needed = needed.saturating_add(stored);
            }
        }
        fits(needed, free, &destination.show(b""))
    }

    fn blob(&mut self, velod: &mut Client, id: ObjectId, dest: &Path) -> anyhow::Result<Summary> {
        let begun = Instant::now();
        if dest.is_dir() {
            let dest = dest.display();
            return Err(Failure::usage(format!("{dest} is a directory and {id} is a file: name the file")));
        }
        let name = dest.file_name().ok_or_else(|| Failure::usage("DEST must name a file"))?;
        let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut destination = Destination::open(parent.unwrap_or(Path::new(".")))?;
        if let Ok(true) = dest.symlink_metadata().map(|metadata| metadata.is_file()) {
            let file = std::fs::File::open(dest).with_context(|| dest.display().to_string())?;
            if plan::hash(file)? == id.blob {
                let bytes = dest.metadata()?.len();
                return Ok(summary_of_blob(id, bytes, Written::default(), Traffic::default(), begun));
            }
        }
        let dir = destination.directory(b"")?;
        let mut traffic = Traffic::default();
        if !fetch::all_here(velod, [id.blob])? {
            self.progress.phase("getting");
            if self.options.no_keep {
                let size = self.size_elsewhere(&id.blob)?.filter(|_| !self.options.force);
                if let Some(size) = size {
                    fits(
                        size.saturating_add(SPARE_BYTES),
                        destination.free_bytes()?,
                        &destination.show(b""),
                    )?;
                }
                let sinks = [direct::Sink::open(dir, name, EntryKind::File, id.blob, None, 0)?];
                traffic = direct::pull(self.node, velod, &sinks, self.limits, self.progress)?;
                let size = sinks[0].finish()?.size_bytes;
                // The origin gives it by way of the store.
                forget(velod, vec![id.blob]);
                let written = Written { entries: 1, linked: 0, bytes: size };
                return Ok(summary_of_blob(id, size, written, traffic, begun));
            }
            traffic = fetch(self.node, &[id], false, self.limits, self.progress)?;
        }
        let transfer_seconds = begun.elapsed().as_secs_f64();
        let content = content::open(velod, id.blob)?;
        let size = content.size_bytes;
        let stored = velod.stat_one(id.blob)?.map_or(size, |stat| stat.stored_bytes.min(size));
        let shared = self.options.link || destination.shares_extents_with(&self.node.paths().store_dir());
        if !shared && !self.options.force {
            fits(stored.saturating_add(SPARE_BYTES), destination.free_bytes()?, &destination.show(b""))?;
        }
        self.progress.phase("writing");
        self.progress.total(size);
        self.progress.set(0, "");
        let placement = Placement {
            dir,
            name: name.to_owned(),
            shown: dest.display().to_string(),
            kind: EntryKind::File,
            blob: id.blob,
            mtime_ns: 0,
            content,
            link: self.options.link,
        };
        let written = write::write_one(&placement, self.limits.interrupt, self.progress)?;
        Ok(Summary { transfer_seconds, ..summary_of_blob(id, size, written, traffic, begun) })
    }

    /// The least size of a blob that somebody who has it states: whether it fits can be guessed from it, and no more, for nobody
    /// has proven it.
    fn size_elsewhere(&self, blob: &BlobId) -> anyhow::Result<Option<u64>> {
        let id = blob.to_string();
        let found: Vec<velo_control::client::Holders> =
            self.node.control()?.get("/v1/where", &[("id", id.as_str())])?;
        let holders = found.iter().flat_map(|found| &found.holders).filter(|holder| holder.complete);
        Ok(holders.filter_map(|holder| holder.size_bytes).min())
    }
}

/// Those that are not here.
fn absent(velod: &mut Client, blobs: impl IntoIterator<Item = BlobId>) -> anyhow::Result<Vec<BlobId>> {
    let mut absent: Vec<BlobId> = blobs.into_iter().collect();
    let mut complete = Vec::with_capacity(absent.len());
    for some in absent.chunks(4096) {
        let stats = velod.stat(some.to_vec())?;
        complete.extend(stats.into_iter().map(|stat| stat.is_some_and(|stat| stat.complete)));
    }
    let mut complete = complete.into_iter();
    absent.retain(|_| !complete.next().unwrap_or(false));
    Ok(absent)
}

/// Gives up what `--no-keep` brought into the store for a while; what is pinned or in use by then stays. What fails here is only
/// cache, and goes when room is needed.
fn forget(velod: &mut Client, blobs: Vec<BlobId>) {
    for some in blobs.chunks(4096) {
        let _ = velod.forget(some.to_vec());
    }
}

fn summary_of_blob(id: ObjectId, bytes: u64, written: Written, traffic: Traffic, begun: Instant) -> Summary {
    Summary {
        ok: true,
        id: id.to_string(),
        entries: 1,
        bytes,
        written_entries: written.entries,
        written_bytes: written.bytes,
        linked_entries: written.linked,
        unchanged_entries: u64::from(written.entries + written.linked == 0),
        traffic,
        transfer_seconds: begun.elapsed().as_secs_f64(),
        seconds: 0.0,
    }
}

fn sum(all: &mut Traffic, some: &Traffic) {
    all.received_bytes += some.received_bytes;
    all.sources = all.sources.max(some.sources);
    all.bad_pieces += some.bad_pieces;
    all.duplicate_pieces += some.duplicate_pieces;
}

fn bytes_of(tree: &Tree<Vec<u8>>, indexes: &[usize]) -> u64 {
    indexes.iter().map(|&index| tree.entry(index).size_bytes).sum()
}

fn fits(needed: u64, free: u64, place: &str) -> anyhow::Result<()> {
    if needed > free {
        let (needed, free) = (output::bytes(needed), output::bytes(free));
        bail!("{place} has {free} free and {needed} are needed: make room, or begin anyway with --force");
    }
    Ok(())
}
