//! Frames that are asked for and echoed: both ends look at every byte, and what is lost is asked for again.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::ether::{FrameDeparture, FramePort};

use super::PATIENCE;

/// Local experimental (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const NUMBER: std::ops::Range<usize> = 15..23;
const WINDOW: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Ask = 0xa5,
    Echo = 0x5a,
}

fn write(space: &mut [u8], kind: Kind, number: u64, len: usize) -> FrameDeparture {
    let frame = &mut space[..len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame[14] = kind as u8;
    frame[NUMBER].copy_from_slice(&number.to_le_bytes());
    let payload = &mut frame[NUMBER.end..];
    payload.copy_from_slice(pattern(number, payload.len()));
    FrameDeparture { len, checksum: None }
}

/// What a frame of this number has in it.
fn pattern(number: u64, len: usize) -> &'static [u8] {
    const SHIFTS: usize = 4_093;
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..70_000 + SHIFTS).map(|_| next()).collect()
    });
    &BYTES[number as usize % SHIFTS..][..len]
}

/// The number of a frame of ours, of this kind. Every byte of it must be right.
fn read(frame: &[u8], kind: Kind) -> Option<u64> {
    if frame.len() < NUMBER.end || frame[12..14] != ETHERTYPE || frame[14] != kind as u8 {
        return None;
    }
    let number = u64::from_le_bytes(frame[NUMBER].try_into().expect("eight bytes"));
    let payload = &frame[NUMBER.end..];
    assert!(payload == pattern(number, payload.len()), "frame {number} of {} bytes has changed", frame.len());
    Some(number)
}

/// Asks for `count` frames of `len` bytes each and looks at the echoes. Returns how many had to be asked for again.
pub fn ask(port: &mut impl FramePort, len: usize, count: u64) -> u64 {
    let mut echoed = vec![false; count as usize];
    let (mut next, mut missing, mut again) = (0, count, 0);
    let mut due: VecDeque<u64> = VecDeque::new();
    let (mut outstanding, mut progress, began) = (0, Instant::now(), Instant::now());
    while missing > 0 {
        assert!(began.elapsed() < PATIENCE, "{missing} of {count} frames of {len} bytes are missing");
        port.tx_burst(&mut |space| {
            if let Some(number) = due.pop_front() {
                return Some(write(space, Kind::Ask, number, len));
            }
            (next < count && outstanding < WINDOW).then(|| {
                (next, outstanding) = (next + 1, outstanding + 1);
                write(space, Kind::Ask, next - 1, len)
            })
        })
        .expect("the device is there");
        port.rx_burst(&mut |arrival| {
            let Some(number) = read(arrival.frame, Kind::Echo).filter(|&number| number < count) else {
                return;
            };
            assert!(arrival.frame.len() == len || len < 60 && arrival.frame.len() == 60);
            if !std::mem::replace(&mut echoed[number as usize], true) {
                (missing, outstanding, progress) = (missing - 1, outstanding - 1, Instant::now());
            }
        })
        .expect("the device is there");
        if progress.elapsed() > Duration::from_secs(1) {
            due = (0..next).filter(|&number| !echoed[number as usize]).collect();
            again += due.len() as u64;
            progress = Instant::now();
        }
    }
    again
}

/// Echoes frames until it is ended.
pub fn echo(port: &mut impl FramePort) -> ! {
    let mut due: VecDeque<(u64, usize)> = VecDeque::new();
    loop {
        let count = port.rx_burst(&mut |arrival| {
            if let Some(number) = read(arrival.frame, Kind::Ask) {
                due.push_back((number, arrival.frame.len()));
            }
        });
        count.expect("the device is there");
        let fill = &mut |space: &mut [u8]| {
            due.pop_front().map(|(number, len)| write(space, Kind::Echo, number, len))
        };
        port.tx_burst(fill).expect("the device is there");
    }
}
