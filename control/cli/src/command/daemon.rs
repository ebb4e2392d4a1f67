//! `velo daemon`: one of the two daemons, in this process.

use anyhow::Context;
use rustix::process::{Pid, Signal};

use crate::node::Node;

/// Run one of the daemons by itself (`velo up` runs both)
#[derive(Debug, clap::Subcommand)]
pub enum Daemon {
    /// The data plane, velod
    Data(Parent),
    /// The control plane, velo-control
    Control(Parent),
}

/// Who started it.
#[derive(Debug, clap::Args)]
pub struct Parent {
    /// Ends when this process, which must be the parent, ends
    #[arg(long, hide = true, value_name = "PID")]
    with_parent: Option<i32>,
}

impl Parent {
    /// Has the kernel end this process when its parent ends, however that happens.
    pub fn follow(&self) -> anyhow::Result<()> {
        let Some(parent) = self.with_parent else { return Ok(()) };
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
            .context("cannot follow the parent process")?;
        // It may have ended before.
        if rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
            anyhow::bail!("the process that started this one has ended");
        }
        Ok(())
    }
}

impl Daemon {
    /// Runs it.
    pub fn run(self, node: &Node) -> anyhow::Result<()> {
        match self {
            Self::Data(parent) => {
                parent.follow()?;
                velod::run(node.config.clone())
            }
            Self::Control(parent) => {
                parent.follow()?;
                velo_control::run(node.config.clone())
            }
        }
    }
}
