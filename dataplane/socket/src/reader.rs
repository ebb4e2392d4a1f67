//! [`BlobReader`]: reads a blob through the descriptor that velod hands over, waiting for what is still arriving.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use velo_object::{BlobId, PieceSet, Pieces};

use crate::{Client, ClientError, Error, ErrorCode};

/// How long a read waits for its range, unless told otherwise.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the file of a partial blob is still the one that [`Client::wait`] answers for; to be asked after each wait.
/// velod deletes the file of a transfer before another one takes its place: then it has no name any more.
///
/// # Errors
/// [`ErrorCode::Conflict`]: the blob must be opened again. [`ErrorCode::Io`].
pub fn check_current(file: &File, blob: &BlobId) -> Result<(), Error> {
    match file.metadata().map(|metadata| metadata.nlink()) {
        Ok(0) => Err(Error {
            code: ErrorCode::Conflict,
            message: format!("what had arrived of {blob} gave way to another transfer: open it again"),
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(Error { code: ErrorCode::Io, message: format!("the file of {blob}: {error}") }),
    }
}

/// A blob, as `Read` and `Seek`. Nothing is copied by velod: reads go to the file itself.
#[derive(Debug)]
pub struct BlobReader {
    client: Client,
    blob: BlobId,
    file: File,
    offset_bytes: u64,
    size_bytes: u64,
    /// Pieces that velod said are there; none where all are.
    ready: Option<PieceSet>,
    position_bytes: u64,
    timeout: Duration,
}

impl BlobReader {
    /// Opens a blob. With `partial`, one that is not complete will do.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(mut client: Client, blob: BlobId, partial: bool) -> Result<Self, ClientError> {
        let (file, offset_bytes, size_bytes, complete) = client.open(blob, partial)?;
        let ready = (!complete).then(|| PieceSet::new(Pieces::new(size_bytes).count()));
        let file = File::from(file);
        Ok(Self {
            client,
            blob,
            file,
            offset_bytes,
            size_bytes,
            ready,
            position_bytes: 0,
            timeout: WAIT_TIMEOUT,
        })
    }

    /// Sets how long a read waits for its range.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The blob's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Where in the file the blob begins.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// The file itself, for a caller that copies in the kernel; only for ranges that [`BlobReader::ready`] has answered for.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The client, for something else.
    pub fn into_client(self) -> Client {
        self.client
    }

    /// Waits until the pieces of a range are there.
    ///
    /// # Errors
    /// [`ClientError`]; velod's `TimedOut` where nothing came in time.
    pub fn ready(&mut self, range: std::ops::Range<u64>) -> Result<(), ClientError> {
        let end = range.end.min(self.size_bytes);
        let Some(ready) = &mut self.ready else { return Ok(()) };
        if range.start >= end {
            return Ok(());
        }
        let pieces = Pieces::new(self.size_bytes);
        let (first, last) = (range.start / velo_object::PIECE_BYTES, (end - 1) / velo_object::PIECE_BYTES);
        for index in first..=last {
            if !ready.contains(index) {
                self.client.wait(self.blob, pieces.range(index), self.timeout)?;
                check_current(&self.file, &self.blob)?;
                ready.insert(index);
            }
        }
        Ok(())
    }

    /// Reads at a place, as much as `buffer` holds or the blob has there; 0 at its end.
    ///
    /// # Errors
    /// What velod or the file says.
    pub fn read_at(&mut self, buffer: &mut [u8], at_bytes: u64) -> io::Result<usize> {
        let left = self.size_bytes.saturating_sub(at_bytes);
        let len = (buffer.len() as u64).min(left);
        if len == 0 {
            return Ok(0);
        }
        // What has arrived is given at once: a read spans no more pieces than it must.
        let len = if self.ready.is_some() {
            len.min(velo_object::PIECE_BYTES - at_bytes % velo_object::PIECE_BYTES)
        } else {
            len
        };
        self.ready(at_bytes..at_bytes + len)?;
        let read = self.file.read_at(&mut buffer[..len as usize], self.offset_bytes + at_bytes)?;
        if read == 0 {
            let why = format!("{} ends before its size: run `velo verify`", self.blob);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(read)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.read_at(buffer, self.position_bytes)?;
        self.position_bytes += read as u64;
        Ok(read)
    }
}

impl Seek for BlobReader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size_bytes.checked_add_signed(by),
            SeekFrom::Current(by) => self.position_bytes.checked_add_signed(by),
        };
        self.position_bytes =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a place before the blob"))?;
        Ok(self.position_bytes)
    }
}
