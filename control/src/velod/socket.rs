//! velod's local socket without blocking a thread: many questions may wait at once, each on a connection of its own.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, BytesMut};
use futures_util::future::BoxFuture;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use velo_object::NodeId;
use velo_socket::{
    JobId, JobState, JobStatus, MAX_DESCRIPTORS, MAX_FRAME_BYTES, PROTOCOL_VERSION, Request, Response,
};

use super::{Answer, Incoming, Link, VelodError};

/// Connections that are kept open between questions.
const IDLE: usize = 16;
/// Ordinary questions that wait at once.
const BUSY: usize = 96;
/// Waits for a range at once. They take as long as a peer takes, and have turns of their own so that the others never stand behind them.
const WAITS: usize = 64;
/// Contents that are ingested at once, likewise.
const INGESTS: usize = 16;
/// Descriptors that one answer may bring.
const ANSWER_DESCRIPTORS: usize = 8;

/// The way over the socket.
pub struct Socket {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    turns: Turns,
}

/// Who may ask now.
struct Turns {
    busy: Semaphore,
    waits: Semaphore,
    ingests: Semaphore,
}

impl Turns {
    fn new() -> Self {
        let [busy, waits, ingests] = [BUSY, WAITS, INGESTS].map(Semaphore::new);
        Self { busy, waits, ingests }
    }

    fn of(&self, request: &Request) -> &Semaphore {
        match request {
            Request::Wait { .. } => &self.waits,
            Request::Ingest { .. } => &self.ingests,
            _ => &self.busy,
        }
    }
}

struct Connection {
    stream: Arc<UnixStream>,
    buffer: BytesMut,
    descriptors: VecDeque<OwnedFd>,
}

fn down(error: impl ToString) -> VelodError {
    VelodError::Down(error.to_string())
}

impl Socket {
    /// The socket at this path; nothing is connected yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::new(Vec::new()), turns: Turns::new() }
    }

    /// Connects once, to learn which node velod is.
    ///
    /// # Errors
    /// [`VelodError`].
    pub async fn hello(&self) -> Result<NodeId, VelodError> {
        let (connection, node) = self.connect().await?;
        self.keep(connection);
        Ok(node)
    }

    async fn connect(&self) -> Result<(Connection, NodeId), VelodError> {
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| down(format!("{}: {error}", self.path.display())))?;
        let mut connection =
            Connection { stream: Arc::new(stream), buffer: BytesMut::new(), descriptors: VecDeque::new() };
        let hello = Request::Hello { version: PROTOCOL_VERSION, client: "velo-control".to_owned() };
        send(&connection.stream, &hello, &[]).await.map_err(down)?;
        match connection.receive().await?.0 {
            Response::Hello { version: PROTOCOL_VERSION, node, .. } => Ok((connection, node)),
            Response::Error(error) => Err(VelodError::Refused(error)),
            _ => Err(VelodError::Unexpected("hello")),
        }
    }

    async fn connection(&self) -> Result<Connection, VelodError> {
        loop {
            let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match kept {
                Some(connection) if connection.quiet() => return Ok(connection),
                Some(_) => {}
                None => return Ok(self.connect().await?.0),
            }
        }
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE && connection.buffer.is_empty() {
            idle.push(connection);
        }
    }
}

