//! What was read: plain data, so that the stages that judge it need no client.
//!
//! [`crate::dereference`] fills it from fresh reads of the API server and of each member's admin port.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use uuid::Uuid;

use crate::crd::PaxosClusterStatus;
use crate::names::{ClusterId, MemberId};
use crate::settings::InForce;

/// Everything one reconcile knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// When it was read.
    pub now: Timestamp,
    /// A random id, for the case that one is needed: the plan itself draws none.
    pub fresh_id: Uuid,
    /// Generation of the PaxosCluster.
    pub generation: i64,
    /// Whether the PaxosCluster is being deleted.
    pub deleting: bool,
    /// The annotation `synod.dev/replace`, if it names a member.
    pub replace: Option<MemberId>,
    /// The annotation `synod.dev/rotate-ca`: another value than was carried out asks for a new authority.
    pub rotate: Option<String>,
    /// The status as it stands.
    pub status: PaxosClusterStatus,
    /// The StatefulSet, if there is one.
    pub set: Option<SetFacts>,
    /// The pods, by ordinal.
    pub pods: BTreeMap<u32, PodFacts>,
    /// The volume claims, by ordinal.
    pub claims: BTreeMap<u32, ClaimFacts>,
    /// What members answered, by ordinal.
    pub reports: BTreeMap<u32, Report>,
    /// Why members did not answer, by ordinal.
    pub silent: BTreeMap<u32, String>,
    /// `minAvailable` of our disruption budget, if there is one.
    pub budget: Option<i32>,
    /// Whether the API server refused our budget a short while ago: it is told, and nothing waits for it.
    pub budget_refused: bool,
    /// Whether this operator makes the pods otherwise than the one before, and other clusters are rolled first.
    pub waits_turn: bool,
    /// Why pods could not be made (FailedCreate events), newest first.
    pub failed_creates: Vec<String>,
    /// The nodes there are, by name; `None` where the operator may not read them.
    pub nodes: Option<BTreeMap<String, NodeFacts>>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its labels: volumes are bound by them, never by the node's name.
    pub labels: BTreeMap<String, String>,
    /// Whether a person declared it shut down (taint `node.kubernetes.io/out-of-service`).
    pub out_of_service: bool,
}

