//! The task that owns the append stream: it does what [`Ordered`] says, and passes the other calls through.

use super::ordered::{Next, Ordered};
use super::{Attempt, Command, FIRST_PAUSE, IN_FLIGHT, LONGEST_PAUSE, Loose, transport, wait};
use crate::error::{CallError, failed};
use crate::read::log;
use futures::future::{BoxFuture, FutureExt, OptionFuture};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use synod_proto::v1::{
    AppendRequest, AppendStreamRequest, AppendStreamResponse, CloseSessionRequest, OpenSessionRequest,
    Outcome as Known, Reason, append_stream_response::Outcome,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// How long a member may take to open or close a session.
const SESSION_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that are taken together, where they are at hand.
const COMMANDS: usize = 128;

/// What waits for the answer to a tag.
enum Waiting {
    Loose(oneshot::Sender<Attempt>),
    Ordered(u64),
}

/// One append stream while it stands.
struct Connection {
    requests: mpsc::UnboundedSender<AppendStreamRequest>,
    answers: Streaming<AppendStreamResponse>,
}

struct Pump {
    channel: Channel,
    ordered: Ordered,
    loose: VecDeque<Loose>,
    connection: Option<Connection>,
    /// On its way.
    connecting: Option<BoxFuture<'static, Result<Connection, CallError>>>,
    opening: Option<BoxFuture<'static, Result<u64, CallError>>>,
    waiting: HashMap<u64, Waiting>,
    next_tag: u64,
    closing: Vec<oneshot::Sender<()>>,
    /// Nothing of the session leaves before.
    paused: Option<Instant>,
    /// The next pause.
    pause: Duration,
}

/// Runs until every client is dropped.
pub(super) async fn run(channel: Channel, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut pump = Pump::new(channel);
    loop {
        pump.advance();
        let answer = OptionFuture::from(pump.connection.as_mut().map(|c| c.answers.message()));
        let wake = [pump.paused, pump.ordered.next_deadline()].into_iter().flatten().min();
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => {
                    pump.command(command);
                    for _ in 0..COMMANDS {
                        let Ok(command) = commands.try_recv() else { break };
                        pump.command(command);
                    }
                }
                None => break,
            },
            Some(answer) = answer => pump.take(answer),
            Some(connected) = OptionFuture::from(pump.connecting.as_mut()) => pump.connected(connected),
            Some(opened) = OptionFuture::from(pump.opening.as_mut()) => pump.opened(opened),
            () = until(wake) => {
                let now = Instant::now();
                pump.paused = pump.paused.filter(|at| *at > now);
                pump.ordered.expire(now);
            }
        }
    }
    pump.ordered.abandon();
    close_session(pump.channel, pump.ordered.session()).await;
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A session that stays open expires by itself; whether this succeeds does not matter.
async fn close_session(channel: Channel, session: Option<u64>) {
    let Some(session) = session else { return };
    let mut request = Request::new(CloseSessionRequest { session });
    request.set_timeout(SESSION_TIMEOUT);
    drop(log(channel).close_session(request).await);
}

async fn open_session(channel: Channel) -> Result<u64, CallError> {
    let mut request = Request::new(OpenSessionRequest {});
    request.set_timeout(SESSION_TIMEOUT);
    let opened = log(channel).open_session(request).await.map_err(|status| {
        let error = failed(status);
        // Nothing was appended, of course; where the connection failed or time ran out, the next try may come through.
        let again = matches!(error.reason, Reason::Transport | Reason::Deadline);
        let outcome = if again { Known::Unknown } else { Known::NotAppended };
        error.of_append(outcome)
    });
    Ok(opened?.into_inner().session)
}

async fn connect(channel: Channel) -> Result<Connection, CallError> {
    // Bounded by `IN_FLIGHT` and by the callers' permits on bytes.
    let (requests, stream) = mpsc::unbounded_channel();
    let answers = log(channel).append_stream(UnboundedReceiverStream::new(stream)).await;
    let answers = answers.map_err(failed)?;
    Ok(Connection { requests, answers: answers.into_inner() })
}

impl Pump {
    fn new(channel: Channel) -> Pump {
        Pump {
            channel,
            ordered: Ordered::new(),
            loose: VecDeque::new(),
            connection: None,
            connecting: None,
            opening: None,
            waiting: HashMap::new(),
            next_tag: 1,
            closing: Vec::new(),
            paused: None,
            pause: FIRST_PAUSE,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Ordered(job) => self.ordered.push(job),
            Command::Loose(loose) => self.loose.push_back(loose),
            Command::Close(done) => self.closing.push(done),
        }
    }

