//! The fabrics besides TCP that a configuration names: their ports are opened here, each to be driven by a worker of its own.
//!
//! What cannot be opened is left out and said: TCP carries everything without it.

use std::fs;
use std::io;
use std::net::SocketAddr;

use velo_config::{Config, Fabric, Fabrics};
use velo_fabric::packet::Packet;
use velo_fabric::packet::port::Port;
use velo_fabric::packet::port::dpdk::{Device, Dpdk, DpdkError, DpdkOptions, Steering};
use velo_fabric::packet::port::ether::{Ether, EtherOptions, FramePort as _, Neighbourhood};
use velo_fabric::packet::port::udp::{Udp, UdpOptions};
use velo_fabric::packet::port::xdp::{Xdp, XdpOptions};
use velo_fabric::packet::protocol::EndpointOptions;
use velo_fabric::rdma::device as rdma;
use velo_fabric::rdma::verbs::Lending;
use velo_fabric::supply::Supply;

use crate::carrier::Carrier;
use crate::session::paths::PacketKind;
use crate::topology;

/// Which fabrics a data plane uses, best first, and what each is told.
#[derive(Debug, Clone)]
pub struct FabricChoice {
    /// Best first; TCP among them.
    pub order: Vec<Fabric>,
    /// What each is told.
    pub settings: Fabrics,
    /// The rate at which this node receives at most over a packet fabric; none for that of the device.
    pub line_rate_bytes_per_s: Option<u64>,
}

impl FabricChoice {
    /// What a configuration says.
    pub fn from_config(config: &Config) -> Self {
        Self {
            order: config.fabrics_with_device().collect(),
            settings: config.fabric.clone(),
            line_rate_bytes_per_s: Some(config.net.line_rate.0 / 8).filter(|rate| *rate > 0),
        }
    }
}

/// Makes a fabric of a port, with what answers its peers.
pub(crate) type MakeCarrier =
    Box<dyn FnOnce(Box<dyn Supply>, EndpointOptions) -> io::Result<Box<dyn Carrier>>>;

/// A port for one worker.
pub(crate) struct OpenPort {
    pub(crate) make: MakeCarrier,
    /// Where peers are told to send.
    pub(crate) address: SocketAddr,
    /// What the status says of it.
    pub(crate) words: String,
    /// The NUMA node of its device, if it has one.
    pub(crate) numa: Option<usize>,
}

/// A packet fabric with its ports.
pub(crate) struct OpenFabric {
    pub(crate) kind: PacketKind,
    /// Its place in the order of preference.
    pub(crate) rank: u8,
    pub(crate) datagram_max_bytes: u32,
    pub(crate) ports: Vec<OpenPort>,
}

/// What could be opened.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) packets: Vec<OpenFabric>,
    pub(crate) rdma: Option<OpenRdma>,
}

/// Ports of RDMA devices.
pub(crate) struct OpenRdma {
    /// Its place in the order of preference.
    pub(crate) rank: u8,
    pub(crate) ports: Vec<OpenDevice>,
}

/// A port of an RDMA device.
pub(crate) struct OpenDevice {
    pub(crate) plugin: rdma::Plugin,
    pub(crate) device: rdma::Device,
    /// What the status says of it.
    pub(crate) words: String,
    pub(crate) numa: Option<usize>,
}

/// Opens the ports of all fabrics that are chosen; `note` hears what cannot be.
pub(crate) fn open(choice: &FabricChoice, cores: usize, note: impl Fn(String)) -> Opened {
    let mut opened = Opened::default();
    for (rank, fabric) in (0..).zip(&choice.order) {
        let ports = match fabric {
            Fabric::Tcp => continue,
            Fabric::Rdma => {
                match open_rdma(choice, &note) {
                    Ok(ports) if ports.is_empty() => {}
                    Ok(ports) => opened.rdma = Some(OpenRdma { rank, ports }),
                    Err(why) => note(format!("the fabric {fabric} is off: {why}")),
                }
                continue;
            }
            Fabric::Udp => open_udp(choice, cores).map(|ports| (PacketKind::Udp, ports)),
            Fabric::Xdp => open_xdp(choice).map(|ports| (PacketKind::Xdp, ports)),
            Fabric::Dpdk => open_dpdk(choice).map(|ports| (PacketKind::Dpdk, ports)),
        };
        match ports {
            Ok((kind, (datagram_max_bytes, ports))) => {
                opened.packets.push(OpenFabric { kind, rank, datagram_max_bytes, ports });
            }
            Err(why) => note(format!("the fabric {fabric} is off: {why}")),
        }
    }
    opened
}

type Ports = (u32, Vec<OpenPort>);

