//! Version 1 of the frames, byte by byte: the file never changes. A new version gets a new one.
//!
//! `VELO_GOLDEN=write cargo test -p velo-fabric --test packet_frames golden` writes it where it is missing.

use std::path::Path;

use velo_fabric::packet::protocol::seal::{Cipher, Frame, Proof, Protection};

use crate::{DATA, PROTECTIONS, frames, messages, pair};

#[test]
fn golden_packets() {
    let mut made = String::from("# protection, sender, kind, bytes; see tests/packet_frames/golden.rs\n");
    for protection in PROTECTIONS {
        let name = match protection {
            Protection::Sealed(Cipher::Aes128Gcm) => "aes-128-gcm",
            Protection::Sealed(Cipher::ChaCha20Poly1305) => "chacha20-poly1305",
            Protection::Trusted => "trusted",
        };
        let (mut dialler, mut accepter) = pair(protection);
        for (from, sealer) in [("dialler", &mut dialler.sealer), ("accepter", &mut accepter.sealer)] {
            for (kind, bytes) in frames(sealer) {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                made += &format!("{name} {from} {kind} {hex}\n");
            }
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/packet.v1");
    if std::env::var_os("VELO_GOLDEN").is_some_and(|what| what == "write") && !path.exists() {
        std::fs::write(&path, &made).expect("the folder can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(golden, made, "frames are made with other bytes than version 1 of the format has");
    open(&golden);
}

/// What the file's frames say.
fn open(golden: &str) {
    let mut lines = golden.lines().skip(1);
    for protection in PROTECTIONS {
        let (mut dialler, mut accepter) = pair(protection);
        for opener in [&mut accepter.opener, &mut dialler.opener] {
            for number in 1..=4 {
                let hex = lines.next().and_then(|line| line.rsplit(' ').next()).expect("24 lines");
                let mut bytes: Vec<u8> = (0..hex.len() / 2)
                    .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal"))
                    .collect();
                let opened = opener.open(&mut bytes).expect("golden");
                assert_eq!((opened.number, opened.newest), (number, true));
                let token = protection == Protection::Trusted && number == 1;
                assert_eq!(opened.proof, if token { Proof::Token } else { Proof::Strong });
                match opened.frame {
                    Frame::Data(data, payload) => {
                        let mut to = [0; 33];
                        payload.copy_to(&mut to).expect("golden");
                        assert_eq!((number, data, &to), (1, DATA, b"thirty-three bytes of the payload"));
                    }
                    Frame::Control(all) => assert_eq!((number, all.collect::<Vec<_>>()), (2, messages())),
                    Frame::Probe { nonce } => assert_eq!((number, nonce), (3, 0x9192_9394_9596_9798)),
                    Frame::Probed { nonce } => assert_eq!((number, nonce), (4, 0xa1a2_a3a4_a5a6_a7a8)),
                }
            }
        }
    }
    assert_eq!(lines.next(), None);
}
