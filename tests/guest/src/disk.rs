//! A disk with a volatile write cache: a write is in memory until a flush puts it into the image, and a power cut drops
//! what has not been flushed, all of it or any part, since a real disk may have written any part of its cache back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rand::Rng;

/// The unit in which writes survive a power cut or do not: the block of the guest's file system and page cache.
pub const BLOCK_BYTES: usize = 4096;

type Block = Box<[u8; BLOCK_BYTES]>;

/// What one power cut did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerCut {
    /// Blocks written since the last flush that are gone.
    pub lost_blocks: usize,
    /// Blocks written since the last flush that had reached the image all the same.
    pub kept_blocks: usize,
}

/// An image and the writes that it does not hold yet.
#[derive(Debug)]
pub struct VolatileDisk {
    image: File,
    size_bytes: u64,
    cache: BTreeMap<u64, Block>,
    flushes: u64,
}

impl VolatileDisk {
    /// A disk over `image`, as large as that file is now, which must be whole blocks.
    pub fn new(image: File) -> io::Result<Self> {
        let size_bytes = image.metadata()?.len();
        if size_bytes % BLOCK_BYTES as u64 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the image is not a whole number of blocks",
            ));
        }
        Ok(Self { image, size_bytes, cache: BTreeMap::new(), flushes: 0 })
    }

    /// Its size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How often the guest has flushed it.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// How many blocks the image does not hold yet.
    pub fn unflushed_blocks(&self) -> usize {
        self.cache.len()
    }

    /// Reads what was written last, flushed or not.
    pub fn read(&self, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset_bytes, into.len())?;
        self.image.read_exact_at(into, offset_bytes)?;
        for part in parts(offset_bytes, into.len()) {
            if let Some(block) = self.cache.get(&part.block) {
                into[part.at..part.at + part.len]
                    .copy_from_slice(&block[part.within..part.within + part.len]);
            }
        }
        Ok(())
    }

    /// Writes into the cache.
    pub fn write(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset_bytes, bytes.len())?;
        for part in parts(offset_bytes, bytes.len()) {
            let block = match self.cache.entry(part.block) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let mut block = Box::new([0; BLOCK_BYTES]);
                    self.image.read_exact_at(&mut block[..], part.block * BLOCK_BYTES as u64)?;
                    entry.insert(block)
                }
            };
            block[part.within..part.within + part.len].copy_from_slice(&bytes[part.at..part.at + part.len]);
        }
        Ok(())
    }

    /// Writes into the image at once (force unit access); blocks of the cache that it touches go with it.
    pub fn write_through(&mut self, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset_bytes, bytes)?;
        for part in parts(offset_bytes, bytes.len()) {
            if let Some(block) = self.cache.remove(&part.block) {
                self.image.write_all_at(&block[..], part.block * BLOCK_BYTES as u64)?;
            }
        }
        Ok(())
    }

    /// Puts all that was written into the image.
    pub fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        while let Some((block, bytes)) = self.cache.pop_first() {
            self.image.write_all_at(&bytes[..], block * BLOCK_BYTES as u64)?;
        }
        Ok(())
    }

    /// Forgets the cache. Each of its blocks reaches the image all the same with the probability `keep`, in no order.
    pub fn cut_power(&mut self, keep: f64, random: &mut impl Rng) -> io::Result<PowerCut> {
        let mut cut = PowerCut { lost_blocks: 0, kept_blocks: 0 };
        while let Some((block, bytes)) = self.cache.pop_first() {
            if random.random_bool(keep) {
                self.image.write_all_at(&bytes[..], block * BLOCK_BYTES as u64)?;
                cut.kept_blocks += 1;
            } else {
                cut.lost_blocks += 1;
            }
        }
        Ok(cut)
    }

    fn check(&self, offset_bytes: u64, len: usize) -> io::Result<()> {
        match offset_bytes.checked_add(len as u64) {
            Some(end) if end <= self.size_bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }
}

/// The part of a range that lies in one block.
struct Part {
    block: u64,
    within: usize,
    at: usize,
    len: usize,
}

fn parts(offset_bytes: u64, len: usize) -> impl Iterator<Item = Part> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let position = offset_bytes + at as u64;
        let within = (position % BLOCK_BYTES as u64) as usize;
        let part = Part {
            block: position / BLOCK_BYTES as u64,
            within,
            at,
            len: (BLOCK_BYTES - within).min(len - at),
        };
        at += part.len;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    fn disk() -> VolatileDisk {
        let image = tempfile::tempfile().expect("a temporary file");
        image.set_len(16 * BLOCK_BYTES as u64).expect("a size");
        VolatileDisk::new(image).expect("a disk")
    }

    fn read(disk: &VolatileDisk, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        disk.read(offset, &mut bytes).expect("readable");
        bytes
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_drops_what_was_not() {
        let (mut disk, mut random) = (disk(), StdRng::seed_from_u64(1));
        disk.write(1000, &[1; 10_000]).expect("written");
        disk.flush().expect("flushed");
        disk.write(5000, &[2; 100]).expect("written");
        disk.write_through(20_000, &[3; 50]).expect("written");
        disk.write(40_000, &[4; 50]).expect("written");
        assert_eq!((read(&disk, 5000, 100), disk.unflushed_blocks()), (vec![2; 100], 2));
        let cut = disk.cut_power(0.0, &mut random).expect("cut");
        assert_eq!(cut, PowerCut { lost_blocks: 2, kept_blocks: 0 });
        assert_eq!(read(&disk, 1000, 10_000), [1; 10_000]);
        assert_eq!(read(&disk, 999, 1), [0]);
        assert_eq!(read(&disk, 20_000, 51), [vec![3; 50], vec![0]].concat());
        assert_eq!(read(&disk, 40_000, 50), [0; 50]);
    }

    #[test]
    fn a_cut_may_keep_any_part_of_the_cache() {
        let (mut disk, mut random) = (disk(), StdRng::seed_from_u64(2));
        for block in 0..16 {
            disk.write(block * BLOCK_BYTES as u64, &[9; BLOCK_BYTES]).expect("written");
        }
        let cut = disk.cut_power(0.5, &mut random).expect("cut");
        assert_eq!(cut.lost_blocks + cut.kept_blocks, 16);
        let kept = (0..16).filter(|block| read(&disk, block * BLOCK_BYTES as u64, 1) == [9]).count();
        assert!(kept == cut.kept_blocks && kept > 0 && kept < 16, "{kept} of 16 kept");
    }

    #[test]
    fn nothing_reaches_beyond_the_end() {
        let mut disk = disk();
        let end = disk.size_bytes();
        assert!(disk.write(end - 1, &[0; 2]).is_err());
        assert!(disk.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(disk.write(end, &[]).is_ok());
    }
}
