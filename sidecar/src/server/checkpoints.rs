//! The checkpoints service on the socket.

use super::explained::{self, Explained};
use super::paced::{self, paced};
use super::{deadline, failure, freshness};
use crate::checkpoints::{CHUNK_BYTES, Checkpoints as Kept, Error, Saving, named, out};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::{Digest, Index};
use synod_proto::v1::checkpoints_server::{Checkpoints, CheckpointsServer};
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{
    Failure, FetchCheckpointRequest, FetchCheckpointResponse, ListCheckpointsRequest,
    ListCheckpointsResponse, ListedCheckpoint, Reason, ResumeRequest, ResumeResponse, SaveBegin,
    SaveCheckpointRequest, SaveCheckpointResponse, SaveFinish,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

/// The largest message that is read: a chunk within its bound, and more, so that what is beyond is told apart.
const LARGEST_MESSAGE: usize = 2 << 20;
/// Fetches that one member serves at a time.
const FETCHES: usize = 64;
/// How long a caller may take for the next part of a state.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// When a client should try again where too many transfers are under way.
const RETRY: Duration = Duration::from_millis(500);

/// The service behind one member's socket.
#[derive(Clone)]
pub struct CheckpointsService {
    kept: Kept,
    fetches: Arc<Semaphore>,
}

impl CheckpointsService {
    /// What is kept.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The service, for a router.
    pub fn server(kept: Kept) -> Explained<CheckpointsServer<CheckpointsService>> {
        let shared = kept.shared().clone();
        let service = CheckpointsServer::new(CheckpointsService::new(kept));
        Explained::new(service.max_decoding_message_size(LARGEST_MESSAGE), shared)
    }

    /// The service itself, for callers in this process.
    pub(super) fn new(kept: Kept) -> CheckpointsService {
        CheckpointsService { kept, fetches: Arc::new(Semaphore::new(FETCHES)) }
    }

    pub(super) async fn begin(&self, begin: SaveBegin) -> Result<Saving, Status> {
        let SaveBegin { index, length, digest, offset } = begin;
        let announced = match (length, maybe_digest(&digest)?) {
            (Some(length), Some(digest)) => Some((length, digest)),
            (None, None) => None,
            _ => return Err(invalid("give the length and the digest of the state, or neither")),
        };
        self.kept.begin(Index(index), announced, offset).await.map_err(|error| refused(&error))
    }
}

type Chunks = Pin<Box<dyn Stream<Item = Result<FetchCheckpointResponse, Status>> + Send>>;

fn invalid(message: &str) -> Status {
    failure::status(failure::refused(Reason::Invalid, message))
}

/// SHA-256, if the caller gave one.
fn maybe_digest(bytes: &[u8]) -> Result<Option<Digest>, Status> {
    match bytes {
        [] => Ok(None),
        _ => match bytes.try_into() {
            Ok(digest) => Ok(Some(Digest(digest))),
            Err(_) => Err(invalid("a digest is a SHA-256: 32 bytes")),
        },
    }
}

fn failed(error: &Error) -> Failure {
    let plain = |reason| failure::refused(reason, error);
    match error {
        Error::Full { .. } => plain(Reason::DiskFull),
        Error::Disk { .. } => plain(Reason::Disk),
        Error::Mismatch => plain(Reason::Mismatch),
        Error::Offset { .. } => plain(Reason::Offset),
        Error::BeyondTail { tail } => Failure { tail: Some(tail.0), ..plain(Reason::BeyondTail) },
        Error::Compacted { first } => failure::compacted(*first, None),
        Error::Superseded { newest } => Failure { checkpoint: Some(newest.0), ..plain(Reason::Superseded) },
        Error::Busy => plain(Reason::Backpressure).retry_after(RETRY),
        Error::Unknown => plain(Reason::NoCheckpoint),
        Error::Behind => plain(Reason::Behind).retry_after(RETRY),
        Error::NobodyHasIt(_) => plain(Reason::NoSource),
        Error::Unanswered(error) => failure::unanswered(error),
        Error::NotActive => plain(Reason::NotActive),
        Error::Stopping => failure::stopping(),
    }
}

pub(super) fn refused(error: &Error) -> Status {
    if matches!(error, Error::Disk { .. }) {
        tracing::error!(%error, "a checkpoint cannot be kept");
    }
    failure::status(failed(error))
}

/// The rest of a state does not come.
pub(super) fn stalled() -> Status {
    let message = format!("no part of the state came for {} s: go on with another call", PATIENCE.as_secs());
    failure::status(failure::refused(Reason::Stalled, message))
}

/// The next part of a state.
async fn next(parts: &mut Streaming<SaveCheckpointRequest>) -> Result<Part, Status> {
    let part = tokio::time::timeout(PATIENCE, parts.message()).await.map_err(|_| stalled())?;
    let part = part.map_err(|status| explained::explain(&status).unwrap_or(status))?;
    let part = part.ok_or_else(|| invalid("the stream ended without `finish`: nothing was saved"))?;
    part.part.ok_or_else(|| invalid("a message holds no part"))
}

#[tonic::async_trait]
impl Checkpoints for CheckpointsService {
    type FetchStream = Chunks;

    async fn save(
        &self,
        request: Request<Streaming<SaveCheckpointRequest>>,
    ) -> Result<Response<SaveCheckpointResponse>, Status> {
        let mut parts = request.into_inner();
        let shared = self.kept.shared().clone();
        let saving = async {
            let Part::Begin(begin) = next(&mut parts).await? else {
                return Err(invalid("the first message is `begin`"));
            };
            let mut saving = self.begin(begin).await?;
            loop {
                match next(&mut parts).await? {
                    Part::Begin(_) => return Err(invalid("`begin` is the first message only")),
                    Part::Chunk(chunk) if chunk.len() > CHUNK_BYTES => {
                        let message = format!("a chunk has at most {CHUNK_BYTES} bytes, not {}", chunk.len());
                        let failure = failure::refused(Reason::ChunkTooLarge, message);
                        return Err(failure::status(failure));
                    }
                    Part::Chunk(chunk) => saving.push(chunk).await.map_err(|error| refused(&error))?,
                    Part::Finish(SaveFinish { length, digest }) => {
                        let digest = maybe_digest(&digest)?;
                        let saved = saving.finish(length, digest).await;
                        return saved.map_err(|error| refused(&error));
                    }
                }
            }
        };
        let saved = tokio::select! {
            saved = saving => saved?,
            () = shared.stopped() => return Err(failure::status(failure::stopping())),
        };
        Ok(Response::new(SaveCheckpointResponse { checkpoint: Some(out(&saved)) }))
    }

    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let Some(checkpoint) = named(request.into_inner().checkpoint) else {
            return Err(invalid("name the state by its index, length and SHA-256"));
        };
        let bytes = self.kept.standing(&checkpoint);
        Ok(Response::new(ResumeResponse { bytes }))
    }

    async fn fetch(&self, request: Request<FetchCheckpointRequest>) -> Result<Response<Chunks>, Status> {
        let deadline = deadline::of(request.metadata());
        let FetchCheckpointRequest { index, digest, offset, consistency } = request.into_inner();
        let digest = maybe_digest(&digest)?;
        let permit = self.fetches.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{FETCHES} checkpoints are being fetched here already: try again later");
            let failure = failure::refused(Reason::Backpressure, message);
            failure::status(failure.retry_after(RETRY))
        })?;
        let index = index.map(Index);
        let fresh = || freshness::point(self.kept.shared(), consistency, deadline);
        let found = match digest {
            None => {
                fresh().await?;
                self.kept.named(index, None).await
            }
            // Whoever goes on with a state needs no fresh view to name it; a member that has just started may not
            // have applied yet what it gave out before.
            Some(_) => match self.kept.named(index, digest).await {
                Err(Error::Unknown) => match fresh().await {
                    Ok(_) => self.kept.named(index, digest).await,
                    Err(_) => Err(Error::Behind),
                },
                found => found,
            },
        };
        let found = found.map_err(|error| refused(&error))?;
        if offset > found.length {
            return Err(invalid("the offset is behind the end of the state"));
        }
        let head = FetchCheckpointResponse { checkpoint: Some(out(&found)), chunk: Bytes::new() };
        let chunks = self.kept.read(found, offset).map(move |chunk| {
            // Counts until the last chunk is given.
            let _permit = &permit;
            let chunk = chunk.map_err(|error| refused(&error))?;
            Ok(FetchCheckpointResponse { checkpoint: None, chunk })
        });
        let stopped = {
            let shared = self.kept.shared().clone();
            async move { shared.stopped().await }
        };
        let chunks = futures::stream::iter([Ok(head)]).chain(chunks.take_until(stopped));
        let slow = |_: &FetchCheckpointResponse| {
            let message = "this reader took nothing for a minute: fetch again, from the offset that it has";
            failure::refused(Reason::SlowReader, message)
        };
        Ok(Response::new(Box::pin(paced(chunks, paced::PATIENCE, slow))))
    }

    async fn list(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let consistency = request.into_inner().consistency;
        freshness::point(self.kept.shared(), consistency, deadline).await?;
        let listed = self.kept.list().await.map_err(|error| refused(&error))?;
        let listed = listed
            .iter()
            .map(|listed| ListedCheckpoint { checkpoint: Some(out(&listed.checkpoint)), here: listed.here });
        Ok(Response::new(ListCheckpointsResponse { checkpoints: listed.collect() }))
    }
}
