//! The commands, one file each.

mod cluster;
mod completions;
mod daemon;
mod get;
mod ls;
mod peers;
mod pin;
mod put;
mod refs;
mod rm;
mod stat;
mod status;
mod up;
mod verify;

use crate::demo;
use crate::node::Node;

/// What `velo` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Up(up::Up),
    Put(put::Put),
    Get(get::Get),
    Stat(stat::Stat),
    Ls(ls::Ls),
    Rm(rm::Rm),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    #[command(subcommand)]
    Ref(refs::Refs),
    Peers(peers::Peers),
    Status(status::Status),
    Verify(verify::Verify),
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    Demo(demo::Demo),
    Completions(completions::Completions),
    #[command(subcommand)]
    Daemon(daemon::Daemon),
}

impl Command {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Up(command) => command.run(node),
            Self::Put(command) => command.run(node),
            Self::Get(command) => command.run(node),
            Self::Stat(command) => command.run(node),
            Self::Ls(command) => command.run(node),
            Self::Rm(command) => command.run(node),
            Self::Pin(command) => command.run(node),
            Self::Unpin(command) => command.run(node),
            Self::Ref(command) => command.run(node),
            Self::Peers(command) => command.run(node),
            Self::Status(command) => command.run(node),
            Self::Verify(command) => command.run(node),
            Self::Cluster(command) => command.run(node),
            Self::Demo(command) => command.run(node),
            Self::Completions(command) => command.run(node),
            Self::Daemon(command) => command.run(node),
        }
    }
}
