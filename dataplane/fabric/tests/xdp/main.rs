//! AF_XDP over virtual Ethernet between two network namespaces: frames go through, the kernel keeps its network, and a worker that is
//! killed leaves nothing behind.

#[path = "../support/namespaces.rs"]
mod namespaces;
#[path = "../packet/pair.rs"]
mod pair;
#[path = "../support/mod.rs"]
mod support;
mod transfer;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespaces::{DEVICE, End, link_or_skip, skip};
use velo_fabric::packet::limits::DATAGRAM_MAX_BYTES;
use velo_fabric::packet::port::ether::{Ether, EtherOptions, FramePort, Neighbourhood};
use velo_fabric::packet::port::xdp::{Xdp, XdpError, XdpOptions};
use velo_fabric::packet::port::{Departure, Ecn, Port};

const PORT: u16 = 4800;
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a test finds its child's orders.
const CHILD: &str = "VELO_TEST_XDP_CHILD";

fn address(end: &End, six: bool) -> SocketAddr {
    let ip: IpAddr = if six { end.v6.into() } else { end.v4.into() };
    SocketAddr::new(ip, PORT)
}

fn open(end: &End, local: SocketAddr) -> Result<Ether<Xdp>, XdpError> {
    end.run(|| {
        let frames = Xdp::open(&XdpOptions::new(DEVICE, local))?;
        let interface = frames.caps().interface.expect("it shares the kernel's");
        let neighbourhood = Neighbourhood::Kernel { interface };
        let options = EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: true };
        Ok(Ether::new(frames, options).expect("its addresses are good"))
    })
}

