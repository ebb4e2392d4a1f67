//! A packet worker allocates nothing once it runs: proved by an allocator that counts.

#[path = "packet/pair.rs"]
mod pair;
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use pair::{PROTECTIONS, Pair, options, udp};
use support::{MIB, noise};
use velo_fabric::packet::port::fault::{Fault, Faults};
use velo_fabric::packet::port::udp::Udp;
use velo_fabric::pool::{BUFFER_BYTES, Buffer};
use velo_fabric::{Completion, Fabric, Read, What};
use velo_object::BlobId;

thread_local! {
    /// Whether this thread's allocations count, and how many there were.
    static COUNTING: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    if COUNTING.get() {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const READS: u64 = 24;

fn read(tag: u64, blob: BlobId, buffer: Buffer) -> Read {
    let offset_bytes = tag % READS * BUFFER_BYTES as u64;
    Read { tag, blob, what: What::Blob, offset_bytes, len: BUFFER_BYTES as u32, buffer }
}

/// Moves `pieces` in both directions, with [`READS`] outstanding in each.
fn transfer(pair: &mut Pair<Fault<Udp>>, blobs: (BlobId, BlobId), buffers: &mut Vec<Buffer>, pieces: u64) {
    let mut next = [0; 2];
    let mut done = [0; 2];
    for i in 0..READS {
        for (side, next) in next.iter_mut().enumerate() {
            let Some(mut buffer) = buffers.pop() else { unreachable!("a buffer for each read") };
            buffer.set_len(BUFFER_BYTES);
            let posted = match side {
                0 => pair.a.post_read(1, read(i, blobs.0, buffer)),
                _ => pair.b.post_read(1, read(i, blobs.1, buffer)),
            };
            assert!(posted.is_ok());
            *next += 1;
        }
    }
    let end = Instant::now() + Duration::from_secs(60);
    while done != [pieces; 2] {
        let now = Instant::now();
        assert!(now < end, "{done:?}");
        let idle = pair.a.poll(now, &mut pair.a_done) + pair.b.poll(now, &mut pair.b_done) == 0;
        for side in 0..2 {
            let completions = if side == 0 { &mut pair.a_done } else { &mut pair.b_done };
            let fabric = if side == 0 { &mut pair.a } else { &mut pair.b };
            for completion in completions.drain(..) {
                let Completion::Read { mut buffer, result, .. } = completion else {
                    unreachable!("a path closed")
                };
                assert_eq!(result, Ok(BUFFER_BYTES as u32));
                done[side] += 1;
                if next[side] < pieces {
                    buffer.set_len(BUFFER_BYTES);
                    let blob = if side == 0 { blobs.0 } else { blobs.1 };
                    assert!(fabric.post_read(1, read(next[side], blob, buffer)).is_ok());
                    next[side] += 1;
                } else {
                    buffers.push(buffer);
                }
            }
        }
        if idle {
            // The threads that read for us need the processor, too.
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

#[test]
fn a_running_worker_allocates_nothing() {
    for protection in PROTECTIONS {
        let losing = Faults { loss: 0.01, ..Faults::default() };
        let lossy = |seed| Fault::new(udp("127.0.0.1:0"), seed, losing, losing);
        let mut pair = Pair::over(lossy(97), lossy(89), protection, options());
        let blobs = (
            pair.b_source.add(&noise(1, READS as usize * MIB), &[]),
            pair.a_source.add(&noise(2, READS as usize * MIB), &[]),
        );
        pair.connect(1);
        let mut buffers: Vec<_> = (0..2 * READS).map(|_| pair.pool.take().unwrap()).collect();
        pair.a_done.reserve(256);
        pair.b_done.reserve(256);
        // The first turns find out how much they need.
        transfer(&mut pair, blobs, &mut buffers, 2 * READS);
        ALLOCATIONS.set(0);
        COUNTING.set(true);
        transfer(&mut pair, blobs, &mut buffers, 4 * READS);
        COUNTING.set(false);
        assert_eq!(ALLOCATIONS.get(), 0, "{protection:?}");
        assert!(pair.a.endpoint_counters().segments_lost > 0, "nothing was lost");
        // And the counting is no illusion.
        COUNTING.set(true);
        drop(std::hint::black_box(vec![1u8; 100]));
        COUNTING.set(false);
        assert_eq!(ALLOCATIONS.get(), 1);
    }
}
