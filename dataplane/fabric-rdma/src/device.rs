//! An opened port of a device: context and protection domain, what is registered, windows, and what the device says of itself.

use std::ffi::{CStr, c_int, c_void};
use std::mem::zeroed;
use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_access_flags, ibv_alloc_mw, ibv_alloc_pd, ibv_async_event, ibv_close_device, ibv_context,
    ibv_dealloc_pd, ibv_dereg_mr, ibv_device_attr, ibv_device_cap_flags, ibv_event_type,
    ibv_free_device_list, ibv_get_async_event, ibv_get_device_list, ibv_get_device_name, ibv_mr, ibv_mw,
    ibv_mw_type, ibv_open_device, ibv_pd, ibv_query_device, ibv_reg_mr,
};
use velo_fabric::rdma::table::{
    ASYNC_ADDRESSES, ASYNC_DEVICE, ASYNC_OTHER, ASYNC_PAIR, ASYNC_PORT_DOWN, ASYNC_PORT_UP, Async,
    DeviceAnswer, Keys, REGION_FILLED, REGION_LENT, REGION_ON_DEMAND, REGION_WINDOWS,
};

use crate::verbs::{done, fills_on_demand, made, query_port};

/// `IBV_PORT_ACTIVE`, `IBV_LINK_LAYER_ETHERNET`.
const ACTIVE: u32 = 4;
const ETHERNET: u8 = 2;

pub struct Device {
    pub context: NonNull<ibv_context>,
    pub domain: NonNull<ibv_pd>,
    pub port: u8,
    pub mtu: u32,
    pub lid: u16,
    pub ethernet: bool,
    pub reads_out: u8,
    pub reads_in: u8,
}

// SAFETY: libibverbs' objects may be used from any thread.
unsafe impl Send for Device {}
// SAFETY: and from several at once.
unsafe impl Sync for Device {}

impl Device {
    pub fn open(name: &CStr, port: u32, answer: &mut DeviceAnswer) -> Result<Self, c_int> {
        let port = u8::try_from(port).map_err(|_| -libc::EINVAL)?;
        let context = find(name)?;
        // SAFETY: the context was opened above; all that is made of it is undone where a later step fails.
        unsafe {
            let opened = Self::open_port(context, port, answer);
            if opened.is_err() {
                ibv_close_device(context.as_ptr());
            }
            opened
        }
    }

    /// # Safety
    /// The context is open.
    unsafe fn open_port(
        context: NonNull<ibv_context>,
        port: u8,
        answer: &mut DeviceAnswer,
    ) -> Result<Self, c_int> {
        // SAFETY: the structure is numbers, and all zeros are values of them; the context is open.
        let (device, of_port) = unsafe {
            let mut device: ibv_device_attr = zeroed();
            done(ibv_query_device(context.as_ptr(), &mut device))?;
            (device, query_port(context.as_ptr(), port)?)
        };
        let windows = ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A
            | ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B;
        let ethernet = of_port.link_layer == ETHERNET;
        *answer = DeviceAnswer {
            error: 0,
            reads_out: device.max_qp_init_rd_atom.max(0) as u32,
            reads_in: device.max_qp_rd_atom.max(0) as u32,
            work_max: device.max_qp_wr.max(0) as u32,
            completions_max: device.max_cqe.max(0) as u32,
            windows: u32::from(device.device_cap_flags & windows.0 != 0),
            // SAFETY: the context is open.
            on_demand: u32::from(unsafe { fills_on_demand(context.as_ptr()) }),
            megabits_per_s: megabits(of_port.active_width, of_port.active_speed),
            mtu: of_port.active_mtu,
            active: u32::from(of_port.state == ACTIVE),
            ethernet: u32::from(ethernet),
            lid: of_port.lid.into(),
            message_max_bytes: of_port.max_msg_sz,
        };
        // SAFETY: the context is open.
        let domain = made(unsafe { ibv_alloc_pd(context.as_ptr()) })?;
        let byte = |value: u32| value.min(u8::MAX.into()) as u8;
        Ok(Self {
            context,
            domain,
            port,
            mtu: of_port.active_mtu,
            lid: of_port.lid,
            ethernet,
            reads_out: byte(answer.reads_out),
            reads_in: byte(answer.reads_in),
        })
    }

