//! Two stations and the network between them.

use std::net::SocketAddr;

use velo_fabric::packet::port::sim::{Host, Link, LinkId, Network};
use velo_fabric::packet::protocol::Timestamp;
use velo_fabric::packet::protocol::seal::{Protection, Role};

use crate::station::Station;

/// Two stations and the network between them.
pub struct World {
    /// The network.
    pub network: Network,
    /// The up link and the down link of each.
    pub links: [[LinkId; 2]; 2],
    /// The stations.
    pub stations: [Station; 2],
    hosts: [Host; 2],
    now: u64,
    addresses: u16,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

impl World {
    /// Two stations that know each other.
    pub fn new(seed: u64, protection: Protection) -> Self {
        let mut network = Network::new(seed, 9_000);
        let mut link = || network.add_link(Link::new(100_000_000, 100_000));
        let links = [[link(), link()], [link(), link()]];
        let hosts = [0, 1].map(|i| network.add_host(address(i as u16 + 1), links[i][0], links[i][1]));
        let stations = [
            Station::new(Role::Dialler, protection, address(2), false),
            Station::new(Role::Accepter, protection, address(1), false),
        ];
        Self { network, links, stations, hosts, now: 0, addresses: 2 }
    }

    /// The time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// A station comes from another address from now on.
    pub fn readdress(&mut self, which: usize) {
        self.addresses += 1;
        self.network.readdress(self.hosts[which], address(self.addresses));
    }

    /// Lets time pass.
    pub fn advance(&mut self, by_ns: u64) {
        let until = self.now + by_ns;
        loop {
            let mut wake = u64::MAX;
            for which in [0, 1] {
                wake = wake.min(self.turn(which));
            }
            let event = self.network.next_event().map_or(u64::MAX, |at| at.0);
            let at = wake.min(event);
            if at > until {
                self.now = until;
                return;
            }
            self.now = self.now.max(at);
            while let Some(delivery) = self.network.poll(Timestamp(self.now)) {
                let station = &mut self.stations[delivery.to.index()];
                station.endpoint.handle_datagram(Timestamp(self.now), delivery.arrival);
                station.events();
            }
        }
    }

    /// Lets a station do all it can do now, and returns when it wants to be called again.
    fn turn(&mut self, which: usize) -> u64 {
        let (now, host) = (Timestamp(self.now), self.hosts[which]);
        let station = &mut self.stations[which];
        if station.endpoint.poll_timeout().is_some_and(|at| at <= now) {
            station.endpoint.handle_timeout(now);
        }
        station.events();
        loop {
            let room = self.network.room_at(host);
            if room > now {
                return room.0;
            }
            let endpoint = &mut station.endpoint;
            if !self.network.send(now, host, |space| endpoint.poll_transmit(now, space)) {
                break;
            }
        }
        station.events();
        station.endpoint.poll_timeout().map_or(u64::MAX, |at| at.0.max(now.0 + 1))
    }
}
