//! What a capture says to Wireshark: `deploy/velo.lua` finds every frame and names every field.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use velo_fabric::packet::port::pcap::{Capture, PcapWriter};
use velo_fabric::packet::port::sim::{Link, Network, SimClock, SimPort};
use velo_fabric::packet::port::{Ecn, Port};
use velo_fabric::packet::protocol::frame::{CloseReason, Credit, Data, Message, ReadRequest};
use velo_fabric::packet::protocol::seal::{Cipher, PathKeys, PathName, PathSecret, Protection, Role, Sealer};
use velo_fabric::{Refusal, What};
use velo_object::BlobId;

use crate::{address, write};

fn sealer(protection: Protection) -> Sealer {
    let name = PathName { fabric: "udp", dialler: 0x11, accepter: 0x22 };
    PathKeys::derive(&PathSecret([3; 32]), &name, Role::Dialler, protection).sealer
}

fn messages() -> [Message; 8] {
    [
        Message::Read(ReadRequest {
            slot: 7,
            read: 1_001,
            blob: BlobId::from_bytes([0xab; 32]),
            what: What::Outboard,
            offset_bytes: 1 << 40,
            len: 65_536,
            segment_bytes: 1_396,
        }),
        Message::Credit(Credit {
            slot: 7,
            read: 1_001,
            number: 1_002,
            stamp: 1_003,
            first: 64,
            mask: 0xff00,
        }),
        Message::End { slot: 8, read: 1_004 },
        Message::Refuse { slot: 9, read: 1_005, why: Refusal::Refused },
        Message::Close { why: CloseReason::Source },
        Message::Ping { stamp: 1_006 },
        Message::Pong { stamp: 1_007 },
        Message::Ready { slot: 10, read: 1_008 },
    ]
}

/// A DATA, a CONTROL with every message, a PROBE and a PROBED.
fn frames(protection: Protection) -> [Vec<u8>; 4] {
    let mut sealer = sealer(protection);
    let data = Data { slot: 7, segment: 65, read: 1_001, len: 65_536, credit: 1_002, echo: 1_003, held: 40 };
    let mut space = vec![0; 400];
    let frame = |len: Option<usize>, space: &[u8]| space[..len.unwrap()].to_vec();
    let first = sealer.data(&mut space, &data, &[0x5a; 100]);
    let first = frame(first, &space);
    let second = sealer.control(&mut space, |body| messages().iter().for_each(|all| assert!(body.push(all))));
    let second = frame(second, &space);
    let third = sealer.probe(&mut space, 0xfeed, 300);
    let third = frame(third, &space);
    let fourth = sealer.probed(&mut space, 0xfeed, 300);
    [first, second, third, frame(fourth, &space)]
}

/// Whether there is a tshark; says so if not.
fn has_tshark() -> bool {
    let found = Command::new("tshark").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let line = "SKIP: the Wireshark dissector: tshark is not installed";
    println!("{line}");
    if let Some(path) = std::env::var_os("VELO_SKIPS") {
        let mut file =
            File::options().append(true).create(true).open(path).expect("VELO_SKIPS can be written");
        writeln!(file, "{line}").expect("VELO_SKIPS can be written");
    }
    false
}

