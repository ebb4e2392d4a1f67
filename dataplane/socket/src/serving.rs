//! A connection on which velod asks and velo-control answers ([`Request::Serve`](crate::Request::Serve)).

use std::sync::{Arc, Mutex, PoisonError};

use crate::client::unexpected;
use crate::{Caller, Client, ClientError, Connection, Request, Response};

/// A call of another node.
#[derive(Debug)]
pub struct Call {
    /// To be repeated in the answer.
    pub call: u64,
    /// Who asks.
    pub from: Caller,
    /// What.
    pub payload: Vec<u8>,
}

/// Receives calls.
#[derive(Debug)]
pub struct Calls(Connection);

/// Answers calls; from any thread, in any order.
#[derive(Debug, Clone)]
pub struct Answers(Arc<Mutex<Connection>>);

impl Client {
    /// From now on this connection answers the calls of other nodes. Another that did so before is ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn serve(mut self) -> Result<(Calls, Answers), ClientError> {
        match self.call(&Request::Serve, &[])?.0 {
            Response::Done => {}
            other => return Err(unexpected(other)),
        }
        let answers = self.connection.try_clone()?;
        Ok((Calls(self.connection), Answers(Arc::new(Mutex::new(answers)))))
    }
}

impl Calls {
    /// Waits for the next call.
    ///
    /// # Errors
    /// [`ClientError::Frame`] when velod has gone away.
    pub fn next_call(&mut self) -> Result<Call, ClientError> {
        match self.0.receive_response(None)?.0 {
            Response::Incoming { call, from, payload } => Ok(Call { call, from, payload }),
            other => Err(unexpected(other)),
        }
    }

    /// Ends the connection, so that a [`Calls::next_call`] on another thread returns; [`Answers`] fail from then on.
    ///
    /// # Errors
    /// Where there is nothing to end any more.
    pub fn closer(&self) -> std::io::Result<impl FnOnce() + Send + 'static> {
        let stream = self.0.stream().try_clone()?;
        Ok(move || {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        })
    }
}

impl Answers {
    /// Answers a call: with bytes, or with the reason why there are none.
    ///
    /// # Errors
    /// [`ClientError::Frame`].
    pub fn answer(&self, call: u64, reply: Result<Vec<u8>, String>) -> Result<(), ClientError> {
        let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(connection.send_request(&Request::Answer { call, reply }, &[])?)
    }
}
