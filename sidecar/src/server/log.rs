//! The log service on the socket.

use super::append_stream;
use super::explained::Explained;
use super::following::{self, Following};
use super::paced::{self, paced};
use super::reading::{self, PAGE, Reading};
use super::{Guard, active, convert, deadline, failure, freshness, repeated, traced};
use crate::connections::{Caller, InHand, Weight};
use crate::shared::Shared;
use crate::spans::Trace;
use futures::{Stream, TryStreamExt};
use std::pin::Pin;
use std::sync::Arc;
use synod_paxos::system::Reply;
use synod_paxos::value::Operation;
use synod_paxos::{Index, SessionId};
use synod_proto::v1::log_server::{Log, LogServer};
use synod_proto::v1::{
    AppendRequest, AppendResponse, AppendStreamRequest, CloseSessionRequest, CloseSessionResponse, Entry,
    OpenSessionRequest, OpenSessionResponse, ReadRequest, ReadResponse, Reason, SubscribeRequest,
    SubscribeResponse, TailRequest, TailResponse,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

/// The largest message that is read: more than a call within its bounds can have.
const LARGEST_MESSAGE: usize = 4 << 20;
/// Entries and bytes of the largest page that can be asked for, about.
const READ_MOST: (usize, usize) = (4_096, 1 << 20);

pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<SubscribeResponse, Status>> + Send>>;

/// What an entry of a page takes in memory beside its payload, about.
const ENTRY: usize = 96;

/// What a header takes in memory beside its name and value, about.
const HEADER: usize = 96;

/// What the headers of an entry take in memory, about.
fn headers(entry: &Entry) -> usize {
    entry.headers.iter().map(|(name, value)| name.len() + value.len() + HEADER).sum()
}

/// The service behind one member's socket.
#[derive(Clone)]
pub struct LogService {
    shared: Arc<Shared>,
    guard: Guard,
}

impl LogService {
    /// The service, for a router.
    pub fn server(shared: Arc<Shared>, guard: Guard) -> Explained<LogServer<LogService>> {
        let service = LogServer::new(LogService::new(shared.clone(), guard));
        Explained::new(service.max_decoding_message_size(LARGEST_MESSAGE), shared)
    }

    /// The service itself, for callers in this process.
    pub(super) fn new(shared: Arc<Shared>, guard: Guard) -> LogService {
        LogService { shared, guard }
    }

    /// Carries a call out in the log.
    async fn call(&self, operation: Operation, deadline: Instant) -> Result<Reply, Status> {
        active(&self.shared)?;
        self.guard.may_append().map_err(|failure| failure::status(*failure))?;
        let outcome = self.shared.handle().call_and_wait(operation, Some(deadline)).await;
        outcome.map_err(|error| failure::status(failure::unanswered(&error)))
    }
}

#[tonic::async_trait]
impl Log for LogService {
    type AppendStreamStream = append_stream::Answers;
    type SubscribeStream = Messages;

    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        active(&self.shared)?;
        let trace = request.extensions().get::<Trace>().cloned();
        let append = convert::append(request.into_inner());
        let append = append.map_err(|failure| failure::status(failure.of_append()))?;
        let append =
            traced::carried(append, trace.as_ref(), self.shared.handle().facts().borrow().settings.as_ref());
        if let Err(failure) = self.guard.may_append() {
            let repeated = repeated(&self.shared.handle(), &append).await;
            return repeated.map(Response::new).ok_or_else(|| failure::status(failure.of_append()));
        }
        let outcome = self.shared.handle().call_and_wait(append, Some(deadline)).await;
        let reply = outcome.map_err(|error| failure::status(failure::unanswered_append(&error)))?;
        match convert::appended(reply) {
            Some(appended) => Ok(Response::new(appended)),
            None => unreachable!("the core answered an append with {reply:?}"),
        }
    }

    async fn open_session(
        &self,
        request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let user = Caller::of(request.extensions())?.uid();
        let seen = self.shared.handle().status().await;
        let settings = seen.map_err(|error| failure::status(failure::unanswered(&error)))?.status.settings;
        if let Some(settings) = &settings {
            self.guard.sessions.may_open(user, settings).map_err(|failure| failure::status(*failure))?;
        }
        match self.call(Operation::OpenSession, deadline).await? {
            Reply::SessionOpened(session) => {
                self.guard.sessions.opened(user, session);
                Ok(Response::new(OpenSessionResponse { session: session.0 }))
            }
            other => unreachable!("the core opened a session with {other:?}"),
        }
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let session = SessionId(request.into_inner().session);
        self.call(Operation::CloseSession { session }, deadline).await?;
        self.guard.sessions.closed(session);
        Ok(Response::new(CloseSessionResponse {}))
    }

    async fn append_stream(
        &self,
        request: Request<Streaming<AppendStreamRequest>>,
    ) -> Result<Response<append_stream::Answers>, Status> {
        let answers = append_stream::serve(self.shared.clone(), self.guard.clone(), request.into_inner());
        Ok(Response::new(answers))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let ReadRequest { from, limit, max_bytes, reverse, consistency } = request.into_inner();
        let place = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        if from == 0 && !reverse {
            let message = "indexes begin at 1: read from 1 for the whole log";
            return Err(failure::status(failure::refused(Reason::Index, message)));
        }
        let (handle, last) = freshness::point(&self.shared, consistency, deadline).await?;
        let most = |wanted: u64, default: usize, most: usize| match wanted {
            0 => default,
            wanted => usize::try_from(wanted).unwrap_or(most).min(most),
        };
        let entries = most(limit, PAGE.0, READ_MOST.0);
        let bounds = (entries, most(u64::from(max_bytes), PAGE.1, READ_MOST.1));
        let in_hand = reading::turn().await;
        let (entries, next) = if reverse {
            let newest = if from == 0 { last } else { last.min(Index(from)) };
            let entries = match newest < handle.first_index() {
                true => Vec::new(),
                false => Reading::page_back(&handle, newest, bounds).await?,
            };
            // Backwards nothing is behind the first entry that is retained.
            let next = entries.last().map_or(0, |oldest| oldest.index - 1);
            (entries, if Index(next) < handle.first_index() { 0 } else { next })
        } else {
            let mut reading = Reading { handle: handle.clone(), next: Index(from) };
            reading.check_retained()?;
            let entries = match reading.next > last {
                true => Vec::new(),
                false => reading.page(last, bounds).await?,
            };
            (entries, reading.next.0)
        };
        let first_index = handle.first_index().0;
        let bytes = entries.iter().map(|entry| entry.payload.len() + ENTRY + headers(entry)).sum();
        let mut response = Response::new(ReadResponse { entries, next, first_index, last_index: last.0 });
        // A page that its reader does not take stays in memory.
        response.extensions_mut().insert(Weight { bytes, place: Some(Arc::new(place)) });
        if let Some(in_hand) = in_hand {
            response.extensions_mut().insert(InHand(Arc::new(in_hand)));
        }
        Ok(response)
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Messages>, Status> {
        let deadline = deadline::of(request.metadata());
        let permit = self.guard.subscriber().map_err(|failure| failure::status(*failure))?;
        let trace = request.extensions().get::<Trace>().cloned();
        let following = Following::begin(self.shared.clone(), request.into_inner(), permit, deadline).await?;
        let messages = futures::stream::try_unfold((following, trace), |(mut following, trace)| async move {
            let message = following.message().await?;
            if let Some((message, _)) = &message {
                traced::delivered(message, trace.as_ref());
            }
            Ok(message.map(|message| (message, (following, trace))))
        });
        let messages = paced(messages, paced::PATIENCE, following::slow);
        Ok(Response::new(Box::pin(messages.map_ok(|(message, _in_hand)| message))))
    }

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<TailResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let _permit = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        let consistency = request.into_inner().consistency;
        let (handle, last) = freshness::point(&self.shared, consistency, deadline).await?;
        Ok(Response::new(TailResponse { last_index: last.0, first_index: handle.first_index().0 }))
    }
}