/// What tshark prints for these fields, a line for each packet and a tab between fields.
fn tshark(capture: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/velo.lua");
    let mut command = Command::new("tshark");
    command.arg("-X").arg(format!("lua_script:{}", script.display()));
    command.args(["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-n", "-r"]).arg(capture);
    command.args(["-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("Lua"), "{errors}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

fn capture(folder: &Path, from: SocketAddr, to: SocketAddr, frames: &[Vec<u8>]) -> std::path::PathBuf {
    let path = folder.join("capture.pcap");
    let mut pcap = PcapWriter::new(BufWriter::new(File::create(&path).unwrap())).unwrap();
    for (i, frame) in frames.iter().enumerate() {
        let at = Duration::new(1_700_000_000, 1_000 * i as u32);
        pcap.datagram(at, from, to, Ecn::Congested, frame).unwrap();
    }
    pcap.flush().unwrap();
    path
}

#[test]
fn every_field_of_plain_frames_is_shown() {
    if !has_tshark() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let of_ipv6 = |host| SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, host], 7_000));
    for (from, to) in [(address(1), address(2)), (of_ipv6(1), of_ipv6(2)), (address(1), of_ipv6(2))] {
        let frames = frames(Protection::Trusted);
        let file = capture(folder.path(), from, to, &frames);
        let shown = tshark(
            &file,
            &[
                "velo.kind",
                "velo.number",
                "velo.path",
                "velo.slot",
                "velo.read",
                "velo.segment",
                "velo.len",
                "velo.credit",
                "velo.echo",
                "velo.held",
                "velo.payload_len",
                "velo.message",
                "velo.what",
                "velo.offset",
                "velo.segment_bytes",
                "velo.stamp",
                "velo.first",
                "velo.mask",
                "velo.refusal",
                "velo.closing",
                "velo.nonce",
                "velo.probed_bytes",
            ],
        );
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
        let none = "";
        let path = "0x00000022";
        let expected = [
            row(&[
                "1", "1", path, "7", "1001", "65", "65536", "1002", "1003", "40", "100", none, none, none,
                none, none, none, none, none, none, none, none,
            ]),
            row(&[
                "2",
                "2",
                path,
                "7,7,8,9,10",
                "1001,1001,1004,1005,1008",
                none,
                "65536",
                "1002",
                none,
                none,
                none,
                "1,2,3,4,5,6,7,8",
                "1",
                "1099511627776",
                "1396",
                "1003,1006,1007",
                "64",
                "0x000000000000ff00",
                "1",
                "3",
                none,
                none,
            ]),
            row(&[
                "3",
                "3",
                path,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                "0x000000000000feed",
                "300",
            ]),
            row(&[
                "4",
                "4",
                path,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                "0x000000000000feed",
                "300",
            ]),
        ];
        assert_eq!(shown, expected);
        // The headers that were made up are good ones.
        let about = ["udp.checksum.status", "udp.length", "_ws.malformed", "frame.time_epoch"];
        for (i, (cells, frame)) in tshark(&file, &about).iter().zip(&frames).enumerate() {
            assert_eq!(cells[..3], row(&["1", &(frame.len() + 8).to_string(), ""]));
            assert_eq!(cells[3], format!("1700000000.00000{i}000"));
        }
    }
}

#[test]
fn of_sealed_frames_only_what_is_in_the_clear_is_shown() {
    if !has_tshark() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path =
        capture(folder.path(), address(1), address(2), &frames(Protection::Sealed(Cipher::ChaCha20Poly1305)));
    let fields = [
        "velo.kind",
        "velo.sealed",
        "velo.number",
        "velo.read",
        "velo.message",
        "velo.nonce",
        "velo.payload",
    ];
    let shown: Vec<_> = tshark(&path, &fields).iter().map(|cells| cells.join(" ")).collect();
    assert_eq!(shown, ["1 1 1 1001   ", "2 1 2    ", "3 1 3    ", "4 1 4    "]);
}

/// Other traffic on the same network is left to others.
#[test]
fn what_is_no_frame_is_not_taken_for_one() {
    if !has_tshark() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let good = &frames(Protection::Trusted)[0];
    let mut others = vec![b"GET / HTTP/1.1 and what else there is to say".to_vec(), good[..56].to_vec()];
    for (at, value) in [(0, 0x21), (0, 0x15), (0, 0x10), (1, 4), (2, 1), (8, 0)] {
        let mut other = good.clone();
        other[at] = value;
        others.push(other);
    }
    let path = capture(folder.path(), address(1), address(2), &others);
    let shown = tshark(&path, &["velo.kind", "udp.length"]);
    assert_eq!(shown.len(), others.len());
    assert!(shown.iter().all(|cells| cells[0].is_empty() && !cells[1].is_empty()), "{shown:?}");
}

