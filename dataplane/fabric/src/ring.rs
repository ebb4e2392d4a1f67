//! Rings between two threads, one that pushes and one that pops, in batches; and the [`Sleeper`] that lets the popping
//! thread sleep on several rings and descriptors at once, and be woken without a system call while it is awake.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const WOKEN: u32 = 2;

/// A ring of at least `capacity` entries whose pushing end wakes the sleeper of `waker`.
pub fn ring<T>(capacity: usize, waker: Waker) -> (Producer<T>, Consumer<T>) {
    let (producer, consumer) = rtrb::RingBuffer::new(capacity);
    (Producer { ring: producer, waker: WakeAtEnd(waker) }, Consumer { ring: consumer })
}

/// The end that pushes. Dropping it wakes the consumer, so that it sees that nobody will push any more.
#[derive(Debug)]
pub struct Producer<T> {
    ring: rtrb::Producer<T>,
    // After `ring`: fields are dropped in this order, and the consumer must find the ring abandoned when it wakes.
    waker: WakeAtEnd,
}

impl<T> Producer<T> {
    /// Pushes one and wakes the consumer if it sleeps.
    ///
    /// # Errors
    /// Gives it back where the ring is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.ring.push(item).map_err(|rtrb::PushError::Full(item)| item)?;
        self.waker.0.wake();
        Ok(())
    }

    /// Moves as many as there is room for from the front of `items`, and wakes the consumer once. Returns how many.
    pub fn push_batch(&mut self, items: &mut Vec<T>) -> usize {
        let count = items.len().min(self.ring.slots());
        if count == 0 {
            return 0;
        }
        let Ok(chunk) = self.ring.write_chunk_uninit(count) else { return 0 };
        let pushed = chunk.fill_from_iter(items.drain(..count));
        self.waker.0.wake();
        pushed
    }

    /// How many more it takes now.
    pub fn slots(&self) -> usize {
        self.ring.slots()
    }

    /// Whether the consumer is gone.
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }
}

/// Wakes when it is dropped. A `Drop` of [`Producer`] would run while the ring still has its producer: the consumer would
/// wake, find the ring in use, and sleep for ever.
#[derive(Debug)]
struct WakeAtEnd(Waker);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The end that pops.
#[derive(Debug)]
pub struct Consumer<T> {
    ring: rtrb::Consumer<T>,
}

impl<T> Consumer<T> {
    /// Pops the oldest.
    pub fn pop(&mut self) -> Option<T> {
        self.ring.pop().ok()
    }

    /// Moves at most `limit` of the oldest to the end of `items`. Returns how many.
    pub fn pop_batch(&mut self, items: &mut Vec<T>, limit: usize) -> usize {
        let count = limit.min(self.ring.slots());
        let Ok(chunk) = self.ring.read_chunk(count) else { return 0 };
        items.extend(chunk);
        count
    }

    /// Whether there is nothing to pop now.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// How many there are to pop now.
    pub fn len(&self) -> usize {
        self.ring.slots()
    }

    /// Whether the producer is gone; what it pushed before can still be popped.
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }
}

#[derive(Debug)]
struct Shared {
    state: AtomicU32,
    event: OwnedFd,
}

/// Wakes the thread that owns the [`Sleeper`]. Cheap to clone; any thread may hold one.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

impl Waker {
    /// Wakes the thread if it sleeps or is about to. Call it after what it should see has been written: a fence and a
    /// load while the thread is awake.
    pub fn wake(&self) {
        // Pairs with the fence in `sleep_unless`: either we see ASLEEP here, or it sees what we wrote before.
        fence(Ordering::SeqCst);
        let state = &self.shared.state;
        if state.load(Ordering::Relaxed) == ASLEEP
            && state.compare_exchange(ASLEEP, WOKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            // Fails only where the count would overflow, and then the descriptor is readable anyway.
            let _ = rustix::io::write(&self.shared.event, &1u64.to_ne_bytes());
        }
    }
}

