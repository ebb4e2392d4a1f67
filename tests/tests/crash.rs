//! velod is killed at every write-like system call of an ingest and of a pull (strace injects the signal). After each
//! restart every acknowledged blob reads back, and whatever is visible as complete has the bytes that its id says.
//!
//! `tests/run` tries each call for the first hits of every thread and then in growing steps; `tests/run --full` tries them all.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use velo_object::{BlobId, NodeId, ObjectId};
use velo_socket::Client;
use velo_tests::content::{assert_same, many_files, random_file};
use velo_tests::local::{self, read};
use velo_tests::{Node, Settings, full, has_program, skip, velo_executable, wait_until};

/// Every system call by which a store changes what is on the disk.
const CALLS: &[&str] = &[
    "write",
    "pwrite64",
    "pwritev",
    "copy_file_range",
    "fallocate",
    "ftruncate",
    "fsync",
    "fdatasync",
    "msync",
    "rename",
    "renameat",
    "renameat2",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "openat",
    "fchmod",
    "ioctl",
];

/// No call is hit later than this: far more often than any of them is made in one run.
const LAST_HIT: u32 = 1 << 15;

/// velod alone, without velo-control; the test speaks to its socket.
struct Velod {
    node: Node,
    child: Option<Child>,
}

impl Velod {
    fn new(dir: &Path) -> Self {
        let node = Node::new(dir, &Settings::default());
        node.ok(&["cluster", "init"]);
        Self { node, child: None }
    }

    fn start(&mut self, inject: Option<&str>) {
        let data = self.node.dir.join("data");
        let _ = fs::remove_file(data.join("run/velod.json"));
        let mut command = match inject {
            None => Command::new(velo_executable()),
            Some(inject) => {
                let mut command = Command::new("strace");
                command.args(["-f", "-qq", "-o", "/dev/null", "-e", inject]).arg(velo_executable());
                command
            }
        };
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.node.dir.join("log")).expect("a log");
        command.arg("--config").arg(self.node.dir.join("velo.toml")).arg("--data-dir").arg(&data);
        command.args(["daemon", "data"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("velod starts"));
    }

    /// True when it is ready, false when it died before that.
    fn ready(&mut self) -> bool {
        let mut alive = true;
        wait_until("velod is ready or dead", || {
            let child = self.child.as_mut().expect("started");
            alive = child.try_wait().expect("a child").is_none();
            !alive || self.node.listen().is_some()
        });
        alive
    }

    /// Kills it if it lives; true if it had died before, which only the injected signal may have done.
    fn end(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let died = child.try_wait().expect("a child");
        if died.is_none() && self.node.listen().is_some() {
            // strace's child is velod itself; killing only strace would leave it running.
            let number = self.node.velod_pid();
            if let Some(pid) = rustix::process::Pid::from_raw(number) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            // strace ends when the last thread of velod is gone; until then one of them holds the store's lock.
            wait_until("velod dies", || child.try_wait().expect("a child").is_some());
        }
        let _ = child.kill();
        let _ = child.wait();
        if let Some(status) = died
            && !std::thread::panicking()
        {
            assert!(killed(status), "velod ended by itself ({status}):\n{}", self.node.log_tail());
        }
        died.is_some()
    }

    fn socket(&self) -> Option<Client> {
        Client::connect(&self.node.dir.join("data/run/velod.sock")).ok()
    }
}

impl Drop for Velod {
    fn drop(&mut self) {
        self.end();
    }
}

/// Every blob that is visible as complete must have the bytes that its id says.
fn check_all(socket: &mut Client) {
    let mut after = None;
    loop {
        let page = socket.list(after, 1000).expect("velod answers");
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (blob, _) in page.iter().filter(|(_, stat)| stat.complete) {
            assert_eq!(BlobId::of(&read(socket, *blob)), *blob, "a blob visible as complete has other bytes");
        }
    }
}

/// Whether a process died of SIGKILL. strace ends as what it traced did: by the same signal, or with the status that shells give for it.
fn killed(status: ExitStatus) -> bool {
    status.signal() == Some(9) || status.code() == Some(137)
}

