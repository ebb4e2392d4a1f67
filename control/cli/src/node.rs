//! The node that a command is about: its configuration, its files, and the two daemons behind them.

use std::path::Path;

use anyhow::Context;
use velo_config::{Config, Paths};
use velo_control::client::Resolved;
use velo_object::ObjectId;
use velo_socket::Client;

use crate::Global;
use crate::control::Control;
use crate::exit::Failure;
use crate::output::Output;

/// The node that this command is about.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its configuration.
    pub config: Config,
    /// How this run speaks.
    pub output: Output,
    /// Flags that start another `velo` for the same node.
    pub flags: Vec<std::ffi::OsString>,
}

impl Node {
    /// As flags, environment and file say.
    pub fn new(global: &Global, output: Output) -> anyhow::Result<Self> {
        let file =
            global.config.clone().or_else(|| velo_config::default_file(|name| std::env::var(name).ok()));
        let mut overrides = Vec::new();
        for set in &global.set {
            let (key, value) = set
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("--set {set}: write --set SECTION.KEY=VALUE")))?;
            overrides.push((key.to_owned(), value.to_owned()));
        }
        if let Some(dir) = &global.data_dir {
            let absolute = std::path::absolute(dir).context("--data-dir")?;
            let text = absolute.into_os_string().into_string().map_err(|_| {
                Failure::usage("--data-dir: the path of the data directory must be valid UTF-8")
            })?;
            overrides.push(("node.data_dir".into(), text));
        }
        // VELO_DATA_DIR and VELO_CONFIG name no section, so the configuration leaves them to the flags.
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        let config = Config::load(file.as_deref(), env, &overrides)?;

        let mut flags = Vec::new();
        if let Some(file) = &file {
            flags.extend(["--config".into(), std::path::absolute(file)?.into_os_string()]);
        }
        for (key, value) in &overrides {
            flags.extend(["--set".into(), format!("{key}={value}").into()]);
        }
        Ok(Self { config, output, flags })
    }

    /// Its files.
    pub fn paths(&self) -> Paths {
        self.config.paths()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> &Path {
        &self.config.node.data_dir
    }

    /// A connection to its velod.
    pub fn velod(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.paths().socket())?)
    }

    /// Its velo-control.
    pub fn control(&self) -> anyhow::Result<Control> {
        Control::find(&self.paths())
    }

    /// The id that `what` (an id, a prefix of one, or a name) means. Whole ids need no daemon.
    pub fn resolve(&self, what: &str) -> anyhow::Result<ObjectId> {
        if what.contains(':')
            && let Ok(id) = what.parse()
        {
            return Ok(id);
        }
        let found: Resolved = self.control()?.get("/v1/resolve", &[("what", what)])?;
        found.id.parse().with_context(|| format!("velo-control answered `{}` for `{what}`", found.id))
    }
}
