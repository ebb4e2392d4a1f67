//! The area `transfer`: nodes on loopback moving real files, tmpfs to tmpfs, beside the tools that others use.
//!
//! "Into the store" ends when the blob is committed and readable by descriptor; "to DEST" is `velo get --no-keep`.
//! Every round runs each tool once, in turn, so that all see the same machine; medians of the rounds are compared.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use velo_object::{BlobId, NodeId, ObjectId, ObjectKind, PageBuffer};
use velo_tests::{Cluster, Node, Settings, content, local};

use crate::report::{Bars, Report};
use crate::timing::{Taken, median, timed};
use crate::tools::{self, Isolated};

struct Sizes {
    big_bytes: u64,
    fan_out_bytes: u64,
    small_files: usize,
    rounds: usize,
    /// Whether tools that take minutes take part.
    others: bool,
}

/// Measures the whole area.
pub fn measure(report: &mut Report, quick: bool) -> anyhow::Result<()> {
    let sizes = if quick {
        Sizes { big_bytes: 512 << 20, fan_out_bytes: 128 << 20, small_files: 2_000, rounds: 3, others: false }
    } else {
        Sizes { big_bytes: 4 << 30, fan_out_bytes: 1 << 30, small_files: 20_000, rounds: 5, others: true }
    };
    let shared_memory = Path::new("/dev/shm");
    ensure!(shared_memory.is_dir(), "/dev/shm is missing: the files of this benchmark lie in a tmpfs");
    let scratch = tempfile::Builder::new().prefix("velo-bench-").tempdir_in(shared_memory)?;
    let source = scratch.path().join("source");
    fs::create_dir_all(&source)?;
    content::random_file(&source.join("big"), 1, sizes.big_bytes);
    content::random_file(&source.join("fan"), 2, sizes.fan_out_bytes);
    content::many_files(&source.join("small"), 3, sizes.small_files, 4096);

    put(report, scratch.path(), &sizes)?;
    one_to_one(report, scratch.path(), &sizes, false)?;
    one_to_one(report, scratch.path(), &sizes, true)?;
    over_packets(report, scratch.path(), &sizes, false)?;
    over_packets(report, scratch.path(), &sizes, true)?;
    small_files(report, scratch.path(), &sizes)?;
    fan_out(report, scratch.path(), &sizes)?;
    Ok(())
}

fn cluster(scratch: &Path, count: usize, tls: bool) -> Cluster {
    cluster_over("tcp", scratch, count, tls)
}

fn cluster_over(fabric: &'static str, scratch: &Path, count: usize, tls: bool) -> Cluster {
    let within = Some(scratch.to_owned());
    let settings = Settings { trusted: !tls, fabric: Some(fabric), within, ..Settings::default() };
    Cluster::start_with(count, &settings)
}

/// What takes part in the rounds: its name, and one run of it.
type Contender<'a> = (&'static str, Box<dyn FnMut() -> anyhow::Result<Taken> + 'a>);

/// Runs every tool `count` times, in turn; each finds `writes_bytes` of memory that was just in use.
fn rounds(
    count: usize,
    scratch: &Path,
    writes_bytes: u64,
    mut tools: Vec<Contender<'_>>,
) -> anyhow::Result<Vec<Taken>> {
    let mut taken = vec![Vec::new(); tools.len()];
    for _ in 0..count {
        for (at, (name, run)) in tools.iter_mut().enumerate() {
            touch_memory(scratch, writes_bytes)?;
            taken[at].push(run().with_context(|| (*name).to_owned())?);
        }
    }
    Ok(taken.iter().map(|runs| median(runs)).collect())
}

/// Fills `bytes` of the tmpfs and frees them. A virtual machine gives free memory back to its host after some seconds, and
/// the tool that takes it next would pay several times its own work for getting it back.
fn touch_memory(scratch: &Path, bytes: u64) -> anyhow::Result<()> {
    let path = scratch.join("touched");
    let mut file = fs::File::create(&path)?;
    let zeros = PageBuffer::new(1 << 20);
    for _ in 0..bytes.div_ceil(zeros.len() as u64) {
        file.write_all(&zeros)?;
    }
    remove(&path);
    Ok(())
}

