//! The local socket: what other programs of this host may ask velod for.
//!
//! A thread for each connection, bounded in number; requests on one connection are answered in order. Paths never cross the socket: what
//! is to be read or written comes as a descriptor. What a connection has begun and not committed is dropped when it ends.

mod answer;
mod peer;
mod put;
mod serve;
mod stream;

use std::collections::HashMap;
use std::fmt;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use velo_socket::Connection;
use velo_store::Store;

use crate::engine::EngineHandle;
use crate::session::Sessions;
use serve::Serving;

/// Connections at one time. velo-control keeps about a hundred.
const CONNECTIONS: usize = 512;
/// How often the accepting thread looks whether it should stop.
const STOP_POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// How long connections get to end when velod stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the local socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Something is in its place.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Something is in its place that is not a socket.
    #[error("{} is there and is not a socket: move it away", .0.display())]
    InTheWay(PathBuf),
}

/// What the requests are answered from.
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) sessions: Sessions,
    pub(crate) engine: EngineHandle,
    pub(crate) serving: Serving,
    pub(crate) stopping: AtomicBool,
    pub(crate) counters: LocalCounters,
}

#[derive(Debug, Default)]
pub(crate) struct LocalCounters {
    pub(crate) connections: AtomicU64,
    pub(crate) denied: AtomicU64,
    pub(crate) requests: AtomicU64,
}

type Open = Mutex<HashMap<u64, UnixStream>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The socket and its threads; ends on drop.
pub struct LocalSocket {
    path: PathBuf,
    context: Arc<Context>,
    open: Arc<Open>,
    acceptor: Option<JoinHandle<()>>,
}

impl fmt::Debug for LocalSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSocket").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LocalSocket {
    /// Listens at `path` (mode 0660). A socket that stands there is replaced: the caller holds the lock of the data directory.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn start(
        path: &Path,
        store: Store,
        sessions: Sessions,
        engine: EngineHandle,
    ) -> Result<Self, LocalError> {
        let listener = listen(path)?;
        let io = |error| LocalError::Io { path: path.to_owned(), error };
        let group = std::fs::metadata(path).map_err(io)?.gid();
        let context = Arc::new(Context {
            store,
            sessions,
            engine,
            serving: Serving::default(),
            stopping: AtomicBool::new(false),
            counters: LocalCounters::default(),
        });
        let open = Arc::new(Open::default());
        let acceptor = {
            let (context, open) = (context.clone(), open.clone());
            let accept = move || accept(&context, &open, &listener, group);
            Builder::new().name("velod-local".to_owned()).spawn(accept).map_err(io)?
        };
        Ok(Self { path: path.to_owned(), context, open, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        self.context.stopping.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.context.serving.end(&self.context.sessions);
        // An answer that is being written is finished; nothing more is read.
        lock(&self.open).values().for_each(|stream| drop(stream.shutdown(Shutdown::Read)));
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !lock(&self.open).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        lock(&self.open).values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }
}

fn listen(path: &Path) -> Result<UnixListener, LocalError> {
    let io = |error| LocalError::Io { path: path.to_owned(), error };
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path).map_err(io)?,
        Ok(_) => return Err(LocalError::InTheWay(path.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let made = (|| {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        socket.bind(&socket2::SockAddr::unix(path)?)?;
        // Nobody can connect before `listen`, so nobody passes while the mode is the umask's.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        socket.listen(128)?;
        socket.set_nonblocking(true)?;
        Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
    })();
    made.map_err(io)
}

fn accept(context: &Arc<Context>, open: &Arc<Open>, listener: &UnixListener, group: u32) {
    let mut next = 0;
    while !context.stopping.load(Ordering::Acquire) {
        let mut waiting = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        let _ = poll(&mut waiting, Some(&STOP_POLL));
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                tracing::warn!(%error, "the local socket cannot accept");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let credentials = match peer::check(&stream, group) {
            Ok(credentials) => credentials,
            Err(why) => {
                context.counters.denied.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%why, "connection to the local socket denied");
                continue;
            }
        };
        let Ok(other_end) = stream.try_clone() else { continue };
        if stream.set_nonblocking(false).is_err() || lock(open).len() >= CONNECTIONS {
            tracing::warn!(pid = credentials.pid, "{CONNECTIONS} programs use the local socket already");
            continue;
        }
        next += 1;
        let id = next;
        lock(open).insert(id, other_end);
        context.counters.connections.fetch_add(1, Ordering::Relaxed);
        let registered = Registered { open: open.clone(), id };
        let context = context.clone();
        let spawned = Builder::new().name("velod-client".to_owned()).spawn(move || {
            let _registered = registered;
            answer::connection(&context, Connection::new(stream), credentials);
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread for a connection to the local socket");
        }
    }
}

/// A place among the open connections; given back on drop.
struct Registered {
    open: Arc<Open>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
