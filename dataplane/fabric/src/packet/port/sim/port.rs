//! A host of a simulated network as a [`Port`].

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Host, Network};
use crate::packet::port::{Arrival, Departure, Ecn, Port, PortCaps, PortCounters};
use crate::packet::protocol::Timestamp;

const BURST: usize = 64;

/// What moves the time of a network that has ports.
#[derive(Debug, Clone, Copy)]
pub enum SimClock {
    /// Who holds the network, by [`Network::poll`] or [`SimPort::advance`].
    Virtual,
    /// The clock on the wall, since this moment: threads use the network as if it were real.
    Real(Instant),
}

#[derive(Debug)]
struct Letter {
    from: SocketAddr,
    ecn: Ecn,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    network: Network,
    clock: SimClock,
    /// What has arrived, by host.
    inboxes: Vec<VecDeque<Letter>>,
    spare: Vec<Vec<u8>>,
}

impl Shared {
    fn advance(&mut self, to: Timestamp) {
        while let Some(delivery) = self.network.poll(to) {
            let mut bytes = self.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(delivery.arrival.datagram);
            let letter = Letter { from: delivery.arrival.from, ecn: delivery.arrival.ecn, bytes };
            self.inboxes[delivery.to.index()].push_back(letter);
        }
    }

    fn catch_up(&mut self) {
        if let SimClock::Real(start) = self.clock {
            self.advance(Timestamp(start.elapsed().as_nanos() as u64));
        }
    }
}

/// A host of a [`Network`] as a port. It is polled: it has nothing to sleep on.
#[derive(Debug)]
pub struct SimPort {
    shared: Arc<Mutex<Shared>>,
    host: Host,
    lossless: bool,
    datagram_max_bytes: usize,
    line_rate_bytes_per_s: u64,
    counters: PortCounters,
}

impl SimPort {
    /// A port for every host of `network`, in their order.
    pub fn all(network: Network, clock: SimClock) -> Vec<Self> {
        let ports: Vec<(Host, u64)> = (0..network.hosts.len() as u32)
            .map(|host| {
                let up = network.link(network.hosts[host as usize].up);
                (Host(host), up.rate_bytes_per_s)
            })
            .collect();
        let datagram_max_bytes = network.datagram_max_bytes;
        let inboxes = ports.iter().map(|_| VecDeque::new()).collect();
        let shared = Arc::new(Mutex::new(Shared { network, clock, inboxes, spare: Vec::new() }));
        ports
            .into_iter()
            .map(|(host, line_rate_bytes_per_s)| Self {
                shared: shared.clone(),
                host,
                lossless: false,
                datagram_max_bytes,
                line_rate_bytes_per_s,
                counters: PortCounters::default(),
            })
            .collect()
    }

    /// Says that nothing is lost on the way, which is to be true.
    pub fn set_lossless(&mut self) {
        self.lossless = true;
    }

    /// Moves the network's time to `to`.
    pub fn advance(&self, to: Timestamp) {
        self.lock().advance(to);
    }

    /// Looks at the network, or changes it.
    pub fn with_network<T>(&self, look: impl FnOnce(&mut Network) -> T) -> T {
        look(&mut self.lock().network)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port for SimPort {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn caps(&self) -> PortCaps {
        PortCaps {
            datagram_max_bytes: self.datagram_max_bytes,
            lossless: self.lossless,
            line_rate_bytes_per_s: Some(self.line_rate_bytes_per_s),
            wakes: false,
        }
    }

    fn local(&self) -> SocketAddr {
        self.lock().network.address(self.host)
    }

    fn rx_burst(&mut self, each: &mut dyn FnMut(Arrival<'_>)) -> io::Result<usize> {
        let index = self.host.index();
        let mut count = 0;
        self.lock().catch_up();
        while count < BURST {
            // Not held while `each` runs: it may send.
            let Some(mut letter) = self.lock().inboxes[index].pop_front() else { break };
            count += 1;
            self.counters.rx_datagrams += 1;
            self.counters.rx_bytes += letter.bytes.len() as u64;
            each(Arrival { from: letter.from, datagram: &mut letter.bytes, ecn: letter.ecn });
            self.lock().spare.push(letter.bytes);
        }
        Ok(count)
    }

    fn tx_burst(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> Option<Departure>) -> io::Result<usize> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.catch_up();
        let now = shared.network.now();
        let mut count = 0;
        while count < BURST {
            if shared.network.room_at(self.host) > now {
                self.counters.tx_full += 1;
                break;
            }
            let counters = &mut self.counters;
            let sent = shared.network.send(now, self.host, |space| {
                let departure = fill(space)?;
                counters.tx_datagrams += 1;
                counters.tx_bytes += departure.len as u64;
                Some(departure)
            });
            if !sent {
                break;
            }
            count += 1;
        }
        Ok(count)
    }

    fn arm(&mut self) -> io::Result<bool> {
        let mut shared = self.lock();
        shared.catch_up();
        Ok(shared.inboxes[self.host.index()].is_empty())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}
