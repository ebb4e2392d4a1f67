//! The server side of the Network Block Device protocol, as much of it as QEMU needs: fixed newstyle negotiation, simple
//! replies, reads, writes, flushes and force unit access.
//!
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. Integers are big-endian.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::disk::{BLOCK_BYTES, VolatileDisk};

const MAGIC: u64 = 0x4e42_444d_4147_4943; // NBDMAGIC
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // IHAVEOPT
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

const HANDSHAKE_FLAGS: u16 = 0b11; // fixed newstyle, no zeroes
const TRANSMISSION_FLAGS: u16 = 0b1101; // has flags, flush, force unit access

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// The most that one option or one request may carry.
const MAX_OPTION_BYTES: u32 = 64 << 10;
const MAX_REQUEST_BYTES: u32 = 32 << 20;

/// A server of one disk for one connection.
#[derive(Debug)]
pub struct Server {
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    /// Listens at `socket` and serves `disk` to the first who connects, until that connection ends.
    pub fn start(socket: &Path, disk: Arc<Mutex<VolatileDisk>>) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let thread = std::thread::Builder::new().name("nbd".to_owned()).spawn(move || {
            let (stream, _) = listener.accept()?;
            serve(stream, &disk)
        })?;
        Ok(Self { thread })
    }

    /// Waits until the connection has ended and every request that came through it is done.
    pub fn join(self) -> io::Result<()> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the disk's thread panicked")))
    }
}