/// The port, or nothing where this machine has no AF_XDP.
fn open_or_skip(end: &End, local: SocketAddr, what: &str) -> Option<Ether<Xdp>> {
    match open(end, local) {
        Ok(port) => Some(port),
        Err(error @ (XdpError::Unsupported { .. } | XdpError::Privilege { .. })) => {
            skip(&format!("{what}: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn send(port: &mut impl Port, to: SocketAddr, datagrams: &mut dyn Iterator<Item = Vec<u8>>) -> usize {
    let sent = port.tx_burst(&mut |space| {
        let datagram = datagrams.next()?;
        space[..datagram.len()].copy_from_slice(&datagram);
        Some(Departure { to, len: datagram.len(), ecn: Ecn::Capable, probe: false })
    });
    sent.unwrap()
}

fn receive(port: &mut impl Port, each: &mut dyn FnMut(SocketAddr, &[u8], Ecn)) -> usize {
    port.rx_burst(&mut |arrival| each(arrival.from, arrival.datagram, arrival.ecn)).unwrap()
}

/// Sends until something of it has arrived: the first are lost while the neighbour is asked for.
fn acquaint(a: &mut impl Port, b: &mut impl Port) {
    let began = Instant::now();
    let mut heard = false;
    while !heard {
        assert!(began.elapsed() < PATIENCE, "nothing arrived: {:?} {:?}", a.counters(), b.counters());
        send(a, b.local(), &mut std::iter::once(b"hello".to_vec()));
        std::thread::sleep(Duration::from_millis(1));
        receive(b, &mut |_, _, _| heard = true);
    }
    while receive(b, &mut |_, _, _| {}) > 0 {}
}

/// Every length from `lengths`, one after the other and several at once, each with bytes that its length decides.
fn every_length_arrives(a: &mut impl Port, b: &mut impl Port, lengths: Vec<usize>) {
    let noise = support::noise(5, 2 * DATAGRAM_MAX_BYTES);
    let datagram = |len: usize| noise[len / 2..][..len].to_vec();
    let mut missing: HashMap<usize, ()> = lengths.iter().map(|len| (*len, ())).collect();
    let began = Instant::now();
    while !missing.is_empty() {
        assert!(
            began.elapsed() < PATIENCE,
            "{} did not arrive: {:?} {:?}",
            missing.len(),
            a.counters(),
            b.counters()
        );
        let now: Vec<_> = missing.keys().copied().collect();
        let mut datagrams = now.into_iter().map(datagram);
        while send(a, b.local(), &mut datagrams) > 0 {
            receive(b, &mut |from, bytes, ecn| {
                assert_eq!((from, ecn), (a.local(), Ecn::Capable));
                assert!(bytes == datagram(bytes.len()), "{} bytes differ", bytes.len());
                missing.remove(&bytes.len());
            });
        }
        receive(b, &mut |_, bytes, _| {
            missing.remove(&bytes.len());
        });
    }
}

#[test]
fn frames_of_every_length_and_family_go_through() {
    for (mtu, six) in [(1500, false), (1500, true), (3506, false), (9000, true), (65_535, false)] {
        let Some(link) = link_or_skip(mtu, "xdp") else { return };
        let (to_a, to_b) = (address(&link.a, six), address(&link.b, six));
        let Some(mut a) = open_or_skip(&link.a, to_a, "xdp") else { return };
        let mut b = open(&link.b, to_b).unwrap();
        let longest = a.caps().datagram_max_bytes;
        let headers = if six { 48 } else { 28 };
        assert_eq!(longest, (mtu as usize - headers).min(65_536 - 14 - headers).min(DATAGRAM_MAX_BYTES));
        assert_eq!(a.frames().mode().fragments, mtu > 3506);
        acquaint(&mut a, &mut b);
        acquaint(&mut b, &mut a);
        let step = (longest / 300) | 1;
        let lengths: Vec<_> = (1..longest).step_by(step).chain(longest.saturating_sub(9)..=longest).collect();
        every_length_arrives(&mut a, &mut b, lengths.clone());
        every_length_arrives(&mut b, &mut a, lengths);
    }
}

#[test]
fn the_kernel_takes_its_frames_and_it_takes_the_kernels() {
    for six in [false, true] {
        let Some(link) = link_or_skip(1500, "xdp beside a kernel socket") else { return };
        let (to_a, to_b) = (address(&link.a, six), address(&link.b, six));
        let Some(mut a) = open_or_skip(&link.a, to_a, "xdp beside a kernel socket") else { return };
        let socket = link.b.run(|| UdpSocket::bind(to_b).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut bytes = [0; 2000];
        let began = Instant::now();
        for len in [1, 2, 3, 1000, 1401, a.caps().datagram_max_bytes] {
            loop {
                assert!(
                    began.elapsed() < PATIENCE,
                    "{len} bytes did not reach the kernel: {:?}",
                    a.counters()
                );
                send(&mut a, to_b, &mut std::iter::once(vec![len as u8; len]));
                match socket.recv_from(&mut bytes) {
                    Ok((got, from)) if got == len => {
                        assert_eq!(from, to_a);
                        assert!(bytes[..len].iter().all(|byte| *byte == len as u8));
                        break;
                    }
                    _ => {}
                }
            }
            let mut heard = None;
            while heard.is_none() {
                assert!(began.elapsed() < PATIENCE, "{len} bytes did not come: {:?}", a.counters());
                socket.send_to(&vec![len as u8 ^ 0xff; len], to_a).unwrap();
                receive(&mut a, &mut |from, bytes, _| heard = Some((from, bytes.to_vec())));
            }
            let (from, got) = heard.unwrap();
            assert_eq!((from, got), (to_b, vec![len as u8 ^ 0xff; len]));
            while receive(&mut a, &mut |_, _, _| {}) > 0 {}
            while socket.recv_from(&mut bytes).is_ok() {}
        }
    }
}

/// A stream over TCP through the link, both ways.
fn tcp_passes(link: &namespaces::Link) {
    let listener = link.b.run(|| TcpListener::bind((link.b.v4, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let server = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = vec![0; 1 << 20];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        });
        let mut stream = link.a.run(|| TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let sent: Vec<_> = (0..1 << 20).map(|i| (i & 0xff) as u8 ^ (i >> 8) as u8).collect();
        stream.write_all(&sent).unwrap();
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).unwrap();
        assert!(got == sent);
        server.join().unwrap();
    });
}

#[test]
fn the_kernel_keeps_its_network() {
    let Some(link) = link_or_skip(1500, "the kernel's network beside xdp") else { return };
    let (to_a, to_b) = (address(&link.a, false), address(&link.b, false));
    let addresses = link.a.run(|| Xdp::addresses(DEVICE).unwrap());
    assert_eq!(addresses, [IpAddr::from(link.a.v4), IpAddr::from(link.a.v6)]);
    let Some(mut a) = open_or_skip(&link.a, to_a, "the kernel's network beside xdp") else { return };
    let mut b = open(&link.b, to_b).unwrap();
    acquaint(&mut a, &mut b);
    tcp_passes(&link);
    // Another port, and another family, of the same interface.
    for (from, to) in [
        (SocketAddr::new(link.b.v4.into(), 0), SocketAddr::new(link.a.v4.into(), PORT + 1)),
        (SocketAddr::new(link.b.v6.into(), 0), SocketAddr::new(link.a.v6.into(), PORT)),
    ] {
        let receiver = link.a.run(|| UdpSocket::bind(to).unwrap());
        let sender = link.b.run(|| UdpSocket::bind(from).unwrap());
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        sender.send_to(b"the kernel's", to).unwrap();
        let mut bytes = [0; 100];
        assert_eq!(receiver.recv(&mut bytes).unwrap(), 12);
    }
    acquaint(&mut b, &mut a);
}

#[test]
fn a_flood_from_another_thread_leaves_everything_in_its_place() {
    const FRAMES: u64 = 100_000;
    let what = "a flood over xdp";
    let Some(link) = link_or_skip(1500, what) else { return };
    let Some(mut a) = open_or_skip(&link.a, address(&link.a, false), what) else { return };
    let mut b = open(&link.b, address(&link.b, false)).unwrap();
    acquaint(&mut a, &mut b);
    let to = b.local();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (mut heard, mut newest) = (0u64, 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0u64;
            let began = Instant::now();
            while next < FRAMES && began.elapsed() < PATIENCE {
                let numbers = std::iter::from_fn(|| {
                    next += 1;
                    Some([next.to_le_bytes(); 100].concat())
                });
                send(&mut a, to, &mut numbers.take(64));
            }
            stop.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut idle = 0;
        while idle < 100 {
            let got = receive(&mut b, &mut |_, bytes, _| {
                let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(bytes.chunks(8).all(|word| word == number.to_le_bytes()), "frame {number} is torn");
                assert!(number > newest, "frame {number} comes after {newest}");
                (heard, newest) = (heard + 1, number);
            });
            let over = stop.load(std::sync::atomic::Ordering::Acquire);
            idle = if over && got == 0 { idle + 1 } else { 0 };
        }
    });
    assert!(heard > 1000, "only {heard} of {FRAMES} arrived");
    // Every chunk is back where it can be filled.
    acquaint(&mut b, &mut a);
    acquaint(&mut a, &mut b);
}

#[test]
fn it_arrives_by_whatever_queue() {
    const QUEUES: u32 = 4;
    let what = "xdp with several queues";
    let link = match namespaces::Link::with_queues(1500, QUEUES) {
        Ok(link) => link,
        Err(error) => return skip(&format!("{what}: network namespaces cannot be made here: {error}")),
    };
    let to_a = address(&link.a, false);
    let Some(mut a) = open_or_skip(&link.a, to_a, what) else { return };
    assert_eq!(a.frames().mode().queues, QUEUES);
    // The kernel spreads these over its queues, and the device keeps them there.
    let sockets: Vec<_> = (0..64).map(|_| link.b.run(|| UdpSocket::bind((link.b.v4, 0)).unwrap())).collect();
    let mut heard = std::collections::HashSet::new();
    let began = Instant::now();
    while heard.len() < sockets.len() {
        assert!(
            began.elapsed() < PATIENCE,
            "{} of {} arrived: {:?}",
            heard.len(),
            sockets.len(),
            a.counters()
        );
        for socket in &sockets {
            socket.send_to(b"by some queue", to_a).unwrap();
        }
        while receive(&mut a, &mut |from, _, _| {
            heard.insert(from);
        }) > 0
        {}
    }
}

#[test]
fn a_place_that_is_taken_is_named() {
    let Some(link) = link_or_skip(1500, "a second XDP program") else { return };
    let local = address(&link.a, false);
    let Some(first) = open_or_skip(&link.a, local, "a second XDP program") else { return };
    match open(&link.a, local).map(|_| ()) {
        Err(error @ XdpError::Occupied { .. }) => {
            let text = error.to_string();
            assert!(text.contains("`velo0`") && text.contains("velo_steer"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    drop(first);
    open(&link.a, local).unwrap();
    let nowhere = link.a.run(|| Xdp::open(&XdpOptions::new("velo-none", local)).map(|_| ()));
    assert!(matches!(nowhere, Err(XdpError::Interface { .. })), "{nowhere:?}");
    let lo = link
        .a
        .run(|| Xdp::open(&XdpOptions { receive_chunks: 100, ..XdpOptions::new("lo", local) }).map(|_| ()));
    assert!(matches!(lo, Err(XdpError::Size { .. })), "{lo:?}");
    link.a.ip(&["link", "set", DEVICE, "down"]).unwrap();
    assert!(matches!(open(&link.a, local), Err(XdpError::Down { .. })));
}

/// Not a test of its own: what [`a_worker_that_is_killed_leaves_nothing_behind`] starts, and kills.
#[test]
fn child() {
    let Ok(orders) = std::env::var(CHILD) else { return };
    let (local, to) = orders.split_once(' ').unwrap();
    let (local, to): (SocketAddr, SocketAddr) = (local.parse().unwrap(), to.parse().unwrap());
    let frames = match Xdp::open(&XdpOptions::new(DEVICE, local)) {
        Ok(frames) => frames,
        Err(error) => {
            println!("child: {error}");
            return;
        }
    };
    let neighbourhood = Neighbourhood::Kernel { interface: frames.caps().interface.unwrap() };
    let options = EtherOptions { local, vlan: None, neighbourhood, ipv4_checksum: true };
    let mut port = Ether::new(frames, options).unwrap();
    let began = Instant::now();
    let mut told = false;
    // Busy until it is killed.
    while began.elapsed() < PATIENCE {
        send(&mut port, to, &mut std::iter::repeat_n(vec![1; 1000], 32));
        if receive(&mut port, &mut |_, _, _| {}) > 0 && !told {
            println!("child: busy");
            told = true;
        }
    }
}

fn start_child(end: &End, local: SocketAddr, to: SocketAddr, before: &[&str]) -> std::process::Child {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", end.name()]).args(before).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, format!("{local} {to}"));
    command.stdout(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_worker_that_is_killed_leaves_nothing_behind() {
    let what = "killing an xdp worker";
    let Some(link) = link_or_skip(1500, what) else { return };
    let (to_a, to_b) = (address(&link.a, false), address(&link.b, false));
    let Some(mut b) = open_or_skip(&link.b, to_b, what) else { return };
    for _ in 0..3 {
        // `ip netns exec` becomes the child, so that it is the worker itself that is killed.
        let mut child = start_child(&link.a, to_a, to_b, &[]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let began = Instant::now();
        let reader = std::thread::spawn(move || {
            lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("child:")))
        });
        while !reader.is_finished() {
            assert!(began.elapsed() < PATIENCE, "the worker does not get to work");
            send(&mut b, to_a, &mut std::iter::repeat_n(vec![2; 1000], 32));
            receive(&mut b, &mut |_, _, _| {});
        }
        assert_eq!(reader.join().unwrap().unwrap().unwrap(), "child: busy");
        child.kill().unwrap();
        child.wait().unwrap();
        // What was the worker's is the kernel's again.
        let socket = link.a.run(|| UdpSocket::bind(to_a).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let began = Instant::now();
        let mut bytes = [0; 2000];
        while socket.recv(&mut bytes).is_err() {
            assert!(began.elapsed() < PATIENCE, "the program stays on the interface");
            send(&mut b, to_a, &mut std::iter::once(vec![3; 100]));
        }
        drop(socket);
        tcp_passes(&link);
    }
    let mut a = open(&link.a, to_a).expect("the next start succeeds");
    acquaint(&mut a, &mut b);
    acquaint(&mut b, &mut a);
}

#[test]
fn whoever_may_not_is_told_what_to_do() {
    let what = "xdp without privileges";
    let Some(link) = link_or_skip(1500, what) else { return };
    let local = address(&link.a, false);
    if open_or_skip(&link.a, local, what).is_none() {
        return;
    }
    let child = start_child(
        &link.a,
        local,
        local,
        &["setpriv", "--bounding-set=-net_raw,-net_admin,-bpf,-sys_admin", "--inh-caps=-all"],
    );
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"), "{text}");
}
