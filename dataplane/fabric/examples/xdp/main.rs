//! Measures AF_XDP over virtual Ethernet between two network namespaces, as root: the bare loop of the port, and the packet fabric
//! over it. `cargo run --release -p velo-fabric --example xdp -- [SECONDS [MTU]]`; compare what one run prints. With `worker` instead,
//! it loads one thread for 10 seconds and prints its number, for `strace -c -p`.

#[path = "../../tests/support/namespaces.rs"]
mod namespaces;
mod port_loop;
mod transfer;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use namespaces::{DEVICE, End, Link};
use velo_fabric::packet::port::ether::{Ether, EtherOptions, FramePort, Neighbourhood};
use velo_fabric::packet::port::xdp::{Xdp, XdpOptions};
use velo_fabric::packet::port::{Departure, Ecn, Port};
use velo_fabric::packet::protocol::seal::{Cipher, Protection};

type Failure = Box<dyn std::error::Error>;

fn open(end: &End) -> Ether<Xdp> {
    let local = SocketAddr::new(end.v4.into(), 4800);
    end.run(|| {
        let frames = Xdp::open(&XdpOptions::new(DEVICE, local)).expect("root and AF_XDP");
        let interface = frames.caps().interface.expect("it shares the kernel's");
        let neighbourhood = Neighbourhood::Kernel { interface };
        let options = EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false };
        Ether::new(frames, options).expect("its addresses are good")
    })
}

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("worker") {
        return worker();
    }
    let seconds: f64 = first.and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let only: Option<u32> = arguments.next().and_then(|text| text.parse().ok());
    for mtu in [1500, 3506, 9000, 65_000].into_iter().filter(|mtu| only.is_none_or(|only| only == *mtu)) {
        measure(mtu, Duration::from_secs_f64(seconds))?;
    }
    Ok(())
}

fn measure(mtu: u32, time: Duration) -> Result<(), Failure> {
    let link = Link::new(mtu)?;
    let (mut a, mut b) = (open(&link.a), open(&link.b));
    println!("MTU {mtu}: {:?}", a.frames().mode());
    let datagram_bytes = a.caps().datagram_max_bytes;
    let rate = port_loop::between(&mut a, &mut b, datagram_bytes, time)?;
    println!("  bare loop           {:>7.2} Gbit/s, {:.1} % lost", rate.gbit_per_s, rate.lost * 100.0);
    drop((a, b));
    let bytes = ((rate.gbit_per_s / 2.0 * 125e6 * time.as_secs_f64()) as u64 >> 20).max(16) << 20;
    for (protection, name) in
        [(Protection::Trusted, "trusted"), (Protection::Sealed(Cipher::Aes128Gcm), "AES-128")]
    {
        let (gbit_per_s, counters, dropped) =
            transfer::between(open(&link.a), open(&link.b), protection, bytes)?;
        println!(
            "  packet, {name:<11} {gbit_per_s:>7.2} Gbit/s, {:.2} of the loop; lost {} spurious {} of {} datagrams, {dropped} dropped",
            gbit_per_s / rate.gbit_per_s,
            counters.segments_lost,
            counters.segments_spurious,
            counters.datagrams_in,
        );
    }
    Ok(())
}

/// One thread sends and receives 1500-byte frames; another returns them.
fn worker() -> Result<(), Failure> {
    let link = Link::new(1500)?;
    let (mut a, mut b) = (open(&link.a), open(&link.b));
    port_loop::between(&mut a, &mut b, 1000, Duration::from_millis(100))?;
    let (to, len) = (b.local(), 1400);
    println!("{}", rustix::thread::gettid());
    let began = Instant::now();
    let other = std::thread::spawn(move || {
        while began.elapsed() < Duration::from_secs(10) {
            b.rx_burst(&mut |_| {}).expect("the device is there");
        }
    });
    let mut frames = 0;
    while began.elapsed() < Duration::from_secs(10) {
        frames += a.tx_burst(&mut |_| Some(Departure { to, len, ecn: Ecn::Capable, probe: false }))?;
        a.rx_burst(&mut |_| {})?;
    }
    other.join().map_err(|_| "the other side")?;
    println!("{frames} frames, {:?}", a.counters());
    Ok(())
}
