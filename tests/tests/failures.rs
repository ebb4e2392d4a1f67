//! Processes die and disks lie in the middle of a transfer; the receiver ends with the right bytes all the same.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::JobState;
use velo_tests::content::{random_file, same_file};
use velo_tests::local::{finish, have, job as job_status, pull};
use velo_tests::{Cluster, Node, wait_until};

const BYTES: u64 = 384 << 20;

velo_tests::over_each_fabric!(
    a_killed_receiver_goes_on_where_it_was,
    a_killed_provider_is_replaced_by_another,
    a_stalled_provider_is_replaced_by_another,
    velod_goes_on_without_control,
    a_killed_velod_comes_back_by_itself,
    a_damaged_piece_is_refused_and_its_sender_named,
);

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn put(node: &Node, path: &Path) -> ObjectId {
    node.json(&["put", text(path)])["id"].as_str().expect("an id").parse().expect("an id")
}

fn node_id(node: &Node) -> NodeId {
    node.id().parse().expect("a node id")
}

/// Waits until some, but not all, pieces have arrived.
fn wait_for_the_middle(node: &Node, blob: BlobId) {
    let mut socket = node.socket();
    wait_until("the transfer begins", || have(&mut socket, blob).is_some_and(|have| have.count() >= 16));
}

fn kill_velod(node: &Node) {
    let pid = Pid::from_raw(node.velod_pid()).expect("a process id");
    kill_process(pid, Signal::KILL).expect("velod is there");
}

fn a_killed_receiver_goes_on_where_it_was(fabric: &'static str) {
    let mut cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    random_file(&source, 1, BYTES);
    let id = put(&cluster.nodes[0], &source);
    let provider = node_id(&cluster.nodes[0]);

    pull(&mut cluster.nodes[1].socket(), id, vec![provider]).expect("a job");
    wait_for_the_middle(&cluster.nodes[1], id.blob);
    cluster.nodes[1].kill();
    cluster.nodes[1].up(&[]);

    let kept =
        have(&mut cluster.nodes[1].socket(), id.blob).expect("what had arrived is still there").count();
    assert!(kept >= 16, "{kept} pieces survived");
    let dest = cluster.path("dest");
    cluster.nodes[1].ok(&["get", &id.to_string(), text(&dest)]);
    assert!(same_file(&source, &dest));
    let pieces = BYTES >> 20;
    assert_eq!(cluster.nodes[1].counter("pieces_refetched_total"), 0, "no verified piece is fetched twice");
    let verified = cluster.nodes[1].counter("pieces_verified_total");
    assert!(verified <= pieces - kept, "{verified} fetched after the restart, {kept} of {pieces} were there");
    cluster.assert_carried_by(fabric);
}

fn a_killed_provider_is_replaced_by_another(fabric: &'static str) {
    let mut cluster = Cluster::over(fabric, 3);
    let source = cluster.path("source");
    random_file(&source, 2, BYTES);
    let id = put(&cluster.nodes[0], &source);
    cluster.nodes[1].ok(&["get", &id.to_string(), text(&cluster.path("second-copy"))]);

    let job = {
        let mut socket = cluster.nodes[2].socket();
        let sources = vec![node_id(&cluster.nodes[0]), node_id(&cluster.nodes[1])];
        pull(&mut socket, id, sources).expect("a job")
    };
    wait_for_the_middle(&cluster.nodes[2], id.blob);
    cluster.nodes[0].kill();
    let status = finish(&mut cluster.nodes[2].socket(), job).expect("velod answers");
    assert_eq!(status.state, JobState::Complete);
    assert_eq!(status.duplicate_pieces, 0);
    let dest = cluster.path("dest");
    cluster.nodes[2].ok(&["get", &id.to_string(), text(&dest)]);
    assert!(same_file(&source, &dest));
}

