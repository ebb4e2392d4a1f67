//! The connection on which velo-control answers calls of other nodes.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::Builder;

use tokio::sync::oneshot;
use velo_socket::{Caller, Connection, Request, Response};

use super::{Context, lock};
use crate::session::{CallReply, Sessions};

/// Calls that wait for velo-control's answer.
const CALLS: usize = 1024;
/// Bytes of calls that wait to be written to it.
const QUEUED_CALLS: usize = 64;

/// Who serves now.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    present: Mutex<Option<(u64, UnixStream)>>,
    next: AtomicU64,
}

struct Pending {
    waiting: Mutex<HashMap<u64, oneshot::Sender<CallReply>>>,
    next: AtomicU64,
    queue: SyncSender<Response>,
}

impl Pending {
    fn call(&self, from: Caller, payload: Vec<u8>, reply: oneshot::Sender<CallReply>) {
        let call = self.next.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = lock(&self.waiting);
            if waiting.len() >= CALLS {
                // Those whose callers have given up are answered by nobody.
                waiting.retain(|_, reply| !reply.is_closed());
            }
            if waiting.len() >= CALLS {
                let _ = reply.send(Err("velo-control is busy there: try again".to_owned()));
                return;
            }
            waiting.insert(call, reply);
        }
        if self.queue.try_send(Response::Incoming { call, from, payload }).is_err()
            && let Some(reply) = lock(&self.waiting).remove(&call)
        {
            let _ = reply.send(Err("velo-control is busy there: try again".to_owned()));
        }
    }
}

impl Serving {
    /// Ends whoever serves.
    pub(super) fn end(&self, sessions: &Sessions) {
        let mut present = lock(&self.present);
        if let Some((_, stream)) = present.take() {
            sessions.set_call_handler(None);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn take(&self, sessions: &Sessions, stream: UnixStream, pending: &Arc<Pending>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut present = lock(&self.present);
        if let Some((_, old)) = present.replace((number, stream)) {
            let _ = old.shutdown(Shutdown::Both);
        }
        let pending = pending.clone();
        sessions.set_call_handler(Some(Arc::new(move |from, payload, reply| {
            pending.call(from, payload, reply);
        })));
        number
    }

    fn leave(&self, sessions: &Sessions, number: u64) {
        let mut present = lock(&self.present);
        if present.as_ref().is_some_and(|(present, _)| *present == number) {
            *present = None;
            sessions.set_call_handler(None);
        }
    }
}

/// Serves until the connection ends: this thread reads answers, another writes calls.
pub(super) fn serve(context: &Context, mut connection: Connection) {
    let (Ok(mut writer), Ok(stream)) = (connection.try_clone(), connection.stream().try_clone()) else {
        return;
    };
    let Ok(shutter) = stream.try_clone() else { return };
    let (queue, calls) = sync_channel(QUEUED_CALLS);
    let pending = Arc::new(Pending { waiting: Mutex::default(), next: AtomicU64::new(1), queue });
    let number = context.serving.take(&context.sessions, stream, &pending);
    // Whoever reads this knows that calls come here from now on; calls are written after it.
    let begun = writer.send_response(&Response::Done, &[]);
    let write = move || {
        while let Ok(call) = calls.recv() {
            if writer.send_response(&call, &[]).is_err() {
                let _ = shutter.shutdown(Shutdown::Both);
                return;
            }
        }
    };
    let spawned = begun.is_ok() && Builder::new().name("velod-calls".to_owned()).spawn(write).is_ok();
    if spawned {
        read_answers(&mut connection, &pending);
    }
    context.serving.leave(&context.sessions, number);
    lock(&pending.waiting).clear();
}

fn read_answers(connection: &mut Connection, pending: &Pending) {
    loop {
        match connection.receive_request(None) {
            Ok((Request::Answer { call, reply }, _)) => {
                if let Some(waiting) = lock(&pending.waiting).remove(&call) {
                    let _ = waiting.send(reply);
                }
            }
            Ok(_) => {
                tracing::warn!("velo-control asked something on the connection on which it answers");
                return;
            }
            Err(_) => return,
        }
    }
}
