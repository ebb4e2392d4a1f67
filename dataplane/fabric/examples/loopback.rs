//! Moves a file in memory over 127.0.0.1 between two threads, in several ways, and prints GB/s and CPU seconds per GB of
//! each. Compare what one run prints: `cargo run --release -p velo-fabric --example loopback -- [GIB [WORD]]` measures
//! only what has the word in its name.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use support::{A, B, Protection, protect, sockets};
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_fabric::{Completion, Fabric, Read, Refusal, Serve, Served, ServedContent, What};
use velo_object::{BlobId, NodeId};

/// Small enough for most machines' memory; read again and again.
const FILE_BYTES: u64 = 1 << 30;
/// Reads outstanding on each stream.
const WINDOW: u64 = 8;

struct OneFile(Arc<File>);

impl Serve for OneFile {
    fn serve(&self, _: NodeId, _: &BlobId, _: What, range: Range<u64>) -> Result<Served, Refusal> {
        let content = ServedContent::File { file: self.0.clone(), offset_bytes: range.start % FILE_BYTES };
        Ok(Served { content, len: (range.end - range.start) as u32, lease: Box::new(()) })
    }

    fn sent(&self, _: NodeId, _: u64) {}
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Only what has this in its name is measured.
fn wanted(name: &str) -> bool {
    std::env::args().nth(2).is_none_or(|word| name.contains(&word))
}

fn measure(name: &str, bytes: u64, run: impl FnOnce()) {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    run();
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let gb = bytes as f64 / 1e9;
    println!("{name:<34} {:>6.2} GB/s   {:>6.3} CPU s/GB", gb / seconds, cpu / gb);
}

/// The bound: nothing but system calls.
fn raw(name: &str, bytes: u64, step: usize, send: impl Fn(&mut TcpStream, u64, usize) + Send) {
    if !wanted(name) {
        return;
    }
    let (mut to, mut from) = sockets("127.0.0.1:0");
    measure(name, bytes, || {
        thread::scope(|scope| {
            scope.spawn(move || {
                for at in (0..bytes).step_by(step) {
                    send(&mut to, at, step);
                }
            });
            let mut buffer = vec![0; step];
            let mut left = bytes;
            while left > 0 {
                left -= from.read(&mut buffer).unwrap() as u64;
            }
        });
    });
}

fn sleep_until_ready(fabric: &Tcp) {
    let Some(descriptor) = fabric.descriptor() else { return };
    let mut fds = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
}

fn fabric(
    name: &str,
    bytes: u64,
    streams: u64,
    protection: Protection,
    options: TcpOptions,
    file: &Arc<File>,
) {
    let name = format!("{name}, {streams} stream{}", if streams == 1 { "" } else { "s" });
    if !wanted(&name) {
        return;
    }
    let serve = Arc::new(OneFile(file.clone()));
    let (mut a, mut b) = (Tcp::new(options, serve.clone()).unwrap(), Tcp::new(options, serve).unwrap());
    for id in 0..streams {
        let (mut ours, mut theirs) = sockets("127.0.0.1:0");
        let (ours_tls, theirs_tls) = protect(protection, &mut ours, &mut theirs);
        a.add_path(TcpPath { id, peer: B, stream: ours, tls: ours_tls }).unwrap();
        b.add_path(TcpPath { id, peer: A, stream: theirs, tls: theirs_tls }).unwrap();
    }
    let pool = Pool::new(streams * WINDOW * BUFFER_BYTES as u64).unwrap();
    let stop = AtomicBool::new(false);
    measure(&name, bytes, || {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut completions = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    if b.poll(Instant::now(), &mut completions) == 0 {
                        sleep_until_ready(&b);
                    }
                }
            });
            let pieces = bytes / BUFFER_BYTES as u64;
            let (mut next, mut done) = (0, 0);
            let mut completions = Vec::new();
            let read = |piece, buffer| Read {
                tag: piece,
                blob: BlobId::from_bytes([0; 32]),
                what: What::Blob,
                offset_bytes: piece * BUFFER_BYTES as u64,
                len: BUFFER_BYTES as u32,
                buffer,
            };
            while next < (streams * WINDOW).min(pieces) {
                a.post_read(next % streams, read(next, pool.take().unwrap())).unwrap();
                next += 1;
            }
            while done < pieces {
                if a.poll(Instant::now(), &mut completions) == 0 {
                    sleep_until_ready(&a);
                }
                for completion in completions.drain(..) {
                    let Completion::Read { path, buffer, result, .. } = completion else {
                        panic!("{completion:?}")
                    };
                    assert_eq!(result, Ok(BUFFER_BYTES as u32));
                    done += 1;
                    if next < pieces {
                        a.post_read(path, read(next, buffer)).unwrap();
                        next += 1;
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

fn main() {
    let gib = std::env::args().nth(1).and_then(|argument| argument.parse::<u64>().ok());
    let bytes = gib.unwrap_or(4).max(1) << 30;
    let file = Arc::new(tempfile::tempfile_in("/dev/shm").unwrap());
    let noise = support::noise(1, BUFFER_BYTES);
    for at in (0..FILE_BYTES).step_by(BUFFER_BYTES) {
        file.write_all_at(&noise, at).unwrap();
    }

    for step in [128 << 10, 1 << 20] {
        let name = |what| format!("{what}, {} KiB", step >> 10);
        let memory = vec![1; step];
        raw(&name("write + read"), bytes, step, |to, _, _| to.write_all(&memory).unwrap());
        let copied = std::sync::Mutex::new(vec![0; step]);
        raw(&name("pread + write + read"), bytes, step, |to, at, step| {
            let mut buffer = copied.lock().unwrap();
            file.read_exact_at(&mut buffer[..step], at % FILE_BYTES).unwrap();
            to.write_all(&buffer).unwrap();
        });
        raw(&name("sendfile + read"), bytes, step, |to, at, step| {
            let mut offset = at % FILE_BYTES;
            let end = offset + step as u64;
            while offset < end {
                let count = (end - offset) as usize;
                rustix::fs::sendfile(&mut *to, &file, Some(&mut offset), count).unwrap();
            }
        });
    }
    let buffers = [None, Some(1 << 20), Some(4 << 20)];
    for (protection, name) in
        [(Protection::Plain, "plain"), (Protection::Aes128, "AES-128"), (Protection::Aes256, "AES-256")]
    {
        for streams in [1, 2, 4] {
            for socket_buffer_bytes in buffers {
                let size = socket_buffer_bytes.map_or("auto".into(), |bytes| format!("{} MiB", bytes >> 20));
                let options = TcpOptions {
                    stall_timeout: Duration::from_secs(10),
                    socket_buffer_bytes,
                    ..TcpOptions::default()
                };
                fabric(&format!("tcp {name}, {size}"), bytes, streams, protection, options, &file);
            }
        }
    }
}
