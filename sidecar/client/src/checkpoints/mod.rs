//! Checkpoints: the application's state at an index, in and out.

mod fetched;

pub use fetched::Fetched;

use crate::error::{CallError, CheckpointError, failed};
use crate::retry::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::{Client, Consistency, retry};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::future::Future;
use std::io::SeekFrom;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use synod_proto::v1::checkpoints_client::CheckpointsClient;
use synod_proto::v1::save_checkpoint_request::Part;
use synod_proto::v1::{
    self, FetchCheckpointRequest, FetchCheckpointResponse, ListCheckpointsRequest, Reason, ResumeRequest,
    SaveBegin, SaveCheckpointRequest, SaveFinish,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

/// How long a transfer may stand still by default.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of one message; the member takes up to 1 MiB.
const CHUNK: usize = 512 << 10;
/// A chunk and what stands around it.
const LARGEST_MESSAGE: usize = 2 << 20;
/// What a member takes, checks and hands on a second at the least, in bytes: a large state may take its time.
const SLOWEST: u64 = 8 << 20;
/// A transfer may stand still for no longer: more than the clock can add is not an error.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);
/// How often a state is sent anew that arrived as another: a member's crash may have spoilt the part that it kept.
const MISMATCHES: u32 = 2;

/// A state that was saved.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every entry up to it is in the state.
    pub index: u64,
    /// Bytes of the state.
    pub length: u64,
    /// SHA-256 of the state.
    pub digest: [u8; 32],
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest: String = self.digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        write!(f, "checkpoint at {} ({} bytes, {digest})", self.index, self.length)
    }
}

/// A checkpoint of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedCheckpoint {
    /// Which.
    pub checkpoint: Checkpoint,
    /// It is on the disk of the member that was asked; otherwise it gets it from another.
    pub here: bool,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The state's digest is computed: so many bytes are read.
    Read(u64),
    /// So many bytes of the state are sent, or stood at the member already.
    Sent(u64),
    /// Everything is sent; a quorum is to have it on disk.
    Replicating,
    /// So many bytes of the state are here.
    Fetched(u64),
}

type Observer = Arc<dyn Fn(Progress) + Send + Sync>;

/// Checkpoints: the application's state at an index, kept by every member beside the log. The log may then be trimmed
/// up to the newest one, and never past it: whoever starts anew fetches that state and reads on behind its index.
///
/// ```no_run
/// # async fn example(log: synod_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// // At the start: the newest state, then what was appended since.
/// let checkpoints = log.checkpoints();
/// let (mut state, mut from) = (Vec::new(), 1);
/// if let Some(fetched) = checkpoints.fetch_newest().await? {
///     from = fetched.checkpoint().index + 1;
///     fetched.copy_to(&mut state).await?;
/// }
/// let entries = log.subscribe(from);
/// // Now and then: the state with every entry up to 4711 in it.
/// checkpoints.save(4711, std::io::Cursor::new(state)).await?;
/// # Ok(())
/// # }
/// ```
///
/// What is cut goes on where it broke off, until no byte has moved for [`Checkpoints::timeout`].
#[derive(Clone)]
pub struct Checkpoints {
    client: Client,
    timeout: Duration,
    consistency: Consistency,
    observer: Observer,
}

impl fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoints").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Client {
    /// Checkpoints: the application's state at an index, in and out.
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints {
            client: self.clone(),
            timeout: PATIENCE,
            consistency: Consistency::Linearizable,
            observer: Arc::new(|_| {}),
        }
    }
}

fn out(checkpoint: &Checkpoint) -> v1::Checkpoint {
    let Checkpoint { index, length, digest } = *checkpoint;
    v1::Checkpoint { index, length, digest: Bytes::copy_from_slice(&digest) }
}

fn checkpoint(wire: Option<v1::Checkpoint>) -> Result<Checkpoint, CallError> {
    let named = wire.and_then(|v1::Checkpoint { index, length, digest }| {
        Some(Checkpoint { index, length, digest: digest.as_ref().try_into().ok()? })
    });
    named.ok_or_else(|| CallError::local(Reason::Internal, "the member named no checkpoint"))
}

/// When something last moved, and how long it may stand still.
struct Patience {
    /// And the bytes of the state, as far as they are known.
    moved: Mutex<(Instant, u64)>,
    span: Duration,
}

impl Patience {
    fn new(span: Duration) -> Patience {
        Patience { moved: Mutex::new((Instant::now(), 0)), span }
    }

    fn moved(&self) -> MutexGuard<'_, (Instant, u64)> {
        // Nothing can panic under this lock: it guards single assignments.
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) {
        self.moved().0 = Instant::now();
    }

    /// The state has so many bytes: a part that stands is read through before more is taken, and when all is sent
    /// other members get it.
    fn note_length(&self, length: u64) {
        *self.moved() = (Instant::now(), length);
    }

    fn end(&self) -> Instant {
        let (moved, length) = *self.moved();
        moved + self.span.min(LONGEST) + Duration::from_secs(length / SLOWEST)
    }

    /// Carries out `work`, unless nothing moves for too long.
    async fn bound<T, E: From<CallError>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let stuck = async {
            while Instant::now() < self.end() {
                tokio::time::sleep_until(self.end()).await;
            }
        };
        tokio::select! {
            done = work => done,
            () = stuck => {
                let message = "nothing moved for too long: is a quorum of members up, with room on their disks?";
                Err(CallError::local(Reason::Stalled, message).into())
            }
        }
    }
}