/// The StatefulSet.
#[derive(Clone, Debug, PartialEq)]
pub struct SetFacts {
    /// Its UID.
    pub uid: String,
    /// The resourceVersion that writes are conditional on.
    pub resource_version: String,
    /// `spec.replicas`.
    pub replicas: u32,
    /// The replicas that we wrote last; `None` on a set of an older operator. Somebody else changed them
    /// where they differ.
    pub applied_size: Option<u32>,
    /// The generation of the PaxosCluster that its pods were made from; `None` on a set of an older operator.
    pub made_from: Option<i64>,
    /// Hash of its pod template as an operator made it; `None` on a set of an older one.
    pub template: Option<String>,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`: the revision below speaks of this one.
    pub observed_generation: i64,
    /// `status.updateRevision`. `currentRevision` is never read: it goes stale under OnDelete.
    pub update_revision: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The storage request in its claim template, which is never changed.
    pub claim_size: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFacts {
    /// Its UID: deletes and evictions carry it.
    pub uid: String,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// Its node, once it has one.
    pub node: Option<String>,
    /// Whether it is Ready, the application's containers included.
    pub ready: bool,
    /// Since when it is, if it is.
    pub ready_since: Option<Timestamp>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its `controller-revision-hash`.
    pub revision: String,
    /// Its label `synod.dev/role`.
    pub role: Option<String>,
    /// Whether it carries the label by which the disruption budget counts it.
    pub counted: bool,
    /// Why it cannot run, if it cannot.
    pub trouble: Option<Trouble>,
}

/// Why a pod cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// The kubelet's or scheduler's own words.
    pub message: String,
}

/// Kinds of trouble a pod can be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// An image cannot be fetched.
    Image,
    /// A container ends again and again, or cannot be made.
    Crash,
    /// No node takes it.
    Unschedulable,
    /// The pod has ended.
    Failed,
}

/// A volume claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClaimFacts {
    /// Its UID: deletes carry it.
    pub uid: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Its label `synod.dev/retired`: the member that was removed.
    pub retired: Option<String>,
    /// Its annotation `synod.dev/member-id`.
    pub member: Option<MemberId>,
    /// Its annotation `synod.dev/cluster-id`.
    pub cluster: Option<ClusterId>,
    /// The size it asks for, in bytes.
    pub requested: u64,
    /// The size its volume has, in bytes; 0 while unknown.
    pub capacity: u64,
    /// Whether its file system grows only when the pod restarts.
    pub waits_for_restart: bool,
    /// Whether our PaxosCluster owns it.
    pub owned: bool,
    /// Its volume, once it has one.
    pub volume: Option<String>,
    /// Whether its volume is bound to a node and no such node exists. Looked up only where a member is
    /// silent.
    pub stranded: bool,
}

/// State of a member, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// An empty disk: it belongs to no cluster yet.
    Uninitialized,
    /// It was told of a cluster and waits for its peers or for the log.
    Joining,
    /// Its disk has had a life; it waits for a quorum to answer its handshake.
    Recovering,
    /// It takes part.
    Active,
    /// Its disk shows less than its peers remember.
    Fenced,
    /// A chosen entry removed it.
    Removed,
    /// It stopped because going on might be wrong: a person must look.
    Halted,
}

/// A ballot: rounds first, then the member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ballot {
    /// The round.
    pub round: u64,
    /// The member that leads in it.
    pub member: u64,
}

/// What one member answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its id.
    pub member: MemberId,
    /// How often it has started.
    pub incarnation: u64,
    /// Its state.
    pub state: MemberState,
    /// The cluster on its disk.
    pub cluster: Option<ClusterId>,
    /// Digest of the genesis; empty while unknown.
    pub genesis_digest: Vec<u8>,
    /// Whether it believes that it leads.
    pub leads: bool,
    /// The leader it knows.
    pub leader: Option<MemberId>,
    /// That leader's ballot.
    pub ballot: Ballot,
    /// Every slot up to it is chosen and known to this member.
    pub chosen_through: u64,
    /// The last application index it has applied.
    pub last_index: u64,
    /// The newest configuration it has applied.
    pub config: Option<Config>,
    /// Whether that configuration is in force.
    pub in_force: bool,
    /// What it knows of its peers.
    pub peers: Vec<Peer>,
    /// Members that chosen entries removed.
    pub removed: Vec<Removed>,
    /// Ready as `/readyz` means it.
    pub ready: bool,
    /// Why it is not ready, or fenced.
    pub reason: String,
    /// Version of the sidecar.
    pub version: String,
    /// The space on its disk.
    pub room: Room,
    /// Free bytes on its disk.
    pub free_bytes: u64,
    /// How far it has followed a change of the authority.
    pub trust: Trust,
    /// The replicated settings; `None` while it knows no log, and from sidecars that have none.
    pub settings: Option<InForce>,
}

/// The space on a member's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Enough, or not told.
    #[default]
    Plenty,
    /// Less than four times the reserve.
    Low,
    /// Less than the reserve: appends are refused.
    Full,
}

/// How far a member has followed a change of the authority, as the handshake with it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// It knows the old authority only.
    Old,
    /// It takes certificates of the new authority, and still shows one of the old.
    Both,
    /// It shows a certificate of the newest authority.
    #[default]
    Newest,
}

/// A configuration entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its version: a change names the one it was planned from.
    pub version: u64,
    /// Its members.
    pub members: Vec<ConfigMember>,
}

impl Config {
    /// The member, if it is in this configuration.
    pub fn get(&self, member: MemberId) -> Option<&ConfigMember> {
        self.members.iter().find(|m| m.member == member)
    }

    /// Members that vote.
    pub fn voters(&self) -> impl Iterator<Item = &ConfigMember> {
        self.members.iter().filter(|m| m.voter)
    }
}

/// A member in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMember {
    /// Its id.
    pub member: MemberId,
    /// The pod it was added under; never an identity.
    pub name: String,
    /// Whether it votes.
    pub voter: bool,
}

/// What the leader knows of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The peer.
    pub member: MemberId,
    /// Whether its connection stands.
    pub connected: bool,
    /// Whether it keeps up with the log.
    pub caught_up: bool,
}

/// A removed member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its id.
    pub member: MemberId,
    /// The version of the configuration without it.
    pub version: u64,
    /// Whether the prefix it voted in is held by a quorum without it: its disk may go.
    pub retired: bool,
}
