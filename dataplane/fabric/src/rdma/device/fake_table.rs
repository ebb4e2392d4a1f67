//! The plugin's table over a device that is a structure in memory: what is asked of it is written down, and it fails when it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{Device, Place, Plugin};
use crate::rdma::table::{
    ABI, Async, DeviceAnswer, DeviceHandle, Done, End, Keys, PairHandle, PairRequest, QueueHandle, Receive,
    RegionHandle, Table, WindowHandle, Work,
};

static FAKES: Mutex<BTreeMap<String, Arc<Fake>>> = Mutex::new(BTreeMap::new());

/// Where it begins, how long it is, and what for.
type Registration = (usize, usize, u32);

/// One device.
pub(super) struct Fake {
    name: String,
    registrations: Mutex<Registrations>,
    more: Condvar,
    said: Mutex<VecDeque<Async>>,
    busy: AtomicBool,
    descriptor: OwnedFd,
}

#[derive(Default)]
struct Registrations {
    live: Vec<Registration>,
    inside: usize,
    most_at_once: usize,
    begun: usize,
    /// Which one fails, and with what.
    fails: Option<(usize, c_int)>,
}

struct FakeRegion(Arc<Fake>, Registration);

impl Fake {
    pub(super) fn new(name: &str) -> Arc<Self> {
        let fake = Arc::new(Self {
            name: name.to_owned(),
            registrations: Mutex::default(),
            more: Condvar::new(),
            said: Mutex::default(),
            busy: AtomicBool::new(false),
            descriptor: rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
        });
        FAKES.lock().unwrap().insert(name.to_owned(), fake.clone());
        fake
    }

    pub(super) fn device(&self) -> Device {
        Device::open(Plugin { table: &TABLE }, &Place { device: self.name.clone(), port: 1 }).unwrap()
    }

    /// What is registered now.
    pub(super) fn live(&self) -> Vec<Registration> {
        self.registrations.lock().unwrap().live.clone()
    }

    /// How many registrations went on at once.
    pub(super) fn most_at_once(&self) -> usize {
        self.registrations.lock().unwrap().most_at_once
    }

    /// The registration after so many more fails.
    pub(super) fn fail(&self, after: usize, error: c_int) {
        let mut registrations = self.registrations.lock().unwrap();
        registrations.fails = Some((registrations.begun + after, error));
    }

    pub(super) fn say(&self, kind: u32) {
        self.said.lock().unwrap().push_back(Async { kind, number: 0 });
    }