/// Both directions of a port, as they passed: also what the receiver has decrypted where it lay.
#[test]
fn a_port_is_captured_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port.pcap");
    let mut network = Network::new(1, 1_500);
    let links: Vec<_> = (0..2).map(|_| network.add_link(Link::new(1 << 50, 0))).collect();
    network.add_host(address(1), links[0], links[1]);
    network.add_host(address(2), links[1], links[0]);
    let mut ports = SimPort::all(network, SimClock::Real(Instant::now()));
    let mut far = ports.pop().unwrap();
    let mut near = Capture::new(ports.pop().unwrap(), BufWriter::new(File::create(&path).unwrap())).unwrap();
    assert_eq!((near.local(), near.name(), near.caps()), (address(1), "sim", near.port().caps()));
    let [data, control, ..] = frames(Protection::Trusted);
    for (frame, outwards) in [(&data, true), (&control, false)] {
        let mut once = Some(());
        let to = address(if outwards { 2 } else { 1 });
        let mut fill = |space: &mut [u8]| once.take().and_then(|()| write(space, to, frame));
        let start = Instant::now();
        let mut received = 0;
        if outwards {
            near.tx_burst(&mut fill).unwrap();
        } else {
            far.tx_burst(&mut fill).unwrap();
        }
        while received == 0 {
            assert!(start.elapsed().as_secs() < 20, "nothing arrived");
            let mut each = |arrival: velo_fabric::packet::port::Arrival<'_>| {
                assert_eq!(arrival.datagram, frame);
                arrival.datagram.fill(0);
            };
            received = if outwards { far.rx_burst(&mut each) } else { near.rx_burst(&mut each) }.unwrap();
        }
    }
    near.flush().unwrap();
    assert!(near.error().is_none());
    drop(near);
    let bytes = std::fs::read(&path).unwrap();
    // File, and for each of the two its record, IP and UDP before the datagram.
    assert_eq!(bytes.len(), 24 + 2 * (16 + 28) + data.len() + control.len());
    assert!(bytes.ends_with(&control) && bytes[24 + 44..].starts_with(&data));
    if has_tshark() {
        let shown = tshark(&path, &["ip.src", "ip.dst", "velo.kind"]);
        assert_eq!(shown, [["10.0.0.1", "10.0.0.2", "1"], ["10.0.0.2", "10.0.0.1", "2"]]);
    }
}

/// A full disk ends the capture, not the traffic.
#[test]
fn a_file_that_takes_no_more_does_not_stop_the_port() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut network = Network::new(1, 1_500);
    let link = network.add_link(Link::new(1 << 50, 0));
    network.add_host(address(1), link, link);
    let port = SimPort::all(network, SimClock::Virtual).remove(0);
    let mut port = Capture::new(port, Full(100)).unwrap();
    let mut left = 5;
    let sent = port.tx_burst(&mut |space| {
        left = usize::checked_sub(left, 1)?;
        write(space, address(1), &[1; 60])
    });
    assert_eq!(sent.unwrap(), 5);
    assert_eq!(port.error().map(std::io::Error::kind), Some(std::io::ErrorKind::StorageFull));
}

/// Every field that the script declares is one that some frame shows.
#[test]
fn the_script_declares_what_it_shows() {
    if !has_tshark() {
        return;
    }
    let script = include_str!("../../../../deploy/velo.lua");
    let declared: BTreeSet<&str> =
        script.split('"').filter(|text| text.starts_with("velo.") && *text != "velo.malformed").collect();
    let folder = tempfile::tempdir().unwrap();
    let all = [frames(Protection::Trusted), frames(Protection::Sealed(Cipher::Aes128Gcm))].concat();
    let path = capture(folder.path(), address(1), address(2), &all);
    let fields: Vec<&str> = declared.into_iter().collect();
    let shown = tshark(&path, &fields);
    for (i, field) in fields.iter().enumerate() {
        assert!(shown.iter().any(|cells| !cells[i].is_empty()), "{field} is never shown");
    }
}
