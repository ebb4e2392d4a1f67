//! What of bpf(2) is needed: a map of sockets, a program, and the link that attaches it to an interface for as long as it is open, so that
//! the kernel takes it away when the process ends, however that happens.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::program::Instruction;

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROGRAM_LOAD: libc::c_int = 5;
#[cfg(test)]
const PROGRAM_TEST_RUN: libc::c_int = 10;
const PROGRAM_BY_ID: libc::c_int = 13;
const OBJECT_INFO: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;

const MAP_OF_XDP_SOCKETS: u32 = 17;
const PROGRAM_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// The program can take frames in several pieces.
const HAS_FRAGMENTS: u32 = 1 << 5;
const ATTACH_GENERIC: u32 = 1 << 1;
const ATTACH_NATIVE: u32 = 1 << 2;

const NAME_BYTES: usize = 16;
const PROGRAM_NAME: [u8; NAME_BYTES] = *b"velo_steer\0\0\0\0\0\0";
const LICENCE: &CStr = c"Apache-2.0";

// The beginnings of `union bpf_attr` for each command: the kernel takes what is shorter than its own for zeros.

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: RawFd,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    first: u64,
    licence: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_BYTES],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: RawFd,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct ObjectInfo {
    object: RawFd,
    bytes: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    not_of_interest: [u64; 7],
    name: [u8; NAME_BYTES],
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` must be the beginning of `union bpf_attr` for `command`, and every address in it must point to what the kernel will
/// read or write there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<RawFd> {
    let attributes: *mut T = attributes;
    // SAFETY: the kernel reads (and for some commands writes) as many bytes as are said; the caller vouches for what is in them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// Calls bpf(2) for a command that gives a descriptor.
///
/// # Safety
/// As for [`bpf`].
unsafe fn bpf_open<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for the attributes; what the command gives is a descriptor that nobody else owns.
    unsafe { bpf(command, attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// A map from the queues of an interface to sockets.
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    pub(super) fn new(queues: u32) -> io::Result<Self> {
        let mut attributes =
            MapCreate { kind: MAP_OF_XDP_SOCKETS, key_bytes: 4, value_bytes: 4, entries: queues };
        // SAFETY: these are the attributes of this command; there is no address in them.
        unsafe { bpf_open(MAP_CREATE, &mut attributes) }.map(Self)
    }

    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let value = socket.as_raw_fd();
        let mut attributes = MapUpdate {
            map: self.0.as_raw_fd(),
            pad: 0,
            key: (&raw const queue).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        // SAFETY: these are the attributes of this command; key and value are four bytes each, as the map was made, and outlive it.
        unsafe { bpf(MAP_UPDATE, &mut attributes) }.map(|_| ())
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A program in the kernel.
pub(super) struct Program(OwnedFd);

impl Program {
    pub(super) fn load(instructions: &[Instruction], fragments: bool) -> io::Result<Self> {
        let mut attributes = ProgramLoad {
            kind: PROGRAM_XDP,
            instructions: instructions.len() as u32,
            first: instructions.as_ptr().expose_provenance() as u64,
            licence: LICENCE.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_bytes: 0,
            log: 0,
            kernel_version: 0,
            flags: if fragments { HAS_FRAGMENTS } else { 0 },
            name: PROGRAM_NAME,
            interface: 0,
            expected_attach_type: ATTACH_XDP,
        };
        // SAFETY: these are the attributes of this command; the instructions are as many as is said and, like the licence, outlive it.
        unsafe { bpf_open(PROGRAM_LOAD, &mut attributes) }.map(Self)
    }

    /// What the program says of a frame.
    #[cfg(test)]
    pub(super) fn run(&self, frame: &[u8]) -> io::Result<u32> {
        #[repr(C)]
        struct TestRun {
            program: RawFd,
            result: u32,
            in_bytes: u32,
            out_bytes: u32,
            input: u64,
            output: u64,
            repeat: u32,
            duration: u32,
        }
        let mut attributes = TestRun {
            program: self.0.as_raw_fd(),
            result: 0,
            in_bytes: frame.len() as u32,
            out_bytes: 0,
            input: frame.as_ptr().expose_provenance() as u64,
            output: 0,
            repeat: 0,
            duration: 0,
        };
        // SAFETY: these are the attributes of this command; the frame is as long as is said and outlives it; nothing is written out.
        unsafe { bpf(PROGRAM_TEST_RUN, &mut attributes) }?;
        Ok(attributes.result)
    }

    /// The name of a program, if it is there and may be seen.
    pub(super) fn name_of(id: u32) -> Option<String> {
        let mut attributes = ById { id, next: 0, flags: 0 };
        // SAFETY: these are the attributes of this command; there is no address in them.
        let program = unsafe { bpf_open(PROGRAM_BY_ID, &mut attributes) }.ok()?;
        let mut info = ProgramInfo::default();
        let mut attributes = ObjectInfo {
            object: program.as_raw_fd(),
            bytes: size_of::<ProgramInfo>() as u32,
            info: (&raw mut info).expose_provenance() as u64,
        };
        // SAFETY: these are the attributes of this command; the kernel writes no more than `bytes` into `info`, which outlives it and
        // is made of plain numbers.
        unsafe { bpf(OBJECT_INFO, &mut attributes) }.ok()?;
        let name = CStr::from_bytes_until_nul(&info.name).ok()?.to_string_lossy().into_owned();
        Some(name).filter(|name| !name.is_empty())
    }
}

/// A program's place on an interface. It leaves with this value or with the process.
pub(super) struct Link(#[expect(dead_code, reason = "it is kept open")] OwnedFd);

impl Link {
    /// Attaches `program`, in the driver or (`generic`) behind it.
    pub(super) fn attach(program: &Program, interface: u32, generic: bool) -> io::Result<Self> {
        let mut attributes = LinkCreate {
            program: program.0.as_raw_fd(),
            interface,
            attach_type: ATTACH_XDP,
            flags: if generic { ATTACH_GENERIC } else { ATTACH_NATIVE },
        };
        // SAFETY: these are the attributes of this command; there is no address in them.
        unsafe { bpf_open(LINK_CREATE, &mut attributes) }.map(Self)
    }
}
