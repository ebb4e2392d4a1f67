//! What a UDP port does on loopback: that datagrams arrive whole and in order, in either family, cut and joined or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::*;
use crate::packet::port::Ecn;

type Heard = (SocketAddr, Vec<u8>, Ecn);

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn port(ip: IpAddr, options: &UdpOptions) -> Udp {
    Udp::bind((ip, 0).into(), options).unwrap()
}

fn datagram(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + number * 13) as u8).collect()
}

/// Sends `what` in order; returns what the port said it took.
fn send(from: &mut Udp, what: &[(SocketAddr, Vec<u8>, Ecn)]) -> usize {
    let (mut next, mut taken) = (0, 0);
    while next < what.len() {
        taken += from
            .tx_burst(&mut |space| {
                let (to, bytes, ecn) = what.get(next)?;
                space[..bytes.len()].copy_from_slice(bytes);
                next += 1;
                Some(Departure { to: *to, len: bytes.len(), ecn: *ecn, probe: false })
            })
            .unwrap();
    }
    taken
}

/// What arrives until there are `count`, or nothing for a while.
fn hear(port: &mut Udp, count: usize) -> Vec<Heard> {
    let mut heard = Vec::new();
    let end = Instant::now() + Duration::from_secs(5);
    while heard.len() < count && Instant::now() < end {
        port.rx_burst(&mut |arrival| heard.push((arrival.from, arrival.datagram.to_vec(), arrival.ecn)))
            .unwrap();
    }
    heard
}

#[test]
fn datagrams_of_every_size_arrive_in_order_and_whole() {
    for ip in [V4, V6] {
        for offload in [true, false] {
            let options = UdpOptions { offload, ..UdpOptions::default() };
            let (mut a, mut b) = (port(ip, &options), port(ip, &options));
            let (from, to) = (a.local(), b.local());
            // Runs of one size, a shorter end, a longer one after it, single ones, and the largest.
            let mut sizes = vec![1472; 100];
            sizes.extend([500, 1472, 1472, 1473, 16, 1, 20, DATAGRAM_MAX_BYTES, DATAGRAM_MAX_BYTES, 9000]);
            sizes.extend([8972; 30]);
            sizes.extend([32; 200]);
            let sent: Vec<_> =
                sizes.iter().enumerate().map(|(i, &len)| (to, datagram(i, len), Ecn::Capable)).collect();
            assert_eq!(send(&mut a, &sent), sent.len());
            let heard = hear(&mut b, sent.len());
            assert_eq!(heard.len(), sent.len(), "{ip} {offload} {:?} {:?}", a.counters(), b.counters());
            for (i, (sent, heard)) in sent.iter().zip(&heard).enumerate() {
                assert_eq!(heard.0, from);
                assert!(heard.1 == sent.1, "{ip} {offload}: datagram {i} differs");
                assert_eq!(heard.2, Ecn::Capable);
            }
            let bytes: usize = sizes.iter().sum();
            let (a, b) = (a.counters(), b.counters());
            assert_eq!((a.tx_datagrams, a.tx_bytes), (sent.len() as u64, bytes as u64));
            assert_eq!((b.rx_datagrams, b.rx_bytes), (sent.len() as u64, bytes as u64));
            assert_eq!((a.gso_refused, a.tx_dropped, b.rx_dropped), (0, 0, 0));
        }
    }
}

#[test]
fn marks_of_congestion_are_written_and_read() {
    for ip in [V4, V6] {
        let options = UdpOptions::default();
        let (mut a, mut b) = (port(ip, &options), port(ip, &options));
        let marks = [Ecn::NotCapable, Ecn::Capable, Ecn::Congested, Ecn::Congested, Ecn::Capable];
        let sent: Vec<_> = marks.iter().map(|&ecn| (b.local(), datagram(1, 100), ecn)).collect();
        send(&mut a, &sent);
        let heard: Vec<_> = hear(&mut b, marks.len()).into_iter().map(|heard| heard.2).collect();
        assert_eq!(heard, marks);
    }
}

#[test]
fn a_socket_of_ipv6_speaks_ipv4_too() {
    let options = UdpOptions::default();
    let mut both = Udp::bind((Ipv6Addr::UNSPECIFIED, 0).into(), &options).unwrap();
    let mut old = port(V4, &options);
    let to_both = SocketAddr::from((V4, both.local().port()));
    let run: Vec<_> = (0..20).map(|i| (to_both, datagram(i, 700), Ecn::Congested)).collect();
    send(&mut old, &run);
    let heard = hear(&mut both, 20);
    assert!(heard.iter().zip(&run).all(|(heard, sent)| heard.1 == sent.1 && heard.2 == sent.2));
    // The address that it reports is one that it can send to, with marks and in runs.
    assert_eq!(heard[0].0, old.local());
    let back: Vec<_> = (0..20).map(|i| (heard[0].0, datagram(i, 900), Ecn::Capable)).collect();
    send(&mut both, &back);
    let heard = hear(&mut old, 20);
    assert!(heard.len() == 20 && heard.iter().zip(&back).all(|(heard, sent)| heard.1 == sent.1));
    assert!(heard.iter().all(|heard| heard.2 == Ecn::Capable && heard.0 == to_both));
}

