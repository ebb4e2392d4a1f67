//! The daemon: waits for velod, starts what a control plane consists of, and stops it cleanly.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use velo_config::{Config, LogFormat, Paths};
use velo_object::NodeId;
use velo_socket::Member;
use velo_socket::join::SEEDS_FILE;

use crate::address::{self, Reach};
use crate::authority::replace;
use crate::client::ControlJson;
use crate::http::{self, Addresses};
use crate::identity::Identity;
use crate::membership::{Gossip, GossipEvent, GossipOptions, Liveness, Seeker};
use crate::node::{Control, Setup, lock};
use crate::now_ms;
use crate::origin::Origin;
use crate::velod::{Socket, Velod, VelodError};

/// velod starts at the same time; its absence is worth a word only after this.
const QUIET: Duration = Duration::from_secs(3);
/// How long open requests may go on after a signal to stop.
const GRACE: Duration = Duration::from_secs(2);

/// Runs velo-control until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot start: no identity, another process on its ports, a configuration that makes no sense.
pub fn run(config: Config) -> anyhow::Result<()> {
    start_log(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(32)
        .thread_name("control")
        .enable_all()
        .build()?;
    let done = runtime.block_on(daemon(config));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

fn start_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .with_target(false);
    // Whoever embeds this may have started a log of his own.
    let _ = match config.log.format {
        LogFormat::Json => log.json().try_init(),
        LogFormat::Text => log.try_init(),
    };
}

async fn daemon(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        let _ = stop.send(true);
    });
    let mut stopping = stopped.clone();
    tokio::select! {
        done = serve(config, stopped) => done,
        // Before there is anything to stop.
        () = async { let _ = stopping.wait_for(|&stop| stop).await; tokio::time::sleep(GRACE * 3).await } => Ok(()),
    }
}

async fn serve(config: Config, stopped: watch::Receiver<bool>) -> anyhow::Result<()> {
    let paths = config.paths();
    let data_dir = paths.data_dir().to_owned();
    let files = Paths::new(data_dir.clone());
    let identity = Identity::load(&data_dir)
        .context("this node has no identity: run `velo cluster init`, or `velo up --join` with a token")?;
    let origin = config.origin_url().map(Origin::open).transpose()?;

    let socket = Socket::new(&paths.socket());
    let (mut stop, ready) = (stopped.clone(), paths.velod_ready());
    let found = tokio::select! {
        found = wait_for_velod(&socket, &ready, identity.node) => found?,
        _ = stop.wait_for(|&stop| stop) => return Ok(()),
    };
    let velod = Velod::new(socket);
    let _alone = alone(&files)?;

    let seeds = seeds(&files);
    let gossip_socket = UdpSocket::bind(config.gossip.listen)
        .await
        .with_context(|| format!("gossip cannot listen on {} (UDP)", config.gossip.listen))?;
    let gossip_address = gossip_socket.local_addr()?;
    let listener = TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("HTTP cannot listen on {}", config.http.listen))?;
    let http_address = listener.local_addr()?;

    let reach = Reach::new(&config.net.advertise, seeds.iter().flat_map(|seed| &seed.addresses).next());
    let setup = Setup {
        data_dir: data_dir.clone(),
        name: config.node_name(),
        zone: config.node.zone.clone(),
        addresses: reach.advertised(&found),
        gossip: config.gossip.advertise.unwrap_or_else(|| reach.at(gossip_address)),
        reach: Some(reach),
        fabrics: config.fabrics_with_device().map(|fabric| fabric.to_string()).collect(),
        seeds,
    };
    let control = Control::open(setup, velod, origin).await?;
    control.publish(false, true).await;

    let options = GossipOptions {
        node: control.node,
        cluster: control.cluster,
        generation: now_ms(),
        advertised: control.setup.gossip,
        keyring: Arc::clone(&control.keyring),
    };
    let (gossip, events) = Gossip::start(gossip_socket, options)
        .map_err(|error| anyhow::anyhow!("the system's randomness: {error}"))?;
    let revoked = control.revocations().nodes();
    gossip.block(revoked).await;
    let known = control.roster().iter().map(|entry| entry.member.node()).collect();
    gossip.prove(known);
    let _ = control.gossip.set(gossip.clone());
    tokio::spawn(Arc::clone(&control).gossip_loop(events));
    tokio::spawn(Arc::clone(&control).serve_loop());
    tokio::spawn(Arc::clone(&control).members_loop());
    tokio::spawn(Arc::clone(&control).sync_loop());
    tokio::spawn(Arc::clone(&control).renewal_loop());
    tokio::spawn(Arc::clone(&control).record_loop());

    let token = write_token(&files)?;
    let addresses = Addresses { http: http_address, gossip: gossip_address };
    let router = http::router(Arc::clone(&control), &token, addresses);
    let mut stop_http = stopped.clone();
    let serving = tokio::spawn(http::serve(listener, router, async move {
        let _ = stop_http.wait_for(|&stop| stop).await;
    }));
    let ready = ControlJson { pid: std::process::id(), http: http_address, gossip: gossip_address };
    replace(&paths.control_ready(), &serde_json::to_vec(&ready)?, 0o644)?;
    tracing::info!(node = %control.node, http = %http_address, gossip = %gossip_address, "velo-control is ready");

    let mut stop = stopped;
    let _ = stop.wait_for(|&stop| stop).await;
    tracing::info!("velo-control stops");
    let _ = std::fs::remove_file(paths.control_ready());
    let leaving = async {
        control.publish(true, true).await;
        gossip.leave().await;
    };
    let _ = tokio::time::timeout(GRACE, leaving).await;
    // Streams of events and long reads do not keep the daemon.
    let _ = tokio::time::timeout(GRACE, serving).await;
    Ok(())
}

