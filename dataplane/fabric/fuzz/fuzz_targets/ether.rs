//! Arbitrary frames at a port of the Ethernet layer: ARP, neighbour discovery, datagrams, and nothing of the kind. What is handed on lies
//! in its frame, and what is answered is bounded.
#![no_main]

use std::io;
use std::os::fd::BorrowedFd;

use velo_fabric::packet::port::ether::{
    Ether, EtherOptions, FrameArrival, FrameCaps, FrameDeparture, FramePort, Mac, Neighbourhood, Verdict,
};
use velo_fabric::packet::port::{Departure, Ecn, Port, PortCounters};

struct Frames(Vec<Vec<u8>>);

impl FramePort for Frames {
    fn name(&self) -> &'static str {
        "fuzz"
    }
    fn caps(&self) -> FrameCaps {
        FrameCaps {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            frame_max_bytes: 1514,
            lossless: false,
            line_rate_bytes_per_s: None,
            wakes: false,
            checksums: false,
            interface: None,
        }
    }
    fn rx_burst(&mut self, each: &mut dyn FnMut(FrameArrival<'_>)) -> io::Result<usize> {
        let count = self.0.len();
        for mut frame in self.0.drain(..) {
            each(FrameArrival { frame: &mut frame, checksum: Verdict::Unknown });
        }
        Ok(count)
    }
    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<FrameDeparture>) -> io::Result<usize> {
        let mut space = [0; 1514];
        let mut sent = 0;
        while sent < 32
            && let Some(departure) = fill(&mut space)
        {
            assert!(departure.len <= space.len());
            sent += 1;
        }
        Ok(sent)
    }
    fn arm(&mut self) -> io::Result<bool> {
        Ok(true)
    }
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn counters(&self) -> PortCounters {
        PortCounters::default()
    }
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((choice, mut rest)) = input.split_first() else { return };
    let (local, peer) = if choice & 1 == 0 {
        ("10.0.0.1:4000", "10.0.0.2:4000")
    } else {
        ("[fd00::1]:4000", "[fd00::2]:4000")
    };
    let options = EtherOptions {
        local: local.parse().unwrap(),
        vlan: (choice & 2 != 0).then_some(5),
        neighbourhood: Neighbourhood::Own { prefix_bits: 24, gateway: None },
        ipv4_checksum: false,
    };
    let mut port = Ether::new(Frames(Vec::new()), options).unwrap();
    let to = peer.parse().unwrap();
    let mut burst = Vec::new();
    while let [len, tail @ ..] = rest {
        let (frame, after) = tail.split_at(tail.len().min(usize::from(*len)));
        burst.push(frame.to_vec());
        rest = after;
    }
    let frames = burst.len() as u64;
    // So that answers about the peer are wanted.
    port.tx_burst(&mut |_| Some(Departure { to, len: 1, ecn: Ecn::NotCapable, probe: false })).unwrap();
    port.frames_mut().0 = burst;
    let mut datagrams = 0;
    let taken = port.rx_burst(&mut |arrival| {
        assert!(arrival.datagram.len() < 256);
        datagrams += 1;
    });
    assert_eq!(taken.unwrap() as u64, frames);
    assert!(datagrams + port.counters().rx_dropped <= frames);
    port.tx_burst(&mut |_| None).unwrap();
});