#[test]
fn a_group_shares_a_port_and_each_worker_gets_its_paths() {
    for ip in [V4, V6] {
        let options = UdpOptions::default();
        let mut group = Udp::group((ip, 0).into(), 3, &options).unwrap();
        let to = group[0].local();
        assert!(group.iter().all(|port| port.local() == to));
        let mut sender = port(ip, &options);
        let mut sent = Vec::new();
        for i in 0..120usize {
            let mut bytes = datagram(i, 200);
            bytes[4..8].copy_from_slice(&(((i as u32 / 7) << 8) | ((i as u32 / 5) % 3)).to_le_bytes());
            sent.push((to, bytes, Ecn::Capable));
        }
        send(&mut sender, &sent);
        for (worker, port) in group.iter_mut().enumerate() {
            let heard = hear(port, 40);
            let expected = sent.iter().filter(|sent| usize::from(sent.1[4]) == worker);
            assert!(heard.iter().map(|heard| &heard.1).eq(expected.map(|sent| &sent.1)), "worker {worker}");
        }
        // Too short to name a path, or naming a worker that is not there: nobody falls over it.
        send(&mut sender, &[(to, vec![1, 2], Ecn::NotCapable), (to, vec![0xff; 60], Ecn::NotCapable)]);
        for port in &mut group {
            port.rx_burst(&mut |_| {}).unwrap();
        }
    }
    assert!(matches!(Udp::group((V4, 0).into(), 0, &UdpOptions::default()), Err(UdpError::Workers(0))));
    assert!(matches!(Udp::group((V4, 0).into(), 257, &UdpOptions::default()), Err(UdpError::Workers(257))));
}

#[test]
fn what_cannot_be_sent_is_counted_and_the_rest_goes() {
    let options = UdpOptions::default();
    let (mut a, mut b) = (port(V4, &options), port(V4, &options));
    // An IPv4 socket has no way to an IPv6 address.
    let nowhere = SocketAddr::from((V6, b.local().port()));
    let good = |i| (b.local(), datagram(i, 300), Ecn::Capable);
    let bad = |i| (nowhere, datagram(i, 300), Ecn::Capable);
    let sent = [good(0), bad(1), bad(2), good(3), bad(4), good(5)];
    send(&mut a, &sent);
    let heard: Vec<_> = hear(&mut b, 3).into_iter().map(|heard| heard.1).collect();
    assert_eq!(heard, [datagram(0, 300), datagram(3, 300), datagram(5, 300)]);
    assert_eq!((a.counters().tx_datagrams, a.counters().tx_dropped), (3, 3));
}

#[test]
fn a_message_that_the_kernel_will_not_cut_goes_datagram_by_datagram() {
    let options = UdpOptions::default();
    let (mut a, mut b) = (port(V4, &options), port(V4, &options));
    let to = b.local();
    let sent: Vec<_> = (0..10).map(|i| datagram(i, 1000)).collect();
    for (i, bytes) in sent.iter().enumerate() {
        a.tx[i * 1000..][..1000].copy_from_slice(bytes);
    }
    let whole =
        Outgoing { to, range: 0..10_000, segment: 1000, count: 10, ecn: Ecn::Capable, path: 0, probe: false };
    a.outgoing.push(whole);
    assert!(!a.refused(Errno::IO.into()).unwrap());
    assert!(!a.segments(), "it is not tried again");
    let heard: Vec<_> = hear(&mut b, 10).into_iter().map(|heard| heard.1).collect();
    assert_eq!(heard, sent);
    assert_eq!((a.counters().gso_refused, a.counters().tx_datagrams, a.counters().tx_dropped), (1, 10, 0));
}

#[test]
fn what_waits_for_room_goes_before_anything_new() {
    let options = UdpOptions::default();
    let (mut a, mut b) = (port(V4, &options), port(V4, &options));
    let to = b.local();
    a.tx[..5].copy_from_slice(b"first");
    a.outgoing.push(Outgoing {
        to,
        range: 0..5,
        segment: 5,
        count: 1,
        ecn: Ecn::Capable,
        path: 0,
        probe: false,
    });
    assert!(a.refused(Errno::AGAIN.into()).unwrap());
    assert_eq!((a.counters().tx_full, a.sent, a.outgoing.len()), (1, 0, 1));
    assert!(a.arm().unwrap() && a.waits_for_room);
    send(&mut a, &[(to, b"second".to_vec(), Ecn::Capable)]);
    let heard: Vec<_> = hear(&mut b, 2).into_iter().map(|heard| heard.1).collect();
    assert_eq!(heard, [b"first".to_vec(), b"second".to_vec()]);
    assert!(a.arm().unwrap() && !a.waits_for_room);
}

#[test]
fn the_descriptor_is_readable_when_something_has_come() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let options = UdpOptions::default();
    let (mut a, mut b) = (port(V4, &options), port(V4, &options));
    let readable = |port: &mut Udp, wait_ms: i64| {
        assert!(port.arm().unwrap());
        let mut fds = [PollFd::from_borrowed_fd(port.descriptor().unwrap(), PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: wait_ms * 1_000_000 };
        poll(&mut fds, Some(&timeout)).unwrap() == 1
    };
    assert!(!readable(&mut b, 0));
    send(&mut a, &[(b.local(), vec![1; 10], Ecn::Capable)]);
    assert!(readable(&mut b, 900));
    assert_eq!(hear(&mut b, 1).len(), 1);
    assert!(!readable(&mut b, 0));
}

#[test]
fn buffers_that_the_kernel_cuts_are_reported() {
    let greedy = UdpOptions { receive_buffer_bytes: 1 << 40, ..UdpOptions::default() };
    let port = port(V4, &greedy);
    let warning = port.receive_buffer_warning(&greedy).unwrap();
    assert!(warning.contains("net.core.rmem_max"), "{warning}");
    let modest = UdpOptions { receive_buffer_bytes: 64 << 10, ..UdpOptions::default() };
    assert_eq!(port.receive_buffer_warning(&modest), None);
}

#[test]
fn an_address_in_use_is_said_to_be() {
    let first = port(V4, &UdpOptions::default());
    let error = Udp::bind(first.local(), &UdpOptions::default()).err().unwrap();
    assert!(error.to_string().contains("another process"), "{error}");
}