/// Each worker has a port of its own, since the kernel joins packets only then: the first that is configured, and those after it.
fn open_udp(choice: &FabricChoice, cores: usize) -> Result<Ports, String> {
    let udp = &choice.settings.udp;
    let workers = udp.workers.fixed().unwrap_or_else(|| topology::auto_workers(cores));
    let options = UdpOptions {
        offload: udp.gso,
        busy_poll_us: Some(udp.busy_poll_us).filter(|us| *us > 0),
        ..UdpOptions::default()
    };
    let (mut ports, mut datagram_max_bytes) = (Vec::new(), u32::MAX);
    for at in 0..workers {
        let port = Udp::bind(nth(udp.listen, at)?, &options).map_err(|error| error.to_string())?;
        let (local, caps) = (port.local(), port.caps());
        datagram_max_bytes = datagram_max_bytes.min(caps.datagram_max_bytes as u32);
        let address = udp.advertise.map_or(Ok(local), |advertised| nth(advertised, at))?;
        ports.push(OpenPort { make: carrier_of(port), address, words: format!("at {local}"), numa: None });
    }
    Ok((datagram_max_bytes, ports))
}

/// One worker has all queues of the interface: by which of them a peer's packets come is the device's choice.
fn open_xdp(choice: &FabricChoice) -> Result<Ports, String> {
    let xdp = &choice.settings.xdp;
    let interface = xdp.interface.as_str();
    let addresses = Xdp::addresses(interface).map_err(|error| error.to_string())?;
    let address =
        addresses.first().ok_or_else(|| format!("network interface `{interface}` has no address"))?;
    let local = SocketAddr::new(*address, xdp.port);
    let frames = Xdp::open(&XdpOptions::new(interface, local)).map_err(|error| error.to_string())?;
    let mode = frames.mode();
    let index = frames.caps().interface.ok_or("the kernel does not share its device")?;
    let neighbourhood = Neighbourhood::Kernel { interface: index };
    let options = EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false };
    let port = Ether::new(frames, options).map_err(|error| error.to_string())?;
    let datagram_max_bytes = port.caps().datagram_max_bytes as u32;
    let node = fs::read_to_string(format!("/sys/class/net/{interface}/device/numa_node"));
    let numa = node.ok().and_then(|node| node.trim().parse().ok());
    let words = format!("at {local} on {interface}: {mode}");
    Ok((datagram_max_bytes, vec![OpenPort { make: carrier_of(port), address: local, words, numa }]))
}

/// Each worker has a queue of the device and a port of its own, by which the device sorts.
fn open_dpdk(choice: &FabricChoice) -> Result<Ports, String> {
    let dpdk = &choice.settings.dpdk;
    let subnet = dpdk.address.ok_or("`fabric.dpdk.address` is empty")?;
    let device: Device = dpdk.device.parse().map_err(|error: DpdkError| error.to_string())?;
    let options = DpdkOptions {
        plugin: Some(dpdk.plugin.clone()).filter(|path| !path.as_os_str().is_empty()),
        queues: dpdk.queues.fixed().unwrap_or(1),
        udp_port: Some(dpdk.port),
        arguments: dpdk.eal.clone(),
        ..DpdkOptions::device(device)
    };
    let queues =
        Dpdk::start(options).and_then(|running| running.open(0)).map_err(|error| error.to_string())?;
    let (count, mut ports, mut datagram_max_bytes) = (queues.len(), Vec::new(), u32::MAX);
    for (at, queue) in queues.into_iter().enumerate() {
        let device = queue.device().clone();
        if count > 1 && device.steering() == Steering::Hash {
            return Err("the device cannot sort by port: set `fabric.dpdk.queues = 1`".to_owned());
        }
        let local = nth(SocketAddr::new(subnet.address, dpdk.port), at)?;
        let neighbourhood = Neighbourhood::Own { prefix_bits: subnet.prefix_bits, gateway: dpdk.gateway };
        let options = EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: false };
        let port = Ether::new(queue, options).map_err(|error| error.to_string())?;
        datagram_max_bytes = datagram_max_bytes.min(port.caps().datagram_max_bytes as u32);
        let words = format!("at {local}, queue {at} of {}", device.device());
        let numa = device.numa_node().map(|node| node as usize);
        ports.push(OpenPort { make: carrier_of(port), address: local, words, numa });
    }
    Ok((datagram_max_bytes, ports))
}

/// Which ports are to be used of those that have these addresses: all, or those that are named. Without a word of trust none, which is
/// said where there are any.
fn choose_rdma(
    settings: &velo_config::Rdma,
    addresses: &[rdma::Address],
) -> Result<Vec<rdma::Place>, String> {
    let mut places: Vec<rdma::Place> = Vec::new();
    let mut known = Vec::new();
    for address in addresses {
        let rdma::Place { device, port } = &address.place;
        let named = |name: &String| *name == *device || *name == format!("{device}:{port}");
        if !known.contains(device) {
            known.push(device.clone());
        }
        let chosen = settings.devices.is_empty() || settings.devices.iter().any(named);
        if chosen && !places.contains(&address.place) {
            places.push(address.place.clone());
        }
    }
    if !settings.trusted {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        return Err(format!(
            "nothing is encrypted on the network of {}; set `fabric.rdma.trusted = true` where it is trusted",
            known.join(", "),
        ));
    }
    if places.is_empty() {
        return Err(if known.is_empty() {
            "this host has no RDMA device with an address".to_owned()
        } else {
            format!("`fabric.rdma.devices` names none of {}", known.join(", "))
        });
    }
    Ok(places)
}

