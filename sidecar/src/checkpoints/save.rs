//! Taking a state in: onto this disk, then onto a quorum's, then into the log.

use super::file::{Name, Writing};
use super::store::Claim;
use super::{CHUNK_BYTES, Checkpoints, Error, blocking, out};
use crate::driver::{Application, Unanswered};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeSet;
use std::time::Duration;
use synod_paxos::configuration::Configuration;
use synod_paxos::status::MemberState;
use synod_paxos::value::{Checkpoint, Operation};
use synod_paxos::{Consistency, Digest, Index, MemberId, Refusal};
use synod_proto::peer::v1::HoldCheckpointRequest;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tonic::Status;

/// Between two tries to let a member have a checkpoint, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long to wait until this member has applied what was acknowledged.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at who the members are.
const LOOK: Duration = Duration::from_millis(500);

/// A state on its way in.
pub struct Saving {
    checkpoints: Checkpoints,
    index: Index,
    /// Where it was told at the beginning.
    announced: Option<Checkpoint>,
    /// `None`: the whole stands here already, what comes is not needed.
    writing: Option<Writing>,
    claim: Option<Claim>,
    /// Bytes so far.
    length: u64,
    _permit: OwnedSemaphorePermit,
}

impl Checkpoints {
    /// Whether a state at `index` may be saved, as far as this member knows.
    async fn judge(&self, index: Index, digest: Option<Digest>) -> Result<(), Error> {
        let Application { checkpoints, configuration, first_index, mut last_index, .. } =
            self.application().await?;
        if configuration.is_none() {
            return Err(Error::NotActive);
        }
        if index > last_index {
            last_index = self.caught_up().await?;
        }
        if index > last_index {
            return Err(Error::BeyondTail { tail: last_index });
        }
        let is_named = checkpoints.iter().any(|named| named.index == index && Some(named.digest) == digest);
        if let Some(newest) = checkpoints.last()
            && index < newest.index
            && !is_named
        {
            return Err(Error::Superseded { newest: newest.index });
        }
        if index < first_index.previous() && !is_named {
            return Err(Error::Compacted { first: first_index });
        }
        Ok(())
    }

    /// The last index, once what was acknowledged before is applied here: an append through this member may be answered
    /// before that, and a member that has just started may have forgotten what it had applied.
    async fn caught_up(&self) -> Result<Index, Error> {
        let handle = self.0.shared.handle();
        match handle.read_point(Consistency::Linearizable, Instant::now() + PATIENCE).await {
            Ok(last) => Ok(last),
            Err(error) => match handle.status().await?.status.state {
                MemberState::Joining | MemberState::Recovering => Err(Error::Behind),
                _ => Err(error.into()),
            },
        }
    }

    /// Begins to take a state in. `announced` is its length and digest, if they are known; `offset` bytes of it
    /// stand here already.
    ///
    /// # Errors
    /// Where it could not be saved: nothing is kept.
    pub async fn begin(
        &self,
        index: Index,
        announced: Option<(u64, Digest)>,
        offset: u64,
    ) -> Result<Saving, Error> {
        let permit = self.0.saves.clone().try_acquire_owned().map_err(|_| Error::Busy)?;
        let announced = announced.map(|(length, digest)| Checkpoint { index, length, digest });
        self.judge(index, announced.map(|announced| announced.digest)).await?;
        let mut saving = Saving {
            checkpoints: self.clone(),
            index,
            announced,
            writing: None,
            claim: None,
            length: offset,
            _permit: permit,
        };
        let this = self.clone();
        let Some(announced) = announced else {
            if offset != 0 {
                return Err(Error::Offset { standing: 0 });
            }
            saving.writing = Some(blocking(move || this.0.store.begin()).await?);
            return Ok(saving);
        };
        let claim = self.0.store.claim(Name::of(&announced)).await;
        saving.claim = Some(claim.clone());
        let writing = blocking(move || {
            let store = &this.0.store;
            match this.held(&announced).map_err(|error| store.failed(error))? {
                Some(_) => Ok(None),
                None => store.resume(&announced, claim).map(Some),
            }
        });
        saving.writing = writing.await?;
        match saving.writing.as_ref().map(Writing::length) {
            Some(standing) if standing != offset => Err(Error::Offset { standing }),
            _ => Ok(saving),
        }
    }

    /// A peer asks that this member has a checkpoint. Returns when it is durable.
    pub(super) async fn hold(&self, checkpoint: Checkpoint, from: MemberId) -> Result<(), Error> {
        let named = self.application().await?.checkpoints;
        if let Some(newest) = named.last()
            && checkpoint.index < newest.index
            && !named.contains(&checkpoint)
        {
            return Err(Error::Superseded { newest: newest.index });
        }
        self.obtain(checkpoint, Some(from)).await
    }

