//! Getting a checkpoint from a peer that has it: onto this disk, or through to a client.

use super::file::{Name, Writing};
use super::store::Claim;
use super::{Checkpoints, Error, Local, blocking, out};
use bytes::Bytes;
use futures::Stream;
use std::time::Duration;
use synod_paxos::MemberId;
use synod_paxos::value::Checkpoint;
use synod_proto::formerly::{Either, PeerCheckpointsClient};
use synod_proto::peer::v1::{Between, CheckpointChunk, ReadCheckpointRequest};
use tonic::{Status, Streaming};
use xxhash_rust::xxh3::xxh3_64;

/// How long a peer may take for the next bytes; its rate is bounded, but not so low.
const PATIENCE: Duration = Duration::from_secs(15);

impl Checkpoints {
    /// The head of each message between members.
    pub(super) fn between(&self, to: MemberId) -> Result<Between, Error> {
        let identity = self.0.shared.identity().borrow().clone();
        let (cluster, _) = identity.cluster.ok_or(Error::NotActive)?;
        Ok(Between { cluster_id: Bytes::copy_from_slice(&cluster.0), from: identity.member.0, to: to.0 })
    }

    /// A connection to `peer`, of its own: what is large must not make a heartbeat wait.
    pub(super) async fn peer(&self, peer: MemberId) -> Result<PeerCheckpointsClient, Status> {
        let channel = self.0.context.channel(peer).await?;
        Ok(PeerCheckpointsClient::new(Either::new(channel)))
    }

    /// Those that may have a checkpoint and can be reached: `first`, then the others, the leader last, because it has
    /// the most to do.
    fn sources(&self, first: Option<MemberId>, leader: Option<MemberId>) -> Vec<MemberId> {
        let mut others = self.0.context.linked_members();
        others.retain(|member| Some(*member) != first);
        others.sort_by_key(|member| Some(*member) == leader);
        first.into_iter().chain(others).collect()
    }

    async fn leader(&self) -> Option<MemberId> {
        let report = self.0.shared.handle().status().await.ok()?;
        report.status.leader.map(|ballot| ballot.member)
    }

    /// Opens a peer's copy.
    async fn open_at(
        &self,
        peer: MemberId,
        checkpoint: &Checkpoint,
        offset: u64,
    ) -> Result<Streaming<CheckpointChunk>, Status> {
        let between = self.between(peer).map_err(|error| Status::failed_precondition(error.to_string()))?;
        let request =
            ReadCheckpointRequest { between: Some(between), checkpoint: Some(out(checkpoint)), offset };
        let opening = async { Ok(self.peer(peer).await?.read(request).await?.into_inner()) };
        tokio::time::timeout(PATIENCE, opening)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("it did not answer in time")))
    }

    /// Puts the checkpoint on this disk, if it is not there: from `first` or from whoever has it. What a cut leaves
    /// is gone on with. Returns when it is durable.
    pub(super) async fn obtain(&self, checkpoint: Checkpoint, first: Option<MemberId>) -> Result<(), Error> {
        let claim = self.0.store.claim(Name::of(&checkpoint)).await;
        self.0.store.expect(&checkpoint);
        let this = self.clone();
        let held = blocking(move || this.held(&checkpoint)).await;
        if held.map_err(|error| self.0.store.failed(error))?.is_some() {
            return Ok(());
        }
        let leader = self.leader().await;
        let mut why = "no peer is connected".to_owned();
        for peer in self.sources(first, leader) {
            match self.pull(&checkpoint, peer, claim.clone()).await {
                Ok(()) => {
                    tracing::info!(index = checkpoint.index.0, bytes = checkpoint.length, %peer, "a checkpoint was fetched");
                    return Ok(());
                }
                Err(Pulling::Peer(status)) => why = format!("{peer}: {}", status.message()),
                Err(Pulling::Here(error)) => return Err(error),
            }
        }
        Err(Error::NobodyHasIt(why))
    }

    /// Goes on with the part that stands here, from one peer.
    async fn pull(&self, checkpoint: &Checkpoint, peer: MemberId, claim: Claim) -> Result<(), Pulling> {
        let (this, wanted) = (self.clone(), *checkpoint);
        let mut writing = blocking(move || this.0.store.resume(&wanted, claim)).await?;
        if writing.length() < checkpoint.length {
            let mut chunks = self.open_at(peer, checkpoint, writing.length()).await?;
            while let Some(bytes) = next(&mut chunks).await? {
                self.0.metrics.checkpoint_bytes_taken.inc_by(bytes.len() as u64);
                writing = self.push(writing, bytes, checkpoint.length).await?;
            }
        }
        if writing.length() < checkpoint.length {
            return Err(Status::unavailable("it ended before the checkpoint did").into());
        }
        Ok(self.settle(writing, checkpoint).await?)
    }

    /// Adds bytes to a file in the making, as far as there is room on the disk.
    pub(super) async fn push(
        &self,
        mut writing: Writing,
        bytes: Bytes,
        length: u64,
    ) -> Result<Writing, Error> {
        let this = self.clone();
        blocking(move || {
            if writing.length() + bytes.len() as u64 > length {
                writing.discard();
                return Err(Error::Mismatch);
            }
            let pushed = this.0.store.room_for(bytes.len() as u64);
            let pushed =
                pushed.and_then(|()| writing.push(&bytes).map_err(|error| this.0.store.failed(error)));
            match pushed {
                Ok(()) => Ok(writing),
                // Nothing half stays on a full disk.
                Err(error) => {
                    writing.discard();
                    Err(error)
                }
            }
        })
        .await
    }

    /// All bytes are there: it is the checkpoint and durable, or it is gone.
    pub(super) async fn settle(&self, writing: Writing, checkpoint: &Checkpoint) -> Result<(), Error> {
        let (this, wanted) = (self.clone(), *checkpoint);
        blocking(move || {
            if writing.length() != wanted.length || writing.digest() != wanted.digest {
                writing.discard();
                return Err(Error::Mismatch);
            }
            let store = &this.0.store;
            writing.finish(store.dir(), wanted.index).map_err(|error| store.failed(error))?;
            Ok(())
        })
        .await
    }

    /// The bytes of a checkpoint from `offset` on: from this disk, or else from a peer's, going on with another
    /// where one fails.
    pub fn read(
        &self,
        checkpoint: Checkpoint,
        offset: u64,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let source = Source::Unknown;
        let reading = Reading { checkpoints: self.clone(), checkpoint, offset, source };
        futures::stream::try_unfold(reading, |mut reading| async move {
            let bytes = reading.advance().await?;
            Ok(bytes.map(|bytes| (bytes, reading)))
        })
    }
}

