//! All tasks of an application share one append stream.
//!
//! ```text
//!  append() --Job--> pump task --AppendStreamRequest{tag}--> member
//!     ^                 |  <----AppendStreamResponse{tag}---
//!     +---- answer -----+
//! ```
//! The pump makes one attempt for each job. Trying again is [`Appender::append`]'s: only what was certainly
//! not appended, until the deadline.

use crate::error::{AppendError, CallError};
use crate::read::log;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use synod_proto::v1::{
    AppendRequest, AppendStreamRequest, AppendStreamResponse, append_stream_response::Outcome,
};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Unanswered requests of one client.
const IN_FLIGHT: usize = 4_096;
/// Their bytes: under the member's own bound for all its clients, 64 MiB.
const IN_FLIGHT_BYTES: u32 = 32 << 20;
/// How much longer than the deadline the member's own answer to it is awaited.
const GRACE: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How to append.
#[derive(Clone, Copy, Debug)]
pub struct AppendOptions {
    /// Append only if this is the log's last index (0: if the log is empty).
    pub expected_index: Option<u64>,
    /// How long to try, all attempts together. Default: 10 s.
    pub timeout: Duration,
}

impl Default for AppendOptions {
    fn default() -> Self {
        AppendOptions { expected_index: None, timeout: Duration::from_secs(10) }
    }
}

/// Where the entries stand for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The index of the first entry.
    pub first_index: u64,
    /// The index of the last entry.
    pub last_index: u64,
}

/// What one attempt came to.
enum Attempt {
    Appended(Appended),
    Failed(CallError),
    /// The request never left: trying again is safe.
    NotSent(CallError),
    /// It left, and its answer will not come.
    Lost(CallError),
}

struct Job {
    request: AppendRequest,
    deadline: Instant,
    answer: oneshot::Sender<Attempt>,
}

#[derive(Clone, Debug)]
pub(crate) struct Appender {
    jobs: mpsc::Sender<Job>,
    bytes: Arc<Semaphore>,
}

impl Appender {
    pub(crate) fn start(channel: Channel) -> Appender {
        let (jobs, queue) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(pump(channel, queue));
        Appender { jobs, bytes: Arc::new(Semaphore::new(IN_FLIGHT_BYTES as usize)) }
    }

    pub(crate) async fn append(
        &self,
        entries: Vec<Bytes>,
        options: AppendOptions,
    ) -> Result<Appended, AppendError> {
        let deadline = Instant::now() + options.timeout;
        let size = entries.iter().map(|entry| entry.len() + 64).sum::<usize>();
        let size = u32::try_from(size).unwrap_or(u32::MAX).min(IN_FLIGHT_BYTES);
        let waiting = tokio::time::timeout_at(deadline, self.bytes.acquire_many(size));
        let Ok(Ok(_permit)) = waiting.await else { return Err(AppendError::Refused(too_slow())) };
        let request = AppendRequest { entries, expected_index: options.expected_index };
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.attempt(request.clone(), deadline).await {
                Attempt::Appended(appended) => return Ok(appended),
                Attempt::Lost(error) => return Err(AppendError::Unknown(error)),
                Attempt::Failed(error) if !error.not_appended => return Err(AppendError::Unknown(error)),
                Attempt::Failed(error) => match error.tail {
                    Some(tail) if error.reason == "expected-index" => {
                        return Err(AppendError::UnexpectedIndex { tail });
                    }
                    _ if !may_pass(&error) => return Err(AppendError::Refused(error)),
                    _ => error,
                },
                Attempt::NotSent(error) => error,
            };
            let hint = error.retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
            let wake = Instant::now() + hint.unwrap_or(pause).max(pause);
            if wake >= deadline {
                return Err(AppendError::Refused(error));
            }
            tokio::time::sleep_until(wake).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, request: AppendRequest, deadline: Instant) -> Attempt {
        let (answer, reply) = oneshot::channel();
        match tokio::time::timeout_at(deadline, self.jobs.send(Job { request, deadline, answer })).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Attempt::NotSent(transport("the client has stopped")),
            Err(_) => return Attempt::NotSent(too_slow()),
        }
        match tokio::time::timeout_at(deadline + GRACE, reply).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(_)) => Attempt::Lost(transport("the connection broke before the answer came")),
            Err(_) => Attempt::Lost(CallError {
                code: Code::DeadlineExceeded,
                reason: "outcome-unknown".to_owned(),
                ..transport("no answer came before the deadline")
            }),
        }
    }
}

