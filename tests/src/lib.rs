//! The harness of the whole-system tests: clusters of real `velo` processes on loopback, each in a temporary
//! directory of its own, killed and removed when the value goes.
#![forbid(unsafe_code)]

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

pub mod content;
pub mod local;
#[path = "../../dataplane/fabric/tests/support/namespaces.rs"]
pub mod namespaces;
pub mod rdma;
pub mod sim;
#[path = "../../dataplane/fabric/tests/support/stranger.rs"]
pub mod stranger;

/// How long anything that should happen may take. Generous: it only decides how soon a failure is told.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the long tests are asked for (`tests/run --full`).
pub fn full() -> bool {
    std::env::var_os("VELO_FULL").is_some()
}

/// Says aloud that something was not tested, where `tests/run` finds it.
pub fn skip(why: &str) {
    eprintln!("SKIP: {why}");
    if let Some(path) = std::env::var_os("VELO_SKIPS")
        && let Ok(mut file) = fs::OpenOptions::new().append(true).open(path)
    {
        let _ = writeln!(file, "SKIP: {why}");
    }
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

/// The `velo` executable built beside this test or benchmark.
///
/// # Panics
/// If it is not built.
pub fn velo_executable() -> PathBuf {
    if let Some(path) = std::env::var_os("VELO_EXECUTABLE") {
        return path.into();
    }
    let own = std::env::current_exe().expect("a program has a path");
    // target/PROFILE/velo-benches, or target/PROFILE/deps/TEST.
    let beside = own.ancestors().skip(1).take(2).map(|dir| dir.join("velo"));
    beside.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("velo is not built beside {}: run `cargo build --workspace` (tests/run does)", own.display())
    })
}

