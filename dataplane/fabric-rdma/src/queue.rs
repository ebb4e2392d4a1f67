//! A completion queue with its event channel.

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::{self, NonNull};

use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq, ibv_wc,
};
use velo_fabric::rdma::table::{BATCH, Done};

use crate::device::Device;
use crate::verbs::{done, errno, made};

pub struct Queue {
    pub queue: NonNull<ibv_cq>,
    channel: NonNull<ibv_comp_channel>,
}

impl Queue {
    pub fn new(device: &Device, places: u32) -> Result<Self, c_int> {
        let places = c_int::try_from(places).map_err(|_| -libc::EINVAL)?;
        // SAFETY: the context is open; what was made is destroyed where a later step fails.
        unsafe {
            let context = device.context.as_ptr();
            let channel = made(ibv_create_comp_channel(context))?;
            let descriptor = (*channel.as_ptr()).fd;
            let flags = libc::fcntl(descriptor, libc::F_GETFL);
            let waits = flags < 0 || libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK) < 0;
            let queue = if waits {
                Err(errno())
            } else {
                made(ibv_create_cq(context, places, ptr::null_mut(), channel.as_ptr(), 0))
            };
            match queue {
                Ok(queue) => Ok(Self { queue, channel }),
                Err(error) => {
                    ibv_destroy_comp_channel(channel.as_ptr());
                    Err(error)
                }
            }
        }
    }

    pub fn descriptor(&self) -> c_int {
        // SAFETY: the channel lives as long as we do.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    pub fn poll(&self, to: &mut [Done]) -> Result<usize, c_int> {
        // SAFETY: numbers and a union of numbers: all zeros are values.
        let mut ended: [ibv_wc; BATCH] = unsafe { zeroed() };
        let most = to.len().min(BATCH);
        // SAFETY: there is room for so many.
        let count = unsafe { ibv_poll_cq(self.queue.as_ptr(), most as i32, ended.as_mut_ptr()) };
        if count < 0 {
            return Err(-libc::EIO);
        }
        for (to, ended) in to.iter_mut().zip(&ended[..count as usize]) {
            *to = Done {
                id: ended.wr_id,
                number: ended.qp_num,
                status: ended.status,
                len: ended.byte_len,
                vendor: ended.vendor_err,
            };
        }
        Ok(count as usize)
    }

    pub fn arm(&self) -> Result<(), c_int> {
        // SAFETY: the channel and the queue live as long as we do; every event that was got is acknowledged.
        unsafe {
            let (mut queue, mut context, mut count) = (ptr::null_mut(), ptr::null_mut(), 0);
            while ibv_get_cq_event(self.channel.as_ptr(), &mut queue, &mut context) == 0 {
                count += 1;
            }
            let error = errno();
            if count > 0 {
                ibv_ack_cq_events(self.queue.as_ptr(), count);
            } else if error != -libc::EAGAIN {
                return Err(error);
            }
            done(ibv_req_notify_cq(self.queue.as_ptr(), 0))
        }
    }

    pub fn destroy(self) -> c_int {
        // SAFETY: the table's contract says that no pair uses it any more.
        unsafe {
            let result = done(ibv_destroy_cq(self.queue.as_ptr()));
            ibv_destroy_comp_channel(self.channel.as_ptr());
            result.err().unwrap_or(0)
        }
    }
}