impl Checkpoints {
    /// How long a transfer may stand still, two minutes where nothing is said, and a second for each 8 MiB of the state
    /// more: for the wait until a quorum has it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Checkpoints {
        self.timeout = timeout;
        self
    }

    /// How fresh [`Checkpoints::list`] and the fetches are; linearizable where nothing is said. With
    /// [`Consistency::Sequential`] they work on a member that is cut off.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Checkpoints {
        self.consistency = consistency;
        self
    }

    /// Tells how far a transfer is.
    #[must_use]
    pub fn observe(mut self, observer: impl Fn(Progress) + Send + Sync + 'static) -> Checkpoints {
        self.observer = Arc::new(observer);
        self
    }

    fn service(&self) -> CheckpointsClient<Channel> {
        CheckpointsClient::new(self.client.channels.states.clone()).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// Saves a state that holds every entry up to `index`, which this client has read. Returns when a quorum of members
    /// has it on disk and the log names it. The state is read twice: for its digest, then to send it; it must not
    /// change meanwhile. Saving the same state again does no harm, and sends nothing that is there already.
    ///
    /// # Errors
    /// `beyond-tail` where the member has not applied `index`, `superseded` where there is a newer checkpoint,
    /// `disk-full`; see [`CheckpointError`].
    pub async fn save<R>(&self, index: u64, mut state: R) -> Result<Checkpoint, CheckpointError>
    where
        R: AsyncRead + AsyncSeek + Unpin,
    {
        let mut digest = Sha256::new();
        let mut length = 0;
        let mut buffer = vec![0; CHUNK];
        state.seek(SeekFrom::Start(0)).await?;
        loop {
            let count = state.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            digest.update(&buffer[..count]);
            length += count as u64;
            (self.observer)(Progress::Read(length));
        }
        let wanted = Checkpoint { index, length, digest: digest.finalize().into() };
        let patience = Patience::new(self.timeout);
        patience.note_length(length);
        let (mut pause, mut mismatches) = (FIRST_PAUSE, 0);
        loop {
            let error = match patience.bound(self.send(&wanted, &mut state, &patience)).await {
                Err(CheckpointError::Call(error)) => error,
                done => return done,
            };
            mismatches += u32::from(error.reason == Reason::Mismatch);
            if !self.goes_on(&error, &patience, &mut pause, mismatches).await {
                return Err(error.into());
            }
        }
    }

    /// Saves a state that can be read once only, as it comes. What is cut cannot go on and must be saved anew;
    /// otherwise as [`Checkpoints::save`].
    ///
    /// # Errors
    /// See [`Checkpoints::save`].
    pub async fn save_stream<R>(&self, index: u64, mut state: R) -> Result<Checkpoint, CheckpointError>
    where
        R: AsyncRead + Unpin,
    {
        let patience = Patience::new(self.timeout);
        let mut whole = None;
        let begin = SaveBegin { index, length: None, digest: Bytes::new(), offset: 0 };
        let sent = patience.bound(self.stream(begin, &mut state, &patience, &mut whole)).await;
        let mut error = match sent {
            Err(CheckpointError::Call(error)) => error,
            done => return done,
        };
        // It may be there as a whole, though the answer was lost.
        let mut pause = FIRST_PAUSE;
        while let Some(wanted) = whole {
            if !self.goes_on(&error, &patience, &mut pause, 0).await {
                break;
            }
            if self.standing(&wanted).await.is_ok_and(|standing| standing < wanted.length) {
                break;
            }
            match patience.bound(self.send(&wanted, &mut std::io::Cursor::new([]), &patience)).await {
                Err(CheckpointError::Call(again)) => error = again,
                done => return done,
            }
        }
        Err(error.into())
    }

    /// Whether to try again; waits a little first.
    async fn goes_on(
        &self,
        error: &CallError,
        patience: &Patience,
        pause: &mut Duration,
        mismatches: u32,
    ) -> bool {
        let wait = error.retry_after.unwrap_or(*pause);
        let hopeless =
            !error.is_resumable() || error.reason == Reason::Stalled && Instant::now() >= patience.end();
        if hopeless || mismatches > MISMATCHES || Instant::now() + wait >= patience.end() {
            return false;
        }
        tokio::time::sleep(wait).await;
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        true
    }

    async fn standing(&self, wanted: &Checkpoint) -> Result<u64, CallError> {
        let request = ResumeRequest { checkpoint: Some(out(wanted)) };
        Ok(self.service().resume(request).await.map_err(failed)?.into_inner().bytes)
    }

    /// Sends what the member lacks.
    async fn send<R>(
        &self,
        wanted: &Checkpoint,
        state: &mut R,
        patience: &Patience,
    ) -> Result<Checkpoint, CheckpointError>
    where
        R: AsyncRead + AsyncSeek + Unpin,
    {
        let offset = self.standing(wanted).await?;
        state.seek(SeekFrom::Start(offset)).await?;
        let Checkpoint { index, length, digest } = *wanted;
        let begin =
            SaveBegin { index, length: Some(length), digest: Bytes::copy_from_slice(&digest), offset };
        self.stream(begin, state, patience, &mut Some(*wanted)).await
    }

    /// One Save. `whole` is what it is about, once that is known.
    async fn stream<R>(
        &self,
        begin: SaveBegin,
        state: &mut R,
        patience: &Patience,
        whole: &mut Option<Checkpoint>,
    ) -> Result<Checkpoint, CheckpointError>
    where
        R: AsyncRead + Unpin,
    {
        let (parts, queue) = mpsc::channel(2);
        let feed = self.feed(begin, state, patience, whole, parts);
        let mut service = self.service();
        let call = service.save(ReceiverStream::new(queue));
        tokio::pin!(feed, call);
        let answer = tokio::select! {
            answer = &mut call => answer,
            fed = &mut feed => {
                fed?;
                call.await
            }
        };
        Ok(checkpoint(answer.map_err(failed)?.into_inner().checkpoint)?)
    }

    async fn feed<R>(
        &self,
        begin: SaveBegin,
        state: &mut R,
        patience: &Patience,
        whole: &mut Option<Checkpoint>,
        parts: mpsc::Sender<SaveCheckpointRequest>,
    ) -> Result<(), CheckpointError>
    where
        R: AsyncRead + Unpin,
    {
        // Where nobody takes parts any more, the call's answer says why.
        let say = |part| parts.send(SaveCheckpointRequest { part: Some(part) });
        let (index, mut length, mut digest) = (begin.index, begin.offset, Sha256::new());
        if say(Part::Begin(begin)).await.is_err() {
            return Ok(());
        }
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK);
            while chunk.len() < CHUNK && state.read_buf(&mut chunk).await? > 0 {}
            if chunk.is_empty() {
                break;
            }
            digest.update(&chunk);
            length += chunk.len() as u64;
            if say(Part::Chunk(chunk.freeze())).await.is_err() {
                return Ok(());
            }
            patience.note();
            (self.observer)(Progress::Sent(length));
        }
        let whole =
            whole.get_or_insert_with(|| Checkpoint { index, length, digest: digest.finalize().into() });
        let digest = Bytes::copy_from_slice(&whole.digest);
        // Where the state is shorter than it was when its digest was computed, the member refuses it.
        drop(say(Part::Finish(SaveFinish { length: whole.length, digest })).await);
        patience.note_length(length);
        (self.observer)(Progress::Replicating);
        Ok(())
    }

    /// The checkpoints that the log names, ascending by index.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list(&self) -> Result<Vec<ListedCheckpoint>, CallError> {
        let service = self.service();
        let call = |request| {
            let mut service = service.clone();
            async move { service.list(request).await }
        };
        let request = ListCheckpointsRequest { consistency: self.consistency.to_wire(&self.client.seen) };
        let list = retry::until_answered(self.timeout, request, call).await?;
        let listed = list.checkpoints.into_iter().map(|listed| {
            Ok(ListedCheckpoint { checkpoint: checkpoint(listed.checkpoint)?, here: listed.here })
        });
        listed.collect()
    }

    /// The newest state; `None` where none was saved yet.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn fetch_newest(&self) -> Result<Option<Fetched>, CallError> {
        match self.fetch(None).await {
            Ok(fetched) => Ok(Some(fetched)),
            Err(error) if error.reason == Reason::NoCheckpoint => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The state at `index`, or the newest.
    ///
    /// # Errors
    /// `no-checkpoint` where there is none; see [`CallError`].
    pub async fn fetch(&self, index: Option<u64>) -> Result<Fetched, CallError> {
        let patience = Patience::new(self.timeout);
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match patience.bound(self.open(index, Bytes::new(), 0)).await {
                Ok((checkpoint, chunks)) => {
                    return Ok(Fetched::new(self.clone(), checkpoint, chunks, patience));
                }
                Err(error) => error,
            };
            if !self.goes_on(&error, &patience, &mut pause, 0).await {
                return Err(error);
            }
        }
    }

    async fn open(
        &self,
        index: Option<u64>,
        digest: Bytes,
        offset: u64,
    ) -> Result<(Checkpoint, Streaming<FetchCheckpointResponse>), CallError> {
        let consistency = self.consistency.to_wire(&self.client.seen);
        let request = FetchCheckpointRequest { index, digest, offset, consistency };
        let mut chunks = self.service().fetch(request).await.map_err(failed)?.into_inner();
        let head = chunks.message().await.map_err(failed)?.and_then(|head| head.checkpoint);
        Ok((checkpoint(head)?, chunks))
    }
}
