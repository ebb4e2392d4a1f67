//! velod from its configuration to its end: [`run`].

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use velo_config::{Config, Durability};
use velo_store::{Store, StoreOptions};

use crate::engine::{DataPlane, DataPlaneOptions};
use crate::identity::{Identity, RevokedNodes};
use crate::local::LocalSocket;
use crate::logging;
use crate::ready::ReadyFile;
use crate::session::{SessionOptions, Sessions};

/// Runs velod until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting, and what to do about it.
pub fn run(config: Config) -> anyhow::Result<()> {
    logging::start(&config.log)?;
    // From here on the signals are ours: one that comes while velod starts ends it in order, too.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };

    let paths = config.paths();
    let node = Identity::load(&paths, &RevokedNodes::default())?.node();
    make_run_dir(&paths.run_dir())?;
    let store = open_store(&config)?;
    let plane = DataPlane::new(DataPlaneOptions::from_config(&config, node), store.clone())?;
    let handle = plane.handle();
    let events = handle.clone();
    let sessions =
        Sessions::start(SessionOptions::from_config(&config), move |event| events.session_event(event))?;
    let plane = plane.start(Box::new(sessions.clone()))?;
    if config.net.trusted {
        handle.note("content may travel in the clear to peers that say the same: `net.trusted` is on");
    }
    let local = LocalSocket::start(&paths.socket(), store.clone(), sessions.clone(), handle)?;
    let listen = sessions.listen_addresses();
    let ready = ReadyFile::write(&paths.velod_ready(), &node, &listen)?;
    tracing::info!(%node, ?listen, "velod is ready");

    let (mut terminate, mut interrupt) = signals;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tracing::info!("velod is stopping");
    drop(ready);
    drop(local);
    drop(plane);
    sessions.stop();
    store.close().context("closing the store")?;
    Ok(())
}

fn make_run_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot make {}: choose another `node.data_dir`", dir.display()))
}

fn open_store(config: &Config) -> anyhow::Result<Store> {
    let options = StoreOptions {
        dir: config.paths().store_dir(),
        capacity_bytes: config.capacity_bytes(),
        durability: match config.store.durability {
            Durability::Fsync => velo_store::Durability::Fsync,
            Durability::Process => velo_store::Durability::Process,
        },
        threads: 0,
    };
    let new = !options.dir.join("index").exists();
    let (store, recovery) = Store::open(options)?;
    if !recovery.clean && !new {
        tracing::warn!(
            files = recovery.files,
            resumable = recovery.resumable,
            orphans = recovery.orphans,
            rehashed = recovery.rehashed,
            "the store was not closed in order; its index was made anew"
        );
    }
    for blob in &recovery.damaged {
        tracing::error!(%blob, "was damaged and is in quarantine: get it again");
    }
    Ok(store)
}
