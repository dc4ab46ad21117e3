//! The admin port of one member: dials the pod's address, checks the pod's name, and turns the wire's
//! messages into [`crate::observed`] types.

mod convert;

use std::time::Duration;

use synod_proto::v1::admin_client::AdminClient;
use synod_proto::v1::{
    ChangeRequest, ChangeSettingsRequest, GenesisMember, InitializeRequest, JoinRequest, RenewRequest,
    StatusRequest, TransferLeaderRequest,
};
use thiserror::Error;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::names::{ClusterId, MemberId, PORT_ADMIN};
use crate::observed::Report;
use crate::plan::Change;
use crate::settings::Settings;
use crate::tls::Pair;

/// How long a connection may take. Pods answer in milliseconds or not at all.
const CONNECT: Duration = Duration::from_secs(2);
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

/// A connection to one member's admin port.
#[derive(Clone)]
pub struct Member {
    client: AdminClient<Channel>,
}

impl Member {
    /// Dials the pod's address and checks that the certificate is that pod's.
    ///
    /// # Errors
    /// If there is no connection within 2 s, or the handshake fails.
    pub async fn connect(target: &Target) -> Result<Member, MemberError> {
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
        Ok(Member { client: AdminClient::new(channel) })
    }

    /// What the member knows.
    ///
    /// # Errors
    /// If it does not answer within 3 s, or not as itself.
    pub async fn status(&self, pod: &str) -> Result<Report, MemberError> {
        let answer = self.client.clone().status(asked(StatusRequest {}, ASK)).await;
        let answer = answer.map_err(refused("Status"))?.into_inner();
        if answer.name != pod {
            return Err(MemberError::Malformed(format!("it calls itself '{}', not '{pod}'", answer.name)));
        }
        convert::report(answer)
    }

    /// Forms the cluster: the same list to every member.
    ///
    /// # Errors
    /// If the member is not empty, or is not in the list.
    pub async fn initialize(
        &self,
        cluster: ClusterId,
        members: Vec<(String, MemberId)>,
        settings: &Settings,
    ) -> Result<(), MemberError> {
        let members = members.into_iter().map(|(name, id)| GenesisMember { member: id.0, name }).collect();
        let request = InitializeRequest {
            cluster_id: convert::cluster_bytes(cluster).into(),
            members,
            alpha: 0,
            settings: Some(convert::settings(settings)),
        };
        let answer = self.client.clone().initialize(asked(request, CHANGE)).await;
        answer.map(|_| ()).map_err(refused("Initialize"))
    }

    /// Tells an empty member which cluster it will be added to.
    ///
    /// # Errors
    /// If the member is not empty.
    pub async fn join(&self, cluster: ClusterId, digest: Vec<u8>) -> Result<(), MemberError> {
        let request =
            JoinRequest { cluster_id: convert::cluster_bytes(cluster).into(), genesis_digest: digest.into() };
        let answer = self.client.clone().join(asked(request, ASK)).await;
        answer.map(|_| ()).map_err(refused("Join"))
    }

    /// Adds a member without a vote. `pod` is the name it is added under.
    ///
    /// # Errors
    /// If the version is not the newest any more, or the change was not chosen in time.
    pub async fn add_learner(&self, change: &Change, pod: String) -> Result<(), MemberError> {
        let answer = self.client.clone().add_learner(asked(change_request(change, pod), CHANGE)).await;
        answer.map(|_| ()).map_err(refused("AddLearner"))
    }

    /// Gives a learner a vote.
    ///
    /// # Errors
    /// As [`Member::add_learner`].
    pub async fn promote(&self, change: &Change) -> Result<(), MemberError> {
        let answer = self.client.clone().promote(asked(change_request(change, String::new()), CHANGE)).await;
        answer.map(|_| ()).map_err(refused("Promote"))
    }

    /// Takes a member out.
    ///
    /// # Errors
    /// As [`Member::add_learner`].
    pub async fn remove(&self, change: &Change) -> Result<(), MemberError> {
        let request = asked(change_request(change, String::new()), CHANGE);
        let answer = self.client.clone().remove_member(request).await;
        answer.map(|_| ()).map_err(refused("RemoveMember"))
    }

    /// Changes the replicated settings from `version` to `settings`, by an entry in the log.
    ///
    /// # Errors
    /// If they are at another version by now, or the change was not chosen in time.
    pub async fn change_settings(
        &self,
        cluster: ClusterId,
        version: u64,
        settings: &Settings,
    ) -> Result<(), MemberError> {
        let request = ChangeSettingsRequest {
            cluster_id: convert::cluster_bytes(cluster).into(),
            expected_version: version,
            settings: Some(convert::settings(settings)),
        };
        let answer = self.client.clone().change_settings(asked(request, CHANGE)).await;
        answer.map(|_| ()).map_err(refused("ChangeSettings"))
    }

    /// Hands leadership to a voter; says who leads afterwards.
    ///
    /// # Errors
    /// If the hand-over was given up.
    pub async fn transfer_leader(&self, cluster: ClusterId, to: MemberId) -> Result<MemberId, MemberError> {
        let request =
            TransferLeaderRequest { cluster_id: convert::cluster_bytes(cluster).into(), to: Some(to.0) };
        let answer = self.client.clone().transfer_leader(asked(request, HAND_OVER)).await;
        answer.map(|a| MemberId(a.into_inner().leader)).map_err(refused("TransferLeader"))
    }

    /// Has a removed member start over under a new id, which is returned.
    ///
    /// # Errors
    /// If the member was not removed, or is another one.
    pub async fn renew(&self, member: MemberId) -> Result<MemberId, MemberError> {
        let answer = self.client.clone().renew(asked(RenewRequest { member: member.0 }, CHANGE)).await;
        answer.map(|a| MemberId(a.into_inner().member)).map_err(refused("Renew"))
    }
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
