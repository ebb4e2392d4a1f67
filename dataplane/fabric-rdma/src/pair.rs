//! A reliable-connected queue pair.

use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr::{self, NonNull};

use rdma_sys::{
    bind_mw_t, ibv_access_flags, ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_mw, ibv_mw_bind_info,
    ibv_post_recv, ibv_post_send, ibv_qp, ibv_qp_attr, ibv_qp_attr_mask as Mask, ibv_qp_init_attr,
    ibv_qp_state, ibv_qp_type, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, rdma_t,
};
use velo_fabric::rdma::table::{
    BATCH, End, PairRequest, Receive, WORK_BIND, WORK_INVALIDATE, WORK_READ, WORK_SEND, Work,
};

use crate::device::Device;
use crate::queue::Queue;
use crate::verbs::{done, made};

/// How long the device waits for an acknowledgement before it sends again: 4.096 µs · 2^14, 67 ms; and how often it does.
const TIMEOUT: u8 = 14;
const RETRIES: u8 = 7;
/// A peer without a place for a message is asked again after 0.64 ms, for ever: it is the progress deadline that gives up.
const NOT_READY_TIMER: u8 = 12;
const NOT_READY_RETRIES: u8 = 7;
const HOPS: u8 = 64;

pub struct Pair {
    pair: NonNull<ibv_qp>,
    port: u8,
    ethernet: bool,
    reads_out: u8,
    reads_in: u8,
}

impl Pair {
    pub fn new(device: &Device, queue: &Queue, request: &PairRequest, end: &mut End) -> Result<Self, c_int> {
        // SAFETY: numbers and null pointers are values of it; domain and queue live as long as the pair.
        let pair = unsafe {
            let mut attr: ibv_qp_init_attr = zeroed();
            (attr.send_cq, attr.recv_cq) = (queue.queue.as_ptr(), queue.queue.as_ptr());
            attr.qp_type = ibv_qp_type::IBV_QPT_RC;
            attr.cap.max_send_wr = request.sends;
            attr.cap.max_recv_wr = request.receives;
            (attr.cap.max_send_sge, attr.cap.max_recv_sge) = (1, 1);
            attr.cap.max_inline_data = request.inline_bytes;
            made(ibv_create_qp(device.domain.as_ptr(), &mut attr))?
        };
        let this = Self {
            pair,
            port: device.port,
            ethernet: device.ethernet,
            reads_out: device.reads_out,
            reads_in: device.reads_in,
        };
        // SAFETY: as above.
        let mut attr: ibv_qp_attr = unsafe { zeroed() };
        attr.qp_state = ibv_qp_state::IBV_QPS_INIT;
        attr.port_num = device.port;
        // Peers may read what is lent to them. Nothing of ours is remotely writable.
        attr.qp_access_flags = ibv_access_flags::IBV_ACCESS_REMOTE_READ.0;
        let mask =
            Mask::IBV_QP_STATE | Mask::IBV_QP_PKEY_INDEX | Mask::IBV_QP_PORT | Mask::IBV_QP_ACCESS_FLAGS;
        if let Err(error) = this.modify(&mut attr, mask) {
            this.destroy();
            return Err(error);
        }
        // SAFETY: it was made above.
        let number = unsafe { (*pair.as_ptr()).qp_num };
        *end = End {
            number,
            sequence: end.sequence & 0x00ff_ffff,
            mtu: device.mtu,
            lid: device.lid.into(),
            reads_in: device.reads_in.into(),
            gid: end.gid,
        };
        Ok(this)
    }

    fn modify(&self, attr: &mut ibv_qp_attr, mask: Mask) -> Result<(), c_int> {
        // SAFETY: the pair lives as long as we do.
        done(unsafe { ibv_modify_qp(self.pair.as_ptr(), attr, mask.0 as c_int) })
    }

