//! `--no-keep`: velod receives large blobs straight into temporary files of the destination and keeps nothing.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use anyhow::{Context, bail};
use rustix::fs::{FileType, OFlags};
use velo_control::client::{Holders, SourcesReply, SourcesRequest};
use velo_object::{BlobId, Entry, EntryKind, NodeId, ObjectId, ObjectKind, Tree};
use velo_socket::{Client, Pull};

use super::destination::{Destination, rename_over};
use super::fetch::{self, Traffic};
use super::place::{Content, mode_of, set_mtime, temporary_name};
use crate::beneath;
use crate::job::Limits;
use crate::node::Node;
use crate::progress::Progress;

/// The most descriptors in one job, below the socket's limit.
const SINKS: usize = 200;
/// The most ids in one question to control.
const IDS: usize = 40;

/// A file that a blob is received into, and the entry that it becomes.
#[derive(Debug)]
pub struct Sink {
    blob: BlobId,
    /// As a verified tree states it; none where only other nodes say how large it is, which velod need not believe.
    size_bytes: Option<u64>,
    file: Arc<File>,
    dir: Arc<OwnedFd>,
    temporary: OsString,
    name: OsString,
    kind: EntryKind,
    mtime_ns: u64,
}

impl Sink {
    /// Opens the temporary file for an entry; what an interrupted run left in it stays, velod knows what it is worth.
    pub fn open(
        dir: Arc<OwnedFd>,
        name: &OsStr,
        kind: EntryKind,
        blob: BlobId,
        size_bytes: Option<u64>,
        mtime_ns: u64,
    ) -> anyhow::Result<Self> {
        let temporary = temporary_name(&blob, name);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let context = || format!("cannot make {}", temporary.display());
        let fd = rustix::fs::openat(&dir, &temporary, flags, mode_of(kind)).with_context(context)?;
        let stat = rustix::fs::fstat(&fd).with_context(context)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_nlink != 1 {
            bail!("{} is in the way: remove it", temporary.display());
        }
        let file = Arc::new(File::from(fd));
        Ok(Self { blob, size_bytes, file, dir, temporary, name: name.to_owned(), kind, mtime_ns })
    }

    /// Gives the received file its final name, and its content.
    pub fn finish(&self) -> anyhow::Result<Content> {
        let context = || format!("cannot write {}", self.name.display());
        let size_bytes = self.file.metadata().with_context(context)?.len();
        if let Some(stated) = self.size_bytes.filter(|stated| *stated != size_bytes) {
            bail!("velod wrote {size_bytes} bytes of {stated} into {}", self.temporary.display());
        }
        // It may have been made by a run that was about another entry with this content.
        let stat = rustix::fs::fstat(&self.file).with_context(context)?;
        let executable = self.kind == EntryKind::Executable;
        if executable != (stat.st_mode & 0o100 != 0) {
            let read = (stat.st_mode & 0o444) >> 2;
            let mode = if executable { stat.st_mode | read } else { stat.st_mode & !0o111 };
            rustix::fs::fchmod(&self.file, rustix::fs::Mode::from_raw_mode(mode & 0o777))
                .with_context(context)?;
        }
        set_mtime(self.file.as_fd(), self.mtime_ns).with_context(context)?;
        rename_over(self.dir.as_fd(), &self.temporary, &self.name).with_context(context)?;
        Ok(Content { file: Arc::clone(&self.file), offset_bytes: 0, size_bytes })
    }
}

/// Receives the large blobs of the entries `indexes` that are not in the store. Gives their contents by id, and the indexes of the
/// entries that are still to be written.
pub fn receive(
    node: &Node,
    velod: &mut Client,
    tree: &Tree<Vec<u8>>,
    indexes: &[usize],
    destination: &mut Destination,
    limits: Limits<'_>,
    progress: &mut Progress,
) -> anyhow::Result<(HashMap<BlobId, Content>, Vec<usize>, Traffic)> {
    let (mut seen, mut left, mut first) = (HashSet::new(), Vec::new(), Vec::new());
    for &index in indexes {
        let entry = tree.entry(index);
        let large = entry.has_content() && !entry.is_packed();
        let direct = large && seen.insert(entry.blob) && !fetch::all_here(velod, [entry.blob])?;
        if direct { first.push(index) } else { left.push(index) }
    }
    let mut contents = HashMap::new();
    let mut traffic = Traffic::default();
    for some in first.chunks(SINKS) {
        let mut sinks = Vec::with_capacity(some.len());
        for &index in some {
            let entry: Entry<'_> = tree.entry(index);
            let (parent, name) = beneath::split(entry.path);
            let dir = destination.directory(parent)?;
            let name = OsStr::from_bytes(name);
            let size = Some(entry.size_bytes);
            sinks.push(Sink::open(dir, name, entry.kind, entry.blob, size, entry.mtime_ns)?);
        }
        let one = pull(node, velod, &sinks, limits, progress)?;
        traffic.received_bytes += one.received_bytes;
        traffic.sources = traffic.sources.max(one.sources);
        traffic.bad_pieces += one.bad_pieces;
        traffic.duplicate_pieces += one.duplicate_pieces;
        for sink in sinks {
            // Held open only while another entry may need it.
            contents.insert(sink.blob, sink.finish()?);
        }
        let needed: HashSet<BlobId> = left.iter().map(|&index| tree.entry(index).blob).collect();
        contents.retain(|blob, _| needed.contains(blob));
    }
    Ok((contents, left, traffic))
}

/// Has velod receive into these files.
pub fn pull(
    node: &Node,
    velod: &mut Client,
    sinks: &[Sink],
    limits: Limits<'_>,
    progress: &mut Progress,
) -> anyhow::Result<Traffic> {
    let control = node.control()?;
    let mut sources: Vec<NodeId> = Vec::new();
    for some in sinks.chunks(IDS) {
        let ids: Vec<String> = some.iter().map(|sink| sink.blob.to_string()).collect();
        let query: Vec<(&str, &str)> = ids.iter().map(|id| ("id", id.as_str())).collect();
        let holders: Vec<Holders> = control.get("/v1/where", &query)?;
        for holder in holders.iter().flat_map(|holders| &holders.holders) {
            let id: NodeId = holder.node.parse()?;
            if !sources.contains(&id) && id != velod.node() {
                sources.push(id);
            }
        }
    }
    let job = velod.pull(Pull {
        roots: sinks.iter().map(|sink| ObjectId { kind: ObjectKind::Blob, blob: sink.blob }).collect(),
        tables_only: false,
        sources,
        priority: 0,
        sinks: sinks.iter().map(|sink| (sink.blob, sink.file.as_fd())).collect(),
        sizes: sinks.iter().map(|sink| sink.size_bytes).collect(),
    })?;
    // Nodes that get it later help too. Without that the job goes on with those it knows.
    if let Err(error) = control.post::<SourcesReply>("/v1/sources", &SourcesRequest { job }) {
        node.output.warn(format!("{error:#}; only the nodes that have it now are asked"));
    }
    fetch::watch(node, job, limits, progress)
}