/// Tries until it is true, or panics with `what`.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes of each test that takes the name of a fabric one for TCP and one for packets over UDP.
#[macro_export]
macro_rules! over_each_fabric {
    ($($test:ident),+ $(,)?) => {
        mod tcp {
            $(#[test] fn $test() { super::$test("tcp"); })+
        }
        mod udp {
            $(#[test] fn $test() { super::$test("udp"); })+
        }
    };
}

fn received_by(node: &Node) -> u64 {
    node.counter("fabric_received_bytes_total")
}

/// How the nodes of a cluster are configured.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Whether the network is declared trusted: content goes plain.
    pub trusted: bool,
    /// What carries content, before TCP as the last resort; none for what the default configuration says.
    pub fabric: Option<&'static str>,
    /// More sections of the configuration file.
    pub extra: String,
    /// Where the cluster's directory is made; the system's temporary directory by default.
    pub within: Option<PathBuf>,
}

/// A node: its directory and the processes of `velo up`.
pub struct Node {
    /// Its data directory.
    pub dir: PathBuf,
    up: Option<Child>,
    wrapper: Vec<String>,
    /// Enters the node's network namespace.
    enter: Vec<String>,
}

impl Node {
    /// A node in `dir` with the harness's configuration; not started.
    pub fn new(dir: &Path, settings: &Settings) -> Self {
        fs::create_dir_all(dir).expect("a directory for the node");
        let Settings { trusted, fabric, extra, .. } = settings;
        let fabrics = fabric.map_or(String::new(), |fabric| format!("fabrics = [\"{fabric}\"]\n"));
        // Before the rest, because that may have the section, too.
        let udp =
            if extra.contains("[fabric.udp]") { "" } else { "[fabric.udp]\nlisten = \"127.0.0.1:0\"\n" };
        let config = format!(
            "[net]\nlisten = [\"127.0.0.1:0\"]\ntrusted = {trusted}\n{fabrics}{udp}\
             [gossip]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n{extra}"
        );
        fs::write(dir.join("velo.toml"), config).expect("its configuration");
        Self { dir: dir.to_owned(), up: None, wrapper: Vec::new(), enter: Vec::new() }
    }

    /// Runs `velo up` under another program (`strace …`), given as its words.
    pub fn wrapped(&mut self, words: &[&str]) {
        self.wrapper = words.iter().map(|&word| word.to_owned()).collect();
    }

    /// Moves the node, which has not been started, to the network namespace of `end`, with these addresses of it.
    pub fn move_to(&mut self, end: &namespaces::End, settings: &Settings) {
        let Settings { trusted, fabric, extra, .. } = settings;
        let (fabric, ip) = (fabric.unwrap_or("udp"), end.v4);
        let config = format!(
            "[net]\nlisten = [\"{ip}:7440\"]\ntrusted = {trusted}\nfabrics = [\"{fabric}\"]\n\
             [fabric.udp]\nlisten = \"{ip}:7442\"\n[gossip]\nlisten = \"{ip}:7440\"\n\
             [http]\nlisten = \"127.0.0.1:0\"\n{extra}"
        );
        fs::write(self.dir.join("velo.toml"), config).expect("its configuration");
        self.enter = ["ip", "netns", "exec", end.name()].map(str::to_owned).into();
    }

    /// A `velo` command on this node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.enter.clone();
        if arguments.first() == Some(&"up") {
            words.extend_from_slice(&self.wrapper);
        }
        words.push(velo_executable().to_str().expect("a path in UTF-8").to_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command.arg("--config").arg(self.dir.join("velo.toml")).arg("--data-dir").arg(self.dir.join("data"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a `velo` command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("velo starts")
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(
            output.status.success(),
            "velo {} failed ({}):\n{}{}\n--- log of the node:\n{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            self.log_tail(),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command with `--json` that must succeed; what it printed.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut words = vec!["--json"];
        words.extend_from_slice(arguments);
        let text = self.ok(&words);
        serde_json::from_str(text.trim())
            .unwrap_or_else(|e| panic!("velo {arguments:?} printed no JSON ({e}): {text}"))
    }

    /// Starts `velo up` and waits until both processes are ready.
    pub fn up(&mut self, arguments: &[&str]) {
        use std::os::unix::process::CommandExt as _;
        let _ = fs::remove_file(self.dir.join("data/run/control.json"));
        let _ = fs::remove_file(self.dir.join("data/run/velod.json"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).expect("a log");
        let mut words = vec!["up"];
        words.extend_from_slice(arguments);
        let child = self
            .command(&words)
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("velo up starts");
        self.up = Some(child);
        let began = Instant::now();
        while self.http().is_none() || self.listen().is_none() {
            if let Some(status) = self.up.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("velo up ended with {status}:\n{}", self.log_tail());
            }
            assert!(began.elapsed() < PATIENCE, "velo up is not ready:\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn run_file(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.dir.join("data/run").join(name)).ok()?).ok()
    }

    /// Where velod listens for peers.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.run_file("velod.json")?["listen"][0].as_str()?.parse().ok()
    }

    /// Where velo-control answers HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        self.run_file("control.json")?["http"].as_str()?.parse().ok()
    }

    /// The token for HTTP.
    pub fn token(&self) -> String {
        fs::read_to_string(self.dir.join("data/run/token")).expect("a token file").trim().to_owned()
    }

    /// Where velod's first worker for packets over UDP listens.
    pub fn udp(&self) -> Option<SocketAddr> {
        let status = self.socket().status().expect("velod tells its status");
        let line = status.workers.iter().find_map(|line| line.strip_prefix("udp 0 at "))?;
        line.split(": ").next()?.parse().ok()
    }

    /// velod's process id.
    pub fn velod_pid(&self) -> i32 {
        self.run_file("velod.json").and_then(|v| v["pid"].as_i64()).expect("velod runs") as i32
    }

    /// velo-control's process id.
    pub fn control_pid(&self) -> i32 {
        self.run_file("control.json").and_then(|v| v["pid"].as_i64()).expect("velo-control runs") as i32
    }

    /// This node's id.
    pub fn id(&self) -> String {
        self.run_file("velod.json").and_then(|v| v["node"].as_str().map(str::to_owned)).expect("velod runs")
    }

    /// Kills all processes of the node at once, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.up.take() {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = child.wait();
        }
    }

    /// Asks the node to stop, as an operator does, and waits for it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.up.take() {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                let _ = kill_process(pid, Signal::TERM);
            }
            let began = Instant::now();
            while child.try_wait().ok().flatten().is_none() {
                assert!(began.elapsed() < PATIENCE, "velo up does not stop:\n{}", self.log_tail());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A connection to velod's local socket.
    pub fn socket(&self) -> velo_socket::Client {
        velo_socket::Client::connect(&self.dir.join("data/run/velod.sock")).expect("velod's socket answers")
    }

    /// A counter or gauge of velod by its full name with labels, without `velo_`; 0 where there is none. A name without
    /// labels sums over all labels.
    pub fn counter(&self, name: &str) -> u64 {
        let status = self.socket().status().expect("velod tells its status");
        status
            .counters
            .iter()
            .chain(&status.gauges)
            .filter(|(found, _)| found == name || found.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .sum()
    }

    /// The end of the node's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.dir.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(6000)..]).into_owned()
    }

    /// The whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Some nodes of one cluster; the first has the authority.
pub struct Cluster {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// Where everything of this test lies.
    pub scratch: tempfile::TempDir,
}

impl Cluster {
    /// Starts `count` nodes, joined, each knowing all others.
    pub fn start(count: usize) -> Self {
        Self::start_with(count, &Settings::default())
    }

    /// The same with one fabric and the last resort.
    pub fn over(fabric: &'static str, count: usize) -> Self {
        Self::start_with(count, &Settings { fabric: Some(fabric), ..Settings::default() })
    }

    /// Panics unless content came over `fabric`; where that is TCP, over nothing else.
    pub fn assert_carried_by(&self, fabric: &str) {
        let received = |fabric: &str| -> u64 {
            let name = format!("fabric_received_bytes_total{{fabric=\"{fabric}\"}}");
            self.nodes.iter().map(|node| node.counter(&name)).sum()
        };
        let (of_it, of_all) = (received(fabric), self.nodes.iter().map(received_by).sum::<u64>());
        println!("{of_it} of {of_all} bytes over {fabric}");
        let log = || self.nodes.iter().map(Node::log_tail).collect::<String>();
        assert!(of_it > 0, "nothing came over {fabric}:\n{}", log());
        assert!(fabric != "tcp" || of_it == of_all, "{of_it} of {of_all} bytes over TCP:\n{}", log());
    }

    /// The same with other settings, for every node.
    pub fn start_with(count: usize, settings: &Settings) -> Self {
        let mut builder = tempfile::Builder::new();
        builder.prefix("velo-test-");
        let scratch = match &settings.within {
            Some(dir) => builder.tempdir_in(dir),
            None => builder.tempdir(),
        };
        let mut cluster = Self { nodes: Vec::new(), scratch: scratch.expect("a temporary directory") };
        let mut first = Node::new(&cluster.scratch.path().join("node0"), settings);
        first.ok(&["cluster", "init"]);
        first.up(&[]);
        cluster.nodes.push(first);
        for _ in 1..count {
            cluster.join(settings);
        }
        cluster.wait_for_members();
        cluster
    }

    /// Two nodes, at the two ends of a link.
    pub fn at_ends(link: &namespaces::Link, settings: &Settings) -> Self {
        let scratch = tempfile::Builder::new().prefix("velo-test-").tempdir();
        let mut cluster = Self { nodes: Vec::new(), scratch: scratch.expect("a temporary directory") };
        let mut first = Node::new(&cluster.scratch.path().join("node0"), settings);
        first.move_to(&link.a, settings);
        first.ok(&["cluster", "init"]);
        first.up(&[]);
        cluster.nodes.push(first);
        let mut second = Node::new(&cluster.scratch.path().join("node1"), settings);
        second.move_to(&link.b, settings);
        cluster.join_as(second);
        cluster.wait_for_members();
        cluster
    }

    /// Adds a node by a fresh token.
    pub fn join(&mut self, settings: &Settings) -> &mut Node {
        let node = Node::new(&self.scratch.path().join(format!("node{}", self.nodes.len())), settings);
        self.join_as(node)
    }

    fn join_as(&mut self, mut node: Node) -> &mut Node {
        let token = self.nodes[0].json(&["cluster", "token"])["token"].as_str().expect("a token").to_owned();
        let address = self.nodes[0].listen().expect("the first node listens").to_string();
        node.up(&["--join", &address, "--token", &token]);
        self.nodes.push(node);
        self.nodes.last_mut().expect("just added")
    }

    /// Waits until every node lists every other.
    pub fn wait_for_members(&self) {
        for node in &self.nodes {
            wait_until("all nodes know each other", || {
                node.json(&["peers"])["peers"].as_array().is_some_and(|peers| {
                    peers.iter().filter(|peer| peer["state"] == "alive").count() >= self.nodes.len()
                })
            });
        }
    }

    /// A path in the scratch directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }
}
