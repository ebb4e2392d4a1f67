//! Files that a put writes: removed unless they are kept. One kind grows by appending and knows its id at the end:
//! packs, and streams of unknown length.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use velo_object::{BlobId, OutboardBuilder, PIECE_BYTES, PageBuffer, chaining_value};

use crate::StoreError;
use crate::copy::Hashed;
use crate::dir::remove_file;
use crate::space::Reservation;
use crate::store::Inner;

/// A file in `staging/` that belongs to a put: removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(Option<PathBuf>);

impl Scratch {
    /// Makes an empty one.
    pub fn create(inner: &Inner) -> Result<(Self, File), StoreError> {
        let path = inner.dir.put(inner.next_put());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| inner.space.io(error, &path, 0))?;
        Ok((Self(Some(path)), file))
    }

    pub fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// Lets the file stay.
    pub fn keep(mut self) -> PathBuf {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = remove_file(path);
        }
    }
}

/// A file that grows; see the module.
#[derive(Debug)]
pub(crate) struct Spool {
    scratch: Scratch,
    file: File,
    reservation: Reservation,
    buffer: PageBuffer,
    filled: usize,
    values: Vec<[u8; 32]>,
}

/// A whole content in a file of a put.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub scratch: Scratch,
    pub hashed: Hashed,
    pub size_bytes: u64,
    pub reservation: Reservation,
}

impl Spool {
    pub fn new(inner: &Inner) -> Result<Self, StoreError> {
        let (scratch, file) = Scratch::create(inner)?;
        Ok(Self {
            scratch,
            file,
            reservation: inner.reserve(0)?,
            buffer: inner.buffers.take(),
            filled: 0,
            values: Vec::new(),
        })
    }

    pub fn append(&mut self, inner: &Inner, mut bytes: &[u8]) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            if self.filled == self.buffer.len() {
                self.write_piece(inner)?;
            }
            let taken = bytes.len().min(self.buffer.len() - self.filled);
            self.buffer[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    pub fn finish(mut self, inner: &Inner) -> Result<Spooled, StoreError> {
        let size_bytes = self.values.len() as u64 * PIECE_BYTES + self.filled as u64;
        let hashed = if size_bytes <= PIECE_BYTES {
            let id = BlobId::of(&self.buffer[..self.filled]);
            self.write_piece(inner)?;
            Hashed { id, outboard: None }
        } else {
            self.write_piece(inner)?;
            let mut builder = OutboardBuilder::new(size_bytes);
            self.values.iter().enumerate().for_each(|(index, value)| builder.set(index as u64, *value));
            let outboard = builder.finish();
            Hashed { id: outboard.id(), outboard: Some(outboard) }
        };
        inner.buffers.put(self.buffer);
        Ok(Spooled { scratch: self.scratch, hashed, size_bytes, reservation: self.reservation })
    }

    fn write_piece(&mut self, inner: &Inner) -> Result<(), StoreError> {
        let bytes = &self.buffer[..self.filled];
        let index = self.values.len() as u64;
        if bytes.is_empty() {
            return Ok(());
        }
        self.values.push(chaining_value(index, bytes));
        self.reservation.join(inner.reserve(bytes.len() as u64)?);
        self.file
            .write_all_at(bytes, index * PIECE_BYTES)
            .map_err(|error| inner.space.io(error, self.scratch.path(), bytes.len() as u64))?;
        self.reservation.written(bytes.len() as u64);
        self.filled = 0;
        Ok(())
    }
}
