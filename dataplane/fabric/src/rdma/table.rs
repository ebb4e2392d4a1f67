//! The C table between velod and the plugin `velo-fabric-rdma`: the only thing that crosses the boundary between them. Both sides are
//! built from this file, so that a plugin of another build is recognised by [`ABI`] and [`Table::size`] alone.

use std::ffi::{c_char, c_int, c_void};

/// The name of the plugin's one exported symbol, a `static` [`Table`]. Follows [`ABI`].
pub const SYMBOL: &str = "velo_rdma_v1";
/// The version of everything in this file. Any change of it is a new version.
pub const ABI: u32 = 1;
/// Work requests or completions in one call, at most.
pub const BATCH: usize = 32;

/// An opened port of a device, with its protection domain. Opaque.
#[repr(C)]
pub struct DeviceHandle {
    _opaque: [u8; 0],
}

/// A completion queue with its event channel. Opaque.
#[repr(C)]
pub struct QueueHandle {
    _opaque: [u8; 0],
}

/// A reliable-connected queue pair. Opaque.
#[repr(C)]
pub struct PairHandle {
    _opaque: [u8; 0],
}

/// Registered memory. Opaque.
#[repr(C)]
pub struct RegionHandle {
    _opaque: [u8; 0],
}

/// A memory window of type 2. Opaque.
#[repr(C)]
pub struct WindowHandle {
    _opaque: [u8; 0],
}

/// What a device is and can do.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceAnswer {
    /// 0, or the negative error number.
    pub error: i32,
    /// READs that a queue pair may have outstanding as the reader, and as the provider.
    pub reads_out: u32,
    /// The other.
    pub reads_in: u32,
    /// The most work requests of a queue.
    pub work_max: u32,
    /// The most completions that a completion queue can hold.
    pub completions_max: u32,
    /// Whether it has memory windows of type 2.
    pub windows: u32,
    /// Whether it can register memory that is not there yet (on-demand paging), for READs.
    pub on_demand: u32,
    /// Megabits per second of the port; 0 unknown.
    pub megabits_per_s: u32,
    /// The port's MTU, as verbs number it (1 is 256 … 5 is 4096).
    pub mtu: u32,
    /// 1 where the port is active.
    pub active: u32,
    /// 1 for Ethernet (RoCE), 0 for InfiniBand.
    pub ethernet: u32,
    /// The port's LID; 0 on Ethernet.
    pub lid: u32,
    /// The longest message.
    pub message_max_bytes: u32,
}

/// What registered memory is for.
pub const REGION_FILLED: u32 = 1;
/// Lent by its own key: remotely readable.
pub const REGION_LENT: u32 = 2;
/// Lent by windows: nobody can read it by its own key.
pub const REGION_WINDOWS: u32 = 4;
/// Its pages need not be there, nor locked: the device asks for them as it uses them.
pub const REGION_ON_DEMAND: u32 = 8;

/// The keys of registered memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Keys {
    /// For our own work requests.
    pub lkey: u32,
    /// For peers'.
    pub rkey: u32,
}

/// How a queue pair is to be made.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PairRequest {
    /// Work requests that it has room for.
    pub sends: u32,
    /// Messages that may wait for it.
    pub receives: u32,
    /// The longest inline message.
    pub inline_bytes: u32,
}

/// One end of a connection: what the other end must know.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// Its number.
    pub number: u32,
    /// The first packet's.
    pub sequence: u32,
    /// As verbs number them.
    pub mtu: u32,
    /// On InfiniBand.
    pub lid: u32,
    /// READs that it takes at once.
    pub reads_in: u32,
    /// In network order.
    pub gid: [u8; 16],
}

/// [`Work::kind`]: read remote memory.
pub const WORK_READ: u32 = 1;
/// [`Work::kind`]: send `len` bytes at `address` as a message, inline.
pub const WORK_SEND: u32 = 2;
/// [`Work::kind`]: bind a window to memory of ours.
pub const WORK_BIND: u32 = 3;
/// [`Work::kind`]: end what `rkey` allows.
pub const WORK_INVALIDATE: u32 = 4;

/// A work request.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Named in its [`Done`].
    pub id: u64,
    /// `WORK_…`.
    pub kind: u32,
    /// Whether its end is reported.
    pub signalled: u32,
    /// Memory of ours.
    pub address: *mut c_void,
    /// How much of it.
    pub len: u32,
    /// Its key.
    pub lkey: u32,
    /// The peer's memory.
    pub remote: u64,
    /// The key for that, or the window's new one.
    pub rkey: u32,
    /// Nothing.
    pub zero: u32,
    /// To be bound.
    pub window: *mut WindowHandle,
    /// To this.
    pub region: *mut RegionHandle,
}

/// A place for a message.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Receive {
    /// Named in its [`Done`].
    pub id: u64,
    /// Memory of ours.
    pub address: *mut c_void,
    /// How much of it.
    pub len: u32,
    /// Its key.
    pub lkey: u32,
}

