//! One path: a connected queue pair, and who reads what over it in both directions.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use velo_object::NodeId;

use super::message::Message;
use super::provider::{self, Provider};
use super::reader::{self, Reader};
use super::verbs::{QueuePair, Verbs};
use super::{NewPath, RdmaCounters};
use crate::supply::{Answer, Supply};
use crate::{Completion, PathError, PathId, ProtocolError, Read, ReadError};

/// What a path shares with its worker's others.
pub(super) struct Shared {
    pub(super) supply: Box<dyn Supply>,
    pub(super) counters: RdmaCounters,
    pub(super) epoch: u64,
    pub(super) stall_timeout: Duration,
}

/// Why a path is being closed.
struct Closing {
    error: PathError,
    reads: ReadError,
    /// Whether the queue pair has been retired.
    retired: bool,
}

pub(super) struct Path {
    pub(super) id: PathId,
    pub(super) qp: QueuePair,
    peer: NodeId,
    reader: Reader,
    provider: Provider,
    hello: bool,
    welcome: bool,
    greeted: bool,
    proven: bool,
    /// Whether this side greets first: the other may not be connected yet before it does.
    begins: bool,
    closing: Option<Closing>,
}

impl Path {
    pub(super) fn new(path: NewPath, now: Instant, provider: Provider) -> Self {
        let NewPath { id, peer, qp, begins } = path;
        Self {
            id,
            qp,
            peer,
            reader: Reader::new(now),
            provider,
            hello: begins,
            begins,
            welcome: false,
            greeted: false,
            proven: false,
            closing: None,
        }
    }

    /// Takes a read in, or gives it back.
    pub(super) fn post(&mut self, read: Read) -> Result<(), Read> {
        if self.closing.is_some() { Err(read) } else { self.reader.post(read) }
    }

    /// The supply has answered.
    pub(super) fn answer(&mut self, answer: Answer, counters: &mut RdmaCounters) {
        self.provider.answer(answer, counters);
    }