/// One run: a blob from `provider` into the receiver's store, and out of it again when the clock has stopped.
fn into_the_store(receiver: &Node, id: BlobId, provider: NodeId, pids: &[i32]) -> anyhow::Result<Taken> {
    let taken = timed(pids, || pull(receiver, id, provider));
    receiver.ok(&["rm", &id.to_string()]);
    taken
}

/// One run: a blob straight to a file.
fn to_dest(receiver: &Node, id: BlobId, dest: &Path, pids: &[i32]) -> anyhow::Result<Taken> {
    let taken = timed(pids, || {
        receiver.ok(&["get", &id.to_string(), path_text(dest)?, "--no-keep"]);
        Ok(())
    });
    remove(dest);
    taken
}

/// One run of curl: the big file from nginx.
fn by_curl(server: &tools::Server, tls: bool, copy: &Path) -> anyhow::Result<Taken> {
    let taken = timed(&server.pids, || tools::run(&mut tools::curl(server, tls, "big", copy)));
    remove(copy);
    taken
}

/// One run of cp.
fn by_cp(file: &Path, copy: &Path) -> anyhow::Result<Taken> {
    let taken = timed(&[], || tools::run(Command::new("cp").arg(file).arg(copy)));
    remove(copy);
    taken
}

fn gb_per_s(bytes: u64, taken: Taken) -> f64 {
    bytes as f64 / 1e9 / taken.seconds
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

fn velod_pids(nodes: &[Node]) -> Vec<i32> {
    nodes.iter().flat_map(|node| [node.velod_pid(), node.control_pid()]).collect()
}

/// `velo put` of the big file beside `cp`.
fn put(report: &mut Report, scratch: &Path, sizes: &Sizes) -> anyhow::Result<()> {
    if !report.wants("velo put") {
        return Ok(());
    }
    let big = scratch.join("source/big");
    let copy = scratch.join("copy");
    let cluster = cluster(scratch, 1, true);
    let node = &cluster.nodes[0];
    let pids = velod_pids(&cluster.nodes);
    let medians = rounds(
        sizes.rounds,
        scratch,
        sizes.big_bytes,
        vec![
            ("cp", Box::new(|| by_cp(&big, &copy))),
            (
                "velo put",
                Box::new(|| {
                    let mut id = String::new();
                    let taken = timed(&pids, || {
                        id =
                            node.json(&["put", path_text(&big)?])["id"].as_str().context("an id")?.to_owned();
                        Ok(())
                    });
                    node.ok(&["rm", &id]);
                    taken
                }),
            ),
        ],
    )?;
    let (cp, velo) = (medians[0], medians[1]);
    report.ratio(
        "velo put, one big file",
        (gb_per_s(sizes.big_bytes, velo), "GB/s"),
        format!("cp {:.2} GB/s", gb_per_s(sizes.big_bytes, cp)),
        cp.seconds / velo.seconds,
        Bars::new(1.0, 1.3),
    );
    Ok(())
}

/// One node to one, plain or TLS, into the store and to DEST, beside nginx + curl; and opening the blob on the same host.
fn one_to_one(report: &mut Report, scratch: &Path, sizes: &Sizes, tls: bool) -> anyhow::Result<()> {
    let kind = if tls { "TLS" } else { "plain" };
    if !report.wants(&format!("tcp {kind}")) {
        return Ok(());
    }
    let big = scratch.join("source/big");
    let cluster = cluster(scratch, 2, tls);
    let id = put_blob(&cluster.nodes[0], &big)?;
    let pids = velod_pids(&cluster.nodes);
    let server = tools::nginx(scratch, &scratch.join("source"), tls);
    if let Err(missing) = &server {
        report.note(format!("not compared with nginx + curl: {missing}"));
    }
    let (copy, dest) = (scratch.join("curl-copy"), scratch.join("dest"));
    let receiver = &cluster.nodes[1];
    let provider = node_id(&cluster.nodes[0])?;
    let mut work: Vec<Contender<'_>> = vec![
        ("into the store", Box::new(|| into_the_store(receiver, id, provider, &pids))),
        ("to DEST", Box::new(|| to_dest(receiver, id, &dest, &pids))),
    ];
    if let Ok(server) = &server {
        work.push(("nginx + curl", Box::new(|| by_curl(server, tls, &copy))));
    }
    if !tls {
        // What a careful user of curl adds: the hash of what arrived, by the same library, on all cores.
        work.push(("hash of the file", Box::new(|| timed(&[], || hash_file(&big)))));
    }
    let medians = rounds(sizes.rounds, scratch, sizes.big_bytes, work)?;
    let (store, dest_taken) = (medians[0], medians[1]);
    if server.is_ok() {
        let curl = medians[2];
        let against = format!("nginx + curl {kind} {:.2} GB/s", gb_per_s(sizes.big_bytes, curl));
        let goal = if tls { 1.5 } else { 1.4 };
        for (name, taken) in [("into the store", store), ("to DEST", dest_taken)] {
            report.ratio(
                &format!("tcp {kind}, 1 to 1, {name}"),
                (gb_per_s(sizes.big_bytes, taken), "GB/s"),
                against.clone(),
                curl.seconds / taken.seconds,
                Bars::new(1.0, goal),
            );
        }
        if !tls {
            let gigabytes = sizes.big_bytes as f64 / 1e9;
            let theirs = curl.cpu_seconds + medians[3].cpu_seconds;
            report.ratio(
                "tcp plain, processor time for a GB, both sides",
                (dest_taken.cpu_seconds / gigabytes, "s/GB"),
                format!("nginx + curl + BLAKE3 {:.2} s/GB", theirs / gigabytes),
                theirs / dest_taken.cpu_seconds,
                Bars::new(1.0, 1.25),
            );
        }
    }
    if tls && sizes.others {
        for (tool, floor, goal) in [(Isolated::Sendme, 5.0, 10.0), (Isolated::Rqbit, 3.0, 5.0)] {
            match tool.receive(scratch, &big) {
                Ok(seconds) => report.ratio(
                    &format!("tcp {kind}, 1 to 1, into the store, beside {}", tool.program()),
                    (gb_per_s(sizes.big_bytes, store), "GB/s"),
                    format!("{} {:.2} GB/s, one run", tool.program(), sizes.big_bytes as f64 / 1e9 / seconds),
                    seconds / store.seconds,
                    Bars::new(floor, goal),
                ),
                Err(missing) => report.note(format!("not compared with {}: {missing:#}", tool.program())),
            }
        }
    }
    if !tls {
        let mut opened: Vec<f64> =
            (0..20).map(|_| open_first_byte(&cluster.nodes[0], id)).collect::<anyhow::Result<_>>()?;
        opened.sort_by(f64::total_cmp);
        report.at_most(
            "tcp plain: shm, open of the big blob to its first byte",
            opened[opened.len() / 2] * 1e3,
            "ms",
            5.0,
            1.0,
        );
    }
    Ok(())
}

