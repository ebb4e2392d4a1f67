//! No call allocates: a worker's path must not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use velo_fabric::packet::protocol::frame::Message;
use velo_fabric::packet::protocol::seal::Frame;

use crate::{DATA, PROTECTIONS, pair};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does all; counting in a thread-local of a constant without a destructor allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn frames_are_made_and_opened_without_allocating() {
    let payload = vec![3; 1_396];
    let (mut space, mut to) = (vec![0; 1_500], vec![0; payload.len()]);
    for protection in PROTECTIONS {
        let (mut dialler, mut accepter) = pair(protection);
        let before = ALLOCATIONS.get();
        assert!(before > 0, "the allocator does not count");
        for stamp in 0..1_000 {
            let len = dialler.sealer.data(&mut space, &DATA, &payload).unwrap();
            let opened = accepter.opener.open(&mut space[..len]).unwrap();
            let Frame::Data(_, bytes) = opened.frame else { panic!("another kind") };
            bytes.copy_to(&mut to).unwrap();
            let len = accepter
                .sealer
                .control(&mut space, |body| assert!(body.push(&Message::Ping { stamp })))
                .unwrap();
            dialler.opener.open(&mut space[..len]).unwrap();
            space[len - 1] ^= 1;
            dialler.opener.open(&mut space[..len]).unwrap_err();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{protection:?}");
    }
}