    /// Lets `member` have a checkpoint that is here; tries until it has.
    async fn let_have(&self, checkpoint: Checkpoint, member: MemberId) -> MemberId {
        let mut pause = FIRST_PAUSE;
        let mut told = None;
        loop {
            let asking = async {
                let between = self.between(member).map_err(|e| Status::failed_precondition(e.to_string()))?;
                let request =
                    HoldCheckpointRequest { between: Some(between), checkpoint: Some(out(&checkpoint)) };
                self.peer(member).await?.hold(request).await
            };
            match asking.await {
                Ok(_) => return member,
                Err(status) => {
                    let why = status.message().to_owned();
                    if told.as_ref() != Some(&why) {
                        tracing::info!(%member, why, index = checkpoint.index.0, "a member does not have the checkpoint yet");
                        told = Some(why);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits until a quorum of the newest configuration has the checkpoint on disk; gives that configuration.
    async fn replicate(
        &self,
        checkpoint: Checkpoint,
        holders: &mut BTreeSet<MemberId>,
    ) -> Result<Configuration, Error> {
        let mut asking = FuturesUnordered::new();
        let mut asked = BTreeSet::new();
        let shared = self.0.shared.clone();
        loop {
            // A newer one may come meanwhile: then others have no use for this one.
            self.judge(checkpoint.index, Some(checkpoint.digest)).await?;
            let configuration = self.application().await?.configuration.ok_or(Error::NotActive)?;
            if configuration.has_quorum(holders) {
                return Ok(configuration);
            }
            // Learners, too: they may vote before long.
            for member in configuration.members.keys().filter(|member| !holders.contains(member)) {
                if asked.insert(*member) {
                    asking.push(self.let_have(checkpoint, *member));
                }
            }
            tokio::select! {
                Some(member) = asking.next() => drop(holders.insert(member)),
                () = tokio::time::sleep(LOOK) => {}
                () = shared.stopped() => return Err(Error::Stopping),
            }
        }
    }

    /// Lets the log name a checkpoint, if it does not yet.
    async fn name(&self, checkpoint: Checkpoint) -> Result<(), Error> {
        if self.application().await?.checkpoints.contains(&checkpoint) {
            return Ok(());
        }
        let handle = self.0.shared.handle();
        tokio::select! {
            named = handle.call_and_wait(Operation::SaveCheckpoint(checkpoint), None) => named?,
            () = self.0.shared.stopped() => return Err(Unanswered::Refused(Refusal::OutcomeUnknown).into()),
        };
        Ok(())
    }

    /// Everything is on this disk: lets a quorum have it, then lets the log name it.
    async fn publish(&self, checkpoint: Checkpoint) -> Result<(), Error> {
        let mut holders = BTreeSet::from([self.me()]);
        let counted = self.replicate(checkpoint, &mut holders).await?;
        self.name(checkpoint).await?;
        // Where the members changed meanwhile, those of now are the ones that must have it.
        match self.replicate(checkpoint, &mut holders).await {
            Ok(now) if now.version == counted.version => {}
            Ok(now) => {
                tracing::info!(version = now.version, "the members changed while a checkpoint was saved");
            }
            // It was named; since then others were.
            Err(Error::Superseded { .. }) => {}
            Err(error) => return Err(error),
        }
        self.0.metrics.checkpoints_saved.inc();
        self.0.wake.notify_one();
        Ok(())
    }
}

impl Saving {
    /// Adds the next bytes; waits for the disk.
    ///
    /// # Errors
    /// Where they cannot be kept; what stood before may still be gone on with, but for [`Error::Full`].
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Error> {
        debug_assert!(bytes.len() <= CHUNK_BYTES, "the server checks a chunk's length");
        self.length += bytes.len() as u64;
        if let Some(writing) = self.writing.take() {
            let bound = self.announced.map_or(u64::MAX, |announced| announced.length);
            self.writing = Some(self.checkpoints.push(writing, bytes, bound).await?);
        }
        Ok(())
    }

    /// All bytes came: `length` of them, with this digest if the caller knows it. Returns when a quorum has the
    /// state and the log names it.
    ///
    /// # Errors
    /// Where the state is not what was announced, nothing of it is kept. Otherwise it stays, and saving it again
    /// sends no byte twice.
    pub async fn finish(mut self, length: u64, digest: Option<Digest>) -> Result<Checkpoint, Error> {
        let announced = self.announced;
        let fits = |checkpoint: &Checkpoint| {
            checkpoint.length == length
                && digest.is_none_or(|digest| digest == checkpoint.digest)
                && announced.is_none_or(|announced| announced == *checkpoint)
        };
        let checkpoint = match self.writing.take() {
            None => announced.ok_or(Error::Unknown)?,
            Some(writing) => {
                let checkpoint =
                    Checkpoint { index: self.index, length: writing.length(), digest: writing.digest() };
                if !fits(&checkpoint) {
                    blocking(move || writing.discard()).await;
                    return Err(Error::Mismatch);
                }
                if self.claim.is_none() {
                    self.claim = Some(self.checkpoints.0.store.claim(Name::of(&checkpoint)).await);
                }
                self.checkpoints.settle(writing, &checkpoint).await?;
                checkpoint
            }
        };
        if !fits(&checkpoint) {
            return Err(Error::Mismatch);
        }
        self.checkpoints.0.store.expect(&checkpoint);
        // Peers may be pulling it from here, and others may be saving the same state.
        self.claim = None;
        self.checkpoints.publish(checkpoint).await?;
        Ok(checkpoint)
    }
}

impl std::fmt::Debug for Saving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saving")
            .field("index", &self.index)
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}
