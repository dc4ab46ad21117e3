//! What members ask of each other for checkpoints.

use super::file::BLOCK;
use super::{Checkpoints, Error, named};
use crate::connections::Caller;
use crate::tls::Holder;
use futures::Stream;
use std::pin::Pin;
use std::sync::Arc;
use synod_paxos::MemberId;
use synod_proto::peer::v1::peer_checkpoints_server::{PeerCheckpoints, PeerCheckpointsServer};
use synod_proto::peer::v1::{
    Between, CheckpointChunk, HoldCheckpointRequest, HoldCheckpointResponse, ReadCheckpointRequest,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use xxhash_rust::xxh3::xxh3_64;

/// Transfers to peers at a time: more wait.
const READS: usize = 16;
/// A request holds some ids.
const LARGEST_MESSAGE: usize = 4 << 10;

/// The peer service of one member's checkpoints.
#[derive(Clone)]
pub struct PeerCheckpointsService {
    checkpoints: Checkpoints,
    reads: Arc<Semaphore>,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<CheckpointChunk, Status>> + Send>>;

impl PeerCheckpointsService {
    /// The service, for a router.
    pub fn server(checkpoints: Checkpoints) -> PeerCheckpointsServer<PeerCheckpointsService> {
        let service = PeerCheckpointsService { checkpoints, reads: Arc::new(Semaphore::new(READS)) };
        PeerCheckpointsServer::new(service).max_decoding_message_size(LARGEST_MESSAGE)
    }

    /// Who asks: a member of this cluster that means this member.
    fn judge<T>(&self, request: &Request<T>, between: Option<&Between>) -> Result<MemberId, Status> {
        let context = &self.checkpoints.0.context;
        let caller = Caller::of(request.extensions())?;
        if let Some(tls) = &context.tls
            && tls.holder(caller.certificates()) != Holder::Member
        {
            return Err(Status::permission_denied("this port is for members of this cluster"));
        }
        let identity = self.checkpoints.0.shared.identity().borrow().clone();
        let meant = between.is_some_and(|between| {
            let cluster =
                identity.cluster.is_some_and(|(cluster, _)| between.cluster_id == cluster.0.as_slice());
            cluster && between.to == identity.member.0
        });
        match between {
            Some(between) if meant => {
                caller.admit().map_err(|error| Status::resource_exhausted(error.to_string()))?;
                Ok(MemberId(between.from))
            }
            _ => Err(Status::failed_precondition("this is another member than the one that was meant")),
        }
    }
}

fn malformed() -> Status {
    Status::invalid_argument("the request names no checkpoint")
}

#[tonic::async_trait]
impl PeerCheckpoints for PeerCheckpointsService {
    type ReadStream = Chunks;

    async fn hold(
        &self,
        request: Request<HoldCheckpointRequest>,
    ) -> Result<Response<HoldCheckpointResponse>, Status> {
        let from = self.judge(&request, request.get_ref().between.as_ref())?;
        let wanted = named(request.into_inner().checkpoint).ok_or_else(malformed)?;
        match self.checkpoints.hold(wanted, from).await {
            Ok(()) => Ok(Response::new(HoldCheckpointResponse {})),
            Err(error @ Error::Superseded { .. }) => Err(Status::failed_precondition(error.to_string())),
            Err(error @ Error::Full { .. }) => Err(Status::resource_exhausted(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn read(&self, request: Request<ReadCheckpointRequest>) -> Result<Response<Chunks>, Status> {
        self.judge(&request, request.get_ref().between.as_ref())?;
        let ReadCheckpointRequest { checkpoint: wanted, offset, .. } = request.into_inner();
        let wanted = named(wanted).ok_or_else(malformed)?;
        let checkpoints = self.checkpoints.clone();
        let permit = self.reads.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Status::unavailable("this member is stopping"))?;
        let Some(local) = checkpoints.open_here(wanted).await else {
            return Err(Status::not_found("this member does not have the checkpoint"));
        };
        let chunks = futures::stream::try_unfold((offset, permit), move |(offset, permit)| {
            let (checkpoints, local) = (checkpoints.clone(), local.clone());
            async move {
                if offset >= wanted.length {
                    return Ok(None);
                }
                checkpoints
                    .0
                    .pace
                    .pass(usize::try_from(BLOCK.min(wanted.length - offset)).unwrap_or(0))
                    .await;
                let bytes = local.read(offset).await;
                let bytes = bytes
                    .ok_or_else(|| Status::data_loss("this member does not have the checkpoint whole"))?;
                checkpoints.0.metrics.checkpoint_bytes_given.inc_by(bytes.len() as u64);
                let offset = offset + bytes.len() as u64;
                Ok(Some((CheckpointChunk { checksum: xxh3_64(&bytes), bytes }, (offset, permit))))
            }
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
