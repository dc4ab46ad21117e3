//! A state on its way out.

use super::{Checkpoint, Checkpoints, Patience, Progress};
use crate::error::{CallError, CheckpointError, failed};
use crate::retry::FIRST_PAUSE;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::time::Duration;
use synod_proto::v1::{FetchCheckpointResponse, Reason};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tonic::Streaming;

/// A state on its way out.
pub struct Fetched {
    checkpoints: Checkpoints,
    checkpoint: Checkpoint,
    chunks: Option<Streaming<FetchCheckpointResponse>>,
    digest: Sha256,
    offset: u64,
    pause: Duration,
    patience: Patience,
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetched").field("checkpoint", &self.checkpoint).finish_non_exhaustive()
    }
}

impl Fetched {
    pub(super) fn new(
        checkpoints: Checkpoints,
        checkpoint: Checkpoint,
        chunks: Streaming<FetchCheckpointResponse>,
        patience: Patience,
    ) -> Fetched {
        let (chunks, digest) = (Some(chunks), Sha256::new());
        Fetched { checkpoints, checkpoint, chunks, digest, offset: 0, pause: FIRST_PAUSE, patience }
    }

    /// Which state it is.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// The next bytes of the state; `None` at its end. The last bytes come only if the whole has the digest that the log
    /// names. What is cut goes on where it broke off.
    ///
    /// # Errors
    /// `no-source` where no member that can be reached has the state; see [`CallError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CallError> {
        while self.offset < self.checkpoint.length {
            let error = match self.advance().await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => error,
            };
            self.chunks = None;
            let patience = &self.patience;
            if !self.checkpoints.goes_on(&error, patience, &mut self.pause, 0).await {
                return Err(error);
            }
        }
        Ok(None)
    }

    async fn advance(&mut self) -> Result<Bytes, CallError> {
        let Checkpoint { index, length, digest } = self.checkpoint;
        let chunk = self.patience.bound(async {
            if self.chunks.is_none() {
                let digest = Bytes::copy_from_slice(&digest);
                self.chunks = Some(self.checkpoints.open(Some(index), digest, self.offset).await?.1);
            }
            match &mut self.chunks {
                Some(chunks) => chunks.message().await.map_err(failed),
                None => Ok(None),
            }
        });
        let chunk = chunk.await?.map(|message| message.chunk).unwrap_or_default();
        if chunk.is_empty() {
            return Err(CallError::local(Reason::Transport, "the stream ended before the state"));
        }
        self.digest.update(&chunk);
        self.offset += chunk.len() as u64;
        self.patience.note();
        self.pause = FIRST_PAUSE;
        let ended = self.offset >= length;
        if ended && (self.offset > length || self.digest.clone().finalize() != digest) {
            let message = "the bytes that came do not have the digest that the log names: fetch it anew";
            return Err(CallError::local(Reason::Damaged, message));
        }
        (self.checkpoints.observer)(Progress::Fetched(self.offset));
        Ok(chunk)
    }

    /// Writes the whole state to `target` and flushes it.
    ///
    /// # Errors
    /// See [`Fetched::chunk`] and [`CheckpointError`].
    pub async fn copy_to<W>(mut self, target: &mut W) -> Result<Checkpoint, CheckpointError>
    where
        W: AsyncWrite + Unpin,
    {
        while let Some(chunk) = self.chunk().await? {
            target.write_all(&chunk).await?;
        }
        target.flush().await?;
        Ok(self.checkpoint)
    }

    /// The state as a stream of chunks, which ends with the first error.
    pub fn into_stream(self) -> impl futures::Stream<Item = Result<Bytes, CallError>> + Send {
        futures::stream::try_unfold(self, |mut fetched| async move {
            let chunk = fetched.chunk().await?;
            Ok(chunk.map(|chunk| (chunk, fetched)))
        })
    }
}
