//! The bare loop of a port: datagrams as fast as it takes them, copied from cold memory and into cold memory, and no protocol. What the
//! packet fabric reaches over the same port is held against it.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use velo_fabric::packet::port::{Departure, Ecn, Port};

use super::region::Cold;

/// How long neighbours may take to find each other.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came through.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Gbit/s of payload that arrived.
    pub gbit_per_s: f64,
    /// The share of what was sent that did not.
    pub lost: f64,
}

/// Sends datagrams of `datagram_bytes` from one port to the other for so long, one thread a side.
///
/// # Errors
/// Where a port fails, or nothing arrives.
pub fn between<P: Port>(
    sender: &mut P,
    receiver: &mut P,
    datagram_bytes: usize,
    time: Duration,
) -> anyhow::Result<Rate> {
    let to = receiver.local();
    let began = Instant::now();
    let mut heard = 0;
    while heard == 0 {
        if began.elapsed() > PATIENCE {
            anyhow::bail!("nothing arrived in {PATIENCE:?}");
        }
        let mut once = Some(());
        sender.tx_burst(&mut |_| once.take().map(|()| departure(to, 1)))?;
        thread::sleep(Duration::from_millis(1));
        heard = receiver.rx_burst(&mut |_| {})?;
    }
    let stop = AtomicBool::new(false);
    // Touched before the clock starts.
    let (mut from, mut into) = (Cold::new()?, Cold::new()?);
    thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(receiver, &mut into, &stop));
        let sent = send(sender, to, &mut from, datagram_bytes, time);
        thread::sleep(Duration::from_millis(20));
        stop.store(true, Ordering::Relaxed);
        let (sent, received) = (sent?, receiving.join().expect("it does not panic")?);
        let bits = (received * datagram_bytes as u64) as f64 * 8.0;
        Ok(Rate {
            gbit_per_s: bits / time.as_secs_f64() / 1e9,
            lost: 1.0 - received as f64 / sent.max(1) as f64,
        })
    })
}

fn departure(to: SocketAddr, len: usize) -> Departure {
    Departure { to, len, ecn: Ecn::NotCapable, probe: false }
}

fn send(
    port: &mut impl Port,
    to: SocketAddr,
    region: &mut Cold,
    len: usize,
    time: Duration,
) -> io::Result<u64> {
    let mut sent = 0;
    let began = Instant::now();
    while began.elapsed() < time {
        sent += port.tx_burst(&mut |space| {
            space[..len].copy_from_slice(region.next(len));
            Some(departure(to, len))
        })? as u64;
    }
    Ok(sent)
}

fn receive(port: &mut impl Port, region: &mut Cold, stop: &AtomicBool) -> io::Result<u64> {
    let mut received = 0;
    while !stop.load(Ordering::Relaxed) {
        received += port.rx_burst(&mut |arrival| {
            region.next(arrival.datagram.len()).copy_from_slice(arrival.datagram);
        })? as u64;
    }
    Ok(received)
}