/// What has ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Its name.
    pub id: u64,
    /// Of which queue pair.
    pub number: u32,
    /// 0, or why it failed (`ibv_wc_status`).
    pub status: u32,
    /// Bytes of a message that came.
    pub len: u32,
    /// The vendor's own word for it.
    pub vendor: u32,
}

/// [`Async::kind`]: a queue pair has failed; its number is in `number`.
pub const ASYNC_PAIR: u32 = 1;
/// [`Async::kind`]: the port is down.
pub const ASYNC_PORT_DOWN: u32 = 2;
/// [`Async::kind`]: the port is up again.
pub const ASYNC_PORT_UP: u32 = 3;
/// [`Async::kind`]: the device is gone, or does nothing any more.
pub const ASYNC_DEVICE: u32 = 4;
/// [`Async::kind`]: the port's addresses have changed.
pub const ASYNC_ADDRESSES: u32 = 5;
/// [`Async::kind`]: something else.
pub const ASYNC_OTHER: u32 = 6;

/// What a device says of itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Async {
    /// `ASYNC_…`.
    pub kind: u32,
    /// Of a queue pair.
    pub number: u32,
}

/// Everything that the plugin does. Errors are negative error numbers. Functions of a queue and its pairs' work may be called from any
/// thread, but one at a time; all others from any thread at any time.
#[repr(C)]
pub struct Table {
    /// [`ABI`].
    pub abi: u32,
    /// The size of this structure.
    pub size: u32,
    /// Opens a port of the device of this name; null where it fails, and the answer says why.
    pub open:
        unsafe extern "C" fn(name: *const c_char, port: u32, answer: *mut DeviceAnswer) -> *mut DeviceHandle,
    /// Closes it; all that was made of it must have been destroyed.
    pub close: unsafe extern "C" fn(*mut DeviceHandle),
    /// Registers memory; null where it fails, and the last argument gets the error.
    pub register: unsafe extern "C" fn(
        *mut DeviceHandle,
        address: *mut c_void,
        len: usize,
        purpose: u32,
        keys: *mut Keys,
        error: *mut c_int,
    ) -> *mut RegionHandle,
    /// Ends that.
    pub deregister: unsafe extern "C" fn(*mut RegionHandle) -> c_int,
    /// Makes a window, and gives its key; null where there is none.
    pub window: unsafe extern "C" fn(*mut DeviceHandle, rkey: *mut u32) -> *mut WindowHandle,
    /// Destroys it.
    pub drop_window: unsafe extern "C" fn(*mut WindowHandle) -> c_int,
    /// Makes a completion queue with so many places; null where it fails.
    pub queue: unsafe extern "C" fn(*mut DeviceHandle, places: u32, error: *mut c_int) -> *mut QueueHandle,
    /// Destroys it; no pair may use it any more.
    pub drop_queue: unsafe extern "C" fn(*mut QueueHandle) -> c_int,
    /// Readable when something has ended since it was armed.
    pub queue_descriptor: unsafe extern "C" fn(*mut QueueHandle) -> c_int,
    /// Makes a queue pair that may receive, and says what the other end must know, but for the address.
    pub pair: unsafe extern "C" fn(
        *mut DeviceHandle,
        *mut QueueHandle,
        *const PairRequest,
        end: *mut End,
        error: *mut c_int,
    ) -> *mut PairHandle,
    /// Connects it with the other end, with the port's address of that index as its own.
    pub connect:
        unsafe extern "C" fn(*mut PairHandle, gid_index: u32, ours: *const End, theirs: *const End) -> c_int,
    /// Makes it fail, so that all its work ends.
    pub fail: unsafe extern "C" fn(*mut PairHandle) -> c_int,
    /// Destroys it: when it returns, the device does nothing for it any more.
    pub drop_pair: unsafe extern "C" fn(*mut PairHandle) -> c_int,
    /// Hands up to [`BATCH`] work requests to the device with one doorbell. Returns how many.
    pub work: unsafe extern "C" fn(*mut PairHandle, *const Work, count: u32) -> u32,
    /// Gives the device up to [`BATCH`] places for messages. Returns how many.
    pub receive: unsafe extern "C" fn(*mut PairHandle, *const Receive, count: u32) -> u32,
    /// Fills in up to `count` of what has ended. Returns how many, or a negative error number.
    pub poll: unsafe extern "C" fn(*mut QueueHandle, *mut Done, count: u32) -> c_int,
    /// Takes the wake-ups that came, and asks for the next.
    pub arm: unsafe extern "C" fn(*mut QueueHandle) -> c_int,
    /// Readable when the device has something to say of itself.
    pub async_descriptor: unsafe extern "C" fn(*mut DeviceHandle) -> c_int,
    /// What it says. Returns 1, 0 where it says nothing, or a negative error number.
    pub take_async: unsafe extern "C" fn(*mut DeviceHandle, *mut Async) -> c_int,
}

const _: () = assert!(size_of::<Work>() == 64 && size_of::<Receive>() == 24 && size_of::<Done>() == 24);
const _: () = assert!(size_of::<End>() == 36 && size_of::<Table>() == 8 + 19 * 8);
