//! The bare port: frames in bursts, no protocol.

use std::time::{Duration, Instant};

use velo_fabric::packet::port::dpdk::DpdkPort;
use velo_fabric::packet::port::ether::{FrameDeparture, FramePort};

use super::super::region::Cold;
use super::{Figure, WARM_UP};

/// Ethernet, IPv4 and UDP: what is not copied, as a protocol would write it.
const HEADERS: usize = 42;

/// Sends frames without end, each filled from a cold region.
pub(super) fn supply(mut port: DpdkPort, frame_bytes: usize) -> Figure {
    let mut region = Cold::new().expect("memory");
    loop {
        let sent = port.tx_burst(&mut |space| {
            let (headers, payload) = space[..frame_bytes].split_at_mut(HEADERS);
            headers.fill(0xff);
            payload.copy_from_slice(region.next(payload.len()));
            Some(FrameDeparture { len: frame_bytes, checksum: None })
        });
        sent.expect("the device is there");
    }
}

/// Takes what comes for so long into a cold region.
pub(super) fn take(mut port: DpdkPort, time: Duration) -> Figure {
    let mut region = Cold::new().expect("memory");
    let mut figure = Figure::default();
    let mut began: Option<Instant> = None;
    let mut turn = 0_u32;
    loop {
        let count = port.rx_burst(&mut |arrival| {
            let (headers, payload) = arrival.frame.split_at_mut(HEADERS.min(arrival.frame.len()));
            std::hint::black_box(headers[0]);
            region.next(payload.len()).copy_from_slice(payload);
            figure.bytes += (headers.len() + payload.len()) as u64;
            figure.count += 1;
        });
        turn = turn.wrapping_add(1);
        if count.expect("the device is there") == 0 && !turn.is_multiple_of(1_024) {
            continue;
        }
        if !turn.is_multiple_of(64) {
            continue;
        }
        match began {
            None if figure.count > 0 => began = Some(Instant::now()),
            Some(at) if figure.seconds == 0.0 && at.elapsed() > WARM_UP => {
                began = Some(Instant::now());
                figure = Figure { seconds: f64::MIN_POSITIVE, ..Figure::default() };
            }
            Some(at) if figure.seconds != 0.0 && at.elapsed() > time => {
                figure.seconds = at.elapsed().as_secs_f64();
                return figure;
            }
            _ => {}
        }
    }
}