/// One node to one by packets over UDP: in the clear beside `cp`, sealed beside nginx + curl with TLS.
fn over_packets(report: &mut Report, scratch: &Path, sizes: &Sizes, tls: bool) -> anyhow::Result<()> {
    let kind = if tls { "sealed" } else { "trusted" };
    if !report.wants(&format!("udp {kind}")) {
        return Ok(());
    }
    let big = scratch.join("source/big");
    let packets = cluster_over("udp", scratch, 2, tls);
    let id = put_blob(&packets.nodes[0], &big)?;
    let pids = velod_pids(&packets.nodes);
    let server = tools::nginx(scratch, &scratch.join("source"), tls);
    if let Err(missing) = &server {
        report.note(format!("packets not compared with nginx + curl: {missing}"));
    }
    let (copy, dest) = (scratch.join("packets-copy"), scratch.join("packets-dest"));
    let receiver = &packets.nodes[1];
    let provider = node_id(&packets.nodes[0])?;
    let mut work: Vec<Contender<'_>> = vec![
        ("into the store", Box::new(|| into_the_store(receiver, id, provider, &pids))),
        ("to DEST", Box::new(|| to_dest(receiver, id, &dest, &pids))),
        ("cp", Box::new(|| by_cp(&big, &copy))),
    ];
    if let Ok(server) = &server {
        work.push(("nginx + curl", Box::new(|| by_curl(server, tls, &copy))));
    }
    let medians = rounds(sizes.rounds, scratch, sizes.big_bytes, work)?;
    packets.assert_carried_by("udp");
    let against: Option<(&str, Taken, Bars)> = match (tls, server.is_ok()) {
        (false, _) => Some(("cp", medians[2], Bars::new(0.7, 1.0))),
        (true, true) => Some(("nginx + curl TLS", medians[3], Bars::new(1.3, 2.0))),
        (true, false) => None,
    };
    let Some((other, theirs, bars)) = against else { return Ok(()) };
    let against = format!("{other} {:.2} GB/s", gb_per_s(sizes.big_bytes, theirs));
    for (name, taken) in [("into the store", medians[0]), ("to DEST", medians[1])] {
        report.ratio(
            &format!("udp {kind}, 1 to 1, {name}"),
            (gb_per_s(sizes.big_bytes, taken), "GB/s"),
            against.clone(),
            theirs.seconds / taken.seconds,
            bars,
        );
    }
    if server.is_ok() && !tls {
        let curl = medians[3];
        report.ratio(
            "udp trusted, 1 to 1, to DEST, beside nginx + curl plain",
            (gb_per_s(sizes.big_bytes, medians[1]), "GB/s"),
            format!("nginx + curl plain {:.2} GB/s", gb_per_s(sizes.big_bytes, curl)),
            curl.seconds / medians[1].seconds,
            Bars { floor: None, goal: None },
        );
    }
    Ok(())
}