    pub(super) fn reading<'a>(
        &'a mut self,
        counters: &'a mut RdmaCounters,
        completions: &'a mut Vec<Completion>,
    ) -> (&'a mut Reader, reader::Desk<'a>) {
        (&mut self.reader, reader::Desk { path: self.id, completions, counters })
    }

    pub(super) fn providing<'a>(
        &'a mut self,
        shared: &'a mut Shared,
    ) -> (&'a mut Provider, provider::Desk<'a>) {
        let Shared { supply, counters, epoch, .. } = shared;
        let desk = provider::Desk { path: self.id, peer: self.peer, supply: &mut **supply, counters, epoch };
        (&mut self.provider, desk)
    }

    /// Begins to close it: what the device has no hand in ends now.
    pub(super) fn close(
        &mut self,
        now: Instant,
        error: PathError,
        shared: &mut Shared,
        completions: &mut Vec<Completion>,
    ) {
        if self.closing.is_some() {
            return;
        }
        let reads = match &error {
            PathError::Stalled { .. } => {
                shared.counters.fabric.stalls += 1;
                ReadError::Stalled
            }
            PathError::Protocol(_) => {
                shared.counters.fabric.protocol_errors += 1;
                ReadError::PathClosed
            }
            _ => ReadError::PathClosed,
        };
        shared.counters.fabric.paths_closed += 1;
        self.closing = Some(Closing { error, reads, retired: false });
        let (reader, mut desk) = self.reading(&mut shared.counters, completions);
        reader.fail(reads, &mut desk);
        let (provider, mut desk) = self.providing(shared);
        provider.close(now, &mut desk);
    }

    /// The queue pair is destroyed: the end of the path.
    pub(super) fn gone(mut self, now: Instant, shared: &mut Shared, completions: &mut Vec<Completion>) {
        let error = || PathError::Io(std::io::Error::other("its queue pair was destroyed"));
        self.close(now, error(), shared, completions);
        let (provider, mut desk) = self.providing(shared);
        provider.gone(now, &mut desk);
        debug_assert!(self.reader.is_idle(), "the device reports every READ before the queue pair is gone");
        let error = self.closing.take().map_or_else(error, |closing| closing.error);
        completions.push(Completion::PathClosed { path: self.id, peer: self.peer, error });
    }

    /// How reads end that the device reports from now on, where the path is being closed.
    pub(super) fn ends_reads(&self) -> Option<ReadError> {
        self.closing.as_ref().map(|closing| closing.reads)
    }

    /// A message has come.
    pub(super) fn received(
        &mut self,
        now: Instant,
        bytes: &[u8],
        shared: &mut Shared,
        completions: &mut Vec<Completion>,
    ) {
        if self.closing.is_some() {
            return;
        }
        shared.counters.messages_in += 1;
        shared.counters.fabric.bytes_in += bytes.len() as u64;
        let taken = Message::decode(bytes).and_then(|message| self.take(now, &message, shared, completions));
        if let Err(error) = taken {
            self.close(now, error.into(), shared, completions);
        }
    }

    fn take(
        &mut self,
        now: Instant,
        message: &Message,
        shared: &mut Shared,
        completions: &mut Vec<Completion>,
    ) -> Result<(), ProtocolError> {
        if !self.greeted && *message != Message::Hello {
            return Err(ProtocolError::NoGreeting);
        }
        match message {
            Message::Hello if self.greeted => return Err(ProtocolError::SecondGreeting),
            Message::Hello => {
                (self.greeted, self.welcome, self.hello) = (true, true, self.hello || !self.begins)
            }
            Message::Welcome if self.proven => return Err(ProtocolError::SecondGreeting),
            Message::Welcome => {
                self.proven = true;
                completions.push(Completion::PathProven { path: self.id });
            }
            Message::Ask(ask) => {
                let (provider, mut desk) = self.providing(shared);
                provider.ask(now, ask, &mut desk)?;
            }
            Message::End { slot, read } => {
                let (provider, mut desk) = self.providing(shared);
                provider.end(now, *slot, *read, &mut desk);
            }
            Message::Grant(grant) => {
                let (reader, mut desk) = self.reading(&mut shared.counters, completions);
                reader.granted(now, grant, &mut desk)?;
            }
            Message::Refuse { slot, read, why } => {
                let (reader, mut desk) = self.reading(&mut shared.counters, completions);
                reader.refused(now, *slot, *read, *why, &mut desk)?;
            }
        }
        Ok(())
    }

    /// Whether [`transmit`](Self::transmit) has anything to do, were there room.
    pub(super) fn has_work(&self) -> bool {
        match &self.closing {
            Some(closing) => !closing.retired,
            None => self.hello || self.welcome || self.reader.has_work() || self.provider.has_work(),
        }
    }

    /// Hands to the device what it has room for.
    pub(super) fn transmit(
        &mut self,
        now: Instant,
        verbs: &mut dyn Verbs,
        shared: &mut Shared,
        completions: &mut Vec<Completion>,
    ) {
        let qp = self.qp;
        if let Some(closing) = &mut self.closing {
            if !std::mem::replace(&mut closing.retired, true) {
                verbs.retire(qp);
            }
            return;
        }
        for (due, message) in [(&mut self.hello, Message::Hello), (&mut self.welcome, Message::Welcome)] {
            if *due {
                if !verbs.send(qp, message.encode().as_ref()) {
                    return;
                }
                *due = false;
            }
        }
        let (provider, mut desk) = self.providing(shared);
        provider.transmit(now, qp, verbs, &mut desk);
        // Until the path works nothing is asked for: it is not stalled either.
        if self.proven {
            let (reader, mut desk) = self.reading(&mut shared.counters, completions);
            reader.transmit(now, qp, verbs, &mut desk);
        }
    }

    /// Does what is due.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        completions: &mut Vec<Completion>,
    ) {
        self.reader.begin_turn(now);
        if self.closing.is_some() {
            return;
        }
        if self.reader.stalls_at(shared.stall_timeout).is_some_and(|at| at <= now) {
            let error = PathError::Stalled { ms: shared.stall_timeout.as_millis() as u64 };
            return self.close(now, error, shared, completions);
        }
        if let Err(why) = self.provider.handle_timeout(now, &mut shared.counters) {
            let error = PathError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why));
            self.close(now, error, shared, completions);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) next has something to do.
    pub(super) fn next_timeout(&self, stall_timeout: Duration) -> Option<Instant> {
        if self.closing.is_some() {
            return None;
        }
        [self.reader.stalls_at(stall_timeout), self.provider.next_timeout()].into_iter().flatten().min()
    }
}