/// Where a reader's next bytes come from.
enum Source {
    /// It begins, or the last source failed.
    Unknown,
    Here(Local),
    Peer(Streaming<CheckpointChunk>),
}

struct Reading {
    checkpoints: Checkpoints,
    checkpoint: Checkpoint,
    offset: u64,
    source: Source,
}

impl Reading {
    async fn advance(&mut self) -> Result<Option<Bytes>, Error> {
        if self.offset >= self.checkpoint.length {
            return Ok(None);
        }
        let bytes = match &mut self.source {
            Source::Here(local) => local.read(self.offset).await,
            Source::Peer(chunks) => next(chunks).await.ok().flatten(),
            Source::Unknown => None,
        };
        if let Some(bytes) = bytes.filter(|bytes| self.fits(bytes)) {
            return Ok(Some(self.given(bytes)));
        }
        self.source = Source::Unknown;
        if let Some(local) = self.checkpoints.open_here(self.checkpoint).await
            && let Some(bytes) = local.read(self.offset).await
        {
            self.source = Source::Here(local);
            return Ok(Some(self.given(bytes)));
        }
        let mut why = "no peer is connected".to_owned();
        let leader = self.checkpoints.leader().await;
        for peer in self.checkpoints.sources(None, leader) {
            let opened = async {
                let mut chunks = self.checkpoints.open_at(peer, &self.checkpoint, self.offset).await?;
                Ok::<_, Status>((next(&mut chunks).await?, chunks))
            };
            match opened.await {
                Ok((Some(bytes), chunks)) if self.fits(&bytes) => {
                    self.source = Source::Peer(chunks);
                    return Ok(Some(self.given(bytes)));
                }
                Ok(_) => why = format!("{peer} gave other bytes than were asked for"),
                Err(status) => why = format!("{peer}: {}", status.message()),
            }
        }
        Err(Error::NobodyHasIt(why))
    }

    fn fits(&self, bytes: &Bytes) -> bool {
        self.offset + bytes.len() as u64 <= self.checkpoint.length
    }

    fn given(&mut self, bytes: Bytes) -> Bytes {
        self.offset += bytes.len() as u64;
        bytes
    }
}

/// The next bytes, as they were sent.
async fn next(chunks: &mut Streaming<CheckpointChunk>) -> Result<Option<Bytes>, Status> {
    let chunk = tokio::time::timeout(PATIENCE, chunks.message()).await;
    let chunk = chunk.map_err(|_| Status::deadline_exceeded("it did not go on in time"))??;
    match chunk {
        Some(CheckpointChunk { bytes, checksum }) if xxh3_64(&bytes) == checksum && !bytes.is_empty() => {
            Ok(Some(bytes))
        }
        Some(_) => Err(Status::data_loss("what it sent fails its checksum")),
        None => Ok(None),
    }
}

enum Pulling {
    /// Another peer may be better.
    Peer(Status),
    /// No peer would be.
    Here(Error),
}

impl From<Status> for Pulling {
    fn from(status: Status) -> Self {
        Pulling::Peer(status)
    }
}

impl From<Error> for Pulling {
    fn from(error: Error) -> Self {
        match error {
            // What this peer gave is wrong, or what a crash left.
            Error::Mismatch => Pulling::Peer(Status::data_loss("what stands here does not fit the digest")),
            error => Pulling::Here(error),
        }
    }
}
