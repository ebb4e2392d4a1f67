//! `velo`: the one executable that users run, and the daemons that it starts.
//!
//! This file reads the command line, runs the command and turns its result into an exit status; every command
//! has a file of its own in `command`.
#![forbid(unsafe_code)]

mod beneath;
mod command;
mod control;
mod demo;
mod exit;
mod get;
mod interrupt;
mod job;
mod node;
mod output;
mod progress;
mod put;
mod supervise;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::node::Node;
use crate::output::Output;

/// Moves large content between machines at the speed of the wire, and keeps it where it is needed.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 the node or a peer cannot be reached,
/// 5 content is damaged, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "velo", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: command::Command,
}

/// What every command understands.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// The configuration file [default: /etc/velo/velo.toml for root, else ~/.config/velo/velo.toml, if there]
    #[arg(long, global = true, value_name = "FILE", env = "VELO_CONFIG")]
    config: Option<PathBuf>,
    /// The node's data directory (the key node.data_dir)
    #[arg(long, global = true, value_name = "DIR", env = "VELO_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Sets a key of the configuration, for instance net.trusted=true
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Answers with one JSON object
    #[arg(long, global = true)]
    json: bool,
    /// Says only what was asked for
    #[arg(short, long, global = true)]
    quiet: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::DONE });
        }
    };
    raise_descriptor_limit();
    let output = Output::new(cli.global.json, cli.global.quiet);
    let result = Node::new(&cli.global, output).and_then(|node| cli.command.run(&node));
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            let status = exit::status(&error);
            if !exit::was_said(&error) {
                output.failure(&error, status);
            }
            ExitCode::from(status)
        }
    }
}

/// Batches of files and packs are held open: as many descriptors are used as the system allows this process.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is refused, the usual 1024 are enough for all but the widest trees.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
