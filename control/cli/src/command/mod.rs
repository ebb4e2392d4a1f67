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
    /// Run this node: data plane and control plane, until Ctrl-C
    Up(up::Up),
    /// Put a file or a directory into this node's store
    Put(put::Put),
    /// Get content by id or name and write it to DEST
    Get(get::Get),
    /// Show what is known of an id or a name, here and elsewhere
    Stat(stat::Stat),
    /// List what is here, or what is in a tree
    Ls(ls::Ls),
    /// Remove content from this node
    Rm(rm::Rm),
    /// Keep content on this node whatever room is needed
    Pin(pin::Pin),
    /// Let content go when room is needed
    Unpin(pin::Unpin),
    /// Names for ids
    #[command(subcommand)]
    Ref(refs::Refs),
    /// List the members of the cluster
    Peers(peers::Peers),
    /// Show how this node does
    Status(status::Status),
    /// Hash everything in this node's store again; quarantine what is damaged
    Verify(verify::Verify),
    /// The cluster: begin one, invite nodes, revoke them, back up its authority
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    /// Start real nodes on this machine, move a real directory to all of them, compare every byte
    Demo(demo::Demo),
    /// Print the completions for a shell
    Completions(completions::Completions),
    /// Run one of the daemons by itself (`velo up` runs both)
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
