//! The log service on the socket.

use super::append_stream;
use super::explained::Explained;
use super::freshness::Wanted;
use super::{Guard, convert, deadline, failure};
use crate::connections::Caller;
use crate::driver::{Handle, Position};
use crate::shared::Shared;
use futures::Stream;
use std::pin::Pin;
use std::sync::Arc;
use synod_paxos::system::Reply;
use synod_paxos::value::Operation;
use synod_paxos::{Index, SessionId};
use synod_proto::v1::log_server::{Log, LogServer};
use synod_proto::v1::{
    AppendRequest, AppendResponse, AppendStreamRequest, CloseSessionRequest, CloseSessionResponse, Entry,
    OpenSessionRequest, OpenSessionResponse, ReadRequest, ReadResponse, Reason, SubscribeRequest,
    TailRequest, TailResponse,
};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

/// The largest message that is read: more than a call within its bounds can have.
const LARGEST_MESSAGE: usize = 4 << 20;
/// Entries and bytes of one page, about.
const PAGE: (usize, usize) = (1_024, 256 << 10);

pub(super) type Pages = Pin<Box<dyn Stream<Item = Result<ReadResponse, Status>> + Send>>;

/// The service behind one member's socket.
#[derive(Clone)]
pub struct LogService {
    shared: Arc<Shared>,
    guard: Guard,
}

impl LogService {
    /// The service, for a router.
    pub fn server(shared: Arc<Shared>, guard: Guard) -> Explained<LogServer<LogService>> {
        let service = LogServer::new(LogService { shared, guard });
        Explained::new(service.max_decoding_message_size(LARGEST_MESSAGE))
    }

    /// Carries a call out in the log.
    async fn call(&self, operation: Operation, deadline: Instant) -> Result<Reply, Status> {
        self.guard.may_append().map_err(|failure| failure::status(*failure))?;
        let outcome = self.shared.handle().call_and_wait(operation, Some(deadline)).await;
        outcome.map_err(|error| failure::status(failure::unanswered(&error)))
    }
}

fn first_index(from: u64) -> Result<Index, Status> {
    if from == 0 {
        let message = "indexes begin at 1: ask from 1 for the whole log";
        return Err(failure::status(failure::refused(Reason::Index, message)));
    }
    Ok(Index(from))
}

#[tonic::async_trait]
impl Log for LogService {
    type AppendStreamStream = append_stream::Answers;
    type ReadStream = Pages;
    type SubscribeStream = Pages;

    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let append = Operation::Append(convert::append(request.into_inner()));
        self.guard.may_append().map_err(|failure| failure::status(failure.of_append()))?;
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

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Pages>, Status> {
        let deadline = deadline::of(request.metadata());
        let ReadRequest { from, limit, consistency, at_least, max_staleness_ms } = request.into_inner();
        let from = first_index(from)?;
        let permit = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        let wanted = Wanted { consistency, at_least, max_staleness_ms };
        let (handle, last) = wanted.point(&self.shared, deadline).await?;
        let through = match limit {
            0 => last,
            limit => last.min(from.plus(limit - 1)),
        };
        let reading = Reading { handle, next: from };
        let pages = futures::stream::try_unfold((reading, permit), move |(mut reading, permit)| async move {
            if reading.next > through {
                return Ok(None);
            }
            let page = reading.page(through).await?;
            Ok(Some((page, (reading, permit))))
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Pages>, Status> {
        let from = first_index(request.into_inner().from)?;
        let permit = self.guard.subscriber().map_err(|failure| failure::status(*failure))?;
        let handle = self.shared.handle();
        let following = Following {
            positions: handle.watch(),
            shared: self.shared.clone(),
            reading: Reading { handle, next: from },
            _permit: permit,
        };
        let pages = futures::stream::try_unfold(following, |mut following| async move {
            let page = following.page().await?;
            Ok(Some((page, following)))
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<TailResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let TailRequest { consistency, at_least, max_staleness_ms } = request.into_inner();
        let _permit = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        let wanted = Wanted { consistency, at_least, max_staleness_ms };
        let (_, last) = wanted.point(&self.shared, deadline).await?;
        Ok(Response::new(TailResponse { last_index: last.0 }))
    }
}

/// A reader's place in the log.
struct Reading {
    handle: Handle,
    next: Index,
}

impl Reading {
    /// The next entries, up to `through`, which is applied; at least one.
    async fn page(&mut self, through: Index) -> Result<ReadResponse, Status> {
        let found = self.handle.entries(self.next, through, PAGE).await;
        // Asked after the read: a trim that overtook it is no damage (docs: reliability.md, fault 41).
        let first = self.handle.first_index();
        if self.next < first {
            return Err(failure::status(failure::compacted(first, self.handle.newest_checkpoint())));
        }
        let found = found.map_err(|error| {
            tracing::error!(%error, index = self.next.0, "the log cannot be read");
            failure::status(failure::storage(&error))
        })?;
        if found.is_empty() {
            tracing::error!(
                index = self.next.0,
                through = through.0,
                "applied entries are missing on the disk"
            );
            let message = format!("entry {} is missing on this member's disk", self.next);
            return Err(failure::status(failure::refused(Reason::Damaged, message)));
        }
        let first = self.next.0;
        self.next = self.next.plus(found.len() as u64);
        let entries = (first..).zip(found).map(|(index, payload)| Entry { index, payload }).collect();
        Ok(ReadResponse { entries })
    }
}

/// A subscriber: held back by its own pace, since a page is made only when the one before was taken.
struct Following {
    positions: watch::Receiver<Position>,
    shared: Arc<Shared>,
    reading: Reading,
    _permit: OwnedSemaphorePermit,
}

impl Following {
    async fn page(&mut self) -> Result<ReadResponse, Status> {
        let next = self.reading.next;
        let through = tokio::select! {
            biased;
            () = self.shared.stopped() => None,
            reached = self.positions.wait_for(|position| position.index >= next) => {
                reached.ok().map(|position| position.index)
            }
            () = self.reading.handle.stopped() => None,
        };
        match through {
            Some(through) => self.reading.page(through).await,
            None => Err(failure::status(failure::stopping())),
        }
    }
}