/// Opens the ports of RDMA devices that are to be used, as far as they are up.
fn open_rdma(choice: &FabricChoice, note: impl Fn(String)) -> Result<Vec<OpenDevice>, String> {
    let settings = &choice.settings.rdma;
    let places = choose_rdma(settings, &rdma::addresses())?;
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let path = Some(&*settings.plugin).filter(|path| !path.as_os_str().is_empty());
    let plugin = rdma::Plugin::open(path).map_err(|error| error.to_string())?;
    let mut ports = Vec::new();
    for place in places {
        match open_device(plugin, &place) {
            Ok(port) => ports.push(port),
            Err(error) => note(format!("the fabric rdma does without {place}: {error}")),
        }
    }
    if ports.is_empty() { Err("no port of its devices can be used".to_owned()) } else { Ok(ports) }
}

/// Opens a port of an RDMA device that is up.
pub(crate) fn open_device(plugin: rdma::Plugin, place: &rdma::Place) -> Result<OpenDevice, String> {
    let device = rdma::Device::open(plugin, place).map_err(|error| error.to_string())?;
    if !device.is_active() {
        return Err("the port is down".to_owned());
    }
    let node = fs::read_to_string(format!("/sys/class/infiniband/{}/device/numa_node", place.device));
    let numa = node.ok().and_then(|node| node.trim().parse().ok());
    let lending = match device.lending() {
        Lending::Windows => "lends by memory windows",
        Lending::Slabs => "lends whole slabs",
    };
    let rate = match device.rate_bytes_per_s() {
        Some(rate) => format!("{:.1} Gbit/s", rate as f64 * 8.0 / 1e9),
        None => "rate not known".to_owned(),
    };
    let at = rdma::addresses_of(place).first().map(|address| address.ip);
    let at = at.map_or_else(String::new, |ip| format!(" at {ip}"));
    Ok(OpenDevice { plugin, device, words: format!("{place}{at}, {rate}, {lending}"), numa })
}

/// The address for worker `at`: the port that many higher, where it is not any free one.
fn nth(address: SocketAddr, at: usize) -> Result<SocketAddr, String> {
    if address.port() == 0 {
        return Ok(address);
    }
    let port = usize::from(address.port()) + at;
    let port = u16::try_from(port).map_err(|_| format!("there is no port {port} for worker {at}"))?;
    Ok(SocketAddr::new(address.ip(), port))
}

fn carrier_of<P: Port + 'static>(port: P) -> MakeCarrier {
    Box::new(move |supply, options| Ok(Box::new(Packet::new(port, supply, options)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(device: &str, port: u32) -> rdma::Address {
        rdma::Address {
            place: rdma::Place { device: device.to_owned(), port },
            gid_index: 1,
            gid: [0; 16],
            ip: [10, 1, 0, 1].into(),
            kind: rdma::AddressKind::RoceV2,
            interface: None,
        }
    }

    #[test]
    fn devices_are_used_where_their_network_is_trusted_and_they_are_named() {
        let there = [address("mlx5_0", 1), address("mlx5_0", 1), address("mlx5_0", 2), address("mlx5_1", 1)];
        let chosen = |trusted, devices: &[&str]| {
            let devices = devices.iter().map(|name| (*name).to_owned()).collect();
            let settings = velo_config::Rdma { trusted, devices, ..velo_config::Rdma::default() };
            choose_rdma(&settings, &there)
                .map(|places| places.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let refused = chosen(false, &[]).expect_err("its network is not trusted");
        assert!(refused.contains("set `fabric.rdma.trusted = true`") && refused.contains("mlx5_0, mlx5_1"));
        assert_eq!(chosen(true, &[]).expect("all").len(), 3);
        assert_eq!(chosen(true, &["mlx5_0:2", "mlx5_1"]).expect("two"), ["mlx5_0 port 2", "mlx5_1 port 1"]);
        assert!(chosen(true, &["mlx5_7"]).is_err_and(|why| why.contains("names none of mlx5_0, mlx5_1")));
        // Where there is none there is nothing to say, unless it is asked for.
        assert_eq!(choose_rdma(&velo_config::Rdma::default(), &[]), Ok(Vec::new()));
        let asked = velo_config::Rdma { trusted: true, ..velo_config::Rdma::default() };
        assert!(choose_rdma(&asked, &[]).is_err_and(|why| why.contains("no RDMA device")));
    }
}
