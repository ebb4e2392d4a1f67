//! Names in service: changes go to the writer, are durable, and are pushed to all members.

use std::sync::Arc;
use std::time::Duration;

use velo_object::{NodeId, ObjectId};

use crate::node::{Control, REFS};
use crate::now_ms;
use crate::refs::{Change, CheckedRef, Held, Merged, RefError, RefName, Step};
use crate::rpc::{Ask, News, Reply};
use crate::signed::Signed;
use crate::sync::CALL_TIMEOUT;
use crate::velod::VelodError;

/// How long a change waits for the members to confirm it.
const TELL_PATIENCE: Duration = Duration::from_millis(500);

/// Why a name was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The rules say no.
    #[error(transparent)]
    Ref(#[from] RefError),
    /// The book could not be written.
    #[error(transparent)]
    Velod(#[from] VelodError),
    /// The writer answered with something that is not believed.
    #[error("{0}")]
    Record(String),
}

impl Control {
    /// Changes a name, here or at its writer. What it was and what it is.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub(crate) async fn change_ref(self: &Arc<Self>, change: Change) -> Result<Held, ChangeError> {
        let writer = match self.write_ref(&change).await? {
            Ok(held) => return Ok(held),
            Err(writer) => writer,
        };
        let refused =
            |why: String| RefError::Writer { name: change.name.to_string(), writer: writer.to_hex(), why };
        let reply = self.ask(writer, &Ask::ChangeRef(change.clone()), CALL_TIMEOUT).await;
        match reply.map_err(|error| refused(error.to_string()))? {
            Reply::Changed(Ok(signed)) => {
                let record = CheckedRef::check(signed, &self.cluster).map_err(ChangeError::Record)?;
                if record.record.name != change.name || record.id() != change.id {
                    return Err(ChangeError::Record(format!(
                        "node {writer} wrote something else than was asked"
                    )));
                }
                self.take_ref(&record).await?;
                Ok(Held { current: record, lost: None })
            }
            Reply::Changed(Err(error)) => Err(error.into()),
            _ => Err(refused("it answered something else".to_owned()).into()),
        }
    }

    /// The change as the writer makes it; the writer's node where that is another.
    pub(crate) async fn write_ref(
        self: &Arc<Self>,
        change: &Change,
    ) -> Result<Result<Held, velo_object::NodeId>, ChangeError> {
        let one = self.ref_writes.lock().await;
        let signing = self.identity.load_full();
        let step = self.refs().change(change, &signing.signer, now_ms(), |node| self.revoked(node))?;
        let record = match step {
            Step::Write(record) => record,
            Step::Forward(writer) => return Ok(Err(writer)),
        };
        let (_, held) = self.refs().preview(&record, now_ms());
        let held = held.ok_or(RefError::Full)?;
        let key = change.name.as_str().as_bytes();
        self.velod.book_put(REFS, key, Some(held.encode())).await?;
        self.refs().restore(held.clone());
        drop(one);
        let (control, news) = (Arc::clone(self), News::Ref(record.signed.clone()));
        let telling = tokio::spawn(async move {
            let (_, silent) = control.tell_all(vec![news]).await;
            if !silent.is_empty() {
                tracing::debug!(silent = silent.len(), "members will hear of the name by anti-entropy");
            }
        });
        // Whoever asks another member next should find it there; but a member that is silent holds nobody up.
        let _ = tokio::time::timeout(TELL_PATIENCE, telling).await;
        Ok(Ok(held))
    }

    pub(crate) async fn hear_ref(&self, from: NodeId, signed: Signed) -> Result<bool, String> {
        let record = CheckedRef::check(signed, &self.cluster)?;
        let writer = record.writer();
        // Whoever has a session is a member, also where its record has not come yet.
        if writer != from && !self.was_member(&writer) {
            return Err(format!(
                "`{}` is signed by {}, which was never a member as far as is known here",
                record.record.name,
                writer.short()
            ));
        }
        self.take_ref(&record).await.map_err(|error| error.to_string())
    }

    /// Merges a record of another node; the book has it before this node shows it.
    async fn take_ref(&self, record: &CheckedRef) -> Result<bool, ChangeError> {
        record.check_numbers(now_ms()).map_err(ChangeError::Record)?;
        let _one = self.ref_writes.lock().await;
        let (merged, held) = self.refs().preview(record, now_ms());
        if merged == Merged::Full {
            return Err(RefError::Full.into());
        }
        let Some(held) = held else { return Ok(false) };
        let key = record.record.name.as_str().as_bytes();
        self.velod.book_put(REFS, key, Some(held.encode())).await?;
        let displaced = {
            let mut refs = self.refs();
            let own = refs.live(&record.record.name).filter(|known| known.current.writer() == self.node);
            let displaced = own.is_some_and(|known| {
                held.current.writer() != self.node && held.current.record.life > known.current.record.life
            });
            refs.restore(held);
            displaced
        };
        if displaced {
            self.metrics.ref_conflicts.inc();
            tracing::warn!(
                name = %record.record.name,
                writer = %record.writer(),
                "another node has made itself the writer of a name of this node, which was not deleted"
            );
        }
        if let Merged::Lost(lost) = merged {
            self.metrics.ref_conflicts.inc();
            tracing::warn!(
                name = %record.record.name,
                writer = %lost.writer,
                "two nodes created this name; the older creation stands, the other lost"
            );
        }
        Ok(true)
    }

    /// Forgets names that were deleted long ago.
    pub(crate) async fn forget_names(&self) {
        let _one = self.ref_writes.lock().await;
        let forgettable = self.refs().forgettable(self.node, now_ms());
        for name in forgettable {
            // The book first: what it still has comes back with a restart and is forgotten then.
            if let Err(error) = self.velod.book_put(REFS, name.as_str().as_bytes(), None).await {
                tracing::debug!(%error, "deleted names are forgotten later");
                return;
            }
            self.refs().forget(&name);
        }
    }

    /// What a name means.
    pub(crate) fn resolve_name(&self, name: &RefName) -> Option<(ObjectId, u64)> {
        let refs = self.refs();
        let held = refs.live(name)?;
        held.current.id().map(|id| (id, held.current.value().version))
    }
}
