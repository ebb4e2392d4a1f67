//! What others use for the same work: cp, nginx + curl, rsync, sendme, rqbit. Each is optional; what is missing is noted.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

/// Where a program is, also in the places that only root has on the PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Runs a command that must succeed, quietly.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A server that is killed when the value goes.
pub struct Server {
    child: Child,
    /// Its processes.
    pub pids: Vec<i32>,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    fn start(mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let mut server = Self { pids: vec![child.id() as i32], child, address };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = server.child.try_wait()? {
                anyhow::bail!("{command:?} ended: {status}");
            }
            ensure!(began.elapsed() < Duration::from_secs(10), "{command:?} does not listen on {address}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let children = format!("/proc/{0}/task/{0}/children", server.child.id());
        let workers = fs::read_to_string(children).unwrap_or_default();
        server.pids.extend(workers.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// nginx serving `root`, with `sendfile`, one worker for each core; with TLS 1.3 where asked for.
pub fn nginx(scratch: &Path, root: &Path, tls: bool) -> anyhow::Result<Server> {
    let program = find("nginx").context("nginx is not installed")?;
    let dir = scratch.join(if tls { "nginx-tls" } else { "nginx" });
    fs::create_dir_all(&dir)?;
    let address = free_address()?;
    let listen = if tls {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        fs::write(dir.join("cert.pem"), made.cert.pem())?;
        fs::write(dir.join("key.pem"), made.signing_key.serialize_pem())?;
        format!(
            "listen {address} ssl; ssl_certificate {0}/cert.pem; ssl_certificate_key {0}/key.pem; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;",
            dir.display()
        )
    } else {
        format!("listen {address};")
    };
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let config = format!(
        "daemon off; {user} worker_processes auto; pid {0}/pid; error_log {0}/error.log;\nevents {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {0}/b; proxy_temp_path {0}/p; \
         fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\nserver {{ {listen} root {1}; }} }}\n",
        dir.display(),
        root.display()
    );
    fs::write(dir.join("nginx.conf"), config)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf")).stderr(Stdio::null());
    Server::start(command, address)
}

/// curl fetching `name` from `server` into `to`.
pub fn curl(server: &Server, tls: bool, name: &str, to: &Path) -> Command {
    let mut command = Command::new("curl");
    let scheme = if tls { "https" } else { "http" };
    command.args(["-s", "-S", "-f", "-k", "-o"]).arg(to).arg(format!("{scheme}://{}/{name}", server.address));
    command
}

/// An rsync daemon with the module `files` over `root`.
pub fn rsync_daemon(scratch: &Path, root: &Path) -> anyhow::Result<Server> {
    let program = find("rsync").context("rsync is not installed")?;
    let dir = scratch.join("rsync");
    fs::create_dir_all(&dir)?;
    let address = free_address()?;
    let owner = if rustix::process::getuid().is_root() { "uid = root\ngid = root\n" } else { "" };
    let config = format!("use chroot = no\n{owner}[files]\npath = {}\nread only = yes\n", root.display());
    fs::write(dir.join("rsyncd.conf"), config)?;
    let mut command = Command::new(program);
    command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
    command
        .arg(format!("--port={}", address.port()))
        .arg(format!("--config={}", dir.join("rsyncd.conf").display()));
    Server::start(command, address)
}

/// A tool that speaks to others by itself, run alone in a network namespace that has only a loopback interface.
#[derive(Debug, Clone, Copy)]
pub enum Isolated {
    /// iroh-blobs: QUIC, BLAKE3.
    Sendme,
    /// BitTorrent.
    Rqbit,
}

impl Isolated {
    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Sendme => "sendme",
            Self::Rqbit => "rqbit",
        }
    }

    /// Seconds that the receiver takes for `file`, from its start to its end; what the sender does before is not counted.
    pub fn receive(self, scratch: &Path, file: &Path) -> anyhow::Result<f64> {
        find(self.program()).with_context(|| format!("{} is not installed", self.program()))?;
        let script = match self {
            Self::Sendme => {
                "(exec sendme send --relay disabled --ticket-type addresses --no-progress \"$1\" > ticket 2>&1) &
                 until grep -q '^sendme receive' ticket; do sleep 0.1; done
                 ticket=$(sed -n 's/^sendme receive //p' ticket); mkdir received; cd received; began=$(date +%s%N)
                 sendme receive --relay disabled --no-progress \"$ticket\" > ../log 2>&1"
            }
            Self::Rqbit => {
                "quiet='--disable-dht --disable-lsd --disable-trackers --disable-upnp-port-forward --ipv4-only'
                 (exec rqbit $quiet --http-api-listen-addr 127.0.0.1:3031 --listen-port 4242 share \"$1\" > ticket 2>&1) &
                 until grep -q 'Initial check results' ticket && grep -q magnet: ticket; do sleep 0.1; done
                 ticket=$(grep -o 'magnet:[^ ]*' ticket | head -n 1); mkdir received; began=$(date +%s%N)
                 rqbit $quiet --http-api-listen-addr 127.0.0.1:3032 --listen-port 4243 download -e -o received --initial-peers 127.0.0.1:4242 \"$ticket\" > log 2>&1"
            }
        };
        let script = format!(
            "set -e; ip link set lo up\n{script}\nended=$(date +%s%N); kill %1; echo $((ended - began))"
        );
        let dir = scratch.join(self.program());
        fs::create_dir_all(&dir)?;
        let output = Command::new("timeout")
            .args(["300", "unshare", "--net", "bash", "-c", &script, "bash"])
            .arg(file)
            .current_dir(&dir)
            .stdin(Stdio::null())
            .output()?;
        fs::remove_dir_all(&dir)?;
        ensure!(output.status.success(), "{}: {}", self.program(), String::from_utf8_lossy(&output.stderr));
        let nanoseconds: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
        Ok(nanoseconds as f64 / 1e9)
    }
}

/// Gbit/s that iperf3 moves over one TCP connection in `seconds`, writing `write_bytes` at once (none: its default), from the first
/// place to the second: an address, and the network namespace that has it where it is not this one.
pub fn iperf3(
    [from, to]: [(IpAddr, Option<&str>); 2],
    write_bytes: Option<&str>,
    seconds: u32,
) -> anyhow::Result<f64> {
    let program = find("iperf3").context("iperf3 is not installed")?;
    let program = |namespace: Option<&str>| match namespace {
        None => Command::new(&program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(&program);
            command
        }
    };
    let port = free_address()?.port().to_string();
    let to_address = to.0.to_string();
    let mut listening = program(to.1)
        .args(["-s", "-1", "-B", &to_address, "-p", &port])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut command = program(from.1);
    command.args([
        "-c",
        &to_address,
        "-B",
        &from.0.to_string(),
        "-J",
        "-p",
        &port,
        "-t",
        &seconds.to_string(),
    ]);
    if let Some(bytes) = write_bytes {
        command.args(["-l", bytes]);
    }
    let began = Instant::now();
    let rate = loop {
        let output = command.stdin(Stdio::null()).output()?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if let Some(rate) = said["end"]["sum_received"]["bits_per_second"].as_f64() {
            break Ok(rate / 1e9);
        }
        // It may not listen yet.
        if began.elapsed() > Duration::from_secs(5) {
            break Err(anyhow::anyhow!("iperf3: {}", String::from_utf8_lossy(&output.stdout)));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let _ = listening.kill();
    let _ = listening.wait();
    rate
}