/// Many small files, plain, beside an rsync daemon.
fn small_files(report: &mut Report, scratch: &Path, sizes: &Sizes) -> anyhow::Result<()> {
    if !report.wants("small files") {
        return Ok(());
    }
    let source = scratch.join("source/small");
    let cluster = cluster(scratch, 2, false);
    let root =
        cluster.nodes[0].json(&["put", path_text(&source)?])["id"].as_str().context("an id")?.to_owned();
    let pids = velod_pids(&cluster.nodes);
    let (dest, copy) = (scratch.join("small-dest"), scratch.join("small-copy"));
    let receiver = &cluster.nodes[1];
    let daemon = tools::rsync_daemon(scratch, &source);
    if let Err(missing) = &daemon {
        report.note(format!("not compared with rsync: {missing}"));
    }
    let mut work: Vec<Contender<'_>> = vec![(
        "velo get",
        Box::new(|| {
            let taken = timed(&pids, || {
                receiver.ok(&["get", &root, path_text(&dest)?, "--no-keep"]);
                Ok(())
            });
            remove(&dest);
            taken
        }),
    )];
    if let Ok(daemon) = &daemon {
        work.push((
            "rsync",
            Box::new(|| {
                let taken = timed(&daemon.pids, || {
                    tools::run(
                        Command::new("rsync")
                            .arg("-a")
                            .arg(format!("rsync://{}/files/", daemon.address))
                            .arg(&copy),
                    )
                });
                remove(&copy);
                taken
            }),
        ));
    }
    let medians = rounds(sizes.rounds, scratch, sizes.small_files as u64 * (8 << 10), work)?;
    if daemon.is_ok() {
        let (velo, rsync) = (medians[0], medians[1]);
        report.ratio(
            &format!("tcp plain, {} small files, to DEST", sizes.small_files),
            (velo.seconds, "s"),
            format!("rsync daemon {:.2} s", rsync.seconds),
            rsync.seconds / velo.seconds,
            Bars::new(1.0, 2.0),
        );
    }
    Ok(())
}

