//! The admin port of one member: dials the pod's address, checks the pod's name, and turns the wire's
//! messages into [`crate::observed`] types.

mod convert;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use synod_proto::admin::v1::{
    ChangeRequest, ChangeSettingsRequest, GenesisMember, InitializeRequest, JoinRequest, RenewRequest,
    TransferLeaderRequest,
};
use synod_proto::formerly::{AdminClient, Either};
use synod_proto::v1::StatusRequest;
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::names::{ClusterId, MemberId, PORT_ADMIN};
use crate::observed::Report;
use crate::plan::Change;
use crate::settings::Settings;
use crate::tls::Pair;

/// How long a connection may take. Pods answer in milliseconds or not at all.
const CONNECT: Duration = Duration::from_secs(2);
/// Most connections that are kept.
const MOST_CONNECTIONS: usize = 4096;
/// How long a question may take.
const ASK: Duration = Duration::from_secs(3);
/// How long a change may take: it has to be chosen.
const CHANGE: Duration = Duration::from_secs(10);
/// How long a hand-over may take: 10 s of its own and the way there.
const HAND_OVER: Duration = Duration::from_secs(15);

/// A member could not be asked, or said no.
#[derive(Debug, Error)]
pub enum MemberError {
    /// No connection.
    #[error("cannot be reached at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why, with its causes.
        why: String,
    },
    /// It answered with a refusal.
    #[error("{call} was refused ({code:?}): {message}")]
    Refused {
        /// What was asked.
        call: &'static str,
        /// The gRPC status.
        code: tonic::Code,
        /// Its own words.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("its answer cannot be read: {0}")]
    Malformed(String),
}

/// What the operator shows to a cluster's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The authority's certificate.
    pub authority: String,
    /// The operator's own pair.
    pub pair: Pair,
}

/// How to reach one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The pod.
    pub pod: String,
    /// The pod's address.
    pub ip: String,
    /// The name its certificate must carry.
    pub host: String,
    /// `None`: without TLS.
    pub credentials: Option<Credentials>,
}

/// A question to one member.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// What it knows.
    Status,
    /// Forms the cluster: the same list to every member.
    Initialize {
        /// The log.
        cluster: ClusterId,
        /// Pods and ids of the first members.
        members: Vec<(String, MemberId)>,
        /// The first settings.
        settings: Settings,
    },
    /// Tells an empty member which cluster it will be added to.
    Join {
        /// The log.
        cluster: ClusterId,
        /// Digest of its genesis.
        digest: Vec<u8>,
    },
    /// Adds a member without a vote, under the name of its pod.
    AddLearner(Change, String),
    /// Gives a learner a vote.
    Promote(Change),
    /// Takes a member out.
    Remove(Change),
    /// Changes the replicated settings from `version`, by an entry in the log.
    ChangeSettings {
        /// The log.
        cluster: ClusterId,
        /// The version that this was planned from.
        version: u64,
        /// What they shall be.
        settings: Settings,
    },
    /// Hands leadership to a voter.
    Transfer {
        /// The log.
        cluster: ClusterId,
        /// The voter.
        to: MemberId,
    },
    /// Has a removed member start over under a new id.
    Renew(MemberId),
}

/// What a member answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// What it knows.
    Report(Box<Report>),
    /// It was done.
    Done,
}

/// The way to the members. The operator dials them; a test puts something else in its place.
pub trait Members: Send + Sync {
    /// Asks one member.
    ///
    /// # Errors
    /// If it cannot be reached, refuses, or answers nonsense.
    fn ask<'a>(&'a self, target: &'a Target, ask: Ask) -> BoxFuture<'a, Result<Answer, MemberError>>;
}

/// Dials members, and keeps the connections that work.
#[derive(Default)]
pub struct Dialled {
    open: Mutex<BTreeMap<String, (Target, AdminClient)>>,
}

impl Members for Dialled {
    fn ask<'a>(&'a self, target: &'a Target, ask: Ask) -> BoxFuture<'a, Result<Answer, MemberError>> {
        Box::pin(async move {
            // A pod that comes back at another address takes the place of its predecessor.
            let key = target.host.clone();
            let known = self.with(|open| open.get(&key).filter(|(t, _)| t == target).map(|(_, c)| c.clone()));
            let client = match known {
                Some(client) => client,
                None => {
                    let client = connect(target).await?;
                    self.with(|open| {
                        if open.len() >= MOST_CONNECTIONS {
                            // Of clusters that are long gone, for the most part: the others dial again.
                            open.clear();
                        }
                        open.insert(key.clone(), (target.clone(), client.clone()))
                    });
                    client
                }
            };
            let answer = answer(client, target, ask).await;
            if matches!(&answer, Err(e) if e.is_lost()) {
                self.with(|open| open.remove(&key));
            }
            answer
        })
    }
}

