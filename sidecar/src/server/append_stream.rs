//! Many appends on one stream: answers carry the request's tag and come as they are known.

use super::{Guard, convert, excluded, explained, failure, repeated};
use crate::connections::DONE;
use crate::driver::{CallOutcome, CallReply, Handle};
use crate::shared::Shared;
use futures::Stream;
use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::RequestId;
use synod_proto::v1::{
    AppendStreamRequest, AppendStreamResponse, Failure, Reason, append_stream_response::Outcome,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// The name of one append of a stream in metrics.
const STREAMED: &str = "Log.AppendStream (one append)";
/// Unanswered requests on one stream; more are not read before some are answered.
const UNANSWERED: usize = 8_192;
/// Answers that wait for a slow client.
const WAITING_ANSWERS: usize = 1_024;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<AppendStreamResponse, Status>> + Send>>;

pub(super) fn serve(shared: Arc<Shared>, guard: Guard, requests: Streaming<AppendStreamRequest>) -> Answers {
    let (answers, stream) = mpsc::channel(WAITING_ANSWERS);
    let (outcomes, known) = mpsc::unbounded_channel();
    let handle = shared.handle();
    let serving = Serving {
        shared,
        guard,
        handle,
        answers,
        outcomes,
        unanswered: HashMap::new(),
        deadlines: BTreeSet::new(),
        last_word: None,
    };
    tokio::spawn(serving.run(requests, known));
    Box::pin(ReceiverStream::new(stream))
}

/// One stream. Outcomes are bounded by the appends in flight, answers by their channel.
struct Serving {
    shared: Arc<Shared>,
    guard: Guard,
    handle: Handle,
    answers: mpsc::Sender<Result<AppendStreamResponse, Status>>,
    outcomes: mpsc::UnboundedSender<(u64, CallOutcome)>,
    unanswered: HashMap<u64, (RequestId, Option<Instant>)>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Why the stream ends, once what was read is answered.
    last_word: Option<Status>,
}

impl Serving {
    async fn run(
        mut self,
        mut requests: Streaming<AppendStreamRequest>,
        mut known: mpsc::UnboundedReceiver<(u64, CallOutcome)>,
    ) {
        let mut open = true;
        let shared = self.shared.clone();
        while open || !self.unanswered.is_empty() {
            let first_deadline = self.deadlines.first().map(|(at, _)| *at);
            let room = open && self.unanswered.len() < UNANSWERED;
            let alive = tokio::select! {
                Some((tag, outcome)) = known.recv() => self.settle(tag, outcome).await,
                request = requests.message(), if room => match request {
                    Ok(Some(request)) => self.take(request).await,
                    // The client has said all; it still waits for answers.
                    Ok(None) => {
                        open = false;
                        true
                    }
                    // Nothing behind it can be read; what was read before goes on.
                    Err(status) => {
                        self.last_word = Some(explained::explain(&status).unwrap_or(status));
                        open = false;
                        true
                    }
                },
                () = until(first_deadline) => {
                    self.expire();
                    true
                }
                () = shared.stopped(), if open => {
                    open = false;
                    true
                }
                () = self.handle.stopped() => {
                    self.abandon().await;
                    false
                }
                () = self.answers.closed() => false,
            };
            if !alive {
                break;
            }
        }
        for (request, _) in self.unanswered.values() {
            self.handle.cancel(*request);
        }
        if let Some(status) = self.last_word.take() {
            // Nobody may be there to hear it.
            drop(self.answers.send(Err(status)).await);
        }
    }

    /// `false`: nobody listens any more.
    async fn answer(&self, tag: u64, outcome: Outcome) -> bool {
        let reason = match &outcome {
            Outcome::Appended(_) => DONE,
            Outcome::Failure(failure) => failure.reason().word(),
        };
        self.guard.calls.count(STREAMED, reason);
        self.answers.send(Ok(AppendStreamResponse { tag, outcome: Some(outcome) })).await.is_ok()
    }

    async fn fail(&self, tag: u64, failure: Failure) -> bool {
        self.answer(tag, Outcome::Failure(failure.of_append())).await
    }

    async fn take(&mut self, request: AppendStreamRequest) -> bool {
        let AppendStreamRequest { tag, append, timeout_ms } = request;
        // First of all: whatever is answered for a tag must be the answer to its one request.
        if self.unanswered.contains_key(&tag) {
            let message = format!("tag {tag} is of a request that is not answered yet: use another");
            // The answers could not be told apart: the stream ends.
            self.last_word = Some(failure::status(failure::refused(Reason::Tag, message)));
            return false;
        }
        if let Some(failure) = excluded(&self.shared) {
            return self.fail(tag, failure).await;
        }
        let Some(append) = append else {
            let failure = failure::refused(Reason::Malformed, "the request holds no append that can be read");
            return self.fail(tag, failure).await;
        };
        let append = match convert::append(append) {
            Ok(append) => append,
            Err(failure) => return self.fail(tag, *failure).await,
        };
        if let Err(failure) = self.guard.may_append() {
            return match repeated(&self.handle, &append).await {
                Some(appended) => self.answer(tag, Outcome::Appended(appended)).await,
                None => self.fail(tag, *failure).await,
            };
        }
        let reply = CallReply::Tagged(tag, self.outcomes.clone());
        match self.handle.call(append, reply) {
            Ok(request) => {
                let deadline =
                    (timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(u64::from(timeout_ms)));
                self.unanswered.insert(tag, (request, deadline));
                if let Some(at) = deadline {
                    self.deadlines.insert((at, tag));
                }
                true
            }
            Err((refusal, _)) => self.fail(tag, failure::refusal_of_append(&refusal)).await,
        }
    }

    async fn settle(&mut self, tag: u64, outcome: CallOutcome) -> bool {
        let Some((_, deadline)) = self.unanswered.remove(&tag) else { return true };
        if let Some(at) = deadline {
            self.deadlines.remove(&(at, tag));
        }
        let outcome = match outcome {
            Ok(reply) => match convert::appended(reply) {
                Some(appended) => Outcome::Appended(appended),
                None => unreachable!("the core answered an append with {reply:?}"),
            },
            Err(refusal) => Outcome::Failure(failure::refusal_of_append(&refusal)),
        };
        self.answer(tag, outcome).await
    }

    /// Takes back what has passed its deadline; the core's answer to that is the outcome.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(&(at, tag)) = self.deadlines.first()
            && at <= now
        {
            self.deadlines.pop_first();
            if let Some((request, _)) = self.unanswered.get(&tag) {
                self.handle.cancel(*request);
            }
        }
    }

    /// The core ended: whether it proposed what it did not answer is not known.
    async fn abandon(&mut self) {
        for (tag, _) in std::mem::take(&mut self.unanswered) {
            if !self.fail(tag, failure::stopping()).await {
                return;
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
