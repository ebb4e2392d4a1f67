//! The sizes and places of everything in the structures of libibverbs that the plugin uses, as `rdma-sys` has them and as a C compiler
//! has them with the headers of this machine; and the value of every constant.

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::process::Command;

use rdma_sys::*;

macro_rules! layout {
    ($($name:ident ($c:literal): $($field:ident $(= $c_field:literal)?),*;)*) => {
        /// The structure in C, its size here, and of its fields the name in C and the place here.
        fn ours() -> Vec<(&'static str, usize, Vec<(&'static str, usize)>)> {
            vec![$(($c, size_of::<$name>(), vec![$((layout!(@ $field $($c_field)?), offset_of!($name, $field))),*])),*]
        }
    };
    (@ $field:ident $c_field:literal) => { $c_field };
    (@ $field:ident) => { stringify!($field) };
}

layout! {
    ibv_context ("struct ibv_context"): device, ops, cmd_fd, async_fd, num_comp_vectors, abi_compat;
    ibv_context_ops ("struct ibv_context_ops"): alloc_mw, bind_mw, dealloc_mw, poll_cq, req_notify_cq, post_send, post_recv;
    ibv_pd ("struct ibv_pd"): context, handle;
    ibv_mr ("struct ibv_mr"): context, pd, addr, length, handle, lkey, rkey;
    ibv_mw ("struct ibv_mw"): context, pd, rkey, handle;
    ibv_comp_channel ("struct ibv_comp_channel"): context, fd, refcnt;
    ibv_cq ("struct ibv_cq"): context, channel, cq_context, handle, cqe;
    ibv_qp ("struct ibv_qp"): context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type;
    ibv_device_attr ("struct ibv_device_attr"): max_qp_wr, device_cap_flags, max_cqe, max_qp_rd_atom, max_qp_init_rd_atom;
    ibv_port_attr ("struct ibv_port_attr"): state, max_mtu, active_mtu, gid_tbl_len, max_msg_sz, lid, active_width, active_speed,
        link_layer, flags;
    ibv_gid ("union ibv_gid"): raw;
    ibv_qp_init_attr ("struct ibv_qp_init_attr"): qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all;
    ibv_qp_cap ("struct ibv_qp_cap"): max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data;
    ibv_qp_attr ("struct ibv_qp_attr"): qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
        qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout,
        retry_cnt, rnr_retry, rate_limit;
    ibv_ah_attr ("struct ibv_ah_attr"): grh, dlid, sl, src_path_bits, static_rate, is_global, port_num;
    ibv_global_route ("struct ibv_global_route"): dgid, flow_label, sgid_index, hop_limit, traffic_class;
    ibv_sge ("struct ibv_sge"): addr, length, lkey;
    ibv_send_wr ("struct ibv_send_wr"): wr_id, next, sg_list, num_sge, opcode, send_flags,
        imm_data_invalidated_rkey_union = "invalidate_rkey", wr, bind_mw_tso_union = "bind_mw";
    ibv_recv_wr ("struct ibv_recv_wr"): wr_id, next, sg_list, num_sge;
    ibv_mw_bind_info ("struct ibv_mw_bind_info"): mr, addr, length, mw_access_flags;
    ibv_wc ("struct ibv_wc"): wr_id, status, opcode, vendor_err, byte_len, qp_num, src_qp, wc_flags, pkey_index, slid, sl,
        dlid_path_bits;
    ibv_async_event ("struct ibv_async_event"): element, event_type;
    verbs_context ("struct verbs_context"): query_port, query_device_ex, sz, context;
    ibv_device_attr_ex ("struct ibv_device_attr_ex"): orig_attr, comp_mask, odp_caps;
    ibv_odp_caps ("struct ibv_odp_caps"): general_caps, per_transport_caps;
}

/// Constants of an enum by their names in C, as the binding has them: as numbers, and as flags.
macro_rules! constants {
    ($($of:ident: $($name:ident),*;)*) => { vec![$($((stringify!($name), $of::$name as u64)),*),*] };
}
macro_rules! flags {
    ($($of:ident: $($name:ident),*;)*) => { vec![$($((stringify!($name), u64::from($of::$name.0))),*),*] };
}