    /// Starts and sends everything that can be.
    fn advance(&mut self) {
        let now = Instant::now();
        let held = self.paused.is_some();
        if self.ordered.needs_session() && self.opening.is_none() && !held {
            self.opening = Some(open_session(self.channel.clone()).boxed());
        }
        let wants_stream = !self.loose.is_empty() || (self.ordered.has_work() && !held);
        if wants_stream && self.connection.is_none() && self.connecting.is_none() {
            self.connecting = Some(connect(self.channel.clone()).boxed());
        }
        if self.connection.is_some() {
            while self.waiting.len() < IN_FLIGHT
                && let Some(Loose { request, deadline, answer }) = self.loose.pop_front()
            {
                self.send(request, deadline, Waiting::Loose(answer));
            }
        }
        // One that could not be sent has paused the session: looked at anew for each, or this would not end.
        while self.connection.is_some()
            && self.paused.is_none()
            && let Some((sequence, request, deadline)) = self.ordered.take(now)
        {
            self.send(request, deadline, Waiting::Ordered(sequence));
        }
        if !self.closing.is_empty() && self.ordered.is_idle() && self.waiting.is_empty() {
            let (channel, session) = (self.channel.clone(), self.ordered.session());
            let closing = std::mem::take(&mut self.closing);
            self.ordered = Ordered::new();
            tokio::spawn(async move {
                close_session(channel, session).await;
                // Whoever does not wait for it any more does not need to know.
                for done in closing {
                    let _ = done.send(());
                }
            });
        }
    }

    fn send(&mut self, append: AppendRequest, deadline: Instant, waiting: Waiting) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.waiting.insert(tag, waiting);
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        let request = AppendStreamRequest { tag, append: Some(append), timeout_ms };
        let sent = self.connection.as_ref().is_some_and(|c| c.requests.send(request).is_ok());
        if !sent {
            self.answer(tag, Attempt::NotSent(transport("the connection broke")));
        }
    }

    fn answer(&mut self, tag: u64, attempt: Attempt) {
        match self.waiting.remove(&tag) {
            // Whoever gave up meanwhile does not listen any more.
            Some(Waiting::Loose(answer)) => drop(answer.send(attempt)),
            Some(Waiting::Ordered(sequence)) => {
                if matches!(attempt, Attempt::Appended(_)) {
                    self.pause = FIRST_PAUSE;
                }
                if let Next::Pause(hint) = self.ordered.answered(sequence, attempt, Instant::now()) {
                    self.hold(hint);
                }
            }
            None => {}
        }
    }

    /// Nothing of the session leaves for a while.
    fn hold(&mut self, hint: Option<Duration>) {
        let error = CallError { retry_after: hint, ..transport("") };
        self.paused = Some(Instant::now() + wait(&error, self.pause));
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn take(&mut self, answer: Result<Option<AppendStreamResponse>, Status>) {
        let answer = match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => return self.cut(&transport("the member closed the stream")),
            Err(status) => return self.cut(&failed(status)),
        };
        let attempt = match answer.outcome {
            Some(Outcome::Appended(appended)) => Attempt::Appended(appended.into()),
            Some(Outcome::Failure(failure)) => Attempt::Failed(CallError::from_failure(failure)),
            None => Attempt::Lost(transport("the member gave an answer that this client does not know")),
        };
        self.answer(answer.tag, attempt);
    }

    fn cut(&mut self, error: &CallError) {
        self.connection = None;
        for (_, waiting) in self.waiting.drain() {
            if let Waiting::Loose(answer) = waiting {
                // Whoever gave up meanwhile does not listen any more.
                drop(answer.send(Attempt::Lost(error.clone())));
            }
        }
        self.ordered.cut(error);
        self.hold(None);
    }

    fn connected(&mut self, connected: Result<Connection, CallError>) {
        self.connecting = None;
        match connected {
            Ok(connection) => self.connection = Some(connection),
            Err(error) => {
                for loose in self.loose.drain(..) {
                    // Whoever gave up meanwhile does not listen any more.
                    drop(loose.answer.send(Attempt::NotSent(error.clone())));
                }
                self.ordered.cut(&error);
                self.hold(None);
            }
        }
    }

    fn opened(&mut self, opened: Result<u64, CallError>) {
        self.opening = None;
        match opened {
            Ok(session) => self.ordered.opened(session),
            Err(error) => {
                let hint = error.retry_after;
                if self.ordered.not_opened(error) {
                    self.hold(hint);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::append::{Condition, Job};
    use bytes::Bytes;
    use tonic::codec::Codec;
    use tonic::transport::Endpoint;
    use tonic_prost::ProstCodec;

    /// A member that is killed closes its side of the stream; this side may want to send before it has seen that
    /// (found by `make torture`: the task went round without an end, and held up everything else of its thread).
    #[tokio::test]
    async fn what_cannot_be_sent_waits_for_the_next_stream() {
        let (requests, closed) = mpsc::unbounded_channel();
        drop(closed);
        let mut codec = ProstCodec::<AppendStreamRequest, AppendStreamResponse>::default();
        let answers = Streaming::new_empty(codec.decoder(), tonic::body::Body::empty());
        let channel = Endpoint::from_static("http://[::1]:1").connect_lazy();
        let mut pump = Pump::new(channel);
        pump.connection = Some(Connection { requests, answers });
        pump.ordered.opened(7);
        let (answer, _reply) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_millis(300);
        let content = vec![Bytes::from("x")].into();
        pump.ordered.push(Job { content, condition: Condition::default(), deadline, answer, permit: None });
        pump.advance();
        assert!(pump.paused.is_some());
        assert_eq!(pump.next_tag, 2, "it was tried once");
    }
}