    /// # Safety
    /// The memory stays mapped until it is deregistered.
    pub unsafe fn register(
        &self,
        address: *mut c_void,
        len: usize,
        purpose: u32,
        keys: &mut Keys,
    ) -> Result<NonNull<ibv_mr>, c_int> {
        let mut access = 0;
        for (bit, flags) in [
            (REGION_FILLED, ibv_access_flags::IBV_ACCESS_LOCAL_WRITE),
            (REGION_LENT, ibv_access_flags::IBV_ACCESS_REMOTE_READ),
            (REGION_WINDOWS, ibv_access_flags::IBV_ACCESS_MW_BIND),
            (REGION_ON_DEMAND, ibv_access_flags::IBV_ACCESS_ON_DEMAND),
        ] {
            if purpose & bit != 0 {
                access |= flags.0;
            }
        }
        // SAFETY: the domain lives as long as the device; the memory is the caller's promise.
        let region = made(unsafe { ibv_reg_mr(self.domain.as_ptr(), address, len, access as c_int) })?;
        // SAFETY: it was made just now.
        *keys = unsafe { Keys { lkey: (*region.as_ptr()).lkey, rkey: (*region.as_ptr()).rkey } };
        Ok(region)
    }

    pub fn window(&self) -> Option<NonNull<ibv_mw>> {
        // SAFETY: the domain lives as long as the device.
        let window = unsafe { ibv_alloc_mw(self.domain.as_ptr(), ibv_mw_type::IBV_MW_TYPE_2) };
        window.and_then(NonNull::new)
    }

    pub fn async_descriptor(&self) -> c_int {
        // SAFETY: the context is open.
        unsafe { (*self.context.as_ptr()).async_fd }
    }

    /// What the device says of itself; the descriptor does not block.
    pub fn take_async(&self) -> Result<Option<Async>, c_int> {
        // SAFETY: all zeros are a value: an event of completion queue null.
        let mut event: ibv_async_event = unsafe { zeroed() };
        // SAFETY: the context is open, and the event has room.
        if unsafe { ibv_get_async_event(self.context.as_ptr(), &mut event) } != 0 {
            let error = crate::verbs::errno();
            return if error == -libc::EAGAIN { Ok(None) } else { Err(error) };
        }
        // SAFETY: the library has filled it in.
        let told = unsafe { meaning(&event, self.port) };
        // SAFETY: got above and acknowledged once.
        unsafe { rdma_sys::ibv_ack_async_event(&mut event) };
        Ok(Some(told))
    }
}

/// What an event says to who has this port. A device tells of all its ports to everybody who has it open.
///
/// # Safety
/// The element is what the event is of, and lives.
unsafe fn meaning(event: &ibv_async_event, port: u8) -> Async {
    use ibv_event_type as Kind;
    let of_the_port = |kind| {
        // SAFETY: these events name a port.
        let other = c_int::from(port) != unsafe { event.element.port_num };
        if other { ASYNC_OTHER } else { kind }
    };
    let kind = match event.event_type {
        Kind::IBV_EVENT_QP_FATAL | Kind::IBV_EVENT_QP_REQ_ERR | Kind::IBV_EVENT_QP_ACCESS_ERR => {
            // SAFETY: these are events of a queue pair, which is not destroyed before they are acknowledged.
            return Async { kind: ASYNC_PAIR, number: unsafe { (*event.element.qp).qp_num } };
        }
        Kind::IBV_EVENT_PORT_ERR => of_the_port(ASYNC_PORT_DOWN),
        Kind::IBV_EVENT_PORT_ACTIVE => of_the_port(ASYNC_PORT_UP),
        Kind::IBV_EVENT_DEVICE_FATAL => ASYNC_DEVICE,
        Kind::IBV_EVENT_GID_CHANGE | Kind::IBV_EVENT_LID_CHANGE | Kind::IBV_EVENT_PKEY_CHANGE => {
            of_the_port(ASYNC_ADDRESSES)
        }
        _ => ASYNC_OTHER,
    };
    Async { kind, number: 0 }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: both were made in `open`, and the table's contract says that nothing of theirs is left.
        unsafe {
            ibv_dealloc_pd(self.domain.as_ptr());
            ibv_close_device(self.context.as_ptr());
        }
    }
}