/// Makes sure that no other velo-control runs on this data directory, for as long as the file is open.
fn alone(files: &Paths) -> anyhow::Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let path = files.run_dir().join("control.lock");
    let context = || format!("cannot use {}", path.display());
    let mut options = File::options();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(&path).with_context(context)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = (&file).take(16).read_to_string(&mut pid);
        anyhow::bail!(
            "{} is in use by velo-control, process {}: stop that one, or choose another data directory",
            files.data_dir().display(),
            pid.trim()
        );
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).with_context(context)?;
    Ok(file)
}

/// Waits until velod answers, and gives the addresses that it listens on.
async fn wait_for_velod(socket: &Socket, ready: &Path, own: NodeId) -> anyhow::Result<Vec<SocketAddr>> {
    let (mut said, began) = (false, Instant::now());
    loop {
        match socket.hello().await {
            Ok(node) if node != own => {
                anyhow::bail!("velod runs as node {node}, but this data directory is that of node {own}");
            }
            Ok(_) => {
                if let Some(listens) = address::listens(ready, own) {
                    return Ok(listens);
                }
            }
            Err(VelodError::Refused(error)) => return Err(error.into()),
            Err(error) if !said && began.elapsed() > QUIET => {
                said = true;
                tracing::info!(%error, "waiting for velod");
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The members that the join told of.
fn seeds(files: &Paths) -> Vec<Member> {
    let path = files.identity_dir().join(SEEDS_FILE);
    let Ok(bytes) = std::fs::read(&path) else { return Vec::new() };
    postcard::from_bytes(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, path = %path.display(), "the members that the join told of cannot be read");
        Vec::new()
    })
}

/// A new token for HTTP at every start, in `run/token`.
fn write_token(files: &Paths) -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the system's randomness: {error}"))?;
    let token = hex::encode(bytes);
    replace(&files.run_dir().join("token"), token.as_bytes(), 0o640)?;
    Ok(token)
}

impl Control {
    /// Takes over what gossip hears, and calls members that gossip has lost.
    async fn gossip_loop(self: Arc<Self>, mut events: mpsc::Receiver<GossipEvent>) {
        let mut again = tokio::time::interval(Duration::from_secs(1));
        let mut seeker = Seeker::default();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.hear_gossip(event).await,
                    None => return,
                },
                _ = again.tick() => {
                    let lost = seeker.tick(&self.roster(), self.node);
                    if !lost.is_empty() && let Some(gossip) = self.gossip.get() {
                        gossip.announce(lost).await;
                    }
                }
            }
        }
    }

    async fn hear_gossip(self: &Arc<Self>, event: GossipEvent) {
        match event {
            GossipEvent::Record(member) => {
                self.hear_member(&member).await;
            }
            GossipEvent::Liveness(node, liveness) => {
                let known = {
                    let mut roster = self.roster();
                    roster.set_liveness(node, liveness);
                    roster.get(&node).is_some()
                };
                let name = Some(self.name_of(&node)).filter(|name| !name.is_empty());
                let state = match liveness {
                    Liveness::Alive => "alive",
                    Liveness::Down => "down",
                    Liveness::Unknown => "not heard",
                };
                tracing::info!(node = %node.short(), name, "a member is {state}");
                if liveness == Liveness::Alive && !known {
                    self.sync_wanted.notify_one();
                }
            }
            GossipEvent::UnknownEpoch => self.sync_wanted.notify_one(),
            GossipEvent::RevokedSerial(serial) => {
                if serial > self.revocations().serial() {
                    self.sync_wanted.notify_one();
                }
            }
        }
    }

    /// Keeps this node's record true.
    async fn record_loop(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_secs(15)).await;
            self.publish(false, false).await;
            // A key that gossip got late opens the way for the record.
            if lock(&self.keyring).epoch().is_some()
                && let (Some(gossip), Some(record)) = (self.gossip.get(), self.own_record())
            {
                gossip.spread(&record).await;
            }
        }
    }
}