/// One seed to four receivers at once, plain, beside nginx + 4 curl.
fn fan_out(report: &mut Report, scratch: &Path, sizes: &Sizes) -> anyhow::Result<()> {
    if !report.wants("1 to 4") {
        return Ok(());
    }
    let file = scratch.join("source/fan");
    let cluster = cluster(scratch, 5, false);
    let id = put_blob(&cluster.nodes[0], &file)?;
    let pids = velod_pids(&cluster.nodes);
    let server = tools::nginx(scratch, &scratch.join("source"), false);
    if let Err(missing) = &server {
        report.note(format!("fan-out not compared with nginx + curl: {missing}"));
    }
    let everyone: Vec<NodeId> = cluster.nodes.iter().map(node_id).collect::<anyhow::Result<_>>()?;
    let receivers = &cluster.nodes[1..];
    let dest = |at: usize| scratch.join(format!("fan-{at}"));
    let mut work: Vec<Contender<'_>> = vec![
        (
            "into the stores",
            Box::new(|| {
                let taken = timed(&pids, || {
                    at_once(receivers.len(), |at| {
                        let mut sources: Vec<NodeId> = everyone.clone();
                        sources.retain(|&node| Ok(node) != node_id(&receivers[at]).map_err(|_| ()));
                        pull_from(&receivers[at], id, sources)
                    })
                });
                receivers.iter().for_each(|node| drop(node.ok(&["rm", &id.to_string()])));
                taken
            }),
        ),
        (
            "to DEST",
            Box::new(|| {
                let taken = timed(&pids, || {
                    at_once(receivers.len(), |at| {
                        receivers[at].ok(&["get", &id.to_string(), path_text(&dest(at))?, "--no-keep"]);
                        Ok(())
                    })
                });
                (0..receivers.len()).for_each(|at| remove(&dest(at)));
                taken
            }),
        ),
    ];
    if let Ok(server) = &server {
        work.push((
            "nginx + 4 curl",
            Box::new(|| {
                let taken = timed(&server.pids, || {
                    at_once(receivers.len(), |at| {
                        tools::run(&mut tools::curl(server, false, "fan", &dest(at)))
                    })
                });
                (0..receivers.len()).for_each(|at| remove(&dest(at)));
                taken
            }),
        ));
    }
    let medians = rounds(sizes.rounds, scratch, 4 * sizes.fan_out_bytes, work)?;
    if server.is_ok() {
        let curl = medians[2];
        for (name, taken) in [("into the stores", medians[0]), ("to DEST", medians[1])] {
            report.ratio(
                &format!("tcp plain, 1 to 4 at once, {name}"),
                (taken.seconds, "s"),
                format!("nginx + 4 curl {:.2} s", curl.seconds),
                curl.seconds / taken.seconds,
                Bars::new(0.8, 1.2),
            );
        }
    }
    Ok(())
}

fn at_once(count: usize, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|at| {
                scope.spawn({
                    let work = &work;
                    move || work(at)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

fn path_text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path in UTF-8")
}

fn node_id(node: &Node) -> anyhow::Result<NodeId> {
    Ok(node.id().parse()?)
}

fn put_blob(node: &Node, path: &Path) -> anyhow::Result<BlobId> {
    let id: ObjectId = node.json(&["put", path_text(path)?])["id"].as_str().context("an id")?.parse()?;
    Ok(id.blob)
}

fn pull(node: &Node, id: BlobId, from: NodeId) -> anyhow::Result<()> {
    pull_from(node, id, vec![from])
}

fn pull_from(node: &Node, blob: BlobId, sources: Vec<NodeId>) -> anyhow::Result<()> {
    let mut socket = node.socket();
    let job = local::pull(&mut socket, ObjectId { kind: ObjectKind::Blob, blob }, sources)?;
    let end = local::finish(&mut socket, job)?;
    ensure!(end.state == velo_socket::JobState::Complete, "the job ended {:?}", end.state);
    Ok(())
}

fn open_first_byte(node: &Node, blob: BlobId) -> anyhow::Result<f64> {
    use std::os::unix::fs::FileExt as _;
    let began = Instant::now();
    let mut socket = node.socket();
    let (file, offset_bytes, ..) = socket.open(blob, false)?;
    let mut byte = [0];
    fs::File::from(file).read_exact_at(&mut byte, offset_bytes)?;
    Ok(began.elapsed().as_secs_f64())
}

fn hash_file(path: &PathBuf) -> anyhow::Result<()> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    std::hint::black_box(hasher.finalize());
    Ok(())
}