/// Opens the device of this name, and makes its asynchronous events not block.
fn find(name: &CStr) -> Result<NonNull<ibv_context>, c_int> {
    let mut count = 0;
    // SAFETY: the list is null or has `count` devices, and lives until it is freed below.
    unsafe {
        let list = made(ibv_get_device_list(&mut count))?.as_ptr();
        let devices = std::slice::from_raw_parts(list, count.max(0) as usize);
        let found =
            devices.iter().copied().find(|device| CStr::from_ptr(ibv_get_device_name(*device)) == name);
        let context = found.map_or(ptr::null_mut(), |device| ibv_open_device(device));
        let error = crate::verbs::errno();
        ibv_free_device_list(list);
        let Some(context) = NonNull::new(context) else {
            return Err(if found.is_none() { -libc::ENODEV } else { error });
        };
        let descriptor = (*context.as_ptr()).async_fd;
        let flags = libc::fcntl(descriptor, libc::F_GETFL);
        if flags < 0 || libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            let error = crate::verbs::errno();
            ibv_close_device(context.as_ptr());
            return Err(error);
        }
        Ok(context)
    }
}

/// # Safety
/// Made by [`Device::register`], and not used by any device any more.
pub unsafe fn deregister(region: *mut ibv_mr) -> c_int {
    // SAFETY: the caller's promise.
    done(unsafe { ibv_dereg_mr(region) }).err().unwrap_or(0)
}

/// # Safety
/// Made by [`Device::window`].
pub unsafe fn drop_window(window: *mut ibv_mw) -> c_int {
    // SAFETY: the caller's promise.
    done(unsafe { rdma_sys::ibv_dealloc_mw(window) }).err().unwrap_or(0)
}

/// Of a port, by the codes of the InfiniBand specification (volume 1, 14.2.5.6).
fn megabits(width: u8, speed: u8) -> u32 {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return 0,
    };
    let lane = match speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_000,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => return 0,
    };
    lanes * lane
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_port_of_the_device_says_is_not_ours() {
        use ibv_event_type as Kind;
        let cases = [
            (Kind::IBV_EVENT_PORT_ERR, ASYNC_PORT_DOWN),
            (Kind::IBV_EVENT_PORT_ACTIVE, ASYNC_PORT_UP),
            (Kind::IBV_EVENT_GID_CHANGE, ASYNC_ADDRESSES),
            (Kind::IBV_EVENT_LID_CHANGE, ASYNC_ADDRESSES),
            (Kind::IBV_EVENT_PKEY_CHANGE, ASYNC_ADDRESSES),
        ];
        // SAFETY: all zeros are a value.
        let mut event: ibv_async_event = unsafe { zeroed() };
        for (kind, of_ours) in cases {
            event.event_type = kind;
            for (port, meant) in [(1, ASYNC_OTHER), (2, of_ours), (3, ASYNC_OTHER)] {
                event.element.port_num = port;
                // SAFETY: an event of a port, which it names.
                let told = unsafe { meaning(&event, 2) };
                assert_eq!((told.kind, told.number), (meant, 0), "{kind:?} of port {port}");
            }
        }
        // The device has no port.
        event.event_type = Kind::IBV_EVENT_DEVICE_FATAL;
        event.element.port_num = 0;
        // SAFETY: an event of the device.
        assert_eq!(unsafe { meaning(&event, 2) }.kind, ASYNC_DEVICE);
    }
}
