//! `velo cluster`: begin a cluster, invite nodes, revoke them, back up the authority.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use velo_control::authority;
use velo_control::client::{PeerView, RevokeReply, RevokeRequest, TokenReply, TokenRequest};
use velo_socket::Member;

use super::stat::short;
use crate::exit::Failure;
use crate::node::Node;
use crate::output;

/// The largest backup that is read.
const BACKUP_BYTES: u64 = 64 << 20;

/// The cluster: begin one, invite nodes, revoke them, back up its authority
#[derive(Debug, clap::Subcommand)]
pub enum Cluster {
    /// Begin a cluster: its authority's key stays in this node's data directory
    Init {
        /// What people call the cluster
        #[arg(long, default_value = "")]
        name: String,
    },
    /// Make a token with which nodes may join; the node of the authority must run
    Token {
        /// How long it is good, for instance 30min, 12h, 7days
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        expires: Duration,
        /// How many nodes may join with it
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
    },
    /// Throw a node out: its sessions are closed, and it gets nothing any more
    Revoke {
        /// Its id (or the first 8 digits of one or more) or its name
        node: String,
    },
    /// Write an encrypted backup of the authority to FILE
    Export {
        /// A new file
        file: PathBuf,
        /// Read the passphrase from this file; else from VELO_PASSPHRASE, or it is asked for
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Bring the authority back from a backup, onto this node
    Import {
        /// What `velo cluster export` wrote
        file: PathBuf,
        /// Read the passphrase from this file; else from VELO_PASSPHRASE, or it is asked for
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
}

impl Cluster {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Init { name } => init(node, &name),
            Self::Token { expires, uses } => token(node, expires, uses),
            Self::Revoke { node: who } => revoke(node, who),
            Self::Export { file, passphrase_file } => export(node, &file, passphrase_file.as_deref()),
            Self::Import { file, passphrase_file } => import(node, &file, passphrase_file.as_deref()),
        }
    }
}

fn init(node: &Node, name: &str) -> anyhow::Result<()> {
    let made = authority::init(node.data_dir(), name)?;
    let answer = json!({ "ok": true, "cluster": made.cluster, "node": made.node.to_hex() });
    node.output.answer(&answer, || {
        format!(
            "cluster {} begins in {}\nnode    {}\nstart it with `velo up`, invite others with `velo cluster token`, \
             back its authority up with `velo cluster export`",
            made.cluster,
            node.data_dir().display(),
            made.node,
        )
    })
}

fn token(node: &Node, expires: Duration, uses: u32) -> anyhow::Result<()> {
    let request = TokenRequest { expires_s: expires.as_secs(), uses };
    let reply: TokenReply = node.control()?.post("/v1/cluster/token", &request)?;
    let mut answer = serde_json::to_value(&reply)?;
    answer["ok"] = json!(true);
    node.output.note(format!(
        "good for {} until {} UTC; on the new node:\n  velo up --join {} --token TOKEN",
        output::count(reply.uses.into(), "node"),
        output::date(reply.expires_ms),
        reply.addresses.first().map_or("HOST:PORT", String::as_str),
    ));
    node.output.answer(&answer, || reply.token.clone())
}

fn revoke(node: &Node, who: String) -> anyhow::Result<()> {
    let reply: RevokeReply = node.control()?.post_long("/v1/cluster/revoke", &RevokeRequest { node: who })?;
    let mut answer = serde_json::to_value(&reply)?;
    answer["ok"] = json!(true);
    node.output.answer(&answer, || {
        let told = output::count(reply.told.len() as u64, "member");
        let mut text = format!("revoked {} ({}); {told} confirmed it", reply.name, short(&reply.node));
        if !reply.silent.is_empty() {
            let silent = reply.silent.join(", ");
            text.push_str(&format!("\nnot reached yet (they learn it when they come back): {silent}"));
        }
        text
    })
}

fn export(node: &Node, file: &Path, passphrase_file: Option<&Path>) -> anyhow::Result<()> {
    let passphrase = passphrase(passphrase_file, true)?;
    let backup = authority::export(node.data_dir(), &passphrase, members(node))?;
    let context = || format!("cannot write {}", file.display());
    let mut options = std::fs::OpenOptions::new();
    let mut out = options.write(true).create_new(true).mode(0o600).open(file).with_context(context)?;
    out.write_all(&backup).and_then(|()| out.sync_all()).with_context(context)?;
    node.output.answer(&json!({ "ok": true, "file": file, "bytes": backup.len() }), || {
        format!("{} holds the authority, encrypted; keep it and its passphrase apart", file.display())
    })
}

/// The members, for a machine that is new to the cluster when it gets the backup.
fn members(node: &Node) -> Vec<Member> {
    let peers = node.control().and_then(|control| control.get::<Vec<PeerView>>("/v1/peers", &[]));
    let peers = peers.unwrap_or_else(|error| {
        node.output.warn(format!(
            "{error:#}; the backup does not say where the members are: bring it back on one of them"
        ));
        Vec::new()
    });
    let member = |peer: PeerView| {
        let addresses: Vec<_> = peer.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let node = peer.node.parse().ok().filter(|_| !addresses.is_empty())?;
        Some(Member { node, name: peer.name, addresses, zone: peer.zone })
    };
    peers.into_iter().filter_map(member).collect()
}

fn import(node: &Node, file: &Path, passphrase_file: Option<&Path>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", file.display());
    if std::fs::metadata(file).with_context(context)?.len() > BACKUP_BYTES {
        bail!("{} is too large to be a backup of an authority", file.display());
    }
    let backup = std::fs::read(file).with_context(context)?;
    let passphrase = passphrase(passphrase_file, false)?;
    let made = authority::import(node.data_dir(), &backup, &passphrase)?;
    let answer = json!({ "ok": true, "cluster": made.cluster, "node": made.node.to_hex() });
    node.output.answer(&answer, || {
        format!(
            "the authority of cluster {} is on this node now ({}); start it, or start it again, with `velo up`",
            made.cluster, made.node
        )
    })
}

/// The passphrase: from the file, the environment, or a terminal (twice, where it is a new one).
fn passphrase(file: Option<&Path>, new: bool) -> anyhow::Result<String> {
    let text = match (file, std::env::var("VELO_PASSPHRASE")) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file);
            text.with_context(|| format!("cannot read {}", file.display()))?.trim_end_matches('\n').to_owned()
        }
        (None, Ok(text)) => text,
        (None, Err(_)) => {
            let text = ask("passphrase: ")?;
            if new && ask("the same again: ")? != text {
                return Err(Failure::usage("the two passphrases differ"));
            }
            text
        }
    };
    if text.is_empty() {
        return Err(Failure::usage("the passphrase is empty"));
    }
    Ok(text)
}

/// Asks on the terminal without showing what is typed.
fn ask(question: &str) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage("give the passphrase with --passphrase-file or VELO_PASSPHRASE"));
    }
    eprint!("{question}");
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes -= LocalModes::ECHO;
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &shown)?;
    eprintln!();
    read?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
