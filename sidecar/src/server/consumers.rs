//! The consumers service on the socket: durable named positions that hold back trimming.
//!
//! All of its calls may be repeated: a position goes back only where it is put, and one that is gone stays gone.

use super::explained::Explained;
use super::{Guard, deadline, failure, freshness};
use crate::driver::{Application, Handle, Unanswered};
use crate::shared::Shared;
use std::sync::Arc;
use std::time::Duration;
use synod_paxos::system::{CallRefused, Reply};
use synod_paxos::value::Operation;
use synod_paxos::{Index, Refusal};
use synod_proto::v1::consumers_server::{Consumers, ConsumersServer};
use synod_proto::v1::{
    AdvanceConsumerRequest, AdvanceConsumerResponse, Consumer, GetConsumerRequest, GetConsumerResponse,
    ListConsumersRequest, ListConsumersResponse, Reason, RegisterConsumerRequest, RegisterConsumerResponse,
    RemoveConsumerRequest, RemoveConsumerResponse, SeekConsumerRequest, SeekConsumerResponse,
};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// The largest message that is read: a name and a number take less.
const LARGEST_MESSAGE: usize = 4 << 10;

/// The service behind one member's socket.
#[derive(Clone)]
pub struct ConsumersService {
    shared: Arc<Shared>,
    guard: Guard,
}

impl ConsumersService {
    /// The service, for a router.
    pub fn server(shared: Arc<Shared>, guard: Guard) -> Explained<ConsumersServer<ConsumersService>> {
        let service = ConsumersServer::new(ConsumersService::new(shared.clone(), guard));
        Explained::new(service.max_decoding_message_size(LARGEST_MESSAGE), shared)
    }

    /// The service itself, for callers in this process.
    pub(super) fn new(shared: Arc<Shared>, guard: Guard) -> ConsumersService {
        ConsumersService { shared, guard }
    }

    /// Where it is now, and whether the call registered it.
    async fn set(&self, operation: Operation, deadline: Instant) -> Result<(u64, bool), Refused> {
        match self.shared.handle().call_and_wait(operation, Some(deadline)).await {
            Ok(Reply::CursorSet(index)) => Ok((index.0, false)),
            Ok(Reply::CursorNew(index)) => Ok((index.0, true)),
            Ok(other) => unreachable!("the core answered a cursor with {other:?}"),
            Err(error) => Err(Refused(error)),
        }
    }

    async fn positions(&self, handle: &Handle) -> Result<Application, Status> {
        handle.application().await.map_err(|error| failure::status(failure::unanswered(&error)))
    }
}

/// What the core did not carry out.
struct Refused(Unanswered);

impl Refused {
    fn status(&self) -> Status {
        failure::status(failure::unanswered(&self.0))
    }

    /// The first index of the log, where the refusal is that it begins later than was thought.
    fn begins_at(&self) -> Option<Index> {
        match &self.0 {
            Unanswered::Refused(Refusal::Cursor(CallRefused::Compacted { first })) => Some(*first),
            _ => None,
        }
    }
}

#[tonic::async_trait]
impl Consumers for ConsumersService {
    async fn register(
        &self,
        request: Request<RegisterConsumerRequest>,
    ) -> Result<Response<RegisterConsumerResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let RegisterConsumerRequest { name, index, expiry } = request.into_inner();
        let expiry = expiry.map(|expiry| synod_proto::span(&expiry).unwrap_or(Duration::MAX));
        // A new position can only hold back what would free space.
        self.guard.may_append().map_err(|failure| failure::status(*failure))?;
        let is_anywhere = index.is_none();
        let mut wanted = index.map_or_else(|| self.shared.handle().first_index().previous(), Index);
        loop {
            let (name, index) = (name.clone(), wanted);
            let operation = match expiry {
                None => Operation::SetCursor { name, index },
                Some(expiry) => Operation::LeaseCursor { name, index, expiry },
            };
            match self.set(operation, deadline).await {
                Ok((index, created)) => {
                    return Ok(Response::new(RegisterConsumerResponse { index, created }));
                }
                // Trimmed meanwhile; the log's beginning only moves on, so that this ends.
                Err(refused) => match refused.begins_at().filter(|_| is_anywhere) {
                    Some(first) if first.previous() > wanted => wanted = first.previous(),
                    _ => return Err(refused.status()),
                },
            }
        }
    }

    async fn advance(
        &self,
        request: Request<AdvanceConsumerRequest>,
    ) -> Result<Response<AdvanceConsumerResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let AdvanceConsumerRequest { name, index } = request.into_inner();
        let advanced = self.set(Operation::AdvanceCursor { name, index: Index(index) }, deadline).await;
        let (index, _) = advanced.map_err(|refused| refused.status())?;
        Ok(Response::new(AdvanceConsumerResponse { index }))
    }

    async fn seek(
        &self,
        request: Request<SeekConsumerRequest>,
    ) -> Result<Response<SeekConsumerResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let SeekConsumerRequest { name, index } = request.into_inner();
        // One that goes back can only hold back what would free space.
        self.guard.may_append().map_err(|failure| failure::status(*failure))?;
        let put = self.set(Operation::SeekCursor { name, index: Index(index) }, deadline).await;
        let (index, _) = put.map_err(|refused| refused.status())?;
        Ok(Response::new(SeekConsumerResponse { index }))
    }

    async fn remove(
        &self,
        request: Request<RemoveConsumerRequest>,
    ) -> Result<Response<RemoveConsumerResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let name = request.into_inner().name;
        let handle = self.shared.handle();
        let removed = handle.call_and_wait(Operation::RemoveCursor { name }, Some(deadline)).await;
        removed.map_err(|error| Refused(error).status())?;
        Ok(Response::new(RemoveConsumerResponse {}))
    }

    async fn list(
        &self,
        request: Request<ListConsumersRequest>,
    ) -> Result<Response<ListConsumersResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let consistency = request.into_inner().consistency;
        let _permit = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        let (handle, _) = freshness::point(&self.shared, consistency, deadline).await?;
        let positions = self.positions(&handle).await?;
        let consumers = positions.cursors.iter().map(|(name, index)| consumer(&positions, name, *index));
        Ok(Response::new(ListConsumersResponse {
            consumers: consumers.collect(),
            first_index: positions.first_index.0,
            last_index: positions.last_index.0,
        }))
    }

    async fn get(
        &self,
        request: Request<GetConsumerRequest>,
    ) -> Result<Response<GetConsumerResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let GetConsumerRequest { name, consistency } = request.into_inner();
        let _permit = self.guard.reader().map_err(|failure| failure::status(*failure))?;
        let (handle, _) = freshness::point(&self.shared, consistency, deadline).await?;
        let positions = self.positions(&handle).await?;
        let Some(index) = positions.cursors.get(&name).copied() else {
            let message = format!("no consumer is registered as {name:?}: register it first");
            return Err(failure::status(failure::refused(Reason::UnknownConsumer, message)));
        };
        Ok(Response::new(GetConsumerResponse {
            consumer: Some(consumer(&positions, &name, index)),
            first_index: positions.first_index.0,
            last_index: positions.last_index.0,
        }))
    }
}

fn consumer(positions: &Application, name: &str, index: Index) -> Consumer {
    let expiry = positions.cursor_expiry.get(name).map(|expiry| synod_proto::duration(*expiry));
    let lag = positions.last_index.0.saturating_sub(index.0);
    Consumer { name: name.to_owned(), index: index.0, lag, expiry }
}
