//! The incoming side: streams that peers have opened to this member.

use super::{Contact, Context, GreetingError, LARGEST_MESSAGE, check_greeting, wire};
use crate::connections::Caller;
use crate::tls::Holder;
use futures::Stream;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use synod_paxos::MemberId;
use synod_proto::peer::v1::peer_server::{Peer, PeerServer};
use synod_proto::peer::v1::{Greeting, PeerFrame, peer_frame::Frame};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long a new stream may stay without a word.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// The peer service of one member.
#[derive(Clone)]
pub struct PeerService {
    context: Context,
}

type Greetings = Pin<Box<dyn Stream<Item = Result<Greeting, Status>> + Send>>;

impl PeerService {
    /// The service, for a router.
    pub fn server(context: Context) -> PeerServer<PeerService> {
        PeerServer::new(PeerService { context }).max_decoding_message_size(LARGEST_MESSAGE)
    }

    async fn accept(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Greetings>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        if let Some(tls) = &self.context.tls
            && tls.holder(caller.certificates()) != Holder::Member
        {
            return Err(Status::permission_denied("this port is for members of this cluster"));
        }
        let remote = caller.remote();
        let mut frames = request.into_inner();
        let first = tokio::time::timeout(GREETING_PATIENCE, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no greeting came"))??;
        let own = self.context.identity().borrow().clone();
        let greeting = match first {
            Some(PeerFrame { frame: Some(Frame::Greeting(greeting)) }) => greeting,
            _ => return Err(Status::invalid_argument(GreetingError::Malformed.to_string())),
        };
        let member = check_greeting(&own, &greeting)
            .map_err(|error| Status::failed_precondition(format!("the dialling member {error}")))?;
        caller.admit().map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let (answer, answers) = mpsc::channel(1);
        // The channel has room for one.
        drop(answer.try_send(Ok(own.greeting())));
        if member != own.member {
            // Nobody may be listening: then every address is being dialled already.
            drop(
                self.context
                    .contacts
                    .send(Contact { member, addresses: addresses(greeting.address, remote) }),
            );
            tokio::spawn(receive(self.context.clone(), own.member, member, frames, answer));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// Where a peer that has dialled here can be dialled: where it says, and at the advertised port of the address
/// it came from, because a name may not resolve for a while (docs: operator-rules.md, "Network").
fn addresses(advertised: String, remote: Option<SocketAddr>) -> Vec<String> {
    let port = advertised.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let direct = remote.zip(port).map(|(remote, port)| SocketAddr::new(remote.ip(), port).to_string());
    let mut all: Vec<String> = direct.into_iter().chain([advertised]).filter(|a| !a.is_empty()).collect();
    all.dedup();
    all
}

/// Hands a peer's messages to the core while the stream stands. `answer` is kept only so that its end, which
/// the peer sees, comes with the stream's.
async fn receive(
    context: Context,
    own: MemberId,
    peer: MemberId,
    mut frames: Streaming<PeerFrame>,
    answer: mpsc::Sender<Result<Greeting, Status>>,
) {
    let identity = context.identity();
    loop {
        let frame = tokio::select! {
            frame = frames.message() => frame,
            () = answer.closed() => return,
            () = context.shared.closed() => return,
        };
        let Ok(Some(frame)) = frame else { return };
        let Some(Frame::Envelope(envelope)) = frame.frame else { continue };
        let disk_full = envelope.disk_full;
        let incoming = match wire::decode(envelope) {
            Ok(incoming) => incoming,
            Err(wire::UNKNOWN) => {
                // Of a newer version; it sends nothing of importance that older ones do not know.
                context.shared.note_unknown_message();
                tracing::debug!(%peer, "a message of an unknown kind is dropped");
                continue;
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "a peer's message is dropped");
                continue;
            }
        };
        let (member, cluster) = {
            let identity = identity.borrow();
            (identity.member, identity.cluster)
        };
        // After a renewal this process is another member; the peer must greet it anew.
        if member != own {
            return;
        }
        let is_ours = cluster.is_some_and(|(cluster, _)| cluster == incoming.cluster);
        if !is_ours || incoming.to != own || incoming.from != peer {
            tracing::debug!(%peer, to = %incoming.to, cluster = %incoming.cluster, "a message for somebody else is dropped");
            continue;
        }
        let space = context.shared.space();
        space.heard(peer, disk_full);
        if space.sheds(&incoming.message) {
            continue;
        }
        if !context.handle().deliver(incoming).await {
            return;
        }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type ControlStream = Greetings;
    type DataStream = Greetings;
    type BulkStream = Greetings;

    async fn control(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Greetings>, Status> {
        self.accept(request).await
    }

    async fn data(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Greetings>, Status> {
        self.accept(request).await
    }

    async fn bulk(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<Greetings>, Status> {
        self.accept(request).await
    }
}
