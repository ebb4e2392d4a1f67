//! `velo completions`: what a shell needs to complete `velo`.

use std::io::Write;

use clap::CommandFactory;

use crate::node::Node;

/// Print the completions for a shell
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    /// Runs it.
    pub fn run(self, _node: &Node) -> anyhow::Result<()> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut crate::Cli::command(), "velo", &mut text);
        match std::io::stdout().write_all(&text) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result?),
        }
    }
}
