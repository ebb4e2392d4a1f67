//! The session protocol: frames over TLS, each a little-endian u32 length and that many bytes of postcard.
//!
//! The side that dialled sends [`Frame::Hello`]; the other answers with its own, or with [`Frame::Refuse`] and closes. After that both send
//! what they like.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use velo_object::NodeId;

use super::PeerMessage;

/// Version of the session protocol.
pub(super) const VERSION: u32 = 3;
/// The largest frame: a call of 4 MiB and what stands around it.
pub(super) const MAX_FRAME_BYTES: usize = (4 << 20) + (64 << 10);
/// The largest first frame of a session.
pub(super) const MAX_HELLO_BYTES: usize = 4 << 10;
/// A frame is received in steps of at most this, so that a length alone makes nobody allocate.
const STEP_BYTES: usize = 256 << 10;

/// Who speaks, and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) cluster: [u8; 32],
    pub(super) node: NodeId,
    /// Drawn at random when velod starts: another one means that it has started anew.
    pub(super) boot: u64,
    /// Where it listens; an unspecified address stands for the one that it is seen from.
    pub(super) listen: Vec<SocketAddr>,
    /// Whether it declares its network trusted: plain data streams only if both do.
    pub(super) trusted: bool,
}

/// Why a session is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// There is one already, or the other side's own attempt goes first.
    Duplicate,
    /// No more sessions.
    Full,
    /// Another version of the protocol.
    Version,
}

/// What is said on a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Frame {
    Hello(Hello),
    Refuse(Refusal),
    Message(PeerMessage),
    /// To the control service there.
    Call {
        seq: u64,
        payload: Vec<u8>,
    },
    Reply {
        seq: u64,
        reply: Result<Vec<u8>, String>,
    },
    /// Please open this many data streams to me: I cannot reach you.
    OpenStreams(u8),
    Ping,
    Pong,
}

impl Frame {
    /// The frame with its length before it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, io::Error> {
        let mut bytes = postcard::to_extend(self, vec![0; 4]).map_err(io::Error::other)?;
        let len = bytes.len() - 4;
        if len > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!(
                "a message of {len} bytes is larger than {MAX_FRAME_BYTES}"
            )));
        }
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        Ok(bytes)
    }
}

/// Reads a length and that many bytes.
pub(super) async fn read_bytes(
    from: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> Result<Vec<u8>, io::Error> {
    let len = from.read_u32_le().await? as usize;
    if len > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {len} bytes")));
    }
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = bytes.len();
        bytes.resize(len.min(at + STEP_BYTES), 0);
        from.read_exact(&mut bytes[at..]).await?;
    }
    Ok(bytes)
}

/// Writes a length and these bytes.
pub(super) async fn write_bytes(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), io::Error> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&len.to_le_bytes()).await?;
    to.write_all(bytes).await?;
    to.flush().await
}

