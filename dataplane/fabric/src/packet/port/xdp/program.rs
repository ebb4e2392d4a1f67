//! The XDP program: hands UDP for one address and port to the socket of the queue that it came by, and leaves all else to the kernel.
//! It is made of raw instructions, so that no compiler and no library is needed where Velo runs or is built.

use std::net::{IpAddr, SocketAddr};

/// One instruction: `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What the program says of a frame: `enum xdp_action`.
pub(super) const PASS: i32 = 2;

const LOAD_BYTE: u8 = 0x71;
const LOAD_HALF: u8 = 0x69;
const LOAD_WORD: u8 = 0x61;
const LOAD_IMMEDIATE_64: u8 = 0x18;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const AND_IMMEDIATE: u8 = 0x57;
const JUMP_GREATER: u8 = 0x2d;
/// Compares the low 32 bits, so that an immediate with its highest bit set is not taken for a negative number.
const JUMP_NOT_EQUAL_32: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// In the source register of [`LOAD_IMMEDIATE_64`]: the immediate is the descriptor of a map.
const IS_MAP: u8 = 1;
const REDIRECT_MAP: i32 = 51;

/// Offsets in `struct xdp_md`.
const CONTEXT_DATA: i16 = 0;
const CONTEXT_END: i16 = 4;
const CONTEXT_QUEUE: i16 = 16;

const ETHERNET_BYTES: i16 = 14;
const ETHERNET_TYPE: i16 = 12;
const VLAN_BYTES: i16 = 4;
const UDP_BYTES: i16 = 8;
const UDP_DESTINATION: i16 = 2;

/// What is done with a frame that is ours.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    /// It goes to the socket that the map (a descriptor) has for its queue, or to the kernel where there is none.
    ToSocket { map: i32 },
    /// The program returns this.
    #[cfg(test)]
    Return(i32),
}

/// A program being written. Register 6 keeps the context; 2 and 3 are the frame's beginning and end; 5 is what was loaded last.
struct Writer {
    instructions: Vec<Instruction>,
    /// Jumps that lead to the end, where the frame is passed.
    to_pass: Vec<usize>,
}

impl Writer {
    fn put(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers: source << 4 | destination, offset, immediate });
    }

    fn pass_if(&mut self, code: u8, destination: u8, source: u8, immediate: i32) {
        self.to_pass.push(self.instructions.len());
        self.put(code, destination, source, 0, immediate);
    }

    /// Passes the frame unless the byte at `offset`, masked, is `wanted`.
    fn want_byte(&mut self, offset: i16, mask: u8, wanted: u8) {
        self.put(LOAD_BYTE, 5, 2, offset, 0);
        if mask != 0xff {
            self.put(AND_IMMEDIATE, 5, 0, 0, i32::from(mask));
        }
        self.pass_if(JUMP_NOT_EQUAL_32, 5, 0, i32::from(wanted));
    }

    /// Passes the frame unless the two bytes at `offset`, masked, are `wanted`. Both are numbers as the network writes them.
    fn want_half(&mut self, offset: i16, mask: u16, wanted: u16) {
        self.put(LOAD_HALF, 5, 2, offset, 0);
        if mask != 0xffff {
            self.put(AND_IMMEDIATE, 5, 0, 0, i32::from(mask.to_be()));
        }
        self.pass_if(JUMP_NOT_EQUAL_32, 5, 0, i32::from(wanted.to_be()));
    }

    fn want_bytes(&mut self, offset: i16, wanted: &[u8]) {
        for (i, word) in wanted.as_chunks::<4>().0.iter().enumerate() {
            self.put(LOAD_WORD, 5, 2, offset + 4 * i as i16, 0);
            self.pass_if(JUMP_NOT_EQUAL_32, 5, 0, i32::from_ne_bytes(*word));
        }
    }
}

/// The program for datagrams to `local`, in frames with the tag of `vlan` if there is one.
pub(super) fn steer(local: SocketAddr, vlan: Option<u16>, verdict: Verdict) -> Vec<Instruction> {
    let link_bytes = ETHERNET_BYTES + if vlan.is_some() { VLAN_BYTES } else { 0 };
    let (kind, network_bytes) = if local.is_ipv4() { (0x0800, 20) } else { (0x86dd, 40) };
    let udp = link_bytes + network_bytes;
    let mut program = Writer { instructions: Vec::new(), to_pass: Vec::new() };
    program.put(MOVE, 6, 1, 0, 0);
    program.put(LOAD_WORD, 2, 1, CONTEXT_DATA, 0);
    program.put(LOAD_WORD, 3, 1, CONTEXT_END, 0);
    program.put(MOVE, 4, 2, 0, 0);
    program.put(ADD_IMMEDIATE, 4, 0, 0, i32::from(udp + UDP_BYTES));
    program.pass_if(JUMP_GREATER, 4, 3, 0);
    if let Some(id) = vlan {
        program.want_half(ETHERNET_TYPE, 0xffff, 0x8100);
        program.want_half(ETHERNET_BYTES, 0x0fff, id);
    }
    program.want_half(link_bytes - 2, 0xffff, kind);
    match local.ip() {
        IpAddr::V4(address) => {
            // Options, fragments and other protocols are the kernel's.
            program.want_byte(link_bytes, 0xff, 0x45);
            program.want_half(link_bytes + 6, 0x3fff, 0);
            program.want_byte(link_bytes + 9, 0xff, 17);
            program.want_bytes(link_bytes + 16, &address.octets());
        }
        IpAddr::V6(address) => {
            // So are extensions.
            program.want_byte(link_bytes, 0xf0, 0x60);
            program.want_byte(link_bytes + 6, 0xff, 17);
            program.want_bytes(link_bytes + 24, &address.octets());
        }
    }
    program.want_half(udp + UDP_DESTINATION, 0xffff, local.port());
    match verdict {
        Verdict::ToSocket { map } => {
            program.put(LOAD_WORD, 2, 6, CONTEXT_QUEUE, 0);
            program.put(LOAD_IMMEDIATE_64, 1, IS_MAP, 0, map);
            program.put(0, 0, 0, 0, 0);
            program.put(MOVE_IMMEDIATE, 3, 0, 0, PASS);
            program.put(CALL, 0, 0, 0, REDIRECT_MAP);
        }
        #[cfg(test)]
        Verdict::Return(action) => program.put(MOVE_IMMEDIATE, 0, 0, 0, action),
    }
    program.put(EXIT, 0, 0, 0, 0);
    let end = program.instructions.len();
    program.put(MOVE_IMMEDIATE, 0, 0, 0, PASS);
    program.put(EXIT, 0, 0, 0, 0);
    for jump in program.to_pass {
        program.instructions[jump].offset = (end - jump - 1) as i16;
    }
    program.instructions
}