/// The constants that the plugin uses, and those whose values it or velod has written down itself.
fn constants() -> Vec<(&'static str, u64)> {
    let mut all = constants! {
        ibv_event_type: IBV_EVENT_QP_FATAL, IBV_EVENT_QP_REQ_ERR, IBV_EVENT_QP_ACCESS_ERR, IBV_EVENT_PORT_ERR,
            IBV_EVENT_PORT_ACTIVE, IBV_EVENT_DEVICE_FATAL, IBV_EVENT_GID_CHANGE, IBV_EVENT_LID_CHANGE, IBV_EVENT_PKEY_CHANGE;
        ibv_wr_opcode: IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_BIND_MW, IBV_WR_LOCAL_INV;
        ibv_qp_state: IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS, IBV_QPS_ERR;
        ibv_qp_type: IBV_QPT_RC;
        ibv_mw_type: IBV_MW_TYPE_2;
    };
    all.extend(flags! {
        ibv_access_flags: IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_MW_BIND, IBV_ACCESS_ON_DEMAND;
        ibv_device_cap_flags: IBV_DEVICE_MEM_WINDOW_TYPE_2A, IBV_DEVICE_MEM_WINDOW_TYPE_2B;
        ibv_send_flags: IBV_SEND_SIGNALED, IBV_SEND_INLINE;
        ibv_odp_general_caps: IBV_ODP_SUPPORT;
        ibv_odp_transport_cap_bits: IBV_ODP_SUPPORT_READ;
        ibv_qp_attr_mask: IBV_QP_STATE, IBV_QP_PKEY_INDEX, IBV_QP_PORT, IBV_QP_ACCESS_FLAGS, IBV_QP_AV, IBV_QP_PATH_MTU,
            IBV_QP_DEST_QPN, IBV_QP_RQ_PSN, IBV_QP_MAX_DEST_RD_ATOMIC, IBV_QP_MIN_RNR_TIMER, IBV_QP_TIMEOUT, IBV_QP_RETRY_CNT,
            IBV_QP_RNR_RETRY, IBV_QP_SQ_PSN, IBV_QP_MAX_QP_RD_ATOMIC;
    });
    all.extend([
        ("IBV_PORT_ACTIVE", 4),
        ("IBV_LINK_LAYER_ETHERNET", 2),
        ("IBV_MTU_256", 1),
        ("IBV_MTU_4096", 5),
        ("IBV_WC_SUCCESS", 0),
        ("IBV_WC_WR_FLUSH_ERR", 5),
        ("IBV_WC_REM_INV_REQ_ERR", 9),
        ("IBV_WC_REM_ACCESS_ERR", 10),
        ("IBV_WC_REM_OP_ERR", 11),
        ("IBV_WC_RETRY_EXC_ERR", 12),
        ("IBV_WC_RNR_RETRY_EXC_ERR", 13),
        // What a context says that is a part of a larger structure.
        ("(uintptr_t)__VERBS_ABI_IS_EXTENDED", usize::MAX as u64),
    ]);
    all
}

/// Compiles C and gives the numbers that it prints, one a line.
fn printed_by_c(statements: &str) -> Vec<u64> {
    let source = format!(
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n\
         int main(void) {{\n{statements}return 0; }}\n"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let (file, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&file, source).expect("room");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(compiler).arg(&file).arg("-o").arg(&program).status().expect("a C compiler");
    assert!(compiled.success(), "the C file does not compile");
    let printed = Command::new(&program).output().expect("it runs").stdout;
    let printed = String::from_utf8(printed).expect("numbers");
    printed.lines().map(|line| line.parse().expect("a number")).collect()
}

#[test]
fn constants_are_as_in_c() {
    let ours = constants();
    let mut statements = String::new();
    for (name, _) in &ours {
        writeln!(statements, "printf(\"%llu\\n\", (unsigned long long)({name}));")
            .expect("a string has room");
    }
    let theirs = printed_by_c(&statements);
    assert_eq!(theirs.len(), ours.len());
    for ((name, ours), theirs) in ours.iter().zip(theirs) {
        assert_eq!(*ours, theirs, "{name}");
    }
}

#[test]
fn structures_are_laid_out_as_in_c() {
    let ours = ours();
    let mut statements = String::new();
    for (name, _, fields) in &ours {
        writeln!(statements, "printf(\"%zu\\n\", sizeof({name}));").expect("a string has room");
        for (field, _) in fields {
            writeln!(statements, "printf(\"%zu\\n\", offsetof({name}, {field}));")
                .expect("a string has room");
        }
    }
    // Where fields within fields lie: of the unions of a work request, and of what a device can do on demand.
    let nested = [
        ("struct ibv_send_wr", "wr.rdma.remote_addr"),
        ("struct ibv_send_wr", "wr.rdma.rkey"),
        ("struct ibv_send_wr", "bind_mw.mw"),
        ("struct ibv_send_wr", "bind_mw.rkey"),
        ("struct ibv_send_wr", "bind_mw.bind_info"),
        ("struct ibv_device_attr_ex", "odp_caps.per_transport_caps.rc_odp_caps"),
        ("struct ibv_async_event", "element.port_num"),
        ("struct ibv_async_event", "element.qp"),
    ];
    for (of, field) in nested {
        writeln!(statements, "printf(\"%zu\\n\", offsetof({of}, {field}));").expect("a string has room");
    }
    let mut theirs = printed_by_c(&statements).into_iter().map(|number| number as usize);
    let mut compared = 0;
    for (name, size, fields) in ours {
        assert_eq!(theirs.next(), Some(size), "the size of {name}");
        for (field, place) in fields {
            assert_eq!(theirs.next(), Some(place), "the place of {field} in {name}");
            compared += 1;
        }
    }
    let (wr, bind) = (offset_of!(ibv_send_wr, wr), offset_of!(ibv_send_wr, bind_mw_tso_union));
    let ours = [
        wr + offset_of!(rdma_t, remote_addr),
        wr + offset_of!(rdma_t, rkey),
        bind + offset_of!(bind_mw_t, mw),
        bind + offset_of!(bind_mw_t, rkey),
        bind + offset_of!(bind_mw_t, bind_info),
        offset_of!(ibv_device_attr_ex, odp_caps.per_transport_caps.rc_odp_caps),
        offset_of!(ibv_async_event, element),
        offset_of!(ibv_async_event, element),
    ];
    assert_eq!(theirs.collect::<Vec<_>>(), ours, "fields within fields");
    assert!(compared > 100);
}