/// How strace ends that runs `true` with one more option.
fn probe(option: &str) -> Option<ExitStatus> {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", option, "true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok()
}

/// The calls that strace can kill at here. What cannot be tested is said aloud.
fn calls() -> Vec<&'static str> {
    if !has_program("strace") {
        skip("the crash tests: strace is not installed");
        return Vec::new();
    }
    if !probe("inject=execve:signal=KILL:when=1").is_some_and(killed)
        && !probe("inject=openat:signal=KILL:when=1").is_some_and(killed)
    {
        skip("the crash tests: strace may not trace, or cannot inject signals, on this machine");
        return Vec::new();
    }
    let known = |call: &&&str| {
        let known = probe(&format!("trace={call}")).is_some_and(|status| status.success());
        if !known {
            skip(&format!("the crash tests for {call}: strace does not know this call here"));
        }
        known
    };
    CALLS.iter().filter(known).copied().collect()
}

/// The next number of the call to be hit, up to [`LAST_HIT`]: all of them in the full run, else the first ones and then ever wider apart.
fn next_hit(hit: u32) -> Option<u32> {
    let next = if full() || hit < 3 { hit + 1 } else { hit * 2 };
    (next <= LAST_HIT).then_some(next)
}

struct Source {
    _scratch: tempfile::TempDir,
    path: PathBuf,
}

fn source() -> Source {
    let scratch = tempfile::Builder::new().prefix("velo-crash-").tempdir().expect("a directory");
    let path = scratch.path().join("source");
    many_files(&path, 1, 300, 2000);
    random_file(&path.join("large"), 2, 8 << 20);
    Source { _scratch: scratch, path }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn id_of(output: &std::process::Output) -> Option<ObjectId> {
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    value["id"].as_str()?.parse().ok()
}

#[test]
fn an_ingest_survives_a_kill_at_every_call() {
    let calls = calls();
    if calls.is_empty() {
        return;
    }
    let source = source();
    let mut hits = 0;
    for call in calls {
        let mut hit_at = Some(1);
        while let Some(when) = hit_at {
            let scratch = tempfile::Builder::new().prefix("velo-crash-").tempdir().expect("a directory");
            let mut velod = Velod::new(&scratch.path().join("node"));
            velod.start(Some(&format!("inject={call}:signal=KILL:when={when}")));
            let mut acknowledged = None;
            if velod.ready() {
                let output = velod.node.run(&["--json", "put", text(&source.path)]);
                if output.status.success() {
                    acknowledged = Some(id_of(&output).expect("put prints the id"));
                }
            }
            std::thread::sleep(Duration::from_millis(20));
            let hit = velod.end();
            velod.start(None);
            assert!(velod.ready(), "{call} {when}: velod does not start again:\n{}", velod.node.log_tail());
            let mut socket = velod.socket().expect("velod answers");
            check_all(&mut socket);
            if let Some(id) = acknowledged {
                let dest = scratch.path().join("dest");
                velod.node.ok(&["put", text(&source.path)]);
                assert_eq!(
                    BlobId::of(&read(&mut socket, id.blob)),
                    id.blob,
                    "{call} {when}: the acknowledged tree is lost"
                );
                assert!(
                    socket.pins().expect("velod answers").contains(&id),
                    "{call} {when}: its pin is lost"
                );
                materialise(&velod, id, &dest);
                assert_same(&source.path, &dest);
            } else {
                let again = velod.node.run(&["--json", "put", text(&source.path)]);
                assert!(again.status.success(), "{call} {when}: a second put fails: {again:?}");
            }
            hits += u32::from(hit);
            hit_at = next_hit(when).filter(|_| hit);
        }
    }
    println!("{hits} kills");
    assert!(hits > 20, "only {hits} kills: the injection does not work");
}

/// Writes the tree out without velo-control, by what the socket gives.
fn materialise(velod: &Velod, id: ObjectId, dest: &Path) {
    let mut socket = velod.socket().expect("velod answers");
    let table = read(&mut socket, id.blob);
    let tree = velo_object::Tree::parse(table).expect("a valid tree");
    fs::create_dir_all(dest).expect("a directory");
    for entry in tree.iter() {
        use std::os::unix::ffi::OsStrExt as _;
        let path = dest.join(std::ffi::OsStr::from_bytes(entry.path));
        if entry.kind == velo_object::EntryKind::Directory {
            fs::create_dir_all(path).expect("a directory");
        } else {
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, read(&mut socket, entry.blob)).expect("a file");
        }
    }
}