impl Dialled {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<String, (Target, AdminClient)>) -> T) -> T {
        // A panic while the lock was held loses a connection at worst.
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MemberError {
    /// Whether the connection is not worth keeping.
    fn is_lost(&self) -> bool {
        match self {
            MemberError::Unreachable { .. } | MemberError::Malformed(_) => true,
            MemberError::Refused { code, .. } => matches!(
                code,
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Cancelled
                    | tonic::Code::DeadlineExceeded
                    | tonic::Code::Internal
            ),
        }
    }
}

/// Dials the pod's address and checks that the certificate is that pod's.
async fn connect(target: &Target) -> Result<AdminClient, MemberError> {
    let host = if target.ip.contains(':') { format!("[{}]", target.ip) } else { target.ip.clone() };
    let scheme = if target.credentials.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{host}:{PORT_ADMIN}");
    let unreachable = |why: String| MemberError::Unreachable { address: address.clone(), why };
    let mut endpoint = Endpoint::from_shared(address.clone())
        .map_err(|e| unreachable(chain(&e)))?
        .connect_timeout(CONNECT)
        .timeout(HAND_OVER);
    if let Some(credentials) = &target.credentials {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&credentials.authority))
            .identity(Identity::from_pem(&credentials.pair.certificate, &credentials.pair.key))
            .domain_name(&target.host)
            .timeout(CONNECT);
        endpoint = endpoint.tls_config(tls).map_err(|e| unreachable(chain(&e)))?;
    }
    let channel = endpoint.connect().await.map_err(|e| unreachable(chain(&e)))?;
    Ok(AdminClient::new(Either::new(channel)))
}

async fn answer(mut client: AdminClient, target: &Target, ask: Ask) -> Result<Answer, MemberError> {
    let bytes = convert::cluster_bytes;
    match ask {
        Ask::Status => {
            let answer = client.status(asked(StatusRequest {}, ASK)).await;
            let answer = answer.map_err(refused("Status"))?.into_inner();
            if answer.name != target.pod {
                let why = format!("it calls itself '{}', not '{}'", answer.name, target.pod);
                return Err(MemberError::Malformed(why));
            }
            return Ok(Answer::Report(Box::new(convert::report(answer)?)));
        }
        Ask::Initialize { cluster, members, settings } => {
            let members =
                members.into_iter().map(|(name, id)| GenesisMember { member: id.0, name }).collect();
            let settings = Some(convert::settings(&settings));
            let cluster_id = bytes(cluster).into();
            let request = InitializeRequest { cluster_id, members, alpha: 0, settings };
            client.initialize(asked(request, CHANGE)).await.map(drop).map_err(refused("Initialize"))?;
        }
        Ask::Join { cluster, digest } => {
            let request = JoinRequest { cluster_id: bytes(cluster).into(), genesis_digest: digest.into() };
            client.join(asked(request, ASK)).await.map(drop).map_err(refused("Join"))?;
        }
        Ask::AddLearner(change, pod) => {
            let request = asked(change_request(&change, pod), CHANGE);
            client.add_learner(request).await.map(drop).map_err(refused("AddLearner"))?;
        }
        Ask::Promote(change) => {
            let request = asked(change_request(&change, String::new()), CHANGE);
            client.promote(request).await.map(drop).map_err(refused("Promote"))?;
        }
        Ask::Remove(change) => {
            let request = asked(change_request(&change, String::new()), CHANGE);
            client.remove_member(request).await.map(drop).map_err(refused("RemoveMember"))?;
        }
        Ask::ChangeSettings { cluster, version, settings } => {
            let settings = Some(convert::settings(&settings));
            let cluster_id = bytes(cluster).into();
            let request = ChangeSettingsRequest { cluster_id, expected_version: version, settings };
            client
                .change_settings(asked(request, CHANGE))
                .await
                .map(drop)
                .map_err(refused("ChangeSettings"))?;
        }
        Ask::Transfer { cluster, to } => {
            let request = TransferLeaderRequest { cluster_id: bytes(cluster).into(), to: Some(to.0) };
            let request = asked(request, HAND_OVER);
            client.transfer_leader(request).await.map(drop).map_err(refused("TransferLeader"))?;
        }
        Ask::Renew(member) => {
            let request = asked(RenewRequest { member: member.0 }, CHANGE);
            client.renew(request).await.map(drop).map_err(refused("Renew"))?;
        }
    }
    Ok(Answer::Done)
}

fn change_request(change: &Change, name: String) -> ChangeRequest {
    ChangeRequest {
        cluster_id: convert::cluster_bytes(change.cluster).into(),
        expected_version: change.version,
        operation_id: change.operation.as_bytes().to_vec().into(),
        member: change.member.0,
        name,
    }
}

fn asked<T>(message: T, patience: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(patience);
    request
}

fn refused(call: &'static str) -> impl Fn(tonic::Status) -> MemberError {
    move |status| MemberError::Refused { call, code: status.code(), message: status.message().to_owned() }
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