fn a_stalled_provider_is_replaced_by_another(fabric: &'static str) {
    let mut cluster = Cluster::over(fabric, 3);
    let source = cluster.path("source");
    random_file(&source, 3, BYTES);
    let id = put(&cluster.nodes[0], &source);
    cluster.nodes[1].ok(&["get", &id.to_string(), text(&cluster.path("second-copy"))]);
    let job = {
        let sources = vec![node_id(&cluster.nodes[0]), node_id(&cluster.nodes[1])];
        pull(&mut cluster.nodes[2].socket(), id, sources).expect("a job")
    };
    wait_for_the_middle(&cluster.nodes[2], id.blob);
    // It lives, its connections stay open, and nothing comes any more.
    let pid = Pid::from_raw(cluster.nodes[0].velod_pid()).expect("a process id");
    kill_process(pid, Signal::STOP).expect("velod is there");
    let status = finish(&mut cluster.nodes[2].socket(), job).expect("velod answers");
    kill_process(pid, Signal::CONT).expect("velod is there");
    assert_eq!(status.state, JobState::Complete);
    cluster.nodes[0].kill();
}

fn velod_goes_on_without_control(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    random_file(&source, 4, BYTES);
    let id = put(&cluster.nodes[0], &source);
    let job = pull(&mut cluster.nodes[1].socket(), id, vec![node_id(&cluster.nodes[0])]).expect("a job");
    for node in &cluster.nodes {
        let pid = Pid::from_raw(node.control_pid()).expect("a process id");
        kill_process(pid, Signal::KILL).expect("velo-control is there");
    }
    let status = finish(&mut cluster.nodes[1].socket(), job).expect("velod answers");
    assert_eq!(status.state, JobState::Complete);
    cluster.assert_carried_by(fabric);
}

fn a_killed_velod_comes_back_by_itself(fabric: &'static str) {
    let cluster = Cluster::over(fabric, 2);
    let source = cluster.path("source");
    random_file(&source, 5, 8 << 20);
    let id = put(&cluster.nodes[0], &source);
    kill_velod(&cluster.nodes[1]);
    let dest = cluster.path("dest");
    wait_until("velo up starts velod again and a get succeeds", || {
        cluster.nodes[1].run(&["get", &id.to_string(), text(&dest)]).status.success()
    });
    assert!(same_file(&source, &dest));
}

fn stored_file(node: &Node, id: ObjectId) -> PathBuf {
    let hex = id.blob.to_hex();
    node.dir.join("data/store/blobs").join(&hex[..2]).join(&hex)
}

fn flip_a_byte(path: &Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("the stored file");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the stored file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("a byte");
}

fn a_damaged_piece_is_refused_and_its_sender_named(fabric: &'static str) {
    let mut cluster = Cluster::over(fabric, 3);
    let source = cluster.path("source");
    random_file(&source, 6, 64 << 20);
    let id = put(&cluster.nodes[0], &source);
    cluster.nodes[1].ok(&["get", &id.to_string(), text(&cluster.path("second-copy"))]);
    flip_a_byte(&stored_file(&cluster.nodes[0], id), (17 << 20) + 12_345);
    let (liar, honest) = (node_id(&cluster.nodes[0]), node_id(&cluster.nodes[1]));

    // From the liar alone (a node also asks others that it has a session with): all but the damaged piece come, and the job
    // waits for another source.
    cluster.nodes[1].stop();
    let mut socket = cluster.nodes[2].socket();
    let job = pull(&mut socket, id, vec![liar]).expect("a job");
    wait_until("the damaged piece is noticed", || job_status(&mut socket, job).bad_pieces > 0);
    assert!(
        !have(&mut socket, id.blob).is_some_and(|have| have.contains(17)),
        "the damaged piece was stored"
    );
    cluster.nodes[1].up(&[]);
    socket.add_sources(job, vec![honest]).expect("another source");
    let status = finish(&mut socket, job).expect("velod answers");
    assert_eq!(status.state, JobState::Complete);

    assert!(cluster.nodes[2].counter("pieces_bad_total") >= 1);
    let log = cluster.nodes[2].log();
    assert!(log.contains(&liar.short()), "the log names the peer:\n{log}");
    let dest = cluster.path("dest");
    cluster.nodes[2].ok(&["get", &id.to_string(), text(&dest)]);
    assert!(same_file(&source, &dest));

    let output = cluster.nodes[0].run(&["--json", "verify"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&id.blob.to_hex()), "verify names the damaged blob: {said}");
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let stat = cluster.nodes[0].socket().stat_one(id.blob).expect("velod answers");
    assert!(stat.is_none_or(|stat| !stat.complete), "the damaged blob is quarantined");
    cluster.nodes[0].ok(&["get", &id.to_string(), text(&cluster.path("repaired"))]);
    assert!(same_file(&source, &cluster.path("repaired")), "it comes back from the others");
}