impl Connection {
    /// Whether it stands and nothing has come that was not asked for.
    fn quiet(&self) -> bool {
        let error = self.stream.try_read(&mut [0]).err();
        error.is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    async fn receive(&mut self) -> Result<Answer, VelodError> {
        loop {
            if let Some(header) = self.buffer.first_chunk::<4>() {
                let len = u32::from_le_bytes(*header) as usize;
                if len > MAX_FRAME_BYTES {
                    return Err(VelodError::Unexpected("a frame that is too long"));
                }
                if self.buffer.len() >= 4 + len {
                    self.buffer.advance(4);
                    let frame = self.buffer.split_to(len);
                    let response =
                        postcard::from_bytes(&frame).map_err(|_| VelodError::Unexpected("a frame"))?;
                    return Ok((response, self.descriptors.drain(..).collect()));
                }
            }
            if self.read().await.map_err(down)? == 0 {
                return Err(down("it closed the connection"));
            }
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { stream, buffer, descriptors } = self;
        let mut bytes = [0; 16 << 10];
        loop {
            stream.readable().await?;
            let received = stream.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ANSWER_DESCRIPTORS))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let message =
                    rustix::net::recvmsg(stream.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
                for message in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = message {
                        descriptors.extend(received);
                    }
                }
                Ok(message.bytes)
            });
            match received {
                Ok(len) => {
                    buffer.extend_from_slice(&bytes[..len]);
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends one frame; its descriptors go beside its first bytes.
async fn send(stream: &UnixStream, request: &Request, descriptors: &[OwnedFd]) -> io::Result<()> {
    let invalid = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why.to_owned());
    let body = postcard::to_stdvec(request).map_err(|error| invalid(&error.to_string()))?;
    if body.len() > MAX_FRAME_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(invalid("a question that is too long for one frame"));
    }
    let mut frame = u32::try_from(body.len()).map_err(|_| invalid("too long"))?.to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let mut sent = 0;
    while sent < frame.len() {
        stream.writable().await?;
        let wrote = stream.try_io(Interest::WRITABLE, || {
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed))
            {
                return Err(invalid("too many descriptors"));
            }
            let parts = [IoSlice::new(&frame[sent..])];
            Ok(rustix::net::sendmsg(stream.as_fd(), &parts, &mut control, SendFlags::NOSIGNAL)?)
        });
        match wrote {
            Ok(len) => sent += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Link for Socket {
    fn ask(&self, request: Request, descriptors: Vec<OwnedFd>) -> BoxFuture<'_, Result<Answer, VelodError>> {
        Box::pin(async move {
            let _turn = self.turns.of(&request).acquire().await.map_err(down)?;
            let mut connection = self.connection().await?;
            send(&connection.stream, &request, &descriptors).await.map_err(down)?;
            drop(descriptors);
            let answer = connection.receive().await?;
            self.keep(connection);
            Ok(answer)
        })
    }

    fn watch(
        &self,
        job: JobId,
        every_ms: u32,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<JobStatus>, VelodError>> {
        Box::pin(async move {
            let (mut connection, _) = self.connect().await?;
            send(&connection.stream, &Request::Watch { job, every_ms }, &[]).await.map_err(down)?;
            let first = match connection.receive().await?.0 {
                Response::Progress(status) => status,
                Response::Error(error) => return Err(VelodError::Refused(error)),
                _ => return Err(VelodError::Unexpected("watch")),
            };
            let (statuses, receiver) = mpsc::channel(4);
            tokio::spawn(async move {
                let mut status = first;
                loop {
                    let going = matches!(status.state, JobState::Running | JobState::Waiting);
                    if statuses.send(status).await.is_err() || !going {
                        return;
                    }
                    status = tokio::select! {
                        () = statuses.closed() => return,
                        answer = connection.receive() => match answer {
                            Ok((Response::Progress(status), _)) => status,
                            _ => return,
                        },
                    };
                }
            });
            Ok(receiver)
        })
    }

    fn serve(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Incoming>, VelodError>> {
        Box::pin(async move {
            let (mut connection, _) = self.connect().await?;
            send(&connection.stream, &Request::Serve, &[]).await.map_err(down)?;
            let (calls, receiver) = mpsc::channel(64);
            let (answers, mut answered) = mpsc::channel::<(u64, Result<Vec<u8>, String>)>(64);
            let stream = Arc::clone(&connection.stream);
            tokio::spawn(async move {
                while let Some((call, reply)) = answered.recv().await {
                    if let Err(error) = send(&stream, &Request::Answer { call, reply }, &[]).await {
                        tracing::debug!(%error, "an answer to a call was lost");
                        return;
                    }
                }
            });
            tokio::spawn(async move {
                while let Ok((response, _)) = connection.receive().await {
                    let Response::Incoming { call, from, payload } = response else {
                        if let Response::Error(error) = response {
                            tracing::warn!(%error, "velod hands no calls to control");
                            return;
                        }
                        continue;
                    };
                    if calls.send(Incoming::new(from, payload, call, answers.clone())).await.is_err() {
                        return;
                    }
                }
            });
            Ok(receiver)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use velo_object::BlobId;

    use super::*;

    /// A velod on which no wait ever ends and no content is ever ingested.
    fn stuck(listener: UnixListener) {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut connection = velo_socket::Connection::new(stream);
                while let Ok((request, _)) = connection.receive_request(None) {
                    let response = match request {
                        Request::Hello { .. } => Response::Hello {
                            version: PROTOCOL_VERSION,
                            node: NodeId::from_bytes([1; 32]),
                            pid: 1,
                        },
                        Request::Wait { .. } | Request::Ingest { .. } => continue,
                        _ => Response::Jobs(Vec::new()),
                    };
                    if connection.send_response(&response, &[]).is_err() {
                        return;
                    }
                }
            });
        }
    }

    #[tokio::test]
    async fn slow_readers_and_ingests_do_not_stop_ordinary_questions() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        std::thread::spawn(move || stuck(listener));
        let velod = super::super::Velod::new(Socket::new(&path));
        let blob = BlobId::of(b"slow");
        let mut slow = tokio::task::JoinSet::new();
        for _ in 0..BUSY + WAITS {
            let velod = velod.clone();
            slow.spawn(async move { velod.wait(blob, 0..1, Duration::from_secs(60)).await.map(|()| 0) });
        }
        for _ in 0..BUSY + INGESTS {
            let velod = velod.clone();
            let content = OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
            slow.spawn(async move { velod.ingest(blob, content).await.map(|done| done.size_bytes) });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let jobs = tokio::time::timeout(Duration::from_secs(10), velod.jobs()).await;
        assert!(jobs.expect("answered at once").expect("an answer").is_empty());
        assert!(slow.try_join_next().is_none(), "the slow ones still wait");
    }
}
