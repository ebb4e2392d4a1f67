//! The program, run by the kernel on frames that nobody sent, against the same decision written plainly.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::bpf::Program;
use super::program::{PASS, Verdict, steer};

/// What the program under test says of a frame that it takes.
const TAKEN: i32 = 1;

fn load(local: SocketAddr, vlan: Option<u16>, fragments: bool) -> Option<Program> {
    match Program::load(&steer(local, vlan, Verdict::Return(TAKEN)), fragments) {
        Ok(program) => Some(program),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            println!("SKIP: XDP programs cannot be loaded here: {error}");
            if let Some(path) = std::env::var_os("VELO_SKIPS")
                && let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(path)
            {
                let _ = writeln!(file, "SKIP: XDP programs cannot be loaded here: {error}");
            }
            None
        }
        Err(error) => panic!("the kernel does not take the program: {error}"),
    }
}

/// Whether the frame is for `local`.
fn is_ours(frame: &[u8], local: SocketAddr, vlan: Option<u16>) -> bool {
    let half = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let ip = if vlan.is_some() { 18 } else { 14 };
    let udp = ip + if local.is_ipv4() { 20 } else { 40 };
    if frame.len() < udp + 8 || half(udp + 2) != local.port() {
        return false;
    }
    if let Some(id) = vlan
        && (half(12) != 0x8100 || half(14) & 0xfff != id)
    {
        return false;
    }
    match local.ip() {
        IpAddr::V4(address) => {
            half(ip - 2) == 0x0800
                && frame[ip] == 0x45
                && half(ip + 6) & 0x3fff == 0
                && frame[ip + 9] == 17
                && frame[ip + 16..ip + 20] == address.octets()
        }
        IpAddr::V6(address) => {
            half(ip - 2) == 0x86dd
                && frame[ip] >> 4 == 6
                && frame[ip + 6] == 17
                && frame[ip + 24..ip + 40] == address.octets()
        }
    }
}

/// A frame for `local`.
fn frame(local: SocketAddr, vlan: Option<u16>, payload: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    if let Some(id) = vlan {
        // With a priority.
        frame.extend([0x81, 0x00, 0xa0 | (id >> 8) as u8, id as u8]);
    }
    match local.ip() {
        IpAddr::V4(address) => {
            frame.extend([0x08, 0x00, 0x45, 0x02, 0, 0, 7, 7, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 9]);
            frame.extend(address.octets());
        }
        IpAddr::V6(address) => {
            frame.extend([0x86, 0xdd, 0x60, 0x20, 0, 0, 0, 0, 17, 64]);
            frame.extend([0xfd; 16]);
            frame.extend(address.octets());
        }
    }
    frame.extend([0x30, 0x39]);
    frame.extend(local.port().to_be_bytes());
    frame.extend(vec![0; 4 + payload]);
    frame
}

fn locals() -> [SocketAddr; 2] {
    // Octets and ports with their highest bits set: no number is taken for a negative one.
    ["203.0.113.255:65534".parse().unwrap(), "[fd00:8000::ffff:fffe]:4000".parse().unwrap()]
}

#[test]
fn the_kernel_takes_the_program_and_it_takes_what_is_ours() {
    for local in locals() {
        for vlan in [None, Some(5), Some(4094)] {
            for fragments in [false, true] {
                let Some(program) = load(local, vlan, fragments) else { return };
                let ours = frame(local, vlan, 100);
                assert_eq!(program.run(&ours).unwrap(), TAKEN as u32);
                let others = SocketAddr::new(local.ip(), local.port() ^ 1);
                assert_eq!(program.run(&frame(others, vlan, 100)).unwrap(), PASS as u32);
                let headers = ours.len() - 100;
                assert_eq!(program.run(&ours[..headers]).unwrap(), TAKEN as u32);
                assert_eq!(program.run(&ours[..headers - 1]).unwrap(), PASS as u32);
            }
        }
    }
}

#[test]
fn it_decides_as_it_should_whatever_comes() {
    let mut taken = 0;
    for local in locals() {
        for vlan in [None, Some(5)] {
            let Some(program) = load(local, vlan, false) else { return };
            let edits = prop::collection::vec((0usize..66, any::<u8>()), 0..3);
            let bits = prop::option::of((0usize..66, 0u8..8));
            let mut runner = proptest::test_runner::TestRunner::default();
            let run = runner.run(&(edits, bits, 14usize..120, any::<bool>()), |(edits, bit, len, cut)| {
                let mut frame = frame(local, vlan, 20);
                for (at, byte) in edits {
                    let at = at % frame.len();
                    frame[at] = byte;
                }
                if let Some((at, bit)) = bit {
                    let at = at % frame.len();
                    frame[at] ^= 1 << bit;
                }
                if cut {
                    frame.truncate(len);
                }
                let ours = is_ours(&frame, local, vlan);
                prop_assert_eq!(program.run(&frame).unwrap(), if ours { TAKEN } else { PASS } as u32);
                Ok(())
            });
            run.unwrap();
            taken += 1;
        }
    }
    assert_eq!(taken, 4);
}
