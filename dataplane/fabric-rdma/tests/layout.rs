//! The sizes and places of everything in the structures of libibverbs that the plugin uses, as `rdma-sys` has them and as a C compiler
//! has them with the headers of this machine.

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
    ibv_context ("struct ibv_context"): device, cmd_fd, async_fd, num_comp_vectors;
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

#[test]
fn structures_are_laid_out_as_in_c() {
    let ours = ours();
    let mut source =
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n"
            .to_owned();
    for (name, _, fields) in &ours {
        writeln!(source, "printf(\"%zu\\n\", sizeof({name}));").expect("a string has room");
        for (field, _) in fields {
            writeln!(source, "printf(\"%zu\\n\", offsetof({name}, {field}));").expect("a string has room");
        }
    }
    // Where the fields of the unions in a work request lie.
    for field in ["wr.rdma.remote_addr", "wr.rdma.rkey", "bind_mw.mw", "bind_mw.rkey", "bind_mw.bind_info"] {
        writeln!(source, "printf(\"%zu\\n\", offsetof(struct ibv_send_wr, {field}));")
            .expect("a string has room");
    }
    source.push_str("return 0; }\n");
    let dir = tempfile::tempdir().expect("a directory");
    let (file, program) = (dir.path().join("layout.c"), dir.path().join("layout"));
    std::fs::write(&file, source).expect("room");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let compiled = Command::new(compiler).arg(&file).arg("-o").arg(&program).status().expect("a C compiler");
    assert!(compiled.success(), "the C file does not compile");
    let printed = Command::new(&program).output().expect("it runs").stdout;
    let printed = String::from_utf8(printed).expect("numbers");
    let mut theirs = printed.lines().map(|line| line.parse::<usize>().expect("a number"));
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
    ];
    assert_eq!(theirs.collect::<Vec<_>>(), ours, "the unions of a work request");
    assert!(compared > 100);
}