    pub fn connect(&self, gid_index: u32, ours: &End, theirs: &End) -> Result<(), c_int> {
        let gid_index = u8::try_from(gid_index).map_err(|_| -libc::EINVAL)?;
        // SAFETY: numbers: all zeros are values.
        let mut attr: ibv_qp_attr = unsafe { zeroed() };
        attr.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attr.path_mtu = ours.mtu.min(theirs.mtu);
        attr.dest_qp_num = theirs.number;
        attr.rq_psn = theirs.sequence & 0x00ff_ffff;
        attr.max_dest_rd_atomic = self.reads_in;
        attr.min_rnr_timer = NOT_READY_TIMER;
        attr.ah_attr.port_num = self.port;
        attr.ah_attr.dlid = theirs.lid as u16;
        if self.ethernet || theirs.lid == 0 {
            attr.ah_attr.is_global = 1;
            attr.ah_attr.grh.sgid_index = gid_index;
            attr.ah_attr.grh.hop_limit = HOPS;
            attr.ah_attr.grh.dgid.raw = theirs.gid;
        }
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_AV
            | Mask::IBV_QP_PATH_MTU
            | Mask::IBV_QP_DEST_QPN
            | Mask::IBV_QP_RQ_PSN
            | Mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | Mask::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, mask)?;
        // SAFETY: as above.
        let mut attr: ibv_qp_attr = unsafe { zeroed() };
        attr.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attr.timeout = TIMEOUT;
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = NOT_READY_RETRIES;
        attr.sq_psn = ours.sequence & 0x00ff_ffff;
        attr.max_rd_atomic = self.reads_out.min(theirs.reads_in.min(u8::MAX.into()) as u8);
        let mask = Mask::IBV_QP_STATE
            | Mask::IBV_QP_TIMEOUT
            | Mask::IBV_QP_RETRY_CNT
            | Mask::IBV_QP_RNR_RETRY
            | Mask::IBV_QP_SQ_PSN
            | Mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, mask)
    }

    pub fn fail(&self) -> Result<(), c_int> {
        // SAFETY: as above.
        let mut attr: ibv_qp_attr = unsafe { zeroed() };
        attr.qp_state = ibv_qp_state::IBV_QPS_ERR;
        self.modify(&mut attr, Mask::IBV_QP_STATE)
    }

    /// # Safety
    /// Memory, windows and regions of all work live until it has ended.
    pub unsafe fn work(&self, work: &[Work]) -> usize {
        let count = work.len().min(BATCH);
        // SAFETY: numbers, null pointers and unions of those: all zeros are values.
        let (mut places, mut requests): ([ibv_sge; BATCH], [ibv_send_wr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        for (place, work) in places.iter_mut().zip(work) {
            *place = ibv_sge { addr: work.address as u64, length: work.len, lkey: work.lkey };
        }
        let memory = places.as_mut_ptr();
        for (i, work) in work[..count].iter().enumerate() {
            let request = &mut requests[i];
            request.wr_id = work.id;
            if work.signalled != 0 {
                request.send_flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
            }
            match work.kind {
                WORK_READ | WORK_SEND => {
                    request.sg_list = memory.wrapping_add(i);
                    request.num_sge = 1;
                    if work.kind == WORK_READ {
                        request.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
                        request.wr.rdma = rdma_t { remote_addr: work.remote, rkey: work.rkey };
                    } else {
                        request.opcode = ibv_wr_opcode::IBV_WR_SEND;
                        request.send_flags |= ibv_send_flags::IBV_SEND_INLINE.0;
                    }
                }
                WORK_BIND => {
                    request.opcode = ibv_wr_opcode::IBV_WR_BIND_MW;
                    let bind_info = ibv_mw_bind_info {
                        mr: work.region.cast(),
                        addr: work.address as u64,
                        length: work.len.into(),
                        mw_access_flags: ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
                    };
                    request.bind_mw_tso_union.bind_mw =
                        bind_mw_t { mw: work.window.cast(), rkey: work.rkey, bind_info };
                }
                WORK_INVALIDATE => {
                    request.opcode = ibv_wr_opcode::IBV_WR_LOCAL_INV;
                    request.imm_data_invalidated_rkey_union.invalidated_rkey = work.rkey;
                }
                _ => return 0,
            }
        }
        // SAFETY: what the list points to lives until the call is over, and all else is the caller's promise.
        let posted = post(
            &mut requests[..count],
            |request, next| request.next = next,
            |first, bad| unsafe { ibv_post_send(self.pair.as_ptr(), first, bad) },
        );
        for bound in work[..posted].iter().filter(|work| work.kind == WORK_BIND) {
            // A provider takes a window's key of now from its structure, and nobody but who binds it keeps that.
            // SAFETY: a window of the caller's, which lives.
            unsafe { (*bound.window.cast::<ibv_mw>()).rkey = bound.rkey };
        }
        posted
    }

    /// # Safety
    /// The memory lives until a message came into it or the pair is destroyed.
    pub unsafe fn receive(&self, places: &[Receive]) -> usize {
        let count = places.len().min(BATCH);
        // SAFETY: numbers and null pointers.
        let (mut memory, mut requests): ([ibv_sge; BATCH], [ibv_recv_wr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        for (memory, place) in memory.iter_mut().zip(places) {
            *memory = ibv_sge { addr: place.address as u64, length: place.len, lkey: place.lkey };
        }
        let memory = memory.as_mut_ptr();
        for (i, place) in places[..count].iter().enumerate() {
            requests[i].wr_id = place.id;
            requests[i].sg_list = memory.wrapping_add(i);
            requests[i].num_sge = 1;
        }
        // SAFETY: as in `work`.
        post(
            &mut requests[..count],
            |request, next| request.next = next,
            |first, bad| unsafe { ibv_post_recv(self.pair.as_ptr(), first, bad) },
        )
    }

    pub fn destroy(self) -> c_int {
        // SAFETY: made in `new`, and destroyed once.
        done(unsafe { ibv_destroy_qp(self.pair.as_ptr()) }).err().unwrap_or(0)
    }
}

/// Links requests to a list that ends and hands it to the device. Returns how many it took.
fn post<T>(
    requests: &mut [T],
    link: impl Fn(&mut T, *mut T),
    with: impl FnOnce(*mut T, *mut *mut T) -> c_int,
) -> usize {
    if requests.is_empty() {
        return 0;
    }
    let first = requests.as_mut_ptr();
    for (i, request) in requests.iter_mut().enumerate().rev().skip(1) {
        link(request, first.wrapping_add(i + 1));
    }
    let first = requests.as_mut_ptr();
    let mut bad = ptr::null_mut();
    if with(first, &mut bad) == 0 {
        return requests.len();
    }
    (0..requests.len()).find(|i| ptr::eq(first.wrapping_add(*i), bad)).unwrap_or(0)
}
