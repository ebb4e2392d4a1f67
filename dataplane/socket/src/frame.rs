//! [`Connection`]: frames with descriptors beside them over a Unix stream socket.
//!
//! All descriptors of a frame travel with its first byte, so whoever reads the length has them all; descriptors anywhere else are a
//! breach of the protocol. Whatever is received and not handed out is closed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{FrameError, MAX_DESCRIPTORS, MAX_FRAME_BYTES, Request, Response};

/// How long the rest of a frame may take once it has begun, in either direction.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// The kernel's SCM_MAX_FD: room for all that can ever come at once, so that nothing is cut off.
const KERNEL_DESCRIPTORS: usize = 253;
/// A frame is received in steps of at most this, so that a length alone makes nobody allocate.
const STEP_BYTES: usize = 256 << 10;

/// One end of a connection between a program and velod.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    frame_timeout: Duration,
}

impl Connection {
    /// Speaks over a connected socket.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, frame_timeout: FRAME_TIMEOUT }
    }

    /// Sets how long the rest of a frame may take once it has begun.
    pub fn set_frame_timeout(&mut self, timeout: Duration) {
        self.frame_timeout = timeout;
    }

    /// The socket, for peer credentials and for shutting it down.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// A second end of the same connection: one may receive while the other sends.
    ///
    /// # Errors
    /// [`FrameError::Io`] where no more descriptors may be opened.
    pub fn try_clone(&self) -> Result<Self, FrameError> {
        Ok(Self { stream: self.stream.try_clone()?, frame_timeout: self.frame_timeout })
    }

    /// velod: waits for a request. `idle` bounds the wait for its first byte; none waits for ever.
    ///
    /// # Errors
    /// [`FrameError`]; the connection must then be closed.
    pub fn receive_request(&mut self, idle: Option<Duration>) -> Result<(Request, Vec<OwnedFd>), FrameError> {
        self.receive(idle)
    }

    /// velod: answers.
    ///
    /// # Errors
    /// [`FrameError`]; after [`FrameError::TooLarge`] nothing was sent and the connection is still good.
    pub fn send_response(&mut self, response: &Response, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.send(response, fds)
    }

    /// A caller: asks.
    ///
    /// # Errors
    /// [`FrameError`]; after [`FrameError::TooLarge`] nothing was sent and the connection is still good.
    pub fn send_request(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        self.send(request, fds)
    }

    /// A caller: waits for an answer; `idle` bounds the wait for its first byte.
    ///
    /// # Errors
    /// [`FrameError`]; the connection must then be closed.
    pub fn receive_response(
        &mut self,
        idle: Option<Duration>,
    ) -> Result<(Response, Vec<OwnedFd>), FrameError> {
        self.receive(idle)
    }

    fn send(&mut self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        if fds.len() > MAX_DESCRIPTORS {
            return Err(FrameError::Descriptors);
        }
        let mut frame = postcard::to_extend(message, vec![0; 4]).map_err(malformed)?;
        let len = frame.len() - 4;
        if len > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(len));
        }
        frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
        let deadline = Instant::now() + self.frame_timeout;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut fds = Some(fds).filter(|fds| !fds.is_empty());
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if let Some(fds) = fds {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    fds = None;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    self.wait(PollFlags::OUT, Some(deadline))?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(FrameError::Closed { midway: rest.len() < frame.len() });
                }
                Err(error) => return Err(FrameError::Io(error.into())),
            }
        }
        Ok(())
    }

    fn receive<T: DeserializeOwned>(
        &mut self,
        idle: Option<Duration>,
    ) -> Result<(T, Vec<OwnedFd>), FrameError> {
        let mut fds = Vec::new();
        let mut header = [0; 4];
        let idle = idle.map(|idle| Instant::now() + idle);
        let first = self.receive_some(&mut header, &mut fds, idle)?;
        if first == 0 {
            return Err(FrameError::Closed { midway: false });
        }
        let deadline = Some(Instant::now() + self.frame_timeout);
        self.receive_exactly(&mut header[first..], deadline)?;
        let len = u32::from_le_bytes(header) as usize;
        if len > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge(len));
        }
        let mut body = Vec::new();
        while body.len() < len {
            let at = body.len();
            body.resize(len.min(at + STEP_BYTES), 0);
            self.receive_exactly(&mut body[at..], deadline)?;
        }
        match postcard::take_from_bytes(&body) {
            Ok((message, [])) => Ok((message, fds)),
            Ok((_, rest)) => Err(FrameError::Malformed(format!("{} bytes stand after its end", rest.len()))),
            Err(error) => Err(malformed(error)),
        }
    }

    fn receive_exactly(
        &mut self,
        mut buffer: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<(), FrameError> {
        while !buffer.is_empty() {
            let mut fds = Vec::new();
            let received = self.receive_some(buffer, &mut fds, deadline)?;
            if received == 0 {
                return Err(FrameError::Closed { midway: true });
            }
            if !fds.is_empty() {
                return Err(FrameError::Descriptors);
            }
            buffer = &mut buffer[received..];
        }
        Ok(())
    }

    fn receive_some(
        &mut self,
        buffer: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<usize, FrameError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_DESCRIPTORS))];
        loop {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.stream, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(received) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(rights) = message {
                            fds.extend(rights);
                        }
                    }
                    if received.flags.contains(ReturnFlags::CTRUNC) {
                        return Err(FrameError::DescriptorsLost);
                    }
                    if fds.len() > MAX_DESCRIPTORS {
                        return Err(FrameError::Descriptors);
                    }
                    return Ok(received.bytes);
                }
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::CONNRESET) => return Ok(0),
                Err(error) => return Err(FrameError::Io(error.into())),
            }
        }
    }

    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), FrameError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(FrameError::Slow(self.frame_timeout));
        }
        let timeout = left
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut [PollFd::from_borrowed_fd(self.stream.as_fd(), what)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(FrameError::Io(io::Error::from(error))),
        }
    }
}

fn malformed(error: postcard::Error) -> FrameError {
    FrameError::Malformed(error.to_string())
}
