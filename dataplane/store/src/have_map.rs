//! The have-map of a transfer, on disk beside its data: what survives a kill at any instruction.
//!
//! Format, version 1, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..3 | `VHM` |
//! | 3 | the version: `1` (0x31) |
//! | 4 | 0 a blob, 1 a pack |
//! | 5 | 1 where the size was proven when the transfer began (a verified tree states it), else 0 |
//! | 6..8 | zero |
//! | 8..16 | size of the blob |
//! | 16..48 | BLAKE3 hash of the kernel's boot id under which the pieces were written |
//! | 48.. | one byte for each piece: 0 missing, 1 here, 2 here and a hole |
//!
//! A piece's byte is written after its bytes: both are in the page cache then, which outlives the process. After a
//! crash of the machine (another boot id) the order of writes means nothing, and every piece is hashed again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use velo_object::{MAX_BLOB_BYTES, PieceSet, Pieces};

use crate::StageKind;
use crate::dir::boot_id;

const MAGIC: [u8; 4] = *b"VHM1";
const HEADER_BYTES: usize = 48;
const HERE: u8 = 1;
const HOLE: u8 = 2;

/// The open map.
#[derive(Debug)]
pub(crate) struct HaveMap {
    file: File,
}

/// What a map says.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub map: HaveMap,
    pub kind: StageKind,
    pub size_bytes: u64,
    /// The size needs no further proof.
    pub proven: bool,
    pub have: PieceSet,
    pub holes: PieceSet,
    /// Written under this boot, so it can be trusted.
    pub same_boot: bool,
}

fn boot() -> [u8; 32] {
    *blake3::hash(boot_id().as_bytes()).as_bytes()
}

fn header(kind: StageKind, size_bytes: u64, proven: bool) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = u8::from(kind == StageKind::Pack);
    bytes[5] = u8::from(proven);
    bytes[8..16].copy_from_slice(&size_bytes.to_le_bytes());
    bytes[16..].copy_from_slice(&boot());
    bytes
}

impl HaveMap {
    /// An empty map.
    pub fn create(path: &Path, kind: StageKind, size_bytes: u64, proven: bool) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.set_len(HEADER_BYTES as u64 + Pieces::new(size_bytes).count())?;
        file.write_all_at(&header(kind, size_bytes, proven), 0)?;
        Ok(Self { file })
    }

    /// The map of an earlier process; none where it is no map.
    pub fn load(path: &Path) -> io::Result<Option<Loaded>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        let mut bytes = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, 0)?;
        let size_bytes = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
        let kind = if bytes[4] == 1 { StageKind::Pack } else { StageKind::Blob };
        let count = Pieces::new(size_bytes.min(MAX_BLOB_BYTES)).count();
        let sound = bytes[..4] == MAGIC && size_bytes <= MAX_BLOB_BYTES && len == HEADER_BYTES as u64 + count;
        if !sound {
            return Ok(None);
        }
        let mut states = vec![0; count as usize];
        file.read_exact_at(&mut states, HEADER_BYTES as u64)?;
        let (mut have, mut holes) = (PieceSet::new(count), PieceSet::new(count));
        for (index, state) in states.into_iter().enumerate() {
            if state == HERE || state == HOLE {
                have.insert(index as u64);
            }
            if state == HOLE {
                holes.insert(index as u64);
            }
        }
        let same_boot = bytes[16..] == boot();
        let proven = bytes[5] == 1;
        Ok(Some(Loaded { map: Self { file }, kind, size_bytes, proven, have, holes, same_boot }))
    }

    /// Says that a piece is here; its bytes were written before.
    pub fn set(&self, index: u64, hole: bool) -> io::Result<()> {
        self.file.write_all_at(&[if hole { HOLE } else { HERE }], HEADER_BYTES as u64 + index)
    }

    /// Takes pieces back.
    pub fn clear(&self, indexes: &[u64]) -> io::Result<()> {
        indexes.iter().try_for_each(|index| self.file.write_all_at(&[0], HEADER_BYTES as u64 + index))
    }

    /// Says that what the map states was checked under this boot.
    pub fn renew(&self, kind: StageKind, size_bytes: u64, proven: bool) -> io::Result<()> {
        self.file.write_all_at(&header(kind, size_bytes, proven), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_survives_and_garbage_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("map");
        let map = HaveMap::create(&path, StageKind::Pack, (5 << 20) + 1, true).expect("made");
        map.set(0, false).expect("set");
        map.set(5, true).expect("set");
        drop(map);
        let loaded = HaveMap::load(&path).expect("readable").expect("a map");
        assert_eq!(loaded.have.iter().collect::<Vec<_>>(), [0, 5]);
        assert_eq!(loaded.holes.iter().collect::<Vec<_>>(), [5]);
        assert!(
            loaded.proven
                && loaded.same_boot
                && loaded.kind == StageKind::Pack
                && loaded.size_bytes == (5 << 20) + 1
        );
        let bytes = std::fs::read(&path).expect("readable");
        for cut in [0, 1, 47, 48, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).expect("written");
            assert!(HaveMap::load(&path).expect("readable").is_none(), "{cut} bytes");
        }
        let mut huge = bytes.clone();
        huge[8..16].fill(0xff);
        std::fs::write(&path, huge).expect("written");
        assert!(HaveMap::load(&path).expect("readable").is_none(), "an impossible size");
    }
}
