//! Where the contents of a tree are read from: its packs, its blobs, or files that velod received straight into.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, bail};
use velo_object::{BlobId, Entry, ObjectId, Tree};
use velo_socket::Client;

use super::place::Content;
use crate::exit::Failure;

/// The largest table that is read into memory.
const TABLE_BYTES: u64 = 4 << 30;

/// Opens a blob that is complete in the store.
pub fn open(velod: &mut Client, blob: BlobId) -> anyhow::Result<Content> {
    let (file, offset_bytes, size_bytes, complete) =
        velod.open(blob, false).with_context(|| format!("cannot open {blob} in the store"))?;
    if !complete {
        bail!("{blob} is not complete in the store");
    }
    Ok(Content { file: Arc::new(File::from(file)), offset_bytes, size_bytes })
}

/// Reads and checks the table of a tree that is in the store.
pub fn table(velod: &mut Client, id: ObjectId) -> anyhow::Result<Tree<Vec<u8>>> {
    let content = open(velod, id.blob)?;
    if content.size_bytes > TABLE_BYTES {
        bail!("the table of {id} has {} bytes, which is more than any tree has", content.size_bytes);
    }
    let mut bytes = vec![0; content.size_bytes as usize];
    content.file.read_exact_at(&mut bytes, content.offset_bytes)?;
    if BlobId::of(&bytes) != id.blob {
        return Err(Failure::integrity(format!("the stored table of {id} is damaged: run `velo verify`")));
    }
    Tree::parse(bytes).with_context(|| format!("{id} cannot be used"))
}

/// The contents of one tree.
#[derive(Debug)]
pub struct Contents<'a> {
    velod: &'a mut Client,
    packs: Vec<(BlobId, Option<Content>)>,
    /// Where each small content lies: which pack, and where in it.
    small: HashMap<BlobId, (usize, u64)>,
    /// Files that velod received into.
    received: HashMap<BlobId, Content>,
}

impl<'a> Contents<'a> {
    /// Of this tree, whose packs are in the store; nothing is opened yet.
    pub fn of(
        velod: &'a mut Client,
        tree: &Tree<Vec<u8>>,
        received: HashMap<BlobId, Content>,
    ) -> Contents<'a> {
        let small = tree.packed().map(|p| (p.entry.blob, (p.pack, p.offset_bytes))).collect();
        Contents { velod, packs: tree.packs().map(|pack| (pack.blob, None)).collect(), small, received }
    }

    /// The content of an entry that is no directory.
    pub fn find(&mut self, entry: &Entry<'_>) -> anyhow::Result<Content> {
        let content = match self.small.get(&entry.blob) {
            Some(&(pack, at_bytes)) => {
                let pack = self.pack(pack)?;
                let end = at_bytes.checked_add(entry.size_bytes);
                if end.is_none_or(|end| end > pack.size_bytes) {
                    return Err(Failure::integrity(format!(
                        "{} lies beyond the end of its pack",
                        entry.blob
                    )));
                }
                let offset_bytes = pack.offset_bytes + at_bytes;
                Content { file: Arc::clone(&pack.file), offset_bytes, size_bytes: entry.size_bytes }
            }
            None => match self.received.get(&entry.blob) {
                Some(content) => content.clone(),
                None => open(self.velod, entry.blob)?,
            },
        };
        if content.size_bytes != entry.size_bytes {
            let (blob, is, says) = (entry.blob, content.size_bytes, entry.size_bytes);
            return Err(Failure::integrity(format!("{blob} has {is} bytes where the tree says {says}")));
        }
        Ok(content)
    }

    fn pack(&mut self, index: usize) -> anyhow::Result<&Content> {
        let Some((blob, pack)) = self.packs.get_mut(index) else {
            bail!("the tree has no pack {index}");
        };
        match pack {
            Some(content) => Ok(content),
            none => Ok(none.insert(open(self.velod, *blob)?)),
        }
    }
}