/// The sleeping side: one for each thread that pops from rings.
#[derive(Debug)]
pub struct Sleeper {
    shared: Arc<Shared>,
    /// Whether a waker has promised a count that was not there yet. Only the owner touches it.
    unread: AtomicBool,
}

impl Sleeper {
    /// A sleeper with its own event descriptor.
    ///
    /// # Errors
    /// Where the process may open no more descriptors.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { state: AtomicU32::new(AWAKE), event });
        Ok(Self { shared, unread: AtomicBool::new(false) })
    }

    /// A waker for this sleeper.
    pub fn waker(&self) -> Waker {
        Waker { shared: self.shared.clone() }
    }

    /// Sleeps until a waker wakes it, one of `descriptors` is readable or `timeout` is over; or not at all where
    /// `has_work` says so (it must look at everything that a waker stands for, such as whether the rings are empty). May return early.
    ///
    /// # Errors
    /// What `poll(2)` says of the descriptors.
    pub fn sleep_unless(
        &self,
        has_work: impl FnOnce() -> bool,
        descriptors: &[BorrowedFd<'_>],
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let state = &self.shared.state;
        state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let slept = if has_work() { Ok(()) } else { self.wait(descriptors, timeout) };
        if state.swap(AWAKE, Ordering::AcqRel) == WOKEN {
            // The waker's write may come after this read; then the next sleep is cut short once.
            let _ = rustix::io::read(&self.shared.event, &mut [0u8; 8]);
        }
        slept
    }

    /// For a thread that sleeps elsewhere, on [`descriptor`](Self::descriptor) among others: from here on a waker makes that
    /// readable, until [`disarm`](Self::disarm). False where `has_work` says that there is no need to sleep.
    pub fn arm(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.shared.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            self.disarm();
            return false;
        }
        true
    }

    /// Ends what [`arm`](Self::arm) began; costs nothing where it was not called.
    pub fn disarm(&self) {
        let state = &self.shared.state;
        if state.load(Ordering::Relaxed) == AWAKE {
            return;
        }
        // A waker that comes to its write late must not keep the descriptor readable: its count is read some time.
        let woken = state.swap(AWAKE, Ordering::AcqRel) == WOKEN;
        if woken || self.unread.load(Ordering::Relaxed) {
            let missing = rustix::io::read(&self.shared.event, &mut [0u8; 8]).is_err();
            self.unread.store(missing, Ordering::Relaxed);
        }
    }

    /// Readable when a waker has woken it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    fn wait(&self, descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
        /// More descriptors than a worker has.
        const MOST: usize = 8;
        debug_assert!(descriptors.len() < MOST);
        let own = PollFd::from_borrowed_fd(self.shared.event.as_fd(), PollFlags::IN);
        let mut polled: [PollFd<'_>; MOST] = std::array::from_fn(|_| own.clone());
        for (slot, descriptor) in polled[1..].iter_mut().zip(descriptors) {
            *slot = PollFd::from_borrowed_fd(*descriptor, PollFlags::IN);
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = MOST.min(descriptors.len() + 1);
        match poll(&mut polled[..count], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {
                if polled[0].revents().contains(PollFlags::IN) {
                    let _ = rustix::io::read(&self.shared.event, &mut [0u8; 8]);
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn batches_keep_their_order_and_stop_when_it_is_full() {
        let sleeper = Sleeper::new().unwrap();
        let (mut producer, mut consumer) = ring(4, sleeper.waker());
        let mut items: Vec<u32> = (0..6).collect();
        assert_eq!(producer.push_batch(&mut items), 4);
        assert_eq!((items, producer.push(9), producer.slots()), (vec![4, 5], Err(9), 0));
        let mut popped = vec![100];
        assert_eq!(consumer.pop_batch(&mut popped, 3), 3);
        assert_eq!(
            (popped, consumer.len(), consumer.pop(), consumer.pop()),
            (vec![100, 0, 1, 2], 1, Some(3), None)
        );
        assert_eq!(consumer.pop_batch(&mut Vec::new(), 3), 0);
        drop(producer);
        assert!(consumer.is_abandoned() && consumer.is_empty());
    }

    #[test]
    fn work_that_is_there_already_keeps_the_thread_awake() {
        let sleeper = Sleeper::new().unwrap();
        let start = Instant::now();
        sleeper.sleep_unless(|| true, &[], Some(Duration::from_secs(5))).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        // An awake thread is not written to.
        sleeper.waker().wake();
        assert!(rustix::io::read(&sleeper.shared.event, &mut [0u8; 8]).is_err());
    }

    #[test]
    fn one_that_sleeps_elsewhere_is_woken_by_its_descriptor() {
        let sleeper = Sleeper::new().unwrap();
        let readable = || {
            let mut fds = [PollFd::from_borrowed_fd(sleeper.descriptor(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
        };
        sleeper.waker().wake();
        assert!(!readable(), "it is awake");
        assert!(!sleeper.arm(|| true) && !readable());
        for _ in 0..3 {
            assert!(sleeper.arm(|| false) && !readable());
            sleeper.waker().wake();
            assert!(readable());
            sleeper.disarm();
            assert!(!readable());
        }
    }

    #[test]
    fn it_sleeps_until_the_time_is_over() {
        let sleeper = Sleeper::new().unwrap();
        let start = Instant::now();
        sleeper.sleep_unless(|| false, &[], Some(Duration::from_millis(30))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(25));
    }

    #[test]
    fn it_wakes_for_a_descriptor() {
        let sleeper = Sleeper::new().unwrap();
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let waiting = thread::spawn(move || sleeper.sleep_unless(|| false, &[ours.as_fd()], None));
        thread::sleep(Duration::from_millis(5));
        std::io::Write::write_all(&mut &theirs, b"x").unwrap();
        waiting.join().unwrap().unwrap();
    }

    /// The consumer that sleeps on an empty ring always learns that its producer is gone.
    #[test]
    fn the_end_of_the_producer_wakes_the_consumer() {
        for _ in 0..if cfg!(miri) { 20 } else { 5_000 } {
            let sleeper = Sleeper::new().unwrap();
            let (producer, consumer) = ring::<u8>(4, sleeper.waker());
            let waiting = thread::spawn(move || {
                let asleep = Instant::now();
                while !consumer.is_abandoned() {
                    let unless = || consumer.is_abandoned();
                    sleeper.sleep_unless(unless, &[], Some(Duration::from_secs(20))).unwrap();
                }
                asleep.elapsed()
            });
            thread::yield_now();
            drop(producer);
            assert!(waiting.join().unwrap() < Duration::from_secs(20), "nobody woke the consumer");
        }
    }

    /// No wake-up is lost: the consumer sleeps without a timeout whenever the ring is empty.
    #[test]
    fn everything_arrives_though_the_consumer_sleeps() {
        const COUNT: u64 = 200_000;
        let sleeper = Sleeper::new().unwrap();
        let (mut producer, mut consumer) = ring(64, sleeper.waker());
        let sum = thread::spawn(move || {
            let (mut sum, mut items) = (0, Vec::new());
            loop {
                while consumer.pop_batch(&mut items, 16) > 0 {
                    sum += items.drain(..).sum::<u64>();
                }
                if consumer.is_abandoned() && consumer.is_empty() {
                    return sum;
                }
                sleeper.sleep_unless(|| !consumer.is_empty() || consumer.is_abandoned(), &[], None).unwrap();
            }
        });
        for i in 0..COUNT {
            while producer.push(i).is_err() {
                thread::yield_now();
            }
            if i % 1000 == 0 {
                thread::yield_now();
            }
        }
        drop(producer);
        assert_eq!(sum.join().unwrap(), COUNT * (COUNT - 1) / 2);
    }
}