#[test]
fn a_pull_survives_a_kill_at_every_call() {
    let calls = calls();
    if calls.is_empty() {
        return;
    }
    let source = source();
    let cluster = velo_tests::Cluster::start(1);
    let provider = &cluster.nodes[0];
    let id: ObjectId =
        provider.json(&["put", text(&source.path)])["id"].as_str().expect("an id").parse().expect("an id");
    let member = velo_socket::Member {
        node: provider.id().parse::<NodeId>().expect("a node id"),
        name: "provider".to_owned(),
        addresses: vec![provider.listen().expect("it listens")],
        zone: "default".to_owned(),
    };
    let mut hits = 0;
    for call in calls {
        let mut hit_at = Some(1);
        while let Some(when) = hit_at {
            let scratch = tempfile::Builder::new().prefix("velo-crash-").tempdir().expect("a directory");
            let mut velod =
                Velod { node: Node::new(&scratch.path().join("node"), &Settings::default()), child: None };
            borrow_identity(&cluster, &velod.node);
            velod.start(Some(&format!("inject={call}:signal=KILL:when={when}")));
            if velod.ready() {
                let _ = pull(&velod, &member, id);
            }
            let hit = velod.end();
            velod.start(None);
            assert!(velod.ready(), "{call} {when}: velod does not start again:\n{}", velod.node.log_tail());
            check_all(&mut velod.socket().expect("velod answers"));
            let status = pull(&velod, &member, id)
                .unwrap_or_else(|| panic!("{call} {when}: {}", velod.node.log_tail()));
            assert_eq!(status.state, velo_socket::JobState::Complete, "{call} {when}");
            let dest = scratch.path().join("dest");
            materialise(&velod, id, &dest);
            assert_same(&source.path, &dest);
            hits += u32::from(hit);
            hit_at = next_hit(when).filter(|_| hit);
        }
    }
    println!("{hits} kills");
    assert!(hits > 20, "only {hits} kills: the injection does not work");
}

/// A certificate of the provider's cluster for a node without velo-control: a join, and nothing more.
fn borrow_identity(cluster: &velo_tests::Cluster, node: &Node) {
    let made = cluster.path("joined");
    if !made.exists() {
        let mut joining = Node::new(&made, &Settings::default());
        let token =
            cluster.nodes[0].json(&["cluster", "token"])["token"].as_str().expect("a token").to_owned();
        let address = cluster.nodes[0].listen().expect("it listens").to_string();
        joining.up(&["--join", &address, "--token", &token]);
        joining.stop();
    }
    let to = node.dir.join("data/identity");
    fs::create_dir_all(&to).expect("a directory");
    for entry in fs::read_dir(made.join("data/identity")).expect("an identity") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

fn pull(velod: &Velod, member: &velo_socket::Member, id: ObjectId) -> Option<velo_socket::JobStatus> {
    let mut socket = velod.socket()?;
    socket.members(vec![member.clone()]).ok()?;
    let job = local::pull(&mut socket, id, vec![member.node]).ok()?;
    local::finish(&mut socket, job).ok()
}

#[test]
fn only_a_death_by_the_signal_is_a_hit() {
    let ended = |script: &str| Command::new("sh").args(["-c", script]).status().expect("a shell");
    assert!(killed(ended("kill -9 $$")));
    assert!(killed(ended("exit 137")));
    assert!(!killed(ended("exit 0")));
    assert!(!killed(ended("exit 1")), "as strace ends where it may not trace, or does not know a call");
    assert!(!killed(ended("kill -15 $$")));
    if has_program("strace") {
        let unknown = probe("trace=no_such_call").expect("strace runs");
        assert!(!unknown.success() && !killed(unknown));
    }
    let mut hit = 1;
    while let Some(next) = next_hit(hit) {
        assert!(next > hit);
        hit = next;
    }
    assert!(hit <= LAST_HIT);
}