/// Whether the cause of a refusal may be gone in a moment.
fn may_pass(error: &CallError) -> bool {
    // A member that takes no part yet may be on its way into its cluster.
    matches!(error.code, Code::Unavailable) || matches!(error.reason.as_str(), "backpressure" | "not-active")
}

fn transport(message: &str) -> CallError {
    CallError {
        code: Code::Unavailable,
        reason: "transport".to_owned(),
        message: message.to_owned(),
        not_appended: false,
        retry_after_ms: None,
        tail: None,
    }
}

fn too_slow() -> CallError {
    CallError {
        code: Code::DeadlineExceeded,
        reason: "backpressure".to_owned(),
        not_appended: true,
        ..transport("the deadline passed before the append could be sent")
    }
}

async fn pump(channel: Channel, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        // Bounded by `IN_FLIGHT` and by the callers' permits on bytes.
        let (requests, stream) = mpsc::unbounded_channel();
        match log(channel.clone()).append_stream(UnboundedReceiverStream::new(stream)).await {
            Ok(answers) => Connection::new(requests).serve(first, &mut jobs, answers.into_inner()).await,
            // Whoever gave up meanwhile does not listen any more.
            Err(status) => drop(first.answer.send(Attempt::NotSent(status.into()))),
        }
    }
}

/// One append stream while it stands.
struct Connection {
    requests: mpsc::UnboundedSender<AppendStreamRequest>,
    waiting: HashMap<u64, oneshot::Sender<Attempt>>,
    next_tag: u64,
}

impl Connection {
    fn new(requests: mpsc::UnboundedSender<AppendStreamRequest>) -> Connection {
        Connection { requests, waiting: HashMap::new(), next_tag: 1 }
    }

    async fn serve(
        mut self,
        first: Job,
        jobs: &mut mpsc::Receiver<Job>,
        mut answers: Streaming<AppendStreamResponse>,
    ) {
        self.send(first);
        loop {
            let cut: Option<Status> = tokio::select! {
                job = jobs.recv(), if self.waiting.len() < IN_FLIGHT => match job {
                    Some(job) => {
                        self.send(job);
                        continue;
                    }
                    None => return,
                },
                answer = answers.message() => match self.take(answer) {
                    Ok(()) => continue,
                    Err(cut) => cut,
                },
            };
            let error = cut.map_or_else(|| transport("the member closed the stream"), CallError::from);
            for (_, waiting) in self.waiting.drain() {
                drop(waiting.send(Attempt::Lost(error.clone())));
            }
            return;
        }
    }

    fn send(&mut self, job: Job) {
        let tag = self.next_tag;
        self.next_tag += 1;
        let left = job.deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = AppendStreamRequest { tag, append: Some(job.request), timeout_ms };
        let attempt = match self.requests.send(request) {
            Ok(()) => {
                self.waiting.insert(tag, job.answer);
                return;
            }
            Err(_) => Attempt::NotSent(transport("the connection broke")),
        };
        // Whoever gave up meanwhile does not listen any more.
        drop(job.answer.send(attempt));
    }

    fn answer(&mut self, tag: u64, attempt: Attempt) {
        if let Some(waiting) = self.waiting.remove(&tag) {
            // Whoever gave up meanwhile does not listen any more.
            drop(waiting.send(attempt));
        }
    }

    /// `Err`: the stream has ended.
    fn take(&mut self, answer: Result<Option<AppendStreamResponse>, Status>) -> Result<(), Option<Status>> {
        let answer = answer.map_err(Some)?.ok_or(None)?;
        let attempt = match answer.outcome {
            Some(Outcome::Appended(appended)) => Attempt::Appended(Appended {
                first_index: appended.first_index,
                last_index: appended.last_index,
            }),
            Some(Outcome::Failure(failure)) => Attempt::Failed(CallError::from_failure(failure)),
            None => Attempt::Lost(transport("the member gave an answer that this client does not know")),
        };
        self.answer(answer.tag, attempt);
        Ok(())
    }
}