/// Reads a frame of at most `most` bytes.
pub(super) async fn read_frame(from: &mut (impl AsyncRead + Unpin), most: usize) -> Result<Frame, io::Error> {
    let bytes = read_bytes(from, most).await?;
    match postcard::take_from_bytes(&bytes) {
        Ok((frame, [])) => Ok(frame),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes after the end of a message")),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// Writes a frame at once.
pub(super) async fn write_frame(to: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> Result<(), io::Error> {
    to.write_all(&frame.encode()?).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use velo_object::{BlobId, PieceSet};

    use super::super::paths::*;
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn frames_survive_the_way() {
        let blob = BlobId::of(b"x");
        let messages = [
            PeerMessage::Interest { blobs: vec![blob; 3] },
            PeerMessage::Have {
                blob,
                size_bytes: None,
                have: PieceSet::full(1000),
                holes: PieceSet::new(1000),
            },
            PeerMessage::HaveNot { blob },
            PeerMessage::HaveMore { blob, pieces: vec![(1, true), (u64::MAX, false)] },
            PeerMessage::Done { blobs: Vec::new() },
        ];
        let mut frames: Vec<Frame> = messages.into_iter().map(Frame::Message).collect();
        frames.extend([
            Frame::Refuse(Refusal::Full),
            Frame::Call { seq: u64::MAX, payload: vec![1; 300] },
            Frame::Reply { seq: 0, reply: Err("é".to_owned()) },
            Frame::OpenStreams(3),
            Frame::Ping,
            Frame::Pong,
        ]);
        let wire: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().expect("small")).collect();
        runtime().block_on(async {
            let mut wire = &wire[..];
            for frame in &frames {
                assert_eq!(&read_frame(&mut wire, MAX_FRAME_BYTES).await.expect("a frame"), frame);
            }
            assert!(read_frame(&mut wire, MAX_FRAME_BYTES).await.is_err(), "the end");
        });
        assert!(Frame::Call { seq: 0, payload: vec![0; MAX_FRAME_BYTES] }.encode().is_err());
    }

    fn golden(version: u32) -> std::path::PathBuf {
        let name = format!("src/session/golden/session.v{version}");
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// A node of version 1 hears in words of version 1 why it is refused, and its hello is understood well enough for that.
    #[test]
    fn version_1_is_refused_in_its_own_words() {
        let lines = std::fs::read_to_string(golden(1)).expect("the golden file");
        let line = |at: usize| {
            let line = lines.lines().nth(at).expect("a line");
            let byte = |at| u8::from_str_radix(&line[at..at + 2], 16).expect("two digits");
            (0..line.len()).step_by(2).map(byte).collect::<Vec<_>>()
        };
        runtime().block_on(async {
            let hello = read_frame(&mut &line(0)[..], MAX_HELLO_BYTES).await.expect("a frame");
            assert!(matches!(hello, Frame::Hello(hello) if hello.version == 1 && hello.listen.len() == 2));
        });
        for (at, refusal) in [(1, Refusal::Duplicate), (2, Refusal::Full), (3, Refusal::Version)] {
            assert_eq!(Frame::Refuse(refusal).encode().expect("small"), line(at));
        }
    }

    /// Version 3 of every frame, byte by byte: `golden/session.v3` never changes. `VELO_GOLDEN=write` writes it if it is missing.
    #[test]
    fn every_frame_has_the_bytes_of_version_3() {
        let (blob, node) = (BlobId::of(b"golden"), NodeId::from_bytes([0xa5; 32]));
        let listen = ["192.0.2.1:7440", "[2001:db8::1]:1"].map(|text| text.parse().expect("an address"));
        let hello = Hello {
            version: VERSION,
            cluster: [7; 32],
            node,
            boot: 300,
            listen: listen.to_vec(),
            trusted: true,
        };
        let ends: Vec<_> =
            (0x100..).zip(listen).map(|(number, address)| PathEnd { number, address }).collect();
        let protections =
            [PathProtection::Trusted, PathProtection::Aes128Gcm, PathProtection::ChaCha20Poly1305];
        let packets = |kind| {
            let (protections, ends) = (protections.to_vec(), ends.clone());
            OfferedFabric::Packets(OfferedPackets { kind, datagram_max_bytes: 1472, protections, ends })
        };
        let mut fabrics = [PacketKind::Udp, PacketKind::Xdp, PacketKind::Dpdk].map(packets).to_vec();
        let end = PairEnd { number: 0x12_3456, sequence: 0x65_4321, mtu: 5, lid: 300, reads_in: 16 };
        fabrics.push(OfferedFabric::Rdma(vec![OfferedPair { end, addresses: vec![[1; 16], [2; 16]] }]));
        let accept = |fabric| {
            let accept = PathAccept { offer: 300, fabric };
            Frame::Message(PeerMessage::Paths(PathMessage::Accept(accept)))
        };
        let accepted_packets = AcceptedFabric::Packets(AcceptedPackets {
            kind: PacketKind::Xdp,
            datagram_max_bytes: 8952,
            protection: PathProtection::ChaCha20Poly1305,
            ends: ends.clone(),
        });
        let accepted_pairs = vec![AcceptedPair { of: 0, to: [2; 16], end, from: [3; 16] }];
        let refuse = |why| Frame::Message(PeerMessage::Paths(PathMessage::Refuse { offer: 300, why }));
        let frames = [
            Frame::Hello(hello),
            Frame::Refuse(Refusal::Duplicate),
            Frame::Refuse(Refusal::Full),
            Frame::Refuse(Refusal::Version),
            Frame::Message(PeerMessage::Interest { blobs: vec![blob; 2] }),
            Frame::Message(PeerMessage::Have {
                blob,
                size_bytes: Some(3 << 20),
                have: PieceSet::full(3),
                holes: PieceSet::new(3),
            }),
            Frame::Message(PeerMessage::HaveNot { blob }),
            Frame::Message(PeerMessage::HaveMore { blob, pieces: vec![(1, true), (u64::MAX, false)] }),
            Frame::Message(PeerMessage::Done { blobs: vec![blob] }),
            Frame::Call { seq: 1, payload: vec![1, 2, 3] },
            Frame::Reply { seq: 1, reply: Ok(vec![4]) },
            Frame::Reply { seq: 2, reply: Err("no".to_owned()) },
            Frame::OpenStreams(4),
            Frame::Ping,
            Frame::Pong,
            Frame::Message(PeerMessage::Paths(PathMessage::Offer(PathOffer { offer: 300, fabrics }))),
            accept(accepted_packets),
            accept(AcceptedFabric::Rdma(accepted_pairs)),
            refuse(PathRefusal::NoneInCommon),
            refuse(PathRefusal::Crossed),
            refuse(PathRefusal::TooSoon),
            refuse(PathRefusal::Full),
        ];
        let made: String = frames
            .iter()
            .map(|frame| frame.encode().expect("small").iter().map(|byte| format!("{byte:02x}")).collect())
            .map(|line: String| line + "\n")
            .collect();
        let path = golden(3);
        if std::env::var_os("VELO_GOLDEN").is_some_and(|what| what == "write") && !path.exists() {
            std::fs::write(&path, &made).expect("the folder can be written");
        }
        let golden = std::fs::read_to_string(&path).expect("the golden file");
        for ((made, golden), frame) in made.lines().zip(golden.lines()).zip(&frames) {
            assert_eq!(made, golden, "other bytes than in version 3: {frame:?}");
        }
        assert_eq!(made, golden, "a frame was added: add its line to the file");
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        let mut state = 1u32;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        runtime().block_on(async {
            for _ in 0..20_000 {
                let len = next() % 40;
                let mut wire = len.to_le_bytes().to_vec();
                // Mostly small numbers: those are the ones that mean something.
                wire.extend((0..len).map(|_| if next() % 3 == 0 { next() as u8 } else { next() as u8 % 12 }));
                let _ = read_frame(&mut &wire[..], 64).await;
            }
            let huge = u32::MAX.to_le_bytes();
            assert!(read_frame(&mut &huge[..], MAX_FRAME_BYTES).await.is_err());
        });
    }
}
