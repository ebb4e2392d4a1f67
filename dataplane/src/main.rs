//! velod as a program of its own: the first argument is the configuration file, if there is one.

fn main() -> anyhow::Result<()> {
    let file = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    let config = velo_config::Config::load(file.as_deref(), std::env::vars(), &[])?;
    velod::run(config)
}