    /// From now on its completion queue is never empty.
    pub(super) fn be_busy(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    fn register(&self, registration: Registration) -> Result<(), c_int> {
        let mut registrations = self.registrations.lock().unwrap();
        let nth = registrations.begun;
        registrations.begun += 1;
        registrations.inside += 1;
        registrations.most_at_once = registrations.most_at_once.max(registrations.inside);
        self.more.notify_all();
        // Long enough for the others to come, if they do.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (mut registrations, _) = self
            .more
            .wait_timeout_while(registrations, Duration::from_millis(50), |now| now.inside < cores)
            .unwrap();
        registrations.inside -= 1;
        match registrations.fails {
            Some((at, error)) if at == nth => Err(-error),
            _ => {
                registrations.live.push(registration);
                Ok(())
            }
        }
    }
}

/// # Safety
/// The handle of an open fake.
unsafe fn fake<'a, H>(handle: *mut H) -> &'a Fake {
    // SAFETY: made by `open` or `queue`, and not closed yet.
    unsafe { &*handle.cast::<Fake>() }
}

unsafe extern "C" fn open(name: *const c_char, _: u32, answer: *mut DeviceAnswer) -> *mut DeviceHandle {
    // SAFETY: the table's contract.
    let (name, answer) = unsafe { (CStr::from_ptr(name), &mut *answer) };
    *answer = DeviceAnswer { completions_max: 1 << 20, active: 1, ethernet: 1, ..DeviceAnswer::default() };
    let fake = FAKES.lock().unwrap()[name.to_str().unwrap()].clone();
    Arc::into_raw(fake).cast_mut().cast()
}

unsafe extern "C" fn close(device: *mut DeviceHandle) {
    // SAFETY: made by `open`.
    drop(unsafe { Arc::from_raw(device.cast::<Fake>()) });
}

unsafe extern "C" fn register(
    device: *mut DeviceHandle,
    address: *mut c_void,
    len: usize,
    purpose: u32,
    _: *mut Keys,
    error: *mut c_int,
) -> *mut RegionHandle {
    let registration = (address as usize, len, purpose);
    // SAFETY: an open fake, and room for the error.
    unsafe {
        if let Err(why) = fake(device).register(registration) {
            *error = why;
            return ptr::null_mut();
        }
        Arc::increment_strong_count(device.cast::<Fake>());
        let region = FakeRegion(Arc::from_raw(device.cast()), registration);
        Box::into_raw(Box::new(region)).cast()
    }
}

unsafe extern "C" fn deregister(region: *mut RegionHandle) -> c_int {
    // SAFETY: made by `register`.
    let region = unsafe { Box::from_raw(region.cast::<FakeRegion>()) };
    let live = &mut region.0.registrations.lock().unwrap().live;
    live.swap_remove(live.iter().position(|live| *live == region.1).expect("it is deregistered once"));
    0
}

unsafe extern "C" fn queue(device: *mut DeviceHandle, _: u32, _: *mut c_int) -> *mut QueueHandle {
    device.cast()
}

unsafe extern "C" fn drop_queue(_: *mut QueueHandle) -> c_int {
    0
}

unsafe extern "C" fn queue_descriptor(queue: *mut QueueHandle) -> c_int {
    // SAFETY: an open fake.
    rustix::io::dup(unsafe { &fake(queue).descriptor }).map_or(-1, std::os::fd::IntoRawFd::into_raw_fd)
}

unsafe extern "C" fn async_descriptor(device: *mut DeviceHandle) -> c_int {
    // SAFETY: an open fake.
    unsafe { fake(device) }.descriptor.as_raw_fd()
}

unsafe extern "C" fn poll(queue: *mut QueueHandle, to: *mut Done, _: u32) -> c_int {
    // SAFETY: an open fake, and room for one.
    unsafe {
        if !fake(queue).busy.load(Ordering::Relaxed) {
            return 0;
        }
        *to = Done::default();
    }
    1
}

unsafe extern "C" fn arm(_: *mut QueueHandle) -> c_int {
    0
}

unsafe extern "C" fn take_async(device: *mut DeviceHandle, to: *mut Async) -> c_int {
    // SAFETY: an open fake, and room for what it says.
    unsafe {
        let Some(said) = fake(device).said.lock().unwrap().pop_front() else { return 0 };
        *to = said;
    }
    1
}

unsafe extern "C" fn window(_: *mut DeviceHandle, _: *mut u32) -> *mut WindowHandle {
    ptr::null_mut()
}

unsafe extern "C" fn drop_window(_: *mut WindowHandle) -> c_int {
    0
}

unsafe extern "C" fn pair(
    _: *mut DeviceHandle,
    _: *mut QueueHandle,
    _: *const PairRequest,
    _: *mut End,
    error: *mut c_int,
) -> *mut PairHandle {
    // SAFETY: room for the error.
    unsafe { *error = -libc::ENOMEM };
    ptr::null_mut()
}

unsafe extern "C" fn connect(_: *mut PairHandle, _: u32, _: *const End, _: *const End) -> c_int {
    -libc::EINVAL
}

unsafe extern "C" fn of_pair(_: *mut PairHandle) -> c_int {
    -libc::EINVAL
}

unsafe extern "C" fn work(_: *mut PairHandle, _: *const Work, _: u32) -> u32 {
    0
}

unsafe extern "C" fn receive(_: *mut PairHandle, _: *const Receive, _: u32) -> u32 {
    0
}

static TABLE: Table = Table {
    abi: ABI,
    size: size_of::<Table>() as u32,
    open,
    close,
    register,
    deregister,
    window,
    drop_window,
    queue,
    drop_queue,
    queue_descriptor,
    pair,
    connect,
    fail: of_pair,
    drop_pair: of_pair,
    work,
    receive,
    poll,
    arm,
    async_descriptor,
    take_async,
};

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::rdma::table::{ASYNC_DEVICE, ASYNC_OTHER};
    use crate::rdma::verbs::{Event, Verbs as _};

    #[test]
    fn a_busy_worker_hears_what_the_device_says_of_itself() {
        let fake = Fake::new("busy");
        let mut completions = fake.device().completions(1).unwrap();
        fake.be_busy();
        // One of no meaning before it: each is heard.
        fake.say(ASYNC_OTHER);
        fake.say(ASYNC_DEVICE);
        let (begun, mut failed) = (Instant::now(), false);
        while !failed {
            assert!(begun.elapsed() < Duration::from_secs(5), "it is never heard");
            assert!(completions.poll(&mut |event| failed |= matches!(event, Event::DeviceFailed { .. })) > 0);
        }
    }
}
