//! [`Client`]: one blocking connection to velod.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use velo_object::NodeId;

use crate::{ClientError, Connection, JobState, PROTOCOL_VERSION, Request, Response};

/// How long velod may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to velod. Requests are answered in order; open several to do several things at once.
#[derive(Debug)]
pub struct Client {
    pub(crate) connection: Connection,
    timeout: Option<Duration>,
    node: NodeId,
    pid: u32,
}

impl Client {
    /// Connects to the socket of a velod and says hello as `velo`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_as(path, "velo")
    }

    /// Connects, with a name for velod's log.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect_as(path: &Path, name: &str) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                std::io::ErrorKind::NotFound => ClientError::NotRunning { path, stale: false },
                std::io::ErrorKind::ConnectionRefused => ClientError::NotRunning { path, stale: true },
                std::io::ErrorKind::PermissionDenied => ClientError::Denied { path },
                _ => ClientError::Connect { path, source },
            }
        })?;
        Self::over(stream, name)
    }

    /// Says hello over a connected socket.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn over(stream: UnixStream, name: &str) -> Result<Self, ClientError> {
        let mut connection = Connection::new(stream);
        connection
            .send_request(&Request::Hello { version: PROTOCOL_VERSION, client: name.to_owned() }, &[])?;
        match connection.receive_response(Some(HELLO_TIMEOUT))?.0 {
            Response::Hello { version: PROTOCOL_VERSION, node, pid } => {
                Ok(Self { connection, timeout: None, node, pid })
            }
            Response::Hello { version, .. } => {
                Err(ClientError::Version { velod: version, own: PROTOCOL_VERSION })
            }
            other => Err(unexpected(other)),
        }
    }

    /// Bounds the wait for each answer; none (as it begins) waits as long as velod lives.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Another handle on the connection. Whoever shuts it down ends a wait for an answer on another thread.
    ///
    /// # Errors
    /// Where no descriptor is left.
    pub fn handle(&self) -> std::io::Result<UnixStream> {
        self.connection.stream().try_clone()
    }

    /// velod's node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// velod's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks, and waits for one answer. velod's errors come as [`ClientError::Velod`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        self.connection.send_request(request, fds)?;
        match self.connection.receive_response(self.timeout)? {
            (Response::Error(error), _) => Err(ClientError::Velod(error)),
            answer => Ok(answer),
        }
    }

    /// Asks for a stream of answers ([`Request::Watch`], [`Request::Verify`]). Read it to its end, or drop the client with it:
    /// answers that were not read would be taken for those of the next question.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stream(&mut self, request: &Request) -> Result<Responses<'_>, ClientError> {
        self.connection.send_request(request, &[])?;
        Ok(Responses { client: self, ended: false })
    }
}

/// A stream of answers, which ends after the last one or an error.
#[derive(Debug)]
pub struct Responses<'a> {
    client: &'a mut Client,
    ended: bool,
}

impl Iterator for Responses<'_> {
    type Item = Result<Response, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let answer = match self.client.connection.receive_response(self.client.timeout) {
            Ok((Response::Error(error), _)) => Err(ClientError::Velod(error)),
            Ok((response, _)) => Ok(response),
            Err(error) => Err(error.into()),
        };
        self.ended = match &answer {
            Ok(Response::Progress(status)) => !matches!(status.state, JobState::Running | JobState::Waiting),
            Ok(Response::Verifying { last, .. }) => *last,
            _ => true,
        };
        Some(answer)
    }
}

/// An answer that does not belong to the question.
pub(crate) fn unexpected(response: Response) -> ClientError {
    match response {
        Response::Error(error) => ClientError::Velod(error),
        other => {
            let text = format!("{other:?}");
            ClientError::Unexpected(text.split([' ', '(', '{']).next().unwrap_or_default().to_owned())
        }
    }
}
