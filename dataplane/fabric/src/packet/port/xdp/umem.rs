//! The memory that an AF_XDP socket shares with the kernel (UMEM): chunks of one page, a part of them for what arrives, the rest in
//! groups, each long enough for one frame to be sent.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::slice;

use rustix::net::sockopt::set_xdp_umem_reg;
use rustix::net::xdp::{XdpUmemReg, XdpUmemRegFlags};

use crate::pool::{Mapping, PoolOptions};

/// Size of a chunk: a page, the largest that the kernel takes.
pub(super) const CHUNK_BYTES: usize = 4096;
/// What the kernel leaves free in front of a frame that arrives (`XDP_PACKET_HEADROOM`).
pub(super) const HEADROOM_BYTES: usize = 256;

/// The memory, and how it is divided.
pub(super) struct Umem {
    memory: Mapping,
    huge: bool,
    receive_chunks: u32,
    groups: u32,
    chunks_per_group: u32,
}

impl Umem {
    /// Memory for `receive_chunks` chunks to receive into, and `groups` frames of `frame_max_bytes` to send from.
    pub(super) fn new(receive_chunks: u32, groups: u32, frame_max_bytes: usize) -> io::Result<Self> {
        let chunks_per_group =
            u32::try_from(frame_max_bytes.div_ceil(CHUNK_BYTES)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let chunks = u64::from(receive_chunks) + u64::from(groups) * u64::from(chunks_per_group);
        let bytes = chunks * CHUNK_BYTES as u64;
        let options = PoolOptions { bytes, huge_pages: true, populate: true };
        let (memory, huge) = Mapping::new(bytes as usize, options)?;
        Ok(Self { memory, huge, receive_chunks, groups, chunks_per_group })
    }

    /// Tells the kernel, which pins it.
    pub(super) fn register(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let registration = XdpUmemReg {
            addr: self.memory.start().as_ptr().addr() as u64,
            len: self.bytes() as u64,
            chunk_size: CHUNK_BYTES as u32,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        // The kernel writes into it behind the compiler's back from here on.
        self.memory.start().as_ptr().expose_provenance();
        Ok(set_xdp_umem_reg(socket, registration)?)
    }

    pub(super) fn bytes(&self) -> usize {
        self.chunks() as usize * CHUNK_BYTES
    }

    pub(super) fn is_huge(&self) -> bool {
        self.huge
    }

    fn chunks(&self) -> u32 {
        self.receive_chunks + self.groups * self.chunks_per_group
    }

    /// The addresses of the chunks to receive into.
    pub(super) fn receive_chunks(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.receive_chunks).map(|chunk| u64::from(chunk) * CHUNK_BYTES as u64)
    }

    /// The chunk to receive into that `address` lies in.
    pub(super) fn receive_chunk_of(&self, address: u64) -> Option<u64> {
        let chunk = address - address % CHUNK_BYTES as u64;
        (chunk < u64::from(self.receive_chunks) * CHUNK_BYTES as u64).then_some(chunk)
    }

    pub(super) fn chunks_per_group(&self) -> u32 {
        self.chunks_per_group
    }

    /// Where the group begins.
    pub(super) fn group_address(&self, group: u32) -> u64 {
        (u64::from(self.receive_chunks) + u64::from(group) * u64::from(self.chunks_per_group))
            * CHUNK_BYTES as u64
    }

    /// The group that `address` lies in.
    pub(super) fn group_of(&self, address: u64) -> Option<u32> {
        let chunk = (address / CHUNK_BYTES as u64).checked_sub(u64::from(self.receive_chunks))?;
        let group = u32::try_from(chunk / u64::from(self.chunks_per_group)).ok()?;
        (group < self.groups).then_some(group)
    }

    /// `len` bytes from `address` on, if that many are there. Only for what the kernel has handed over and not got back.
    pub(super) fn bytes_mut(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(address).ok()?;
        if at.checked_add(len)? > self.bytes() {
            return None;
        }
        // SAFETY: the range lies in the mapping, which is initialised (the kernel maps zeros) and lives as long as `self`; `&mut self`
        // makes it the only reference. The kernel writes only into chunks that are in the ring for filling, and reads only what is in
        // the ring for sending: neither is asked for here (see `Queue`). Were the kernel to write all the same, there would be
        // other bytes in the slice, which are a stranger's in any case.
        Some(unsafe { slice::from_raw_parts_mut(self.memory.start().as_ptr().add(at), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_groups_do_not_overlap() {
        let umem = Umem::new(8, 3, 9014).unwrap();
        assert_eq!((umem.chunks_per_group(), umem.bytes()), (3, 17 * CHUNK_BYTES));
        assert_eq!(umem.receive_chunks().last(), Some(7 * 4096));
        assert_eq!(umem.receive_chunk_of(7 * 4096 + 256), Some(7 * 4096));
        assert_eq!(umem.receive_chunk_of(8 * 4096), None);
        assert_eq!(umem.group_of(8 * 4096 - 1), None);
        for group in 0..3 {
            let start = umem.group_address(group);
            assert_eq!(
                (umem.group_of(start), umem.group_of(start + 3 * 4096 - 1)),
                (Some(group), Some(group))
            );
        }
        assert_eq!(umem.group_of(17 * 4096), None);
    }

    #[test]
    fn nothing_outside_is_lent() {
        let mut umem = Umem::new(2, 1, 100).unwrap();
        assert_eq!(umem.bytes_mut(2 * 4096, 4096).map(|bytes| bytes.len()), Some(4096));
        assert!(umem.bytes_mut(2 * 4096, 4097).is_none());
        assert!(umem.bytes_mut(u64::MAX, 2).is_none());
        umem.bytes_mut(0, 3).unwrap().fill(9);
        assert_eq!(umem.bytes_mut(1, 3).unwrap(), [9, 9, 0]);
    }
}