/// Serves one connection to its end; a peer that goes in the middle of anything (a killed QEMU) is the ordinary end.
fn serve(mut stream: UnixStream, disk: &Mutex<VolatileDisk>) -> io::Result<()> {
    let result = negotiate(&mut stream, disk)
        .and_then(|agreed| if agreed { transmit(&mut stream, disk) } else { Ok(()) });
    match result {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the NBD client sent {what}"))
}

fn array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Settles the options; false when the client gave up.
fn negotiate(stream: &mut (impl Read + Write), disk: &Mutex<VolatileDisk>) -> io::Result<bool> {
    let size_bytes = disk.lock().unwrap_or_else(PoisonError::into_inner).size_bytes();
    stream.write_all(
        &[&MAGIC.to_be_bytes()[..], &OPTION_MAGIC.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat(),
    )?;
    let client_flags = u32::from_be_bytes(array(stream)?);
    loop {
        if u64::from_be_bytes(array(stream)?) != OPTION_MAGIC {
            return Err(bad("no option where one was due"));
        }
        let option = u32::from_be_bytes(array(stream)?);
        let len = u32::from_be_bytes(array(stream)?);
        if len > MAX_OPTION_BYTES {
            return Err(bad("an option that is too long"));
        }
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        let export = [&size_bytes.to_be_bytes()[..], &TRANSMISSION_FLAGS.to_be_bytes()].concat();
        match option {
            OPT_EXPORT_NAME => {
                stream.write_all(&export)?;
                if client_flags & 0b10 == 0 {
                    stream.write_all(&[0; 124])?;
                }
                return Ok(true);
            }
            OPT_INFO | OPT_GO => {
                reply(stream, option, REP_INFO, &[&INFO_EXPORT.to_be_bytes()[..], &export].concat())?;
                let sizes = [1, BLOCK_BYTES as u32, MAX_REQUEST_BYTES].map(u32::to_be_bytes).concat();
                reply(stream, option, REP_INFO, &[&INFO_BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
                reply(stream, option, REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(true);
                }
            }
            OPT_ABORT => {
                reply(stream, option, REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(stream, option, REP_ERR_UNSUP, &[])?,
        }
    }
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)
}

/// Answers requests, one after the other, until the client disconnects.
fn transmit(stream: &mut (impl Read + Write), disk: &Mutex<VolatileDisk>) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if u32::from_be_bytes(array(stream)?) != REQUEST_MAGIC {
            return Err(bad("no request where one was due"));
        }
        let flags = u16::from_be_bytes(array(stream)?);
        let command = u16::from_be_bytes(array(stream)?);
        let cookie: [u8; 8] = array(stream)?;
        let offset_bytes = u64::from_be_bytes(array(stream)?);
        let len = u32::from_be_bytes(array(stream)?);
        if matches!(command, CMD_READ | CMD_WRITE) {
            if len > MAX_REQUEST_BYTES {
                return Err(bad("a request that is too long"));
            }
            buffer.resize(len as usize, 0);
        }
        if command == CMD_WRITE {
            stream.read_exact(&mut buffer)?;
        }
        let done = {
            let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
            match command {
                CMD_READ => disk.read(offset_bytes, &mut buffer),
                CMD_WRITE if flags & CMD_FLAG_FUA != 0 => disk.write_through(offset_bytes, &buffer),
                CMD_WRITE => disk.write(offset_bytes, &buffer),
                CMD_FLUSH => disk.flush(),
                CMD_DISC => return Ok(()),
                _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an unknown command")),
            }
        };
        let error = match &done {
            Ok(()) => 0,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => EINVAL,
            Err(_) => EIO,
        };
        stream.write_all(&[&SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat())?;
        if command == CMD_READ && error == 0 {
            stream.write_all(&buffer)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> Arc<Mutex<VolatileDisk>> {
        let image = tempfile::tempfile().expect("a temporary file");
        image.set_len(1 << 20).expect("a size");
        Arc::new(Mutex::new(VolatileDisk::new(image).expect("a disk")))
    }

    fn request(flags: u16, command: u16, offset: u64, len: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&[7; 8]);
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn simple_reply(client: &mut UnixStream) -> u32 {
        let header: [u8; 16] = array(client).expect("a reply");
        assert_eq!(header[..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        assert_eq!(header[8..], [7; 8]);
        u32::from_be_bytes([header[4], header[5], header[6], header[7]])
    }

    fn connect(disk: &Arc<Mutex<VolatileDisk>>) -> (UnixStream, JoinHandle<io::Result<()>>) {
        let (mut client, server) = UnixStream::pair().expect("a pair");
        let disk = Arc::clone(disk);
        let thread = std::thread::spawn(move || serve(server, &disk));
        let _: [u8; 18] = array(&mut client).expect("a greeting");
        client.write_all(&3u32.to_be_bytes()).expect("sent");
        (client, thread)
    }

    fn option(client: &mut UnixStream, option: u32, len: u32) {
        let words = [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &len.to_be_bytes()];
        client.write_all(&words.concat()).expect("sent");
    }

    #[test]
    fn writes_wait_for_a_flush_unless_forced() {
        let disk = disk();
        let (mut client, thread) = connect(&disk);
        option(&mut client, OPT_EXPORT_NAME, 0);
        let export: [u8; 10] = array(&mut client).expect("an export");
        assert_eq!(export[..8], (1u64 << 20).to_be_bytes());

        client.write_all(&request(0, CMD_WRITE, 0, 4, b"lost")).expect("sent");
        assert_eq!(simple_reply(&mut client), 0);
        client.write_all(&request(CMD_FLAG_FUA, CMD_WRITE, 8192, 4, b"kept")).expect("sent");
        assert_eq!(simple_reply(&mut client), 0);
        client.write_all(&request(0, CMD_READ, 0, 4, &[])).expect("sent");
        assert_eq!(simple_reply(&mut client), 0);
        assert_eq!(&array::<4>(&mut client).expect("data"), b"lost");
        client.write_all(&request(0, CMD_READ, 1 << 20, 4, &[])).expect("sent");
        assert_eq!(simple_reply(&mut client), EINVAL);
        drop(client);
        thread.join().expect("no panic").expect("an ordinary end");

        let mut disk = disk.lock().expect("the disk");
        disk.cut_power(0.0, &mut rand::rng()).expect("cut");
        let mut bytes = [0; 4];
        disk.read(0, &mut bytes).expect("readable");
        assert_eq!(bytes, [0; 4]);
        disk.read(8192, &mut bytes).expect("readable");
        assert_eq!(&bytes, b"kept");
    }

    #[test]
    fn nonsense_ends_the_connection() {
        let disk = disk();
        let (mut client, thread) = connect(&disk);
        option(&mut client, OPT_GO, u32::MAX);
        assert!(thread.join().expect("no panic").is_err());

        let (mut client2, thread) = connect(&disk);
        option(&mut client2, OPT_EXPORT_NAME, 0);
        let _: [u8; 10] = array(&mut client2).expect("an export");
        client2.write_all(&request(0, CMD_WRITE, 0, u32::MAX, &[])).expect("sent");
        assert!(thread.join().expect("no panic").is_err());
        drop((client, client2));
    }
}
